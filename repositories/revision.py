"""Whether a database has this version's schema, found out without Alembic: a manager that comes back has no time to lose."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import asyncpg

import migrations


async def is_newest(dsn: str) -> bool:
    """False also when it cannot be told; whoever migrates then says why."""
    try:
        connection = await asyncpg.connect(dsn, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    try:
        return bool(await connection.fetchval("SELECT version_num = $1 FROM alembic_version", newest()))
    except asyncpg.PostgresError:
        return False
    finally:
        await connection.close()


@cache
def newest() -> str:
    """The revision that no other one follows."""
    texts = [file.read_text() for file in (Path(migrations.__file__).parent / "versions").glob("*.py")]
    found = {_value(text, "revision"): _value(text, "down_revision") for text in texts}
    (head,) = found.keys() - set(found.values())
    assert head is not None
    return head


def _value(text: str, name: str) -> str | None:
    match = re.search(rf"^{name}\b[^=]*= *[\"']([^\"']+)[\"']", text, re.MULTILINE)
    return match.group(1) if match else None
