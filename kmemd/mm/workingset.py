"""Shadow entries: what is remembered of evicted pages, and what refaults say (mm/workingset.c).

Models: the age of a lruvec's non-resident pages, shadows in the page cache's empty slots and for swap slots, refault
distances, activation, restoring, and the cost that a restored page notes (mm/swap.c ``lru_note_cost``). A shadow is a
number below 0. Left out: bucket orders of machines too large for a shadow's bits, and the shrinker of the tree nodes
that hold nothing but shadows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru_lists import LRU_ACTIVE_ANON, LRU_ACTIVE_FILE, LRU_INACTIVE_ANON, LRU_INACTIVE_FILE
from kmemd.core.pages import PG_ACTIVE, PG_SWAPBACKED, PG_WORKINGSET, PageMap, lazy_zeros
from kmemd.core.pte import SWP_OFFSET_BITS
from kmemd.mm.filemap import PFNs, flag
from kmemd.mm.lru_gen import Generations
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.vmstat import VmStat

Shadows = npt.NDArray[np.int64]
Sizes = dict[tuple[int, int, int, bool], int]
"""What the pages that come back in one call compete with: none of them is on a list yet."""

NODES_SHIFT, MEM_CGROUP_ID_SHIFT, WORKINGSET_SHIFT = 10, 16, 1
EVICTION_SHIFT = NODES_SHIFT + MEM_CGROUP_ID_SHIFT + WORKINGSET_SHIFT
EVICTION_BITS = 62 - EVICTION_SHIFT
EVICTION_MASK = (1 << EVICTION_BITS) - 1
LRUVEC_MASK = (1 << NODES_SHIFT + MEM_CGROUP_ID_SHIFT) - 1
OFFSET_MASK = (1 << SWP_OFFSET_BITS) - 1
_WORKINGSET, _ACTIVE, _SWAPBACKED = flag(PG_WORKINGSET), flag(PG_ACTIVE), flag(PG_SWAPBACKED)
_LISTS = (LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE)


class Workingset:
    """Evictions and refaults. ``swap_left(memcg)`` tells the free swap slots that a cgroup may use.

    ``nid(pfns)`` gives the nodes of pages. ``thrashing``: a page is being read that was in the working set when it was
    evicted; who waits for it waits for want of memory (mm/filemap.c ``folio_wait_bit_common``).
    """

    def __init__(
        self,
        pages: PageMap,
        vmstat: VmStat,
        lruvecs: LruVecs,
        nid: Callable[[PFNs], npt.NDArray[np.int64]],
        swap_left: Callable[[int], int],
    ) -> None:
        self._pages, self._vmstat, self._lruvecs = pages, vmstat, lruvecs
        self._nid, self._swap_left = nid, swap_left
        self._swapped: dict[int, Shadows] = {}
        self.generations: Generations | None = None
        self.target_memcg = 0
        self.thrashing = False

    # -- eviction ----------------------------------------------------------------------------------------

    def eviction(self, pfns: PFNs) -> Shadows:
        """The shadows of pages that are reclaimed now, the first one first (``workingset_eviction``).

        The age that counts is that of the cgroup whose limit is reclaimed for.
        """
        shadows = np.zeros(len(pfns), dtype=np.int64)
        nids = self._nid(pfns)
        if self.generations is not None and self.generations.enabled:
            return self._gen_eviction(pfns, nids)
        memcg = self.target_memcg
        for nid in np.unique(nids).tolist():
            mine = nids == nid
            lruvec = self._lruvecs.get(memcg, nid)
            age = lruvec.nonresident_age + np.arange(int(mine.sum()), dtype=np.int64)
            self._lruvecs.age(memcg, nid, len(age))
            worked = (self._pages.flags[pfns[mine]] & _WORKINGSET != 0).astype(np.int64)
            packed = (age & EVICTION_MASK) << MEM_CGROUP_ID_SHIFT | memcg
            shadows[mine] = -1 - ((packed << NODES_SHIFT | nid) << WORKINGSET_SHIFT | worked)
        return shadows

    def _gen_eviction(self, pfns: PFNs, nids: npt.NDArray[np.int64]) -> Shadows:
        """Shadows that remember the generation and the tier of pages (``lru_gen_eviction``)."""
        assert self.generations is not None
        memcgs = self._pages.memcg[pfns].astype(np.int64)
        tokens, worked = np.empty(len(pfns), dtype=np.int64), np.empty(len(pfns), dtype=np.int64)
        self.generations.evicted(memcgs, nids, pfns, tokens, worked)
        packed = (tokens & EVICTION_MASK) << MEM_CGROUP_ID_SHIFT | memcgs
        shadows: Shadows = -1 - ((packed << NODES_SHIFT | nids) << WORKINGSET_SHIFT | worked)
        return shadows

    def keep_swapped(self, slots: PFNs, shadows: Shadows) -> None:
        """The swap cache forgets pages, and keeps their shadows at their slots."""
        for kind in np.unique(slots >> SWP_OFFSET_BITS).tolist():
            mine = slots >> SWP_OFFSET_BITS == kind
            offsets = slots[mine] & (1 << SWP_OFFSET_BITS) - 1
            self._of_type(kind, int(offsets.max()) + 1)[offsets] = shadows[mine]

    def take_swapped(self, slots: PFNs) -> Shadows:
        """The shadows at slots that get a page again; 0 where there is none."""
        found = np.zeros(len(slots), dtype=np.int64)
        if not self._swapped or not len(slots):
            return found
        few = slots.tolist()
        first, last = min(few), max(few)
        if first >> SWP_OFFSET_BITS == last >> SWP_OFFSET_BITS:
            offsets = slots & OFFSET_MASK
            kept = self._of_type(last >> SWP_OFFSET_BITS, (last & OFFSET_MASK) + 1)
            taken: Shadows = kept[offsets]
            kept[offsets] = 0
            return taken
        for kind in np.unique(slots >> SWP_OFFSET_BITS).tolist():
            mine = slots >> SWP_OFFSET_BITS == kind
            offsets = slots[mine] & (1 << SWP_OFFSET_BITS) - 1
            kept = self._of_type(kind, int(offsets.max()) + 1)
            found[mine] = kept[offsets]
            kept[offsets] = 0
        return found

    def _of_type(self, kind: int, count: int) -> Shadows:
        kept = self._swapped.get(kind)
        if kept is None or len(kept) < count:
            grown = lazy_zeros(max(count, 1 << 16, 2 * len(kept) if kept is not None else 0), "int64")
            if kept is not None:
                grown[: len(kept)] = kept
            self._swapped[kind] = kept = grown
        return kept

    # -- refault -----------------------------------------------------------------------------------------

    def refault(self, pfns: PFNs, shadows: Shadows) -> None:
        """Pages come back whose shadows are known, 0 for those without (``workingset_refault``)."""
        known = [(pfn, shadow) for pfn, shadow in zip(pfns.tolist(), shadows.tolist(), strict=True) if shadow]
        if len(known) > 1 and not (self.generations is not None and self.generations.enabled):
            known = self._passed_by(pfns, known)
        sizes: Sizes = {}
        for pfn, shadow in known:
            self._refault(pfn, shadow, sizes)

    def _passed_by(self, pfns: PFNs, known: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Count pages that come back too late to be in the working set, all of one lruvec. The others, from the first
        one on that is not so: what it does to the age of the lruvec counts for those behind it."""
        file = not int(self._pages.flags[known[0][0]]) >> PG_SWAPBACKED & 1
        mine = int(self._pages.memcg[known[0][0]])
        if len(set(self._pages.memcg[pfns].tolist())) + len(set((self._pages.flags[pfns] & _SWAPBACKED).tolist())) > 2:
            return known
        lruvec = -1 - known[0][1] >> WORKINGSET_SHIFT & LRUVEC_MASK
        nid, memcg = lruvec & (1 << NODES_SHIFT) - 1, lruvec >> NODES_SHIFT
        age, size = self._lruvecs.get(memcg, nid).nonresident_age, self._size(memcg, nid, mine, file=file)
        late = 0
        for _, shadow in known:
            packed = -1 - shadow >> WORKINGSET_SHIFT
            if packed & LRUVEC_MASK != lruvec:
                break
            if age - (packed >> NODES_SHIFT + MEM_CGROUP_ID_SHIFT) & EVICTION_MASK <= size:
                break
            late += 1
        if late:
            self._count(mine, nid, stats.WORKINGSET_REFAULT_ANON + file, late)
        return known[late:]

    def _refault(self, pfn: int, shadow: int, sizes: Sizes) -> None:
        packed = -1 - shadow
        worked, packed = packed & 1, packed >> WORKINGSET_SHIFT
        nid, packed = packed & (1 << NODES_SHIFT) - 1, packed >> NODES_SHIFT
        memcg, eviction = packed & (1 << MEM_CGROUP_ID_SHIFT) - 1, packed >> MEM_CGROUP_ID_SHIFT
        if self.generations is not None and self.generations.enabled:
            if (memcg, nid) == (int(self._pages.memcg[pfn]), int(self._nid(np.array([pfn]))[0])):
                self.generations.refaulted(pfn, memcg, nid, eviction, EVICTION_BITS, worked=bool(worked))
            return
        flags = self._pages.flags
        file = not int(flags[pfn]) >> PG_SWAPBACKED & 1
        evicted_from = self._lruvecs.get(memcg, nid)
        mine = int(self._pages.memcg[pfn])
        self._count(mine, nid, stats.WORKINGSET_REFAULT_ANON + file)
        distance = (evicted_from.nonresident_age - eviction) & EVICTION_MASK
        key = (memcg, nid, mine, file)
        if key not in sizes:
            sizes[key] = self._size(memcg, nid, mine, file=file)
        if distance > sizes[key]:
            return
        flags[pfn] |= _ACTIVE
        self._lruvecs.age(mine, nid, 1)
        self._count(mine, nid, stats.WORKINGSET_ACTIVATE_ANON + file)
        if worked:
            self.thrashing = True
            flags[pfn] |= _WORKINGSET
            self._lruvecs.note_cost(mine, nid, 1, file=file)
            self._count(mine, nid, stats.WORKINGSET_RESTORE_ANON + file)

    def _size(self, memcg: int, nid: int, mine: int, *, file: bool) -> int:
        """The pages that compete with one that comes back: the others of its workingset."""
        pages = self._lruvecs.pages
        size = pages(memcg, nid, LRU_ACTIVE_FILE)
        if not file:
            size += pages(memcg, nid, LRU_INACTIVE_FILE)
        if self._swap_left(mine) > 0:
            size += pages(memcg, nid, LRU_ACTIVE_ANON)
            if file:
                size += pages(memcg, nid, LRU_INACTIVE_ANON)
        return size

    def _count(self, memcg: int, nid: int, item: int, pages: int = 1) -> None:
        self._vmstat.node_stat[nid, item] += pages
        self._lruvecs.count(memcg, nid, item, pages)

    def activation(self, pfns: PFNs) -> None:
        """Resident pages become active: the others are older by as much (``workingset_activation``)."""
        nids = self._nid(pfns)
        for nid, memcg in {(n, int(m)) for n, m in zip(nids.tolist(), self._pages.memcg[pfns].tolist(), strict=True)}:
            many = int(((nids == nid) & (self._pages.memcg[pfns] == memcg)).sum())
            self._lruvecs.age(memcg, nid, many)
