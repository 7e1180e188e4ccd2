"""What the gRPC front is made of: the reader of one field, ids, and the budget of a user."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actions.lifecycle import DestroySessionAction
from actions.templates import CreateFromTemplateAction, GetTemplateAction
from domain.errors import SessionNotFound, Unauthenticated
from domain.ids import uuid7
from manager.compat.grpc import health, watch
from manager.compat.grpc.budget import MOST_CALLS, Budget, OverBudget, Share
from manager.compat.grpc.methods import METHODS
from manager.compat.grpc.sessions import Sessions, meant, shown
from manager.compat.grpc.wire import Malformed, flag, text, text_field
from manager.config import ConfigError, ManagerConfig


def test_a_field_is_found_wherever_it_stands() -> None:
    before = b"\x0a\x03abc" + b"\x10\x96\x01" + b"\x1d\0\0\0\0" + b"\x19\0\0\0\0\0\0\0\0"
    assert text_field(before + text(4, "is it") + b"\x2a\x01x", 4) == "is it"
    assert text_field(before, 1) == "abc"
    assert text_field(before, 4) is None
    assert text_field(b"", 1) is None
    assert text_field(text(1, "ä" * 200), 1) == "ä" * 200
    assert text_field(text(1, "first") + text(1, "second"), 1) == "first"
    assert (flag(1, True), flag(1, False)) == (b"\x08\x01", b"")


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"\xff" * 20,
        b"\x00\x01",  # field 0
        b"\x0b",  # a group
        b"\x0a\x05abc",  # longer than it is
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x01",  # a number where text belongs
        b"\x0a\x01\xff",  # no UTF-8
        b"\x0a\x81\x20" + b"x" * 4097,
        b"\x10\x01" * 2000 + b"\x0a\x01a",  # hidden
        b"\x1d\0",
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(Malformed):
        text_field(message, 1)


def test_ids_look_like_version_4_and_lead_back() -> None:
    for _ in range(20):
        made = uuid7()
        assert uuid.UUID(shown(made)).version == 4
        assert uuid.UUID(shown(made)).variant == uuid.RFC_4122
        assert meant(shown(made)) == made
    for wrong in ("", None, "x", "7f3e4d2c", str(uuid7()), "../../etc"):
        with pytest.raises(SessionNotFound):
            meant(wrong)


def test_there_are_28_methods() -> None:
    assert len(METHODS) == 28
    assert [method.name for method in METHODS.values() if method.streams] == ["Train"]
    assert METHODS["/cuvis_ai.v1.CuvisAIService/RestoreTrainRun"].session_field == 4


async def test_a_message_waits_for_room_in_its_turn() -> None:
    share = Share(100)
    await share.reserve(60)
    second = asyncio.create_task(share.reserve(50))
    third = asyncio.create_task(share.reserve(10))
    await asyncio.sleep(0)
    assert not third.done()  # it is not served before the second
    share.release(60)
    await asyncio.gather(second, third)
    assert share.used == 60
    share.take(40)
    with pytest.raises(OverBudget):
        share.take(1)


async def test_who_gives_up_waiting_holds_nothing_and_lets_others_go_on() -> None:
    share = Share(100)
    await share.reserve(60)
    with pytest.raises(OverBudget):
        await share.reserve(50, seconds=0)
    gone, small = asyncio.create_task(share.reserve(50)), asyncio.create_task(share.reserve(30))
    await asyncio.sleep(0)
    gone.cancel()
    await small
    assert share.used == 90
    share.release(90)
    assert share.free == 100


async def test_shares_are_forgotten_and_calls_are_counted() -> None:
    budget = Budget(each=10, largest=20)
    with budget.share("a") as one, budget.share("a") as same, budget.share("b") as other:
        assert one is same is not other
        assert one.total == 20
        one.calls = MOST_CALLS
        with pytest.raises(OverBudget), budget.share("a"):
            pass
        one.calls = 2
    with budget.share("a") as anew:
        assert anew is not one


@pytest.mark.parametrize("wrong", [{"grpc_users": "x"}, {"grpc_users": "70000=A"}, {"grpc_message_mib": 0}])
def test_a_wrong_configuration_says_so(wrong: dict[str, object], tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="grpc_"):
        ManagerConfig.load(tmp_path, **wrong)  # type: ignore[arg-type]


def test_ports_of_users_are_read(tmp_path: object) -> None:
    config = ManagerConfig.load(tmp_path, grpc_users="50051=MO1, 50052=MO2")  # type: ignore[arg-type]
    assert config.grpc_user_ports() == {50051: "MO1", 50052: "MO2"}


def test_without_the_front_none_of_it_is_in_memory() -> None:
    lines = "import sys, manager.daemon, manager.rest.app\nprint([m for m in sys.modules if 'grpc' in m])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class _Context:
    """Of a call, as the health service uses it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self.written.append(message)

    async def abort(self, code: object, details: str) -> None:
        raise RuntimeError(details)


async def test_a_silent_client_does_not_keep_others_from_asking_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PLACE_SECONDS", 0.0)
    monkeypatch.setattr(health, "_reading", asyncio.Semaphore(1))
    check = health.health_handler("/grpc.health.v1.Health/Check", asyncio.Event()).stream_stream

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    silent = asyncio.create_task(check(silence(), _Context()))
    await asyncio.sleep(0)
    context = _Context()
    await check(silence(), context)
    assert context.written == [b"\x08\x01"]
    silent.cancel()
    await asyncio.gather(silent, return_exceptions=True)


async def test_calls_are_still_watched_when_asking_about_one_has_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    answers = iter([RuntimeError("a broken pipe"), Unauthenticated("no key any more")])

    async def ask() -> None:
        raise next(answers)

    seen = watch.Watch()
    with pytest.raises(Unauthenticated):
        async with seen.over(ask):
            await asyncio.Event().wait()
    assert "it cannot be told" in caplog.text


async def test_what_is_made_for_a_client_that_has_vanished_is_given_up() -> None:
    made, began, given_up = uuid7(), asyncio.Event(), []

    async def run(action: object, **_: object) -> object:
        if isinstance(action, GetTemplateAction):
            serves = {"port": 1, "command": ["serve"]}
            return SimpleNamespace(template=SimpleNamespace(id=uuid7(), version=1, session={"serves": serves}))
        if isinstance(action, CreateFromTemplateAction):
            began.set()
            await asyncio.sleep(0)
            return SimpleNamespace(session_data=SimpleNamespace(id=made))
        assert isinstance(action, DestroySessionAction)
        given_up.append(action.session_name)
        return None

    herald = SimpleNamespace(subscribe=lambda *_: None)
    world: Any = SimpleNamespace(processor=SimpleNamespace(run=run), herald=herald)
    creating = asyncio.create_task(Sessions(world, template="x").create(cast(Any, None), "r", None))
    await began.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert given_up == [str(made)]
