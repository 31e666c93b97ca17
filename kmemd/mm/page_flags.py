"""Page flags in words, as ``%pGp`` prints them (lib/vsprintf.c ``format_page_flags``).

Left out: the section number, which the captured configurations do not keep in the flags.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from kmemd.core import pages as p
from kmemd.core.pages import PageMap
from kmemd.errors import KernelError
from kmemd.mm.layout import X86_64
from kmemd.mm.mmzone import Zone

NODES_SHIFT = 6
ZONES_SHIFT = 2
LAST_PID_BITS = 8
MIN_CPU_BITS = 3
LRU_GEN_WIDTH, LRU_REFS_WIDTH = 3, 2
SHOWN_YOUNG = 23
"""Where PG_young is in Linux, before PG_idle: behind PG_uncached."""

PAGE_FLAG_NAMES = (
    (p.PG_LOCKED, "locked"),
    (p.PG_WAITERS, "waiters"),
    (p.PG_ERROR, "error"),
    (p.PG_REFERENCED, "referenced"),
    (p.PG_UPTODATE, "uptodate"),
    (p.PG_DIRTY, "dirty"),
    (p.PG_LRU, "lru"),
    (p.PG_ACTIVE, "active"),
    (p.PG_WORKINGSET, "workingset"),
    (p.PG_SLAB, "slab"),
    (p.PG_OWNER_PRIV_1, "owner_priv_1"),
    (p.PG_ARCH_1, "arch_1"),
    (p.PG_RESERVED, "reserved"),
    (p.PG_PRIVATE, "private"),
    (p.PG_PRIVATE_2, "private_2"),
    (p.PG_WRITEBACK, "writeback"),
    (p.PG_HEAD, "head"),
    (p.PG_MAPPEDTODISK, "mappedtodisk"),
    (p.PG_RECLAIM, "reclaim"),
    (p.PG_SWAPBACKED, "swapbacked"),
    (p.PG_UNEVICTABLE, "unevictable"),
    (p.PG_MLOCKED, "mlocked"),
    (p.PG_YOUNG, "young"),
    (p.PG_IDLE, "idle"),
)
"""Bits of ``PageMap.flags`` in the order in which ``%pGp`` names them."""


class PageFlags:
    """``%pGp``: page flags in words, with the fields that stand above them in ``page->flags``.

    x86_64 has node, zone and last CPU and PID there, i386 the zone alone; below them are a page's generation and tier.
    No page was touched by NUMA balancing, so that the last CPU and PID is all ones.
    """

    def __init__(self, arch: str, cpus: int, pages: PageMap, zones: Sequence[Zone]) -> None:
        self._wide = arch == X86_64
        self._pages = pages
        self._zones = zones
        self._last_bits = LAST_PID_BITS + max(MIN_CPU_BITS, (cpus - 1).bit_length())
        self._texts: dict[tuple[int, int, int], str] = {}

    def of_page(self, pfn: int) -> str:
        """The text for a page frame. EFAULT for one in no zone."""
        zone = next((zone for zone in self._zones if zone.holds(pfn)), None)
        if zone is None:
            raise KernelError(errno.EFAULT, f"pfn {pfn} is in no zone")
        return self.show(int(self._pages.flags[pfn]), zone.nid, zone.kind)

    def show(self, flags: int, nid: int, zone_kind: int) -> str:
        """The text for a page with ``flags`` on a node, in the zone of that number within the node."""
        text = self._texts.get((flags, nid, zone_kind))
        if text is None:
            text = self._texts[flags, nid, zone_kind] = self._render(flags, nid, zone_kind)
        return text

    def _render(self, flags: int, nid: int, zone_kind: int) -> str:
        tracked = flags >> p.PG_YOUNG & 3
        flags &= ~(3 << p.PG_YOUNG)
        if self._wide:  # 32 bits have no room: they are in page_ext there
            flags |= tracked << p.PG_YOUNG
        words = [name for bit, name in PAGE_FLAG_NAMES if flags >> bit & 1]
        flags = flags & ~(3 << p.PG_YOUNG) | (tracked << SHOWN_YOUNG if self._wide else 0)
        gen = (flags & p.LRU_GEN_MASK) >> p.LRU_GEN_PGOFF << LRU_REFS_WIDTH
        lru = gen | (flags & p.LRU_REFS_MASK) >> p.LRU_REFS_PGOFF
        flags &= ~(p.LRU_GEN_MASK | p.LRU_REFS_MASK)
        if not self._wide:
            flags |= lru << 32 - ZONES_SHIFT - LRU_GEN_WIDTH - LRU_REFS_WIDTH
            return f"{flags | zone_kind << 32 - ZONES_SHIFT:#x}({'|'.join([*words, f'zone={zone_kind}'])})"
        zone_shift = 64 - NODES_SHIFT - ZONES_SHIFT
        last = (1 << self._last_bits) - 1
        flags |= lru << zone_shift - self._last_bits - LRU_GEN_WIDTH - LRU_REFS_WIDTH
        value = flags | nid << 64 - NODES_SHIFT | zone_kind << zone_shift | last << zone_shift - self._last_bits
        words += [f"node={nid}", f"zone={zone_kind}", f"lastcpupid={last:#x}"]
        return f"{value:#x}({'|'.join(words)})"
