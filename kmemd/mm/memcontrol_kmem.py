"""Kernel memory of control groups: slab objects, blocks of pages, stacks, vmalloc, per-CPU data (mm/memcontrol.c).

Models: object groups, which outlive the group that they were made with and then belong to the one above it; objects
charged byte by byte, with a pointer's size for their bookkeeping, out of whole pages; what kernel threads allocate is
nobody's. Left out: memory of sockets.

Invariants: ``kmem`` of a group is the size of the blocks whose ``PageMap.memcg`` is minus the number of an object group
of its, plus the ``pages`` of these object groups; the number of an object group is free when nothing names it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.pages import PG_SLAB, PageMap, lazy_zeros
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.memcontrol_group import COUNTED, MemCgroup, ObjCgroup
from kmemd.mm.memcontrol_stock import MEMCG_CHARGE_BATCH, Charge, Stock
from kmemd.mm.mmzone import Zone
from kmemd.mm.percpu import Area, Percpu
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

PFNs = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]
UNRECLAIMABLE, RECLAIMABLE = 0, 1
GRANULE_SHIFT = 3
"""No two objects begin in the same 8 bytes."""
WORDS_PER_PAGE = PAGE_SIZE >> GRANULE_SHIFT
_NUMBER_SHIFT, _RECLAIMABLE_BIT, _SIZE_MASK = 16, 1 << 15, (1 << 15) - 1
PCPU_MIN_ALLOC_SIZE = 4
MEMCG_OWN_ITEMS = 7
"""MEMCG_SWAP to MEMCG_ZSWAPPED."""
MEM_CGROUP_NTARGETS = 2
EVENT_ITEMS = 2 + len([name for name in COUNTED if not name.startswith("workingset")])
"""memcg_vm_event_stat: those that memory.stat shows, pgpgin and pgpgout."""


class KernelMemory:
    """Charges the kernel's memory. ``try_charge`` fights for pages, ``current()`` is the executing task's group, None
    for the root and for kernel threads, ``released(number)`` hears that an object group is gone whose group was
    removed. ``pointer`` is the size of one, ``cpus`` the number of possible CPUs."""

    def __init__(
        self,
        pages: PageMap,
        zones: list[Zone],
        page_offset: int,
        stock: Stock,
        try_charge: Charge,
        current: Callable[[], MemCgroup | None],
        released: Callable[[int], None],
        *,
        pointer: int,
        cpus: int,
        enabled: bool,
    ) -> None:
        self._memcg, self._flags, self._orders = pages.memcg, pages.flags, pages.order
        spans = sorted((zone.start_pfn, zone.nid) for zone in zones)
        self._starts = np.array([start for start, _ in spans], dtype=np.int64)
        self._nids = np.array([nid for _, nid in spans], dtype=np.int64)
        self.nodes = int(self._nids.max()) + 1
        self._page_offset = page_offset
        self._stock, self._try_charge, self._current, self._released = stock, try_charge, current, released
        self._pointer, self._cpus, self.enabled = pointer, cpus, enabled
        self._words: npt.NDArray[np.int32] | None = None
        self.objcgs: list[ObjCgroup | None] = []
        self._percpu: Percpu | None = None
        self._areas: dict[int, list[Area]] = {}
        self.active = False
        self.objects = 0

    # -- object groups -----------------------------------------------------------------------------------

    def online(self, memcg: MemCgroup) -> None:
        """A group was made: it has an object group (``memcg_online_kmem``). Preconditions: ``charge_percpu``."""
        while len(self.objcgs) <= memcg.id:
            self.objcgs.append(None)
        self.objcgs[memcg.id] = ObjCgroup(memcg)
        self.active = self.active or (self.enabled and memcg.id > 0)

    def offline(self, memcg: MemCgroup) -> None:
        """A group was removed: its object groups are its parent's (``memcg_reparent_objcgs``)."""
        parent = memcg.parent
        assert parent is not None, "the root stays"
        for objcg in memcg.objcgs.values():
            objcg.memcg = parent
        parent.objcgs.update(memcg.objcgs)
        memcg.objcgs.clear()
        memcg.memory.usage -= memcg.kmem  # the counters above have it already
        for name in ("kmem", "stack_kb", "slab", "vmalloc", "percpu", "zswap", "zswapped"):
            setattr(parent, name, getattr(parent, name) + getattr(memcg, name))
            setattr(memcg, name, getattr(memcg, name) * 0)
        own = self.objcgs[memcg.id]
        assert own is not None, "a group has an object group"
        self._release_if_unused(own)

    def freed(self, memcg: MemCgroup) -> None:
        """The last of a removed group is gone, its per-CPU data as well (``mem_cgroup_free``)."""
        self._free_percpu(memcg.id)
        objcg, memcg.percpu_of = memcg.percpu_of, None
        self.uncharge_percpu(objcg)

    def uncharge_percpu(self, objcg: ObjCgroup | None) -> None:
        """Undo ``charge_percpu``."""
        if objcg is not None:
            objcg.memcg.percpu -= self._percpu_bytes()
            self.uncharge_bytes(objcg.id, self._percpu_bytes())

    def in_use(self, number: int) -> bool:
        """Whether there is an object group of this number."""
        return self.objcgs[number] is not None

    def owner(self, number: int) -> MemCgroup:
        """The group that an object group's memory belongs to."""
        return self._objcg(number).memcg

    def _objcg(self, number: int) -> ObjCgroup:
        objcg = self.objcgs[number]
        assert objcg is not None, f"there is no object cgroup {number}"
        return objcg

    def _release_if_unused(self, objcg: ObjCgroup) -> None:
        """An object group that nothing names goes when its group is gone (``obj_cgroup_release``)."""
        if objcg.refs or objcg.memcg.id == objcg.id:
            return
        self._stock.drain_objects(objcg)
        self._uncharge_pages(objcg, objcg.left >> PAGE_SHIFT)
        objcg.left = 0
        self.objcgs[objcg.id] = None
        del objcg.memcg.objcgs[objcg.id]
        self._released(objcg.id)

    # -- bytes -------------------------------------------------------------------------------------------

    def _charge(self, objcg: ObjCgroup, gfp: int, size: int) -> bool:
        """Charge bytes; whether they could be (``obj_cgroup_charge``)."""
        if self._stock.take_bytes(objcg, size):
            return True
        pages = -(-size // PAGE_SIZE)
        if not self._try_charge(objcg.memcg, gfp, pages):
            return False
        objcg.account(pages)
        spare = (pages << PAGE_SHIFT) - size
        if spare:
            self._uncharge_pages(objcg, self._stock.refill_bytes(objcg, spare, uncharge=False))
        return True

    def _uncharge(self, objcg: ObjCgroup, size: int) -> None:
        """``obj_cgroup_uncharge``."""
        self._uncharge_pages(objcg, self._stock.refill_bytes(objcg, size, uncharge=True))

    def _uncharge_pages(self, objcg: ObjCgroup, pages: int) -> None:
        if pages:
            objcg.account(-pages)
            self._stock.refill(objcg.memcg, pages)

    def use(self, percpu: Percpu) -> None:
        """From now on the counters of groups are in per-CPU memory, the root's as well. ENOMEM."""
        self._percpu = percpu
        self.alloc_percpu(0)

    def alloc_percpu(self, number: int) -> None:
        """A group's counters, and those of each node. ENOMEM, with nothing taken."""
        if self._percpu is None:
            return
        areas = self._areas[number] = list[Area]()
        try:
            areas.extend(self._percpu.alloc(size, self._pointer) for size in self._percpu_sizes())
        except KernelError:
            self._free_percpu(number)
            raise

    def _free_percpu(self, number: int) -> None:
        for area in self._areas.pop(number, ()):
            if self._percpu is not None:
                self._percpu.free(area)

    def _percpu_sizes(self) -> tuple[int, ...]:
        """struct lruvec_stats_percpu of each node, struct memcg_vmstats_percpu."""
        items, word = stats.NR_VM_NODE_STAT_ITEMS, self._pointer
        counters = (2 * (items + MEMCG_OWN_ITEMS + EVENT_ITEMS) + 1 + MEM_CGROUP_NTARGETS) * word
        return (counters, *[2 * items * word] * self.nodes)

    def _percpu_bytes(self) -> int:
        """What the per-CPU counters of a group take, with a pointer for each smallest unit (pcpu_obj_full_size)."""
        return sum(size * self._cpus + size // PCPU_MIN_ALLOC_SIZE * self._pointer for size in self._percpu_sizes())

    def charge_percpu(self, parent: MemCgroup | None) -> ObjCgroup | None:
        """The counters of a new group are its parent's memory; who pays for them. ENOMEM."""
        if parent is None or parent.is_root or not self.enabled:
            return None
        objcg, size = self._objcg(parent.id), self._percpu_bytes()
        if not self.charge_bytes(objcg.id, GFP_KERNEL, size):
            raise KernelError(errno.ENOMEM, f"{parent.cgroup.path} has no memory for another group's counters")
        objcg.memcg.percpu += size
        return objcg

    def charge_bytes(self, number: int, gfp: int, size: int) -> bool:
        """Charge something that is in no slab and names an object group until it is uncharged; whether it could be."""
        objcg = self._objcg(number)
        if not self._charge(objcg, gfp, size):
            return False
        objcg.refs += 1
        objcg.objects += size
        objcg.others += size
        return True

    def uncharge_bytes(self, number: int, size: int) -> None:
        """It is gone."""
        objcg = self._objcg(number)
        objcg.refs -= 1
        objcg.objects -= size
        objcg.others -= size
        self._uncharge(objcg, size)
        self._release_if_unused(objcg)

    # -- slab objects ------------------------------------------------------------------------------------

    def pre_alloc(self, size: int, gfp: int, n: int) -> tuple[ObjCgroup | None, int]:
        """Charge ``n`` objects of ``size`` bytes to who executes: whose they are and how many may be allocated
        (``memcg_slab_pre_alloc_hook``)."""
        memcg = self._current()
        objcg = self.objcgs[memcg.id] if memcg is not None else None
        if objcg is None:
            return None, n
        full, got = size + self._pointer, 0
        most = max(1, (MEMCG_CHARGE_BATCH << PAGE_SHIFT) // full)
        while got < n:
            want = min(n - got, most)
            if self._charge(objcg, gfp, want * full):
                got += want
            elif want == 1:
                break
            else:
                most = want // 2
        return objcg, got

    def post_alloc(self, objcg: ObjCgroup, objects: Addresses, charged: int, size: int, *, reclaimable: bool) -> None:
        """The objects that were allocated are the group's, and what was charged for others is given back."""
        full = size + self._pointer
        if charged > len(objects):
            self._uncharge(objcg, (charged - len(objects)) * full)
        if not len(objects):
            return
        if self._words is None:
            self._words = lazy_zeros(len(self._memcg) * WORDS_PER_PAGE, "int32")
        word = objcg.id << _NUMBER_SHIFT | (_RECLAIMABLE_BIT if reclaimable else 0) | full >> GRANULE_SHIFT
        self._words[self._granules(objects)] = word
        objcg.refs += len(objects)
        objcg.objects += len(objects) * full
        self.objects += len(objects)
        objcg.memcg.slab[int(reclaimable)] += self._on_nodes(objects) * full

    def free_objects(self, objects: Addresses) -> None:
        """Objects were freed (``memcg_slab_free_hook``)."""
        if self._words is None:
            return
        where = self._granules(objects)
        words = self._words[where]
        charged = words != 0
        if not charged.any():
            return
        self._words[where] = 0
        objects, words = objects[charged], words[charged]
        for word in np.unique(words).tolist():
            mine = objects[words == word]
            objcg = self._objcg(word >> _NUMBER_SHIFT)
            full = (word & _SIZE_MASK) << GRANULE_SHIFT
            objcg.refs -= len(mine)
            objcg.objects -= len(mine) * full
            self.objects -= len(mine)
            objcg.memcg.slab[int(bool(word & _RECLAIMABLE_BIT))] -= self._on_nodes(mine) * full
            self._uncharge(objcg, len(mine) * full)
            self._release_if_unused(objcg)

    def _granules(self, objects: Addresses) -> PFNs:
        found: PFNs = ((objects - np.uint64(self._page_offset)) >> np.uint64(GRANULE_SHIFT)).astype(np.int64)
        return found

    def _on_nodes(self, objects: Addresses) -> PFNs:
        pfns = (objects - np.uint64(self._page_offset)).astype(np.int64) >> PAGE_SHIFT
        return self.by_node(pfns)

    def by_node(self, pfns: PFNs) -> PFNs:
        """How many of some frames are on each node."""
        return np.bincount(self.nids(pfns), minlength=self.nodes)

    def nids(self, pfns: PFNs) -> PFNs:
        """The nodes of frames."""
        found: PFNs = self._nids[np.searchsorted(self._starts, pfns, side="right") - 1]
        return found

    # -- pages -------------------------------------------------------------------------------------------

    def charge_blocks(self, pfns: PFNs, order: int, gfp: int) -> int:
        """Charge blocks to the executing task's group (``__memcg_kmem_charge_page``); how many could be."""
        memcg = self._current() if self.enabled else None
        objcg = self.objcgs[memcg.id] if memcg is not None else None
        if memcg is None or objcg is None:
            return len(pfns)
        done = 0
        while done < len(pfns) and (
            self._stock.take_all(memcg, 1 << order) or self._try_charge(memcg, gfp, 1 << order)
        ):
            done += 1
        self._memcg[pfns[:done]] = -objcg.id
        objcg.refs += done
        memcg.kmem += done << order
        return done

    def uncharge_blocks(self, number: int, blocks: int, order: int) -> None:
        """Blocks of an object group are free (``__memcg_kmem_uncharge_page``)."""
        objcg = self._objcg(number)
        objcg.refs -= blocks
        objcg.memcg.kmem -= blocks << order
        self._stock.refill(objcg.memcg, blocks << order)
        self._release_if_unused(objcg)

    def account_stack(self, kib: int, nid: int, objcg: ObjCgroup | None) -> ObjCgroup | None:
        """A kernel stack of so many KiB came (of the executing task's group) or, below 0, went; whose it is."""
        if kib > 0:
            memcg = self._current() if self.enabled and self.active else None
            objcg = self.objcgs[memcg.id] if memcg is not None else None
        if objcg is not None:
            objcg.refs += 1 if kib > 0 else -1
            objcg.memcg.stack_kb[nid] += kib
            self._release_if_unused(objcg)
        return objcg

    def account_vmalloc(self, pfns: PFNs, order: int, sign: int) -> None:
        """Blocks, charged ones among them, are an area of vmalloc's, or, ``sign`` -1, no longer."""
        if not self.active:
            return
        numbers = self._memcg[pfns]
        for number in np.unique(numbers[numbers < 0]).tolist():
            self.owner(-number).vmalloc += sign * int((numbers == number).sum()) << order

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Objects, bytes and pages of every object group agree. AssertionError."""
        words = self._charged_words()
        assert len(words) == self.objects, f"{len(words)} slab objects are charged, {self.objects} counted"
        sizes = (words & _SIZE_MASK).astype(np.int64) << GRANULE_SHIFT
        found = np.bincount(words >> _NUMBER_SHIFT, weights=sizes, minlength=len(self.objcgs)).astype(np.int64)
        for objcg in filter(None, self.objcgs):
            name = f"object cgroup {objcg.id}"
            stock = sum(size for cached, size in self._stock.bytes if cached is objcg)
            have, want = objcg.objects + objcg.left + stock, objcg.pages << PAGE_SHIFT
            assert have == want, f"{name}: {have} bytes used and in stock, {want} charged"
            used = int(found[objcg.id]) + objcg.others
            assert used == objcg.objects, f"{name}: its objects have {used} bytes, it counts {objcg.objects}"
            assert objcg.memcg.objcgs.get(objcg.id) is objcg, f"{name}: its group does not know it"

    def _charged_words(self) -> npt.NDArray[np.int32]:
        """What stands in slabs."""
        if self._words is None:
            return np.zeros(0, dtype=np.int32)
        heads = np.flatnonzero(self._flags & np.uint32(1 << PG_SLAB) != 0)
        words = self._words.reshape(-1, WORDS_PER_PAGE)
        parts = [words[pfn : pfn + (1 << order)].ravel() for pfn, order in zip(heads, self._orders[heads], strict=True)]
        found = np.concatenate([part[part != 0] for part in parts]) if parts else np.zeros(0, dtype=np.int32)
        return found
