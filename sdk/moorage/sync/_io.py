"""The few things that waiting does differently here than on the async side (its twin is moorage/aio/_io.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep = time.sleep


def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Here, blocking is what everybody expects."""
    return function(*args, **kwargs)


def result_of(value: object) -> object:
    """What a callback gave."""
    return value


def opening(function: Callable[P, T]) -> Callable[P, T]:
    """A session is a context manager itself."""
    return function
