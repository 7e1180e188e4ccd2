"""Terminals of real sessions, as programs and as people have them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import moorage
import pexpect
import pytest

from bench.installation import MOORAGE
from tests.product.conftest import Installation

pytestmark = [
    pytest.mark.containers,
    # pexpect forks; what threads of other tests are there touch nothing in the child
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


def until(shown: Iterator[bytes], text: bytes) -> bytes:
    seen = b""
    for data in shown:
        seen += data
        if text in seen:
            return seen
    raise AssertionError(seen)


def test_a_program_has_a_terminal(session: moorage.Session) -> None:
    with session.pty.open(["/bin/sh"], rows=30, cols=90) as pty:
        shown = pty.output()
        pty.send("stty size; id -u; pwd\n")
        assert b"30 90\r\n1000\r\n/home/work" in until(shown, b"/home/work\r\n")
        pty.resize(50, 132)
        pty.send("stty size; exit 7\n")
        until(shown, b"50 132")
        assert pty.wait().exit_code == 7


def test_a_broken_connection_is_taken_up_where_it_was(session: moorage.Session) -> None:
    pty = session.pty.open(["/bin/sh"], id="stays")
    shown = pty.output()
    pty.send("echo be'fore'\n")
    first = until(shown, b"before\r\n")
    assert pty._socket is not None
    pty._socket._inner.socket.shutdown(2)
    pty.send("echo af'ter'\n")
    second = until(shown, b"after\r\n")
    assert b"before" not in second
    assert first.count(b"before") == 1
    pty.detach()
    with session.pty.open(id="stays", resume=True) as again:
        assert again.resumed
        assert again.id == "stays"
        seen = until(again.output(), b"after\r\n")
        assert seen.index(b"before") < seen.index(b"after")
    with pytest.raises(moorage.errors.PtyNotFound):
        session.pty.open(id="never", resume=True)


def test_a_person_has_a_shell(installation: Installation, session: moorage.Session) -> None:
    environ = {**os.environ, "MOORAGE_CONFIG": str(installation.config), "TERM": "xterm"}

    def begin(*words: str) -> pexpect.spawn:
        return pexpect.spawn(MOORAGE, ["exec", "-it", *words], env=environ, dimensions=(40, 120), timeout=15)

    shell = begin(session.name)
    shell.expect(r"\$ ")
    shell.sendline("stty size; tty")
    shell.expect("40 120")
    shell.expect("/dev/pts")
    shell.setwinsize(33, 99)
    until_at = time.monotonic() + 10
    while True:  # the window's new size is told by a signal
        shell.sendline("stty size")
        if shell.expect(["33 99", "40 120"]) == 0:
            break
        assert time.monotonic() < until_at
    # said by what is to be interrupted: bash may not hear of it between two commands of a line
    shell.sendline("sh -c \"echo u'p'; exec sleep 100\"")
    shell.expect("up")
    shell.sendcontrol("c")
    shell.sendline("left=here; echo r'each'ed")
    shell.expect("reached")
    shell.send("\x1d")
    shell.expect(r"--attach (\S+)' comes back")
    name = shell.match.group(1).decode()
    shell.expect(pexpect.EOF)
    again = begin(session.name, "--attach", name)
    again.expect("reached")
    again.sendline("echo $left; exit 5")
    again.expect("here")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 5
    piped = installation.run("exec", "-it", session.name, input="")
    assert piped.returncode == 2
    assert "-t needs a terminal" in piped.stderr
