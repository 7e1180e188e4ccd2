"""Virtual environments of the real clients, each of its own, from pinned packages; made once and kept under `var/`."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "clients"
KEPT = ROOT / "var" / "clients"


def client_python(name: str) -> Path:
    """The interpreter of `requirements/clients/NAME.txt`. Several may ask at once."""
    wanted = REQUIREMENTS / f"{name}.txt"
    alone = REQUIREMENTS / "alone" / f"{name}.txt"  # without what they depend on
    text = wanted.read_bytes() + (alone.read_bytes() if alone.exists() else b"")
    place = KEPT / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            _uv("venv", "--quiet", "--python", sys.executable, str(place))
            options = ["--quiet", "--python", str(place / "bin" / "python"), "--require-hashes"]
            _uv("pip", "install", *options, "--requirement", str(wanted))
            if alone.exists():
                _uv("pip", "install", *options, "--no-deps", "--requirement", str(alone))
            (place / "ready").touch()
    return place / "bin" / "python"


def _uv(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *words], check=True)
