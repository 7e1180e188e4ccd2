"""Processes and nothing else: one child per role, forked after the imports so that they share memory; back when they die."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

log = logging.getLogger("moorage.supervisor")
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: A child that lived this long has started well: the next death restarts it at once again. One that dies over and over
#: gets there only when it works in between.
_STEADY_SECONDS: Final = 2.0
_MAX_PAUSE_SECONDS: Final = 10.0


def supervise(roles: Mapping[str, Callable[[], None]], *, grace_seconds: float = 20.0) -> None:
    """Run each role in a process of its own until SIGTERM; restart what dies, the more slowly the more often it does.

    Nothing may have started a thread or an event loop in this process before. Children are killed with their parent.
    """
    gc.collect()
    gc.freeze()  # what is imported by now is shared with the children and never looked at by their collectors
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP_SIGNALS, signal.SIGCHLD})
    running: dict[int, str] = {}
    deaths: dict[str, int] = dict.fromkeys(roles, 0)
    started_at: dict[str, float] = {}
    due: dict[str, float] = dict.fromkeys(roles, 0.0)
    while True:
        for role in [role for role, at in due.items() if at <= time.monotonic()]:
            del due[role]
            started_at[role] = time.monotonic()
            running[_fork(role, roles[role])] = role
        pause = min((at - time.monotonic() for at in due.values()), default=3600.0)
        got = signal.sigtimedwait({*_STOP_SIGNALS, signal.SIGCHLD}, max(0.0, pause))
        if got is not None and got.si_signo in _STOP_SIGNALS:
            _stop(running, grace_seconds)
            return
        for pid, code in _reaped(running):
            role = running.pop(pid)
            steady = time.monotonic() - started_at[role] > _STEADY_SECONDS
            deaths[role] = 1 if steady else deaths[role] + 1
            # at once the first time, then with growing pauses
            wait = 0.0 if deaths[role] == 1 else min(_MAX_PAUSE_SECONDS, 0.2 * 2 ** (deaths[role] - 2))
            due[role] = time.monotonic() + wait * random.uniform(0.8, 1.2)  # noqa: S311 - spreads restarts, no secret
            log.error("the %s process ended with %s; starting it again in %.1f s", role, code, wait)


def _fork(name: str, role: Callable[[], None]) -> int:
    parent = os.getpid()
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        die_with_parent(parent)
        _be_called(f"moorage-{name}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOP_SIGNALS, signal.SIGCHLD})
        role()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        log.exception("a role has failed")
    finally:
        _leave(code)
    raise AssertionError("unreachable")


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _be_called(name: str) -> None:
    """As `ps -o comm` and `top` show it: which process is which role."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, so that a killed supervisor leaves nobody behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _reaped(running: Mapping[int, str]) -> list[tuple[int, int]]:
    ended = []
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def _stop(running: dict[int, str], grace_seconds: float) -> None:
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + grace_seconds
    while running and time.monotonic() < until:
        signal.sigtimedwait({signal.SIGCHLD}, max(0.0, until - time.monotonic()))
        for pid, _ in _reaped(running):
            del running[pid]
    for pid, role in running.items():
        log.warning("the %s process does not stop; killing it", role)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
