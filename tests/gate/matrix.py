"""Every action, everybody, everything they may come upon: the cells, and the page that is made of them.

`python -m tests.gate.matrix` prints docs/authorisation.md; `--check FILE` says whether it is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from repositories.database import Connection
from tests.gate.asks import ASKS, UPGRADE, Ask, Cell, route_of
from tests.gate.people import DOMAIN_ADMIN, MONITOR, PROJECT_ADMIN, SUPERADMIN, USER, Person
from tests.gate.raw import Reply, Wire
from tests.gate.roles import EXPECTED, LETTERS, RELATIONS, ROLES, expected
from tests.gate.things import MAKERS, MORE, add_share, pass_of, thing_id

PRINCIPALS: Final[dict[str, Person | None]] = {
    "anonymous": None,
    "user": USER,
    "project admin": PROJECT_ADMIN,
    "domain admin": DOMAIN_ADMIN,
    "superadmin": SUPERADMIN,
    "monitor": MONITOR,
}
#: Where each has a session with a pass of its own, beside those of the cells.
_OF_ONES_OWN: Final = {role: 900_000 + n for n, role in enumerate(ROLES)}
_PROXY_OK: Final = {"proxy:pass": 200, "proxy:pass-websocket": 101}


def cells() -> Iterator[Cell]:
    number = 0
    for row in EXPECTED:
        for role in ROLES:
            for relation in RELATIONS:
                number += 1
                yield Cell(row=row, role=role, relation=relation, by=PRINCIPALS[role], number=number)


def is_proxys(row: str) -> bool:
    return row.startswith("proxy:")


async def prepare(connection: Connection, cell: Cell) -> None:
    """What has to be there for it."""
    given = Ask(things=("session",)) if is_proxys(cell.row) else ASKS[cell.row]
    for kind in given.things:
        person = kind == "user"
        if kind == "share_with" and cell.exists:
            await add_share(connection, cell.by or USER, cell.number)
        elif kind in ("keypair_of", "token_of") and cell.relation == "own":
            await MAKERS[kind.removesuffix("_of")](connection, cell.owner, cell.number)
        elif person and given.somebody:
            await MAKERS[kind](connection, cell.owner, cell.number)
        elif cell.exists and not (person and cell.relation == "own"):  # oneself is there
            await (MAKERS.get(kind) or MORE[kind])(connection, cell.owner, cell.number)


async def prepare_all(connection: Connection) -> None:
    for role, number in _OF_ONES_OWN.items():
        await MAKERS["session"](connection, PRINCIPALS[role] or USER, number)
    for cell in cells():
        await prepare(connection, cell)
    # What is numbered here is told as if a sequencer had numbered it.
    await connection.execute("UPDATE sequencer SET last_seq = 1000000 WHERE name = 'events'")


async def ask(cell: Cell, rest: Wire, services: Wire) -> Reply:
    if is_proxys(cell.row):
        return await _ask_proxy(cell, services)
    given = ASKS[cell.row]
    route = route_of(cell.row, given)
    path = given.address(cell) if given.address else cell.path(route.path)
    query, body = given.query(cell), given.body(cell)
    headers = [*given.headers(cell)]
    if cell.by is not None:
        headers.append(cell.by.header)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.append("Content-Type: application/json")
    return await rest.ask(route.method, f"{path}?{query}" if query else path, tuple(headers), body or b"")


async def _ask_proxy(cell: Cell, services: Wire) -> Reply:
    number = cell.number if cell.relation == "own" else _OF_ONES_OWN[cell.role]
    shown = {
        "proxy:key": cell.by.header if cell.by else "X: y",
        "proxy:ticket": f"Authorization: Bearer {pass_of('ticket', number)}",
    }.get(cell.row, f"Authorization: Bearer {pass_of('pass', number)}")
    headers = [*UPGRADE] if cell.row.endswith("websocket") else []
    if cell.by is not None:
        headers.append(shown)
    return await services.ask("GET", f"/proxy/{thing_id('session', cell.named)}/web/", tuple(headers))


def fault(cell: Cell, reply: Reply) -> str | None:
    """What is other than it should be, in one line."""
    letter = expected(cell.row, cell.role, cell.relation)
    found = _found(cell, letter, reply)
    wanted = meaning(cell.row, letter)
    if found == wanted:
        return None
    return f"{cell.row}: {cell.role}, {cell.relation}: {found} instead of {wanted}: {reply.body[:160]!r}"


def _found(cell: Cell, letter: str, reply: Reply) -> str:
    if cell.row == "check_and_transit_status" and reply.status == 200:
        return _of_batch(json.loads(reply.body))
    if letter in "sh" and reply.status == 200:
        told = ASKS[cell.row].told(cell).encode() in reply.body
        return LETTERS["s" if told else "h"]
    return str(reply.status)


def _of_batch(answer: dict[str, Any]) -> str:
    from domain.errors import BY_CODE

    (outcome,) = answer["outcomes"]
    error = outcome.get("error")
    code = error.get("code") if isinstance(error, dict) else error
    return "200" if code is None else str(BY_CODE[code].http_status)


def meaning(row: str, letter: str) -> str:
    if letter != "o":
        return LETTERS[letter]
    return str(_PROXY_OK.get(row) or ASKS.get(row, Ask()).ok)


# -- the page ------------------------------------------------------------------------------------------------------------
_HEAD: Final = """# Who gets which answer

Generated by `python -m tests.gate.matrix`; do not edit. Every cell is asked of a running installation over HTTP by
`tests/gate/test_matrix.py`; what is expected is written by hand in `tests/gate/roles.py`, from [roles.md](roles.md), and not read from the
actions' own rules.

Five answers for each role: for a thing of {relations}. Lists answer 200
and tell of the thing (`+`) or not (`-`). Where a question names nobody and nothing, it is the same five times. A row `action:variant`
is the same action asked in another way; `proxy:` rows are requests to a service, which a pass opens and nothing else.

| asked | {roles} |
|---|{lines}|
"""


def page() -> str:
    relations = ", ".join(RELATIONS[:-1]).replace("own,", "one's own, of the", 1) + f", and for a {RELATIONS[-1]} one"
    text = _HEAD.format(relations=relations, roles=" | ".join(ROLES), lines="|".join("---" for _ in ROLES))
    for row in sorted(EXPECTED):
        answers = (" ".join(_short(row, expected(row, role, relation)) for relation in RELATIONS) for role in ROLES)
        text += f"| {row} | " + " | ".join(answers) + " |\n"
    total = len(EXPECTED) * len(ROLES) * len(RELATIONS)
    return f"{text}\n{len(EXPECTED)} rows, {total} cells.\n"


def _short(row: str, letter: str) -> str:
    return meaning(row, letter).replace(" not told", "-").replace(" told", "+")


def main(words: list[str]) -> int:
    if words[:1] == ["--check"]:
        if Path(words[1]).read_text() == page():
            return 0
        print(f"{words[1]} is not up to date: python -m tests.gate.matrix > {words[1]}", file=sys.stderr)
        return 1
    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
