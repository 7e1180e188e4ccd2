"""The few things that waiting does differently here than on the async side (its twin is moorage/aio/_io.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")

sleep = time.sleep


def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Here, blocking is what everybody expects."""
    return function(*args, **kwargs)


def result_of(value: object) -> object:
    """What a callback gave."""
    return value


def side_by_side(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """The answers for all items, asked for at the same time."""
    listed = list(items)
    with ThreadPoolExecutor(max(len(listed), 1)) as threads:
        return list(threads.map(function, listed))


def opening(function: Callable[P, T]) -> Callable[P, T]:
    """A session is a context manager itself."""
    return function
