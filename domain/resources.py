"""Amounts of CPU, memory and devices, as integers inside and as people write them outside.

Units: `cpu` counts thousandths of a CPU, `mem` MiB, `gpu-mem` MiB of one device, every other slot whole units (for
`gpu`, devices).
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from domain.errors import InvalidResources

#: Larger amounts are typing mistakes; they must also fit PostgreSQL's bigint when summed over a fleet.
MAX_AMOUNT: Final = 2**40
_NAME: Final = re.compile(r"^[a-z][a-z0-9_.-]{0,62}$")
_SIZE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*$", re.IGNORECASE | re.ASCII)
_MIB_PER_SUFFIX: Final = {
    "": Decimal(1),
    "k": Decimal(1) / 1024,
    "m": Decimal(1),
    "g": Decimal(1024),
    "t": Decimal(1024**2),
    "p": Decimal(1024**3),
}


def parse_memory_mib(value: object, name: str = "mem") -> int:
    """`4096`, `"4096"`, `"4g"`, `"512MiB"` -> MiB, rounded up. A bare number is MiB."""
    if isinstance(value, str):
        if not (match := _SIZE.match(value)) or len(value) > 32:
            raise InvalidResources(f"'{value[:40]}' is not an amount of memory; write MiB (4096) or a suffix ('4g').")
        mib = Decimal(match[1]) * _MIB_PER_SUFFIX[match[2].lower()]
    else:
        mib = _number(name, value)
    return _whole(name, mib.to_integral_value(rounding="ROUND_CEILING"))


class ResourceSlot(Mapping[str, int]):
    """An immutable bag of named amounts.

    `ResourceSlot(cpu=2, mem=4096)`: CPUs may be fractional (thousandths are kept), memory is in MiB or a string
    with a suffix (`"4g"`). Reading gives the integers inside: `slot["cpu"] == 2000`. Zero amounts are dropped.
    `gpu-mem` is a share of one device; `gpu=1` beside it says no more, and is dropped.
    Raises `InvalidResources` for names or amounts that make no sense.
    """

    __slots__ = ("_amounts",)

    def __init__(self, slots: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        amounts: dict[str, int] = {}
        for name, value in {**(slots or {}), **named}.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InvalidResources(f"'{str(name)[:40]}' is not a name of a resource.")
            amount = _amount(name, value)
            if amount:
                amounts[name] = amount
        if amounts.get("gpu-mem") and amounts.pop("gpu", 1) > 1:
            raise InvalidResources(
                "gpu-mem is a share of one device; ask for it with gpu=1 or without gpu, or for whole devices."
            )
        self._amounts = dict(sorted(amounts.items()))

    @classmethod
    def from_units(cls, amounts: Mapping[str, int]) -> ResourceSlot:
        """From the integers inside (milli-CPU, MiB, units), as stored in the database."""
        slot = cls.__new__(cls)
        slot._amounts = {name: amount for name, amount in sorted(amounts.items()) if amount}
        return slot

    def to_json(self) -> dict[str, int | float]:
        """As people write it: whole or fractional CPUs, memory in MiB."""
        out: dict[str, int | float] = dict(self._amounts)
        if "cpu" in out:
            cpus = self._amounts["cpu"] / 1000
            out["cpu"] = int(cpus) if cpus.is_integer() else cpus
        return out

    def fits_in(self, free: Mapping[str, int]) -> bool:
        return all(amount <= free.get(name, 0) for name, amount in self._amounts.items())

    def items(self) -> ItemsView[str, int]:
        return self._amounts.items()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """A JSON object of names and amounts at every door that validates with pydantic."""
        from pydantic_core import core_schema

        outside = core_schema.dict_schema(core_schema.str_schema(), core_schema.float_schema())
        amount = core_schema.union_schema(
            [core_schema.int_schema(), core_schema.float_schema(), core_schema.str_schema()]
        )
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, cls) else cls(_mapping(value)),
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_json, return_schema=outside),
            json_schema_input_schema=core_schema.dict_schema(core_schema.str_schema(), amount),
        )

    def __getitem__(self, name: str) -> int:
        return self._amounts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def __hash__(self) -> int:
        return hash(tuple(self._amounts.items()))

    def __repr__(self) -> str:
        return f"ResourceSlot({', '.join(f'{n}={v}' for n, v in self.to_json().items())})"


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidResources('Resources are an object of names and amounts, such as {"cpu": 2, "mem": "4g"}.')
    return value


def _amount(name: str, value: object) -> int:
    if name in ("mem", "gpu-mem"):
        return parse_memory_mib(value, name)
    number = _number(name, value)
    if name == "gpu" and 0 < number != number.to_integral_value():
        raise InvalidResources(
            "A device is handed out whole: ask for gpu=1, or for a share of one by its memory: gpu-mem=20g."
        )
    return _whole(name, number * 1000 if name == "cpu" else number)


def _number(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal) or len(str(value)) > 32:
        raise InvalidResources(f"The amount of {name} must be a number.")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise InvalidResources(f"The amount of {name}, '{value}', is not a number.") from None
    if not number.is_finite():
        raise InvalidResources(f"The amount of {name} must be finite.")
    return number


def _whole(name: str, number: Decimal) -> int:
    if number < 0:
        raise InvalidResources(f"The amount of {name} must not be negative.")
    if number > MAX_AMOUNT:
        raise InvalidResources(f"The amount of {name} is larger than any host can have.")
    if number != number.to_integral_value():
        unit = "thousandths of a CPU" if name == "cpu" else "whole units"
        raise InvalidResources(f"The amount of {name} must be given in {unit}.")
    return int(number)
