"""Commands for volumes."""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import terminal
from moorage.cli.terminal import Group, connect, details, json_option, print_json, table

if TYPE_CHECKING:
    from moorage._models import VolumeInfo
    from moorage.sync import Files


def parse_mount(text: str) -> dict[str, Any]:
    """NAME[:subpath][:/home/work/PATH][:ro]"""
    name, *rest = text.split(":")
    mount: dict[str, Any] = {"volume": name}
    if rest and rest[-1] in ("ro", "rw"):
        mount["read_only"] = rest.pop() == "ro"
    if rest and rest[-1].startswith("/"):
        mount["path"] = rest.pop()
    if rest:
        mount["subpath"] = rest.pop(0)
    if not name or rest:
        raise click.BadParameter(f"'{text}' is not NAME[:subpath][:/home/work/PATH][:ro]", param_hint="-v")
    return mount


@click.group("volume", cls=Group)
def volume_command() -> None:
    """Folders that outlive sessions: mounted with 'create -v NAME', shared, copied."""


@volume_command.command("create")
@click.argument("name")
@click.option("--quota", metavar="SIZE", help="At most so much in it, such as 10g.")
@click.option("--quota-files", type=int, metavar="N", help="At most so many files.")
@click.option("--store", help="The store to make it in. [default: that of most hosts]")
@json_option
def volume_create(name: str, quota: str | None, quota_files: int | None, store: str | None, as_json: bool) -> None:
    """Make an empty volume."""
    with connect() as client:
        volume = client.volumes.create(name, quota=quota, quota_files=quota_files, store=store)
    print_json(volume.info.to_json()) if as_json else click.echo(volume.name)


@volume_command.command("ls")
@click.option("-a", "--all", "everybodys", is_flag=True, help="Everybody's; for administrators.")
@json_option
def volume_ls(everybodys: bool, as_json: bool) -> None:
    """List your volumes and those that are shared with you."""
    with connect() as client:
        found = [volume.info for volume in client.volumes.list(all=everybodys)]
    if as_json:
        print_json([info.to_json() for info in found])
        return
    rows = [[i.name, i.owner, _may(i), _quota(i), i.sessions, i.status, terminal.age(i.created_at)] for i in found]
    table(["NAME", "OWNER", "ACCESS", "QUOTA", "SESSIONS", "STATUS", "AGE"], rows, empty="No volumes.")


def _may(info: VolumeInfo) -> str:
    return "owner" if info.owned else "read" if info.read_only else "write"


def _quota(info: VolumeInfo) -> str:
    said = [] if info.quota_bytes is None else [terminal.size(info.quota_bytes)]
    if info.quota_files is not None:
        said.append(f"{info.quota_files} files")
    return ", ".join(said) or "none"


@volume_command.command("show")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@json_option
def volume_show(name: str, as_json: bool) -> None:
    """Show everything about a volume."""
    with connect() as client:
        info = client.volumes.get(name).info
    if as_json:
        print_json(info.to_json())
        return
    used = "unknown: no host can look at the moment"
    if info.used_bytes is not None:
        used = f"{terminal.size(info.used_bytes)} in {info.used_files} files"
    details(
        {
            "name": info.name,
            "id": info.id,
            "owner": info.owner,
            "access": _may(info),
            "status": info.status,
            "used": used,
            "quota": _quota(info),
            "mounted in": f"{info.sessions} sessions" if info.sessions else None,
            "shared with": ", ".join(
                f"{s.user or f'project {s.project}'} ({'read' if s.read_only else 'write'})" for s in info.shares
            )
            or None,
            "created": terminal.local_time(info.created_at),
        }
    )


@volume_command.command("modify")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@click.option("--name", "new_name", metavar="NAME", help="Another name.")
@click.option("--quota", metavar="SIZE", help="At most so much in it, such as 10g; -1: as much as there is.")
@click.option("--quota-files", type=int, metavar="N", help="At most so many files; -1: as many as there may be.")
@json_option
def volume_modify(name: str, new_name: str | None, quota: str | None, quota_files: int | None, as_json: bool) -> None:
    """Change a volume's name or quota."""
    with connect() as client:
        volume = client.volumes.get(name).modify(name=new_name, quota=quota, quota_files=quota_files)
    print_json(volume.info.to_json()) if as_json else click.echo(volume.name)


@volume_command.command("rename")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@click.argument("new_name")
@json_option
def volume_rename(name: str, new_name: str, as_json: bool) -> None:
    """Give a volume another name."""
    with connect() as client:
        volume = client.volumes.get(name).rename(new_name)
    print_json(volume.info.to_json()) if as_json else click.echo(volume.name)


_users = click.option("-u", "--user", "users", multiple=True, metavar="EMAIL", help="A user (repeatable).")
_projects = click.option(
    "-p", "--project", "projects", multiple=True, metavar="NAME", help="Everybody in a project (repeatable)."
)


@volume_command.command("share")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@_users
@_projects
@click.option("--rw", is_flag=True, help="For writing as well as reading.")
@json_option
def volume_share(name: str, users: tuple[str, ...], projects: tuple[str, ...], rw: bool, as_json: bool) -> None:
    """Let others use a volume."""
    with connect() as client:
        volume = client.volumes.get(name).share(users=users, projects=projects, read_only=not rw)
    print_json(volume.info.to_json()) if as_json else click.echo(f"{volume.name} is shared.")


@volume_command.command("unshare")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@_users
@_projects
@json_option
def volume_unshare(name: str, users: tuple[str, ...], projects: tuple[str, ...], as_json: bool) -> None:
    """Take a volume back; running sessions keep it until they end."""
    with connect() as client:
        volume = client.volumes.get(name).unshare(users=users, projects=projects)
    print_json(volume.info.to_json()) if as_json else click.echo(f"{volume.name} is taken back.")


@volume_command.command("leave")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@json_option
def volume_leave(name: str, as_json: bool) -> None:
    """Give up a volume that is shared with you."""
    with connect() as client:
        client.volumes.get(name).leave()
    print_json({"left": name}) if as_json else click.echo(f"{name} is left.")


@volume_command.command("clone")
@click.argument("name", type=terminal.VOLUME, metavar="NAME")
@click.argument("new_name")
@click.option("--no-wait", is_flag=True, help="Do not wait for its end.")
@json_option
def volume_clone(name: str, new_name: str, no_wait: bool, as_json: bool) -> None:
    """Copy a volume into a new one of your own."""
    from moorage.cli.tasks import watch

    with connect() as client:
        task = client.volumes.get(name).clone(new_name)
        if no_wait:
            print_json(task.info.to_json()) if as_json else click.echo(task.id)
            return
        watch(task, as_json=as_json, quiet=True)
    if not as_json:
        click.echo(new_name)


@volume_command.command("rm")
@click.argument("names", type=terminal.VOLUME, nargs=-1, required=True, metavar="NAME...")
@click.option("--no-wait", is_flag=True, help="Do not wait until its files are gone.")
@json_option
def volume_rm(names: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Remove volumes with everything in them."""
    from moorage.cli.tasks import watch

    with connect() as client:
        for name in names:
            task = client.volumes.get(name).delete()
            if no_wait:
                print_json(task.info.to_json()) if as_json else click.echo(task.id)
                continue
            watch(task, as_json=as_json, quiet=True)
            if not as_json:
                click.echo(name)


# -- files -------------------------------------------------------------------------------------------------------------
@volume_command.command("put")
@click.argument("source")
@click.argument("target", metavar="NAME[:PATH]")
@click.option("-x", "--unpack", is_flag=True, help="SOURCE is a tar or zip archive, to be unpacked into PATH.")
@click.option("--no-clobber", is_flag=True, help="Do not replace a file that is there.")
@json_option
def volume_put(source: str, target: str, unpack: bool, no_clobber: bool, as_json: bool) -> None:
    """Copy a file or folder into a volume, without any session.

    \b
    moorage volume put data.csv set:              into its top
    moorage volume put project set:code           a folder; what is in it comes to be in 'code'
    moorage volume put -x data.tar.gz set:data    what an archive holds; '-' is standard input
    """
    name, _, path = target.partition(":")
    local = Path(source)
    if source != "-" and not local.exists():
        raise FileNotFoundError(2, "there is no such file here", source)
    with connect() as client:
        files = client.volumes.get(name).files
        with terminal.progress(local.name, shown=not as_json and source != "-") as report:
            if unpack:
                given = sys.stdin.buffer if source == "-" else local
                said = files.unpack(given, path or ".", overwrite=not no_clobber, on_progress=report).to_json()
            elif local.is_dir():
                there = path or local.resolve().name
                said = files.upload_folder(local, there, overwrite=not no_clobber, on_progress=report).to_json()
            else:
                said = _put_file(files, source, local, path, no_clobber, report)
    if as_json:
        print_json(said)


def _put_file(files: Files, source: str, local: Path, path: str, no_clobber: bool, report: Any) -> Any:
    if source == "-":
        return files.write(path or "stdin", sys.stdin.buffer, overwrite=not no_clobber).to_json()
    if not path or path.endswith("/"):
        path = posixpath.join(path, local.resolve().name)
    sent = files.upload(local, path, overwrite=not no_clobber, on_progress=report)
    return [stat.to_json() for stat in sent]


@volume_command.command("get")
@click.argument("source", metavar="NAME[:PATH]")
@click.argument("target", default=".")
@json_option
def volume_get(source: str, target: str, as_json: bool) -> None:
    """Copy a file or folder out of a volume: to TARGET, '-' for standard output, '*.tar' for an archive."""
    name, _, path = source.partition(":")
    with connect() as client:
        files = client.volumes.get(name).files
        if target == "-":
            for chunk in files.stream(path):
                sys.stdout.buffer.write(chunk)
            return
        local = Path(target)
        if local.is_dir():
            local = local / (posixpath.basename(posixpath.normpath(path)) if path.strip("/.") else name)
        with terminal.progress(path or name, shown=not as_json) as report:
            written = files.download(path or ".", local, on_progress=report)
    if as_json:
        print_json({"path": str(written)})


@volume_command.command("files")
@click.argument("location", metavar="NAME[:PATH]")
@click.option("-l", "--long", is_flag=True, help="With size, time, permissions and owner.")
@click.option("--mkdir", "op", flag_value="mkdir", help="Make the folder PATH.")
@click.option("--rm", "op", flag_value="remove", help="Remove PATH with everything in it.")
@click.option("--mv", "move_to", metavar="TO", help="Move or rename PATH to TO.")
@click.option("--cp", "copy_to", metavar="TO", help="Copy PATH to TO.")
@json_option
def volume_files(
    location: str, long: bool, op: str | None, move_to: str | None, copy_to: str | None, as_json: bool
) -> None:
    """List what is in a volume, or change it: make, remove, move, copy."""
    from moorage.cli.files import show_files

    name, _, path = location.partition(":")
    if (op or move_to or copy_to) and not path:
        raise click.UsageError("Write NAME:PATH to say what is meant.")
    with connect() as client:
        files = client.volumes.get(name).files
        if op == "mkdir":
            files.mkdir(path, parents=True)
        elif op == "remove":
            files.remove(path, recursive=True)
        elif move_to:
            files.move(path, move_to)
        elif copy_to:
            files.copy(path, copy_to, recursive=True)
        else:
            show_files(files.list(path or "."), long=long, as_json=as_json)
