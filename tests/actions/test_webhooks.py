"""Webhooks as their owners see them: a secret that is shown once, a callback that needs one, and a log."""

from __future__ import annotations

from typing import Any, Final

from actions import CreateWebhookSecretAction, ListDeliveriesAction
from domain.errors import InvalidRequest, PermissionDenied, SessionNotFound
from repositories.database import Database
from tests.scenario import (
    ALICE,
    ID,
    MALLORY,
    NOW,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    a_row,
    a_session,
    new_id,
    scenarios,
    stage,
)

URL: Final = "https://hooks.example.org/m"


def a_delivery(number: int = 1, **columns: Any) -> Given:
    row = {
        "id": new_id(500 + number),
        "session_id": ID,
        "user_id": ALICE.user_id,
        "event_seq": number,
        "type": "session.running",
        "url": URL,
        "body": "{}",
        "next_try_at": NOW,
        "created_at": NOW,
    }
    return a_row("webhook_deliveries", **{**row, **columns})


@scenarios(
    CreateWebhookSecretAction,
    success=TestScenario(
        do=CreateWebhookSecretAction(),
        answer=lambda a: a.secret.startswith("mwh_") and len(a.secret) > 40,
        then_rows=(f"+webhook_secrets {ALICE.user_id}",),
    ),
    stranger=TestScenario(
        do=CreateWebhookSecretAction(), by=WATCHER, error=PermissionDenied, then_audit="permission_denied"
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=NotApplicable("it is the asker's own"),
    bad_input=NotApplicable("it takes no fields"),
)
async def test_create_webhook_secret(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_a_secret_is_stored_sealed_and_in_no_answer_that_is_kept(database: Database) -> None:
    processor = await stage(database)
    first = await processor.run(CreateWebhookSecretAction(), by=ALICE, key="k1")
    again = await processor.run(CreateWebhookSecretAction(), by=ALICE, key="k1")
    assert first.secret
    assert again.secret is None
    async with database.reader() as connection:
        sealed = await connection.fetchval("SELECT sealed FROM webhook_secrets WHERE user_id = $1", ALICE.user_id)
        kept = await connection.fetchval("SELECT answer::text FROM idempotency_keys")
    assert sealed == f"webhook {ALICE.user_id} {first.secret}".encode()
    assert first.secret not in kept


look = ListDeliveriesAction(session_name=str(ID))


@scenarios(
    ListDeliveriesAction,
    success=TestScenario(
        given=(a_session(), a_delivery(1), a_delivery(2, status="failed", finished_at=NOW, error="no", tries=12)),
        do=look,
        answer=lambda a: (
            [(d.status, d.tries, d.error) for d in a.items] == [("failed", 12, "no"), ("queued", 0, None)]
            and a.next_cursor is None
        ),
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_session(),), do=look, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
    ),
    wrong_status=NotApplicable("the log is there in every status"),
    not_found=TestScenario(do=look, error=SessionNotFound, then_audit="session_not_found"),
    bad_input=TestScenario(
        given=(a_session(),),
        do=ListDeliveriesAction(session_name=str(ID), cursor="x"),
        error=InvalidRequest,
        then_audit=None,
    ),
    more={
        "page_by_page": TestScenario(
            given=(a_session(), a_delivery(1), a_delivery(2), a_delivery(3)),
            do=ListDeliveriesAction(session_name=str(ID), limit=2, cursor="3"),
            answer=lambda a: [d.id for d in a.items] == [new_id(502), new_id(501)] and a.next_cursor == "1",
            then_audit=None,
        ),
    },
)
async def test_list_deliveries(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
