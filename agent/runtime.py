"""The interpreter that runs as PID 1 in every container: this process's own CPython, copied with its libraries and loader.

It is mounted read-only at /moorage/rt, so it runs in any image, also in an empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import runner

#: Where containers see the runtime.
RUNTIME_IN_CONTAINER = "/moorage/rt"
#: Where containers see the link directory.
LINK_IN_CONTAINER = "/moorage/link"

_STDLIB = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: Not needed to supervise a container, and large.
_LEFT_OUT = {
    "test", "tests", "tkinter", "idlelib", "turtledemo", "site-packages", "dist-packages", "lib2to3", "ensurepip",
    "pydoc_data", "distutils", "sqlite3", "curses", "dbm", "xmlrpc", "wsgiref", "venv", "msilib",
}  # fmt: skip
_NO_EXTENSION = re.compile(r"_test|^(_tkinter|_sqlite3|_curses|readline|_dbm|_gdbm|nis|_uuid|ossaudiodev|xx)")


def ensure_runtime(data_dir: Path) -> Path:
    """The directory to mount at /moorage/rt; built under `data_dir`/runtime when it is not there yet. Blocking: use a thread."""
    folder = data_dir / "runtime"
    python = _python()
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    target = folder / _fingerprint(python, stdlib)
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        _build(building, python, stdlib)
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def command(runtime: Path, rt_in_container: str = RUNTIME_IN_CONTAINER, link: str = LINK_IN_CONTAINER) -> list[str]:
    """The container's entrypoint: loader, interpreter and runner by full path; needs nothing of the image."""
    loader = (runtime / "loader").read_text().strip()
    rt = rt_in_container
    start = [f"{rt}/lib/{loader}", "--library-path", f"{rt}/lib"] if loader else []
    return [*start, f"{rt}/bin/python", "-I", "-S", "-B", f"{rt}/runner/__main__.py", link]


def _python() -> Path:
    """The real interpreter, also from inside a virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def _fingerprint(python: Path, stdlib: Path) -> str:
    """Of the runner's own text, and of names, sizes and times of the rest: reading all of that would take seconds."""
    digest = hashlib.sha256(f"2 {sys.version} {python} {python.stat().st_size} {python.stat().st_mtime_ns}".encode())
    for source in _runner_files():
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for name, path in _stdlib_files(stdlib):
        facts = path.stat()
        digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def _runner_files() -> list[Path]:
    return sorted(Path(runner.__file__).parent.glob("*.py"))


def _stdlib_files(stdlib: Path) -> Iterator[tuple[str, Path]]:
    for above, folders, names in os.walk(stdlib):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith(("config-", "__pycache__")))
        for name in sorted(names):
            if name.endswith(".so") and _NO_EXTENSION.search(name):
                continue
            if name.endswith((".py", ".so")):
                path = Path(above, name)
                yield str(path.relative_to(stdlib)), path


def _build(target: Path, python: Path, stdlib: Path) -> None:
    for folder in ("bin", f"lib/{_STDLIB}", "runner", "session"):
        (target / folder).mkdir(parents=True)
    _place(python, target / "bin/python")
    extensions = []
    for name, path in _stdlib_files(stdlib):
        copy = target / "lib" / _STDLIB / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        _place(path, copy)
        if name.endswith(".so"):
            extensions.append(path)
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.is_dir() and dynload.resolve().parent != stdlib:
        for path in sorted(dynload.glob("*.so")):
            if not _NO_EXTENSION.search(path.name):
                _place(path, target / "lib" / _STDLIB / "lib-dynload" / path.name)
                extensions.append(path)
    loader = ""
    for library in _libraries([python, *extensions]):
        _place(library, target / "lib" / library.name, follow=True)
        if re.match(r"ld(-linux|-musl|64|\.so)", library.name):
            loader = library.name
    (target / "loader").write_text(loader + "\n")
    for source in _runner_files():
        copy = target / "runner" / source.name
        shutil.copyfile(source, copy)
        py_compile.compile(str(copy), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    shutil.copyfile(target / "runner/moorage_session.py", target / "session/moorage_session.py")  # on user code's path
    _warm(target)


def _warm(target: Path) -> None:
    """Start it once: proof that it runs, and byte code for what it imports, which a read-only mount would never get."""
    loader, *rest = command(target, rt_in_container=str(target))
    start = [loader, *[part for part in rest if part not in ("-B", f"{target}/runner/__main__.py", LINK_IN_CONTAINER)]]
    modules = "runner.supervisor, tarfile, hashlib, encodings.idna, encodings.latin_1, subprocess"
    program = f"import sys; sys.path.insert(0, {str(target)!r}); import {modules}; import ctypes; ctypes.CDLL(None)"
    done = subprocess.run(
        [*start, "-c", program], env={}, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the copied interpreter does not run: {done.stderr.strip()[-500:]}")


def _libraries(binaries: list[Path]) -> list[Path]:
    """The shared libraries that these need, and the loader, as ldd tells."""
    ldd = subprocess.run(
        [shutil.which("ldd") or "/usr/bin/ldd", *map(str, binaries)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found: dict[str, Path] = {}
    for line in ldd.stdout.splitlines():
        match = re.match(r"\s+(?:\S+ => )?(/\S+) \(0x", line)
        if match:
            path = Path(match.group(1))
            found.setdefault(path.name, path)
    return list(found.values())


def _place(source: Path, copy: Path, *, follow: bool = False) -> None:
    """A hard link where that is possible (the mount is read-only), else a copy; readable for everybody."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if follow or source.is_symlink():
        source = source.resolve()
    if source.stat().st_mode & 0o444 == 0o444:
        with contextlib.suppress(OSError):
            os.link(source, copy)
            return
    shutil.copyfile(source, copy)
    shutil.copystat(source, copy)
    copy.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
