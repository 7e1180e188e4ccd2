"""Archives as they come from anybody: read entry by entry, never trusted, never more than a piece of them in memory.

What is odd is refused, not repaired: names that lead out, links that do, devices, holes, set-user-id bits, bombs.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from runner.files import PART_PREFIX, Refused

BLOCK = 512
PIECE = 1 << 20
_MOST_PAX_BYTES = 256 << 10
_MOST_LONG_NAME_BYTES = 8 << 10
_MOST_ZIP_DIRECTORY_BYTES = 64 << 20
_XZ_MEMORY_BYTES = 160 << 20


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, beside the quota of the place."""

    total_bytes: int = 64 << 30
    entries: int = 200_000
    names_bytes: int = 32 << 20  #: of all names together
    depth: int = 100
    ratio: int = 200  #: of what comes out to what went in,
    ratio_from_bytes: int = 64 << 20  #: once this much has come out


@dataclass
class Entry:
    """One thing in an archive; the parts of its name are checked."""

    parts: list[str]
    kind: str  #: file, folder, link, hard
    size: int = 0
    mode: int = 0o644
    mtime: float = 0.0
    target: str = ""  #: of a link
    body: Callable[[], Iterator[bytes]] | None = None  #: of a file, to be read before the next entry


def refuse(message: str) -> Refused:
    return Refused("archive_refused", f"{message} Nothing of the archive was kept.")


def name_parts(raw: bytes, limits: Limits) -> list[str]:
    """The components of a name; [] for the top itself."""
    try:
        name = raw.decode("utf-8")
        if name.isascii() and name.isprintable() and ".." not in name and len(name) <= 200 and "\\" not in name:
            parts = [part for part in name.split("/") if part and part != "."]  # what nearly all names are
            if name[0] != "/" and name[1:3] != ":/" and PART_PREFIX not in name and len(parts) <= limits.depth:
                return parts
    except UnicodeDecodeError:
        pass
    except IndexError:
        return []
    return _checked_parts(raw, limits)


def _checked_parts(raw: bytes, limits: Limits) -> list[str]:
    shown = repr(raw[:120].decode("utf-8", "replace"))
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise refuse(f"The name {shown} is not UTF-8.") from None
    if name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
        raise refuse(f"The name {shown} is absolute.")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise refuse(f"The name {shown} has control characters in it.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(part == ".." or ".." in part.split("\\") for part in parts):
        raise refuse(f"The name {shown} leads out of the archive by '..'.")
    if len(raw) > 4096 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise refuse(f"The name {shown} is too long for a file.")
    if len(parts) > limits.depth:
        raise refuse(f"The name {shown} is more than {limits.depth} folders deep.")
    if any(part.startswith(PART_PREFIX) for part in parts):
        raise refuse(f"The name {shown} is one of Moorage's own.")
    return parts


# -- the stream ----------------------------------------------------------------------------------------------------------
class Stream:
    """Bytes as they come, of which exactly so many can be read; decompressed when they are."""

    def __init__(self, pieces: Iterator[memoryview], limits: Limits) -> None:
        self._pieces = pieces
        self._limits = limits
        self._raw = b""
        self._ready = bytearray()
        self._unpack: Any = None
        self._fresh: Callable[[], Any] | None = None
        self.taken = 0  #: as they came
        self.given = 0  #: as they were unpacked
        self._ended = False

    def peek(self, count: int) -> bytes:
        """Before anything is read."""
        while len(self._raw) < count and (piece := self._next()):
            self._raw += piece
        return self._raw[:count]

    def decompress(self, fresh: Callable[[], Any]) -> None:
        self._fresh, self._unpack = fresh, fresh()

    def raw(self) -> Iterator[bytes]:
        """All of it, as it came."""
        if self._raw:
            yield self._raw
        while piece := self._next():
            yield piece

    def read(self, count: int, *, at_end: bool = False) -> bytes:
        """Exactly `count` bytes; fewer only with `at_end`, when there are no more."""
        while len(self._ready) < count and self._more():
            pass
        if len(self._ready) < count and not at_end:
            raise refuse("The archive breaks off in the middle.")
        data = bytes(self._ready[:count])
        del self._ready[:count]
        return data

    def body(self, size: int) -> Iterator[bytes]:
        """A file's bytes, and the padding behind them."""
        left = size
        while left:
            piece = self.read(min(left, PIECE))
            left -= len(piece)
            yield piece
        self.read(-size % BLOCK)

    def drain(self) -> None:
        """What comes behind the end says nothing, but has to be taken from the sender."""
        self._ready.clear()
        while self._next():
            pass

    def _next(self) -> bytes:
        for piece in self._pieces:
            self.taken += len(piece)
            return bytes(piece)
        return b""

    def _more(self) -> bool:
        if self._ended:
            return False
        if self._unpack is None:
            data, self._raw = self._raw or self._next(), b""
            self._ended = not data
        else:
            data = self._inflated()
        self._ready += data
        self.given += len(data)
        check_ratio(self.given, self.taken, self._limits)
        return not self._ended

    def _inflated(self) -> bytes:
        """The next piece that the compressed stream gives, empty when it wants more first."""
        try:
            if self._unpack.eof:
                rest = self._unpack.unused_data or self._raw or self._next()
                if not rest.strip(b"\0"):  # padding behind the last member
                    self._ended = True
                    return b""
                assert self._fresh is not None
                self._unpack, self._raw = self._fresh(), rest
            tail = getattr(self._unpack, "unconsumed_tail", b"")
            data = b""
            if tail:
                data = tail
            elif getattr(self._unpack, "needs_input", True):
                data, self._raw = self._raw or self._next(), b""
                if not data:
                    raise refuse("The archive breaks off in the middle.")
            unpacked: bytes = self._unpack.decompress(data, PIECE)
            return unpacked
        except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise refuse(f"The archive's compression is broken ({error}).") from None


def check_ratio(given: int, taken: int, limits: Limits) -> None:
    if given > limits.ratio_from_bytes and given > limits.ratio * taken:
        raise refuse(f"It unpacks to more than {limits.ratio} times its size, which only a bomb does.")


def opened(stream: Stream) -> str:
    """tar or zip, by its first bytes; the stream decompresses from now on."""
    head = stream.peek(BLOCK)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        stream.decompress(lambda: zlib.decompressobj(31))
    elif head[:3] == b"BZh":
        stream.decompress(bz2.BZ2Decompressor)
    elif head[:6] == b"\xfd7zXZ\0":
        stream.decompress(lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES))
    elif len(head) < BLOCK or (head.strip(b"\0") and not _is_header(head)):
        raise refuse("This is no archive that can be unpacked; send tar, tar.gz, tar.bz2, tar.xz or zip.")
    return "tar"


# -- tar -----------------------------------------------------------------------------------------------------------------
_REFUSED_TYPES = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


def tar_entries(stream: Stream, limits: Limits) -> Iterator[Entry]:
    """GNU and PAX; every field is checked, and nothing of the extended headers counts but names, sizes and times."""
    more: dict[str, bytes] = {}
    headers = 0
    while True:
        block = stream.read(BLOCK, at_end=True)
        if not block.strip(b"\0"):
            if more:
                raise refuse("The archive ends in the middle of a name.")
            stream.drain()
            return
        if len(block) < BLOCK or not _is_header(block):
            raise refuse("A header of the archive is broken.")
        headers += 1
        if headers > 3 * limits.entries:
            raise refuse(f"It holds more than {limits.entries} files.")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            extended = _extended(stream, kind, size)
            more |= {} if kind == b"g" else extended
            continue
        yield _tar_entry(stream, block, kind, size, more, limits)
        more = {}


def _tar_entry(stream: Stream, block: bytes, kind: bytes, size: int, more: dict[str, bytes], limits: Limits) -> Entry:
    name = more.get("path") or _tar_name(block)
    shown = repr(name[:120].decode("utf-8", "replace"))
    if any(key.startswith("GNU.sparse") for key in more):
        raise refuse(f"{shown} is a sparse file.")
    if kind not in b"\x00012567" or kind in _REFUSED_TYPES:
        raise refuse(f"{shown} is {_REFUSED_TYPES.get(kind, 'of a kind that is not known')}.")
    if "size" in more:
        size = _decimal(more["size"])
    mode = _number(block[100:108])
    mtime = float(_number(block[136:148]))
    entry = Entry(parts=name_parts(name, limits), kind="file", size=size, mode=mode & 0o7777, mtime=mtime)
    if kind == b"5" or (kind in (b"\0", b"0") and name.endswith(b"/")):
        if size:
            raise refuse(f"The folder {shown} has bytes of its own.")
        entry.kind = "folder"
    elif kind in (b"1", b"2"):
        entry.kind = "hard" if kind == b"1" else "link"
        entry.size = 0
        entry.target = _link_text(more.get("linkpath") or block[157:257].split(b"\0")[0], shown)
        if size:
            raise refuse(f"The link {shown} has bytes of its own.")
    else:
        entry.body = lambda: stream.body(size)
    return entry


def _is_header(block: bytes) -> bool:
    """By its checksum, in either of the two ways in which it was ever computed."""
    try:
        stated = int(block[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:BLOCK]
    return stated == sum(rest) or stated == sum(struct.unpack("512b", rest))


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's way with large numbers
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] == 0xFF or value >= 2**60:
            raise refuse("A number in a header makes no sense.")
        return value
    text = field.strip(b"\0 ")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise refuse("A number in a header is broken.")
    return int(text, 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise refuse("A size in an extended header makes no sense.")
    return int(text)


def _tar_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(stream: Stream, kind: bytes, size: int) -> dict[str, bytes]:
    most = _MOST_LONG_NAME_BYTES if kind in b"LK" else _MOST_PAX_BYTES
    if size > most:
        raise refuse(f"An extended header has {size} bytes; names are not that long.")
    data = b"".join(stream.body(size))
    if kind in b"LK":
        return {"path" if kind == b"L" else "linkpath": data.rstrip(b"\0")}
    found: dict[str, bytes] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length[:9]) <= len(data) or data[int(length) - 1] != 10:
            raise refuse("An extended header is broken.")
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, equals, value = record.partition(b"=")
        if not equals or b"\0" in value:
            raise refuse("An extended header is broken.")
        found[key.decode("ascii", "replace")] = value
    return found


def _link_text(raw: bytes, shown: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise refuse(f"The link {shown} leads to a name that is not UTF-8.") from None
    if not text or len(raw) > 4095 or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise refuse(f"The link {shown} leads nowhere.")
    return text


# -- zip -----------------------------------------------------------------------------------------------------------------
def zip_entries(file: IO[bytes], size: int, limits: Limits) -> Iterator[Entry]:
    """Of a whole archive in a file: its list of contents is at the end."""
    import zipfile

    _check_zip_directory(file, size, limits)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise refuse(f"The zip archive is broken ({error}).") from None
    infos = archive.infolist()
    if len(infos) > limits.entries:
        raise refuse(f"It holds more than {limits.entries} files.")
    if sum(info.compress_size for info in infos) > size:
        raise refuse("Its files lie over each other, as only a bomb's do.")
    check_ratio(sum(info.file_size for info in infos), size, limits)
    for info in infos:
        yield _zip_entry(archive, info, limits)


def _zip_entry(archive: Any, info: Any, limits: Limits) -> Entry:
    import zipfile

    shown = repr(info.orig_filename[:120])
    if info.flag_bits & 0x1:
        raise refuse(f"{shown} is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        raise refuse(f"{shown} is compressed in a way that is not unpacked here.")
    name = _zip_name(info, shown)
    mode, folder = info.external_attr >> 16, info.orig_filename.endswith("/")
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) or (kind == stat.S_IFDIR) > folder:
        raise refuse(f"{shown} is a device, pipe or socket.")
    try:
        mtime = time.mktime((*info.date_time, 0, 0, -1))
    except (OverflowError, ValueError):
        mtime = 0.0
    entry = Entry(
        parts=name_parts(name, limits), kind="folder" if folder else "file", size=info.file_size, mtime=mtime,
        mode=stat.S_IMODE(mode) or (0o755 if folder else 0o644),
    )  # fmt: skip

    def body() -> Iterator[bytes]:
        try:
            with archive.open(info) as reader:
                while piece := reader.read(PIECE):
                    yield piece
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            raise refuse(f"{shown} is broken ({error}).") from None

    if kind == stat.S_IFLNK and not folder:
        if info.file_size > 4096:
            raise refuse(f"The link {shown} leads nowhere.")
        entry.kind, entry.target, entry.size = "link", _link_text(b"".join(body()), shown), 0
    elif not folder:
        entry.body = body
    elif info.file_size:
        raise refuse(f"The folder {shown} has bytes of its own.")
    return entry


def _zip_name(info: Any, shown: str) -> bytes:
    if "\0" in info.orig_filename:
        raise refuse(f"The name {shown} has control characters in it.")
    if info.flag_bits & 0x800:
        name: str = info.orig_filename
        return name.encode("utf-8", "surrogatepass")
    raw: bytes = info.orig_filename.encode("cp437")  # as it was: many archivers write UTF-8 without saying so
    return raw


def _check_zip_directory(file: IO[bytes], size: int, limits: Limits) -> None:
    """Before anybody reads it into memory."""
    file.seek(max(0, size - 65_557))
    tail = file.read(65_557)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise refuse("The zip archive is broken: it has no list of contents.")
    entries, length = struct.unpack_from("<HI", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        (where,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(min(where, size))
        record = file.read(56)
        if len(record) == 56 and record[:4] == b"PK\x06\x06":
            entries, length = struct.unpack_from("<QQ", record, 32)
    if entries > limits.entries:
        raise refuse(f"It holds more than {limits.entries} files.")
    if length > min(size, _MOST_ZIP_DIRECTORY_BYTES):
        raise refuse("The zip archive's list of contents is too long.")
