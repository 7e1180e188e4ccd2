"""Names of things as types, so that one kind of id is never passed for another."""

from __future__ import annotations

import os
import time
from typing import NewType
from uuid import UUID

SessionId = NewType("SessionId", UUID)
KernelId = NewType("KernelId", UUID)
RunId = NewType("RunId", UUID)
AgentId = NewType("AgentId", str)
#: The public half of a keypair; `access_key.secret_key` together are a bearer credential.
AccessKey = NewType("AccessKey", str)


def uuid7() -> UUID:
    """A new id whose beginning is the time (RFC 9562), so that rows made together lie together."""
    milliseconds = time.time_ns() // 1_000_000
    bits = int.from_bytes(os.urandom(10)) & ~(0xF << 76) & ~(0x3 << 62)
    return UUID(int=(milliseconds << 80) | (7 << 76) | bits | (2 << 62))
