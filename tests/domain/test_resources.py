"""Amounts, as people write them and as they are counted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from domain.errors import InvalidResources
from domain.resources import MAX_AMOUNT, ResourceSlot, parse_memory_mib

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,62}", fullmatch=True)
units = st.dictionaries(names, st.integers(0, MAX_AMOUNT), max_size=5)


@given(units)
def test_what_is_written_reads_the_same(amounts: dict[str, int]) -> None:
    slot = ResourceSlot.from_units(amounts)
    assert ResourceSlot(slot.to_json()) == slot
    assert TypeAdapter(ResourceSlot).validate_json(TypeAdapter(ResourceSlot).dump_json(slot)) == slot
    assert dict(slot) == {name: amount for name, amount in amounts.items() if amount}


@given(units, units)
def test_what_fits_leaves_nothing_over(wanted: dict[str, int], free: dict[str, int]) -> None:
    fits = ResourceSlot.from_units(wanted).fits_in(free)
    assert fits == all(free.get(name, 0) - amount >= 0 for name, amount in wanted.items())


@given(units)
def test_equal_bags_are_one_key(amounts: dict[str, int]) -> None:
    turned = dict(reversed(list(amounts.items())))
    assert len({ResourceSlot.from_units(amounts), ResourceSlot.from_units(turned)}) == 1


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.binary(max_size=4)))
def test_anything_at_all_is_an_amount_or_refused(value: Any) -> None:
    for name in ("cpu", "mem", "gpu", "gpu-mem"):
        try:
            slot = ResourceSlot({name: value})
        except InvalidResources:
            continue
        assert 0 <= slot.get(name, 0) <= MAX_AMOUNT


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_refused(name: str) -> None:
    try:
        slot = ResourceSlot({name: 1})
    except InvalidResources:
        return
    assert list(slot) == [name]
    assert name.isascii()
    assert name == name.strip()


@pytest.mark.parametrize(
    ("written", "mib"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("4g", 4096),
        ("4G", 4096),
        ("4GiB", 4096),
        ("4gb", 4096),
        (" 0.5 g ", 512),
        ("1k", 1),
        ("1025k", 2),
        ("1t", 1024**2),
        (1.5, 2),
        (Decimal("0.1"), 1),
        ("0", 0),
    ],
)
def test_memory(written: object, mib: int) -> None:
    assert parse_memory_mib(written) == mib


@pytest.mark.parametrize(
    "written", ["", "g", "4x", "-4g", "1e3", "four", "4 4", "４g", "nan", "inf", "9" * 33, None, True, b"4", -1, 2**41]
)
def test_what_is_no_memory(written: object) -> None:
    with pytest.raises(InvalidResources):
        parse_memory_mib(written)


@pytest.mark.parametrize(("cpu", "thousandths"), [(2, 2000), (0.5, 500), ("1.25", 1250), (0.001, 1), (0.1 + 0.2, None)])
def test_cpus_are_counted_in_thousandths(cpu: object, thousandths: int | None) -> None:
    if thousandths is None:
        with pytest.raises(InvalidResources, match="thousandths"):
            ResourceSlot(cpu=cpu)
    else:
        assert ResourceSlot(cpu=cpu)["cpu"] == thousandths


@pytest.mark.parametrize(
    "slots",
    [
        {"cpu": -1},
        {"cpu": float("nan")},
        {"cpu": float("inf")},
        {"cpu": "NaN"},
        {"cpu": True},
        {"gpu": 0.5},
        {"gpu": "one"},
        {"gpu": 10**30},
        {"gpu": []},
        {"": 1},
        {"GPU": 1},
        {"a\n": 1},
        {"a" * 64: 1},
    ],
)
def test_what_makes_no_sense(slots: dict[str, Any]) -> None:
    with pytest.raises(InvalidResources):
        ResourceSlot(slots)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"gpu": 2}, {"gpu": 2}),
        ({"gpu-mem": "20g"}, {"gpu-mem": 20480}),
        ({"gpu-mem": 512}, {"gpu-mem": 512}),
        ({"gpu": 1, "gpu-mem": "20g"}, {"gpu-mem": 20480}),
        ({"gpu": 0, "gpu-mem": "1g"}, {"gpu-mem": 1024}),
        ({"gpu": 3, "gpu-mem": 0}, {"gpu": 3}),
    ],
)
def test_devices_whole_or_a_share_of_one(asked: dict[str, Any], kept: dict[str, int]) -> None:
    assert dict(ResourceSlot(asked)) == kept


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ({"gpu": 2, "gpu-mem": "20g"}, "share of one device"),
        ({"gpu": 0.5}, "gpu-mem=20g"),
        ({"gpu": "1.5"}, "gpu-mem=20g"),
        ({"gpu": -0.5}, "negative"),
        ({"gpu-mem": -1}, "negative"),
        ({"gpu-mem": "-20g"}, "not an amount of memory"),
        ({"gpu-mem": 2**41}, "larger than any host"),
        ({"gpu-mem": "9999999p"}, "larger than any host"),
        ({"gpu-mem": float("nan")}, "finite"),
    ],
)
def test_what_no_device_can_be(slots: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidResources, match=says):
        ResourceSlot(slots)


def test_nothing_of_it_is_not_named() -> None:
    assert ResourceSlot(cpu=1, gpu=0) == ResourceSlot(cpu=1)
    assert not ResourceSlot(mem=0)
    assert repr(ResourceSlot(cpu=1.5, mem="1g")) == "ResourceSlot(cpu=1.5, mem=1024)"


@pytest.mark.parametrize("value", [[], "cpu=1", 4, None])
def test_at_the_doors_it_is_an_object(value: object) -> None:
    with pytest.raises(InvalidResources, match="object"):
        TypeAdapter(ResourceSlot).validate_python(value)
