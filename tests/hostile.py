"""Archives that nobody should send: every class that reaches for something outside, or for too much of it."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

BIG = 80 << 20  #: of zeros: a bomb by its ratio


def entry(
    name: bytes = b"a",
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    link: bytes = b"",
    mode: int = 0o644,
    size: bytes | None = None,
    checksum: int | None = None,
) -> bytes:
    """One entry of a tar, field by field, so that each can be wrong."""
    head = bytearray(512)
    head[: min(len(name), 100)] = name[:100]
    head[100:108] = b"%07o\0" % mode
    head[108:124] = b"0001750\0" * 2
    head[124:136] = size if size is not None else b"%011o\0" % len(data)
    head[136:148] = b"%011o\0" % 1_700_000_000
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[157 : 157 + min(len(link), 100)] = link[:100]
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % (sum(head) if checksum is None else checksum)
    return bytes(head) + data + b"\0" * (-len(data) % 512)


def pax(**records: bytes) -> bytes:
    found = b""
    for key, value in records.items():
        body = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        found += str(length).encode() + body
    return entry(b"x", found, kind=b"x")


def long_name(name: bytes) -> bytes:
    return entry(b"././@LongLink", name + b"\0", kind=b"L")


END = b"\0" * 1024


def tars() -> Iterator[tuple[str, bytes]]:
    ok = entry(b"ok", b"fine")  # every one of them begins innocently
    made: dict[str, bytes] = {
        "dot dot": entry(b"../evil", b"x"),
        "dot dot inside": entry(b"a/../../evil", b"x"),
        "dot dot deep": entry(b"a/b/../../../evil", b"x"),
        "absolute": entry(b"/etc/evil", b"x"),
        "absolute with two slashes": entry(b"//etc/evil", b"x"),
        "absolute into the home": entry(b"/home/work/evil", b"x"),
        "through a link out": entry(b"l", kind=b"2", link=b"/etc") + entry(b"l/evil", b"x"),
        "through a link up": entry(b"l", kind=b"2", link=b"..") + entry(b"l/evil", b"x"),
        "link to the host": entry(b"l", kind=b"2", link=b"/etc/passwd"),
        "link above": entry(b"d/l", kind=b"2", link=b"../../x"),
        "link through a link": entry(b"d/b/s", kind=b"2", link=b"../..") + entry(b"l", kind=b"2", link=b"d/b/s/../x"),
        "link to nowhere": entry(b"l", kind=b"2"),
        "link with bytes": entry(b"l", kind=b"2", link=b"ok", size=b"00000000012\0"),
        "hard link out": entry(b"h", kind=b"1", link=b"/etc/passwd"),
        "hard link above": entry(b"h", kind=b"1", link=b"../x"),
        "hard link to nothing": entry(b"h", kind=b"1", link=b"nothing"),
        "hard link to a link": entry(b"l", kind=b"2", link=b"ok") + entry(b"h", kind=b"1", link=b"l"),
        "hard link through a link": entry(b"l", kind=b"2", link=b".") + entry(b"h", kind=b"1", link=b"l/ok"),
        "a character device": entry(b"null", kind=b"3"),
        "a block device": entry(b"sda", kind=b"4"),
        "a pipe": entry(b"fifo", kind=b"6"),
        "a sparse file": entry(b"holes", kind=b"S"),
        "a sparse file of pax": pax(GNU__sparse__major=b"1", GNU__sparse__minor=b"0") + entry(b"holes", b"x"),
        "set-user-id": entry(b"su", b"x", mode=0o4755),
        "set-group-id": entry(b"sg", b"x", mode=0o2755),
        "a name twice": entry(b"ok", b"again"),
        "a name twice in other words": entry(b"./d//ok") + entry(b"d/./ok"),
        "a file and a folder": entry(b"ok/", kind=b"5"),
        "a folder and a file": entry(b"d/", kind=b"5") + entry(b"d", b"x"),
        "a folder below a file": entry(b"ok/below", b"x"),
        "a folder twice": entry(b"d/", kind=b"5") + entry(b"d/", kind=b"5"),
        "a newline in a name": entry(b"a\nb", b"x"),
        "an escape in a name": entry(b"a\x1b[2Jb", b"x"),
        "a name that is not UTF-8": entry(b"\xff\xfe", b"x"),
        "NUL in a name of pax": pax(path=b"a\0b") + entry(b"x", b"x"),
        "a component of 256 bytes": long_name(b"n" * 256) + entry(b"x", b"x"),
        "a path of 5,000 bytes": long_name(b"/".join([b"n" * 99] * 50)) + entry(b"x", b"x"),
        "a folder 200 deep": long_name(b"d/" * 200 + b"x") + entry(b"x", b"x"),
        "a name of Moorage's own": entry(b".moorage-part-0000/x", b"x"),
        "an extended header of a gigabyte": entry(b"x", kind=b"x", size=b"%011o\0" % (1 << 30)),
        "a long name of a gigabyte": entry(b"x", kind=b"L", size=b"%011o\0" % (1 << 30)),
        "a broken extended header": entry(b"x", b"999 path=a\n", kind=b"x") + entry(b"x", b"x"),
        "a size that is none": pax(size=b"99999999999999999999") + entry(b"x", b"x"),
        "a negative size": entry(b"x", size=b"\xff" * 12),
        "a size of an exabyte": entry(b"x", size=b"\x80" + b"\0" * 3 + b"\x10" + b"\0" * 7),
        "a size of a terabyte": entry(b"x", size=b"\x80" + b"\0" * 5 + b"\x01" + b"\0" * 5),
        "a broken checksum": entry(b"x", b"x", checksum=1),
        "a kind that is not known": entry(b"x", kind=b"Z"),
        "a label of a volume": entry(b"x", kind=b"V"),
        "the rest of another archive": entry(b"x", b"x", kind=b"M"),
        "a folder with bytes": entry(b"d/", b"x", kind=b"5"),
    }
    for name, tar in made.items():
        yield name, ok + tar + END
    yield "broken off in a file", ok + entry(b"x", b"y" * 5000)[:2000]
    yield "broken off in a header", ok + entry(b"x")[:100] + b"x" * 10
    yield "a bomb", gzip.compress(ok + entry(b"zeros", bytes(BIG)) + END, 1)
    yield "broken off in the compression", gzip.compress(ok + END)[:-20]
    yield "broken compression", b"\x1f\x8b\x08" + b"garbage" * 200


def zips() -> Iterator[tuple[str, bytes]]:
    def of(*names: str, change: Callable[[zipfile.ZipInfo], object] = lambda _: None, data: bytes = b"x") -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ok", b"fine")
            for name in names:
                info = zipfile.ZipInfo("placeholder")
                info.filename = name  # not cleaned
                info.compress_type = zipfile.ZIP_DEFLATED
                change(info)
                archive.writestr(info, data)
        return made.getvalue()

    def mode(bits: int) -> Callable[[zipfile.ZipInfo], object]:
        def change(info: zipfile.ZipInfo) -> None:
            info.create_system, info.external_attr = 3, bits << 16

        return change

    yield "zip: dot dot", of("../evil")
    yield "zip: absolute", of("/etc/evil")
    yield "zip: backslashes", of("..\\..\\evil")
    yield "zip: a drive", of("C:\\evil")
    yield "zip: NUL in a name", of("aXb").replace(b"aXb", b"a\0b")
    yield "zip: a link out", of("l", change=mode(stat.S_IFLNK | 0o777), data=b"/etc/passwd")
    yield "zip: a device", of("d", change=mode(stat.S_IFCHR | 0o666))
    yield "zip: set-user-id", of("su", change=mode(stat.S_IFREG | 0o4755))
    yield "zip: a name that is not UTF-8", of("aXb").replace(b"aXb", b"a\xffb")
    yield "zip: a bomb", of("zeros", data=bytes(BIG))
    good = of("b")
    end = good.rfind(b"PK\x05\x06")
    yield "zip: encrypted", good.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")
    big = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, 10**8, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    yield "zip: a million files", good[:end] + big + locator + good[end : end + 8] + b"\xff" * 12 + b"\0\0"
    yield "zip: a list of contents of 4 GB", good[: end + 12] + struct.pack("<I", 2**32 - 2) + good[end + 16 :]
    yield "zip: broken off", good[:-30]
    yield "zip: a wrong sum", good.replace(struct.pack("<I", zlib.crc32(b"x")), struct.pack("<I", 1))
    yield "zip: one file many times", _overlapping()


def _overlapping() -> bytes:
    """A hundred names for one compressed megabyte of noise."""
    import random

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a00", random.Random(1).randbytes(1 << 20))
        (first,) = archive.filelist
        for number in range(1, 100):
            twin = zipfile.ZipInfo(f"a{number:02}")
            for field in ("CRC", "compress_size", "file_size", "header_offset", "compress_type", "external_attr"):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)
    return made.getvalue()


def hostile() -> dict[str, bytes]:
    found = dict(tars()) | dict(zips())
    found["no archive"] = b"just a text\n" * 100
    found["nothing"] = b""
    return found


#: Where no file and no archive may go.
PATHS = (
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "/home/evil",
    "//../../etc/evil",
    "keep/../../../etc/evil",
    "out/evil",  # a link that leads to /etc
    "keep/file/evil",  # a file, not a folder
    "n" * 256 + "/evil",
    "/".join(["n" * 100] * 50),
    "a\0b",
)


def harmless() -> bytes:
    """A small archive that may be unpacked anywhere."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name in ("evil", "b/c"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    return made.getvalue()
