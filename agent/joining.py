"""How a host joins: it proves the token, learns whom to trust, and gets a certificate for a key that never leaves it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from agent import pki
from agent.config import AgentConfig
from domain.errors import InvalidRequest

_TIMEOUT_SECONDS: Final = 30.0
_MAX_ANSWER_BYTES: Final = 1 << 20


class JoinRefused(Exception):
    """The host could not join; the message says why, and what to do."""


def join_installation(config: AgentConfig, token_text: str) -> AgentConfig:
    """Blocking. Writes pki/ and agent.toml in the config's data dir; nothing is kept of a refusal but an unused key."""
    folder = config.data_dir / "pki"
    try:
        token = pki.parse_join_token(token_text)
        if not token.url.startswith("https://"):
            raise InvalidRequest("The token names no https:// address.")
        # Not verified: what is fetched here is public, and believed only if its hash is the one in the token.
        unverified = ssl._create_unverified_context()  # noqa: S323
        pki.trust(folder, _ask(f"{token.url}/agent/ca", None, unverified), token)
        request = {
            "secret": token.secret,
            "agent_id": config.agent_id,
            "csr": pki.make_request(folder, config.agent_id).decode(),
        }
        trusted = pki.client_context(folder, with_certificate=False)
        answer = json.loads(_ask(f"{token.url}/agent/join", json.dumps(request).encode(), trusted))
        pki.keep_certificate(folder, str(answer["certificate"]).encode())
    except (InvalidRequest, KeyError, ValueError) as error:
        raise JoinRefused(str(error)) from None
    urls = [str(manager.get("url", "")) for manager in answer.get("managers", [])]
    joined = replace(config, managers=list(dict.fromkeys([token.url, *config.managers, *filter(None, urls)])))
    joined.save()
    return joined


def _ask(url: str, body: bytes | None, tls: ssl.SSLContext) -> bytes:
    # no proxy: a manager is reached directly or not at all
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(_MAX_ANSWER_BYTES)
            return content
    except urllib.error.HTTPError as error:
        with error:
            raise JoinRefused(_message(error.read(_MAX_ANSWER_BYTES)) or f"The manager says {error}.") from None
    except (OSError, HTTPException) as error:
        raise JoinRefused(f"The manager at {url} cannot be reached: {error}.") from None


def _message(body: bytes) -> str:
    try:
        said: Any = json.loads(body)
        return str(said["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def has_joined(data_dir: Path) -> bool:
    return (data_dir / "pki" / "agent.pem").exists()
