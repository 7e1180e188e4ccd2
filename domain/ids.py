"""Names of things as types, so that one kind of id is never passed for another."""

from __future__ import annotations

from typing import NewType
from uuid import UUID

SessionId = NewType("SessionId", UUID)
KernelId = NewType("KernelId", UUID)
RunId = NewType("RunId", UUID)
AgentId = NewType("AgentId", str)
#: The public half of a keypair; `access_key.secret_key` together are a bearer credential.
AccessKey = NewType("AccessKey", str)
