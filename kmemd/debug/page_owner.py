"""page_owner's text: who allocated each page that is in use (mm/page_owner.c ``read_page_owner``).

The records are made by the buddy core (``core.owner``); this module prints them from any PFN on, a slice of PFNs at
a time, with what repeats (stacks, flags, masks) rendered once. Left out: pages that were in use before page_owner
was, which the model records like all others, and objects of slab pages charged to a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kmemd.core import pages as p
from kmemd.core.buddy import Buddy
from kmemd.core.context import Context
from kmemd.core.owner import ALLOCATED, OwnerTable
from kmemd.core.pages import PageMap
from kmemd.debug.kallsyms import Kallsyms
from kmemd.mm.gfp import format_gfp, gfp_migratetype
from kmemd.mm.mmzone import MIGRATETYPE_NAMES, Zone
from kmemd.mm.page_flags import PageFlags

STACK_DEPTH = 16
SLICE_PAGES = 4096

MIGRATE_REASONS = (
    "compaction",
    "memory_failure",
    "memory_hotplug",
    "syscall_or_cpuset",
    "mempolicy_mbind",
    "numa_misplaced",
    "contig_range",
    "longterm_pin",
    "demotion",
)

CHARGED = 1 << p.PG_LRU | 1 << p.PG_SWAPBACKED | 1 << p.PG_UNEVICTABLE
"""Flags that only pages of user memory and of files have, which are charged to a memory cgroup."""


class PageOwner:
    """The file of one kernel. ``table`` is None when it was not booted with ``page_owner=on``.

    ``count_threshold``: stacks that hold fewer pages are left out of ``stacks``.
    ``memcg_name(pfn)`` names the memory cgroup that a page is charged to, and says when it was removed.
    """

    def __init__(
        self,
        table: OwnerTable | None,
        pages: PageMap,
        buddy: Buddy,
        zones: Sequence[Zone],
        context: Context,
        kallsyms: Kallsyms,
        page_flags: PageFlags,
        memcg_name: Callable[[int], str] = lambda pfn: "memcg /",
    ) -> None:
        self.table = table
        self._pages = pages
        self._buddy = buddy
        self._zones = [zone for zone in zones if zone.present]
        self._context = context
        self._kallsyms = kallsyms
        self._flags = page_flags
        self._memcg_name = memcg_name
        self.count_threshold = 0
        self._stacks: dict[int, str] = {}
        self._masks: dict[int, tuple[str, str]] = {}

    @property
    def enabled(self) -> bool:
        """Whether the machine was booted with ``page_owner=on``."""
        return self.table is not None

    def text(self, pfn: int = 0) -> Iterator[str]:
        """The records of the pages from ``pfn`` on, by PFN, in pieces of some hundred kilobytes."""
        table = self.table
        if table is None:
            return
        for zone in sorted(self._zones, key=lambda zone: zone.start_pfn):
            end = zone.start_pfn + zone.spanned
            for start in range(max(pfn, zone.start_pfn), end, SLICE_PAGES):
                heads = self._heads(table, start, min(start + SLICE_PAGES, end))
                if len(heads):
                    yield "".join(self._records(table, zone, heads))

    def stacks(self) -> Iterator[str]:
        """Each stack that holds pages, the one that was met last first, and how many: ``count_threshold`` at least
        (``stack_print`` of Linux 6.9).
        """
        table = self.table
        if table is None:
            return
        heads = self._heads(table, 0, table.max_pfn)
        handles, place = np.unique(table.stack[heads], return_inverse=True)
        held = np.bincount(place, weights=1 << table.order[heads].astype(np.int64)).astype(np.int64)
        for handle, pages in zip(handles[::-1].tolist(), held[::-1].tolist(), strict=True):
            if pages >= max(self.count_threshold, 1):
                yield f"{self._stacks.get(handle) or self._stack(handle)}nr_base_pages: {pages}\n\n"

    @staticmethod
    def _heads(table: OwnerTable, start: int, end: int) -> npt.NDArray[np.int64]:
        """The PFNs in a range that have a record of their own: in use, and first of their block."""
        pfns = np.flatnonzero(table.allocated[start:end] == ALLOCATED) + start
        inside = (1 << table.order[pfns].astype(np.int64)) - 1
        heads: npt.NDArray[np.int64] = pfns[(pfns & inside == 0) & (table.stack[pfns] != 0)]
        return heads

    def _records(self, table: OwnerTable, zone: Zone, heads: npt.NDArray[np.int64]) -> Iterator[str]:
        """The records of the pages ``heads``, those of one allocation in a row at a time."""
        blocks = heads >> self._buddy.pageblock_order
        alike = (
            table.order[heads],
            table.gfp[heads],
            table.pid[heads],
            table.tgid[heads],
            table.comm[heads],
            table.stack[heads],
            self._pages.flags[heads],
            np.asarray(self._buddy.block_type)[blocks],
            table.migrate_reason[heads],
            self._pages.memcg[heads],
        )
        changed = np.zeros(len(heads) - 1, dtype=bool)
        for column in alike:
            changed |= column[1:] != column[:-1]
        own = [column.tolist() for column in (table.ts[heads], table.free_ts[heads], heads, blocks)]
        shared = [column.tolist() for column in alike]
        ends = [*(np.flatnonzero(changed) + 1).tolist(), len(heads)]
        for first, end in pairwise([0, *ends]):
            before, between, behind = self._around(zone, *(column[first] for column in shared[:-2]))
            flags, reason, group = shared[-4][first], shared[-2][first], shared[-1][first]
            for ts, free_ts, pfn, block in zip(*(column[first:end] for column in own), strict=True):
                tail = self._tail(pfn, flags, reason, group) if flags & CHARGED or reason or group else ""
                yield f"{before}{ts} ns, free_ts {free_ts} ns\nPFN {pfn}{between}{block}{behind}{tail}\n"

    def _around(
        self,
        zone: Zone,
        order: int,
        gfp: int,
        pid: int,
        tgid: int,
        comm: int,
        stack: int,
        flags: int,
        block_type: int,
    ) -> tuple[str, str, str]:
        """What stands before, between and behind the numbers that only one page has."""
        mask, mobility = self._masks.get(gfp) or self._mask(gfp)
        return (
            f"Page allocated via order {order}, mask {mask}, pid {pid}, tgid {tgid} ({self._context.comms[comm]}), ts ",
            f" type {mobility} Block ",
            f" type {MIGRATETYPE_NAMES[block_type]} Flags {self._flags.show(flags, zone.nid, zone.kind)}\n"
            f"{self._stacks.get(stack) or self._stack(stack)}",
        )

    def _mask(self, gfp: int) -> tuple[str, str]:
        """``mask %#x(%pGg)`` and the mobility that a GFP mask asks for."""
        pair = (f"{gfp:#x}({format_gfp(gfp)})", MIGRATETYPE_NAMES[gfp_migratetype(gfp)])
        self._masks[gfp] = pair
        return pair

    def _stack(self, handle: int) -> str:
        lines = self._kallsyms.stack(handle)[:STACK_DEPTH]
        text = self._stacks[handle] = "".join(f" {line}\n" for line in lines)
        return text

    def _tail(self, pfn: int, flags: int, reason: int, group: int) -> str:
        """The lines behind the stack: why the page was migrated, and which group it is charged to."""
        text = ""
        if reason:
            text = f"Page has been migrated, last migrate reason: {MIGRATE_REASONS[reason - 1]}\n"
        if flags & CHARGED or group:
            text += f"Charged {'(via objcg) ' if group < 0 else ''}to {self._memcg_name(pfn)}\n"
        return text

    def check(self) -> None:
        """A page in use has a record, and one on a free list has none."""
        if self.table is None:
            return
        kind = self._pages.kind[: self.table.max_pfn]
        free = (kind == p.IN_BUDDY) | (kind == p.IN_PCP)
        assert not np.any(free & (self.table.allocated[: len(kind)] == ALLOCATED))
