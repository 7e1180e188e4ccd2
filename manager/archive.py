"""The file that a backup is: what is in it, how it is written, and how it is looked at before anything of it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DUMP: Final = "database.dump"
FILES: Final = "files/"
#: Everything else in an archive is refused.
_NAMES: Final = re.compile(
    r"manifest\.json|database\.dump|files/(manager\.toml|admin\.json|(agent/)?pki/[a-z0-9_.-]{1,64}|agent/agent\.toml)"
)
_MOST_MANIFEST_BYTES: Final = 1 << 20
_MOST_FILE_BYTES: Final = 1 << 20
_PIECE: Final = 1 << 20


class ArchiveRefused(Exception):
    """This is no backup that can be restored; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive says of itself."""

    format: int = FORMAT
    version: str  #: of Moorage
    schema: str
    made_at: str  #: ISO 8601, by the database's clock
    postgres: int  #: major version of the server
    embedded: bool
    epoch: int
    live_sessions: int
    running_executions: int
    keys: bool  #: secrets and certificates are in it
    files: Mapping[str, Mapping[str, Any]]  #: name: {bytes, sha256}

    @classmethod
    def read(cls, data: bytes) -> Manifest:
        """Raises ArchiveRefused."""
        try:
            said = json.loads(data)
            if said["format"] > FORMAT:
                raise ArchiveRefused(
                    f"The backup has format {said['format']}, and this version of Moorage reads up to {FORMAT}: "
                    f"restore it with version {said.get('version', 'unknown')} or a later one."
                )
            known = {name: said[name] for name in cls.__dataclass_fields__}
            if not all(
                isinstance(one["bytes"], int) and isinstance(one["sha256"], str) for one in said["files"].values()
            ):
                raise ValueError("files")
            return cls(**known)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArchiveRefused(f"The backup's manifest cannot be read: {error!r}.") from None


def write(target: Path, manifest: Mapping[str, Any], members: Mapping[str, Path]) -> Manifest:
    """A new file, readable by its owner only, complete and on disk or not there. Raises FileExistsError."""
    sums: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "sha256": _sum(path)} for name, path in members.items()
    }
    said = Manifest(**manifest, files=sums)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                text = json.dumps(asdict(said), indent=1).encode()
                tar.addfile(_entry(MANIFEST, len(text)), io.BytesIO(text))
                for name, path in members.items():
                    with path.open("rb") as member:
                        tar.addfile(_entry(name, sums[name]["bytes"]), member)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, target)  # never over what is there
    finally:
        partial.unlink(missing_ok=True)
    return said


def unpack(archive: Path, into: Path) -> Manifest:
    """Everything into a new folder of ours, checked against the manifest. Raises ArchiveRefused; nothing else is touched."""
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return _unpack(tar, into)
    except FileNotFoundError:
        raise ArchiveRefused(f"There is no file {archive}.") from None
    except (OSError, EOFError) as error:
        raise ArchiveRefused(f"{archive} cannot be read: {error}.") from None
    except tarfile.TarError:
        raise ArchiveRefused(f"{archive} is not a backup of Moorage, or it is cut short.") from None


def _unpack(tar: tarfile.TarFile, into: Path) -> Manifest:
    manifest: Manifest | None = None
    seen: set[str] = set()
    for entry in tar:
        if not _NAMES.fullmatch(entry.name) or not entry.isreg() or entry.name in seen:
            raise ArchiveRefused(f"The backup holds something that does not belong there: {entry.name[:80]!r}.")
        seen.add(entry.name)
        content = tar.extractfile(entry)
        assert content is not None
        if manifest is None:
            if entry.name != MANIFEST or entry.size > _MOST_MANIFEST_BYTES:
                raise ArchiveRefused("The backup does not begin with its manifest.")
            manifest = Manifest.read(content.read())
            continue
        said = manifest.files.get(entry.name)
        if said is None or entry.size != said["bytes"] or (entry.name != DUMP and entry.size > _MOST_FILE_BYTES):
            raise ArchiveRefused(f"{entry.name} is not what the backup's manifest says: it was changed.")
        target = into / entry.name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _copy(content, target) != said["sha256"]:
            raise ArchiveRefused(f"{entry.name} is damaged: its checksum is not the manifest's.")
    if manifest is None:
        raise ArchiveRefused("The backup is empty.")
    if missing := sorted({DUMP, *manifest.files} - seen):
        raise ArchiveRefused(f"The backup is cut short: {', '.join(missing)} is missing.")
    return manifest


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(content: Any, target: Path) -> str:
    summed = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        _pour(content, file, summed)
    return summed.hexdigest()


def _pour(content: BinaryIO, file: BinaryIO, summed: Any) -> None:
    while piece := content.read(_PIECE):
        summed.update(piece)
        file.write(piece)
