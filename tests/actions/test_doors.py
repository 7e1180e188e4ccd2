"""Every action has scenarios, a route, a verb of the command and a call of the SDK; and none of the system's is missing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click
import moorage.sync
import pytest
from moorage.cli import cli

from actions import ACTIONS
from actions.doors import DOORS
from manager.rest.routes import NOT_ADDRESSED, ROUTES
from tests.scenario import COVERED

for module in Path(__file__).parent.glob("test_*.py"):
    if module != Path(__file__):
        import_module(f"tests.actions.{module.stem}")

#: What a session service is asked for, by name.
SESSION_SERVICE: Final = (
    "create_from_params",
    "create_from_template",
    "create_cluster",
    "modify_session",
    "rename_session",
    "restart_session",
    "destroy_session",
    "execute_session",
    "complete",
    "interrupt",
    "upload_files",
    "download_file",
    "download_files",
    "list_files",
    "get_session_info",
    "get_status_history",
    "get_container_logs",
    "get_dependency_graph",
    "get_abusing_report",
    "match_sessions",
    "start_service",
    "shutdown_service",
    "get_direct_access_info",
    "commit_session",
    "convert_session_to_image",
    "get_commit_status",
    "check_and_transit_status",
)
#: Those of it that are not there yet; empty when it is whole.
STILL_TO_COME: Final[frozenset[str]] = frozenset()


def test_all_27_actions_of_a_session_service_are_there() -> None:
    assert len(set(SESSION_SERVICE)) == 27
    assert set(SESSION_SERVICE) - set(ACTIONS) == STILL_TO_COME


def test_the_table_of_doors_names_every_action_and_no_other() -> None:
    assert sorted(DOORS) == sorted(ACTIONS)


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_an_action_has_scenarios_a_route_a_verb_and_a_call(name: str) -> None:
    assert name in COVERED, "scenarios"
    assert any(route.action.action_name == name for route in ROUTES) or name in NOT_ADDRESSED, "a route"
    verb, call = DOORS[name]
    assert command(verb) is not None, f"there is no 'moorage {verb}'"
    assert callable(sdk_call(call)), f"there is no {call} in the SDK"


def command(verb: str) -> click.Command | None:
    """`word word --option`: the command, with that option."""
    words = verb.split()
    found: click.Command | None = cli
    for word in (word for word in words if not word.startswith("-")):
        assert isinstance(found, click.Group), f"'{word}' is below what has nothing below it"
        found = found.get_command(click.Context(found), word)
        if found is None:
            return None
    options = {option for parameter in found.params for option in parameter.opts} if found else set()
    return found if all(word in options for word in words if word.startswith("-")) else None


def sdk_call(path: str) -> Any:
    """From a client; a module and a class name what other calls give."""
    names = path.split(".")
    if len(names) > 1 and names[1][:1].isupper():
        owner: Any = getattr(import_module(f"moorage.sync.{names[0]}"), names[1])
        rest = names[2:]
        if rest[0] == "files":  # an attribute of every one of them
            owner, rest = import_module("moorage.sync.files").Files, rest[1:]
    else:
        owner, rest = moorage.sync.Client("http://127.0.0.1:1", "key", "secret"), names
    for name in rest:
        owner = getattr(owner, name, None)
    return owner


def test_a_verb_or_call_that_is_not_there_is_noticed() -> None:
    assert command("nosuch") is None
    assert command("create --nosuch") is None
    assert sdk_call("sessions.nosuch") is None
