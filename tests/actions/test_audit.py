"""Reading the audit, taking it away and proving it; and hosts that are believed no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest

from actions import (
    ExportAuditAction,
    GetSessionInfoAction,
    ListAuditAction,
    RenameSessionAction,
    RevokeAgentAction,
    SearchSessionsAction,
    VerifyAuditAction,
)
from domain.errors import AgentNotFound, InvalidRange, InvalidRequest, PermissionDenied, SessionNotFound
from manager.rest.json import dumps
from repositories.audit import chain_audit
from repositories.database import Database
from repositories.record import AuditRecord, write_audit
from tests.scenario import (
    ALICE,
    HOST,
    ID,
    MALLORY,
    NOW,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_session,
    scenarios,
    stage,
)

ROW = AuditRecord(
    at=NOW,
    user_id=ALICE.user_id,
    access_key=ALICE.access_key,
    owner_access_key=None,
    action="rename_session",
    target=str(ID),
    outcome="ok",
    request_id="r",
)
ROWS = (
    ROW,
    replace(ROW, user_id=MALLORY.user_id, access_key=MALLORY.access_key, outcome="session_not_found", repeats=7),
    replace(
        ROW,
        user_id=ROOT.user_id,
        access_key=ROOT.access_key,
        owner_access_key=ALICE.access_key,
        action="destroy_session",
    ),
    replace(ROW, user_id=None, access_key="agent:host-1", action="report_facts", at=NOW + timedelta(hours=1)),
)


async def put_rows(connection: Any) -> None:
    for row in ROWS:
        await write_audit(connection, row)
    await chain_audit(connection)
    # what the scenario itself checks is what it has written
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE audit SET outcome = outcome")
    await connection.execute("SET session_replication_role = DEFAULT")


WRITTEN = Given(put=put_rows)
ALL = tuple(row.outcome for row in ROWS)
DENIED = TestScenario(do=ListAuditAction(), error=PermissionDenied, then_audit="permission_denied")
NO_STATUS = NotApplicable("the audit is of no session")


def seqs(*expected: int) -> Any:
    return lambda a: tuple(item.seq for item in a.items) == expected


def asking(expected: Any, **asked: Any) -> TestScenario:
    return TestScenario(
        given=(WRITTEN,), do=ListAuditAction(**asked), by=WATCHER, answer=expected, then_audit=(*ALL, "ok")
    )


@scenarios(
    ListAuditAction,
    success=asking(lambda a: [item.user for item in a.items] == [None, "root@example.org", "mallory@example.org", "alice@example.org"]),
    stranger=DENIED,
    wrong_status=NO_STATUS,
    not_found=asking(seqs(), who="nobody@example.org"),
    bad_input=TestScenario(do=ListAuditAction(cursor="x"), by=ROOT, error=InvalidRequest, then_audit=None),
    more={
        "by_address": asking(seqs(2), who="mallory@example.org"),
        "by_key": asking(seqs(1), who=ALICE.access_key),
        "by_host": asking(seqs(4), who="agent:host-1"),
        "on_whose_behalf": asking(lambda a: seqs(3)(a) and a.items[0].owner == "alice@example.org", owner="alice@example.org"),
        "by_key_of_the_owner": asking(seqs(3), owner=ALICE.access_key),
        "by_action": asking(seqs(3), of_action="destroy_session"),
        "by_target_and_outcome": asking(lambda a: a.items[0].repeats == 7, of_target=str(ID), outcome="session_not_found"),
        "by_time": asking(seqs(4), since=NOW + timedelta(minutes=1)),
        "until_a_time": asking(seqs(3, 2, 1), until=NOW + timedelta(minutes=1)),
        "a_page": asking(lambda a: seqs(4, 3)(a) and a.next_cursor == "3", limit=2),
        "the_next_page": asking(lambda a: seqs(2, 1)(a) and a.next_cursor is None, limit=3, cursor="3"),
        "a_time_without_a_zone": TestScenario(
            do=ListAuditAction(since=datetime(2026, 3, 1)), by=ROOT, error=InvalidRange, then_audit=None  # noqa: DTZ001
        ),
    },
)  # fmt: skip
async def test_list_audit(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ExportAuditAction,
    success=TestScenario(
        given=(WRITTEN,),
        do=ExportAuditAction(),
        by=ROOT,
        answer=lambda a: a.head.seq == 4 and len(a.head.chain) == 32,
        then_audit=(*ALL, "ok"),
    ),
    stranger=replace(DENIED, do=ExportAuditAction()),
    wrong_status=NO_STATUS,
    not_found=TestScenario(do=ExportAuditAction(), by=ROOT, answer=lambda a: a.head.seq == 0),
    bad_input=TestScenario(do=ExportAuditAction(who=""), by=ROOT, error=InvalidRequest, then_audit=None),
)
async def test_export_audit(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_an_export_holds_all_rows_up_to_its_head(database: Database) -> None:
    processor = await stage(database, WRITTEN)
    export = await processor.run(ExportAuditAction(), by=ROOT)
    pages = [page async for page in export.pages]
    lines = [orjson.loads(dumps(row)) for page in pages for row in page]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["chain"] == export.head.chain.hex()


HEAD = "ab" * 32


@scenarios(
    VerifyAuditAction,
    success=TestScenario(
        given=(WRITTEN,),
        do=VerifyAuditAction(),
        by=WATCHER,
        answer=lambda a: (a.whole, a.rows, a.keyed, a.head_checked) == (True, 4, False, False),
        then_audit=(*ALL, "ok"),
    ),
    stranger=replace(DENIED, do=VerifyAuditAction()),
    wrong_status=NO_STATUS,
    not_found=TestScenario(
        given=(WRITTEN,),
        do=VerifyAuditAction(head_seq=9, head=HEAD),
        by=ROOT,
        answer=lambda a: (a.whole, a.broken_at, a.head_checked) == (False, 5, True),
        then_audit=(*ALL, "ok"),
    ),
    bad_input=TestScenario(do=VerifyAuditAction(head=HEAD), by=ROOT, error=InvalidRequest, then_audit=None),
    more={
        "a_head_of_another_chain": TestScenario(
            given=(WRITTEN,),
            do=VerifyAuditAction(head_seq=2, head=HEAD),
            by=ROOT,
            answer=lambda a: (a.whole, a.broken_at) == (False, 2),
            then_audit=(*ALL, "ok"),
        ),
    },
)
async def test_verify_audit(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_reads_of_what_is_anothers_are_on_record_and_ones_own_are_not(database: Database) -> None:
    processor = await stage(database, a_session())
    await processor.run(GetSessionInfoAction(session_name=str(ID)), by=ALICE)
    await processor.run(SearchSessionsAction(), by=ALICE)
    await processor.run(GetSessionInfoAction(session_name=str(ID)), by=ROOT)
    await processor.run(SearchSessionsAction(all=True), by=WATCHER)
    await processor.run(SearchSessionsAction(), by=WATCHER)
    for _ in range(3):  # the same again within a minute is counted
        with pytest.raises(SessionNotFound):
            await processor.run(RenameSessionAction(session_name=str(ID), new_name="x"), by=MALLORY)
    async with database.reader() as connection:
        found = await connection.fetch("SELECT access_key, owner_access_key, action FROM audit ORDER BY id")
    assert [tuple(row) for row in found] == [
        (ROOT.access_key, ALICE.access_key, "get_session_info"),
        (WATCHER.access_key, None, "search_sessions"),
        (MALLORY.access_key, None, "rename_session"),
    ]


@scenarios(
    RevokeAgentAction,
    success=TestScenario(
        do=RevokeAgentAction(agent=HOST, reason="sold"),
        by=ROOT,
        answer=lambda a: a.agent.revoked_at == NOW + timedelta(seconds=1),
        then_rows=(f"agents {HOST}: lease_until 2026-03-02T12:00:00+00:00 -> 2026-03-01T12:00:01+00:00",),
    ),
    stranger=TestScenario(do=RevokeAgentAction(agent=HOST), error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=TestScenario(
        given=(a_session(),), do=RevokeAgentAction(agent=HOST), by=ROOT,
        answer=lambda a: a.agent.kernels == 1,
        then_rows=(f"agents {HOST}: lease_until 2026-03-02T12:00:00+00:00 -> 2026-03-01T12:00:01+00:00",),
    ),
    not_found=TestScenario(do=RevokeAgentAction(agent="host-9"), by=ROOT, error=AgentNotFound, then_audit="agent_not_found"),
    bad_input=TestScenario(do=RevokeAgentAction(agent=HOST, reason="x" * 501), by=ROOT, error=InvalidRequest, then_audit=None),
)  # fmt: skip
async def test_revoke_agent(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
