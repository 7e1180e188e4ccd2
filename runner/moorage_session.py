"""What a session's programs know of it: `from moorage_session import state, context, logger`.

`state` is one store for the whole session: small JSON values by name, seen by all of its processes and from outside
(`s.state["best"]` in the SDK), kept when the worker or the runner dies. `context` says what the session is. Runs on the
image's Python (3.8 or later); PID 1 keeps the same store for those who ask from outside.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import json
import math
import os
import stat
import time
from collections.abc import Iterator, Mapping, MutableMapping

TYPE_CHECKING = False  # `typing` is not loaded for annotations only
if TYPE_CHECKING:
    from typing import Any

LINK = os.environ.get("MOORAGE_LINK", "/moorage/link")
MAX_KEY_LENGTH = 128
MAX_KEYS = 1000
MAX_VALUE_BYTES = 64 << 10
MAX_STATE_BYTES = 1 << 20
MAX_DEPTH = 64
PATIENCE_SECONDS = 10.0
_RETRY_SECONDS = 0.002


class StateFull(ValueError):
    """The value, or all values together, would be larger than the store takes."""


class StateBusy(TimeoutError):
    """Another process holds the store's lock and does not let go."""


class StateDamaged(ValueError):
    """The store's file is not what this module has written."""


class State(MutableMapping):  # type: ignore[type-arg]  # subscripts came with Python 3.9
    """Names and JSON values. Each operation is whole and lasting by itself, whatever other threads and processes do; the last
    one to write a name wins. What is read is a copy.

    `get`, `set`, `delete`, `exists`, or as a dictionary.
    """

    def __init__(self, folder: str = LINK, patience: float = PATIENCE_SECONDS) -> None:
        self._folder = folder
        self._patience = patience
        self._seen: tuple[int, int, int] | None = None
        self._texts: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        text = self._read().get(_checked_key(key))
        return default if text is None else json.loads(text)

    def set(self, key: str, value: Any) -> None:
        """Raises TypeError for what is not JSON, StateFull for what is too large."""
        text = encoded(value)
        with self._writing() as texts:
            texts[_checked_key(key)] = text

    def delete(self, key: str) -> bool:
        """Whether there was such a name."""
        with self._writing() as texts:
            return texts.pop(_checked_key(key), None) is not None

    def exists(self, key: str) -> bool:
        return _checked_key(key) in self._read()

    def sizes(self) -> dict[str, int]:
        """Bytes of each value as JSON, by name."""
        return {key: len(text.encode()) for key, text in sorted(self._read().items())}

    def snapshot(self) -> dict[str, Any]:
        """Everything, as of one moment."""
        return {key: json.loads(text) for key, text in self._read().items()}

    # -- as a dictionary -------------------------------------------------------------------------------------------------
    def __getitem__(self, key: str) -> Any:
        return json.loads(self._read()[_checked_key(key)])

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._read()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._read()))

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"State({self.snapshot()!r})"

    # -- on disk: one small file, replaced as a whole ----------------------------------------------------------------------
    def _read(self) -> dict[str, str]:
        """Name to JSON text. Not to be changed: it is kept for as long as the file is the same."""
        try:
            # it is the user's folder: nothing in it is trusted to be a file
            fd = os.open(self._path("state.json"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateDamaged(f"The state cannot be read: {error.strerror}.") from None
        try:
            facts = os.fstat(fd)
            seen = facts.st_ino, facts.st_mtime_ns, facts.st_size
            if seen != self._seen:
                if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_STATE_BYTES:
                    raise StateDamaged("The state is not a file of this module's.")
                self._texts, self._seen = _parsed(os.read(fd, facts.st_size)), seen
        finally:
            os.close(fd)
        return self._texts

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[str, str]]:
        lock = os.open(
            self._path("state.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
        try:
            self._lock(lock)
            before = self._read()
            texts = dict(before)
            yield texts
            if texts != before:
                self._write(texts)
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> None:
        until = time.monotonic() + self._patience
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() > until:
                raise StateBusy("Another process holds the state's lock.")
            time.sleep(_RETRY_SECONDS)

    def _write(self, texts: dict[str, str]) -> None:
        body = "{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in texts.items()) + "}"
        raw = body.encode()
        if len(texts) > MAX_KEYS:
            raise StateFull(f"A session has at most {MAX_KEYS} names in its state.")
        if len(raw) > MAX_STATE_BYTES:
            raise StateFull(f"All values of a session take at most {MAX_STATE_BYTES >> 20} MiB together.")
        new = self._path(".state.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(raw)  # not synced: it outlives processes, and a host that dies ends the session
        os.rename(new, self._path("state.json"))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def encoded(value: Any) -> str:
    """As JSON that every reader understands. Raises TypeError, StateFull."""
    _check(value, MAX_DEPTH)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(text.encode()) > MAX_VALUE_BYTES:
        raise StateFull(f"A value takes at most {MAX_VALUE_BYTES >> 10} KiB as JSON.")
    return text


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise TypeError(f"The value is nested more than {MAX_DEPTH} levels deep.")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise TypeError("Integers of more than 64 bits are not JSON that everybody reads; use a text.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} is not JSON.")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"Names in JSON objects are texts, not {type(key).__name__}.")
            _check_text(key)
            _check(item, depth - 1)
    else:
        raise TypeError(f"A {type(value).__name__} is not JSON; use numbers, texts, lists and dictionaries of such.")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise TypeError("Texts must not contain NUL characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TypeError("Texts must not contain lone surrogates.") from None


def _checked_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"A name is a text, not {type(key).__name__}.")
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise StateFull(f"A name has 1 to {MAX_KEY_LENGTH} characters.")
    _check_text(key)
    return key


def _parsed(raw: bytes) -> dict[str, str]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise StateDamaged("The state's file is not JSON any more.") from None
    if not isinstance(found, dict):
        raise StateDamaged("The state's file does not hold names and values.")
    return {key: json.dumps(value, ensure_ascii=False, separators=(",", ":")) for key, value in found.items()}


class Context(Mapping):  # type: ignore[type-arg]
    """Read-only facts: session_id, session_name, kernel_id, role, index, attempt, image, slots. What is read is a copy."""

    def __init__(self, folder: str = LINK) -> None:
        self._folder = folder
        self._facts: dict[str, Any] | None = None

    def _read(self) -> dict[str, Any]:
        if self._facts is None:
            with open(os.path.join(self._folder, "config.json"), encoding="utf-8") as config:
                self._facts = json.load(config).get("context") or {}
        return self._facts

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._read()[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Context({self._read()!r})"


state = State()
context = Context()
_server: Any = None  #: of the worker while it serves an app


def progress(current: float | None = None, total: float | None = None, message: str = "", **more: Any) -> None:
    """How far the present call of an app has come: whoever waits for it is told. Elsewhere it does nothing.

    What is said in quick succession is told a few times a second, the last word always.
    """
    if _server is not None:
        said = {"current": current, "total": total, "message": message or None, **more}
        _server.progress({key: value for key, value in said.items() if value is not None})


def end() -> None:
    """The app ends its session: the calls that run are answered first, others never begin. Elsewhere it does nothing."""
    if _server is not None:
        _server.end()


def __getattr__(name: str) -> Any:
    """`logger`, made when it is first asked for. It writes to stderr: what it says is kept with the run's output."""
    if name != "logger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import logging

    logger = logging.getLogger("session")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    globals()["logger"] = logger
    return logger
