"""Whether pages are in use, and shrinking of lists (mm/vmscan.c ``shrink_active_list``, ``shrink_inactive_list``).

Models: isolating pages, asking page tables by the reverse map who used them (mm/rmap.c ``folio_referenced``), second
chances, program text that stays active, pages under write-back or dirty, huge pages that go whole or are split. What
becomes of pages that may go is mm/pageout.py's. Left out: too many isolated pages, for one reclaim runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.lru import Lru
from kmemd.core.lru_lists import LRU_INACTIVE_FILE
from kmemd.core.mmu import Mmu
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_HEAD,
    PG_IDLE,
    PG_MLOCKED,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    PG_WORKINGSET,
    PG_WRITEBACK,
    PG_YOUNG,
    PageMap,
)
from kmemd.core.rmap import MappedPages
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.filemap import PageCache, PFNs, ZoneCounts, flag
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.mm_types import VM_EXEC, Mm, Vma
from kmemd.mm.pageout import PageOut
from kmemd.mm.rmap import Rmap
from kmemd.mm.vmscan_balance import ScanControl
from kmemd.mm.vmstat import VmStat

Counts = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

PGDAT_DIRTY, PGDAT_WRITEBACK = 1, 2
_ACTIVE, _DIRTY, _REFERENCED = flag(PG_ACTIVE), flag(PG_DIRTY), flag(PG_REFERENCED)
_SWAPBACKED, _WRITEBACK, _RECLAIM = flag(PG_SWAPBACKED), flag(PG_WRITEBACK), flag(PG_RECLAIM)
_IDLE, _YOUNG = flag(PG_IDLE), flag(PG_YOUNG)
_LOCKED_IN = flag(PG_MLOCKED, PG_UNEVICTABLE)
NONE: PFNs = np.zeros(0, dtype=np.int64)


class ListScan:
    """Scans of single lists. ``wakeup_flushers()`` starts write-back; ``state`` has PGDAT_* by node;
    ``drop_clean(pfns)`` drops pages that need nothing else, and gives their number and the other pages.
    ``deactivate_unmapped(pfns)`` makes isolated pages inactive if nobody has to be asked about any, and says whether.
    """

    def __init__(
        self,
        pages: PageMap,
        lru: Lru,
        lruvecs: LruVecs,
        mmu: Mmu,
        rmap: Rmap,
        cache: PageCache,
        counts: ZoneCounts,
        vmstat: VmStat,
        pageout: PageOut,
        wakeup_flushers: Callable[[], None],
        zones_per_node: int,
    ) -> None:
        self._pages, self._lru, self._lruvecs, self._mapped = pages, lru, lruvecs, MappedPages(mmu)
        self._rmap, self._cache, self._counts, self._vmstat = rmap, cache, counts, vmstat
        self._pageout, self.wakeup_flushers = pageout, wakeup_flushers
        self._skipped = np.zeros(zones_per_node, dtype=np.int64)
        self._out = np.empty(64, dtype=np.int64)
        self.state: dict[int, int] = {}
        self.drop_clean: Callable[[PFNs], tuple[int, PFNs]] = lambda pfns: (0, pfns)
        self.deactivate_unmapped: Callable[[PFNs], bool] = lambda pfns: False
        # with generations, told of pages that were used and where they are mapped
        self.look_around: Callable[[Mm, Vma, PFNs, PFNs], None] | None = None

    # -- isolating ---------------------------------------------------------------------------------------

    def isolate(self, memcg: int, nid: int, which: int, count: int, sc: ScanControl) -> tuple[PFNs, int, int]:
        """The oldest pages of a list, how many were scanned, how many pages they are."""
        self._lru.drain_local()
        self._pageout.looked_at(count)
        if len(self._out) < count:
            self._out = np.empty(count, dtype=np.int64)
        number = self._lruvecs.number(memcg, nid)
        blocks, scanned, taken = self._lru.isolate(
            number, which, count, sc.reclaim_idx, sc.may_unmap, self._out, self._skipped
        )
        if self._vmstat.trace.any_on:
            skipped = int(self._skipped.sum())
            trace_points.lru_isolate(self._vmstat.trace, sc, which, count, scanned, skipped, taken)
        if scanned != taken:
            for kind in np.flatnonzero(self._skipped).tolist():
                self._vmstat.count(stats.PGSCAN_SKIP + kind, int(self._skipped[kind]))
            self._skipped[:] = 0
        if taken:
            self._vmstat.node_stat[nid, stats.NR_ISOLATED_ANON + (which >= LRU_INACTIVE_FILE)] += taken
        return self._out[:blocks].copy(), scanned, taken

    # -- references --------------------------------------------------------------------------------------

    def referenced(self, pfns: PFNs) -> tuple[Counts, Marks]:
        """How many mappings used each page since the last time somebody asked, and whether one may execute it."""
        counts = np.zeros(len(pfns), dtype=np.int64)
        execs = np.zeros(len(pfns), dtype=bool)
        mapped = np.flatnonzero(self._pages.mapcount[pfns] > 0)
        huge = self._pages.flags[pfns] & flag(PG_HEAD) != 0
        for at in np.flatnonzero(huge).tolist():
            counts[at] = self._huge_referenced(int(pfns[at]))
        mapped = mapped[~huge[mapped]]
        owners = self._pages.mapping[pfns[mapped]]
        for owner in np.unique(owners).tolist():
            mine = mapped[owners == owner]
            for mm, vma in self._mappings(owner):
                self._ask(mm, vma, pfns, mine, counts, execs)
        self._was_young(pfns, counts)
        return counts, execs

    def _was_young(self, pfns: PFNs, counts: Counts) -> None:
        """Idle page tracking made entries old before: their pages count as used. Those that are used are not idle."""
        flags = self._pages.flags
        tracked = flags[pfns] & (_IDLE | _YOUNG)
        if tracked.any():
            young = (tracked & _YOUNG != 0) & (self._pages.mapcount[pfns] > 0)
            np.maximum(counts, young, out=counts)
            flags[pfns[young]] &= ~_YOUNG
            flags[pfns[counts > 0]] &= ~_IDLE

    def _mappings(self, owner: int) -> list[tuple[Mm, Vma]]:
        if owner > 0:
            anon = self._rmap.anon_vma(owner)
            return [(mm, vma) for vma, mm in anon.vmas.items()] if anon is not None else []
        file = self._cache.files.get(-owner)
        return list(file.mappings()) if file is not None else []

    def _ask(self, mm: Mm, vma: Vma, pfns: PFNs, mine: PFNs, counts: Counts, execs: Marks) -> None:
        """One mapping's entries of pages."""
        vpns = vma.vpn + self._pages.index[pfns[mine]] - vma.pgoff
        inside = (vpns >= vma.vpn) & (vpns < vma.vpn + vma.pages)
        mine = mine[inside]
        if not len(mine):
            return
        young = np.empty(len(mine), dtype=np.uint8)
        self._mapped.young(mm.id, np.ascontiguousarray(vpns[inside]), np.ascontiguousarray(pfns[mine]), young)
        used = young == 3
        counts[mine] += used
        if self.look_around is not None and used.any():
            self.look_around(mm, vma, vpns[inside][used], pfns[mine][used])
        if vma.flags & VM_EXEC:
            execs[mine] |= young == 3

    def _huge_referenced(self, head: int) -> int:
        """A huge page's mappings, whole or in parts, that used it."""
        used = 0
        one = np.empty(1, dtype=np.uint8)
        for part in range(head, head + (1 << int(self._pages.order[head]))):
            whole = part == head
            if not whole and not self._pages.mapcount[part]:
                continue
            for mm, _, vpn in self._rmap.walk(part):
                self._mapped.young(mm.id, np.array([vpn]), np.array([part]), one)
                used += int(one[0] == 3)
        return used

    # -- the active list ---------------------------------------------------------------------------------

    def shrink_active(self, memcg: int, nid: int, which: int, count: int, sc: ScanControl) -> None:
        """The oldest active pages become inactive; program text that was used stays (``shrink_active_list``)."""
        pfns, scanned, taken = self.isolate(memcg, nid, which, count, sc)
        if not sc.cgroup:
            self._vmstat.count(stats.PGREFILL, scanned)
        self._lruvecs.count(memcg, nid, -stats.PGREFILL, scanned)
        gone, used = (taken, 0) if self.deactivate_unmapped(pfns) else self._deactivate(pfns)
        self._vmstat.count(stats.PGDEACTIVATE, gone)
        self._lruvecs.count(memcg, nid, -stats.PGDEACTIVATE, gone)
        file = which >= LRU_INACTIVE_FILE
        if taken:
            self._vmstat.node_stat[nid, stats.NR_ISOLATED_ANON + file] -= taken
        self._vmstat.trace.emit(
            ev.MM_VMSCAN_LRU_SHRINK_ACTIVE,
            *(nid, taken, taken - gone, gone, used),
            *(sc.priority, trace_points.reclaim_flags(file)),
        )

    def _deactivate(self, pfns: PFNs) -> tuple[int, int]:
        """Isolated pages go to the inactive list unless they are locked, or program text that was used. How many go,
        and how many were used.
        """
        flags = self._pages.flags
        locked = flags[pfns] & _LOCKED_IN != 0
        if locked.any():
            self._lru.add_bulk(np.ascontiguousarray(pfns[locked]))
            pfns = pfns[~locked]
        counts, execs = self.referenced(pfns)
        stay = (counts > 0) & execs & (flags[pfns] & _SWAPBACKED == 0)
        old = np.ascontiguousarray(pfns[~stay])
        flags[old] = flags[old] & ~_ACTIVE | flag(PG_WORKINGSET)
        self._lru.putback(np.ascontiguousarray(pfns[stay]))
        self._lru.putback(old)
        return self._size(old), int(np.count_nonzero(counts))

    def _size(self, pfns: PFNs) -> int:
        return int((np.int64(1) << self._pages.order[pfns].astype(np.int64)).sum())

    # -- the inactive list -------------------------------------------------------------------------------

    def shrink_inactive(self, memcg: int, nid: int, which: int, count: int, sc: ScanControl) -> int:
        """The oldest inactive pages go, or get another chance (``shrink_inactive_list``). How many pages went."""
        pfns, scanned, taken = self.isolate(memcg, nid, which, count, sc)
        file = which >= LRU_INACTIVE_FILE
        if not taken:
            self.count_scan(memcg, nid, which, scanned, 0, sc)
            return 0
        before, unqueued = self._pageout.written, sc.nr.unqueued_dirty
        traced = self._vmstat.trace.on(ev.MM_VMSCAN_LRU_SHRINK_INACTIVE)
        then = (replace(sc.nr), self._pageout.activated.copy()) if traced else None
        freed, kept = self.shrink_folio_list(pfns, nid, sc, taken)
        if len(kept):
            self.putback(kept)
        self._vmstat.node_stat[nid, stats.NR_ISOLATED_ANON + file] -= taken
        self.count_scan(memcg, nid, which, scanned, freed, sc)
        self._lruvecs.note_cost(memcg, nid, self._pageout.written - before, file=file)
        if sc.nr.unqueued_dirty - unqueued == taken:
            self.wakeup_flushers()
        sc.nr.taken += taken
        sc.nr.file_taken += taken if file else 0
        if then is not None:
            nr, activated = then
            active = [now - old for now, old in zip(self._pageout.activated, activated, strict=True)]
            trace_points.shrink_inactive(self._vmstat.trace, nid, sc, scanned, freed, nr, active, file)
        return freed

    def count_scan(self, memcg: int, nid: int, which: int, scanned: int, freed: int, sc: ScanControl) -> None:
        """The events of a scan: pages that were looked at, and pages that were freed."""
        file = which >= LRU_INACTIVE_FILE
        scan = stats.PGSCAN_KSWAPD if sc.kswapd else stats.PGSCAN_DIRECT
        steal = stats.PGSTEAL_KSWAPD if sc.kswapd else stats.PGSTEAL_DIRECT
        for event, pages in ((scan, scanned), (steal, freed)):
            if not sc.cgroup:
                self._vmstat.count(event, pages)
            self._lruvecs.count(memcg, nid, -event, pages)
        self._vmstat.count(stats.PGSCAN_ANON + file, scanned)
        self._vmstat.count(stats.PGSTEAL_ANON + file, freed)

    def shrink_folio_list(
        self, pfns: PFNs, nid: int, sc: ScanControl, taken: int = -1, *, references: bool = True
    ) -> tuple[int, PFNs]:
        """Reclaim isolated pages, ``taken`` in all: how many were freed, and which ones were not, for ``putback``.
        Without ``references`` nobody is asked whether they were used."""
        flags = self._pages.flags
        sc.nr_scanned += self._size(pfns) if taken < 0 else taken
        dropped, pfns = (0, pfns) if self.look_around is not None else self.drop_clean(pfns)
        if not len(pfns):
            return dropped, pfns
        kept: list[PFNs] = []
        pfns = self._without(pfns, self._cache.pinned_of(pfns), kept)
        pfns = self._activated(pfns, flags[pfns] & _LOCKED_IN != 0, kept)
        pfns = self._without(pfns, (self._pages.mapcount[pfns] > 0) if not sc.may_unmap else None, kept)
        file = flags[pfns] & _SWAPBACKED == 0
        self._note_dirty(pfns[file], sc)
        pfns = self._activated(pfns, self._under_writeback(pfns, nid, sc), kept)
        if references:
            pfns = self._check_references(pfns, kept, sc)
        anon = flags[pfns] & _SWAPBACKED != 0
        if not sc.gfp & g.F.IO or not sc.may_writepage:
            pfns = self._without(pfns, anon, kept)
        heads = pfns[flags[pfns] & flag(PG_HEAD) != 0]
        if len(heads):
            pfns = self._split(pfns, heads, kept)
        freed = self._pageout.evict(np.ascontiguousarray(pfns), kept)
        return freed + dropped, np.concatenate(kept) if kept else NONE

    def putback(self, pfns: PFNs) -> None:
        """Isolated pages go to their lists again."""
        self._lru.putback(np.ascontiguousarray(pfns))

    def _without(self, pfns: PFNs, chosen: Marks | None, kept: list[PFNs]) -> PFNs:
        """Pages stay as they are."""
        if chosen is None or not chosen.any():
            return pfns
        kept.append(pfns[chosen])
        return pfns[~chosen]

    def _activated(self, pfns: PFNs, chosen: Marks, kept: list[PFNs]) -> PFNs:
        """Pages stay and are active."""
        if not chosen.any():
            return pfns
        kept.append(self._pageout.activate(pfns[chosen]))
        return pfns[~chosen]

    def _note_dirty(self, pfns: PFNs, sc: ScanControl) -> None:
        """Dirty pages of files, and those whose write-back reclaim met before (``folio_check_dirty_writeback``)."""
        flags = self._pages.flags[pfns]
        dirty, writeback = flags & _DIRTY != 0, flags & _WRITEBACK != 0
        sc.nr.dirty += int((dirty | writeback).sum())
        sc.nr.unqueued_dirty += int((dirty & ~writeback).sum())
        sc.nr.congested += int((writeback & (flags & _RECLAIM != 0)).sum())

    def _under_writeback(self, pfns: PFNs, nid: int, sc: ScanControl) -> Marks:
        """Pages on their way to a device are active until they have arrived."""
        flags = self._pages.flags
        writeback: Marks = flags[pfns] & _WRITEBACK != 0
        if writeback.any():
            again = writeback & (flags[pfns] & _RECLAIM != 0)
            if sc.kswapd and self.state.get(nid, 0) & PGDAT_WRITEBACK:
                sc.nr.immediate += int(again.sum())
                sc.nr.writeback += int((writeback & ~again).sum())
            else:
                sc.nr.writeback += int(writeback.sum())
            flags[pfns[writeback]] |= _RECLAIM
        return writeback

    def _check_references(self, pfns: PFNs, kept: list[PFNs], sc: ScanControl) -> PFNs:
        """``folio_check_references``: used twice makes active, used once keeps."""
        flags = self._pages.flags
        marked = flags[pfns] & _REFERENCED != 0
        flags[pfns] &= ~_REFERENCED
        mapped = self._pages.mapcount[pfns] > 0
        if not mapped.any() and not (flags[pfns] & flag(PG_HEAD)).any():
            return self._clean_only(pfns, marked, kept)
        counts, execs = self.referenced(pfns)
        used = counts > 0
        flags[pfns[used]] |= _REFERENCED
        file = flags[pfns] & _SWAPBACKED == 0
        active = used & (marked | (counts > 1) | (execs & file))
        rest = ~active & ~used
        if active.any():
            kept.append(self._pageout.activate(pfns[active]))
        if (used & ~active).any():
            kept.append(pfns[used & ~active])
            sc.nr.ref_keep += self._size(kept[-1])
        return self._clean_only(pfns[rest], marked[rest], kept)

    def _clean_only(self, pfns: PFNs, marked: Marks, kept: list[PFNs]) -> PFNs:
        """A page of a file that was marked as used goes if it is clean, and is not written for it
        (``FOLIOREF_RECLAIM_CLEAN``)."""
        flags = self._pages.flags[pfns]
        dirty_anon = marked & (flags & _SWAPBACKED == 0) & (flags & _DIRTY != 0) & (self._pages.mapping[pfns] > 0)
        return self._without(pfns, dirty_anon, kept)

    def _split(self, pfns: PFNs, heads: PFNs, kept: list[PFNs]) -> PFNs:
        """Huge pages become small ones, in the swap cache if they go whole; those that cannot stay active."""
        small = self._pageout.split_huge(heads)
        allocated = small[self._pages.mapcount[small] > 0]
        whole = heads[self._pages.flags[heads] & flag(PG_HEAD) != 0]
        if len(whole):
            kept.append(self._pageout.activate(whole))
        single = pfns[self._pages.flags[pfns] & flag(PG_HEAD) == 0]
        return np.unique(np.concatenate((single[~np.isin(single, heads)], allocated[~np.isin(allocated, whole)])))
