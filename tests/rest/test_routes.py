"""The table of routes and the document that is made of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

from actions import ACTIONS
from domain.errors import BY_CODE
from manager.rest.docs import page_bytes
from manager.rest.openapi import document
from manager.rest.routes import NOT_ADDRESSED, ROUTES, Table
from tests.rest.conftest import Caller


def test_every_action_has_an_address() -> None:
    addressed = {route.action.action_name for route in ROUTES}
    assert addressed | set(NOT_ADDRESSED) == set(ACTIONS)
    assert not addressed & set(NOT_ADDRESSED)


@pytest.mark.parametrize(
    ("method", "path", "expected", "raw"),
    [
        ("GET", "/v1/sessions/match", "match_sessions", []),
        ("GET", "/v1/sessions/x", "get_session_info", ["x"]),
        ("GET", "/v1/sessions/transit", "get_session_info", ["transit"]),
        ("GET", "/v1/sessions/x/files/archive", "download_file", ["x", "archive"]),
        ("POST", "/v1/sessions/x/files/archive", "download_files", ["x"]),
        ("PUT", "/v1/sessions/x/files/a/b/c", "upload_files", ["x", "a/b/c"]),
        ("GET", "/v1/sessions/x/files", "list_files", ["x"]),
        ("DELETE", "/v1/images/pull", "forget_image", ["pull"]),
    ],
)
def test_the_table_finds(method: str, path: str, expected: str, raw: list[str]) -> None:
    found = Table().find(method, path)
    assert not isinstance(found, frozenset)
    assert (found[0].action.action_name, found[1]) == (expected, raw)


def test_the_table_knows_what_is_not_there() -> None:
    assert Table().find("GET", "/v1/nothing") == frozenset()
    assert Table().find("PUT", "/v1/sessions") == frozenset({"GET", "POST"})
    assert Table().find("GET", "/v1/sessions//x") == frozenset()


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values())) if value else own
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_document_is_whole() -> None:
    doc = document()
    schemas = doc["components"]["schemas"]
    for reference in references(doc):
        family, name = reference.removeprefix("#/components/").split("/")
        assert name in doc["components"][family], reference
    operations = [operation for methods in doc["paths"].values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations if "operationId" in operation]
    assert len(ids) == len(set(ids)) == len(ROUTES)
    for operation in operations:
        assert operation["summary"]
        for status, answer in operation["responses"].items():
            assert answer["description"], (operation, status)
    session = schemas["SessionData"]["properties"]
    assert {"id", "status", "occupied_slots", "version"} <= set(session)
    transit = doc["paths"]["/v1/sessions/transit"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert transit == {"$ref": "#/components/schemas/TransitOutcomes"}
    assert not any(name.endswith("Action") for name in schemas)
    create = doc["paths"]["/v1/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"image", "app"} <= set(create["properties"])
    assert "required" not in create, "an image or an app: the action says which"
    assert "access_key" not in create["properties"]
    assert create["properties"]["timeout"]["description"]


def test_every_path_name_is_declared() -> None:
    for path, methods in document()["paths"].items():
        names = {part.strip("{}") for part in path.split("/") if part.startswith("{")}
        for operation in methods.values():
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert declared == names, path


def test_the_codes_of_the_document_exist() -> None:
    def codes(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = (
                set(value["code"]["enum"]) if isinstance(value.get("code"), dict) and "enum" in value["code"] else set()
            )
            return own.union(*map(codes, value.values())) if value else own
        return set().union(*map(codes, value)) if isinstance(value, list) else set()

    found = codes(document()["paths"])
    assert found <= set(BY_CODE)
    assert {"session_not_found", "name_taken", "range_not_satisfiable", "unauthenticated"} <= found


def test_the_document_is_printed() -> None:
    printed = subprocess.run([sys.executable, "-m", "manager.rest.openapi"], capture_output=True, check=True).stdout
    assert orjson.loads(printed) == orjson.loads(orjson.dumps(document()))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = page_bytes().decode()
    assert "<script" not in page
    assert "src=" not in page
    assert "http://" not in page
    for route in ROUTES:
        assert route.path.replace("*}", "}") in page
    for code in BY_CODE:
        assert f'id="{code}"' in page


async def test_document_and_page_are_served(nobody: Caller) -> None:
    served = await nobody.get("/openapi.json")
    assert served.json["openapi"] == "3.1.0"
    again = await nobody.get("/openapi.json", headers={"If-None-Match": served.headers["ETag"]})
    assert again.status == 304
    page = await nobody.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    front = await nobody.get("/", allow_redirects=False)
    assert (front.status, front.headers["Location"]) == (302, "/docs")
