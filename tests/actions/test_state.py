"""What happens when a session's store is asked from outside."""

from __future__ import annotations

from typing import Any

from actions import DeleteStateAction, GetStateAction, ListStateAction, SetStateAction
from domain.errors import InvalidRequest, SessionEnded, SessionNotFound, SessionNotReady, StateFull, StateKeyNotFound
from domain.session import Status
from repositories.database import Database
from tests.agent.fake import FakeAgent
from tests.scenario import ID, MALLORY, ROOT, NotApplicable, TestScenario, a_session, scenarios


def keeps(**values: Any) -> Any:
    def prepare(fake: FakeAgent) -> None:
        fake.kept.update(values)

    return prepare


def refused(action: Any) -> dict[str, TestScenario]:
    """What all of them refuse alike."""
    return {
        "stranger": TestScenario(
            given=(a_session(),), do=action, by=MALLORY, error=SessionNotFound, then_audit="session_not_found"
        ),
        "wrong_status": TestScenario(
            given=(a_session(Status.PULLING),), do=action, error=SessionNotReady, then_audit=None
        ),
        "not_found": TestScenario(do=action, error=SessionNotFound, then_audit="session_not_found"),
    }


look = ListStateAction(session_name="train")


@scenarios(
    ListStateAction,
    success=TestScenario(
        given=(a_session(),),
        agent=keeps(best=0.5, a=[1, 2]),
        do=look,
        answer=lambda a: [(one.key, one.bytes) for one in a.items] == [("a", 5), ("best", 3)],
        then_agent=("state",),
        then_audit=None,
    ),
    bad_input=NotApplicable("it has no fields"),
    **refused(look),
    more={
        "for_another_it_is_on_record": TestScenario(
            given=(a_session(),), do=ListStateAction(session_name=str(ID)), by=ROOT, then_agent=("state",)
        ),
    },
)
async def test_list_state(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


get = GetStateAction(session_name="train", key="best")


@scenarios(
    GetStateAction,
    success=TestScenario(
        given=(a_session(),),
        agent=keeps(best={"loss": None}),
        do=get,
        answer=lambda a: a.value == {"loss": None},
        then_agent=("state",),
        then_audit=None,
    ),
    bad_input=TestScenario(
        given=(a_session(),), do=GetStateAction(session_name="train", key=""), error=InvalidRequest, then_audit=None
    ),
    **refused(get),
    more={
        "nothing_is_kept_under_it": TestScenario(
            given=(a_session(),),
            do=get,
            error=StateKeyNotFound,
            then_agent=("state",),
            then_audit="state_key_not_found",
        ),
    },
)
async def test_get_state(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


put = SetStateAction(session_name="train", key="best", value=[1, None])


@scenarios(
    SetStateAction,
    success=TestScenario(
        given=(a_session(),), do=put, answer=lambda a: a.value == [1, None], then_agent=("state",), then_audit="ok"
    ),
    bad_input=TestScenario(
        given=(a_session(),),
        do=SetStateAction(session_name="train", key="x" * 129, value=1),
        error=InvalidRequest,
        then_audit=None,
    ),
    **refused(put),
    more={
        "too_much_at_once": TestScenario(
            given=(a_session(),),
            do=SetStateAction(session_name="train", key="x", value="y" * 70_000),
            error=StateFull,
            then_agent=("state",),
            then_audit=None,
        ),
        "of_one_that_has_ended": TestScenario(
            given=(a_session(Status.TERMINATED),),
            do=SetStateAction(session_name=str(ID), key="x", value=1),
            error=SessionEnded,
            then_audit=None,
        ),
    },
)
async def test_set_state(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


forget = DeleteStateAction(session_name="train", key="best")


@scenarios(
    DeleteStateAction,
    success=TestScenario(
        given=(a_session(),),
        agent=keeps(best=1),
        do=forget,
        answer=lambda a: a.deleted,
        then_agent=("state",),
        then_audit="ok",
    ),
    bad_input=TestScenario(
        given=(a_session(),), do=DeleteStateAction(session_name="train", key=""), error=InvalidRequest, then_audit=None
    ),
    **refused(forget),
    more={
        "of_what_is_not_there_nothing_happens": TestScenario(
            given=(a_session(),), do=forget, answer=lambda a: not a.deleted, then_agent=("state",), then_audit="ok"
        ),
    },
)
async def test_delete_state(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)
