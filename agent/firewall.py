"""What packets of sessions may go where: rules of this host's packet filter, and ports of bridges that see no other port.

The rules stand in the table `mangle`, which sees packets before those of engines and of administrators do, and which
nobody else rearranges: what is dropped here is dropped, what is let through goes on to their rules. They are written
whole, in one step for each family, and again whenever somebody has taken them away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from agent.containers import EngineError
from domain.isolation import Egress

log = logging.getLogger("moorage.agent.firewall")
_PREFIX: Final = "MOORAGE-"
_FAMILIES: Final = {4: "iptables", 6: "ip6tables"}
_HOOKS: Final = {"FORWARD": "", "INPUT": "-in"}
_SECONDS: Final = 20.0
_DATA: Final = "data: "
_LONGEST: Final = 250  #: of a comment
_PLAIN: Final = re.compile(r"[\w ./:+@-]+")
#: Closed to everybody: metadata services and whoever else is there without an address of its own.
LINK_LOCAL: Final = ("169.254.0.0/16", "fe80::/10")
_BRIDGES: Final = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class Guard:
    """Of one bridge."""

    bridge: str
    egress: str
    together: bool  #: its containers may talk to each other: those of one cluster session


class Firewall:
    """The rules of one agent; those of others are left alone, unless their bridges or their data have gone."""

    def __init__(self, uid: str, data_dir: Path | None = None, *, closed: Iterable[str] = ()) -> None:
        self._data_dir = data_dir
        self._chain = f"{_PREFIX}{re.sub('[^0-9a-zA-Z]', '', uid)[:12]}"
        self._guards: dict[str, Guard] = {}
        self._always = tuple(closed)
        self._closed: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self._isolated: set[str] = set()
        self.failed: str | None = None  #: what the packet filter said at the start
        self._written: dict[str, list[str]] = {}  #: by tool, as it tells them

    @property
    def trouble(self) -> str | None:
        """Why there can be no rules here; None when there can."""
        if self.failed is not None:
            return f"the packet filter refused the rules that close the host and Moorage to sessions ({self.failed})"
        if os.geteuid() != 0:
            return "the agent does not run as root, so that it cannot close the host and Moorage to sessions"
        missing = [
            tool for tool in (*_FAMILIES.values(), "iptables-restore", "ip6tables-restore") if not shutil.which(tool)
        ]
        return f"{missing[0]} is missing, so that the host and Moorage are not closed to sessions" if missing else None

    async def guard(self, bridge: str, *, egress: str, together: bool) -> None:
        """From now on, whether the bridge is there yet or not."""
        guard = Guard(bridge, egress, together)
        async with self._lock:
            if self._guards.get(bridge) != guard:
                await self._write({**self._guards, bridge: guard}, self._closed)

    async def release(self, bridge: str) -> None:
        """When it has gone."""
        async with self._lock:
            if bridge in self._guards:
                await self._write({name: guard for name, guard in self._guards.items() if name != bridge}, self._closed)

    async def close_to(self, addresses: Collection[str]) -> None:
        """Addresses of those who run Moorage, beside this host's own."""
        closed = frozenset(addresses)
        async with self._lock:
            if closed != self._closed:
                await self._write(self._guards, closed)

    async def restore(self) -> bool:
        """Write the rules again if somebody has changed them, or taken them away. Whether they were as they should be."""
        async with self._lock:
            if not self._guards or self.trouble is not None:
                return True
            for tool in _FAMILIES.values():
                if await self._there(tool) != self._written.get(tool):
                    log.warning("the rules of %s were changed by somebody; writing them again", tool)
                    await self._write(self._guards, self._closed)
                    return False
        return True

    async def remove(self) -> None:
        """All of it: no session of this agent is here any more."""
        async with self._lock:
            self._guards = {}
            if self.trouble is None:
                await _remove(self._chain)

    async def sweep(self) -> None:
        """Rules of agents that have gone without a word: none of their bridges is there, or their data is not."""
        if self.trouble is not None:
            return
        rules = (await _run("iptables", "-w", "10", "-t", "mangle", "-S")).splitlines()
        devices = {name for _, name in socket.if_nameindex()}
        chains = {line.split()[1].removesuffix("-in") for line in rules if line.startswith(f"-N {_PREFIX}")}
        for chain in sorted(chains - {self._chain}):
            text = "\n".join(line for line in rules if line.startswith((f"-A {chain} ", f"-A {chain}-in ")))
            if devices.isdisjoint(re.findall(r"-[io] (\S+)", text)) or _is_orphan(text):
                log.warning("the rules %s were left over; removing them", chain)
                await _remove(chain)

    def isolate(self, bridge: str) -> None:
        """No port of it sees another one from now on, whatever is sent: the way out is all there is.

        Called when a container has started and before any code of its user runs.
        """
        try:
            ports = {port.name for port in (_BRIDGES / bridge / "brif").iterdir()}
        except OSError:  # the bridge is not there yet, or not in this agent's /sys
            return
        for port in ports - self._isolated:
            try:
                (_BRIDGES / port / "brport/isolated").write_text("1")
            except FileNotFoundError:  # it ended already
                continue
            except OSError as error:
                log.error("the port %s of %s cannot be isolated: %s", port, bridge, error)
                return
            self._isolated.add(port)
        self._isolated &= ports

    # -- rules -----------------------------------------------------------------------------------------------------
    async def _write(self, guards: dict[str, Guard], closed: frozenset[str]) -> None:
        if self.trouble is None:
            for family, tool in _FAMILIES.items():
                text = "\n".join(("*mangle", *self._rules(family, guards, closed), "COMMIT", ""))
                await _run(f"{tool}-restore", "-w", "10", "--noflush", given=text)
                there = await self._there(tool)
                for hook in _HOOKS:
                    if self._jump(hook) not in there:
                        await _run(tool, "-w", "10", "-t", "mangle", "-I", *self._jump(hook).split()[1:])
                self._written[tool] = await self._there(tool)
        self._guards, self._closed = guards, closed

    async def _there(self, tool: str) -> list[str]:
        """What of it is ours, in its order."""
        listed = await _run(tool, "-w", "10", "-t", "mangle", "-S")
        return [line for line in listed.splitlines() if self._chain in line]

    def _jump(self, hook: str) -> str:
        return f"-A {hook} -j {self._chain}{_HOOKS[hook]}"

    def _rules(self, family: int, guards: dict[str, Guard], closed: frozenset[str]) -> Iterator[str]:
        forward, host = f"{self._chain}", f"{self._chain}-in"
        yield from (f":{forward} - [0:0]", f":{host} - [0:0]")
        if (
            self._data_dir is not None
            and len(where := f"{_DATA}{self._data_dir}") < _LONGEST
            and _PLAIN.fullmatch(where)
        ):
            yield f'-A {forward} -m comment --comment "{where}"'  # decides nothing: says whose they are
        beyond = sorted(
            {str(net) for net in map(ip_network, (*LINK_LOCAL, *self._always, *closed)) if net.version == family}
        )
        for guard in sorted(guards.values(), key=lambda one: one.bridge):
            name = guard.bridge
            verdict = "RETURN" if guard.together else "DROP"
            yield f"-A {forward} -i {name} -o {name} -j {verdict}"
            # nobody connects to a session from outside, other sessions of this host included
            yield f"-A {forward} -o {name} -m conntrack --ctstate INVALID,NEW -j DROP"
            if guard.egress == Egress.NONE or family == 6:  # sessions have no IPv6 address that leads anywhere
                yield f"-A {forward} -i {name} -j DROP"
            else:
                yield from (f"-A {forward} -i {name} -d {net} -j DROP" for net in beyond)
            # the host, by whichever of its addresses; only answers to what the host itself began
            yield f"-A {host} -i {name} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"


def _is_orphan(rules: str) -> bool:
    """Whether the data of the agent that wrote them has gone."""
    whose = re.search(rf'--comment "?{_DATA}([^"\n]*)', rules)
    return whose is not None and not Path(whose[1]).exists()


async def _remove(chain: str) -> None:
    for tool in _FAMILIES.values():
        for hook, ending in _HOOKS.items():
            for words in (
                ("-D", hook, "-j", f"{chain}{ending}"),
                ("-F", f"{chain}{ending}"),
                ("-X", f"{chain}{ending}"),
            ):
                with suppress(EngineError):  # it is not there
                    await _run(tool, "-w", "10", "-t", "mangle", *words)


async def _run(*command: str, given: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    stdin = pipe if given else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate(given.encode() or None)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EngineError(f"{command[0]} does not end") from None
    if process.returncode != 0:
        raise EngineError(f"{' '.join(command)}: {err.decode(errors='replace').strip()[:300]}")
    return out.decode()


def main() -> None:
    """`python -m agent.firewall`: remove what agents have left behind whose bridges have gone."""
    asyncio.run(Firewall("").sweep())


if __name__ == "__main__":
    main()
