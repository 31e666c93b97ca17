"""What the calls about mappings do to pages and entries: protection, moves, locking, aging, populating.

Models ``change_protection`` (mm/mprotect.c), ``move_page_tables`` (mm/mremap.c), ``mlock_vma_pages_range``
(mm/mlock.c), the page walks of mm/madvise.c and ``populate_vma_page_range`` (mm/gup.c). Small entries are the core's
work, huge ones that of mm/huge_pmd.py and mm/hugetlb_vm.py. Left out: pages under migration, which never stay.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import mmu as core
from kmemd.core.lru import ACTIVATE, DEACTIVATE, LAZYFREE, MLOCK_PAGE, MUNLOCK
from kmemd.core.lru_lists import POLICY, TWO_LIST
from kmemd.core.pages import PG_ACTIVE, PG_DIRTY, PG_LRU, PG_REFERENCED, PG_SWAPCACHE, PG_UNEVICTABLE
from kmemd.core.pte import (
    PFN_MASK,
    PFN_SHIFT,
    PRESENT,
    PROTNONE,
    PSE,
    SPECIAL,
    SWP_MIGRATION_READ,
    SWP_TYPE_SHIFT,
)
from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm.memory import POPULATE_PAGES, Memory
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.signals import Signal
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vma_rows import prot_bits

if TYPE_CHECKING:
    from kmemd.mm.filemap import File

Rows = npt.NDArray[np.int64]
Pfns = npt.NDArray[np.int64]

_HERE = np.uint64(PRESENT | PROTNONE)


class Piece(NamedTuple):
    """Entries that move together: they are in one table before and after."""

    vpn: int
    pages: int
    slot: int
    to: int


class HugeEntries(Protocol):
    """Transparent huge pages (mm/huge_memory.c)."""

    def protect(self, vma: Vma, slot: int) -> int: ...
    def move(self, mm: Mm, vpn: int, target: int) -> bool: ...
    def cold(self, mm: Mm, vma: Vma, vpn: int, slot: int, *, clean: bool = False) -> bool: ...
    def split_pages(self, mm: Mm, start: int, end: int) -> None: ...


class HugetlbEntries(Protocol):
    """Pages of a pool (mm/hugetlb.c). Ranges are of page numbers."""

    def protect(self, mm: Mm, vma: Vma, start: int, end: int) -> int: ...
    def move(self, mm: Mm, vma: Vma, start: int, target: int, pages: int) -> None: ...
    def clear_reserves(self, vma: Vma) -> None: ...


PAGEOUT_BYTES, COMPRESSED_BYTES = 512 << PAGE_SHIFT, 64 << PAGE_SHIFT
"""Memory that is paged out in one go, to a device, and with pages that are compressed."""


@dataclass(frozen=True)
class Services:
    """Who does what is not done here.

    ``wants_notify(vma)`` says whether writes to a shared mapping are to be noticed one by one (its file has a disk);
    ``free_swap(entries)`` gives swap entries back, ``free_swap_cache(pfns)`` what pages in memory have in swap;
    ``reclaim(pfns)`` pages out; ``willneed(mm, vma, first, last)`` and
    ``remove(file, first, last)`` read ahead and punch a hole, in pages of address and of file; ``collapse`` makes huge
    pages of a range, ``enter_huge`` and ``enter_ksm`` tell khugepaged and ksmd; ``compresses()`` tells whether pages
    are compressed on their way to swap, which takes long.
    """

    huge: HugeEntries
    hugetlb: HugetlbEntries
    wants_notify: Callable[[Vma], bool]
    free_swap: Callable[[npt.NDArray[np.uint64]], None]
    free_swap_cache: Callable[[Pfns], object]
    reclaim: Callable[[Pfns], object]
    willneed: Callable[[Mm, Vma, int, int], None]
    remove: Callable[[File, int, int], object]
    collapse: Callable[[Mm, Vma, int, int], None]
    enter_huge: Callable[[Mm, Vma], None]
    enter_ksm: Callable[[Mm], None]
    compresses: Callable[[], bool]


class VmaPages:
    """The pages of mappings."""

    def __init__(self, memory: Memory, services: Services) -> None:
        self._memory = memory
        self._services = services
        self._mmu, self._ptes, self._lru = memory.mmu, memory.ptes, memory.lru
        self._pages = memory.pages
        self._size = 1 << memory.mmu.bits
        self._shift = PAGE_SHIFT + memory.mmu.bits

    def _rows(self, mm: Mm, start: int, end: int) -> tuple[Rows, list[list[int]]]:
        """The entries of a range of addresses: rows of small ones, and huge ones."""
        rows = self._mmu.extents(mm.id, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        return np.ascontiguousarray(rows[rows[:, 3] == 0]), rows[rows[:, 3] > 0].tolist()

    # -- what mappings need ------------------------------------------------------------------------------

    def unmap_region(self, mm: Mm, start: int, end: int, floor: int, ceiling: int) -> None:
        """Take the pages of a range out, and the tables that nothing between floor and ceiling needs any more."""
        self._memory.zap.unmap_region(mm, start, end, floor, ceiling)

    def split_huge(self, mm: Mm, address: int) -> None:
        """Make small entries of a huge one that ``address`` lies inside of."""
        if address & ((1 << self._shift) - 1):
            self._memory.split_huge(mm, address)

    def prepare_anon(self, mm: Mm, vma: Vma) -> None:
        """The mapping gets an anon_vma when it has none."""
        self._memory.prepare_anon(mm, vma)

    def unlink_anon(self, vma: Vma) -> None:
        """The mapping has no anonymous pages any more."""
        self._memory.rmap.unlink_anon([vma])

    # -- protection --------------------------------------------------------------------------------------

    def change_protection(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Give the entries of a range the protection of its mapping.

        The right to write is for pages that need no fault first: in a private mapping those that are the task's
        alone, in a shared one those that are dirty already where that is to be noticed.
        """
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        if vma.flags & mt.VM_HUGETLB:
            self._services.hugetlb.protect(mm, vma, first, last)
            return
        shared = vma.flags & mt.VM_SHARED != 0
        careful = not shared or self._services.wants_notify(vma)
        prot = prot_bits(vma.flags, cow=careful)
        careful = careful and vma.flags & mt.VM_WRITE != 0
        small, huge = self._rows(mm, start, end)
        self._ptes.protect(small, prot, careful, shared)
        for _, _, slot, _ in huge:
            self._services.huge.protect(vma, slot)
        self._mmu.flush_range(mm.id, first, last)

    # -- moving ------------------------------------------------------------------------------------------

    def move_page_tables(self, mm: Mm, vma: Vma, start: int, new: int, length: int) -> None:
        """Move the entries of a range to another address of ``vma``. ENOMEM: then nothing was moved.

        A table whose range begins and ends at such borders at both addresses moves whole.
        """
        shift, first = (new - start) >> PAGE_SHIFT, start >> PAGE_SHIFT
        if vma.flags & mt.VM_HUGETLB:
            self._services.hugetlb.move(mm, vma, first, first + shift, length >> PAGE_SHIFT)
            return
        self.split_huge(mm, start)
        self.split_huge(mm, start + length)
        small, huge = self._rows(mm, start, start + length)
        if huge and shift % self._size:
            for vpn, _, _, _ in huge:
                self._memory.split_huge(mm, (vpn + 1) << PAGE_SHIFT)
            small, huge = self._rows(mm, start, start + length)
        pieces = list(self._pieces(small, shift))
        tables = self._memory.tables
        for piece in pieces:
            tables.ensure(mm.id, piece.to, 1 if self._whole(piece) else 0)
        for vpn, _, _, level in huge:
            tables.ensure(mm.id, vpn + shift, level)
        for piece in pieces:
            self._move_piece(mm, piece)
        for vpn, _, _, _ in huge:
            self._services.huge.move(mm, vpn, vpn + shift)
        self._mmu.flush_range(mm.id, first, first + (length >> PAGE_SHIFT))

    def clear_reserves(self, vma: Vma) -> None:
        """The promises of huge pages went with the entries."""
        self._services.hugetlb.clear_reserves(vma)

    def _pieces(self, rows: Rows, shift: int) -> Iterator[Piece]:
        """Rows cut where the table at the new address ends."""
        for vpn, pages, slot, _ in rows.tolist():
            done = 0
            while done < pages:
                to = vpn + done + shift
                part = min(pages - done, self._size - to % self._size)
                yield Piece(vpn + done, part, slot + done, to)
                done += part

    def _whole(self, piece: Piece) -> bool:
        return bool(piece.pages == self._size and piece.to % self._size == 0)

    def _move_piece(self, mm: Mm, piece: Piece) -> None:
        mmu = self._mmu
        if self._whole(piece) and mmu.slot(mm.id, piece.to) < 0:
            entries = mmu.words[piece.slot : piece.slot + piece.pages].copy()
            table = mmu.uninstall(mm.id, piece.vpn, 0)
            mmu.install(mm.id, piece.to, 0, table)
            mmu.words[table << mmu.bits : (table + 1) << mmu.bits] = entries
            return
        target = self._memory.tables.ensure(mm.id, piece.to)
        rows = np.array([[piece.vpn, piece.pages, piece.slot, 0]], dtype=np.int64)
        self._ptes.move(rows, np.array([target], dtype=np.int64))

    # -- locking and populating --------------------------------------------------------------------------

    def lock_pages(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Lock the pages that are mapped in a range of a mapping with VM_LOCKED, or unlock them in any other.

        Small pieces of huge pages are passed over.
        """
        self._lru.drain_local()
        small, huge = self._rows(mm, start, end)
        pfns = self._single(self._ptes.pages_of(small))
        heads = np.array([self._pfn(slot) for _, _, slot, _ in huge if self._is_page(slot)], dtype=np.int64)
        self._lru.mlock(np.concatenate((pfns, heads)), MLOCK_PAGE if vma.flags & mt.VM_LOCKED else MUNLOCK)
        self._lru.drain_local()

    def _single(self, pfns: Pfns) -> Pfns:
        """Those that are not a part of a huge page."""
        found: Pfns = pfns[(self._pages.kind[pfns] != 0) & (self._pages.order[pfns] == 0)]
        return found

    def _pfn(self, slot: int) -> int:
        return (int(self._mmu.words[slot]) & PFN_MASK) >> PFN_SHIFT

    def _is_page(self, slot: int) -> bool:
        entry = int(self._mmu.words[slot])
        return bool(entry & PRESENT) and not entry & SPECIAL and bool(self._pages.mapping[self._pfn(slot)])

    def populate(self, task: Any, start: int, end: int, *, ignore_errors: bool = True) -> Iterator[None]:
        """Fault in what a range may be accessed for, a piece between two yields (``__mm_populate``). EFAULT, ENOMEM.

        Private writable memory is written to, so that no copy is left to be made; other memory is read.
        """
        for vma in list(task.mm.overlapping(start, end)):
            if vma.flags & (mt.VM_IO | mt.VM_PFNMAP | mt.VM_LOCKONFAULT):
                continue
            try:
                yield from self._populate_vma(task, vma, max(start, vma.start), min(end, vma.end))
            except KernelError:
                if not ignore_errors:
                    raise

    def populate_now(self, task: Any, start: int, end: int) -> None:
        """``populate`` without a pause."""
        for _ in self.populate(task, start, end):
            pass

    def _populate_vma(self, task: Any, vma: Vma, start: int, end: int) -> Iterator[None]:
        if not vma.flags & mt.VM_ACCESS_FLAGS:
            raise KernelError(errno.EFAULT, f"the mapping at {vma.start:#x} allows no access")
        op = core.READ if vma.flags & (mt.VM_READ | mt.VM_WRITE) else core.EXEC
        if vma.flags & (mt.VM_WRITE | mt.VM_SHARED) == mt.VM_WRITE:
            op = core.WRITE
        piece = POPULATE_PAGES << PAGE_SHIFT
        for at in range(start, end, piece):
            self.fault_in(task, at, min(at + piece, end), op)
            yield

    def fault_in(self, task: Any, start: int, end: int, op: int) -> None:
        """Fault in pages as the kernel's own accesses do (``__get_user_pages`` with FOLL_TOUCH). EFAULT, ENOMEM."""
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        try:
            self._memory.access(task, np.arange(first, last, dtype=np.int64), op)
        except Signal as signal:
            raise KernelError(errno.EFAULT, f"{signal.address:#x} cannot be accessed") from None
        small, huge = self._rows(task.mm, start, end)
        pfns = self._ptes.pages_of(small)
        self.mark_accessed(pfns[self._pages.kind[pfns] != 0])
        self.mark_accessed(np.array([self._pfn(slot) for _, _, slot, _ in huge if self._is_page(slot)], dtype=np.int64))
        self._lru.drain_local()

    def mark_accessed(self, pfns: Pfns) -> None:
        """Pages were used (``mark_page_accessed``): referenced the first time, active the second."""
        if self._lru.words[POLICY] != TWO_LIST:
            self._lru.mark_accessed_bulk(np.ascontiguousarray(pfns))
            return
        flags = self._pages.flags
        new = flags[pfns] & np.uint32(1 << PG_REFERENCED) == 0
        again = pfns[~new]
        flags[pfns[new]] |= np.uint32(1 << PG_REFERENCED)
        stays = np.uint32(1 << PG_ACTIVE | 1 << PG_UNEVICTABLE)
        again = again[flags[again] & stays == 0]
        listed = flags[again] & np.uint32(1 << PG_LRU) != 0
        flags[again[~listed]] |= np.uint32(1 << PG_ACTIVE)
        self._lru.batch(ACTIVATE, again[listed])
        flags[again] &= ~np.uint32(1 << PG_REFERENCED)

    def populate_access(self, task: Any, vma: Vma, start: int, end: int, *, write: bool) -> None:
        """MADV_POPULATE_READ and _WRITE: a range that the mapping allows to be read, or written. EFAULT, ENOMEM."""
        self.fault_in(task, start, end, core.WRITE if write else core.READ)

    # -- aging -------------------------------------------------------------------------------------------

    def zap_range(self, mm: Mm, start: int, end: int) -> None:
        """Take the pages of a range out."""
        self._memory.zap.zap_range(mm, start, end)

    def begin(self) -> None:
        """The executing CPU's batches of pages go to their lists first."""
        self._lru.drain_local()

    def drop(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_DONTNEED: the pages are not mapped any more."""
        self._memory.zap.zap_range(mm, start, end)

    def cold(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_COLD: pages that only this task maps look unused."""
        pfns = self._age(mm, vma, start, end, clean=False)
        self._pages.flags[pfns] &= ~np.uint32(1 << PG_REFERENCED)
        self._lru.batch(DEACTIVATE, pfns)

    def pageout_end(self, mm: Mm, at: int, end: int) -> int:
        """How far to reclaim before others may run: a page table at most, and less where it takes long."""
        slot = self._mmu.entry_slot(mm.id, at >> PAGE_SHIFT, 1)
        huge = slot >= 0 and bool(int(self._mmu.words[slot]) & PSE)
        part = COMPRESSED_BYTES if self._services.compresses() and not huge else PAGEOUT_BYTES
        return min((at // part + 1) * part, end)

    def pageout(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_PAGEOUT: pages that only this task maps are reclaimed."""
        pfns = self._age(mm, vma, start, end, clean=False)
        self._pages.flags[pfns] &= ~np.uint32(1 << PG_REFERENCED)
        stays = np.uint32(1 << PG_UNEVICTABLE)
        self._services.reclaim(pfns[self._pages.flags[pfns] & stays == 0])

    def willneed(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_WILLNEED: pages are read ahead, from swap or the file."""
        self._services.willneed(mm, vma, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        self._lru.drain_local()

    def remove(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_REMOVE: the file loses its pages."""
        assert vma.file is not None
        first = vma.index_of(start >> PAGE_SHIFT)
        self._services.remove(vma.file, first, first + ((end - start) >> PAGE_SHIFT))

    def collapse(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_COLLAPSE: huge pages are made of small ones."""
        self._services.collapse(mm, vma, start, end)

    def enter_huge(self, mm: Mm, vma: Vma) -> None:
        """MADV_HUGEPAGE: khugepaged looks at the mapping."""
        self._services.enter_huge(mm, vma)

    def enter_ksm(self, mm: Mm) -> None:
        """MADV_MERGEABLE: ksmd looks at the address space."""
        self._services.enter_ksm(mm)

    def lazy_free(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_FREE: anonymous pages may be dropped until they are written again; what is swapped out goes at once."""
        self._drop_swapped(mm, start, end)
        self._leave_swap_cache(mm, start, end)
        pfns = self._age(mm, vma, start, end, clean=True)
        self._pages.flags[pfns] &= ~np.uint32(1 << PG_DIRTY)
        self._lru.batch(LAZYFREE, pfns)

    def _age(self, mm: Mm, vma: Vma, start: int, end: int, *, clean: bool) -> Pfns:
        """Make entries old, and clean; the pages they map. Huge pages that are not wholly in the range are split."""
        self._services.huge.split_pages(mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        small, huge = self._rows(mm, start, end)
        count = self._ptes.young_and_clean(small, clean)
        found = [self._ptes.freed[:count].copy()]
        for vpn, _, slot, _ in huge:
            if self._services.huge.cold(mm, vma, vpn, slot, clean=clean):
                found.append(np.array([self._pfn(slot)], dtype=np.int64))
        self._mmu.flush_range(mm.id, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        return np.concatenate(found)

    def _leave_swap_cache(self, mm: Mm, start: int, end: int) -> None:
        """Take the swap slots away from pages that only this task maps and that nothing in swap refers to."""
        pfns = self._ptes.pages_of(self._rows(mm, start, end)[0])
        cached = self._pages.flags[pfns] & np.uint32(1 << PG_SWAPCACHE) != 0
        alone = pfns[cached & (self._pages.mapcount[pfns] == 1)]
        if len(alone):
            self._services.free_swap_cache(alone)

    def _drop_swapped(self, mm: Mm, start: int, end: int) -> None:
        """Give swap entries of a range back."""
        dropped: list[npt.NDArray[np.uint64]] = []
        for _, pages, slot, _ in self._rows(mm, start, end)[0].tolist():
            entries = self._mmu.words[slot : slot + pages]
            swapped = (entries != 0) & (entries & _HERE == 0)
            swapped &= entries >> np.uint64(SWP_TYPE_SHIFT) < SWP_MIGRATION_READ
            if swapped.any():
                dropped.append(entries[swapped])
                entries[swapped] = 0
        if dropped:
            found = np.concatenate(dropped)
            self._mmu.sync_rss(mm.id)
            self._mmu.rss[mm.id * mt.NR_MM_COUNTERS + mt.MM_SWAPENTS] -= len(found)
            self._services.free_swap(found)
