"""A host joins an installation: a one-time token in, a certificate and `agent.toml` out."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp

from agent import pki
from agent.config import AgentConfig, ConfigError
from agent.wire import check_agent_id
from domain.errors import InvalidRequest

_SECONDS = 30.0


def default_agent_id() -> str:
    """The host's name, as far as it can be one."""
    return re.sub(r"[^a-z0-9.-]+", "-", socket.gethostname().lower()).strip("-.")[:63] or "agent"


async def join(token_text: str, data_dir: Path, agent_id: str | None, **settings: Any) -> AgentConfig:
    """Raises ConfigError with a sentence for who typed the command."""
    folder = data_dir / "pki"
    try:
        token = pki.parse_join_token(token_text)
        name = check_agent_id(agent_id or default_agent_id())
    except (InvalidRequest, ValueError) as error:
        raise ConfigError(str(error)) from None
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            # Nobody is trusted yet: what is shown here counts only when it is what the token names.
            async with session.get(f"{token.url}/agent/ca", ssl=_trusting_nobody()) as shown:
                pki.trust(folder, await shown.read(), token)
            request = {
                "secret": token.secret,
                "agent_id": name,
                "csr": (await asyncio.to_thread(pki.make_request, folder, name)).decode(),
            }
            tls = pki.client_context(folder, with_certificate=False)
            async with session.post(f"{token.url}/agent/join", json=request, ssl=tls) as answer:
                body = await answer.json()
                if answer.status != 200:
                    raise ConfigError(f"The manager refuses: {body.get('message', answer.status)}")
    except InvalidRequest as error:
        raise ConfigError(error.message) from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ConfigError(f"The manager at {token.url} cannot be reached: {error}") from None
    pki.keep_certificate(folder, body["certificate"].encode())
    config = AgentConfig(data_dir=data_dir, agent_id=name, managers=(token.url,), **settings)
    config.save()
    config.remember_managers([str(manager["url"]) for manager in body.get("managers", [])])
    return config


def _trusting_nobody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
