"""What a hostile or careless caller tries, and what large installations hold: each is bounded, and told as what it is."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final, cast

import aiohttp
import asyncssh
import pytest
from aiohttp.test_utils import make_mocked_request

from domain.errors import InvalidRequest
from manager.compat.backendai import sshd, streams, tunnel
from manager.compat.backendai.ask import Ask
from manager.compat.backendai.pty import Terminal
from manager.compat.backendai.sessions import _tree
from repositories.signing import secret_about
from tests.agent.fake import FakeProcess
from tests.compat.backendai.fakes import SECRET, VAULT, Fronted, alice, fronted, mallory, root  # noqa: F401  # fixtures
from tests.compat.backendai.signer import Signer
from tests.rest.conftest import RUNNING

TUNNEL: Final = "/stream/session/train/tcpproxy"


# -- values that are none ------------------------------------------------------------------------------------------------
NONSENSE: Any = [
    ("GET", "/resource/usage/month?month=000001", None),
    ("GET", "/resource/usage/month?month=999912", None),
    ("GET", "/resource/usage/month?month=202613", None),
    ("GET", "/resource/usage/period?start_date=20260101&end_date=99991231&group_id=default", None),
    ("GET", "/resource/usage/period?start_date=00000101&end_date=20260101&group_id=default", None),
    ("POST", "/session", {"name": "made", "image": "python", "starts_at": "+999999999w"}),
    ("POST", "/session", {"name": "made", "image": "python", "starts_at": "0001-01-01T00:00:00+23:59"}),
    ("POST", "/folders", {"name": "data", "quota": "9" * 5000}),
    ("POST", "/folders", {"name": "data", "quota": True}),
    ("POST", "/folders", {"name": "data", "quota": {"a": 1}}),
]
SHARES: Any = ["all", "NaN", "Infinity", "1e999999", "0.5", "-1", True, [1], "9" * 5000]


@pytest.mark.usefixtures("fronted")
async def test_nonsense_is_no_failure_of_the_manager(alice: Signer, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    asks = [*NONSENSE]
    for shares in SHARES:
        config = {"resources": {"cuda.shares": shares}}
        asks.append(("POST", "/session", {"name": "made", "image": "python", "config": config}))
    for method, path, body in asks:
        answer = await alice.ask(method, path, body)
        assert (answer.status, answer.prob) == (400, "invalid-api-params"), (path, body, answer.body)
    assert not caplog.records


@pytest.mark.usefixtures("fronted")
async def test_an_app_that_is_a_very_long_number(alice: Signer) -> None:  # noqa: F811
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        await opened(alice, f"{TUNNEL}?app={'9' * 5000}")


# -- dependencies --------------------------------------------------------------------------------------------------------
def graph(layers: int, each: int) -> Any:
    """Every session waits for all of the layer before."""
    names = [[f"{layer}-{one}" for one in range(each)] for layer in range(layers)]
    edges = [
        SimpleNamespace(source=source, target=target)
        for below, above in pairwise(names)
        for target in above
        for source in below
    ]
    nodes = [
        SimpleNamespace(id=name, name=name, status="PENDING", ended_at=None, started_at=None)
        for layer in names
        for name in layer
    ]
    return SimpleNamespace(root=names[-1][0], nodes=nodes, edges=edges)


def test_a_tree_of_dependencies() -> None:
    told = _tree(graph(3, 2))
    assert [one["session_name"] for one in told["depends_on"]] == ["1-0", "1-1"]
    assert [len(one["depends_on"]) for one in told["depends_on"]] == [2, 2]


@pytest.mark.parametrize(("layers", "each"), [(40, 2), (250, 2), (500, 1), (5, 100)])
def test_one_that_would_be_told_in_millions_of_ways_is_not_told(layers: int, each: int) -> None:
    with pytest.raises(InvalidRequest, match="moorage graph"):
        _tree(graph(layers, each))


# -- ways in -------------------------------------------------------------------------------------------------------------
def opened(who: Signer, path: str) -> Any:
    headers = who.signed("GET", path, "application/octet-stream")
    del headers["Content-Type"]
    return who.http.ws_connect(who.url(path), headers=headers)


async def watcher(fronted: Fronted) -> Signer:  # noqa: F811
    """One who may look at everything, and get into nothing."""
    async with fronted.database.reader() as connection:
        await connection.execute(
            "UPDATE keypairs SET signing_sealed = $1, signing_since = now() WHERE access_key = 'KEY-watcher'",
            VAULT.seal(SECRET, secret_about("KEY-watcher")),
        )
    return fronted.as_("watcher")


async def asked(fronted: Fronted, who: str) -> Ask:  # noqa: F811
    by = await fronted.world.identities.of_access_key(f"KEY-{who}")
    assert by is not None
    request = make_mocked_request("GET", f"{TUNNEL}?app=sshd&owner_access_key=KEY-alice")
    (route,) = tunnel.ROUTES
    return Ask(fronted.door, request, "r-1", route, {"session": "train"}, by, cast(Any, None), cast(Any, None))


async def test_whoever_may_only_look_forwards_no_port(fronted: Fronted) -> None:  # noqa: F811
    dialled: list[int] = []

    async def open_tunnel(where: Any, port: int) -> Any:
        dialled.append(port)
        return None, None

    cast(Any, fronted.host).open_tunnel = open_tunnel
    for who in ("watcher", "alice"):
        ask = await asked(fronted, who)
        session = await sshd._session(ask)  # both see it
        inside = sshd._Inside(ask, session, cast(Any, None))
        if who == "watcher":
            with pytest.raises(asyncssh.ChannelOpenError):
                await inside.connection_requested("localhost", 8888, "", 0)
        else:
            await inside.connection_requested("localhost", 8888, "", 0)
    assert dialled == [8888]
    async with fronted.database.reader() as connection:
        found = await connection.fetch("SELECT access_key, outcome FROM audit WHERE action = 'open_port' ORDER BY at")
    assert [tuple(row) for row in found] == [("KEY-watcher", "permission_denied"), ("KEY-alice", "ok")]


async def test_nor_is_let_into_a_tunnel(fronted: Fronted, mallory: Signer) -> None:  # noqa: F811
    seer = await watcher(fronted)
    for who, path in (
        (seer, f"{TUNNEL}?app=8000&owner_access_key=KEY-alice"),
        (seer, "/stream/session/train/pty?owner_access_key=KEY-alice"),
        (mallory, f"{TUNNEL}?app=8000&owner_access_key=KEY-alice"),
        (mallory, f"{TUNNEL}?app=8000"),
        (mallory, f"{TUNNEL}?app=sshd"),
        (mallory, f"/stream/session/{RUNNING}/pty"),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError, match=r"40[34]"):
            await opened(who, path)


# -- what is sent unasked, and what stays behind ---------------------------------------------------------------------------
async def test_what_is_typed_ahead_is_bounded() -> None:
    typed = streams.Typed()
    for _ in range(5):
        typed.add("x" * 400_000)
    for _ in range(streams._MOST_TYPED + 5):
        typed.add("y")
    typed.end()
    found = []
    while (line := await typed.line()) is not None:
        found.append(line)
    assert sum(map(len, found)) <= streams._MOST_CHARACTERS
    assert len(found) == streams._MOST_TYPED
    typed.add("x" * 400_000)  # what was read makes room
    assert len(await typed.line() or "") == 400_000


async def test_a_shell_that_a_restart_opened_does_not_outlive_its_connection() -> None:
    terminal = Terminal(cast(Any, None), cast(Any, None))
    first, second = (FakeProcess(cast(Any, SimpleNamespace(process=None)), resumed=False) for _ in range(2))
    terminal._process = cast(Any, first)

    async def restarted() -> Any:
        return second

    terminal._restarting = asyncio.create_task(restarted())
    await terminal._restarting
    await terminal._leave()
    assert first.closed
    assert second.closed


# -- signatures ----------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("fronted")
@pytest.mark.parametrize("path", ["/session/train/files", "/session/train/download"])
async def test_a_signature_does_not_read_other_files_than_it_was_made_for(alice: Signer, path: str) -> None:  # noqa: F811
    """Which ones stands in the body, which is not signed: so it is good for one use."""
    headers = alice.signed("GET", path, "application/json")
    await alice.send("GET", path, headers, b'{"path": ".", "files": ["a.txt"]}')
    answer = await alice.send("GET", path, headers, b'{"path": "/etc", "files": ["/etc/passwd"]}')
    assert (answer.status, answer.prob) == (401, "auth-failed")
