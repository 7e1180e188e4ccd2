"""The default kernel image, made where it is missing: pulled from a site's registry, or built here.

`python -m images.build` ensures it by hand. Images of users' own do not come this way: those are registered and pulled.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from docker import DockerClient

NAME: Final = "moorage/python"
USER_ID: Final = 1000
Progress = Callable[[str], None]
Entry = tuple[tarfile.TarInfo, IO[bytes] | None]

#: What people expect to find in a shell, and what PyTorch's wheels link to.
PACKAGES: Final = (
    "python3 python3-pip libstdc++6 libgomp1 bash dash coreutils grep sed findutils mawk procps tar gzip less "
    "diffutils debianutils hostname ncurses-base tzdata ca-certificates rsync"
).split()
#: Dependencies that only matter to package installation, which never happens inside this image.
_LEFT_OUT: Final = re.compile(
    r"^(perl|libperl|libgdbm|dpkg|debconf|init-system-helpers|usrmerge|libfile-|libtext-|libnumber-|openssl|gcc-12-base)"
)
_NO_DOCS: Final = re.compile(
    r"^usr/share/(doc|man|locale|info|lintian|bug|perl5)/|/EXTERNALLY-MANAGED$|^usr/share/.*\.pl$"
)
_NOT_NEEDED: Final = re.compile(r"/(tests|__pycache__|sample_data|include)/|^/bin/")
_TOP_LINKS: Final = ("bin", "sbin", "lib", "lib64")
_CONFIG: Final = [
    "ENV PATH=/home/work/.local/bin:/usr/local/bin:/usr/bin LANG=C.UTF-8 HOME=/home/work",
    "WORKDIR /home/work",
    f"USER {USER_ID}:{USER_ID}",
    'CMD ["python3"]',
    "LABEL moorage.image=python",
]


class CannotBuild(Exception):
    """This way of making the image is not open here; the next one is tried."""


def ensure_image(client: DockerClient, progress: Progress = print) -> str:
    """The name of a default image that is present now. Blocking: at once when present, else some seconds."""
    if present := find_image(client):
        return present
    for way in (_pull, _from_debian_packages, _from_dockerfile, _from_this_host):
        try:
            name = way(client, progress)
        except CannotBuild as reason:
            progress(f"image: {reason}")
        else:
            progress(f"image: {name} is ready")
            return name
    raise CannotBuild("no kernel image can be made here: name a registry with MOORAGE_REGISTRY, or register an image")


def find_image(client: DockerClient) -> str | None:
    """The newest default image that the engine has."""
    tags = [str(tag) for image in client.images.list(name=NAME) for tag in image.tags]
    return max(tags, key=_version, default=None)


def _version(tag: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", tag.rpartition(":")[2])]


def _pull(client: DockerClient, progress: Progress) -> str:
    # Only from a registry that the site has named: anybody could own our name on a public one.
    registry = os.environ.get("MOORAGE_REGISTRY")
    if not registry:
        raise CannotBuild("no registry is named (MOORAGE_REGISTRY), so it is built here")
    name = f"{NAME}:{_python_name()}"
    progress(f"image: pulling {registry}/{name}")
    try:
        client.images.pull(f"{registry}/{NAME}", tag=_python_name()).tag(NAME, _python_name())
    except _engine_errors() as error:
        raise CannotBuild(f"the registry has none: {error}") from error
    return name


def _from_debian_packages(client: DockerClient, progress: Progress) -> str:
    """Debian's packages, checked by apt and unpacked straight into the engine; needs neither root nor a registry."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise CannotBuild("this is not a Debian or Ubuntu host")
    with tempfile.TemporaryDirectory(prefix="moorage-image-") as folder:
        progress("image: downloading packages")
        packages = _download(Path(folder))
        version = next((m[1] for deb in packages if (m := re.match(r"python(3\.\d+)-minimal_", deb.name))), None)
        if version is None:
            raise CannotBuild("the packages hold no Python 3")
        progress(f"image: unpacking {len(packages)} packages")
        science = _python_packages(version, Path(folder) / "science", progress)
        return _import(client, version, chain(_unpacked(packages), science), progress)


def _download(folder: Path) -> list[Path]:
    (folder / "archives/partial").mkdir(parents=True)
    (folder / "status").touch()
    command = [
        "apt-get", "-qq", "-y", "--download-only", "--no-install-recommends",
        "-o", f"Dir::State::status={folder}/status",  # an empty machine: every dependency is wanted
        "-o", f"Dir::Cache::archives={folder}/archives",
        "-o", "Debug::NoLocking=1",
        "-o", "APT::Sandbox::User=",
        "install", *PACKAGES,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packages = [deb for deb in sorted((folder / "archives").glob("*.deb")) if not _LEFT_OUT.match(deb.name)]
    if done.returncode != 0 or not packages:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotBuild(f"apt cannot download the packages: {said[-1] if said else 'no reason given'}")
    return packages


def _unpacked(packages: Iterable[Path]) -> Iterator[Entry]:
    certificates = io.BytesIO()
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if name in ("", ".") or _NO_DOCS.search(name):
                        continue
                    body = tar.extractfile(member) if member.isreg() else None
                    if body is not None and name.startswith("usr/share/ca-certificates/"):
                        certificates.write(body.read().rstrip() + b"\n")
                    else:
                        yield member, body
    for target, link in (
        ("dash", "usr/bin/sh"),
        ("mawk", "usr/bin/awk"),
        ("which.debianutils", "usr/bin/which"),
        ("python3", "usr/bin/python"),
    ):
        yield _link(link, target), None
    yield _file("etc/ssl/certs/ca-certificates.crt", certificates.getvalue())


def _python_packages(version: str, folder: Path, progress: Progress) -> Iterator[Entry]:
    """numpy and matplotlib, pinned and checked by hash, where the image's Python finds them without a setting."""
    progress("image: adding numpy and matplotlib")
    installer = [sys.executable, "-m", "uv", "pip"] if importlib.util.find_spec("uv") else [sys.executable, "-m", "pip"]
    command = [
        *installer, "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--python-version", version,
        "--target", str(folder), "--requirement", str(Path(__file__).parent / "packages.txt"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        progress(f"image: goes without numpy and matplotlib: {said[-1] if said else 'no reason given'}")
        return
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not _NOT_NEEDED.search(f"/{inside}"):
            yield _file(f"usr/local/lib/python{version}/dist-packages/{inside}", path.read_bytes())


def _from_dockerfile(client: DockerClient, progress: Progress) -> str:
    """The official image with our user: for laptops, where the engine can reach its registry."""
    version = _python_name()
    progress("image: building from images/python/Dockerfile")
    try:
        client.images.build(path=str(Path(__file__).parent / "python"), tag=f"{NAME}:{version}", rm=True, forcerm=True)
    except _engine_errors() as error:
        raise CannotBuild(f"the engine cannot build it: {error}") from error
    return f"{NAME}:{version}"


def _from_this_host(client: DockerClient, progress: Progress) -> str:
    """A copy of this very Python, its libraries and some tools: the way that needs no network at all."""
    if sys.platform != "linux" or not shutil.which("ldd"):
        raise CannotBuild("this host's Python cannot be copied")
    progress(f"image: copying Python {_python_name()} of this host")
    return _import(client, _python_name(), _copied(), progress)


_TOOLS: Final = (
    "sh bash awk cat chmod cp cut date df dirname du echo env expr false find grep gzip head hostname id kill ln ls "
    "mkdir mv nproc ps pwd readlink rm rmdir sed seq sleep sort stat tail tar tee test timeout touch tr true uname "
    "uniq wc which whoami xargs yes"
).split()
_NOT_COPIED: Final = frozenset(
    "test tests site-packages dist-packages idlelib tkinter turtledemo lib2to3 ensurepip __pycache__".split()
)


def _copied() -> Iterator[Entry]:
    prefix = Path(sys.base_prefix).resolve()
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()  # not the virtual environment's link
    library = Path(
        sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    ).resolve()
    modules = [
        path
        for path in library.rglob("*")
        if not _NOT_COPIED & set(path.relative_to(library).parts) and path.is_file() and path.suffix != ".a"
    ]
    tools = {name: Path(found).resolve() for name in _TOOLS if (found := shutil.which(name))}
    libraries = _libraries([interpreter, *tools.values(), *(path for path in modules if path.suffix == ".so")])
    loader_looks_in = next(path.parent for path in libraries if path.name.startswith("libc.so"))

    def place(path: Path) -> Path:
        """Where it lies in the image: a Python of its own moves out of its owner's folder, and finds itself there."""
        if prefix == Path("/usr") or not path.is_relative_to(prefix):
            return path
        return loader_looks_in / path.name if path in libraries else Path("/opt/python") / path.relative_to(prefix)

    for path in sorted({interpreter, *modules, *tools.values(), *libraries}):
        known = path.stat()
        info = tarfile.TarInfo(str(place(path)).lstrip("/"))
        info.size, info.mode, info.mtime = known.st_size, 0o644 | (known.st_mode & 0o111), int(known.st_mtime)
        with path.open("rb") as body:
            yield info, body
    for name, target in {**tools, "python3": interpreter, "python": interpreter}.items():
        if _merged(str(target).lstrip("/")) != f"usr/bin/{name}":
            yield _link(f"usr/bin/{name}", str(place(target))), None
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        yield _file("etc/ssl/certs/ca-certificates.crt", bundle.read_bytes())


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the loader maps for these programs, the loader included."""
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return {Path(found) for found in re.findall(r"(?:=> )?(/\S+) \(0x", listed)}


def _import(client: DockerClient, version: str, entries: Iterator[Entry], progress: Progress) -> str:
    """One layer from a stream of files, and one with its Python compiled: a read-only root cannot do that later."""
    with tempfile.TemporaryFile(prefix="moorage-image-") as spool:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.GNU_FORMAT) as tar:
            _write(tar, entries)
        spool.seek(0)
        chunks = iter(lambda: spool.read(1 << 20), b"")  # a file would get a length besides the chunked encoding
        told = client.api.import_image_from_stream(chunks, changes=_CONFIG)
    progress("image: compiling the standard library")
    return _compiled(client, json.loads(told.splitlines()[-1])["status"], version)


def _compiled(client: DockerClient, image: str, version: str) -> str:
    code = (
        "import compileall, sysconfig; "
        "folders = sysconfig.get_path('stdlib'), '/usr/lib/python3', '/usr/local/lib'; "
        "[compileall.compile_dir(folder, quiet=2, workers=0) for folder in folders]"
    )
    labels = {"moorage.image": "building"}
    made = client.containers.create(image, ["python3", "-c", code], user="0:0", network_mode="none", labels=labels)
    try:
        made.start()
        if made.wait(timeout=300)["StatusCode"] != 0:
            raise CannotBuild(f"its Python does not run: {made.logs(tail=3).decode(errors='replace')}")
        made.commit(NAME, version, changes="\n".join(_CONFIG))
    finally:
        made.remove(force=True)
    return f"{NAME}:{version}"


_FOLDERS: Final = (
    ("tmp", 0o1777, 0),
    ("proc", 0o555, 0),
    ("sys", 0o555, 0),
    ("dev", 0o755, 0),
    ("run", 0o755, 0),
    ("root", 0o700, 0),
    ("etc", 0o755, 0),
    ("var", 0o755, 0),
    ("var/tmp", 0o1777, 0),
    ("home", 0o755, 0),
    ("home/work", 0o755, USER_ID),
)
_FILES: Final = (
    (
        "etc/passwd",
        f"root:x:0:0:root:/root:/bin/sh\nwork:x:{USER_ID}:{USER_ID}::/home/work:/bin/bash\nnobody:x:65534:65534::/:/bin/sh\n",
    ),
    ("etc/group", f"root:x:0:\nwork:x:{USER_ID}:\nnogroup:x:65534:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
)


def _write(tar: tarfile.TarFile, entries: Iterable[Entry]) -> None:
    seen: set[str] = set()
    for top in _TOP_LINKS:
        tar.addfile(_folder(f"usr/{top}"))
        tar.addfile(_link(top, f"usr/{top}"))
        seen |= {f"usr/{top}", top}
    for path, mode, owner in _FOLDERS:
        tar.addfile(_folder(path, mode, owner))
    for path, text in _FILES:
        tar.addfile(*_file(path, text.encode()))
    seen |= {path for path, *_ in (*_FOLDERS, *_FILES)}
    for info, body in entries:
        info.name = _merged(info.name.removeprefix("./").rstrip("/"))
        if info.name in seen:
            continue
        seen.add(info.name)
        if info.islnk():
            info.linkname = _merged(info.linkname.removeprefix("./"))
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode &= 0o1777  # nobody becomes root in here, so nothing is setuid
        tar.addfile(info, body)


def _merged(path: str) -> str:
    """/bin and /lib are links to /usr/bin and /usr/lib here, whatever the source still does."""
    return f"usr/{path}" if path.split("/", 1)[0] in _TOP_LINKS else path


def _folder(path: str, mode: int = 0o755, owner: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    return info


def _link(path: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    return info


def _file(path: str, content: bytes) -> tuple[tarfile.TarInfo, IO[bytes]]:
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(content), 0o644
    return info, io.BytesIO(content)


def _python_name() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _engine_errors() -> tuple[type[Exception], ...]:
    from docker.errors import BuildError, DockerException

    return (BuildError, DockerException)


def main() -> None:
    import docker

    ways: dict[str, Callable[[DockerClient, Progress], str]] = {
        "packages": _from_debian_packages,
        "dockerfile": _from_dockerfile,
        "host": _from_this_host,
    }
    client = docker.from_env(timeout=300)
    chosen = sys.argv[1:]
    try:
        print(ways[chosen[0]](client, _say) if chosen else ensure_image(client, _say))
    except CannotBuild as reason:
        sys.exit(f"image: {reason}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
