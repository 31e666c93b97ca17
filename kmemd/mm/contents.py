"""What stands in memory, as far as somebody wrote it: bytes of pages by page frame.

The model moves pages without their bytes; those that a command wrote (``write``, ``write_file``) are kept here, and
follow the page when it is copied, migrated, swapped or collapsed. All other memory reads as zeros. There is no
Linux counterpart. A page whose bytes are known has PG_CONTENT, which goes when the page is freed: what is still here
then counts no longer.
"""

from __future__ import annotations

import numpy as np

from kmemd.core.pages import PG_CONTENT, PageMap
from kmemd.mm.units import PAGE_SIZE

CONTENT = np.uint32(1 << PG_CONTENT)


class Contents:
    """The known bytes of one machine's pages."""

    def __init__(self, pages: PageMap) -> None:
        self._pages = pages
        self._bytes: dict[int, bytearray] = {}

    def known(self, pfn: int) -> bool:
        """Whether anything but zeros stands in a page."""
        return bool(self._pages.flags[pfn] & CONTENT)

    def read(self, pfn: int, offset: int = 0, size: int = PAGE_SIZE) -> bytes:
        """``size`` bytes of a page."""
        if not self.known(pfn):
            return bytes(size)
        return bytes(self._bytes[pfn][offset : offset + size])

    def write(self, pfn: int, offset: int, data: bytes) -> None:
        """Bytes into a page that is in use."""
        if not self.known(pfn):
            self._bytes[pfn] = bytearray(PAGE_SIZE)
            self._pages.flags[pfn] |= CONTENT
        self._bytes[pfn][offset : offset + len(data)] = data

    def copy(self, old: int, new: int) -> None:
        """A page gets what stands in another one."""
        if self.known(old):
            self._bytes[new] = bytearray(self._bytes[old])
            self._pages.flags[new] |= CONTENT

    def take(self, pfn: int) -> bytes | None:
        """What stands in a page, to be kept elsewhere; None for zeros."""
        return bytes(self._bytes[pfn]) if self.known(pfn) else None
