"""An SFTP server (version 3) on stdin and stdout: a process of the session's, with its user's rights and no others.

Started anew for every client. What it may not do the kernel refuses, so no path is hostile to anybody but its own user.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time
from collections.abc import Callable

MAX_PACKET = 1 << 18
MAX_READ = 1 << 17
MAX_HANDLES = 256
NAMES_AT_ONCE = 100
INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = range(3, 13)
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(13, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201
OK, EOF, NO_SUCH_FILE, DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
SIZE, OWNER, PERMISSIONS, TIMES, MORE = 1, 2, 4, 8, 0x80000000
F_READ, F_WRITE, F_APPEND, F_CREATE, F_TRUNCATE, F_EXCLUSIVE = 1, 2, 4, 8, 16, 32
EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fstatvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
    (b"expand-path@openssh.com", b"1"),
)
_CODES = {errno.ENOENT: NO_SUCH_FILE, errno.EACCES: DENIED, errno.EPERM: DENIED, errno.EROFS: DENIED}


class BadMessage(Exception):
    """The client does not keep to the format."""


class Status(Exception):
    """An answer other than what was asked for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Packet:
    """What a client says, taken piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise BadMessage
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        return self.take(self.u32())

    def path(self) -> bytes:
        path = self.string()
        if b"\0" in path:
            raise Status(FAILURE, "a path holds no NUL")
        return path or b"."

    def attributes(self) -> dict[str, int]:
        flags, found = self.u32(), {}
        if flags & SIZE:
            found["size"] = self.u64()
        if flags & OWNER:
            found["uid"], found["gid"] = self.u32(), self.u32()
        if flags & PERMISSIONS:
            found["mode"] = self.u32()
        if flags & TIMES:
            found["atime"], found["mtime"] = self.u32(), self.u32()
        if flags & MORE:
            for _ in range(min(self.u32(), 100)):
                self.string()
                self.string()
        return found


def string(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def packed(facts: os.stat_result) -> bytes:
    times = [max(0, min(int(moment), 0xFFFFFFFF)) for moment in (facts.st_atime, facts.st_mtime)]
    return struct.pack(
        "!IQIIIII",
        SIZE | OWNER | PERMISSIONS | TIMES,
        facts.st_size,
        facts.st_uid,
        facts.st_gid,
        facts.st_mode,
        *times,
    )


class Server:
    """One client's."""

    def __init__(self, receive: Callable[[int], bytes], send: Callable[[bytes], None]) -> None:
        self._receive = receive
        self._send = send
        self._handles: dict[bytes, File | Folder] = {}
        self._count = 0
        self._operations: dict[int, Callable[[Packet], tuple[int, bytes]]] = {
            OPEN: self._open,
            CLOSE: self._close,
            READ: self._read,
            WRITE: self._write,
            LSTAT: lambda packet: (ATTRS, packed(os.lstat(packet.path()))),
            STAT: lambda packet: (ATTRS, packed(os.stat(packet.path()))),
            FSTAT: lambda packet: (ATTRS, packed(os.fstat(self._file(packet).fd))),
            SETSTAT: lambda packet: self._change(packet.path(), packet.attributes()),
            FSETSTAT: lambda packet: self._change(self._file(packet).fd, packet.attributes()),
            OPENDIR: self._open_folder,
            READDIR: self._read_folder,
            REMOVE: lambda packet: self._done(os.unlink, packet.path()),
            RMDIR: lambda packet: self._done(os.rmdir, packet.path()),
            MKDIR: self._make_folder,
            REALPATH: lambda packet: self._named(os.path.realpath(packet.path())),
            RENAME: self._rename,
            READLINK: lambda packet: self._named(os.readlink(packet.path())),
            SYMLINK: self._symlink,
            EXTENDED: self._extended,
        }
        self._extensions: dict[bytes, Callable[[Packet], tuple[int, bytes]]] = {
            b"posix-rename@openssh.com": lambda packet: self._done(os.replace, packet.path(), packet.path()),
            b"hardlink@openssh.com": lambda packet: self._done(_link, packet.path(), packet.path()),
            b"fsync@openssh.com": lambda packet: self._done(os.fsync, self._file(packet).fd),
            b"statvfs@openssh.com": lambda packet: _space(os.statvfs(packet.path())),
            b"fstatvfs@openssh.com": lambda packet: _space(os.fstatvfs(self._file(packet).fd)),
            b"lsetstat@openssh.com": lambda packet: self._change(packet.path(), packet.attributes(), follow=False),
            b"limits@openssh.com": lambda packet: (
                EXTENDED_REPLY,
                struct.pack("!QQQQ", MAX_PACKET, MAX_READ, MAX_PACKET - 1024, MAX_HANDLES),
            ),
            b"expand-path@openssh.com": lambda packet: self._named(os.path.realpath(os.path.expanduser(packet.path()))),
        }

    def serve(self) -> None:
        """Until the client ends its direction."""
        try:
            while True:
                self._answer(self._packet())
        except (EOFError, BadMessage):
            return

    def _packet(self) -> bytes:
        length = int.from_bytes(self._receive(4), "big")
        if not 0 < length <= MAX_PACKET:
            raise BadMessage
        return self._receive(length)

    def _answer(self, data: bytes) -> None:
        kind, packet = data[0], Packet(data[1:])
        if kind == INIT:
            extensions = b"".join(string(name) + string(version) for name, version in EXTENSIONS)
            self._say(VERSION, struct.pack("!I", 3) + extensions)
            return
        number = packet.take(4)
        operation = self._operations.get(kind, self._unsupported)
        try:
            kind, body = operation(packet)
        except Status as status:
            kind, body = _status(status.code, str(status))
        except OSError as error:
            kind, body = _status(_CODES.get(error.errno or 0, FAILURE), error.strerror or "failed")
        except (ValueError, OverflowError):
            kind, body = _status(FAILURE, "out of range")
        self._say(kind, number + body)

    def _say(self, kind: int, body: bytes) -> None:
        self._send(struct.pack("!IB", len(body) + 1, kind) + body)

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _unsupported(self, packet: Packet) -> tuple[int, bytes]:
        raise Status(UNSUPPORTED, "not supported")

    def _done(self, operation: Callable[..., object] | None = None, *arguments: object) -> tuple[int, bytes]:
        if operation is not None:
            operation(*arguments)
        return _status(OK, "")

    def _named(self, path: bytes) -> tuple[int, bytes]:
        return NAME, struct.pack("!I", 1) + string(path) + string(path) + struct.pack("!I", 0)

    def _keep(self, thing: File | Folder) -> tuple[int, bytes]:
        if len(self._handles) >= MAX_HANDLES:
            thing.close()
            raise Status(FAILURE, "too many open files")
        self._count += 1
        name = self._count.to_bytes(4, "big")
        self._handles[name] = thing
        return HANDLE, string(name)

    def _file(self, packet: Packet) -> File:
        found = self._handles.get(packet.string())
        if not isinstance(found, File):
            raise Status(FAILURE, "no such handle")
        return found

    def _close(self, packet: Packet) -> tuple[int, bytes]:
        found = self._handles.pop(packet.string(), None)
        if found is None:
            raise Status(FAILURE, "no such handle")
        found.close()
        return self._done()

    # -- files -----------------------------------------------------------------------------------------------------------
    def _open(self, packet: Packet) -> tuple[int, bytes]:
        path, wanted, attributes = packet.path(), packet.u32(), packet.attributes()
        flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO without a reader holds nobody up
        if wanted & F_READ and wanted & F_WRITE:
            flags |= os.O_RDWR
        elif wanted & F_WRITE:
            flags |= os.O_WRONLY
        for bit, flag in (
            (F_APPEND, os.O_APPEND),
            (F_CREATE, os.O_CREAT),
            (F_TRUNCATE, os.O_TRUNC),
            (F_EXCLUSIVE, os.O_EXCL),
        ):
            if wanted & bit:
                flags |= flag
        fd = os.open(path, flags, attributes.get("mode", 0o666) & 0o777)
        return self._keep(File(fd))

    def _read(self, packet: Packet) -> tuple[int, bytes]:
        file, offset, count = self._file(packet), packet.u64(), packet.u32()
        data = file.read(offset, min(count, MAX_READ))
        if not data:
            raise Status(EOF, "end of file")
        return DATA, string(data)

    def _write(self, packet: Packet) -> tuple[int, bytes]:
        file, offset, view = self._file(packet), packet.u64(), memoryview(packet.string())
        while view:
            written = os.pwrite(file.fd, view, offset)
            view, offset = view[written:], offset + written
        return self._done()

    def _change(self, where: bytes | int, wanted: dict[str, int], *, follow: bool = True) -> tuple[int, bytes]:
        if "size" in wanted and follow:
            os.truncate(where, wanted["size"])
        # a link has no mode of its own
        if "mode" in wanted and (follow or not stat.S_ISLNK(os.stat(where, follow_symlinks=False).st_mode)):
            os.chmod(where, wanted["mode"] & 0o7777)
        if "mtime" in wanted:
            if isinstance(where, int):
                os.utime(where, (wanted["atime"], wanted["mtime"]))
            else:
                os.utime(where, (wanted["atime"], wanted["mtime"]), follow_symlinks=follow)
        if "uid" in wanted:
            if isinstance(where, int):
                os.chown(where, wanted["uid"], wanted["gid"])
            else:
                os.chown(where, wanted["uid"], wanted["gid"], follow_symlinks=follow)
        return self._done()

    # -- folders and names -------------------------------------------------------------------------------------------------
    def _open_folder(self, packet: Packet) -> tuple[int, bytes]:
        return self._keep(Folder(packet.path()))

    def _read_folder(self, packet: Packet) -> tuple[int, bytes]:
        found = self._handles.get(packet.string())
        if not isinstance(found, Folder):
            raise Status(FAILURE, "no such handle")
        items = found.some()
        if not items:
            raise Status(EOF, "no more names")
        return NAME, struct.pack("!I", len(items)) + b"".join(items)

    def _make_folder(self, packet: Packet) -> tuple[int, bytes]:
        os.mkdir(packet.path(), packet.attributes().get("mode", 0o777) & 0o777)
        return self._done()

    def _rename(self, packet: Packet) -> tuple[int, bytes]:
        """Version 3 does not overwrite."""
        old, new = packet.path(), packet.path()
        if os.path.lexists(new):
            raise Status(FAILURE, "there is a file of that name already")
        os.rename(old, new)
        return self._done()

    def _symlink(self, packet: Packet) -> tuple[int, bytes]:
        """OpenSSH's order, which all follow: what it points to, then the link."""
        target, link = packet.string(), packet.path()
        os.symlink(target, link)
        return self._done()

    def _extended(self, packet: Packet) -> tuple[int, bytes]:
        return self._extensions.get(packet.string(), self._unsupported)(packet)


class File:
    """An open file; FIFOs and devices are read and written where they are."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise Status(FAILURE, "is a folder")

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def close(self) -> None:
        os.close(self.fd)


class Folder:
    """An open folder; `.` and `..` come first."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._names = iter([b".", b"..", *os.listdir(path)])

    def some(self) -> list[bytes]:
        items: list[bytes] = []
        for name in self._names:
            try:
                facts = os.lstat(os.path.join(self._path, name))
            except OSError:
                continue  # gone meanwhile
            items.append(string(name) + string(_long(name, facts)) + packed(facts))
            if len(items) >= NAMES_AT_ONCE:
                break
        return items

    def close(self) -> None:
        self._names = iter(())


def _link(old: bytes, new: bytes) -> None:
    os.link(old, new, follow_symlinks=False)


def _long(name: bytes, facts: os.stat_result) -> bytes:
    """A line as `ls -l` has it, for clients that show it."""
    when = time.strftime("%b %d %H:%M %Y", time.localtime(max(0, facts.st_mtime)))
    head = f"{stat.filemode(facts.st_mode)} {facts.st_nlink:4d} {facts.st_uid:8d} {facts.st_gid:8d} {facts.st_size:12d} {when} "
    return head.encode() + name


def _space(facts: os.statvfs_result) -> tuple[int, bytes]:
    values = (
        facts.f_bsize, facts.f_frsize, facts.f_blocks, facts.f_bfree, facts.f_bavail, facts.f_files, facts.f_ffree,
        facts.f_favail, facts.f_fsid, facts.f_flag & 3, facts.f_namemax,
    )  # fmt: skip
    return EXTENDED_REPLY, struct.pack("!11Q", *(value & 0xFFFFFFFFFFFFFFFF for value in values))


def _status(code: int, message: str) -> tuple[int, bytes]:
    return STATUS, struct.pack("!I", code) + string(message.encode("utf-8", "replace")) + string(b"en")


def main() -> None:
    """On stdin and stdout."""
    source, target = sys.stdin.buffer, sys.stdout.buffer

    def receive(count: int) -> bytes:
        data = source.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def send(data: bytes) -> None:
        target.write(data)
        target.flush()

    Server(receive, send).serve()


if __name__ == "__main__":
    main()
