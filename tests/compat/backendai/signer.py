"""Signs requests as the client does, and wrongly where a test wants it so."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

PREFIX: Final = "/compat/backendai"
VERSION: Final = "v7.20230615"


def signature(secret: str, method: str, target: str, date: datetime, host: str, media_type: str) -> str:
    empty = hashlib.sha256(b"").hexdigest()
    text = f"{method}\n{target}\n{date.isoformat()}\nhost:{host}\ncontent-type:{media_type}\nx-backendai-version:{VERSION}\n{empty}"
    key = secret.encode()
    for part in (date.strftime("%Y%m%d"), host):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def headers_of(
    access_key: str,
    secret: str,
    method: str,
    target: str,
    *,
    host: str,
    media_type: str = "text/plain",
    date: datetime | None = None,
) -> dict[str, str]:
    date = date or datetime.now(UTC)
    made = signature(secret, method, target, date, host, media_type)
    return {
        "Date": date.isoformat(),
        "X-BackendAI-Version": VERSION,
        "Content-Type": media_type,
        "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={access_key}:{made}",
    }


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def prob(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json; charset=utf-8", self.body[:200]
        return str(self.json["type"]).rpartition("/")[2]


@dataclass
class Signer:
    """One person's requests."""

    http: aiohttp.ClientSession
    port: int
    access_key: str
    secret: str

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> URL:
        return URL(f"http://{self.host}{PREFIX}{path}", encoded=True)

    def signed(self, method: str, path: str, media_type: str = "text/plain", **more: Any) -> dict[str, str]:
        target = f"{PREFIX}{path}"
        return headers_of(self.access_key, self.secret, method, target, host=self.host, media_type=media_type, **more)

    async def send(self, method: str, path: str, headers: dict[str, str], data: Any = None) -> Answer:
        async with self.http.request(method, self.url(path), headers=headers, data=data) as response:
            return Answer(response.status, response.headers, await response.read())

    async def ask(self, method: str, path: str, json: Any = None) -> Answer:
        if json is None:
            return await self.send(method, path, self.signed(method, path))
        headers = self.signed(method, path, "application/json")
        return await self.send(method, path, headers, orjson.dumps(json))

    async def run(self, session: str = "train", **body: Any) -> Any:
        """The result of an execution."""
        answer = await self.ask("POST", f"/session/{session}", {"mode": "query", "code": "", **body})
        assert answer.status == 200, answer.body
        return answer.json["result"]
