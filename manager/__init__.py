"""The control plane: the processor, its doors, the scheduler, the loops; and the way in for programs on the same machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manager.world import SessionService

__all__ = ["open_service"]


def open_service(data_dir: str | os.PathLike[str] | None = None) -> AbstractAsyncContextManager[SessionService]:
    """`async with manager.open_service() as service:` opens the installation in `data_dir` (or `MOORAGE_DATA_DIR`).

    `service.processors` run actions in this process, as a manager does: trusted, with the installation's own database.
    """
    return _open_service(Path(data_dir) if data_dir is not None else None)


@asynccontextmanager
async def _open_service(data_dir: Path | None) -> AsyncIterator[SessionService]:
    from contextlib import AsyncExitStack

    from manager.config import ManagerConfig, default_data_dir
    from manager.daemon import open_world

    config = ManagerConfig.load((data_dir or default_data_dir()).absolute())
    async with AsyncExitStack() as stack:
        yield (await open_world(config, stack)).service
