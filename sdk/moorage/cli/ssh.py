"""Sessions by SSH: `moorage ssh`, the settings with which `ssh NAME.moorage` works, and registered keys."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import click

from moorage.cli import terminal
from moorage.cli.terminal import Group, connect, json_option, print_json, session_argument, table
from moorage.config import config_path
from moorage.errors import SessionNotFound

if TYPE_CHECKING:
    from moorage._models import SshAccess
    from moorage.sync import Client

SUFFIX = ".moorage"
_MARK = "# Sessions of Moorage, as NAME.moorage; written by 'moorage config-ssh'."


class Folder:
    """Where the keys, certificates and settings of this configuration are kept, readable by their owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path / "id_ed25519"
        self.hosts = path / "hosts"
        self.config = path / "config"

    @classmethod
    def of_this_user(cls) -> Folder:
        folder = cls(config_path().absolute().with_name("ssh"))
        folder.hosts.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def public_key(self) -> str:
        """Made when it is missing."""
        if not self.key.exists():
            command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "moorage", "-f", str(self.key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return self.key.with_suffix(".pub").read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> Path:
        """Whole or not at all: several `ssh` may begin at once."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        return partial.replace(path)


def program(name: str) -> str:
    if (found := shutil.which(name)) is None:
        raise click.ClickException(f"There is no '{name}' here; install the OpenSSH client (Debian: openssh-client).")
    return found


def admitted(client: Client, folder: Folder, name: str) -> dict[str, str]:
    """A fresh certificate for a session, or for one of its kernels (`NAME.KERNEL`): the settings with which `ssh` uses it."""
    session, _, kernel = name.rpartition(".")
    try:
        found, named = client.sessions.get(name), None
    except SessionNotFound:
        if not session:
            raise
        found, named = client.sessions.get(session), kernel
    access = found.ssh_access(folder.public_key(), kernel=named)
    certificate = folder.write(f"hosts/{name}-cert.pub", access.certificate + "\n")
    alias = f"moorage-{access.port}"
    known = folder.write(f"hosts/{name}.known_hosts", f"{alias} {access.host_key}\n")
    return settings(client, folder, access, alias, certificate, known)


def settings(
    client: Client, folder: Folder, access: SshAccess, alias: str, certificate: Path, known: Path
) -> dict[str, str]:
    return {
        "HostName": access.host or urlsplit(client.config.endpoint).hostname or "127.0.0.1",
        "Port": str(access.port),
        "User": access.user,
        "HostKeyAlias": alias,
        "UserKnownHostsFile": quoted(known),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "IdentityFile": quoted(folder.key),
        "CertificateFile": quoted(certificate),
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ForwardX11": "no",
    }


def quoted(path: Path) -> str:
    return f'"{path}"'


@click.command("ssh", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@session_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[SSH OPTIONS] [-- COMMAND...]")
def ssh_command(session: str, arguments: tuple[str, ...]) -> NoReturn:
    """Log in to a session with the SSH client of this machine, or run a command so.

    \b
    moorage ssh demo
    moorage ssh demo -- nvidia-smi
    moorage ssh demo -L 8080:localhost:80 -N
    moorage ssh demo.worker1                 a kernel of a cluster

    A key is made for this, and a certificate that is good for some minutes: nothing has to be registered.
    """
    ssh, folder = program("ssh"), Folder.of_this_user()
    with connect() as client:
        options = admitted(client, folder, session.removesuffix(SUFFIX))
    split = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = [*arguments[:split]], [*arguments[split + 1 :]]
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    sys.stdout.flush()
    os.execv(ssh, ["ssh", *words, *given, "--", f"{session.removesuffix(SUFFIX)}{SUFFIX}", *command])  # noqa: S606


@click.command("ssh-certificate", hidden=True)
@click.option("--for", "host", required=True, metavar="NAME.moorage", help="The session.")
def ssh_certificate_command(host: str) -> None:
    """Write a fresh certificate and the settings for one host; `ssh` calls this when it is asked for NAME.moorage."""
    folder, name = Folder.of_this_user(), host.removesuffix(SUFFIX)
    with connect() as client:
        options = admitted(client, folder, name)
    lines = "".join(f"    {option} {value}\n" for option, value in options.items())
    folder.write(f"hosts/{name}.conf", f"Host {name}{SUFFIX}\n{lines}")


@click.command("config-ssh")
@click.option("--ssh-config", type=click.Path(dir_okay=False, path_type=Path), help="[default: ~/.ssh/config]")
@click.option("--remove", is_flag=True, help="Take the settings out again.")
@click.option("--print", "only_print", is_flag=True, help="Show what would be included, and change nothing.")
@json_option
def config_ssh_command(ssh_config: Path | None, remove: bool, only_print: bool, as_json: bool) -> None:
    """Let `ssh NAME.moorage` work, and scp, sftp, rsync and editors with it, for every session you have or will have."""
    folder = Folder.of_this_user()
    text = included(folder)
    if only_print:
        print_json({"settings": text}) if as_json else click.echo(text, nl=False)
        return
    path = ssh_config or Path("~/.ssh/config").expanduser()
    line = f'Include "{folder.config}"'
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = [old for old in before.splitlines() if old.strip() != line]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if remove:
        Folder(path.parent).write(path.name, "".join(f"{old}\n" for old in kept))
        folder.config.unlink(missing_ok=True)
        print_json({"ssh_config": str(path), "includes": None}) if as_json else click.echo(f"Removed from {path}.")
        return
    folder.public_key()
    folder.write("config", text)
    if before.splitlines()[:1] != [line]:
        # First: what is included after a Host block would be part of it.
        Folder(path.parent).write(path.name, "".join(f"{old}\n" for old in (line, *kept)))
    if as_json:
        print_json({"ssh_config": str(path), "includes": str(folder.config)})
    else:
        click.echo(f"{path} includes {folder.config}.\nTry:  ssh NAME{SUFFIX}")


def included(folder: Folder) -> str:
    """The settings come with the certificate, so the gateway may move."""
    beside = Path(sys.argv[0]).absolute()
    moorage = str(beside) if beside.name == "moorage" and beside.exists() else shutil.which("moorage") or "moorage"
    command = f"env MOORAGE_CONFIG={shlex.quote(str(config_path().absolute()))} {shlex.quote(moorage)}"
    return (
        f"{_MARK}\nMatch originalhost *{SUFFIX} exec \"{command} ssh-certificate --for '%n'\"\n"
        f'    Include "{folder.hosts}/*.conf"\nMatch all\n'
    )


@click.group("ssh-key", cls=Group)
def ssh_key_command() -> None:
    """Public keys that open your sessions by SSH."""


@ssh_key_command.command("add")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--name", help="What to call it.  [default: the key's own comment]")
@json_option
def ssh_key_add(file: Path | None, name: str | None, as_json: bool) -> None:
    """Register a public key, by default ~/.ssh/id_ed25519.pub."""
    path = file or Path("~/.ssh/id_ed25519.pub").expanduser()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise click.ClickException(f"{path} cannot be read: {problem.strerror}; name the key's .pub file.") from None
    with connect() as client:
        added = client.ssh_keys.add(text, name=name)
    print_json(added.to_json()) if as_json else click.echo(f"{added.name}  {added.fingerprint}")


@ssh_key_command.command("ls")
@json_option
def ssh_key_ls(as_json: bool) -> None:
    """List your registered keys."""
    with connect() as client:
        found = client.ssh_keys.list()
    if as_json:
        print_json([key.to_json() for key in found])
        return
    rows = [[key.name, key.fingerprint, terminal.age(key.created_at), str(key.id)] for key in found]
    table(["NAME", "FINGERPRINT", "AGE", "ID"], rows, empty="No keys; 'moorage ssh-key add' registers one.")


@ssh_key_command.command("rm")
@click.argument("key")
@json_option
def ssh_key_rm(key: str, as_json: bool) -> None:
    """Remove a key, by its name, fingerprint or id; connections that it opened end."""
    with connect() as client:
        removed = client.ssh_keys.remove(key)
    print_json(removed.to_json()) if as_json else click.echo(removed.name)
