"""`TestScenario`: one row of a table of what happens when somebody does something.

Each one checks the answer or the error, every row of the database, what agents were asked, and the audit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

import pytest

from actions import ACTIONS, Action
from actions.administration import hash_secret
from domain.errors import MoorageError
from domain.ids import AccessKey, SessionId
from domain.principal import Principal, Role
from domain.session import FINAL, Status
from manager.passwords import Passwords
from manager.processor import Observer, Processor, SessionMemory
from manager.world import Identities, SessionService, validated
from repositories.database import Connection, Database
from tests.agent.fake import FakeAgent

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PROJECT: Final = UUID("00000000-0000-7000-8000-000000000001")
HOST: Final = "host-1"


def person(number: int, name: str, role: Role = Role.USER) -> Principal:
    return Principal(
        user_id=UUID(int=number),
        access_key=AccessKey(f"KEY-{name}"),
        domain="default",
        role=role,
        projects=("default",),
    )


ALICE: Final = person(1, "alice")
MALLORY: Final = person(2, "mallory")
ROOT: Final = person(3, "root", Role.SUPERADMIN)
WATCHER: Final = person(4, "watcher", Role.MONITOR)
PEOPLE: Final = (ALICE, MALLORY, ROOT, WATCHER)

ID: Final = SessionId(UUID("11111111-0000-7000-8000-000000000001"))
OTHER_ID: Final = SessionId(UUID("11111111-0000-7000-8000-000000000002"))
NOBODYS_ID: Final = SessionId(UUID("99999999-0000-7000-8000-000000000009"))
RUN_ID: Final = UUID("22222222-0000-7000-8000-000000000001")
IMAGE: Final = "moorage/python:3.11"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A row, or some, to be there before: `await put(connection)`."""

    put: Callable[[Connection], Awaitable[None]]


def a_session(
    status: Status = Status.RUNNING,
    *,
    id: SessionId = ID,
    name: str = "train",
    owner: Principal = ALICE,
    **columns: Any,
) -> Given:
    """A session with one kernel that is as far as its status says: on a host, holding slots, observed."""

    async def put(connection: Connection) -> None:
        kernel_id = kernel_of(id)
        ended = NOW if status in FINAL else None
        placed = status not in (Status.PENDING, Status.CANCELLED)
        row = {
            "id": id,
            "name": name,
            "user_id": owner.user_id,
            "access_key": owner.access_key,
            "domain": "default",
            "project_id": PROJECT,
            "session_type": "interactive",
            "cluster_mode": "single-node",
            "image": IMAGE,
            "architecture": "x86_64",
            "status": str(status),
            "requested_slots": {"cpu": 1000, "mem": 512},
            "created_at": NOW,
            "status_changed_at": NOW,
            "started_at": NOW if status in (Status.RUNNING, Status.RUNNING_DEGRADED) else None,
            "ended_at": ended,
            "main_kernel_id": kernel_id,
            **columns,
        }
        await insert(connection, "sessions", row)
        await insert(connection, "status_history", {"session_id": id, "version": 1, "target": "PENDING", "at": NOW})
        observed = {Status.RUNNING: "RUNNING", Status.PREPARING: "PREPARING", Status.PULLING: "PULLING"}
        gone = status in FINAL
        await insert(
            connection,
            "kernels",
            {
                "id": kernel_id,
                "session_id": id,
                "attempt": columns.get("attempt", 1),
                "slots": {"cpu": 1000, "mem": 512},
                "agent_id": HOST if placed else None,
                "want": ("GONE" if gone or status is Status.TERMINATING else "RUN") if placed else "NONE",
                "generation": int(placed),
                "observed": "GONE" if placed and gone else observed.get(status, "RUNNING" if placed else None),
                "seen_generation": int(placed),
                "created_at": NOW,
            },
        )
        if placed and not gone:
            held = (("cpu", 1000), ("mem", 512))
            rows = ({"kernel_id": kernel_id, "agent_id": HOST, "name": slot, "amount": amount} for slot, amount in held)
            await insert(connection, "allocations", *rows)

    return Given(put=put)


def a_run(session_id: SessionId = ID, *, run_id: UUID = RUN_ID, **columns: Any) -> Given:
    """An execution of that session."""
    row = {
        "run_id": run_id,
        "session_id": session_id,
        "kernel_id": kernel_of(session_id),
        "agent_id": HOST,
        "user_id": ALICE.user_id,
        "request_hash": b"",
        "mode": "query",
        "started_at": NOW,
    }
    return a_row("executions", **{**row, **columns})


APP: Final = UUID("33333333-0000-7000-8000-000000000001")
CALL: Final = UUID("44444444-0000-7000-8000-000000000001")


def an_app(*, owner: Principal = ALICE, version: int = 1, scope: Mapping[str, Any] | None = None, **said: Any) -> Given:
    """An app of a class that is in its image, `blur`."""

    async def put(connection: Connection) -> None:
        row = {"id": APP, "name": "blur", "version": version, "created_by": owner.user_id}
        await insert(connection, "apps", {**row, **(scope or {"user_id": owner.user_id})})
        made = {"image": IMAGE, "entry": "app:App", "path": "/opt/app", "idle_timeout": 60.0, **said}
        row = {"app_id": APP, "version": version, "definition": made, "by_access_key": owner.access_key}
        await insert(connection, "app_versions", row)

    return Given(put=put)


def a_worker(
    status: Status = Status.RUNNING, *, ready: bool = True, app: Mapping[str, Any] | None = None, **columns: Any
) -> Given:
    """A worker session of the app `blur`, which is loaded, and not called."""
    session = a_session(status, **{"session_type": "worker", "idle_timeout_seconds": 60.0, **columns})

    async def put(connection: Connection) -> None:
        await session.put(connection)
        made = {"id": str(APP), "name": "blur", "version": 1, "image": IMAGE, "entry": "app:App", "path": "/opt/app"}
        row: dict[str, Any] = {
            "session_id": columns.get("id", ID),
            "app_id": APP,
            "app_version": 1,
            "app": {**made, "concurrency": 1, "functions": [], **(app or {})},
        }
        if ready:
            row |= {"ready_attempt": 1, "ready_at": NOW, "idle_until_at": NOW + timedelta(seconds=60)}
        await insert(connection, "workers", row)

    return Given(put=put)


def a_call(session_id: SessionId = ID, *, run: bool = True, **columns: Any) -> Given:
    """A call of that session, delivered, and not over."""
    row = {
        "id": CALL,
        "session_id": session_id,
        "user_id": ALICE.user_id,
        "request_hash": b"",
        "function": "run",
        "input": "1",
        "input_bytes": 1,
        "created_at": NOW,
        "sent_at": NOW if run else None,
        **columns,
    }

    async def put(connection: Connection) -> None:
        await insert(connection, "calls", row)
        if run:
            await a_run(session_id, run_id=row["id"], mode="call").put(connection)

    return Given(put=put)


def a_row(table: str, **columns: Any) -> Given:
    async def put(connection: Connection) -> None:
        await insert(connection, table, columns)

    return Given(put=put)


def kernel_of(session_id: SessionId) -> UUID:
    return UUID(int=session_id.int + 0x1000)


async def insert(connection: Connection, table: str, *rows: Mapping[str, Any]) -> None:
    """Rows of the same columns, by one statement."""
    width = len(rows[0])
    marks = (", ".join(f"${at * width + n}" for n in range(1, width + 1)) for at in range(len(rows)))
    values = ", ".join(f"({each})" for each in marks)
    given = [value for row in rows for value in row.values()]
    await connection.execute(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES {values}", *given)


@dataclass(frozen=True, kw_only=True)
class TestScenario:
    """Given rows, somebody does an action; then this answer or error, changes of rows, agent calls, audit."""

    __test__ = False  # not a test class, whatever its name says

    do: Action[Any, Any]
    given: tuple[Given, ...] = ()
    by: Principal = ALICE
    key: str | None = None
    #: what the fake agent is to do, before the action
    agent: Callable[[FakeAgent], None] = lambda _: None
    answer: Callable[[Any], bool] = lambda _: True
    error: type[MoorageError] | None = None
    #: exactly these differences between before and after, as `changes` writes them
    then_rows: tuple[str, ...] = ()
    #: the names of the calls that agents got
    then_agent: tuple[str, ...] = ()
    #: None: nothing is on record; else the outcome, or those of a batch
    then_audit: str | tuple[str, ...] | None = "ok"

    async def play(self, database: Database) -> None:
        fake = FakeAgent()
        self.agent(fake)
        processor = await stage(database, *self.given, fake=fake)
        async with database.reader() as connection:
            before = await rows(connection)
        # as doors do: the action's fields are checked before it is run
        if self.error is None:
            answer = await processor.run(validated(self.do), by=self.by, key=self.key)
            assert answer.success
            assert self.answer(answer), f"the answer is not as expected: {str(answer)[:2000]}"
        else:
            with pytest.raises(self.error) as caught:
                await processor.run(validated(self.do), by=self.by, key=self.key)
            assert type(caught.value) is self.error, f"{caught.value.code} is not {self.error.code}"
            assert caught.value.message.endswith((".", ";")) or len(caught.value.message) > 10
        async with database.reader() as connection:
            after = await rows(connection)
            audited = tuple(row["outcome"] for row in await connection.fetch("SELECT outcome FROM audit ORDER BY id"))
        assert changes(before, after) == tuple(sorted(self.then_rows))
        assert tuple(call[0] for call in fake.calls) == self.then_agent
        expected = () if self.then_audit is None else self.then_audit
        assert audited == ((expected,) if isinstance(expected, str) else expected)


class Outbox:
    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[SessionId, ...]]] = []

    def announce(self, topic: str, *session_ids: SessionId) -> None:
        self.said.append((topic, session_ids))

    def subscribe(self, _topic: str, _callback: object) -> None: ...


def new_id(number: int) -> UUID:
    """The id that the processor on the stage makes as its first (0), second (1), ..."""
    return UUID(int=0xABC000 + number)


async def stage(
    database: Database,
    *given: Given,
    fake: FakeAgent | None = None,
    outbox: Outbox | None = None,
    observe: Observer = lambda *_: None,
    memory: SessionMemory | None = None,
) -> Processor:
    """The world, with what is given in it, and a processor to act on it."""
    outbox = outbox or Outbox()
    async with database.transaction() as connection:
        await people_and_a_host(connection)
        for one in given:
            await one.put(connection)
    service = SessionService(database, outbox, fake or FakeAgent())  # type: ignore[arg-type]  # it only announces here
    service.passwords = Passwords(database, memory_kib=8, passes=1, lanes=1)
    ids = map(new_id, itertools.count())
    service.processor = Processor(
        database,
        Identities(database, outbox),  # type: ignore[arg-type]
        outbox,
        service,
        observe=observe,
        now=lambda: NOW + timedelta(seconds=1),
        new_id=lambda: next(ids),
        seal=lambda secret, about: f"{about} {secret}".encode(),
        memory=memory,
    )
    return service.processor


async def people_and_a_host(connection: Connection) -> None:
    """Four people, one image, one host with 8 CPUs and 8 GiB."""
    names = [(who, who.access_key.removeprefix("KEY-")) for who in PEOPLE]
    users = (
        {
            "id": who.user_id,
            "email": f"{name}@example.org",
            "username": name,
            "domain": "default",
            "role": str(who.role),
            "created_at": NOW,
        }
        for who, name in names
    )
    await insert(connection, "users", *users)
    members = ({"project_id": PROJECT, "user_id": who.user_id} for who in PEOPLE)
    await insert(connection, "project_members", *members)
    keypairs = (
        {
            "access_key": who.access_key,
            "secret_hash": hash_secret(f"secret-{name}"),
            "user_id": who.user_id,
            "created_at": NOW,
        }
        for who, name in names
    )
    await insert(connection, "keypairs", *keypairs)
    await insert(connection, "images", {"name": IMAGE, "architecture": "x86_64", "created_at": NOW})
    aliases = ({"alias": alias, "image": IMAGE} for alias in ("python", "python:3.9"))
    await insert(connection, "image_aliases", *aliases)
    agent = {
        "id": HOST,
        "fingerprint": "f0",
        "architecture": "x86_64",
        "seen_at": NOW,
        "lease_until": NOW + timedelta(days=1),
    }
    await insert(connection, "agents", {**agent, "created_at": NOW})
    sizes = (("cpu", 8000), ("mem", 8192))
    slots = ({"agent_id": HOST, "name": slot, "capacity": amount, "reported": amount} for slot, amount in sizes)
    await insert(connection, "resources", *slots)


# -- every row, before and after ---------------------------------------------------------------------------------------
Rows: TypeAlias = dict[str, dict[str, Any]]
#: How a row is called in a difference.
_NAMES: Final = {
    "sessions": "name",
    "kernels": "session_id",
    "users": "email",
    "keypairs": "access_key",
    "projects": "name",
    "images": "name",
    "image_aliases": "alias",
    "agents": "id",
    "executions": "mode",
    "tasks": "action",
    "tokens": "name",
    "ssh_keys": "name",
    "volumes": "name",
    "registries": "host",
    "session_templates": "name",
    "apps": "name",
    "calls": "function",
    "services": "name",
    "service_instances": "name",
    "service_tickets": "kind",
}
#: Written beside everything: the audit is checked by itself, and times say nothing.
_ASIDE: Final = {"audit", "events", "alembic_version", "idempotency_keys"}


#: By table, the columns of its primary key: read once.
_keys: dict[str, list[str]] = {}
_KEYS: Final = """
    SELECT c.relname AS name, array_agg(a.attname ORDER BY a.attname) AS key FROM pg_class c
    JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition GROUP BY 1
"""


async def rows(connection: Connection) -> Rows:
    """Every row of every table but audit, events and keys, by table and primary key."""
    if not _keys:
        _keys.update({row["name"]: row["key"] for row in await connection.fetch(_KEYS) if row["name"] not in _ASIDE})
    # one statement, not one for each of seventy tables
    each = " UNION ALL ".join(f"SELECT '{name}' AS name, to_jsonb(t) AS row FROM \"{name}\" t" for name in _keys)
    found: Rows = {}
    for name, row in await connection.fetch(each):
        found[f"{name} {' '.join(str(row[column]) for column in _keys[name])}"] = row
    return found


def changes(before: Rows, after: Rows) -> tuple[str, ...]:
    """What differs: `+table name`, `-table name`, `table name: column old -> new`; times and versions left out."""
    found = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        table = key.split(" ")[0]
        name = _name_of(table, key, new or old or {}, after)
        if old is None or new is None:
            found.append(f"{'+' if old is None else '-'}{table} {name}")
            continue
        found += [
            f"{table} {name}: {column} {_short(old[column])} -> {_short(new[column])}"
            for column in old
            if old[column] != new[column] and not column.endswith("_at") and column not in ("version", "activity")
        ]
    return tuple(sorted(found))


def _name_of(table: str, key: str, row: Mapping[str, Any], all_rows: Rows) -> str:
    if table == "status_history":
        session = all_rows.get(f"sessions {row['session_id']}", {})
        return f"{session.get('name')} {row['event'] or 'create'} {row['target']}"
    if table == "workers":
        return str(all_rows.get(f"sessions {row['session_id']}", {}).get("name"))
    if table in ("kernels", "allocations", "quota_uses"):
        session_id = row.get("session_id") or all_rows.get(f"kernels {row.get('kernel_id')}", {}).get("session_id")
        who = str(all_rows.get(f"sessions {session_id}", {}).get("name"))
        return who if table == "kernels" else f"{who} {row['name']} {row['amount']}"
    if table == "session_dependencies":
        ends = [all_rows.get(f"sessions {row[end]}", {}).get("name") for end in ("session_id", "depends_on_id")]
        return f"{ends[0]} <- {ends[1]}"
    if table in ("resources", "quotas"):
        return str(row["name"])
    if table == "usage":  # numbered by a sequence
        return f"{row['session_name']} {row['name']} {row['amount']}"
    if table in ("agent_tokens", "passwords", "sign_in_debts"):
        return "token" if table == "agent_tokens" else ""  # drawn by lot, a number, a hash
    return str(row[_NAMES[table]]) if table in _NAMES else key.partition(" ")[2]


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# -- tables ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NotApplicable:
    """Why an action can have no such scenario."""

    reason: str


def wrong(value: object) -> Any:
    """A value of a type that the field does not have: doors get such ones."""
    return value


#: What every action's table has to hold.
ASPECTS: Final = ("success", "stranger", "wrong_status", "not_found", "bad_input")
COVERED: dict[str, Mapping[str, TestScenario | NotApplicable]] = {}


def scenarios(
    action: type[Action[Any, Any]],
    /,
    *,
    more: Mapping[str, TestScenario] | None = None,
    **table: TestScenario | NotApplicable,
) -> pytest.MarkDecorator:
    """Parametrise over an action's table. The five aspects must be there; `more` holds further rows, named by sentences."""
    if missing := [aspect for aspect in ASPECTS if aspect not in table]:
        raise TypeError(f"the scenarios of {action.action_name} lack {', '.join(missing)}")
    COVERED[action.action_name] = table
    played = {name: row for name, row in table.items() if isinstance(row, TestScenario)} | dict(more or {})
    return pytest.mark.parametrize("scenario", [pytest.param(row, id=name) for name, row in played.items()])


def uncovered() -> list[str]:
    return sorted(set(ACTIONS) - set(COVERED))
