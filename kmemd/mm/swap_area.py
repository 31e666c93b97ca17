"""One swap area: which slots are in use, and which to take next (mm/swapfile.c ``struct swap_info_struct``).

Models: the swap map with counts and the swap cache's share, the search for free slots of disks that seek (runs of
``SWAPFILE_CLUSTER``) and of those that do not (clusters per CPU), whole clusters for huge pages, clusters that are
discarded before they are free again, lowest and highest free slot. Left out: bad blocks.

A slot's byte of Linux's map is two numbers here, so that no count ever needs a continuation page: ``count``, the page
table entries and files that refer to it, and ``cache``, the page of the swap cache that holds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import lazy_zeros
from kmemd.mm.units import PAGE_SIZE

Offsets = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RESERVED, BAD = -1, -2
"""In ``cache``: taken and in nobody's page yet (SWAP_HAS_CACHE alone); not for swapping."""
SWAPFILE_CLUSTER = {64: 512, 32: 256}
"""Slots of a cluster, by bits of a long: a huge page, or a constant without CONFIG_THP_SWAP."""
SWAP_ADDRESS_SPACE_SHIFT = 14
LATENCY_LIMIT = 256
CACHE_LINE, CLUSTER_INFO_SIZE = 64, 8
WINDOW = 1 << 12
"""Slots that are looked at in one go."""


class SwapArea:
    """An area that is on, or going off (``write_ok`` False). ``pages`` counts usable pages, the header is not one.

    Invariants: ``inuse_pages`` is the number of slots whose ``count`` or ``cache`` is not 0, without the bad ones; no
    free slot is below ``lowest_bit`` or above ``highest_bit``; ``used[c]`` is the number of such slots in cluster c;
    a cluster without any is free or waits for its discard, and its slots are ``BAD`` as long as it waits.
    ``huge[c]``: a huge page got it, and is on its way there.
    """

    def __init__(
        self,
        number: int,
        path: str,
        kind: str,
        size: int,
        *,
        cpus: int,
        long_bits: int,
        solid_state: bool,
        synchronous: bool,
        rng: Random,
    ) -> None:
        """``size`` in bytes, of which the first page is the header."""
        self.number, self.path, self.kind = number, path, kind
        self.max = size // PAGE_SIZE
        self.pages = self.max - 1
        self.priority = 0
        self.write_ok = True
        self.solid_state, self.synchronous = solid_state, synchronous
        self.inuse_pages = 0
        self.lowest_bit, self.highest_bit = 1, self.max - 1
        self.count: npt.NDArray[np.int32] = lazy_zeros(self.max, "int32")
        self.cache: npt.NDArray[np.int32] = lazy_zeros(self.max, "int32")
        self.memcg: npt.NDArray[np.int16] = lazy_zeros(self.max, "int16")
        self.cache[0] = BAD
        self.cluster_next, self.cluster_nr = 1, 0
        self.cluster_size = SWAPFILE_CLUSTER[long_bits]
        self.reclaim: Callable[[SwapArea, int], bool] = lambda _area, _offset: False
        self.discardable = self.area_discard = self.page_discard = False
        self.discard: Callable[[SwapArea, int, int], None] = lambda _area, _start, _pages: None
        self.schedule_discard: Callable[[SwapArea], object] = lambda _area: None
        self._rng = rng
        self._init_clusters(cpus, rng)

    def _init_clusters(self, cpus: int, rng: Random) -> None:
        """Clusters of an area that does not seek, in the order in which they are taken (setup_swap_map_and_extents)."""
        clusters = -(-self.max // self.cluster_size) if self.solid_state else 0
        self.used = np.zeros(clusters, dtype=np.int32)
        self.cluster_free = np.ones(clusters, dtype=bool)
        self.huge = np.zeros(clusters, dtype=bool)
        self.free_clusters: deque[int] = deque()
        self.discard_clusters: deque[int] = deque()
        self._cpu_cluster: list[int] = [-1] * cpus
        self._cpu_next = [0] * cpus
        self._cpu_base = [1 + rng.randrange(self.highest_bit) for _ in range(cpus if clusters else 0)]
        if not clusters:
            return
        self.used[0] = 1
        self.used[-1] += clusters * self.cluster_size - self.max
        self.cluster_free[self.used > 0] = False
        columns = max(CACHE_LINE // CLUSTER_INFO_SIZE, (1 << SWAP_ADDRESS_SPACE_SHIFT) // self.cluster_size)
        order = [np.arange(column, clusters, columns) for column in range(min(columns, clusters))]
        taken = np.concatenate(order)
        self.free_clusters.extend(taken[self.cluster_free[taken]].tolist())

    def is_free(self, offset: int) -> bool:
        """Whether a slot is in no use at all."""
        return not self.count[offset] and not self.cache[offset]

    def cached_only(self, offset: int) -> bool:
        """Whether nothing but the swap cache, or a CPU, holds a slot (SWAP_HAS_CACHE alone)."""
        return not self.count[offset] and self.cache[offset] not in (0, BAD)

    def first_free(self, start: int, end: int) -> int:
        """The first free slot in ``[start, end)``, -1 when there is none."""
        while start < end:
            stop = min(end, start + WINDOW)
            taken = (self.count[start:stop] != 0) | (self.cache[start:stop] != 0)
            at = int(taken.argmin())
            if not taken[at]:
                return start + at
            start = stop
        return -1

    # -- taking slots ------------------------------------------------------------------------------------

    def scan_swap_map_slots(self, n: int, cpu: int, *, full: bool) -> list[int]:
        """Up to ``n`` free slots, taken for the swap cache. ``full``: slots of unused cache pages may be won back."""
        return _Scan(self, cpu, full=full).run(n)

    def take(self, offset: int) -> None:
        """Mark one slot as taken (inc_cluster_info_page, swap_range_alloc)."""
        self.cache[offset] = RESERVED
        if self.solid_state:
            cluster = offset // self.cluster_size
            if self.cluster_free[cluster]:
                self.cluster_free[cluster] = False
                self.free_clusters.remove(cluster)  # it is the first, but for a list that the CPUs ran out of
            self.used[cluster] += 1
        self._range_alloc(offset, 1)

    def _range_alloc(self, offset: int, slots: int) -> None:
        """swap_range_alloc."""
        self.inuse_pages += slots
        if offset == self.lowest_bit:
            self.lowest_bit += slots
        if offset + slots - 1 == self.highest_bit:
            self.highest_bit -= slots
        if self.inuse_pages == self.pages:
            self.lowest_bit, self.highest_bit = self.max, 0

    def alloc_cluster(self) -> int:
        """A whole cluster for a huge page (swap_alloc_cluster): its first slot, -1 when none is free."""
        if not self.free_clusters:
            return -1
        cluster = self.free_clusters.popleft()
        offset = cluster * self.cluster_size
        self.cluster_free[cluster] = False
        self.used[cluster], self.huge[cluster] = self.cluster_size, True
        self.cache[offset : offset + self.cluster_size] = RESERVED
        self._range_alloc(offset, self.cluster_size)
        return offset

    def cluster_slot(self, cpu: int) -> int:
        """The next slot of the CPU's own cluster, or of a new one (scan_swap_map_try_ssd_cluster). -1: none."""
        while True:
            cluster = self._cpu_cluster[cpu]
            if cluster < 0:
                if not self.free_clusters and not self.do_scheduled_discard():
                    return -1
                cluster = self._cpu_cluster[cpu] = self.free_clusters[0]
                self._cpu_next[cpu] = cluster * self.cluster_size
            end = min(self.max, (cluster + 1) * self.cluster_size)
            found = self.first_free(self._cpu_next[cpu], end)
            if found >= 0:
                self._cpu_next[cpu] = found + 1
                return found
            self._cpu_cluster[cpu] = -1

    def conflicts(self, offset: int, cpu: int) -> bool:
        """Whether the slot is in a free cluster that is not the next to be taken: then the CPU looks for another."""
        cluster = offset // self.cluster_size
        if not self.free_clusters or cluster == self.free_clusters[0] or not self.cluster_free[cluster]:
            return False
        self._cpu_cluster[cpu] = -1
        return True

    def base(self, cpu: int) -> int:
        """Where the search begins (cluster_next)."""
        return self._cpu_base[cpu] if self.solid_state else self.cluster_next

    def set_base(self, following: int, cpu: int) -> None:
        """Where the next search begins; other trunks of the swap cache are chosen at random (set_cluster_next)."""
        if not self.solid_state:
            self.cluster_next = following
            return
        if self._cpu_base[cpu] >> SWAP_ADDRESS_SPACE_SHIFT != following >> SWAP_ADDRESS_SPACE_SHIFT:
            if self.highest_bit <= self.lowest_bit:
                return
            following = self.lowest_bit + self._rng.randrange(self.highest_bit - self.lowest_bit + 1)
            following = max(following >> SWAP_ADDRESS_SPACE_SHIFT << SWAP_ADDRESS_SPACE_SHIFT, self.lowest_bit)
        self._cpu_base[cpu] = following

    def empty_run(self) -> tuple[int, int]:
        """The first run of as many free slots as a cluster has, -1 when there is none, and how many slots were looked
        at. For disks that seek."""
        size, offset, run = self.cluster_size, self.lowest_bit, 0
        while offset <= self.highest_bit:
            stop = min(self.highest_bit + 1, offset + WINDOW)
            taken = np.flatnonzero((self.count[offset:stop] != 0) | (self.cache[offset:stop] != 0)) + offset
            edges = np.concatenate(([offset - run - 1], taken, [stop]))
            long = np.flatnonzero(np.diff(edges) > size)
            if len(long):
                found = int(edges[long[0]]) + 1
                return found, found + size - 1 - self.lowest_bit
            run = stop - int(edges[-2]) - 1
            offset = stop
        return -1, self._looked_in_vain()

    def _looked_in_vain(self) -> int:
        """Slots from the lowest on, to the first one behind which no cluster has room."""
        last = max(self.lowest_bit, self.highest_bit - self.cluster_size + 1)
        if self.lowest_bit + self.cluster_size - 1 > self.highest_bit:
            return 0
        taken = (self.count[last : self.highest_bit + 1] != 0) | (self.cache[last : self.highest_bit + 1] != 0)
        return last + int(taken.argmax()) - self.lowest_bit + 1

    # -- giving slots back -------------------------------------------------------------------------------

    def give_back(self, offsets: Offsets) -> bool:
        """Slots are free again (swap_entry_free of each). Whether the area was full before."""
        self.cache[offsets] = 0
        if self.solid_state:
            self._leave_clusters(offsets)
        was_full = not self.highest_bit
        self.lowest_bit = min(self.lowest_bit, int(offsets.min()))
        self.highest_bit = max(self.highest_bit, int(offsets.max()))
        self.inuse_pages -= len(offsets)
        return was_full

    def _leave_clusters(self, offsets: Offsets) -> None:
        """Clusters without a slot in use go to the end of the free list, in the order in which they became so."""
        clusters = offsets // self.cluster_size
        np.subtract.at(self.used, clusters, 1)
        last = dict.fromkeys(reversed(clusters.tolist()))
        for cluster in reversed(last):
            if not self.used[cluster]:
                self._free_cluster(cluster)

    def _free_cluster(self, cluster: int) -> None:
        """Nothing is in a cluster any more: it is free, when its disk has been told where that is wanted."""
        if self.write_ok and self.page_discard:
            self.cache[self._slots_of(cluster)] = BAD
            self.discard_clusters.append(cluster)
            self.schedule_discard(self)
            return
        self.cluster_free[cluster] = True
        self.free_clusters.append(cluster)

    def _slots_of(self, cluster: int) -> slice:
        return slice(cluster * self.cluster_size, (cluster + 1) * self.cluster_size)

    def end_huge(self, offsets: Offsets) -> Mask:
        """Which of some slots are of clusters that huge pages got and that are here whole; from now on they are slots
        like others (split_swap_cluster)."""
        whole = np.zeros(len(offsets), dtype=np.bool_)
        if not self.huge.any():
            return whole
        clusters = offsets // self.cluster_size
        for cluster in np.unique(clusters[self.huge[clusters]]).tolist():
            here = clusters == cluster
            whole |= here & (np.count_nonzero(here) == self.cluster_size)
            self.huge[cluster] = False
        return whole

    def do_scheduled_discard(self) -> bool:
        """Discard the clusters that wait for it (swap_do_scheduled_discard); whether there were any."""
        waiting = bool(self.discard_clusters)
        while self.discard_clusters:
            cluster = self.discard_clusters.popleft()
            self.discard(self, cluster * self.cluster_size, self.cluster_size)
            self.cache[self._slots_of(cluster)] = 0
            self.cluster_free[cluster] = True
            self.free_clusters.append(cluster)
        return waiting

    def check(self) -> None:
        """The counts that are kept are those of the map."""
        taken = (self.count != 0) | (self.cache != 0) & (self.cache != BAD)
        inuse = int(taken.sum())
        assert inuse == self.inuse_pages, f"{self.path}: {inuse} slots are in use, inuse_pages is {self.inuse_pages}"
        free = np.flatnonzero(~taken[1:]) + 1
        if len(free):
            assert self.lowest_bit <= free[0], f"{self.path}: slot {free[0]} is free below lowest_bit"
            assert free[-1] <= self.highest_bit, f"{self.path}: slot {free[-1]} is free above highest_bit"
        if self.solid_state:
            self._check_clusters(taken)

    def _check_clusters(self, taken: npt.NDArray[np.bool_]) -> None:
        padded = np.ones(len(self.used) * self.cluster_size, dtype=bool)
        padded[: self.max] = taken
        padded[0] = True
        used = padded.reshape(-1, self.cluster_size).sum(axis=1)
        assert (used == self.used).all(), f"{self.path}: clusters count other slots than the map has"
        listed = sorted([*self.free_clusters, *self.discard_clusters])
        assert listed == np.flatnonzero(used == 0).tolist(), f"{self.path}: the free clusters are not those listed"
        for cluster in np.flatnonzero(self.huge).tolist():
            cached = self.cache[self._slots_of(cluster)].astype(np.int64)
            assert cached[0] > 0, f"{self.path}: no huge page is in cluster {cluster}"
            assert (np.diff(cached) == 1).all(), f"{self.path}: cluster {cluster} has parts of several pages"


class _Scan:
    """One call of scan_swap_map_slots. Linux looks at the clock every ``LATENCY_LIMIT`` slots: after that it takes what
    it comes upon, and does not look for more nearby (``scanned_many``)."""

    def __init__(self, area: SwapArea, cpu: int, *, full: bool) -> None:
        self.area, self.cpu, self.full = area, cpu, full
        self.scan_base = area.base(cpu)
        self.ration = LATENCY_LIMIT
        self.scanned_many = self.no_page = False
        self.got: list[int] = []

    def run(self, n: int) -> list[int]:
        area = self.area
        offset = self._begin()
        while (offset := self._usable(offset)) >= 0:
            area.take(offset)
            self.got.append(offset)
            if len(self.got) == n or offset >= area.highest_bit:
                break
            following = self._following(offset)
            if following < 0:
                break
            offset = following
        if self.got and not self.no_page:
            area.set_base(self.got[-1] + 1, self.cpu)
        return self.got

    def _looked(self, slots: int) -> bool:
        """So many slots were looked at; whether that was long enough to let others run."""
        over = slots - self.ration - 1
        self.ration = self.ration - slots if over < 0 else LATENCY_LIMIT - over % (LATENCY_LIMIT + 1)
        return over >= 0

    def _begin(self) -> int:
        """The slot to try first."""
        area = self.area
        if area.solid_state:
            found = area.cluster_slot(self.cpu)
            if found >= 0:
                self.scan_base = found
                return found
            return self._elsewhere(self.scan_base)
        if area.cluster_nr:
            area.cluster_nr -= 1
            return self.scan_base
        area.cluster_nr = area.cluster_size - 1
        if area.pages - area.inuse_pages < area.cluster_size:
            return self.scan_base
        self.scan_base = area.lowest_bit
        found, looked = area.empty_run()
        self._looked(looked)
        return found if found >= 0 else self.scan_base

    def _usable(self, offset: int) -> int:
        """``offset`` if it is free, or another slot while none was got. -1: no more."""
        area = self.area
        while offset >= 0:
            offset = self._without_conflict(offset) if area.solid_state else offset
            if offset < 0:
                return -1
            if not area.write_ok or not area.highest_bit:
                self.no_page = True
                return -1
            if offset > area.highest_bit:
                self.scan_base = offset = area.lowest_bit
            if area.is_free(offset):
                return offset
            if self.full and area.cached_only(offset):
                offset = offset if area.reclaim(area, offset) else self._elsewhere(offset)
            elif self.got:
                return -1
            else:
                offset = self._elsewhere(offset)
        return -1

    def _without_conflict(self, offset: int) -> int:
        """A slot that is in no free cluster but the next one. -1: no more."""
        area = self.area
        while area.conflicts(offset, self.cpu):
            if self.got:
                return -1
            found = area.cluster_slot(self.cpu)
            if found < 0:
                return self._elsewhere(offset)
            offset = self.scan_base = found
        return offset

    def _elsewhere(self, offset: int) -> int:
        """The next slot behind, or else the first one before the base, that may be taken. -1: none."""
        area = self.area
        for start, end in ((offset + 1, area.highest_bit + 1), (area.lowest_bit, self.scan_base)):
            found = area.first_free(start, end) if not self.full else self._first_or_cached(start, end)
            self.scanned_many |= self._looked(max((found + 1 if found >= 0 else end) - start, 0))
            if found >= 0:
                return found
        self.no_page = True
        return -1

    def _first_or_cached(self, start: int, end: int) -> int:
        """The first slot that is free, or held by the swap cache alone: such may be won back when swap is full."""
        area = self.area
        while start < end:
            stop = min(end, start + WINDOW)
            unused = (area.count[start:stop] == 0) & (area.cache[start:stop] != BAD)
            at = int(unused.argmax())
            if unused[at]:
                return start + at
            start = stop
        return -1

    def _following(self, offset: int) -> int:
        """The slot to try after one was got: the rest of the cluster, then a short look ahead. -1: enough."""
        area = self.area
        self.ration -= 1
        if self.ration < 0:
            return -1
        if area.solid_state:
            found = area.cluster_slot(self.cpu)
            if found >= 0:
                self.scan_base = found
                return found
        elif area.cluster_nr:
            offset += 1
            if area.is_free(offset):
                area.cluster_nr -= 1
                return offset
        if self.scanned_many:
            return -1
        limit = self.scan_base if offset < self.scan_base else area.highest_bit
        look = min(limit + 1, offset + max(self.ration - 1, 0))
        found = area.first_free(offset, look)
        self.ration -= look - offset if found < 0 else found - offset + 1
        return found
