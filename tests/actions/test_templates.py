"""Templates: kept in versions, seen by whom they are for, and turned into sessions."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

import pytest

from actions import (
    CreateFromTemplateAction,
    CreateTemplateAction,
    DeleteTemplateAction,
    GetTemplateAction,
    ListTemplatesAction,
    ModifyTemplateAction,
)
from actions.scopes import TemplateScope
from actions.template_document import fill, parse
from domain.errors import (
    AlreadyExists,
    InvalidName,
    InvalidRequest,
    InvalidTemplate,
    PermissionDenied,
    PreconditionFailed,
    ProjectNotFound,
    TemplateNotFound,
)
from repositories.database import Connection, Database
from tests.scenario import (
    ALICE,
    MALLORY,
    PROJECT,
    ROOT,
    WATCHER,
    Given,
    NotApplicable,
    TestScenario,
    insert,
    new_id,
    scenarios,
    stage,
    wrong,
)

TEXT: Final = """
# one that trains
description: Train a model
parameters:
  cpu: {type: integer, default: 2, minimum: 1, maximum: 4}
  rate: {type: number, description: the learning rate}
session:
  image: python
  resource_slots: {cpu: {$param: cpu}, mem: 512}
  environ: {RATE: {$param: rate}, MODE: fast}
"""
TEMPLATE_ID: Final = UUID("33333333-0000-7000-8000-000000000001")
SESSION: Final = {"image": "python", "resource_slots": {"cpu": 1, "mem": 512}}


def a_template(
    text: str | dict[str, Any] = TEXT, *, id: UUID = TEMPLATE_ID, name: str = "trainer", **scope: Any
) -> Given:
    document, source = parse(text)
    stored = document.model_dump(mode="json", exclude_unset=True)

    async def put(connection: Connection) -> None:
        whose = scope or {"user_id": ALICE.user_id}
        row = {"id": id, "name": name, "created_by": ALICE.user_id, "document": stored, **whose}
        await insert(connection, "session_templates", row)
        version = {"template_id": id, "version": 1, "document": stored, "source": source, "by_access_key": "K"}
        await insert(connection, "session_template_versions", version)

    return Given(put=put)


keep = CreateTemplateAction(name="trainer", document=TEXT)
KEPT: Final = (f"+session_template_versions {new_id(0)} 1", "+session_templates trainer")


@scenarios(
    CreateTemplateAction,
    success=TestScenario(
        do=keep,
        answer=lambda a: (
            (a.template.version, a.template.scope, a.template.of) == (1, "user", "alice@example.org")
            and a.template.source == TEXT
            and a.template.parameters["cpu"]["default"] == 2
        ),
        then_rows=KEPT,
    ),
    stranger=TestScenario(do=keep, by=WATCHER, error=PermissionDenied, then_audit="permission_denied"),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(
        do=CreateTemplateAction(name="x", document=TEXT, scope=TemplateScope.PROJECT, project="secret"),
        error=ProjectNotFound,
        then_audit="project_not_found",
    ),
    bad_input=TestScenario(
        do=CreateTemplateAction(name="x", document="session: {image: a, imag: b}"),
        error=InvalidTemplate,
        then_audit=None,
    ),
    more={
        "a_namesake_of_ones_own_blocks": TestScenario(
            given=(a_template(),), do=keep, error=AlreadyExists, then_audit=None
        ),
        "anothers_namesake_does_not": TestScenario(
            given=(a_template(user_id=MALLORY.user_id),), do=keep, then_rows=KEPT
        ),
        "a_project_has_templates_of_its_own": TestScenario(
            do=CreateTemplateAction(name="trainer", document=TEXT, scope=TemplateScope.PROJECT, project="default"),
            answer=lambda a: (a.template.scope, a.template.of) == ("project", "default"),
            then_rows=KEPT,
        ),
        "a_project_is_named_for_that_scope_only": TestScenario(
            do=CreateTemplateAction(name="trainer", document=TEXT, project="default"),
            error=InvalidRequest,
            then_audit=None,
        ),
        "a_domain_has_them_from_administrators": TestScenario(
            do=CreateTemplateAction(name="trainer", document=TEXT, scope=TemplateScope.DOMAIN), by=ROOT, then_rows=KEPT
        ),
        "nobody_else_speaks_for_a_domain": TestScenario(
            do=CreateTemplateAction(name="trainer", document=TEXT, scope=TemplateScope.DOMAIN),
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "a_name_that_is_none": TestScenario(
            do=CreateTemplateAction(name="a b", document=TEXT), error=InvalidName, then_audit=None
        ),
        "json_is_as_good_as_yaml": TestScenario(
            do=CreateTemplateAction(name="trainer", document={"session": SESSION}), then_rows=KEPT
        ),
    },
)
async def test_create_template(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    ListTemplatesAction,
    success=TestScenario(
        given=(a_template(), a_template(id=new_id(900), name="another", user_id=MALLORY.user_id)),
        do=ListTemplatesAction(),
        answer=lambda a: [template.name for template in a.items] == ["trainer"],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_template(),), do=ListTemplatesAction(), by=MALLORY, answer=lambda a: a.items == [], then_audit=None
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=NotApplicable("an empty list is an answer"),
    bad_input=NotApplicable("it takes no fields"),
    more={
        "members_see_a_projects": TestScenario(
            given=(a_template(project_id=PROJECT), a_template(id=new_id(900), name="wide", domain="default")),
            do=ListTemplatesAction(),
            by=MALLORY,
            answer=lambda a: [(t.name, t.scope) for t in a.items] == [("trainer", "project"), ("wide", "domain")],
            then_audit=None,
        ),
    },
)
async def test_list_templates(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


@scenarios(
    GetTemplateAction,
    success=TestScenario(
        given=(a_template(),),
        do=GetTemplateAction(template="trainer"),
        answer=lambda a: a.template.source == TEXT and [v.version for v in a.template.versions] == [1],
        then_audit=None,
    ),
    stranger=TestScenario(
        given=(a_template(),),
        do=GetTemplateAction(template=str(TEMPLATE_ID)),
        by=MALLORY,
        error=TemplateNotFound,
        then_audit="template_not_found",
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(
        given=(a_template(),),
        do=GetTemplateAction(template="trainer", version=7),
        error=TemplateNotFound,
        then_audit="template_not_found",
    ),
    bad_input=TestScenario(do=GetTemplateAction(template=""), error=InvalidRequest, then_audit=None),
    more={
        "ones_own_goes_before_the_domains": TestScenario(
            given=(a_template(id=new_id(900), domain="default"), a_template()),
            do=GetTemplateAction(template="trainer"),
            answer=lambda a: a.template.id == TEMPLATE_ID,
            then_audit=None,
        ),
    },
)
async def test_get_template(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


change = ModifyTemplateAction(template="trainer", document={"session": SESSION})


@scenarios(
    ModifyTemplateAction,
    success=TestScenario(
        given=(a_template({"session": {"image": "python"}}),),
        do=change,
        answer=lambda a: (a.template.version, a.template.session) == (2, SESSION),
        then_rows=(
            f"+session_template_versions {TEMPLATE_ID} 2",
            "session_templates trainer: document "
            + " -> ".join(json.dumps({"session": session}) for session in ({"image": "python"}, SESSION)),
        ),
    ),
    stranger=TestScenario(
        given=(a_template(project_id=PROJECT),),
        do=change,
        by=MALLORY,
        error=PermissionDenied,
        then_audit="permission_denied",
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(do=change, error=TemplateNotFound, then_audit="template_not_found"),
    bad_input=TestScenario(
        given=(a_template(),),
        do=ModifyTemplateAction(template="trainer", document="session: [1]"),
        error=InvalidTemplate,
        then_audit=None,
    ),
    more={
        "somebody_was_faster": TestScenario(
            given=(a_template(),),
            do=ModifyTemplateAction(template="trainer", name="best", version=7),
            error=PreconditionFailed,
            then_audit=None,
        ),
        "a_new_name_is_no_new_version": TestScenario(
            given=(a_template(),),
            do=ModifyTemplateAction(template="trainer", name="best", version=1),
            answer=lambda a: (a.template.name, a.template.version) == ("best", 1),
            then_rows=("session_templates best: name trainer -> best",),
        ),
        "a_namesake_blocks": TestScenario(
            given=(a_template(), a_template(id=new_id(900), name="best")),
            do=ModifyTemplateAction(template="trainer", name="best"),
            error=AlreadyExists,
            then_audit=None,
        ),
        "nothing_to_change_is_a_mistake": TestScenario(
            given=(a_template(),), do=ModifyTemplateAction(template="trainer"), error=InvalidRequest, then_audit=None
        ),
    },
)
async def test_modify_template(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


remove = DeleteTemplateAction(template="trainer")


@scenarios(
    DeleteTemplateAction,
    success=TestScenario(
        given=(a_template(),),
        do=remove,
        then_rows=(f"-session_template_versions {TEMPLATE_ID} 1", "-session_templates trainer"),
    ),
    stranger=TestScenario(
        given=(a_template(),), do=remove, by=MALLORY, error=TemplateNotFound, then_audit="template_not_found"
    ),
    wrong_status=NotApplicable("no session is concerned"),
    not_found=TestScenario(do=remove, error=TemplateNotFound, then_audit="template_not_found"),
    bad_input=TestScenario(do=DeleteTemplateAction(template=wrong(7)), error=InvalidRequest, then_audit=None),
    more={
        "a_domains_is_its_administrators": TestScenario(
            given=(a_template(domain="default"),), do=remove, error=PermissionDenied, then_audit="permission_denied"
        ),
    },
)
async def test_delete_template(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


def make(**fields: Any) -> CreateFromTemplateAction:
    return CreateFromTemplateAction(
        **{"template": "trainer", "parameters": {"rate": 0.5}, "overrides": {"name": "train"}, **fields}
    )


CREATED: Final = ("+kernels train", "+sessions train", "+status_history train create PENDING")


@scenarios(
    CreateFromTemplateAction,
    success=TestScenario(
        given=(a_template(),),
        do=make(),
        answer=lambda a: (
            a.session_data.environ == {"RATE": "0.5", "MODE": "fast"} and a.session_data.requested_slots["cpu"] == 2000
        ),
        then_rows=CREATED,
    ),
    stranger=TestScenario(
        given=(a_template(),), do=make(), by=MALLORY, error=TemplateNotFound, then_audit="template_not_found"
    ),
    wrong_status=NotApplicable("there is no session yet"),
    not_found=TestScenario(do=make(), error=TemplateNotFound, then_audit="template_not_found"),
    bad_input=TestScenario(given=(a_template(),), do=make(parameters={}), error=InvalidTemplate, then_audit=None),
    more={
        "text_is_read_as_the_parameters_type": TestScenario(
            given=(a_template(),),
            do=make(parameters={"rate": "0.25", "cpu": "4"}),
            answer=lambda a: a.session_data.environ["RATE"] == "0.25" and a.session_data.requested_slots["cpu"] == 4000,
            then_rows=CREATED,
        ),
        "a_value_out_of_bounds": TestScenario(
            given=(a_template(),), do=make(parameters={"rate": 1, "cpu": 5}), error=InvalidTemplate, then_audit=None
        ),
        "an_unknown_parameter": TestScenario(
            given=(a_template(),), do=make(parameters={"rate": 1, "x": 5}), error=InvalidTemplate, then_audit=None
        ),
        "every_field_may_be_overridden": TestScenario(
            given=(a_template(),),
            do=make(overrides={"name": "train", "environ": {"MODE": "slow"}, "priority": 50, "labels": {"a": "b"}}),
            answer=lambda a: (
                a.session_data.environ == {"RATE": "0.5", "MODE": "slow"}
                and (a.session_data.priority, a.session_data.labels) == (50, {"a": "b"})
            ),
            then_rows=CREATED,
        ),
        "an_override_that_is_no_field": TestScenario(
            given=(a_template(),), do=make(overrides={"nam": "train"}), error=InvalidTemplate, then_audit=None
        ),
        "a_template_may_describe_a_cluster": TestScenario(
            given=(a_template({"session": {**SESSION, "workers": 2, "worker": {"environ": {"A": "1"}}}}),),
            do=make(parameters={}),
            answer=lambda a: a.session_data.cluster_size == 3,
            then_rows=("+kernels train", *CREATED, "+kernels train"),
        ),
        "a_version_that_is_gone": TestScenario(
            given=(a_template(),), do=make(template_version=2), error=TemplateNotFound, then_audit="template_not_found"
        ),
        "system_sessions_stay_administrators": TestScenario(
            given=(a_template(),),
            do=make(overrides={"session_type": "system"}),
            error=PermissionDenied,
            then_audit="permission_denied",
        ),
        "an_administrator_creates_for_its_owner": TestScenario(
            given=(a_template(),),
            do=make(owner_access_key=ALICE.access_key),
            by=ROOT,
            answer=lambda a: a.session_data.access_key == ALICE.access_key,
            then_rows=CREATED,
        ),
    },
)
async def test_create_from_template(scenario: TestScenario, database: Database) -> None:
    await scenario.play(database)


async def test_an_earlier_version_can_still_be_used(database: Database) -> None:
    processor = await stage(database, a_template({"session": {**SESSION, "priority": 1}}))
    new = ModifyTemplateAction(template="trainer", document={"session": {**SESSION, "priority": 2}})
    await processor.run(new, by=ALICE)
    made = [
        await processor.run(CreateFromTemplateAction(template="trainer", template_version=version), by=ALICE)
        for version in (1, None)
    ]
    assert [answer.session_data.priority for answer in made] == [1, 2]


# -- documents -----------------------------------------------------------------------------------------------------------
BAD: Final = {
    "session: {image: a, imag: b}": "no field 'imag'",
    "session: {image: a}\nsesion: 1": "no field 'sesion'",
    "description: x": "lacks the field 'session'",
    "session: {image: a, image: b}": "given twice",
    "a: &x [1]\nsession: {image: *x}": "aliases",
    "- 1": "mapping",
    "session: {image: [": "no YAML",
    "session: {image: !!python/name:os.system x}": "no YAML",
    "session: {image: a, timeout: .inf}": "infinite",
    "session: {image: a, timeout: soon}": "session.timeout",
    "session: {image: a, resource_slots: {cpu: -1}}": "negative",
    "session: {image: a, access_key: b}": "no field 'access_key'",
    "session: {image: a, 1: b}": "not text",
    "format: 2\nsession: {image: a}": "format",
    "[" * 3000: "levels",
    "session: {image: a, environ: {X: {$param: y}}}": "no parameter 'y'",
    "session: {image: a, environ: {X: {$param: y, also: z}}}\nparameters: {y: {}}": "whole value",
    "session: {image: a, session_type: batch, startup_command: {$param: y}}\nparameters: {y: {}}": "a shell reads it",
    "session: {image: a, bootstrap_script: {$param: y}}\nparameters: {y: {}}": "a shell reads it",
    "session: {image: a}\nparameters: {y: {type: integer, default: true}}": "an integer",
    "session: {image: a}\nparameters: {y: {type: integer, default: 5, maximum: 4}}": "at most 4",
    "session: {image: a}\nparameters: {y: {default: c, choices: [a, b]}}": "one of 'a', 'b'",
    "session: {image: a}\nparameters: {a-b: {}}": "parameter's name",
    "session: {image: a}\nparameters: {a: {kind: integer}}": "no field 'parameters.a.kind'",
    "session: {image: a}\ndescription: " + 70000 * "x": "64 KiB",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_wrong_with_a_document_is_said(text: str) -> None:
    with pytest.raises(InvalidTemplate) as caught:
        parse(text)
    assert BAD[text] in caught.value.message


def test_parameters_stand_for_whole_values_of_their_type() -> None:
    document, _ = parse(
        "parameters: {n: {type: integer, default: 3}, on: {type: boolean, default: true}, s: {default: '$(reboot)'}}\n"
        "session: {image: a, priority: {$param: n}, bootstrap_required: {$param: on}, environ: {S: {$param: s}, B: {$param: on}}}"
    )
    made = fill(document, {"n": "7"}, {})
    assert (made.priority, made.bootstrap_required) == (7, True)
    assert made.environ == {"S": "$(reboot)", "B": "true"}
    for bad in ("7.5", "x", "", "nan"):
        with pytest.raises(InvalidTemplate):
            fill(document, {"n": bad}, {})


def test_dates_stay_text() -> None:
    document, _ = parse("session: {image: a, starts_at: 2031-01-02T03:04:05Z, tag: 2031-01-02}")
    made = fill(document, {}, {})
    assert made.tag == "2031-01-02"
    assert made.starts_at is not None
