"""khugepaged: makes huge pages of small ones (mm/khugepaged.c).

Models: the address spaces that it looks at, in turn, so many pages at a time, by the model's clock; the limits of what
it collapses (empty, swapped and shared pages); where the huge page comes from; MADV_COLLAPSE, the same at once.
Left out: pages of files, node distances under zone_reclaim_mode, pins.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import pte, stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_CONTENT, PG_LRU, PG_REFERENCED, PageMap
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.clock import HZ, NSEC_PER_SEC, Clock
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.huge_page import HugePages
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.rmap import Rmap
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vmstat import VmStat

Entries = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

NSEC_PER_MSEC = 1_000_000
JIFFY_NS = NSEC_PER_SEC // HZ
PMD = 1
HERE = pte.PRESENT | pte.PROTNONE
FRAMES = ("hpage_collapse_alloc_page", "collapse_huge_page", "hpage_collapse_scan_pmd", "khugepaged", "kthread")


class Scan(Enum):
    """What came of looking at a huge page's range (``enum scan_result``), as far as it decides anything."""

    FAIL = auto()
    SUCCEED = auto()
    PMD_NULL = auto()
    PMD_NONE = auto()
    PMD_MAPPED = auto()
    EXCEED_NONE_PTE = auto()
    EXCEED_SWAP_PTE = auto()
    EXCEED_SHARED_PTE = auto()
    PTE_NON_PRESENT = auto()
    PAGE_RO = auto()
    LACK_REFERENCED_PAGE = auto()
    PAGE_NULL = auto()
    PAGE_LRU = auto()
    PAGE_ANON = auto()
    ALLOC_HUGE_PAGE_FAIL = auto()
    CGROUP_CHARGE_FAIL = auto()


EVENTS = {
    Scan.EXCEED_NONE_PTE: stats.THP_SCAN_EXCEED_NONE_PTE,
    Scan.EXCEED_SWAP_PTE: stats.THP_SCAN_EXCEED_SWAP_PTE,
    Scan.EXCEED_SHARED_PTE: stats.THP_SCAN_EXCEED_SHARED_PTE,
}
_NAMES_OF_EVENT = (
    *("FAIL", "SUCCEED", "PMD_NULL", "PMD_NONE", "PMD_MAPPED", "EXCEED_NONE_PTE", "EXCEED_SWAP_PTE"),
    *("EXCEED_SHARED_PTE", "PTE_NON_PRESENT", "PTE_UFFD_WP", "PTE_MAPPED_HUGEPAGE", "PAGE_RO", "LACK_REFERENCED_PAGE"),
    *("PAGE_NULL", "SCAN_ABORT", "PAGE_COUNT", "PAGE_LRU", "PAGE_LOCK", "PAGE_ANON", "PAGE_COMPOUND", "ANY_PROCESS"),
    *("VMA_NULL", "VMA_CHECK", "ADDRESS_RANGE", "DEL_PAGE_LRU", "ALLOC_HUGE_PAGE_FAIL", "CGROUP_CHARGE_FAIL"),
)
SCAN_RESULT = {result: _NAMES_OF_EVENT.index(result.name) for result in Scan}
"""The results' numbers in trace events (``enum scan_result``)."""
GO_ON = {
    *(Scan.PMD_NULL, Scan.PTE_NON_PRESENT, Scan.PAGE_RO, Scan.LACK_REFERENCED_PAGE),
    *(Scan.PAGE_NULL, Scan.PAGE_LRU),
}
"""Failures after which MADV_COLLAPSE looks at the next range all the same."""


class Collapsed(Protocol):
    """Puts a huge page where small ones were."""

    def install_collapsed(self, mm: Mm, vma: Vma, vpn: int, head: int) -> None:
        """A huge entry in place of a page table that is empty now."""


@dataclass(slots=True)
class Slot:
    """An address space that khugepaged looks at (``struct khugepaged_mm_slot``)."""

    mm: Mm
    exited: bool = False


class KhugepagedSlots:
    """The registered address spaces, in the order in which they are looked at. ``wake`` is called for the first one.

    Invariants: an address space is registered once; the one being looked at stays until khugepaged goes on.
    """

    def __init__(self, settings: HugeMemory) -> None:
        self._settings = settings
        self._wake: Callable[[], None] = lambda: None
        self.slots: list[Slot] = []
        self.cursor: Slot | None = None

    def when_first(self, wake: Callable[[], None]) -> None:
        """Who is to be told that there is work."""
        self._wake = wake

    def enter(self, mm: Mm, vma: Vma) -> None:
        """A mapping may have huge pages: look at its address space (``khugepaged_enter_vma``)."""
        if not self._settings.khugepaged_runs or any(slot.mm is mm for slot in self.slots):
            return
        if self._settings.allowed(vma):
            self.slots.append(Slot(mm))
            if len(self.slots) == 1:
                self._wake()

    def fork(self, child: Mm, parent: Mm) -> None:
        """A child of an address space that is looked at is looked at, too (``khugepaged_fork``)."""
        if any(slot.mm is parent for slot in self.slots):
            self.slots.append(Slot(child))

    def exit(self, mm: Mm) -> None:
        """An address space ends (``khugepaged_exit``)."""
        for slot in [slot for slot in self.slots if slot.mm is mm]:
            slot.exited = True
            if slot is not self.cursor:
                self.slots.remove(slot)

    def next(self) -> Slot:
        """The one to look at, the first when a round begins. Preconditions: there is one."""
        self.cursor = self.cursor or self.slots[0]
        return self.cursor

    def done(self, slot: Slot) -> bool:
        """All of an address space was looked at: go on to the next. Whether the round is over."""
        at = self.slots.index(slot)
        last = at + 1 == len(self.slots)
        self.cursor = None if last else self.slots[at + 1]
        self.leave(slot)
        return last

    def leave(self, slot: Slot) -> None:
        """Forget an address space that ended (``collect_mm_slot``)."""
        if slot.exited and slot in self.slots:
            self.slots.remove(slot)


@dataclass
class _Look:
    """What a range of small pages is like: its entries, the pages they map and which entries those are."""

    entries: Entries
    places: Places
    pfns: Places
    heads: Places
    unmapped: Places
    result: Scan = Scan.SUCCEED


class Khugepaged:
    """The daemon. ``zap(mm, start, end)`` takes all pages out of a range of addresses; ``swap_in(mm, vma, vpn)`` brings
    one back from swap, or says that it could not; ``run_as(comm)`` lets a kernel thread execute."""

    def __init__(
        self,
        settings: HugeMemory,
        slots: KhugepagedSlots,
        clock: Clock,
        context: Context,
        depot: StackDepot,
        huge: HugePages,
        mmu: Mmu,
        pages: PageMap,
        rmap: Rmap,
        lru: Lru,
        page_alloc: PageAllocator,
        vmstat: VmStat,
        target: Collapsed,
        zap: Callable[[Mm, int, int], None],
        swap_in: Callable[[Mm, Vma, int], bool],
        run_as: Callable[[str], None],
        charge: Callable[[Mm, int, int], bool],
    ) -> None:
        self._charge_page = charge
        self._settings = settings
        self._slots = slots
        self._clock = clock
        self._context = context
        self._huge = huge
        self._mmu = mmu
        self._pages = pages
        self._rmap = rmap
        self._lru = lru
        self._page_alloc = page_alloc
        self._vmstat = vmstat
        self._target = target
        self._zap = zap
        self._swap_in = swap_in
        self._run_as = run_as
        self._site = depot.save(FRAMES)
        self._address = 0
        self._turn = 0
        self._progress = 0
        self._may_wait = True
        slots.when_first(self.wake)
        settings.when_started(self.wake)

    # -- the daemon --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Begin a scan now if there is anything to scan; what was planned for later is off."""
        self._turn += 1
        self._progress, self._may_wait = 0, True
        if self._has_work():
            self._plan(0)
        elif not self._settings.khugepaged_runs:
            self._slots.cursor = None

    def _has_work(self) -> bool:
        return bool(self._slots.slots) and self._settings.khugepaged_runs

    def _plan(self, delay_ns: int) -> None:
        turn = self._turn
        self._clock.call_at(self._clock.now + delay_ns, lambda: self._run(turn))

    def _run(self, turn: int) -> None:
        """Scan, then sleep (``khugepaged``)."""
        if turn != self._turn or not self._settings.khugepaged_runs:
            return
        words = self._context.words.copy()
        self._run_as("khugepaged")
        self._context.site = self._site
        try:
            failed = self._do_scan()
        finally:
            now = self._context.now
            self._context.words[:] = words
            self._context.now = now
        if failed:
            self._plan(max(self._settings.alloc_sleep_millisecs * NSEC_PER_MSEC, JIFFY_NS))
        elif self._has_work():
            self._plan(max(self._settings.scan_sleep_millisecs * NSEC_PER_MSEC, JIFFY_NS))

    def _do_scan(self) -> bool:
        """Look at ``pages_to_scan`` pages (``khugepaged_do_scan``). True: a huge page was not to be had; go on after a
        while, once."""
        pages = self._settings.pages_to_scan
        rounds = 0
        if self._may_wait:
            self._lru.drain_all()
        while self._progress < pages:
            rounds += self._slots.cursor is None
            if not self._has_work() or rounds >= 2:
                break
            progress, result = self._scan_slot(pages - self._progress)
            self._progress += progress
            if result is Scan.ALLOC_HUGE_PAGE_FAIL and self._progress < pages:
                if not self._may_wait:
                    break
                self._may_wait = False
                return True
        self._progress, self._may_wait = 0, True
        return False

    def _scan_slot(self, pages: int) -> tuple[int, Scan]:
        """Look at one address space until ``pages`` are done, a huge page was tried, or it ends
        (``khugepaged_scan_mm_slot``): progress and the last result."""
        if self._slots.cursor is None:
            self._address = 0
        slot = self._slots.next()
        progress, result = 1, Scan.FAIL
        finished = slot.exited
        if not finished:
            more, result, finished = self._scan_mm(slot.mm, pages)
            progress += more
        if finished:
            self._address = 0
            if self._slots.done(slot):
                self._settings.full_scans += 1
        return progress, result

    def _scan_mm(self, mm: Mm, pages: int) -> tuple[int, Scan, bool]:
        """Progress, the last result, and whether all mappings were looked at."""
        progress, result, size = 1, Scan.FAIL, self._settings.hpage_pmd_size
        for vma in mm.vmas[mm.position(self._address) :]:
            start, end = -(-vma.start // size) * size, vma.end // size * size
            if not self._settings.allowed(vma) or self._address > end:
                progress += 1
                continue
            self._address = max(self._address, start)
            while self._address < end:
                result, tried = self._look_and_collapse(mm, vma, self._address >> PAGE_SHIFT)
                self._settings.pages_collapsed += result is Scan.SUCCEED
                self._address += size
                progress += self._settings.pages
                if tried or progress >= pages:
                    return progress - 1, result, False
        return progress - 1, result, True

    # -- one range ---------------------------------------------------------------------------------------

    def _look_and_collapse(self, mm: Mm, vma: Vma, vpn: int, *, forced: bool = False) -> tuple[Scan, bool]:
        """Look at the small pages of one range and collapse them if they are worth it (``hpage_collapse_scan_pmd``):
        the result, and whether a collapse was tried."""
        if not vma.is_anon:
            return Scan.FAIL, False
        found = self._table(mm, vpn)
        if isinstance(found, Scan):
            return found, False
        look = self._examine(found, forced=forced)
        self._trace_look(mm, look)
        if look.result is not Scan.SUCCEED:
            if look.result in EVENTS:
                self._vmstat.count(EVENTS[look.result])
            return look.result, False
        result = self._collapse(mm, vma, vpn, found, look, forced=forced)
        self._vmstat.trace.emit(ev.MM_COLLAPSE_HUGE_PAGE, mm.id, result is Scan.SUCCEED, SCAN_RESULT[result])
        return result, True

    def _trace_look(self, mm: Mm, look: _Look, *, again: bool = False) -> None:
        """What a look at a table found (mm_khugepaged_scan_pmd, mm_collapse_huge_page_isolate)."""
        event, trace = ev.MM_COLLAPSE_HUGE_PAGE_ISOLATE if again else ev.MM_KHUGEPAGED_SCAN_PMD, self._vmstat.trace
        if not trace.on(event):
            return
        mapped = look.entries[look.places]
        pfn = int(look.heads[0]) if len(look.heads) else -1
        referenced = self._referenced(look)
        writable = bool((mapped & np.uint64(pte.RW) != 0).any())
        empty = len(look.entries) - len(look.places) - len(look.unmapped)
        result = SCAN_RESULT[look.result]
        if again:
            trace.emit(event, pfn, empty, referenced, writable, result)
        else:
            trace.emit(event, mm.id, pfn, writable, referenced, empty, result, len(look.unmapped))

    def _table(self, mm: Mm, vpn: int) -> int | Scan:
        """The first entry of the range's page table, or why there is none (``find_pmd_or_thp_or_none``)."""
        slot = self._mmu.entry_slot(mm.id, vpn, PMD)
        if slot < 0:
            return Scan.PMD_NULL
        entry = int(self._mmu.words[slot])
        if not entry:
            return Scan.PMD_NONE
        return Scan.PMD_MAPPED if entry & pte.PSE else int(self._mmu.slot(mm.id, vpn))

    def _examine(self, first: int, *, forced: bool) -> _Look:
        """Whether the entries of a table are worth a huge page; the first that is not decides."""
        entries = self._mmu.words[first : first + self._settings.pages].copy()
        here = entries & np.uint64(HERE) != 0
        frames = ((entries & np.uint64(pte.PFN_MASK)) >> np.uint64(pte.PFN_SHIFT)).astype(np.int64)
        empty = (entries == 0) | (here & (frames == self._mmu.zero_pfn))
        unmapped = np.flatnonzero(~here & (entries != 0))
        places = np.flatnonzero(here & ~empty)
        pfns = frames[places]
        special = entries[places] & np.uint64(pte.SPECIAL) != 0
        heads = np.array([self._rmap.head(pfn) for pfn in pfns.tolist()], dtype=np.int64)
        look = _Look(entries, places, pfns, heads, unmapped)
        shared = self._mapcounts(pfns, heads) > 1
        on_lru = self._pages.flags[heads] >> np.uint32(PG_LRU) & np.uint32(1) != 0
        limits = self._settings
        stops = [
            (_beyond(unmapped, limits.max_ptes_swap, forced), Scan.EXCEED_SWAP_PTE),
            (_beyond(np.flatnonzero(empty), limits.max_ptes_none, forced), Scan.EXCEED_NONE_PTE),
            (_first(places[special]), Scan.PAGE_NULL),
            (_beyond(places[shared], limits.max_ptes_shared, forced), Scan.EXCEED_SHARED_PTE),
            (_first(places[~on_lru]), Scan.PAGE_LRU),
            (_first(places[self._pages.mapping[heads] <= 0]), Scan.PAGE_ANON),
        ]
        place, result = min(stops, key=lambda stop: stop[0])
        look.result = result if place < len(entries) else self._worth(look, forced=forced)
        return look

    def _worth(self, look: _Look, *, forced: bool) -> Scan:
        mapped = look.entries[look.places]
        if not (mapped & np.uint64(pte.RW) != 0).any():
            return Scan.PAGE_RO
        referenced = self._referenced(look)
        few = not referenced or (len(look.unmapped) > 0 and referenced < self._settings.pages // 2)
        return Scan.LACK_REFERENCED_PAGE if few and not forced else Scan.SUCCEED

    def _referenced(self, look: _Look) -> int:
        """Pages that somebody used."""
        flags = self._pages.flags[look.heads] >> np.uint32(PG_REFERENCED) & np.uint32(1) != 0
        return int(((look.entries[look.places] & np.uint64(pte.ACCESSED) != 0) | flags).sum())

    def _trace_swapin(self, mm: Mm, look: _Look, brought: int, *, done: bool) -> None:
        if self._vmstat.trace.on(ev.MM_COLLAPSE_HUGE_PAGE_SWAPIN):
            self._vmstat.trace.emit(ev.MM_COLLAPSE_HUGE_PAGE_SWAPIN, mm.id, brought, self._referenced(look), int(done))

    def _mapcounts(self, pfns: Places, heads: Places) -> Places:
        """How often each page is mapped, alone or with the huge page that it is in (``page_mapcount``)."""
        compound = self._pages.order[heads] > 0
        whole = np.where(compound, self._pages.mapping[np.minimum(heads + 1, self._pages.max_pfn - 1)], 0)
        return self._pages.mapcount[pfns].astype(np.int64) + whole

    def _collapse(self, mm: Mm, vma: Vma, vpn: int, first: int, look: _Look, *, forced: bool) -> Scan:
        """A huge page with the content of the small ones in their place (``collapse_huge_page``)."""
        nid, nodemask = self._target_nodes(look.heads)
        gfp = g.GFP_TRANSHUGE if forced else self._settings.collapse_gfp()
        try:
            head = self._page_alloc.alloc_pages(gfp, self._mmu.bits, nid, nodemask)
        except KernelError:
            self._vmstat.count(stats.THP_COLLAPSE_ALLOC_FAILED)
            return Scan.ALLOC_HUGE_PAGE_FAIL
        self._vmstat.count(stats.THP_COLLAPSE_ALLOC)
        if not self._charge_page(mm, head, gfp):
            self._page_alloc.free_pages(head, self._mmu.bits)
            return Scan.CGROUP_CHARGE_FAIL
        result = self._bring_in(mm, vma, vpn, look)
        if result is Scan.SUCCEED:
            look = self._examine(first, forced=forced)
            self._trace_look(mm, look, again=True)
            result = Scan.PTE_NON_PRESENT if len(look.unmapped) else look.result
        if result is not Scan.SUCCEED:
            self._page_alloc.free_pages(head, self._mmu.bits)
            return result
        self._huge.clear(self._settings.pages)
        for place, pfn in zip(look.places.tolist(), look.pfns.tolist(), strict=True):
            if self._huge.has_flag(pfn, PG_CONTENT):
                self._mmu.copied(pfn, head + place)
        self._rmap.prepare(mm, vma)
        self._zap(mm, vpn << PAGE_SHIFT, (vpn + self._settings.pages) << PAGE_SHIFT)
        self._target.install_collapsed(mm, vma, vpn, head)
        return Scan.SUCCEED

    def _target_nodes(self, heads: Places) -> tuple[int, int]:
        """The node that has most of the pages, and all that have as many (``hpage_collapse_find_target_node``)."""
        load: dict[int, int] = {}
        for head in heads.tolist():
            nid = self._huge.nid(head)
            load[nid] = load.get(nid, 0) + 1
        most = max(load.values())
        nodes = sorted(nid for nid, count in load.items() if count == most)
        return nodes[0], sum(1 << nid for nid in nodes)

    def _bring_in(self, mm: Mm, vma: Vma, vpn: int, look: _Look) -> Scan:
        """Bring what is missing in from swap (``__collapse_huge_page_swapin``)."""
        brought = 0
        for place in look.unmapped.tolist():
            if not self._swap_in(mm, vma, vpn + place):
                self._trace_swapin(mm, look, brought, done=False)
                return Scan.FAIL
            brought += 1
        if len(look.unmapped):
            self._lru.drain_local()
        self._trace_swapin(mm, look, brought, done=True)
        return Scan.SUCCEED

    # -- MADV_COLLAPSE -----------------------------------------------------------------------------------

    def madvise_collapse(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Make huge pages of all whole ranges of ``[start, end)`` now, whatever the switches say. EINVAL, ENOMEM,
        EAGAIN."""
        if not self._settings.allowed(vma, enforce=False):
            raise KernelError(errno.EINVAL, f"the mapping at {vma.start:#x} cannot have huge pages")
        self._lru.drain_all()
        size, made, last = self._settings.hpage_pmd_size, 0, Scan.FAIL
        first, until = -(-start // size) * size, end // size * size
        for address in range(first, until, size):
            result, _ = self._look_and_collapse(mm, vma, address >> PAGE_SHIFT, forced=True)
            if result in (Scan.SUCCEED, Scan.PMD_MAPPED):
                made += 1
                continue
            last = result
            if result not in GO_ON:
                break
        if made != max(until - first, 0) // size:
            raise KernelError(_errno_of(last), f"collapsed {made} huge pages, then: {last.name.lower()}")


def _errno_of(result: Scan) -> int:
    """``madvise_collapse_errno``."""
    if result is Scan.ALLOC_HUGE_PAGE_FAIL:
        return errno.ENOMEM
    return errno.EAGAIN if result is Scan.PAGE_LRU else errno.EINVAL


def _first(places: Places) -> int:
    """The first of some places; beyond all when there is none."""
    return int(places[0]) if len(places) else 1 << 30


def _beyond(places: Places, limit: int, forced: bool) -> int:
    """The place at which there are more than ``limit``; beyond all when there are not, or nobody counts."""
    return _first(places[limit:]) if not forced else 1 << 30
