"""Memory for compressed pages: what zswap asks of zbud, z3fold and zsmalloc (mm/zpool.c)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Key = TypeVar("Key")


class Handle:
    """One object of a pool. ``page`` is what holds it, ``part`` which place of it; ``owner`` is the user's word."""

    __slots__ = ("owner", "page", "part", "size")

    def __init__(self, page: Any, part: int, size: int, owner: int) -> None:
        self.page, self.part, self.size, self.owner = page, part, size, owner


class Pages(Protocol):
    """Where pools get their pages."""

    def alloc_pages(self, gfp: int, order: int = 0) -> int: ...
    def free_pages(self, pfn: int, order: int = 0) -> None: ...


class Zpool(Protocol):
    """A pool of objects smaller than a page.

    ``evictable``: it can throw objects out, oldest page first; ``movable``: its pages may be highmem and movable.
    """

    type: str
    name: str
    evictable: bool
    movable: bool

    @property
    def pages(self) -> int:
        """Pages that it takes up."""

    def malloc(self, size: int, gfp: int, owner: int) -> Handle:
        """An object. ENOSPC when it is too large to be worth it, ENOMEM, EINVAL."""

    def free(self, handle: Handle) -> None:
        """Give an object back."""

    def shrink(self) -> None:
        """Evict the objects of one page. EINVAL when that cannot be, EAGAIN when it did not work."""

    def pfns(self) -> list[int]:
        """The page frames that it takes up."""


Evict = Callable[[Handle], bool]
"""Bring an object elsewhere and free it; whether it is gone."""


def push(items: OrderedDict[Key, None], key: Key) -> None:
    """Insert at the head of a list (``list_add``)."""
    items[key] = None
    items.move_to_end(key, last=False)


def head(items: OrderedDict[Key, None]) -> Key | None:
    """The first of a list."""
    return next(iter(items), None)


def tail(items: OrderedDict[Key, None]) -> Key:
    """The last of a list."""
    return next(reversed(items))
