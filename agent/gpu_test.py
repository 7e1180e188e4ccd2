"""A short test of one device before it is handed over: torch's, or an administrator's own command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import Any, Final

TORCH: Final = "torch"
_NO_TORCH: Final = 77
_TAIL_BYTES: Final = 2000
_TORCH_TEST: Final = f"""
import sys
try:
    import torch
except ImportError:
    sys.exit({_NO_TORCH})
a = torch.rand(1024, 1024, dtype=torch.float64)
b = (a.cuda() @ a.cuda()).cpu()
error = float((b - a @ a).abs().max())
print(torch.cuda.get_device_name(0), "differs from the CPU by", error)
sys.exit(error > 1e-6)
"""


async def run(test: str, uuid: str, seconds: float) -> dict[str, Any]:
    """What came of it: {name, passed, seconds, output}, and `skipped` with the reason when it could not be run.

    The command finds the device in MOORAGE_GPU, and is shown no other.
    """
    words = [sys.executable, "-c", _TORCH_TEST] if test == TORCH else ["/bin/sh", "-c", test]
    begun = time.monotonic()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "CUDA_VISIBLE_DEVICES": uuid, "NVIDIA_VISIBLE_DEVICES": uuid, "MOORAGE_GPU": uuid},
        start_new_session=True,
    )
    said, late = b"", False
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        late = True
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    told: dict[str, Any] = {"name": test[:200], "seconds": round(time.monotonic() - begun, 3)}
    if test == TORCH and process.returncode == _NO_TORCH:
        return {**told, "passed": True, "skipped": "torch is not installed where the agent runs"}
    output = said[-_TAIL_BYTES:].decode(errors="replace").strip()
    if late:
        return {**told, "passed": False, "output": f"it did not end within {seconds:g} s"}
    return {**told, "passed": process.returncode == 0, "exit_code": process.returncode, "output": output}
