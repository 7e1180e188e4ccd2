"""Signatures: made by the real client once (signatures.json), and everything that may be wrong with one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from domain.errors import MoorageError, Unauthenticated
from manager.compat.backendai.errors import GenericBadRequest, InvalidAuthParameters
from manager.compat.backendai.signing import SignedRequest

SECRET: Final = "mos_secret-of-vectors"
VECTORS: Final = {row["name"]: row for row in json.loads((Path(__file__).parent / "signatures.json").read_text())}
UNSENT: Final = ("a_websocket",)  #: the client signs a media type that it does not send
ONE: Final = VECTORS["json"]


def signed(row: dict[str, Any], **headers: str | None) -> SignedRequest:
    given = {
        "Host": row["host"],
        "Date": row["date"],
        "X-BackendAI-Version": row["version"],
        "Authorization": row["authorization"],
        "Content-Type": None if row["name"] in UNSENT else row["content_type"],
    }
    given.update({name.replace("_", "-"): value for name, value in headers.items()})
    kept = {name: value for name, value in given.items() if value is not None}
    return SignedRequest.of(make_mocked_request(row["method"], row["target"], headers=kept))


@pytest.mark.parametrize("name", VECTORS)
def test_what_the_client_signs_is_right(name: str) -> None:
    found = signed(VECTORS[name])
    assert found.access_key == "MOVECTORS0001"
    assert found.is_of(SECRET)
    assert not found.is_of(SECRET + "x")
    assert not found.is_of("")


@pytest.mark.parametrize(
    "change",
    [
        {"Host": "moorage.example"},
        {"Host": "other.example:8470"},
        {"Date": "2026-11-21T03:52:20.702465+00:00"},
        {"Date": "2026-11-21T12:52:20.702464+09:00"},  # the same moment, written otherwise
        {"Content_Type": "text/plain"},
        {"Content_Type": None},
        {"X_BackendAI_Version": "v7.20230614"},
        {"Authorization": ONE["authorization"][:-1] + ("0" if ONE["authorization"][-1] != "0" else "1")},
    ],
)
def test_a_signature_is_for_one_request(change: dict[str, str | None]) -> None:
    assert not signed(ONE, **change).is_of(SECRET)


@pytest.mark.parametrize(("field", "value"), [("method", "PUT"), ("target", "/compat/backendai/session?x=1")])
def test_and_for_one_address(field: str, value: str) -> None:
    assert not signed({**ONE, field: value}).is_of(SECRET)


def test_parameters_of_the_media_type_are_not_signed() -> None:
    row = VECTORS["a_form"]
    assert signed(row, Content_Type="multipart/form-data; boundary=abc").is_of(SECRET)
    assert signed(ONE, Content_Type="application/json; charset=utf-8").is_of(SECRET)


DIGITS: Final = ONE["authorization"].rpartition(":")[2]
HEAD: Final = "BackendAI signMethod=HMAC-SHA256, credential="


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"Authorization": None}, Unauthenticated),
        ({"Authorization": ""}, InvalidAuthParameters),
        ({"Authorization": "Bearer KEY.SECRET"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}MOVECTORS0001"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}:{DIGITS}"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}MOVECTORS0001:{DIGITS}0"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}MOVECTORS0001:{DIGITS[:-1]}"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}MO' OR 1=1--:{DIGITS}"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}{'A' * 200}:{DIGITS}"}, InvalidAuthParameters),
        ({"Authorization": f"{HEAD}MOVECTORS0001:{'ü' * 64}"}, InvalidAuthParameters),
        ({"Authorization": ONE["authorization"].replace("SHA256", "MD5")}, InvalidAuthParameters),
        ({"Authorization": ONE["authorization"].replace("SHA256", "SHA1")}, InvalidAuthParameters),
        ({"Authorization": ONE["authorization"].replace("SHA256", "SHAKE_128")}, InvalidAuthParameters),
        ({"Date": None}, InvalidAuthParameters),
        ({"Date": "Sat, 21 Nov 2026 03:52:20 GMT"}, InvalidAuthParameters),
        ({"Date": "2026-11-21T03:52:20"}, InvalidAuthParameters),
        ({"Date": "2026-11-21T03:52:20+00:00" + " " * 100}, InvalidAuthParameters),
        ({"Date": "9999-99-99T99:99:99+00:00"}, InvalidAuthParameters),
        ({"X_BackendAI_Version": None}, GenericBadRequest),
        ({"X_BackendAI_Version": "v4.20190615"}, GenericBadRequest),
        ({"X_BackendAI_Version": "v99.20230615"}, GenericBadRequest),
        ({"X_BackendAI_Version": "v7"}, GenericBadRequest),
    ],
)
def test_what_cannot_be_right_is_told_so(change: dict[str, str | None], error: type[MoorageError]) -> None:
    with pytest.raises(error) as raised:
        signed(ONE, **change)
    assert type(raised.value) is error


@pytest.mark.parametrize("name", ["Authorization", "Date", "Host", "X-BackendAI-Version"])
def test_a_header_that_comes_twice_is_refused(name: str) -> None:
    headers = CIMultiDict(
        [
            ("Host", ONE["host"]),
            ("Date", ONE["date"]),
            ("X-BackendAI-Version", ONE["version"]),
            ("Authorization", ONE["authorization"]),
            ("Content-Type", ONE["content_type"]),
        ]
    )
    headers.add(name, headers[name])
    with pytest.raises(InvalidAuthParameters, match="more than one"):
        SignedRequest.of(make_mocked_request(ONE["method"], ONE["target"], headers=headers))


@pytest.mark.parametrize(("minutes", "good"), [(-15.1, False), (-14.9, True), (0, True), (14.9, True), (15.1, False)])
def test_a_date_is_good_for_a_quarter_of_an_hour(minutes: float, good: bool) -> None:
    found = signed(ONE)
    now = datetime.fromisoformat(ONE["date"]) + timedelta(minutes=minutes)
    if good:
        found.check_time(now)
        assert found.good_until >= now
    else:
        with pytest.raises(InvalidAuthParameters, match="sync"):
            found.check_time(now)


def test_the_text_that_is_signed_holds_nothing_of_the_body() -> None:
    """As in the original since 2018: TLS protects the body, the signature does not."""
    assert replace(signed(ONE), text=signed(ONE).text).is_of(SECRET)
    assert signed(ONE).text.endswith(b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
