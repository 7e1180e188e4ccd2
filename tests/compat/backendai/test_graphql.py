"""GraphQL over real actions and a real database: shapes, permission, limits. The client itself asks in `test_lists`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from actions.base import Action
from agent.client import AgentClient
from domain.principal import Principal
from manager.compat.backendai.gql import execute
from manager.herald import Herald
from manager.metrics import Metrics
from manager.world import World
from repositories.database import Database
from tests.rest.conftest import ENDED, HOST, PENDING, RUNNING, SECRET, populate
from tests.rest.host import MemoryHost

LIST = """query($limit:Int!, $offset:Int!, $status: String, $access_key: String, $filter: String, $order: String) {
  compute_session_list(limit:$limit, offset:$offset, status:$status, access_key:$access_key, filter:$filter, order:$order) {
    items { name access_key id group_name main_kernel_id image type status status_info status_changed result }
    total_count } }"""
PAGE = {"limit": 20, "offset": 0}
ALL = {**PAGE, "status": "PENDING,RUNNING,TERMINATED"}
Ask = Callable[..., Awaitable[dict[str, Any]]]


@dataclass
class Somebody:
    """Asks for actions as one principal."""

    world: World
    by: Principal

    async def run(self, action: Action[Any, Any]) -> Any:
        return await self.world.processor.run(action, by=self.by)


@pytest.fixture
async def ask(database: Database) -> AsyncIterator[Ask]:
    await populate(database)
    herald = Herald(database.dsn)
    await herald.start()
    world = World.build(database, herald, cast(AgentClient, MemoryHost()), observe=Metrics().observe)

    async def answer(who: str, query: str, **variables: Any) -> dict[str, Any]:
        by = await world.authenticate(f"KEY-{who}.{SECRET}")
        assert by is not None
        body = {"query": query, "variables": variables}
        return await execute(Somebody(world, by), body, now=datetime.now(UTC), proxy_url="http://proxy")

    yield answer
    await herald.close()


async def test_ps_shows_ones_own(ask: Ask) -> None:
    told = (await ask("alice", LIST, **PAGE, status="PENDING,RUNNING"))["data"]["compute_session_list"]
    assert told["total_count"] == 2
    row = next(one for one in told["items"] if one["id"] == str(RUNNING))
    assert row["name"] == "train"
    assert row["status"] == "RUNNING"
    assert row["type"] == "INTERACTIVE"
    assert row["group_name"] == "default"
    assert row["access_key"] == "KEY-alice"
    assert row["result"] == "UNDEFINED"
    assert row["status_info"] == ""
    assert datetime.fromisoformat(row["status_changed"]).tzinfo is not None
    nothing = (await ask("mallory", LIST, **ALL))["data"]["compute_session_list"]
    assert nothing == {"items": [], "total_count": 0}


async def test_administrators_see_everybodys_and_one_keypairs(ask: Ask) -> None:
    everybodys = (await ask("root", LIST, **ALL))["data"]["compute_session_list"]
    assert {one["id"] for one in everybodys["items"]} == {str(RUNNING), str(PENDING), str(ENDED)}
    of_alice = (await ask("root", LIST, **ALL, access_key="KEY-alice"))["data"]["compute_session_list"]
    assert of_alice["total_count"] == 3
    refused = await ask("mallory", LIST, **ALL, access_key="KEY-alice")
    assert refused["data"]["compute_session_list"] is None
    assert refused["errors"][0]["path"] == ["compute_session_list"]


async def test_pages_filters_and_orders(ask: Ask) -> None:
    async def names(**asked: Any) -> tuple[list[str], int]:
        told = (await ask("alice", LIST, **{**ALL, **asked}))["data"]["compute_session_list"]
        return [one["name"] for one in told["items"]], told["total_count"]

    assert await names(order="name") == (["over", "train", "waits"], 3)
    assert await names(order="-name", limit=1, offset=1) == (["train"], 3)
    assert await names(order="name", offset=7) == ([], 3)
    assert await names(filter='name == "train"') == (["train"], 1)
    assert await names(filter='name ilike "%A%" & status != "PENDING"') == (["train"], 1)
    assert await names(status=None, order="name") == (["train", "waits"], 2)
    for wrong in ({"filter": "name ="}, {"order": "nothing"}, {"limit": 101}, {"offset": -1}, {"status": "nonsense"}):
        assert "errors" in await ask("alice", LIST, **{**ALL, **wrong}), wrong


INFO = """query($id: UUID!) { compute_session(id: $id) { name id main_kernel_id image tag created_at terminated_at status
    status_info status_data occupying_slots idle_checks containers { id cluster_role cluster_idx cluster_hostname
    session_id image registry status status_info status_data status_changed agent container_id resource_opts
    occupied_slots preopen_ports live_stat last_stat id } dependencies { name id } abusing_reports group_id user_email } }"""


async def test_info_shows_a_session_with_its_containers(ask: Ask) -> None:
    answer = await ask("alice", INFO, id=str(RUNNING))
    assert "errors" not in answer
    told = answer["data"]["compute_session"]
    assert json.loads(told["occupying_slots"]) == {"cpu": "1.5", "mem": str(512 * 2**20)}
    assert json.loads(told["idle_checks"])["session_lifetime"]["remaining"] is None
    assert told["user_email"] == "alice@example.org"
    assert told["dependencies"] == []
    (container,) = told["containers"]
    assert container["id"] == told["main_kernel_id"]
    assert container["agent"] == HOST
    assert container["cluster_hostname"] == "main1"
    assert container["status"] == "RUNNING"
    assert json.loads(container["occupied_slots"])["mem"] == str(512 * 2**20)


async def test_what_is_not_yours_is_not_there(ask: Ask) -> None:
    for who, session in (("mallory", RUNNING), ("alice", "11111111-0000-7000-8000-0000000000ff")):
        assert (await ask(who, INFO, id=str(session))) == {"data": {"compute_session": None}}
    assert (await ask("root", INFO, id=str(RUNNING)))["data"]["compute_session"]["name"] == "train"


async def test_no_secret_is_told(ask: Ask) -> None:
    own = await ask("alice", "query {  keypair {    user_id access_key secret_key is_active is_admin  }}")
    assert own["data"]["keypair"] == {
        "user_id": "alice@example.org",
        "access_key": "KEY-alice",
        "secret_key": None,
        "is_active": True,
        "is_admin": False,
    }
    query = "query($l:Int!,$o:Int!){keypair_list(limit:$l,offset:$o){items{access_key secret_key concurrency_used} total_count}}"
    told = (await ask("root", query, l=20, o=0))["data"]["keypair_list"]
    assert told["total_count"] == 4
    assert {one["secret_key"] for one in told["items"]} == {None}
    assert {one["access_key"]: one["concurrency_used"] for one in told["items"]}["KEY-alice"] == 2
    mine = (await ask("mallory", query, l=20, o=0))["data"]["keypair_list"]
    assert [one["access_key"] for one in mine["items"]] == ["KEY-mallory"]


ADMIN = {
    "agent_list": "{agent_list(limit:20,offset:0,status:\"ALIVE\"){items{id status architecture scaling_group region "
    "first_contact cpu_cur_pct mem_cur_bytes available_slots occupied_slots} total_count}}",
    "agent": '{agent(agent_id:"host-1"){id status hardware_metadata live_stat local_config cpu_cur_pct}}',
    "domains": "{domains{name description is_active created_at total_resource_slots allowed_vfolder_hosts "
    "allowed_docker_registries integration_id}}",
    "keypair_resource_policies": "{keypair_resource_policies{name created_at total_resource_slots "
    "max_concurrent_sessions max_vfolder_count max_vfolder_size idle_timeout max_containers_per_session}}",
}  # fmt: skip


@pytest.mark.parametrize("field", ADMIN)
async def test_what_is_for_administrators(ask: Ask, field: str) -> None:
    answer = await ask("root", ADMIN[field])
    assert "errors" not in answer, answer
    assert answer["data"][field] is not None
    refused = await ask("alice", ADMIN[field])
    assert refused["data"][field] is None
    assert refused["errors"][0]["extensions"]["code"] == "permission_denied"


@pytest.mark.parametrize("who", ["alice", "root"])
async def test_what_everybody_may_list(ask: Ask, who: str) -> None:
    answer = await ask(
        who,
        "{images(is_operation:false){name registry architecture tag digest size_bytes aliases} "
        "groups{id name is_active created_at integration_id} groups_by_name(name:\"default\"){name} "
        "scaling_groups{name description is_active is_public created_at driver scheduler use_host_network wsproxy_addr "
        "wsproxy_api_token} user_list(limit:20,offset:0){items{uuid username role email full_name groups{id name} "
        "main_access_key} total_count} user{email role} vfolder_own_list(limit:20,offset:0){items{name host} total_count}}",
    )  # fmt: skip
    assert "errors" not in answer, answer
    data = answer["data"]
    assert (data["images"][0]["name"], data["images"][0]["tag"]) == ("moorage/python", "3.11")
    assert data["images"][0]["aliases"] == ["python"]
    assert [group["name"] for group in data["groups"]] == ["default"]
    assert data["scaling_groups"][0]["wsproxy_addr"] == "http://proxy"
    assert data["user_list"]["total_count"] == (4 if who == "root" else 1)
    assert data["user_list"]["items"][0]["groups"][0]["name"] == "default"
    assert data["user"]["email"] == f"{who}@example.org"
    assert data["vfolder_own_list"] == {"items": [], "total_count": 0}


DEEP = "{user{groups" + "{name groups" * 10 + "{id}" + "}" * 10 + "}}"
MANY = "{" + " ".join(f"a{n}:user{{email}}" for n in range(20)) + "}"
WIDE = "{compute_session_list(limit:100,offset:0){items{" + " ".join(f"a{n}:name" for n in range(400)) + "}}}"
BOMB = (
    "query{...a} fragment a on Queries{...b ...b ...b} fragment b on Queries{...c ...c ...c}"
    " fragment c on Queries{...d ...d ...d} fragment d on Queries{user{email} keypair{user_id} images{name}}"
)
LOOKUPS = (
    "{compute_session_list(limit:100,offset:0){items{" + " ".join(f"a{n}:abusing_reports" for n in range(7)) + "}}}"
)
SAME = "{user{" + "email " * 900 + "}}"
SPREAD = "{user{" + "...f " * 300 + "}} fragment f on User{email}"
LOOP = "query{...a} fragment a on Queries{user{email} ...b} fragment b on Queries{...a}"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("query { nonsense { x } }", "Cannot query field 'nonsense' on type 'Queries'."),
        ("query {", "Syntax Error"),
        ("", "Syntax Error"),
        ("{user{email}} # " + "x" * 40_000, "at most 32 KiB"),
        ("{" + "a " * 5000 + "}", "tokens"),
        ("{a" * 700 + "}" * 700, "nested too deeply"),
        ("{user{email}} fragment a on User{" + "groups{" * 400 + "id" + "}" * 401, "nested too deeply"),
        (DEEP, "at most 8 levels"),
        (MANY, "at most 8 things"),
        (WIDE, "fields in its answer"),
        (LOOKUPS, "fields in its answer"),
        (SAME, "'email' is asked for 900 times"),
        (SPREAD, "'...' is asked for 300 times"),
        (BOMB, "at most 8 things"),
        (LOOP, "contains itself"),
        ("{__schema{types{name}}}", "schema is not told"),
        ("query{...a} fragment a on Queries{__type(name:\"User\"){name}}", "schema is not told"),
        ('mutation { delete_keypair(access_key: "x") { ok msg } }', "moorage admin"),
        ("query a{user{email}} query b{user{email}}", "one operation"),
        ("subscription { user { email } }", "only reads"),
        ("{compute_session_list(limit:1){total_count}}", "offset"),
    ],
)  # fmt: skip
async def test_what_is_too_large_or_makes_no_sense(query: str, said: str) -> None:
    """Without a database: nothing of it is looked up."""
    answer = await execute(cast(Any, Nobody()), {"query": query}, now=datetime.now(UTC), proxy_url="")
    assert answer["data"] is None
    assert said in answer["errors"][0]["message"], answer


@pytest.mark.parametrize("body", [{}, {"query": 3}, {"query": "{user{email}}", "variables": [1]}])
async def test_a_body_that_is_none(body: dict[str, Any]) -> None:
    answer = await execute(cast(Any, Nobody()), body, now=datetime.now(UTC), proxy_url="")
    assert "Send the query as text" in answer["errors"][0]["message"]


async def test_what_nobody_expected_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = await execute(cast(Any, Nobody()), {"query": "{images{name}}"}, now=datetime.now(UTC), proxy_url="")
    assert answer["errors"][0]["message"] == "Internal server error."
    assert "the engine room" not in json.dumps(answer)


class Nobody:
    """Nothing may be asked for."""

    by = None

    async def run(self, action: Any) -> Any:
        raise AssertionError("the engine room")


async def test_an_error_of_the_engine_room_is_not_told_whatever_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Nobody):
        async def run(self, action: Any) -> Any:
            raise ValueError("the engine room")

    answer = await execute(cast(Any, Broken()), {"query": "{images{name}}"}, now=datetime.now(UTC), proxy_url="")
    assert answer["errors"][0]["message"] == "Internal server error."


async def test_a_list_without_pages_is_told_as_long_as_its_answer_is_no_load(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.compat.backendai.gql_lists.MOST_COST", 8)
    assert "errors" not in await ask("root", "{keypairs{access_key user_id}}")
    for query in (
        "{keypairs{access_key user_id is_active}}",
        "{keypairs{...k}} fragment k on KeyPair{access_key user_id is_active}",
        "{a:keypairs{access_key user_id} b:keypairs{access_key}}",
    ):
        answer = await ask("root", query)
        assert "pages" in answer["errors"][0]["message"], query


async def test_whole_scripts_are_nothing_to_search_in(ask: Ask) -> None:
    for column in ("startup_command", "bootstrap_script"):
        answer = await ask("alice", LIST, **{**ALL, "filter": f'{column} like "%a%"'})
        assert "is no column" in answer["errors"][0]["message"]
