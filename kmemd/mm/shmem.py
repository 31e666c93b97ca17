"""Files that live in memory and swap: tmpfs and shared anonymous memory (mm/shmem.c).

Models: zeroed pages at first use, pages in swap and their return, promises against the commit limit (of a whole file
for shared mappings, page by page for files of a tmpfs), the size limit of a mount, holes. Left out: huge pages of
tmpfs (shmem_enabled shows and takes its words, and no mapping gets one), seals, extended attributes, symbolic links.

A page in swap is the negative of its slot in ``File.slots``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.pages import PG_REFERENCED, PG_UPTODATE, PageMap
from kmemd.errors import KernelError
from kmemd.mm.file_fault import FileFaults
from kmemd.mm.filemap import File, FileKind, Indices, PageCache, PFNs, flag
from kmemd.mm.mm_types import VM_NORESERVE, Mm, Vma
from kmemd.mm.mpol import SharedPolicy
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps

SHMEM_INO_BATCH = 1024
"""Inode numbers that a CPU takes at once for shared mappings; the first batch was used up by boot, as captured."""
SHM_DEVICE = "00:01"
WRITE_PAGES = 256
"""Pages that write(2) fills at once, and holds meanwhile."""
SLICE, FALLOCATED = 1 << 11, 256
"""Pages that are dropped, and made, before others may run."""
UNUSE_CHUNK = 32
"""Pages that swapoff brings back before others may run."""
_UPTODATE, _REFERENCED = flag(PG_UPTODATE), flag(PG_REFERENCED)


class SwapCache(Protocol):
    """What shmem needs of swap."""

    def read_for_file(self, slot: int) -> tuple[int, bool]:
        """The page of a slot, out of the swap cache, and whether it had to be read. ENOMEM."""

    def free_slots(self, slots: Indices) -> None:
        """A file no longer refers to slots."""


class Pages(Protocol):
    """Where pages come from, by the policy of file and task."""

    def __call__(self, file: File, indices: Indices, task: Any, vma: Vma | None, vpn: int) -> PFNs: ...


class Shmem:
    """All files that live in memory. ``promise(pages)`` charges the commit limit, ENOMEM; ``take_back(pages)`` ends it.

    ``room(file, pages)`` charges the mount, ENOSPC, or takes back what is below 0; ``later(function)`` runs a
    function when the current call is over; ``cpu()`` is the executing CPU; ``zero_ns`` is what clearing a page
    takes.
    """

    def __init__(
        self,
        cache: PageCache,
        pages: PageMap,
        vmstat: VmStat,
        swap: SwapCache,
        zap: Callable[[Mm, int, int], None],
        alloc: Pages,
        promise: Callable[[int], None],
        take_back: Callable[[int], None],
        later: Callable[[Callable[[], None]], None],
        room: Callable[[File, int], None],
        cpu: Callable[[], int],
        charge_ns: Callable[[int], None],
        zero_ns: int,
    ) -> None:
        self._cache, self._pages, self._vmstat, self._swap = cache, pages, vmstat, swap
        self._zap, self._alloc = zap, alloc
        self._promise, self._take_back, self._later, self._room = promise, take_back, later, room
        self._cpu, self._charge_ns, self._zero_ns = cpu, charge_ns, zero_ns
        self._next_batch = SHMEM_INO_BATCH
        self._next_inode: dict[int, int] = {}
        self._lost: dict[int, set[int]] = {}
        self.ops = FileFaults(cache, pages, self, tracks_writes=False)

    # -- files -------------------------------------------------------------------------------------------

    def zero_setup(self, size: int, flags: int) -> File:
        """The file behind a shared anonymous mapping, ``size`` in bytes (``shmem_zero_setup``). ENOMEM."""
        pages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
        noreserve = bool(flags & VM_NORESERVE)
        if not noreserve:
            self._promise(pages)
        file = self.new_file("/dev/zero", self._reserve_inode(), SHM_DEVICE, size)
        file.deleted, file.noreserve, file.accounted = True, noreserve, 0 if noreserve else pages
        return file

    def _reserve_inode(self) -> int:
        """The next number of the executing CPU's batch (``shmem_reserve_inode`` of the kernel's own mount)."""
        cpu = self._cpu()
        number = self._next_inode.get(cpu, 0)
        if number % SHMEM_INO_BATCH == 0:
            number = self._next_batch
            self._next_batch += SHMEM_INO_BATCH
        self._next_inode[cpu] = number + 1
        return number

    def new_file(self, path: str, ino: int, device: str, size: int = 0) -> File:
        """A file of a tmpfs, whose pages are charged one by one."""
        file = self._cache.new_file(path, ino, device, FileKind.SHMEM, self.ops, size)
        file.noreserve = True
        file.shared_policy = SharedPolicy()
        return file

    def unused(self, file: File) -> None:
        """Nothing refers to a file any more: it goes when the call that did that is over, as Linux' last fput does."""
        self._later(lambda: self._evict_unused(file))

    def _evict_unused(self, file: File) -> None:
        if not file.maps and not file.users and file.id in self._cache.files:
            self.evict(file)

    def evict(self, file: File) -> None:
        """The inode goes, with its pages (``shmem_evict_inode``)."""
        self.truncate(file, 0)
        if file.accounted:
            self._take_back(file.accounted)
            file.accounted = 0
        self._lost.pop(file.id, None)
        self._cache.forget(file)

    # -- pages -------------------------------------------------------------------------------------------

    def fault_page(self, file: File, index: int, task: Any, vma: Vma, vpn: int) -> tuple[int, bool]:
        """The page for a fault, and whether it came from swap (``shmem_fault``). ENOMEM; SIGBUS on a full mount."""
        pfn = self._cache.find_get_page(file, index)
        if pfn >= 0:
            return pfn, False
        try:
            self._check_lost(file, index, index + 1)
            if file.slots.get(index) < 0:
                return self._swap_in(file, index)
            return int(self.add_pages(file, np.array([index], dtype=np.int64), task, vma, vpn)[0]), False
        except KernelError as error:
            if error.errno in (errno.ENOSPC, errno.EIO):
                raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT) from None
            raise

    def add_pages(self, file: File, indices: Indices, task: Any = None, vma: Vma | None = None, vpn: int = 0) -> PFNs:
        """Zeroed pages where the file has none (``shmem_alloc_and_acct_folio``). ENOMEM and ENOSPC add none."""
        self._charge(file, len(indices))
        pfns = self._alloc(file, indices, task, vma, vpn)
        if len(pfns) < len(indices):
            self._uncharge(file, len(indices) - len(pfns))
        if len(pfns):
            self._cache.add_bulk(file, indices[: len(pfns)], pfns)
            self._pages.flags[pfns] |= _UPTODATE
            self._charge_ns(self._zero_ns * len(pfns))
        if len(pfns) < len(indices):
            raise KernelError(errno.ENOMEM, f"no pages for {file.path}")
        return pfns

    def _charge(self, file: File, pages: int) -> None:
        """``shmem_inode_acct_block``. ENOMEM, ENOSPC."""
        if file.noreserve:
            self._promise(pages)
        try:
            self._room(file, pages)
        except KernelError:
            if file.noreserve:
                self._take_back(pages)
            raise
        file.blocks += pages

    def _uncharge(self, file: File, pages: int) -> None:
        if file.noreserve:
            self._take_back(pages)
        self._room(file, -pages)
        file.blocks -= pages

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A mapping writes to a page."""
        self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))

    def get_pages(self, file: File, start: int, end: int) -> PFNs:
        """The pages of ``[start, end)``, new or back from swap, for read and write (``shmem_get_folio``). ENOMEM."""
        self._check_lost(file, start, end)
        with ExitStack() as held:  # what is there stays while memory is asked for
            held.enter_context(self._cache.pin(self._cache.find_get_pages(file, start, end)[1]))
            for index in (np.flatnonzero(file.slots.window(start, end) < 0) + start).tolist():
                held.enter_context(self._cache.pin([self._swap_in(file, index)[0]]))
            missing = self._cache.missing(file, start, end)
            if len(missing):
                self.add_pages(file, missing)
        return self._cache.find_get_pages(file, start, end)[1]

    def read(self, file: File, offset: int, count: int) -> int:
        """read(2): holes are zeros and get no page (``shmem_file_read_iter``). ENOMEM."""
        count = max(0, min(count, file.size - offset))
        if count:
            start, end = offset >> PAGE_SHIFT, ((offset + count - 1) >> PAGE_SHIFT) + 1
            self._check_lost(file, start, end)
            for index in (np.flatnonzero(file.slots.window(start, end) < 0) + start).tolist():
                if file.slots.get(index) < 0:
                    self._swap_in(file, index)
            _, pfns = self._cache.find_get_pages(file, start + bool(offset % PAGE_SIZE), end)
            self._cache.mark_accessed(pfns)
        return count

    def write(self, file: File, offset: int, count: int) -> int:
        """write(2) of a range; the file grows as it must. ENOMEM, ENOSPC."""
        size = file.size
        file.size = max(size, offset + count)
        end = ((offset + count - 1) >> PAGE_SHIFT) + 1
        try:
            for start in range(offset >> PAGE_SHIFT, end, WRITE_PAGES):
                self._write_some(file, start, min(start + WRITE_PAGES, end))
        except KernelError:
            file.size = max(size, (file.slots.end << PAGE_SHIFT) if file.nrpages else size)
            raise
        return count

    def _write_some(self, file: File, start: int, end: int) -> None:
        """Pages that are written to: those that were there are used once more, new ones once (SGP_WRITE)."""
        fresh = file.slots.window(start, end) == 0
        pfns = self.get_pages(file, start, end)
        new = np.ones(len(pfns), dtype=bool)
        new[: len(fresh)] = fresh
        self._pages.flags[pfns[new]] |= _REFERENCED
        self._cache.mark_accessed(pfns[~new])
        self._cache.set_dirty(file, pfns)

    def _swap_in(self, file: File, index: int) -> tuple[int, bool]:
        """Bring a page back from swap into the file (``shmem_swapin_folio``). ENOMEM, EIO."""
        slot = -file.slots.get(index)
        try:
            pfn, major = self._swap.read_for_file(slot)
        except KernelError as error:
            if error.errno == errno.EIO:
                self._lose(file, index, slot)
            raise
        if major:
            self._vmstat.count(stats.PGMAJFAULT)
        file.swapped -= 1
        self._insert(file, index, pfn)
        self._swap.free_slots(np.array([slot], dtype=np.int64))
        return pfn, major

    def _lose(self, file: File, index: int, slot: int) -> None:
        """A page cannot be read: its slot is free, and who asks for it gets EIO (``shmem_set_folio_swapin_error``)."""
        file.slots.set(index, 0)
        file.swapped -= 1
        self._lost.setdefault(file.id, set()).add(index)
        self._uncharge(file, 1)
        self._swap.free_slots(np.array([slot], dtype=np.int64))

    def _check_lost(self, file: File, start: int, end: int) -> None:
        """EIO for a range with a page that swap lost."""
        lost = self._lost.get(file.id)
        if lost and any(start <= index < end for index in lost):
            raise KernelError(errno.EIO, f"{file.path}: swap lost a page")

    def _insert(self, file: File, index: int, pfn: int) -> None:
        """A page that is on a list already enters the cache again."""
        self._cache.insert(file, np.array([index], dtype=np.int64), np.array([pfn], dtype=np.int64))
        self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))

    def moved_to_swap(self, file: File, indices: Indices, pfns: PFNs, slots: Indices) -> None:
        """Pages leave the file for the swap cache, and their slots take their place (``shmem_writepage``)."""
        dirty = self._pages.flags[pfns]
        self._cache.remove_bulk(file, indices, pfns, -slots)
        self._pages.flags[pfns] = dirty
        file.swapped += len(slots)

    def unuse(self, number: int, shift: int) -> Steps[int]:
        """Bring all pages back that are in one swap area, in slices (``shmem_unuse``). How many. ENOMEM."""
        done = 0
        for file in [file for file in self._cache.files.values() if file.swapped]:
            window = -file.slots.window(0, file.slots.end)
            for index in np.flatnonzero((window > 0) & (window >> shift == number)).tolist():
                if -file.slots.get(index) >> shift != number:
                    continue
                try:
                    self._swap_in(file, index)
                except KernelError as error:
                    if error.errno != errno.EIO:
                        raise
                done += 1
                if done % UNUSE_CHUNK == 0:
                    yield
        return done

    # -- giving up pages ---------------------------------------------------------------------------------

    def truncate(self, file: File, start: int, end: int = 1 << 62) -> int:
        """Unmap and drop the pages of ``[start, end)``, in memory or swap (``shmem_truncate_range``). How many."""
        for mm, vma in list(file.mappings(start, end)):
            low = vma.start + (max(start - vma.pgoff, 0) << PAGE_SHIFT)
            high = vma.start + (min(end - vma.pgoff, vma.pages) << PAGE_SHIFT)
            if low < high:
                self._zap(mm, low, high)
        indices, pfns = self._cache.find_get_pages(file, start, end)
        self._cache.delete_bulk(file, indices, pfns)
        if file.id in self._lost:
            self._lost[file.id] = {index for index in self._lost[file.id] if not start <= index < end}
        window = file.slots.window(start, end)
        gone = np.flatnonzero(window < 0) + start
        if len(gone):
            slots = -file.slots.array[gone]
            file.slots.put(gone, 0)
            file.swapped -= len(gone)
            self._swap.free_slots(slots)
        self._uncharge(file, len(pfns) + len(gone))
        return len(pfns) + len(gone)

    def remove(self, file: File, start: int, end: int) -> int:
        """Drop the pages ``[start, end)``."""
        return self.truncate(file, start, end)

    def resize(self, file: File, size: int) -> None:
        """truncate(2)."""
        old, file.size = file.size, size
        if size < old:
            self.truncate(file, file.pages)

    def punch_hole(self, file: File, offset: int, length: int) -> Steps[None]:
        """Drop the whole pages of a range of bytes (``shmem_fallocate`` with FALLOC_FL_PUNCH_HOLE, MADV_REMOVE)."""
        start = (offset + PAGE_SIZE - 1) >> PAGE_SHIFT
        end = min((offset + length) >> PAGE_SHIFT, file.slots.end)
        for at in range(start, end, SLICE):
            self.truncate(file, at, min(at + SLICE, end))
            yield

    def fallocate(self, file: File, offset: int, length: int) -> Steps[None]:
        """Give a range its pages (``shmem_fallocate``). ENOMEM and ENOSPC undo it."""
        start, end = offset >> PAGE_SHIFT, (offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT
        added: list[Indices] = []
        try:
            for at in range(start, end, FALLOCATED):
                added.append(self._lacking(file, at, min(at + FALLOCATED, end)))
                if len(added[-1]):
                    self._cache.set_dirty(file, self.add_pages(file, added[-1]))
                yield
        except KernelError:
            for indices in added:
                yield from self._undo(file, indices)
            raise
        file.size = max(file.size, offset + length)

    def _lacking(self, file: File, start: int, end: int) -> Indices:
        """Pages of a range that are neither in memory nor in swap."""
        missing = self._cache.missing(file, start, end)
        if file.swapped:
            missing = missing[[file.slots.get(index) == 0 for index in missing.tolist()]]
        return missing

    def _undo(self, file: File, indices: Indices) -> Steps[None]:
        """Take pages away that fallocate has given (``shmem_undo_range``)."""
        for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
            if len(run):
                self.truncate(file, int(run[0]), int(run[-1]) + 1)
                yield
