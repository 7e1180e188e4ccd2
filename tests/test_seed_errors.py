"""The error scenarios that every session service knows, each with the class and code that say it here, and the test that
provokes it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

from domain import errors
from domain.errors import MoorageError
from tests.scenario import TestScenario

_LIFECYCLE = "tests.actions.test_lifecycle:test_create_from_params"
_EXECUTE = "tests.actions.test_execution:test_execute"
_UPLOAD = "tests.actions.test_files:test_upload"
_SERVICE = "tests.actions.test_services:test_start"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What may go wrong, in the users' words."""

    title: str
    kinds: tuple[type[MoorageError], ...]
    codes: tuple[str, ...]
    tests: tuple[str, ...]  #: `module:test[scenario]` for each of the codes


def known(title: str, *cases: tuple[type[MoorageError], str, str]) -> Known:
    kinds, codes, tests = zip(*cases, strict=True)
    return Known(title=title, kinds=kinds, codes=codes, tests=tests)


KNOWN = (
    # creating a session
    known(
        "creation: resource unavailable",
        (
            errors.ResourceUnavailable,
            "resource_unavailable",
            "tests.actions.test_lifecycle:test_a_creation_that_was_waited_for",
        ),
        (errors.QuotaExceeded, "quota_exceeded", f"{_LIFECYCLE}[a_full_quota_refuses]"),
        (errors.ResourcesImpossible, "resources_impossible", f"{_LIFECYCLE}[what_no_host_could_hold_is_refused]"),
    ),
    known("creation: image not found", (errors.ImageNotFound, "image_not_found", f"{_LIFECYCLE}[not_found]")),
    known(
        "creation: permission denied",
        (errors.PermissionDenied, "permission_denied", f"{_LIFECYCLE}[a_monitor_creates_nothing]"),
    ),
    known(
        "creation: invalid configuration",
        (errors.InvalidConfiguration, "invalid_configuration", f"{_LIFECYCLE}[batch_without_a_command]"),
        (errors.InvalidResources, "invalid_resources", f"{_LIFECYCLE}[no_memory]"),
        (errors.InvalidRequest, "invalid_request", f"{_LIFECYCLE}[a_negative_lifetime]"),
    ),
    known(
        "creation: agent unavailable",
        (errors.NoAgents, "no_agents", f"{_LIFECYCLE}[no_host_of_the_images_architecture]"),
    ),
    # running code
    known(
        "execution: session not found",
        (errors.SessionNotFound, "session_not_found", f"{_EXECUTE}[not_found]"),
        (errors.SessionEnded, "session_ended", f"{_EXECUTE}[an_ended_session_says_so]"),
    ),
    known("execution: session not ready", (errors.SessionNotReady, "session_not_ready", f"{_EXECUTE}[wrong_status]")),
    known(
        "execution: timeout",
        (errors.ExecutionTimeout, "execution_timeout", f"{_EXECUTE}[a_timeout_is_named_and_keeps_the_output]"),
    ),
    known(
        "execution: resource exhaustion",
        (errors.ResourceExhausted, "resource_exhausted", f"{_EXECUTE}[running_out_of_memory_is_named]"),
    ),
    known(
        "execution: permission denied",
        (errors.PermissionDenied, "permission_denied", f"{_EXECUTE}[a_monitor_runs_nothing]"),
    ),
    # files
    known(
        "files: not found",
        (errors.FileNotFound, "file_not_found", "tests.actions.test_files:test_download[not_found]"),
    ),
    known(
        "files: permission denied",
        (errors.FilePermissionDenied, "file_permission_denied", f"{_UPLOAD}[a_folder_that_is_not_the_users]"),
        (errors.PermissionDenied, "permission_denied", f"{_UPLOAD}[a_monitor_writes_nothing]"),
    ),
    known("files: quota exceeded", (errors.QuotaExceeded, "quota_exceeded", f"{_UPLOAD}[no_room_is_left]")),
    known(
        "files: transfer failed",
        (errors.TransferFailed, "transfer_failed", f"{_UPLOAD}[what_arrived_before_it_broke_is_counted]"),
    ),
    known(
        "files: invalid path",
        (errors.InvalidPath, "invalid_path", f"{_UPLOAD}[a_path_that_climbs_out_is_refused_before_any_is_written]"),
    ),
    # services
    known("services: port conflict", (errors.PortConflict, "port_conflict", f"{_SERVICE}[a_program_has_the_port]")),
    known(
        "services: service failed",
        (errors.ServiceEnded, "service_ended", f"{_SERVICE}[its_process_dies_at_once]"),
        (errors.ServiceSilent, "service_silent", f"{_SERVICE}[its_path_never_answers]"),
    ),
    known(
        "services: permission denied",
        (errors.PermissionDenied, "permission_denied", f"{_SERVICE}[a_monitor_starts_none]"),
    ),
    known("services: invalid configuration", (errors.ServiceUnknown, "service_unknown", f"{_SERVICE}[bad_input]")),
    known(
        "services: network issues",
        (
            errors.ServiceUnreachable,
            "service_unreachable",
            "tests.proxy.test_proxy:test_a_service_that_does_not_answer_is_a_502",
        ),
    ),
)
PROVOKED = [
    pytest.param(kind, test, id=f"{one.title} {kind.code}")
    for one in KNOWN
    for kind, test in zip(one.kinds, one.tests, strict=True)
]


def test_all_twenty_are_here() -> None:
    assert len({one.title for one in KNOWN}) == 20


@pytest.mark.parametrize("one", KNOWN, ids=lambda one: one.title)
def test_each_has_its_code(one: Known) -> None:
    assert tuple(kind.code for kind in one.kinds) == one.codes
    assert [code for code in one.codes if errors.BY_CODE[code].code != code] == []


@pytest.mark.parametrize(("kind", "test"), PROVOKED)
def test_each_is_provoked(kind: type[MoorageError], test: str) -> None:
    """By a scenario that ends in this very class, or whose answer names its code."""
    place, _, scenario = test.removesuffix("]").partition("[")
    module, _, function = place.partition(":")
    found = getattr(import_module(module), function)
    rows = _rows(found)
    if not scenario:
        assert any(kind in row for row in rows.values()) or _names(found, kind.code)
        return
    row = rows[scenario][0]
    assert isinstance(row, TestScenario)
    if row.error is None:
        assert _names(row.answer, kind.code)
    else:
        assert row.error is kind


def _names(function: Any, code: str) -> bool:
    return repr(code) in str(function.__code__.co_consts)


def _rows(function: Any) -> dict[str, tuple[Any, ...]]:
    """What a test is parametrised over, by id."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    found: dict[str, tuple[Any, ...]] = {}
    for number, row in enumerate(row for mark in marks for row in mark.args[1]):
        found[str(getattr(row, "id", None) or number)] = tuple(getattr(row, "values", row))
    return found
