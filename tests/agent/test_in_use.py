"""Which kernels have a connection into them, as a manager's process knows it."""

from __future__ import annotations

import socket
from uuid import uuid4
from weakref import WeakKeyDictionary

from agent.hub import AgentHub
from domain.ids import KernelId


def test_a_kernel_is_in_use_while_a_connection_is_open() -> None:
    hub = AgentHub.__new__(AgentHub)
    open_one, brief = KernelId(uuid4()), KernelId(uuid4())

    hub._dug, hub._dug_lately = WeakKeyDictionary(), {open_one, brief}
    ours, theirs = socket.socketpair()
    hub._dug[ours] = open_one
    assert hub.kernels_in_use() == {open_one, brief}
    assert hub.kernels_in_use() == {open_one}
    ours.close()
    theirs.close()
    assert hub.kernels_in_use() == set()
