"""The interpreter that runs as PID 1 in every container: this process's own CPython, copied with its libraries and loader.

It is mounted read-only at /moorage/rt, so it runs in any image, also in an empty one.
"""

from __future__ import annotations

from pathlib import Path

#: Where containers see the runtime.
RUNTIME_IN_CONTAINER = "/moorage/rt"
#: Where containers see the link directory.
LINK_IN_CONTAINER = "/moorage/link"


def ensure_runtime(data_dir: Path) -> Path:
    """The directory to mount at /moorage/rt; built under `data_dir`/runtime when it is not there yet. Blocking: use a thread."""
    raise NotImplementedError


def command(runtime: Path, rt_in_container: str = RUNTIME_IN_CONTAINER, link: str = LINK_IN_CONTAINER) -> list[str]:
    """The container's entrypoint: loader, interpreter and runner by full path; needs nothing of the image."""
    raise NotImplementedError
