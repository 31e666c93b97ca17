"""Mappings of huge pages: reservations, faults, copies on write, unmapping (mm/hugetlb.c, second half).

Models: private and shared mappings as MAP_HUGETLB makes them. A page is taken when it is first touched; what mmap
reserved makes sure that there is one. After a fork the task that made a private mapping keeps its reservations: if it
writes and the pool is empty, the page is taken away from its children, who get SIGBUS when they touch it again.
Left out: page tables shared between processes, poisoned entries, userfaultfd.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from kmemd.core import pte
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_HEAD
from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm.filemap import FileKind, PageCache
from kmemd.mm.huge_page import HugePages, page_prot
from kmemd.mm.hugetlb import ALL_NODES, Hugetlb
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.hugetlb_reserve import Reserve, ResvMap
from kmemd.mm.hugetlbfs import HUGETLB_ANON_FILE, HugetlbFile, HugetlbOperations
from kmemd.mm.mempolicy import HasMm, Mempolicy
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mpol import MPOL_BIND, MPOL_PREFERRED_MANY
from kmemd.mm.pgtable import PageTables
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.rmap import Rmap
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.units import PAGE_SHIFT

MAP_HUGE_SHIFT, MAP_HUGE_MASK = 26, 0x3F
FIRST_INO = 4645
"""The next inode number of file systems without a device when the captured machine had booted."""
FIRST_MINOR = 0x0C
"""The device number of the first of the kernel's own mounts of hugetlbfs, in the captured order of file systems."""


class Task(HasMm, Protocol):
    """What is asked of a task."""

    @property
    def pid(self) -> int:
        """Its number."""


class Place(NamedTuple):
    """A huge page of a mapping: the file, its pool, the first page number, and the offset in the file in huge pages."""

    task: Task | None
    mm: Mm
    vma: Vma
    file: HugetlbFile
    pool: Pool
    vpn: int
    offset: int


class HugetlbVm:
    """What memory management does with mappings that have VM_HUGETLB. Page numbers are those of base pages."""

    def __init__(
        self,
        pools: Hugetlb,
        cache: PageCache,
        mmu: Mmu,
        pgtable: PageTables,
        rmap: Rmap,
        mempolicy: Mempolicy,
        printk: Printk,
        huge: HugePages,
    ) -> None:
        self._pools = pools
        self._cache = cache
        self._mmu = mmu
        self._pgtable = pgtable
        self._rmap = rmap
        self._mempolicy = mempolicy
        self._printk = printk
        self._huge = huge
        self._next_ino = FIRST_INO

    # -- files -------------------------------------------------------------------------------------------

    def file_setup(self, size: int, flags: int) -> HugetlbFile:
        """The nameless file behind a MAP_HUGETLB mapping (``hugetlb_file_setup``). EINVAL: no such page size."""
        shift = flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK
        pool = self._pools.pool_of_shift(shift)
        if pool is None:
            raise KernelError(errno.EINVAL, f"there are no huge pages of 2**{shift} bytes")
        file = HugetlbFile(
            self._cache.next_id(),
            HUGETLB_ANON_FILE,
            self._next_ino,
            f"00:{FIRST_MINOR + self._mount_of(pool):02x}",
            FileKind.HUGETLB,
            HugetlbOperations(self.punch_hole),
            -(-size // pool.size) * pool.size,
            deleted=True,
            pool=pool,
            opened=self._opened,
            closed=self._closed,
            evict=self._evict,
        )
        self._next_ino += 1
        return file

    def _mount_of(self, pool: Pool) -> int:
        others = [other for other in self._pools.pools if other is not self._pools.default]
        return 0 if pool is self._pools.default else 1 + others.index(pool)

    def map_file(self, mm: Mm, vma: Vma) -> None:
        """A file of huge pages is mapped (``hugetlbfs_file_mmap``): reserve what it may use. EINVAL, ENOMEM."""
        file = _file(vma)
        if vma.pgoff & (file.pool.pages - 1):
            raise KernelError(errno.EINVAL, f"offset {vma.pgoff << PAGE_SHIFT:#x} is not a multiple of the page size")
        vma.flags |= mt.VM_HUGETLB | mt.VM_DONTEXPAND
        start = vma.pgoff >> file.pool.order
        length = vma.end - vma.start + (vma.pgoff << PAGE_SHIFT)
        try:
            self.reserve(mm, vma, start, length // file.pool.size)
        except KernelError:
            if not file.maps and file.deleted:
                self._evict(file)
            raise
        if vma.flags & mt.VM_WRITE and file.size < length:
            file.size = length

    def reserve(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Promise the pages ``[start, end)`` of a file to a mapping (``hugetlb_reserve_pages``). ENOMEM."""
        file, shared = _file(vma), vma.flags & mt.VM_MAYSHARE
        if vma.flags & mt.VM_NORESERVE:
            return
        wanted = file.resv.missing(start, end) if shared else end - start
        needed = file.subpool.get_pages(wanted) if file.subpool is not None else wanted
        if needed is None:
            raise KernelError(errno.ENOMEM, f"the mount may not use {wanted} more pages")
        policy = mm.policy
        mask = policy.nodes if policy is not None and policy.mode == MPOL_BIND else ALL_NODES
        try:
            self._pools.acct_memory(file.pool, needed, mask)
        except KernelError:
            if file.subpool is not None:
                file.subpool.put_pages(wanted)
            raise
        if shared:
            file.resv.add(start, end)
        else:
            vma.private = Reserve(mm, ResvMap())

    def _opened(self, mm: Mm, vma: Vma) -> None:
        """A mapping is there; a copy of a private one in a child has no promises (``hugetlb_dup_vma_private``)."""
        file = _file(vma)
        self._cache.files[file.id] = file
        if vma.private is not None and vma.private.mm is not mm:
            vma.private = None

    def _closed(self, file: HugetlbFile, mm: Mm, vma: Vma) -> None:
        """A mapping goes: the promises that it did not use are taken back (``hugetlb_vm_op_close``)."""
        resv = _own_map(mm, vma)
        if resv is None:
            return
        start = vma.pgoff >> file.pool.order
        self._unreserve(file, resv.missing(start, start + (vma.pages >> file.pool.order)))

    def clear_reserves(self, vma: Vma) -> None:
        """The mapping was moved, and its promises went with it (``clear_vma_resv_huge_pages``)."""
        vma.private = None

    def _evict(self, file: HugetlbFile) -> None:
        """The file is gone: its pages are free, and so is what was promised (``hugetlbfs_evict_inode``)."""
        freed = len(file.cache)
        for pfn in file.cache.values():
            self._free(file.pool, pfn)
        file.cache.clear()
        self._unreserve(file, file.resv.delete(0, 1 << 52) - freed)
        self._cache.files.pop(file.id, None)

    def punch_hole(self, file: HugetlbFile, start: int, end: int) -> int:
        """Free the pages of a file between two offsets in base pages: how many (``hugetlbfs_punch_hole``)."""
        pool = file.pool
        first, last = -(-start // pool.pages), end // pool.pages
        hole = [offset for offset in sorted(file.cache) if first <= offset < last]
        for offset in hole:
            for mm, vma in file.mappings(offset << pool.order, (offset + 1) << pool.order):
                vpn = vma.vpn + (offset << pool.order) - vma.pgoff
                self.unmap(mm, vma, vpn, vpn + pool.pages)
            file.resv.delete(offset, offset + 1)
            self._free(pool, file.cache.pop(offset))
        return len(hole) << pool.order

    def _unreserve(self, file: HugetlbFile, count: int) -> None:
        if count:
            dropped = file.subpool.put_pages(count) if file.subpool is not None else count
            self._pools.acct_memory(file.pool, -dropped)

    # -- pages -------------------------------------------------------------------------------------------

    def _alloc(self, place: Place, *, avoid_reserve: bool = False) -> int:
        """A page for a mapping (``alloc_huge_page``). ENOSPC when the pool has none."""
        change = global_change = self._needs_reservation(place)
        subpool = place.file.subpool
        if change or avoid_reserve:
            asked = subpool.get_pages(1) if subpool is not None else 1
            if asked is None:
                raise KernelError(errno.ENOSPC, "the mount may not use more huge pages")
            global_change = asked
        reserved = self._has_reserves(place, global_change)
        pfn = self._take(place, reserved, avoid_reserve)
        if pfn is None:
            if (change or avoid_reserve) and subpool is not None:
                subpool.put_pages(1)
            raise KernelError(errno.ENOSPC, f"{place.pool.name} has no page left")
        place.pool.active[pfn] = subpool
        self._map_of(place, lambda resv: resv.add(place.offset, place.offset + 1))
        return pfn

    def _take(self, place: Place, reserved: bool, avoid: bool) -> int | None:
        policy = self._mempolicy.vma_policy(place.vma, place.vpn, place.task)
        nid, mask = self._mempolicy.huge_node(place.vma, place.vpn, place.task, place.pool.order)
        pfn = self._pools.take_page(place.pool, nid, mask, reserved=reserved, avoid_reserve=avoid)
        if pfn is None and policy.mode == MPOL_PREFERRED_MANY:
            pfn = self._pools.take_page(place.pool, nid, ALL_NODES, reserved=reserved, avoid_reserve=avoid)
        return pfn

    def _map_of(self, place: Place, use: Callable[[ResvMap], int]) -> int | None:
        """What a mapping's map of reservations says; None without a map (``vma_resv_map``)."""
        shared = place.vma.flags & mt.VM_MAYSHARE
        resv = place.file.resv if shared else _own_map(place.mm, place.vma)
        return None if resv is None else use(resv)

    def _needs_reservation(self, place: Place) -> int:
        """0 when the page was promised to the mapping, 1 when it was not (``vma_needs_reservation``)."""
        missing = self._map_of(place, lambda resv: resv.missing(place.offset, place.offset + 1))
        if missing is None:
            return 1
        return missing if place.vma.flags & mt.VM_MAYSHARE else 1 - missing

    def _has_reserves(self, place: Place, change: int) -> bool:
        """Whether an allocation uses up a promise (``vma_has_reserves``)."""
        flags = place.vma.flags
        if flags & mt.VM_MAYSHARE:
            return not change
        return not flags & mt.VM_NORESERVE and not change and _own_map(place.mm, place.vma) is not None

    def _free(self, pool: Pool, pfn: int) -> None:
        """Nobody maps a page any more, and no file has it."""
        self._huge.wipe(pfn, pool.pages, keep=1 << PG_HEAD)
        self._pools.free_huge_page(pool, pfn)

    def _unmap_page(self, place: Place, slot: int) -> None:
        """Clear an entry; a private page that nobody else maps is free."""
        pfn = self._huge.pfn_at(slot)
        self._mmu.words[slot] = 0
        place.mm.hugetlb_pages -= place.pool.pages
        if self._huge.unmap(pfn) == 0 and self._huge.is_anon(pfn):
            self._free(place.pool, pfn)

    # -- faults ------------------------------------------------------------------------------------------

    def fault(self, task: Task | None, mm: Mm, vma: Vma, vpn: int, write: bool) -> None:
        """A fault in a mapping of huge pages (``hugetlb_fault``). ``Signal`` SIGBUS; ENOMEM without a page table."""
        place = self._place(task, mm, vma, vpn)
        slot = self._pgtable.ensure(mm.id, place.vpn, place.pool.level)
        entry = int(self._mmu.words[slot])
        try:
            if not entry:
                self._no_page(place, slot, write)
            elif write and not entry & pte.RW:
                self._wp(place, slot)
            else:
                self._mmu.words[slot] = entry | pte.ACCESSED | (pte.DIRTY | pte.SOFT_DIRTY if write else 0)
        except KernelError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT, write=write) from error

    def _place(self, task: Task | None, mm: Mm, vma: Vma, vpn: int) -> Place:
        file = _file(vma)
        vpn &= -file.pool.pages
        return Place(task, mm, vma, file, file.pool, vpn, vma.index_of(vpn) >> file.pool.order)

    def _no_page(self, place: Place, slot: int, write: bool) -> None:
        """Nothing is mapped yet (``hugetlb_no_page``)."""
        vma, file = place.vma, place.file
        if vma.private is not None and vma.private.unmapped:
            pid = place.task.pid if place.task is not None else 0
            self._printk.log(KERN_WARNING, f"PID {pid} killed due to inadequate hugepage pool")
            raise KernelError(errno.ENOSPC, "the page was taken away by the task that made the mapping")
        pfn = file.cache.get(place.offset)
        if pfn is None:
            pfn = self._new_page(place)
        self._huge.map_again(pfn)
        writable = vma.flags & (mt.VM_WRITE | mt.VM_SHARED) == mt.VM_WRITE | mt.VM_SHARED
        self._set_entry(place, slot, pfn, writable=bool(writable))
        place.mm.hugetlb_pages += place.pool.pages
        if write and not vma.flags & mt.VM_SHARED:
            self._wp(place, slot)

    def _new_page(self, place: Place) -> int:
        """A zeroed page, in the file's cache or the mapping's own. ENOSPC."""
        file = place.file
        if place.offset >= file.size // place.pool.size:
            raise KernelError(errno.ENOSPC, f"{file.path} ends before page {place.offset}")
        pfn = self._alloc(place)
        self._huge.clear(place.pool.pages)
        place.pool.restore.discard(pfn)
        if place.vma.flags & mt.VM_MAYSHARE:
            file.cache[place.offset] = pfn
            self._huge.new_file_page(pfn, file.id, place.offset)
        else:
            anon = self._rmap.prepare(place.mm, place.vma)
            self._huge.new_anon_page(pfn, anon.id, place.offset)
        return pfn

    def _set_entry(self, place: Place, slot: int, pfn: int, *, writable: bool) -> None:
        """``make_huge_pte``."""
        bits = page_prot(place.vma.flags) & ~pte.RW | pte.PSE | pte.ACCESSED
        if writable:
            bits |= pte.RW | pte.DIRTY | pte.SOFT_DIRTY
        self._mmu.words[slot] = pfn << pte.PFN_SHIFT | bits

    def _wp(self, place: Place, slot: int) -> None:
        """A write to a page that is mapped read-only (``hugetlb_wp``). ENOSPC when the copy has no page."""
        pfn = self._huge.pfn_at(slot)
        if place.vma.flags & mt.VM_MAYSHARE:
            self._make_writable(place, slot)
            return
        owner = _own_map(place.mm, place.vma) is not None
        outside = owner and place.file.cache.get(place.offset) != pfn
        while not (self._huge.is_anon(pfn) and self._huge.mapcount(pfn) == 1):
            try:
                new = self._alloc(place, avoid_reserve=outside)
            except KernelError:
                if not outside:
                    raise
                self._unmap_ref_private(place, pfn)
                outside = False
                continue
            self._copy_page(place, slot, pfn, new)
            return
        anon = self._rmap.prepare(place.mm, place.vma)
        self._huge.own(pfn, anon.id)
        self._make_writable(place, slot)

    def _make_writable(self, place: Place, slot: int) -> None:
        entry = int(self._mmu.words[slot]) | pte.RW | pte.DIRTY | pte.SOFT_DIRTY | pte.ACCESSED
        self._mmu.words[slot] = entry
        self._mmu.flush_range(place.mm.id, place.vpn, place.vpn + 1)

    def _copy_page(self, place: Place, slot: int, old: int, new: int) -> None:
        anon = self._rmap.prepare(place.mm, place.vma)
        self._huge.copy(old, new, place.pool.pages)
        place.pool.restore.discard(new)
        self._unmap_page(place, slot)
        self._huge.new_anon_page(new, anon.id, place.offset)
        self._huge.map_again(new)
        self._set_entry(place, slot, new, writable=True)
        place.mm.hugetlb_pages += place.pool.pages
        self._mmu.flush_range(place.mm.id, place.vpn, place.vpn + 1)

    def _unmap_ref_private(self, place: Place, pfn: int) -> None:
        """The owner of the mapping found no page for its copy: take this one away from those without reservations."""
        for mm, vma in place.file.mappings(place.offset << place.pool.order, (place.offset + 1) << place.pool.order):
            if vma is place.vma or vma.flags & mt.VM_MAYSHARE or _own_map(mm, vma) is not None:
                continue
            vpn = vma.vpn + (place.offset << place.pool.order) - vma.pgoff
            slot = self._mmu.entry_slot(mm.id, vpn, place.pool.level)
            if slot >= 0 and int(self._mmu.words[slot]) and self._huge.pfn_at(slot) == pfn:
                own = vma.private or Reserve(mm)
                vma.private = replace(own, unmapped=True)
                self._unmap_page(place._replace(mm=mm, vma=vma, vpn=vpn), slot)
                self._mmu.flush_range(mm.id, vpn, vpn + 1)

    # -- ranges ------------------------------------------------------------------------------------------

    def _entries(self, mm: Mm, vma: Vma, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Page numbers and places of the huge entries that exist between two page numbers."""
        if start % _file(vma).pool.pages or end % _file(vma).pool.pages:
            raise KernelError(errno.EINVAL, f"pages {start:#x} to {end:#x} are not whole huge pages")
        for vpn, _, slot, level in self._mmu.extents(mm.id, start, end).tolist():
            if level:
                yield vpn, slot

    def unmap(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Unmap page numbers ``[start, end)`` (``__unmap_hugepage_range``). EINVAL."""
        found = list(self._entries(mm, vma, start, end))
        for vpn, slot in found:
            self._unmap_page(self._place(None, mm, vma, vpn), slot)
        if found:
            self._mmu.flush_range(mm.id, start, end)

    def copy(self, child: Mm, parent: Mm, child_vma: Vma, vma: Vma) -> None:
        """A fork: the child maps what its parent does, both read-only where the mapping is private
        (``copy_hugetlb_page_range``)."""
        pool = _file(vma).pool
        cow = vma.flags & (mt.VM_SHARED | mt.VM_MAYWRITE) == mt.VM_MAYWRITE
        for vpn, slot in self._entries(parent, vma, vma.vpn, vma.end >> PAGE_SHIFT):
            target = self._pgtable.ensure(child.id, vpn, pool.level)
            entry, pfn = int(self._mmu.words[slot]), self._huge.pfn_at(slot)
            if cow:
                entry &= ~pte.RW
                self._mmu.words[slot] = entry
            if self._huge.is_anon(pfn):
                self._huge.share(pfn)
            self._huge.map_again(pfn)
            self._mmu.words[target] = entry
            child.hugetlb_pages += pool.pages

    def protect(self, mm: Mm, vma: Vma, start: int, end: int) -> int:
        """Give the entries of a range the mapping's protection (``hugetlb_change_protection``): the pages changed."""
        changed = 0
        prot = page_prot(vma.flags)
        keep = pte.PFN_MASK | pte.PSE | pte.ACCESSED | pte.DIRTY | pte.SOFT_DIRTY
        for _, slot in self._entries(mm, vma, start, end):
            self._mmu.words[slot] = int(self._mmu.words[slot]) & keep | prot
            changed += _file(vma).pool.pages
        if changed:
            self._mmu.flush_range(mm.id, start, end)
        return changed

    def move(self, mm: Mm, vma: Vma, start: int, target: int, pages: int) -> None:
        """Move entries from one page number to another (``move_hugetlb_page_tables``). ENOMEM."""
        pool = _file(vma).pool
        for vpn, slot in list(self._entries(mm, vma, start, start + pages)):
            to = self._pgtable.ensure(mm.id, vpn - start + target, pool.level)
            self._mmu.words[to], self._mmu.words[slot] = self._mmu.words[slot], 0
        self._mmu.flush_range(mm.id, start, start + pages)

    def scan(self, mm: Mm, vma: Vma) -> tuple[int, int]:
        """Bytes of huge pages that the mapping shares with others, and of its own (``smaps_hugetlb_range``)."""
        shared = private = 0
        size = _file(vma).pool.size
        for _, slot in self._entries(mm, vma, vma.vpn, vma.end >> PAGE_SHIFT):
            if self._huge.mapcount(self._huge.pfn_at(slot)) >= 2:
                shared += size
            else:
                private += size
        return shared, private

    def check(self, spaces: Iterable[Mm]) -> None:
        """Pages in use are mapped as often as they count, or in a file; what is promised is what mappings may claim."""
        maps: Counter[int] = Counter()
        promised: Counter[int] = Counter()
        files: dict[int, HugetlbFile] = {}
        for mm in spaces:
            used = 0
            for vma in (vma for vma in mm.vmas if vma.flags & mt.VM_HUGETLB):
                file = files.setdefault(_file(vma).id, _file(vma))
                entries = [slot for _, slot in self._entries(mm, vma, vma.vpn, vma.end >> PAGE_SHIFT)]
                maps.update(self._huge.pfn_at(slot) for slot in entries)
                used += len(entries) * file.pool.pages
                resv, start = _own_map(mm, vma), vma.pgoff >> file.pool.order
                if resv is not None:
                    promised[file.pool.order] += resv.missing(start, start + (vma.pages >> file.pool.order))
            assert used == mm.hugetlb_pages, f"mm {mm.id}: {used} pages in huge ones, counts {mm.hugetlb_pages}"
        cached: set[int] = set()
        for file in files.values():
            cached |= set(file.cache.values())
            promised[file.pool.order] += file.resv.count(0, 1 << 52) - len(file.cache)
        for pool in self._pools.pools:
            assert pool.resv == promised[pool.order], f"{pool.name}: {pool.resv} promised, not {promised[pool.order]}"
            for pfn in pool.active:
                found = self._huge.mapcount(pfn)
                assert found == maps[pfn], f"pfn {pfn}: mapped {maps[pfn]} times, counts {found}"
                assert found or pfn in cached, f"pfn {pfn}: in use by nobody"


def _file(vma: Vma) -> HugetlbFile:
    assert isinstance(vma.file, HugetlbFile), "the mapping is not of huge pages"
    return vma.file


def _own_map(mm: Mm, vma: Vma) -> ResvMap | None:
    """The map of a private mapping in the address space that made it (HPAGE_RESV_OWNER)."""
    if vma.flags & mt.VM_MAYSHARE or vma.private is None or vma.private.mm is not mm:
        return None
    return vma.private.resv
