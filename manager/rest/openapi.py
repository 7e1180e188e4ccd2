"""The OpenAPI 3.1 document, made of the rows, the docstrings and the types. `python -m manager.rest.openapi` prints it."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from dataclasses import MISSING, fields
from functools import cache
from http import HTTPStatus
from typing import Any, Final, get_type_hints

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from actions import ACTIONS, GetTaskAction, ReadEventsAction
from actions.administration import JoinToken
from actions.base import BatchAction, Effect, SessionAction
from actions.execution import ReadExecutionAction
from actions.files import FileList, FileManaged, FilesResult
from actions.gateway import SshAccess
from actions.people import WhoAmI
from actions.services import PortPass
from actions.watch import AbuseReport, WatchRules
from domain.errors import MoorageError, all_errors
from manager.processor import answer_type
from manager.rest.exchange import OWNER
from manager.rest.routes import NDJSON, ROUTES, SSE, Route

_REF: Final = "#/components/schemas/{model}"
_TIME: Final = {"type": "string", "format": "date-time"}
#: Answers that the door shapes itself; everything else is the action's answer, or the one field of it that is shown.
_FILE_STAT: Final = {
    "type": "object",
    "title": "FileStat",
    "description": "A file in a session.",
    "properties": {
        "name": {"type": "string"},
        "type": {"type": "string", "enum": ["file", "directory", "link", "fifo", "socket", "device"]},
        "size": {"type": "integer"},
        "mtime": {"anyOf": [_TIME, {"type": "null"}]},
        "mode": {"type": "string", "description": "Permission bits, octal.", "examples": ["0644"]},
        "owner": {"type": "integer"},
        "group": {"type": "integer"},
        "link_target": {"type": ["string", "null"]},
    },
    "required": ["name", "type", "size", "mtime", "mode", "owner", "group"],
}
_RECORD: Final = {
    "type": "object",
    "title": "Record",
    "description": "One record of an execution's output, in the order of `seq`.",
    "properties": {
        "seq": {"type": "integer"},
        "kind": {
            "type": "string",
            "enum": ["run", "stdout", "stderr", "result", "error", "input_request", "status", "gap", "done"],
        },
        "time": {"anyOf": [_TIME, {"type": "null"}]},
        "text": {"type": "string", "description": "Of stdout and stderr; what is no UTF-8 is replaced."},
        "base64": {"type": "string", "description": "Of stdout and stderr, to the byte, with `binary`."},
        "data": {"type": "object", "description": "Of every other kind."},
        "run_id": {"type": "string", "format": "uuid", "description": "Of kind run, the first line of a stream."},
    },
    "required": ["kind"],
}
_EVENT: Final = {
    "type": "object",
    "title": "Event",
    "description": "Something that has happened. `id` is also the SSE id, `type` the SSE event name.",
    "properties": {
        "id": {"type": "string", "examples": ["1.42"]},
        "type": {"type": "string", "examples": ["session.running"]},
        "session_id": {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]},
        "name": {"type": ["string", "null"]},
        "at": _TIME,
        "cause": {"type": "object"},
        "data": {"type": "object"},
    },
    "required": ["id", "type", "at"],
}
_PROBLEM: Final = {
    "type": "object",
    "title": "Problem",
    "description": "Every failure (RFC 9457). `code` is stable; more facts may stand beside it.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Of invalid_request: everything that is wrong, by field.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "additionalProperties": True,
}
#: What the paths' names and the handlers' own parameters are.
_PATH_NAMES: Final = {
    "app": "An app's name or id, with or without @VERSION.",
    "session": "A session's id, or its name among the caller's live sessions.",
    "run": "The id of an execution.",
    "path": "A path, relative to /home/work unless it begins with an encoded slash (%2F).",
    "image": "An image's name or alias; '/' and ':' are percent-encoded.",
    "user": "A user's e-mail address or id.",
}
_OWN_QUERY: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "binary": ({"type": "boolean"}, "stdout and stderr as base64, to the byte."),
    "follow": ({"type": "boolean"}, "Go on until the end, as it comes."),
    "mode": ({"type": "string", "pattern": "^0?[0-7]{3}$"}, "Permission bits, octal."),
    "format": ({"type": "string", "enum": ["json", "csv"]}, "json, or a table for spreadsheets."),
    "command": ({"type": "array", "items": {"type": "string"}}, "Once for each word; nothing: the user's shell."),
    "path": ({"type": "string"}, "The folder to unpack into; made when it is missing."),
    "overwrite": ({"type": "boolean"}, "Whether files that are there may be replaced; they are, when left out."),
    "kernel": ({"type": "string"}, "Of a cluster, the kernel that is meant: worker1. The main one when left out."),
    "dry_run": ({"type": "boolean"}, "Create nothing; the answer says what would be, as GET .../explain does."),
    "all": ({"type": "boolean"}, "Taken for compatibility; the list is whole in any case."),
}
#: Answers that are shown as they are, though a field of theirs is called like what others show alone.
#: Actions whose body is a file's bytes, or an archive's.
_UNPACKING: Final = frozenset({"unpack_archive", "unpack_volume_archive"})
_BODIES: Final = frozenset({"upload_files", "upload_volume_files", *_UNPACKING})
_WHOLE: Final = (SshAccess, WhoAmI, AbuseReport, WatchRules, PortPass)
_ANYWHERE: Final = ("internal", "database_unavailable", "too_many_requests", "unauthenticated")
_OF_BODY: Final = ("invalid_request", "invalid_json", "request_too_large", "unsupported_media_type")


@cache
def document() -> dict[str, Any]:
    schemas, definitions = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        address = route.path.replace("*}", "}")
        paths.setdefault(address, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Moorage",
            "version": "1",
            "description": "Sessions in containers on shared hosts. Memory is in MiB wherever a bare number stands.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in dict.fromkeys(_tag(route) for route in ROUTES)],
        "paths": {**paths, **_public_paths()},
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`ACCESS_KEY.SECRET_KEY`, or a token. Nothing else is accepted.",
                }
            },
            "schemas": _reachable(paths, definitions),
            "responses": {"Problem": _problem_response("A failure; `code` says which.")},
        },
    }


@cache
def document_bytes() -> tuple[bytes, str]:
    """As it is served, with its ETag."""
    body = orjson.dumps(document())
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def _reachable(paths: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schemas that somebody refers to; actions' own are written out as parameters and bodies."""
    found: dict[str, Any] = {}
    waiting = [orjson.dumps(paths).decode(), '"#/components/schemas/Problem"']
    while waiting:
        for name in re.findall(r'"#/components/schemas/(\w+)"', waiting.pop()):
            if name not in found:
                found[name] = definitions[name]
                waiting.append(orjson.dumps(definitions[name]).decode())
    return dict(sorted(found.items()))


# -- schemas -----------------------------------------------------------------------------------------------------------
class _Schemas(GenerateJsonSchema):
    """Defaults that JSON cannot hold are left out instead of warned about."""

    def emit_warning(self, kind: Any, detail: str) -> None: ...


@cache
def _schemas() -> tuple[dict[tuple[Any, str], dict[str, Any]], dict[str, Any]]:
    inputs: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = []
    for route in ROUTES:
        if route.action.action_name not in _BODIES:
            inputs.append((route.action, "validation", TypeAdapter(route.action)))
        shown = _shown(route)
        if shown is not None and not isinstance(shown, dict):
            inputs.append((shown, "serialization", TypeAdapter(shown)))
    unique = list({(key, mode): (key, mode, adapter) for key, mode, adapter in inputs}.values())
    found, tail = TypeAdapter.json_schemas(unique, ref_template=_REF, schema_generator=_Schemas)
    definitions = dict(tail.get("$defs", {}))
    tokens = definitions["TokenData"]["properties"]
    tokens["token"] = {**tokens.pop("secret_token"), "description": "Only in the answer that made it."}
    definitions["TransitOutcome"]["properties"]["events"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "The statuses that it went through, as types of events.",
    }
    definitions.update(
        {"FileStat": _FILE_STAT, "Record": _RECORD, "Event": _EVENT, "Problem": _PROBLEM, "RunPiece": _run_piece()}
    )
    return {(key, mode): schema for (key, mode), schema in found.items()}, {
        name: _tidy(schema) for name, schema in definitions.items()
    }


def _run_piece() -> dict[str, Any]:
    nullable_int = {"type": ["integer", "null"]}
    return {
        "type": "object",
        "title": "RunPiece",
        "description": "Records of one execution from a sequence number on.",
        "properties": {
            "run_id": {"type": "string", "format": "uuid"},
            "status": {"type": "string", "enum": ["queued", "running", "waiting_input", "done"]},
            "exit_code": nullable_int,
            "signal": nullable_int,
            "reason": {"type": ["string", "null"]},
            "started_at": _TIME,
            "finished_at": {"anyOf": [_TIME, {"type": "null"}]},
            "records": {"type": "array", "items": {"$ref": "#/components/schemas/Record"}},
            "next_seq": {"type": "integer", "description": "Read on from here."},
            "gap": {
                "description": "First and last sequence number of what is no longer kept.",
                "anyOf": [
                    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                    {"type": "null"},
                ],
            },
        },
        "required": ["run_id", "status", "records", "next_seq"],
    }


def _shown(route: Route) -> Any:
    """The type that a row answers with, or its schema where the door shapes it, or None for no JSON."""
    if "application/json" not in route.media or route.status == 204:
        return None
    answer = answer_type(route.action)
    if issubclass(route.action, BatchAction):  # its `run` answers for one target
        answer = get_type_hints(route.action.together, vars(sys.modules[route.action.__module__]))["return"]
    special: dict[Any, Any] = {
        FilesResult: _items({"$ref": "#/components/schemas/FileStat"}, paged=False),
        FileList: _items({"$ref": "#/components/schemas/FileStat"}),
        FileManaged: {
            "type": "object",
            "properties": {"file": {"anyOf": [{"$ref": "#/components/schemas/FileStat"}, {"type": "null"}]}},
        },
        JoinToken: {
            "type": "object",
            "properties": {"token": {"type": "string"}, "expires_at": _TIME},
            "required": ["token", "expires_at"],
        },
    }
    if route.action is ReadExecutionAction:
        return {"$ref": "#/components/schemas/RunPiece"}
    if route.method == "PUT" and route.action.action_name in _BODIES:
        return {"$ref": "#/components/schemas/FileStat"}
    if answer in special:
        return special[answer]
    hints = get_type_hints(answer)
    alone = {"session_data", "session_info", "user", "keypair", "token", "project", "image", "agent", "task", "volume"}
    alone |= {"status_history", "statistics", "graph", "ssh_key", "template", "domain"}
    if answer not in _WHOLE and (names := [name for name in hints if name in alone]):
        return hints[names[0]]
    return answer


def _items(schema: dict[str, Any], *, paged: bool = True) -> dict[str, Any]:
    properties: dict[str, Any] = {"items": {"type": "array", "items": schema}}
    if paged:
        properties["next_cursor"] = {"type": ["string", "null"]}
    return {"type": "object", "properties": properties, "required": ["items"]}


def _tidy(schema: Any) -> Any:
    """pydantic repeats each name as a title; a reader does not need that twice."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        tidied = {name: _tidy(value) for name, value in schema.items()}
        if isinstance(properties, dict):
            tidied["properties"] = {name: _without_title(_tidy(value)) for name, value in properties.items()}
        return tidied
    return [_tidy(item) for item in schema] if isinstance(schema, list) else schema


def _without_title(schema: Any) -> Any:
    return {name: value for name, value in schema.items() if name != "title"} if isinstance(schema, dict) else schema


# -- operations --------------------------------------------------------------------------------------------------------
def _operation(route: Route, schemas: dict[tuple[Any, str], dict[str, Any]]) -> dict[str, Any]:
    doc = inspect.cleandoc(route.action.__doc__ or "")
    summary, _, rest = doc.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [_tag(route)],
        "summary": " ".join(summary.split()),
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
        "x-action": route.action.action_name,
    }
    rules = route.action.rules
    notes = [rest.strip()] if rest.strip() else []
    if issubclass(route.action, SessionAction) and len(rules.when) < 11:
        notes.append("Allowed while the session is " + ", ".join(sorted(rules.when)) + ".")
    if route.public:
        operation["security"] = []
    if notes:
        operation["description"] = "\n\n".join(notes)
    if (body := _request_body(route, schemas)) is not None:
        operation["requestBody"] = body
    return operation


def _operation_id(route: Route) -> str:
    """The action's name; where an action has several addresses, the later ones say which."""
    same = [row for row in ROUTES if row.action is route.action]
    if len(same) == 1 or route is same[0]:
        return route.action.action_name
    return f"{route.action.action_name}_{route.segments[-1].strip('{}*') if route.method == 'GET' else route.method.lower()}"


#: Sections of the documentation, by the word that addresses begin with; others are a section by themselves.
_SECTIONS: Final = {
    **dict.fromkeys(
        ("keypairs", "users", "tokens", "whoami", "sign-in", "sign-out", "projects", "domains", "ssh-keys"), "identity"
    ),
    **dict.fromkeys(("top", "abusing-reports", "usage", "shares", "quota", "policies"), "usage and limits"),
    **dict.fromkeys(("images", "registries"), "images"),
    **dict.fromkeys(("agents", "devices", "resource-groups"), "hosts"),
    **dict.fromkeys(("audit", "fsck"), "audit and consistency"),
}

_BELOW_SESSIONS: Final = {
    "files": "files",
    "calls": "calls",
    "state": "state",
    **dict.fromkeys(("execute", "executions", "interrupt", "complete"), "executions"),
    **dict.fromkeys(("services", "direct-access", "ports"), "services"),
}


def _tag(route: Route) -> str:
    first = route.segments[1]
    if first != "sessions":
        return _SECTIONS.get(first, first)
    below = route.segments[3] if len(route.segments) > 3 else ""
    return _BELOW_SESSIONS.get(below, "sessions")


def _properties(route: Route, schemas: dict[tuple[Any, str], dict[str, Any]]) -> dict[str, Any]:
    """The action's fields as JSON schemas, by their names inside."""
    if route.action.action_name in _BODIES:
        return {}
    definition = _resolved(schemas[route.action, "validation"])
    described = _field_comments(route.action)
    properties = {}
    for name, schema in definition["properties"].items():
        found = _without_title(_tidy(schema))
        if name in described and "description" not in found:
            found = {**found, "description": described[name]}
        properties[name] = found
    return properties


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        _, definitions = _schemas()
        return definitions[schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    return schema


@cache
def _field_comments(kind: type) -> dict[str, str]:
    """What stands behind `#:` at a field."""
    found = {}
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"\s+(\w+):.*#: (.+)$", line):
            found[match[1]] = match[2][0].upper() + match[2][1:].rstrip(".") + "."
    return found


def _parameters(route: Route, schemas: dict[tuple[Any, str], dict[str, Any]]) -> list[dict[str, Any]]:
    properties = _properties(route, schemas)
    found = []
    for name, inside in route.field_in_path.items():
        schema = properties.get(inside, {"type": "string"})
        schema = {k: v for k, v in schema.items() if k != "description"}
        if name in ("session", "path"):
            schema = {"type": "string"}
        found.append(_parameter("path", name, schema, _PATH_NAMES.get(name, ""), required=True))
    if not route.has_body:
        required = _required(route)
        for name, inside in route.told.items():
            schema = dict(properties.get(inside, {"type": "string"}))
            text = str(schema.pop("description", ""))
            found.append(_parameter("query", name, schema, text, required=inside in required))
    for name in route.query:
        schema, text = _OWN_QUERY[name]
        if name not in route.told:
            found.append(_parameter("query", name, schema, text))
    if route.paged:
        found.append(_parameter("query", "cursor", {"type": "string"}, "From the page before."))
        found.append(_parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 1000}, ""))
    if route.settles:
        text = "Seconds to wait for the session to run or end; it is answered as it is then."
        found.append(_parameter("query", "wait", {"type": "number", "minimum": 0, "maximum": 3600}, text))
    if route.owned:
        found.append(_parameter("query", OWNER, {"type": "string"}, "Whose session, when an administrator says so."))
    headers: list[tuple[str, str]] = []
    if route.action.rules.effect is not Effect.READ and route.method != "GET":
        headers.append(("Idempotency-Key", "The same key again gets the same answer, and nothing happens twice."))
    if route.if_match:
        headers.append(("If-Match", "The ETag that the change is meant for; 412 when the session has changed."))
    if route.etag and route.method == "GET":
        headers.append(("If-None-Match", "304 while the ETag is still this one."))
    if route.method == "PUT" and route.action.action_name in _BODIES:
        headers.append(("X-Content-Sha256", "What arrives otherwise is refused."))
        headers.append(("If-None-Match", "'*': only when there is no such file yet."))
    if route.action.action_name in ("download_file", "download_volume_file"):
        headers += [(name, "") for name in ("Range", "If-Range", "If-None-Match", "If-Modified-Since")]
    if SSE in route.media and route.method == "GET" and route.action is not GetTaskAction:
        headers.append(("Last-Event-ID", "Go on after this event."))
    return found + [_parameter("header", name, {"type": "string"}, text) for name, text in headers]


def _parameter(where: str, name: str, schema: dict[str, Any], text: str, *, required: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "in": where, "schema": schema}
    if required:
        made["required"] = True
    if text:
        made["description"] = text
    return made


def _required(route: Route) -> set[str]:
    told = set(route.told.values())
    return {
        f.name
        for f in fields(route.action)  # type: ignore[arg-type]
        if f.name in told and f.default is MISSING and f.default_factory is MISSING
    }


def _request_body(route: Route, schemas: dict[tuple[Any, str], dict[str, Any]]) -> dict[str, Any] | None:
    if route.action.action_name in _BODIES:
        if route.action.action_name in _UNPACKING:
            return {"required": True, "content": {media: {} for media in ("application/x-tar", "application/zip")}}
        if route.method == "PUT":
            return {"required": True, "content": {"application/octet-stream": {}}}
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "The folder; stands before the files."},
                "file": {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}},
            },
        }
        return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    if not route.has_body or not route.told:
        return None
    properties, required = _properties(route, schemas), _required(route)
    schema = {
        "type": "object",
        "properties": {name: properties[inside] for name, inside in route.told.items()},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = [name for name, inside in route.told.items() if inside in required]
    return {"required": route.body_required, "content": {"application/json": {"schema": schema}}}


def _responses(route: Route, schemas: dict[tuple[Any, str], dict[str, Any]]) -> dict[str, Any]:
    shown = _shown(route)
    content: dict[str, Any] = {}
    if isinstance(shown, dict):
        content["application/json"] = {"schema": shown}
    elif shown is not None:
        content["application/json"] = {"schema": _tidy(schemas[shown, "serialization"])}
    for media in route.media:
        if media in (NDJSON, SSE):
            item = {ReadEventsAction: "Event", GetTaskAction: "TaskData"}.get(route.action, "Record")
            content[media] = {"schema": {"$ref": f"#/components/schemas/{item}"}}
        elif media not in ("application/json", "websocket"):
            content[media] = {"schema": {"type": "string"}}
    success: dict[str, Any] = {}
    statuses = _success_statuses(route)
    for status in statuses:
        answer: dict[str, Any] = {"description": HTTPStatus(int(status)).phrase}
        if content and status not in ("204", "304", "101"):
            answer["content"] = content
        success[status] = answer
    by_status: dict[int, list[type[MoorageError]]] = {}
    for error in _possible_errors(route):
        by_status.setdefault(error.http_status, []).append(error)
    failures = {
        str(status): _problem_response("\n".join(f"- `{e.code}`: {e().message}" for e in found), found)
        for status, found in sorted(by_status.items())
    }
    return {**success, **failures}


def _success_statuses(route: Route) -> list[str]:
    if "websocket" in route.media:
        return ["101"]
    if not isinstance(route.status, int):
        return ["201", "200"]
    statuses = [str(route.status)]
    if route.action.action_name in ("download_file", "download_volume_file"):
        statuses += ["206", "304"]
    if route.method == "PUT" and route.action.action_name in _BODIES:
        statuses.append("201")
    if route.etag and route.method == "GET":
        statuses.append("304")
    return statuses


def _possible_errors(route: Route) -> list[type[MoorageError]]:
    """By what the action does; every one of them is on the page of errors, this only says which to expect."""
    codes = {*_ANYWHERE, "invalid_request", "permission_denied"}
    rules = route.action.rules
    if route.has_body:
        codes |= set(_OF_BODY)
    if issubclass(route.action, SessionAction):
        codes |= {"session_not_found"}
        if len(rules.when) < 11:
            codes |= {"session_not_ready", "session_ended", "wrong_status"}
    if rules.effect is Effect.DATABASE:
        codes |= {"idempotency_mismatch", "request_in_progress", "storage_full"}
    if rules.effect is Effect.AGENT:
        codes |= {"agent_unavailable"}
    if route.owned:
        codes |= {"keypair_not_found"}
    codes |= set(_BY_ACTION.get(route.action.action_name, ()))
    family = route.segments[1]
    if "{" in route.path:
        codes |= set(_BY_FAMILY.get(family, ()))
    return [error for error in all_errors() if error.code in codes]


_FILE_CODES: Final = ("file_not_found", "file_permission_denied", "invalid_path", "not_a_regular_file")
_VOLUME_CODES: Final = (*_FILE_CODES, "transfer_failed", "no_volume_store", "volume_not_ready")
_BY_ACTION: Final[dict[str, tuple[str, ...]]] = {
    "start_service": (
        "kernel_not_found",
        "port_conflict",
        "service_ended",
        "service_failed",
        "service_runs",
        "service_silent",
        "service_unknown",
        "invalid_configuration",
    ),
    "shutdown_service": ("service_not_found",),
    "open_service": ("service_not_found",),
    "open_port": ("kernel_not_found",),
    "start_call": ("input_too_large", "function_unknown", "not_a_worker", "session_ended", "session_expired"),
    "keepalive_session": ("session_expired",),
    "deploy_app": ("invalid_app", "invalid_name", "image_not_found", "quota_exceeded", "invalid_resources"),
    "delete_app": ("still_in_use",),
    "call_app": ("app_not_found", "function_unknown", "input_too_large"),
    "create_from_params": (
        "app_not_found",
        "invalid_name",
        "name_taken",
        "image_not_found",
        "project_not_found",
        "invalid_configuration",
        "invalid_resources",
        "resources_impossible",
        "quota_exceeded",
        "no_agents",
        "volume_not_found",
        "volume_read_only",
        "volume_not_ready",
        "mounted_twice",
        "invalid_mount",
    ),
    "modify_session": ("invalid_name", "name_taken", "precondition_failed", "quota_exceeded"),
    "rename_session": ("invalid_name", "name_taken"),
    "restart_session": ("name_taken", "quota_exceeded"),
    "execute_session": ("idempotency_mismatch", "run_not_found", "no_python", "not_waiting_for_input"),
    "read_execution": ("run_not_found",),
    "follow_execution": ("run_not_found",),
    "kill_execution": ("run_not_found",),
    "interrupt": ("run_not_found",),
    "upload_files": (*_FILE_CODES, "file_exists", "quota_exceeded", "transfer_failed"),
    "download_file": (*_FILE_CODES, "range_not_satisfiable", "transfer_failed"),
    "download_files": (*_FILE_CODES, "transfer_failed"),
    "list_files": _FILE_CODES,
    "manage_files": (*_FILE_CODES, "file_exists", "quota_exceeded"),
    "unpack_archive": (*_FILE_CODES, "file_exists", "quota_exceeded", "transfer_failed", "archive_refused"),
    "unpack_volume_archive": (*_VOLUME_CODES, "volume_read_only", "file_exists", "quota_exceeded", "archive_refused"),
    "upload_volume_files": (*_VOLUME_CODES, "volume_read_only", "file_exists", "quota_exceeded"),
    "download_volume_file": (*_VOLUME_CODES, "range_not_satisfiable"),
    "download_volume_files": _VOLUME_CODES,
    "list_volume_files": _VOLUME_CODES,
    "manage_volume_files": (*_VOLUME_CODES, "volume_read_only", "file_exists", "quota_exceeded"),
    "create_volume": ("invalid_volume_name", "volume_name_taken", "no_volume_store", "quota_exceeded"),
    "modify_volume": ("invalid_volume_name", "volume_name_taken"),
    "share_volume": ("shared_with_nobody", "user_not_found", "project_not_found"),
    "unshare_volume": ("shared_with_nobody", "share_not_found", "user_not_found", "project_not_found"),
    "leave_volume": ("share_not_found",),
    "clone_volume": ("invalid_volume_name", "volume_name_taken", "volume_not_ready"),
    "delete_volume": ("volume_mounted", "volume_not_ready"),
    "create_user": ("already_exists", "not_found"),
    "create_keypair": ("user_not_found",),
    "list_keypairs": ("user_not_found",),
    "create_project": ("already_exists", "not_found", "user_not_found"),
    "modify_project": ("user_not_found",),
    "set_quota": ("user_not_found", "project_not_found", "keypair_not_found", "invalid_resources", "invalid_limit"),
    "list_quotas": ("user_not_found", "project_not_found", "keypair_not_found"),
    "create_policy": ("already_exists", "invalid_policy", "invalid_limit", "invalid_resources"),
    "modify_policy": ("invalid_policy", "invalid_limit", "invalid_resources"),
    "delete_policy": ("policy_in_use",),
    "assign_policy": ("user_not_found", "project_not_found", "keypair_not_found"),
    "unassign_policy": ("user_not_found", "project_not_found", "keypair_not_found", "not_found"),
    "read_events": ("session_not_found",),
    "pull_image": ("agent_not_found",),
    "register_image": ("already_exists",),
    "alias_image": ("already_exists", "image_not_found"),
    "forget_image": ("image_not_found", "still_in_use"),
    "delete_user": ("still_in_use",),
    "delete_project": ("still_in_use",),
    "remove_agent": ("still_in_use",),
}
_BY_FAMILY: Final[dict[str, tuple[str, ...]]] = {
    "tasks": ("task_not_found",),
    "users": ("user_not_found",),
    "keypairs": ("keypair_not_found",),
    "projects": ("project_not_found",),
    "agents": ("agent_not_found",),
    "policies": ("policy_not_found",),
    "tokens": ("not_found",),
    "ssh-keys": ("ssh_key_not_found",),
    "volumes": ("volume_not_found", "volume_ambiguous"),
    "apps": ("app_not_found",),
    "calls": ("call_not_found",),
}


def _problem_response(text: str, errors: list[type[MoorageError]] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Problem"}
    if errors:
        codes = {"type": "object", "properties": {"code": {"enum": sorted(error.code for error in errors)}}}
        schema = {"allOf": [schema, codes]}
    return {"description": text, "content": {"application/problem+json": {"schema": schema}}}


def _public_paths() -> dict[str, Any]:
    def get(summary: str, media: str, **answers: str) -> dict[str, Any]:
        responses: dict[str, Any] = {status.strip("_"): {"description": text} for status, text in answers.items()}
        responses["200"] = {"description": "OK", "content": {media: {}}}
        return {"get": {"summary": summary, "tags": ["health"], "security": [], "responses": responses}}

    return {
        "/healthz": get("This process answers.", "application/json"),
        "/readyz": get("This process takes requests: the database answers.", "application/json", _503="Not now."),
        "/metrics": get(
            "Figures for Prometheus: without a credential on loopback, else for administrators and monitors.",
            "text/plain",
            _401="From elsewhere, without a credential.",
        ),
    }


def unlisted() -> set[str]:
    """Actions that no row names."""
    return set(ACTIONS) - {route.action.action_name for route in ROUTES}


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
