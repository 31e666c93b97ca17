"""What stands in memory, as far as somebody wrote it: bytes of pages by page frame.

The model moves pages without their bytes; those that a command wrote (``write``, ``write_file``, ``access fill=``) are
kept here, and follow the page when it is copied, migrated, swapped or collapsed. All other memory reads as zeros. There
is no Linux counterpart. A page whose bytes are known has PG_CONTENT, which goes when the page is freed: what is still
here then counts no longer. A page that was filled by a pattern costs no bytes until somebody changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

import numpy as np

from kmemd.core.pages import PG_CONTENT, PageMap
from kmemd.mm.units import PAGE_SIZE

CONTENT = np.uint32(1 << PG_CONTENT)
FILLS = ("zero", "text", "random")
_WORDS = (b"memory ", b"page ", b"swap ", b"reclaim ", b"of ", b"the ", b"and ", b"kernel ", b"slot ", b"zone ")


class Pattern(NamedTuple):
    """A whole page of some kind of data: zeros, words, or noise that nothing compresses."""

    kind: str
    seed: int

    def realize(self) -> bytes:
        """The bytes."""
        if self.kind == "zero":
            return bytes(PAGE_SIZE)
        rng = Random(self.seed)
        if self.kind == "random":
            return rng.randbytes(PAGE_SIZE)
        return b"".join(rng.choices(_WORDS, k=PAGE_SIZE))[:PAGE_SIZE]


Content = bytes | Pattern
"""What stands in a page."""


class Contents:
    """The known bytes of one machine's pages."""

    def __init__(self, pages: PageMap) -> None:
        self._pages = pages
        self._bytes: dict[int, bytearray | Pattern] = {}

    def known(self, pfn: int) -> bool:
        """Whether anything but zeros stands in a page."""
        return bool(self._pages.flags[pfn] & CONTENT)

    def read(self, pfn: int, offset: int = 0, size: int = PAGE_SIZE) -> bytes:
        """``size`` bytes of a page."""
        if not self.known(pfn):
            return bytes(size)
        found = self._bytes[pfn]
        data = found.realize() if isinstance(found, Pattern) else found
        return bytes(data[offset : offset + size])

    def write(self, pfn: int, offset: int, data: bytes) -> None:
        """Bytes into a page that is in use."""
        found = self._bytes[pfn] if self.known(pfn) else bytearray(PAGE_SIZE)
        if isinstance(found, Pattern):
            found = bytearray(found.realize())
        self._bytes[pfn] = found
        self._pages.flags[pfn] |= CONTENT
        found[offset : offset + len(data)] = data

    def fill(self, pfns: Iterable[int], kind: str) -> None:
        """Whole pages of a pattern, each with a seed of its own."""
        for pfn in pfns:
            self.put(pfn, Pattern(kind, pfn))

    def put(self, pfn: int, content: Content) -> None:
        """A page holds what ``take`` gave of another one."""
        self._bytes[pfn] = content if isinstance(content, Pattern) else bytearray(content)
        self._pages.flags[pfn] |= CONTENT

    def copy(self, old: int, new: int) -> None:
        """A page gets what stands in another one."""
        found = self.take(old)
        if found is not None:
            self.put(new, found)

    def take(self, pfn: int) -> Content | None:
        """What stands in a page, to be kept elsewhere; None for what nobody wrote."""
        if not self.known(pfn):
            return None
        found = self._bytes[pfn]
        return found if isinstance(found, Pattern) else bytes(found)
