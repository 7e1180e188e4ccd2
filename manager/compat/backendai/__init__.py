"""The front of Backend.AI: its REST, WebSocket and event addresses for its own client, under `/compat/backendai`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manager.compat import Front
    from manager.config import ManagerConfig
    from manager.rest.app import RestDoor


def front(door: RestDoor, config: ManagerConfig) -> Front:
    from manager.compat.backendai.answering import BackendAiFront
    from manager.vault import Vault

    return BackendAiFront(door, lambda: Vault.of(config.data_dir / "pki"))
