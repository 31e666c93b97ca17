"""Requests for memory whose direct reclaim may stop in the middle, so that one of them is not a slice of its own.

Reclaim is a generator below the allocator (mm/relief.py), and whoever allocates cannot yield from within a call. So a
caller that works in slices says how many steps of reclaim it can wait for; when they are used up the allocator gives
what it has got, and the same request made again goes on where reclaim was. There is no Linux counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
PATIENCE = 8
"""A slice is over after so many slow faults and steps of reclaim."""
KILL_STEPS = PATIENCE
"""A kill for want of memory, with its report, is as much work as so many steps of reclaim."""


class Allocator(Protocol):
    """The page allocator as far as patience goes."""

    patience: int | None
    suspended: bool

    def may_suspend(self, allowed: bool, *, in_parts: bool = False) -> None: ...


def attempt(page_alloc: Allocator, allocate: Callable[[], T]) -> tuple[T, bool]:
    """What ``allocate`` returns after as much reclaim as a slice has room for, and whether it is to be called again."""
    before, page_alloc.patience = page_alloc.patience, PATIENCE
    page_alloc.may_suspend(True, in_parts=True)
    try:
        found = allocate()
        return found, page_alloc.suspended
    finally:
        page_alloc.patience = before
        page_alloc.may_suspend(False)
