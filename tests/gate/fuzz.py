"""A run of Schemathesis against a server: how it is set up, and what it found."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.gate.people import Person
from tests.gate.things import image_name, registry_host, thing_id, thing_name

#: Of each kind so many are there, so that one that was removed is not missed.
MANY: Final = 60
_NUMBERS: Final = range(1, MANY + 1)
#: Of worker sessions, which are sessions as well.
_WORKERS: Final = range(MANY + 1, 2 * MANY + 1)
#: Parameters of paths and queries, and names of what is there.
NAMES: Final[Mapping[str, Sequence[str]]] = {
    "session": [str(thing_id("session", n)) for n in (*_NUMBERS, *_WORKERS)],
    "volume": [str(thing_id("volume", n)) for n in _NUMBERS],
    "app": [thing_name("app", n) for n in _NUMBERS],
    "call": [str(thing_id("call", n)) for n in _WORKERS],
    "template": [thing_name("template", n) for n in _NUMBERS],
    "user": [f"user-{n}@example.org" for n in _NUMBERS],
    "run": [str(thing_id("run", n)) for n in _NUMBERS],
    "task": [str(thing_id("task", n)) for n in _NUMBERS],
    "image": [image_name(n).replace("/", "%2F").replace(":", "%3A") for n in _NUMBERS],
    "agent": [thing_name("agent", n) for n in _NUMBERS],
    "device": ["gpu%2Fone", "one"],
    "resource_group": ["default", *(thing_name("resource_group", n) for n in _NUMBERS)],
    "policy": [thing_name("policy", n) for n in _NUMBERS],
    "project": [thing_name("project", n) for n in _NUMBERS],
    "domain": ["north", "south"],
    "keypair": [f"KEY-{n}" for n in _NUMBERS],
    "token": [str(thing_id("token", n)) for n in _NUMBERS],
    "ssh_key": [str(thing_id("ssh_key", n)) for n in _NUMBERS],
    "host": [registry_host(n) for n in _NUMBERS],
    "kernel": ["main", "worker1"],
    "service": ["web", "jupyter"],
    "scope": ["user", "project", "domain", "keypair"],
    "of": ["user-2@example.org", "atoms", "north", "KEY-2"],
    "path": ["there.txt", "new/file", "%2Ftmp%2Fx", ".."],
}
HOSTILE: Final = (
    "-rf", "--help", "..", "../../etc/passwd", "a/b", "%00", "' OR 1=1 --", "${HOME}", "$(id)", "`id`", "{{7*7}}",
    "caf\u00e9", "\u00ad", "x\u00a0y", "CON", "NaN", "1e309", "-1", "9223372036854775808", "null", "undefined", "true",
    "[]", "<script>", "*", "%", "_", "x" * 255, "x" * 4096, "00000000-0000-0000-0000-000000000000",
)  # fmt: skip


@dataclass(frozen=True)
class Findings:
    requests: int
    operations: int  #: of the document
    tested: int  #: of these
    failures: Sequence[Mapping[str, Any]]
    errors: Sequence[Mapping[str, Any]]  #: no answer in time, no connection
    said: str


def configuration() -> str:
    """TOML; strings of JSON are strings of TOML."""
    lines = ['hooks = "tests.gate.schemathesis_hooks"', ""]
    for name, values in {**NAMES, "hostile": HOSTILE}.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(list(values))}"]
    lines += ["", "[parameters]"]
    lines += [f'{name} = {{ dictionary = "{name}", probability = 0.85 }}' for name in NAMES]
    lines += ["", "[generation]"]
    lines += ['dictionaries = { string = { dictionary = "hostile", probability = 0.15 } }']
    return "\n".join(lines) + "\n"


async def schemathesis(
    endpoint: str, by: Person, folder: Path, *, phases: str, seconds: int | None, seed: int
) -> Findings:
    """The same seed makes the same requests in the same order, for as long as there is time; None: each phase to its end."""
    config, report = folder / "schemathesis.toml", folder / f"{by.name}.json"
    config.write_text(configuration())
    words = (
        *(Path(sys.executable).parent / "st", "--config-file", config, "run", f"{endpoint}/openapi.json"),
        *("--header", by.header, "--checks", "planned", "--phases", phases, "--seed", str(seed)),
        *(("--max-time", str(seconds)) if seconds is not None else ()),
        *("--request-timeout", "10", "--continue-on-failure", "--generation-database", "none", "--no-color"),
        *("--workers", "2", "--suppress-health-check", "all", "--report-json-path", report),
    )
    path = os.pathsep.join(sys.path)
    process = await asyncio.create_subprocess_exec(
        *map(str, words), cwd=folder, env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout((seconds or 480) + 120):
        said, _ = await process.communicate()
    text = said.decode("utf-8", "replace")
    if not report.exists():
        raise AssertionError(text[-4000:])
    found = json.loads(report.read_text())
    return Findings(
        requests=found["test_cases"]["generated"],
        operations=found["operations"]["total"],
        tested=found["operations"]["tested"],
        failures=found["failures"],
        errors=found["errors"],
        said=text,
    )
