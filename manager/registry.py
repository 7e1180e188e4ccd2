"""A registry's list of images, over its HTTP API (the OCI distribution specification)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from domain.errors import RegistryDenied, RegistryUnreachable

#: More are not looked at: a catalogue can be endless.
MOST_IMAGES: Final = 2000
_PAGE: Final = 100
_MANIFESTS: Final = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.index.v1+json",
    )
)
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')
_ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_MOST_BYTES: Final = 8 << 20


class RegistryClient:
    """`async with` it. Plain HTTP is spoken with loopback addresses only."""

    def __init__(self, host: str, auth: Mapping[str, str] | None) -> None:
        self._host = host
        self._auth = aiohttp.BasicAuth(auth["username"], auth["password"]) if auth else None
        self._token: str | None = None
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30.0))
        self._base = f"{'http' if _is_loopback(host) else 'https'}://{host}/v2/"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def images(self) -> AsyncIterator[tuple[str, str]]:
        """(HOST/REPOSITORY:TAG, architecture) of everything that it tells of."""
        seen = 0
        async for repository in self._pages("_catalog", "repositories"):
            async for tag in self._pages(f"{repository}/tags/list", "tags"):
                seen += 1
                if seen > MOST_IMAGES:
                    return
                yield f"{self._host}/{repository}:{tag}", await self._architecture(repository, tag)

    async def _pages(self, path: str, name: str) -> AsyncIterator[str]:
        last = ""
        while True:
            query = f"?n={_PAGE}" + (f"&last={last}" if last else "")
            found = [str(each) for each in (await self._get(path + query)).get(name) or []]
            for each in found:
                yield each
            if len(found) < _PAGE or found[-1] == last:
                return
            last = found[-1]

    async def _architecture(self, repository: str, tag: str) -> str:
        manifest = await self._get(f"{repository}/manifests/{tag}", accept=_MANIFESTS)
        if several := manifest.get("manifests"):
            platforms = [each.get("platform") or {} for each in several if isinstance(each, dict)]
            name = next((str(p["architecture"]) for p in platforms if p.get("os") == "linux"), "amd64")
        else:
            digest = (manifest.get("config") or {}).get("digest")
            config = await self._get(f"{repository}/blobs/{digest}") if digest else {}
            name = str(config.get("architecture") or "amd64")
        return _ARCHITECTURES.get(name, name)

    async def _get(self, path: str, *, accept: str = "application/json") -> dict[str, Any]:
        """Raises RegistryDenied and RegistryUnreachable."""
        try:
            for attempt in range(2):
                headers = {"Accept": accept} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
                basic = self._auth if self._token is None else None
                async with self._http.get(self._base + path, headers=headers, auth=basic) as answer:
                    if answer.status == 401 and attempt == 0 and await self._log_in(answer):
                        continue
                    if answer.status in (401, 403):
                        raise RegistryDenied(
                            f"The registry {self._host} does not tell its images; set credentials with "
                            f"'moorage registry login {self._host}'."
                        )
                    if answer.status != 200:
                        raise RegistryUnreachable(f"The registry {self._host} answers {answer.status}.")
                    return _object(await answer.content.read(_MOST_BYTES))
            raise RegistryDenied
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RegistryUnreachable(f"The registry {self._host} cannot be reached: {error}.") from None

    async def _log_in(self, refused: aiohttp.ClientResponse) -> bool:
        """Get a token from where the registry says that there are some."""
        scheme, _, rest = refused.headers.get("WWW-Authenticate", "").partition(" ")
        asked = dict(_PARAMETER.findall(rest))
        realm = asked.pop("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith(("https://", self._base.partition("/v2/")[0])):
            return False
        async with self._http.get(realm, params=asked, auth=self._auth) as answer:
            if answer.status != 200:
                return False
            told = _object(await answer.content.read(_MOST_BYTES))
        self._token = str(told.get("token") or told.get("access_token") or "") or None
        return self._token is not None


def _object(content: bytes) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0]
    return name in ("localhost", "[::1]") or name.startswith("127.")
