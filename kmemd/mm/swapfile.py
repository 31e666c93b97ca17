"""Swap areas: turning them on and off, handing out slots by priority, and counting who uses a slot (mm/swapfile.c).

Models: types, priorities given and automatic, round robin among equals on each node, ``swap_map`` counts, whole
clusters for huge pages, discards, /proc/swaps, the log lines, and the limits of swapon and swapoff. Bringing pages back
is left to mm/swap_state.py. Left out: hibernation, extents of swap files (a file is one extent), and what a signature
other than SWAPSPACE2 would give.

A slot is one number in Python code, ``type << 50 | offset`` (swp_entry_t); page tables hold it as core/pte.py says.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.core.pte import SWP_OFFSET_BITS, SWP_OFFSET_SHIFT, SWP_TYPE_SHIFT
from kmemd.core.swap_fault import FREE, TOTAL
from kmemd.errors import KernelError
from kmemd.mm.printk import KERN_ERR, KERN_INFO, Printk
from kmemd.mm.swap_area import BAD, RESERVED, SwapArea
from kmemd.mm.swap_slots import SwapSlots
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SIZE

Entries = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]

OFFSET_MASK = (1 << SWP_OFFSET_BITS) - 1
MAX_SWAPFILES = {64: 23, 32: 23}
"""1 << 5, less those of migration, device memory, poisoned pages and markers."""
SWAP_BATCH = 64
SWAP_FLAG_PRIO_MAX = 0x7FFF
MIN_PAGES = 2
"""The header, and one page to swap to."""
SOLID_STATE = ("ram", "zram", "nvme", "pmem", "loop", "mmcblk")
"""Names of block devices that do not seek (QUEUE_FLAG_NONROT); virtio and SCSI disks say that they do."""
SYNCHRONOUS = ("ram", "zram", "pmem")
"""Block devices with rw_page: writing is over when it returns."""
DISCARDS = ("zram", "nvme", "loop", "mmcblk", "vd")
"""Block devices that take discards (bdev_max_discard_sectors): not brd, pmem and plain SCSI disks."""


def slots_of(entries: Entries) -> Slots:
    """The slots that page table entries name."""
    types = (entries >> np.uint64(SWP_TYPE_SHIFT)).astype(np.int64) << SWP_OFFSET_BITS
    return types | (~entries >> np.uint64(SWP_OFFSET_SHIFT) & np.uint64(OFFSET_MASK)).astype(np.int64)


def entries_of(slots: Slots) -> Entries:
    """Page table entries for slots, without further bits."""
    types = (slots >> SWP_OFFSET_BITS).astype(np.uint64) << np.uint64(SWP_TYPE_SHIFT)
    return types | (~slots & OFFSET_MASK).astype(np.uint64) << np.uint64(SWP_OFFSET_SHIFT)


class SwapCharging(Protocol):
    """The memory controller, as swap sees it."""

    active: bool
    charged: int

    def may_swap(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]: ...
    def may_swap_huge(self, head: int, pages: int) -> bool: ...
    def swap_slots(self, memcg: npt.NDArray[np.int16], offsets: Slots, pfns: npt.NDArray[np.int64]) -> None: ...
    def free_slots(self, memcg: npt.NDArray[np.int16], offsets: Slots) -> None: ...
    def charge_swapin(self, numbers: npt.NDArray[np.int16], pfns: npt.NDArray[np.int64]) -> int: ...


class SwapFiles:
    """The areas and the slots in them. ``room`` has ``nr_swap_pages`` and ``total_swap_pages`` for the core.

    Invariants: these two count the slots of areas that may be written to; ``areas`` are in order of type.
    """

    def __init__(
        self,
        context: Context,
        printk: Printk,
        rng: Random,
        *,
        cpus: int,
        long_bits: int,
        latency_ns: int = 0,
        memcg: SwapCharging | None = None,
        cpu_nodes: Mapping[int, int] | None = None,
    ) -> None:
        """``latency_ns``: what reading an area's header takes; ``memcg`` charges slots to control groups;
        ``cpu_nodes`` is the node of each CPU, 0 where it does not say."""
        self.memcg = memcg
        self._cpu_nodes = cpu_nodes or {}
        self._context, self._printk, self._rng = context, printk, rng
        self._cpus, self._long_bits, self._latency_ns = cpus, long_bits, latency_ns
        self._by_type: list[SwapArea | None] = []
        self._active: list[SwapArea] = []
        self._available: dict[int, list[SwapArea]] = {nid: [] for nid in {0, *self._cpu_nodes.values()}}
        self._least_priority = -1
        self.room = np.zeros(2, dtype=np.int64)
        self.reclaim: Callable[[SwapArea, int], bool] = lambda _area, _offset: False
        self.on_free: Callable[[SwapArea, Slots], None] = lambda _area, _offsets: None
        self.on_end: Callable[[SwapArea], None] = lambda _area: None
        self.on_swapon: Callable[[SwapArea], object] = lambda _area: None
        self.on_discard: Callable[[SwapArea, int, int], None] = lambda _area, _start, _pages: None
        self.schedule_discard: Callable[[SwapArea], object] = lambda area: area.do_scheduled_discard()
        self.changed: Callable[[], None] = lambda: None
        self.slots = SwapSlots(cpus, lambda: self.nr_swap_pages, self.get_swap_pages, self._swapcache_free_entries)

    # -- areas -------------------------------------------------------------------------------------------

    @property
    def areas(self) -> list[SwapArea]:
        """Areas in the order of /proc/swaps."""
        return [area for area in self._by_type if area is not None]

    @property
    def rotating(self) -> bool:
        """Whether some area is on a disk that seeks: then readahead goes by slots (nr_rotate_swap)."""
        return any(not area.solid_state for area in self.areas)

    @property
    def total_pages(self) -> int:
        """Pages of the areas that are on, and what is still in use of those that go off (si_swapinfo)."""
        return sum(area.pages if area.write_ok else area.inuse_pages for area in self.areas)

    @property
    def free_pages(self) -> int:
        """Free slots (si_swapinfo)."""
        return self.nr_swap_pages + sum(area.inuse_pages for area in self.areas if not area.write_ok)

    @property
    def nr_swap_pages(self) -> int:
        """Free slots of areas that may be written to, less what is still in use of those that go off: while much is,
        it is below zero, and nothing can be swapped to other areas either."""
        return int(self.room[FREE])

    @nr_swap_pages.setter
    def nr_swap_pages(self, pages: int) -> None:
        self.room[FREE] = pages

    @property
    def total_swap_pages(self) -> int:
        """Pages of the areas that may be written to."""
        return int(self.room[TOTAL])

    @property
    def full(self) -> bool:
        """Whether more than half is in use, so that clean cached pages lose their slots (vm_swap_full)."""
        free, total = self.room.tolist()
        return bool(free * 2 < total)

    def area(self, slot: int) -> SwapArea:
        """The area of a slot. EFAULT where there is none."""
        number = slot >> SWP_OFFSET_BITS
        area = self._by_type[number] if number < len(self._by_type) else None
        if area is None or slot & OFFSET_MASK >= area.max:
            self._printk.log(KERN_ERR, f"get_swap_device: Bad swap file entry {slot:08x}")
            raise KernelError(errno.EFAULT, f"no swap area {number} with slot {slot & OFFSET_MASK}")
        return area

    def find(self, path: str) -> SwapArea | None:
        """The area that is on at ``path``."""
        return next((area for area in self._active if area.path == path), None)

    def swapon(
        self,
        path: str,
        kind: str,
        size: int,
        priority: int = -1,
        *,
        disk: str = "",
        discard: str = "",
        log: bool = True,
    ) -> SwapArea:
        """Turn an area on; ``priority`` below 0 is the next lower automatic one. EBUSY, EINVAL, EPERM.

        ``disk`` is the name of the disk that a file is on; ``discard`` says what to discard: ``once``, ``pages``,
        ``both``.
        """
        if priority > SWAP_FLAG_PRIO_MAX:
            raise KernelError(errno.EINVAL, f"a priority is at most {SWAP_FLAG_PRIO_MAX}")
        number = next((at for at, area in enumerate(self._by_type) if area is None), len(self._by_type))
        if number >= MAX_SWAPFILES[self._long_bits]:
            raise KernelError(errno.EPERM, f"{number} swap areas are on, as many as there can be")
        if self.find(path) is not None:
            raise KernelError(errno.EBUSY, f"{path} is a swap area that is on")
        if size // PAGE_SIZE < MIN_PAGES:
            raise KernelError(errno.EINVAL, f"{path}: {size} bytes are no swap area")
        self._context.charge(self._latency_ns)
        name = path.rpartition("/")[2] if kind == "partition" else disk
        area = SwapArea(
            number,
            path,
            kind,
            size,
            cpus=self._cpus,
            long_bits=self._long_bits,
            solid_state=name.startswith(SOLID_STATE),
            synchronous=name.startswith(SYNCHRONOUS),
            rng=self._rng,
        )
        area.reclaim = lambda area, offset: self.reclaim(area, offset)
        self._by_type[number : number + 1] = [area]
        self.changed()
        self.on_swapon(area)
        if discard and name.startswith(DISCARDS):
            self._set_discard(area, discard)
        self._enable(area, priority)
        if log:
            self._printk.log(KERN_INFO, _added(area))
        return area

    def _set_discard(self, area: SwapArea, discard: str) -> None:
        """What the disk is told of slots without use; all of the area at once (``discard_swap``)."""
        area.discard = lambda area, start, pages: self.on_discard(area, start, pages)
        area.schedule_discard = lambda area: self.schedule_discard(area)
        area.discardable = True
        area.area_discard, area.page_discard = discard != "pages", discard != "once"
        if area.area_discard:
            area.discard(area, 1, area.max - 1)

    def _enable(self, area: SwapArea, priority: int) -> None:
        """enable_swap_info."""
        if priority < 0:
            self._least_priority -= 1
        area.priority = priority if priority >= 0 else self._least_priority
        self._insert(area)
        self.slots.enabled = True

    def _insert(self, area: SwapArea) -> None:
        """Let pages be swapped to it (_enable_swap_info)."""
        area.write_ok = True
        self.room[TOTAL] += area.pages
        self.nr_swap_pages += area.pages
        _plist_add(self._active, area)
        if area.highest_bit:
            self._add_available(area)

    def _add_available(self, area: SwapArea) -> None:
        """add_to_avail_list."""
        for areas in self._available.values():
            _plist_add(areas, area)

    def _del_available(self, area: SwapArea) -> None:
        """del_from_avail_list."""
        for areas in self._available.values():
            if area in areas:
                areas.remove(area)

    def begin_swapoff(self, area: SwapArea) -> None:
        """Hand out no more slots of the area; what is in it can then be brought back."""
        self._del_available(area)
        if area.priority < 0:
            for other in self._active[self._active.index(area) + 1 :]:
                other.priority += 1
            self._least_priority += 1
        self._active.remove(area)
        self.nr_swap_pages -= area.pages
        self.room[TOTAL] -= area.pages
        area.write_ok = False
        self.slots.disable()

    def abort_swapoff(self, area: SwapArea) -> None:
        """The area stays on after all (reinsert_swap_info); an automatic priority is a new one."""
        if area.priority < 0:
            self._least_priority -= 1
            area.priority = self._least_priority
        self._insert(area)
        self.slots.enabled = True

    def end_swapoff(self, area: SwapArea) -> None:
        """The area is empty and gone; its type may be used again."""
        assert not area.inuse_pages, f"{area.path}: {area.inuse_pages} slots are in use"
        area.do_scheduled_discard()
        self.on_end(area)
        self._by_type[area.number] = None
        self.changed()
        self.slots.enabled = bool(self._active)

    # -- slots -------------------------------------------------------------------------------------------

    def alloc(self, n: int) -> Slots:
        """Slots for ``n`` pages, taken for the swap cache; fewer when there are no more."""
        return np.array(self.slots.alloc(self._context.cpu, n), dtype=np.int64)

    def get_swap_pages(self, n: int) -> list[int]:
        """Up to ``n`` slots, all of one area: the one of highest priority, those of equal priority in turn."""
        goal = min(n, SWAP_BATCH, self.nr_swap_pages)
        if goal <= 0:
            return []
        self.nr_swap_pages -= goal
        offsets: list[int] = []
        for area in self._in_turn():
            offsets = area.scan_swap_map_slots(goal, self._context.cpu, full=self.full)
            if not area.highest_bit:
                self._del_available(area)
            if offsets:
                break
        self.nr_swap_pages += goal - len(offsets)
        return [area.number << SWP_OFFSET_BITS | offset for offset in offsets]

    def alloc_huge(self, pages: int) -> int:
        """A cluster for a huge page of so many pages: its first slot, -1 for none. The first area alone is asked, and
        none on a file (``get_swap_pages`` with SWAPFILE_CLUSTER)."""
        if self._long_bits != 64 or self.nr_swap_pages < pages:
            return -1
        area = next(self._in_turn(), None)
        offset = area.alloc_cluster() if area is not None and area.kind == "partition" else -1
        if area is None or offset < 0:
            return -1
        assert pages == area.cluster_size, f"a cluster has {area.cluster_size} slots, a huge page {pages} pages"
        self.nr_swap_pages -= pages
        if not area.highest_bit:
            self._del_available(area)
        return area.number << SWP_OFFSET_BITS | offset

    def _in_turn(self) -> Iterator[SwapArea]:
        """The areas to try on the executing CPU's node; each goes behind those of its priority."""
        areas = self._available[self._cpu_nodes.get(self._context.cpu, 0)]
        for area in list(areas):
            areas.remove(area)
            _plist_add(areas, area)
            yield area

    def duplicate(self, slots: Slots) -> None:
        """One more page table entry or file refers to each slot (swap_duplicate)."""
        for area, offsets in self._by_area(slots):
            np.add.at(area.count, offsets, 1)

    def free(self, slots: Slots) -> Slots:
        """One entry less refers to each slot (swap_free). The slots that the swap cache alone holds from now on."""
        left: list[Slots] = []
        for area, offsets in self._by_area(slots):
            np.subtract.at(area.count, offsets, 1)
            assert (area.count[offsets] >= 0).all(), f"{area.path}: a slot is freed more often than it is used"
            zero = np.unique(offsets) if len(offsets) > 1 else offsets
            zero = zero[area.count[zero] == 0]
            cached = area.cache[zero] > 0
            left.append(zero[cached] | area.number << SWP_OFFSET_BITS)
            self._unused(area, zero[~cached])
        return np.concatenate(left) if left else np.zeros(0, dtype=np.int64)

    def free_one(self, slot: int) -> None:
        """``free`` of one slot."""
        area, offset = self.area(slot), slot & OFFSET_MASK
        left = int(area.count[offset]) - 1
        assert left >= 0, f"{area.path}: slot {offset} is freed more often than it is used"
        area.count[offset] = left
        if not left and area.cache[offset] <= 0:
            self._unused(area, np.array([offset], dtype=np.int64))

    def unused_one(self, slot: int) -> None:
        """Nothing is at a slot any more, which is marked as taken (free_swap_slot)."""
        self.slots.give_one(self._context.cpu, slot)

    def unused(self, area: SwapArea, offsets: Slots) -> None:
        """``unused_one`` of some slots of an area."""
        self.slots.give_back(self._context.cpu, (offsets | area.number << SWP_OFFSET_BITS).tolist())

    def cached_one(self, slot: int) -> int:
        """The page of the swap cache at one slot, -1 for none."""
        return max(int(self.area(slot).cache[slot & OFFSET_MASK]), 0) - 1

    def count_one(self, slot: int) -> int:
        """How many page table entries and files refer to one slot."""
        return int(self.area(slot).count[slot & OFFSET_MASK])

    def set_cache(self, slots: Slots, pfns: npt.NDArray[np.int64]) -> None:
        """Pages are in the swap cache under slots that were taken for it."""
        for area, offsets, where in self._groups(slots):
            area.cache[offsets] = pfns[where] + 1
        self.charge_slots(slots, pfns)

    def charge_slots(self, slots: Slots, pfns: npt.NDArray[np.int64]) -> None:
        """The groups of pages pay for the slots that these got (mem_cgroup_swapout)."""
        if self.memcg is not None and self.memcg.charged:
            for area, offsets, where in self._groups(slots):
                self.memcg.swap_slots(area.memcg, offsets, pfns[where])

    def drop_cache(self, slots: Slots) -> None:
        """The swap cache no longer has pages there (put_swap_folio); slots that nothing else uses are free."""
        for area, offsets in self._by_area(slots):
            area.cache[offsets] = 0
            self._unused(area, offsets[area.count[offsets] == 0])

    def cached(self, slots: Slots) -> npt.NDArray[np.int64]:
        """The page of the swap cache at each slot, -1 for none."""
        found = np.full(len(slots), -1, dtype=np.int64)
        for area, offsets, where in self._groups(slots):
            found[where] = np.maximum(area.cache[offsets].astype(np.int64), 0) - 1
        return found

    def may_swap(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which pages may get slots, as far as their control groups go."""
        if self.memcg is None or not self.memcg.active:
            return np.ones(len(pfns), dtype=bool)
        return self.memcg.may_swap(pfns)

    def may_swap_huge(self, head: int, pages: int) -> bool:
        """Whether its control group lets a huge page have a cluster."""
        return self.memcg is None or not self.memcg.active or self.memcg.may_swap_huge(head, pages)

    def charge_swapin(self, slots: Slots, pfns: npt.NDArray[np.int64]) -> int:
        """Charge new pages to the groups of the slots that they are for; how many may be read."""
        if self.memcg is None or not self.memcg.active:
            return len(pfns)
        numbers = [int(self.area(slot).memcg[slot & OFFSET_MASK]) for slot in slots.tolist()]
        return self.memcg.charge_swapin(np.array(numbers[: len(pfns)], dtype=np.int16), pfns)

    def counts(self, slots: Slots) -> npt.NDArray[np.int64]:
        """How many page table entries and files refer to each slot (swap_count)."""
        found = np.zeros(len(slots), dtype=np.int64)
        for area, offsets, where in self._groups(slots):
            found[where] = area.count[offsets]
        return found

    def _unused(self, area: SwapArea, offsets: Slots) -> None:
        """Nothing is at some slots any more; a CPU keeps them for a while (free_swap_slot)."""
        if len(offsets):
            area.cache[offsets] = RESERVED
            self.slots.give_back(self._context.cpu, (offsets | area.number << SWP_OFFSET_BITS).tolist())

    def _swapcache_free_entries(self, slots: list[int]) -> None:
        for area, offsets in self._by_area(np.array(slots, dtype=np.int64)):
            if self.memcg is not None and self.memcg.active:
                self.memcg.free_slots(area.memcg, offsets)
            was_full = area.give_back(offsets)
            self.on_free(area, offsets)
            self.nr_swap_pages += len(offsets)
            if area.write_ok and was_full and area not in self._available[0]:
                self._add_available(area)

    def _by_area(self, slots: Slots) -> list[tuple[SwapArea, Slots]]:
        return [(area, offsets) for area, offsets, _ in self._groups(slots)]

    def _groups(self, slots: Slots) -> list[tuple[SwapArea, Slots, slice | npt.NDArray[np.int64]]]:
        """Area, offsets and positions of some slots, for each area that they are in. EFAULT."""
        if not len(slots):
            return []
        types = slots >> SWP_OFFSET_BITS
        offsets = slots & OFFSET_MASK
        first = int(types[0])
        if (types == first).all():
            return [(self._checked(first, offsets), offsets, slice(None))]
        groups: list[tuple[SwapArea, Slots, slice | npt.NDArray[np.int64]]] = []
        for number in np.unique(types).tolist():
            where = np.flatnonzero(types == number)
            groups.append((self._checked(number, offsets[where]), offsets[where], where))
        return groups

    def _checked(self, number: int, offsets: Slots) -> SwapArea:
        return self.area(number << SWP_OFFSET_BITS | int(offsets.max()))

    def check(self) -> None:
        """Every area agrees with itself, and the free slots with the areas."""
        for area in self.areas:
            area.check()
        free = sum((area.pages if area.write_ok else 0) - area.inuse_pages for area in self.areas)
        assert free == self.nr_swap_pages, f"{free} swap slots are free, nr_swap_pages is {self.nr_swap_pages}"
        total = sum(area.pages for area in self.areas if area.write_ok)
        assert total == self.room[TOTAL], f"{total} slots may be written to, total_swap_pages is {self.room[TOTAL]}"

    def in_nobodys_page(self) -> int:
        """How many slots are taken and neither referred to nor in the swap cache: those that CPUs keep at hand."""
        return sum(int(((area.cache == RESERVED) & (area.count == 0)).sum()) for area in self.areas)


def _added(area: SwapArea) -> str:
    """The log line of swapon. ``FS``: frontswap is there."""
    kib = area.pages * KIB_PER_PAGE
    named = (("SS", area.solid_state), ("D", area.discardable), ("s", area.area_discard), ("c", area.page_discard))
    flags = "".join(name for name, is_set in named if is_set) + "FS"
    return f"Adding {kib}k swap on {area.path}.  Priority:{area.priority} extents:1 across:{kib}k {flags}"


def _plist_add(areas: list[SwapArea], area: SwapArea) -> None:
    """Insert behind those of the same priority; the highest is first."""
    at = next((at for at, other in enumerate(areas) if other.priority < area.priority), len(areas))
    areas.insert(at, area)


__all__ = ["BAD", "SwapFiles", "entries_of", "slots_of"]
