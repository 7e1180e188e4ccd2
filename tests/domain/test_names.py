"""What a session may be called."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidName
from domain.names import RESERVED, as_uuid, check_session_name


@pytest.mark.parametrize("name", ["abcd", "a" * 64, "1-2.3_4", "_ab_", "zażółć", "match-it"])
def test_good_names(name: str) -> None:
    assert check_session_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abc",
        "a" * 65,
        "-abcd",
        "abcd-",
        "ab cd",
        "ab/cd",
        "../etc",
        "abcd\n",
        "ab\0cd",
        "match",
        "Transit",
        "from-template",
        "11111111-0000-7000-8000-000000000001",
        "11111111000070008000000000000001",
        "\ud800abc",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_session_name(name)


@given(st.text(max_size=70))
def test_a_name_fits_one_segment_of_a_path_and_hides_nothing(name: str) -> None:
    try:
        check_session_name(name)
    except InvalidName as error:
        error.message.encode()
        return
    assert re.fullmatch(r"[^/\s\x00?#%:@]{4,64}", name)
    assert name.lower() not in RESERVED
    assert as_uuid(name) is None


@given(st.uuids())
def test_ids_are_read_in_every_form(one: UUID) -> None:
    for form in (str(one), one.hex, one.urn, f"{{{one}}}", str(one).upper()):
        assert as_uuid(form) == one
        with pytest.raises(InvalidName):
            check_session_name(form)
