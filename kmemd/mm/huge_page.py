"""What huge pages of both kinds have in common: how often they are mapped as a whole, their owner, their content.

Models the compound page's fields (include/linux/mm_types.h, mm.h ``compound_mapcount``): the head has flags, owner and
index for all, the first tail counts the entries that map the whole. Left out: reference counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kmemd.core import pte
from kmemd.core.context import Context
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_ANON_EXCLUSIVE, PG_CONTENT, PG_UPTODATE, PageMap
from kmemd.mm import mm_types as mt
from kmemd.mm.vma_rows import prot_bits


def page_prot(flags: int) -> int:
    """The protection of an entry in a mapping with these flags (``vm_get_page_prot``): private pages are read-only."""
    return prot_bits(flags, cow=not flags & mt.VM_SHARED)


class HugePages:
    """Changes the page map's entries of huge pages. ``page_ns`` is what clearing or copying a small page costs.

    ``pages`` is how many small pages a transparent huge page has; ``spans`` are ``(first PFN, end, node)`` of zones.
    """

    def __init__(
        self, pages: PageMap, mmu: Mmu, context: Context, page_ns: int, spans: Sequence[tuple[int, int, int]]
    ) -> None:
        self.pages: int = 1 << mmu.bits
        self._spans = [span for span in spans if span[0] < span[1]]
        self._pages = pages
        self._mmu = mmu
        self._context = context
        self._page_ns = page_ns

    def pfn_at(self, slot: int) -> int:
        """The page that an entry maps."""
        return (int(self._mmu.words[slot]) & pte.PFN_MASK) >> pte.PFN_SHIFT

    def nid(self, pfn: int) -> int:
        """The node of a page."""
        return next(nid for low, high, nid in self._spans if low <= pfn < high)

    def node_spans(self) -> dict[int, list[tuple[int, int]]]:
        """The ranges of page frames of each node."""
        found: dict[int, list[tuple[int, int]]] = {}
        for low, high, nid in self._spans:
            found.setdefault(nid, []).append((low, high))
        return found

    def has_flag(self, pfn: int, bit: int) -> bool:
        """Whether a page has a flag."""
        return bool(int(self._pages.flags[pfn]) >> bit & 1)

    def mapcount(self, head: int) -> int:
        """How many entries map the whole page (``compound_mapcount``)."""
        return int(self._pages.mapping[head + 1])

    def map_again(self, head: int) -> int:
        """One more entry maps the whole; how many do."""
        self._pages.mapping[head + 1] += 1
        return int(self._pages.mapping[head + 1])

    def unmap(self, head: int) -> int:
        """One entry less maps the whole; how many are left."""
        self._pages.mapping[head + 1] -= 1
        return int(self._pages.mapping[head + 1])

    def is_anon(self, head: int) -> bool:
        """Whether it is anonymous memory."""
        return int(self._pages.mapping[head]) > 0

    def is_exclusive(self, head: int) -> bool:
        """Whether the one process that maps it owns it (PageAnonExclusive)."""
        return self.has_flag(head, PG_ANON_EXCLUSIVE)

    def new_anon_page(self, head: int, anon: int, index: int, flags: int = 0) -> None:
        """A page that nobody maps yet becomes anonymous memory of an anon_vma, and of nobody else's."""
        self.set_flags(head, flags | 1 << PG_UPTODATE | 1 << PG_ANON_EXCLUSIVE)
        self._pages.mapping[head] = anon
        self._pages.index[head] = index

    def new_file_page(self, head: int, file: int, index: int) -> None:
        """A page becomes a file's."""
        self.set_flags(head, 1 << PG_UPTODATE)
        self._pages.mapping[head] = -file
        self._pages.index[head] = index

    def own(self, head: int, anon: int) -> None:
        """The page is one process' alone again (``page_move_anon_rmap``)."""
        self.set_flags(head, 1 << PG_ANON_EXCLUSIVE)
        self._pages.mapping[head] = anon

    def share(self, head: int) -> None:
        """The page is no longer one process' alone."""
        self.clear_flags(head, 1 << PG_ANON_EXCLUSIVE)

    def set_flags(self, pfn: int, bits: int) -> None:
        """Set page flags."""
        self._pages.flags[pfn] = int(self._pages.flags[pfn]) | bits

    def clear_flags(self, pfn: int, bits: int) -> None:
        """Clear page flags."""
        self._pages.flags[pfn] = int(self._pages.flags[pfn]) & ~bits

    def clear(self, pages: int) -> None:
        """Zeroing takes its time (``clear_huge_page``)."""
        self._context.charge(self._page_ns * pages)

    def copy(self, old: int, new: int, pages: int) -> None:
        """Copy a page, with what is known of its bytes (``copy_user_huge_page``)."""
        self._context.charge(self._page_ns * pages)
        known = np.flatnonzero(self._pages.flags[old : old + pages] >> np.uint32(PG_CONTENT))
        for k in known.tolist():
            self._mmu.copied(old + k, new + k)

    def wipe(self, head: int, pages: int, keep: int = 0) -> None:
        """The page is nobody's: what its user kept of it goes, but for flags to ``keep``."""
        kept = int(self._pages.flags[head]) & keep
        self._pages.flags[head : head + pages] = 0
        self._pages.mapping[head : head + pages] = 0
        self._pages.mapcount[head : head + pages] = 0
        self._pages.index[head : head + pages] = 0
        self._pages.flags[head] = kept
