"""Files and their page caches: which page holds which part of a file (mm/filemap.c, include/linux/fs.h).

Models: ``struct file``, ``inode`` and ``address_space`` as one object, adding and deleting pages with their
counters, dirty marks and truncation. Reading, writing and write-back are in mm/file_io.py, faults in
mm/file_fault.py, tmpfs in mm/shmem.py, paths in mm/vfs.py. Left out: page locks, for no two things happen at once;
large folios of files; open file descriptions, so that all readers of a file share one readahead state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.lru import ACTIVATE, Lru
from kmemd.core.lru_lists import POLICY, TWO_LIST
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_IDLE,
    PG_LRU,
    PG_PRIVATE,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.mm import trace_points, trace_writeback
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmzone import Zone
from kmemd.mm.page_slots import PageSlots
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat

PFNs = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

READAHEAD = PG_RECLAIM
"""PG_readahead is PG_reclaim of pages that are not written back."""


class FileKind(StrEnum):
    """What is behind a file's page cache."""

    DISK = "disk"
    SHMEM = "shmem"
    DEVICE = "device"
    HUGETLB = "hugetlb"


class FileOperations(Protocol):
    """What a kind of file does where kinds differ (address_space_operations, vm_operations_struct)."""

    def fault(self, file: File, memory: Any, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> Any:
        """Handle a fault of a page that is not mapped."""

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A shared mapping is about to write to a page."""

    def unused(self, file: File) -> None:
        """The last mapping went of a file that has no name any more."""

    def remove(self, file: File, start: int, end: int) -> int:
        """Drop the pages ``[start, end)`` and what maps them. How many there were."""


@dataclass(slots=True)
class ReadaheadState:
    """What a file remembers of how it is read (``struct file_ra_state``), in pages; ``prev_pos`` in bytes.

    ``factor`` is what fadvise makes of the device's window (SEQUENTIAL: 2), ``random`` FMODE_RANDOM, ``errors`` how
    often the window was made smaller since, because a page could not be read.
    """

    start: int = 0
    size: int = 0
    async_size: int = 0
    mmap_miss: int = 0
    prev_pos: int = -1
    factor: int = 1
    errors: int = 0
    random: bool = False


@dataclass(eq=False, slots=True)
class File:
    """A file with its page cache. ``path`` is what maps shows, without `` (deleted)``; ``size`` in bytes.

    ``id`` is what ``PageMap.mapping`` of its pages is the negative of. ``slots`` holds PFN + 1 by page offset; below
    0 is what took the place of an evicted page: a tmpfs file's swap slot, negated, else a shadow entry. ``data`` is
    the content on the disk by page offset, where it is known. ``users`` counts mappings and whoever else has it
    open: a deleted file goes with the last. ``wb`` is the write-back of its disk (mm/bdi.py), ``blocks_at`` where on
    the disk its pages are, ``in_flight`` what of it is being written; ``dirtied_when`` the jiffies when it
    was put on its disk's list of dirty inodes last; ``wb_err`` its error sequence, of which
    ``openers`` have seen a part (mm/errseq.py).

    Invariants: ``nrpages`` slots are above 0, ``swapped`` below 0 (tmpfs); ``nr_dirty`` and ``nr_writeback`` of its
    pages are; pages beyond ``size`` are in no cache.
    """

    id: int
    path: str
    ino: int
    device: str
    kind: FileKind
    ops: FileOperations
    size: int = 0
    deleted: bool = False
    users: int = 0
    slots: PageSlots = field(default_factory=PageSlots)
    nrpages: int = 0
    nr_dirty: int = 0
    nr_writeback: int = 0
    swapped: int = 0
    accounted: int = 0
    noreserve: bool = False
    blocks: int = 0
    ra: ReadaheadState = field(default_factory=ReadaheadState)
    data: dict[int, bytes] = field(default_factory=dict)
    maps: dict[int, tuple[Mm, Vma]] = field(default_factory=dict)
    shared_policy: Any = None
    mount: Any = None
    wb: Any = None
    blocks_at: Callable[[Indices], Indices] | None = None
    in_flight: list[Any] = field(default_factory=list)
    inode_dirty: bool = False
    writeback_index: int = 0
    dirtied_when: int = 0
    wb_err: int = 0
    openers: dict[int, int] = field(default_factory=dict)

    @property
    def is_hugetlb(self) -> bool:
        """Whether it is of huge pages (``is_file_hugepages``)."""
        return False

    @property
    def is_device(self) -> bool:
        """Whether it is a device, which has no size."""
        return self.kind is FileKind.DEVICE

    @property
    def pages(self) -> int:
        """Pages that the file's bytes take."""
        return (self.size + PAGE_SIZE - 1) >> PAGE_SHIFT

    @property
    def is_shmem(self) -> bool:
        """Whether it lives in memory and swap alone (``shmem_mapping``)."""
        return self.kind is FileKind.SHMEM

    @property
    def huge_page_size(self) -> int:
        """Bytes of a page of the file."""
        return PAGE_SIZE

    @property
    def name(self) -> str:
        """What /proc/PID/maps shows."""
        return f"{self.path} (deleted)" if self.deleted else self.path

    def mappings(self, start: int = 0, end: int = 1 << 62) -> Iterator[tuple[Mm, Vma]]:
        """The mappings that show a page of ``[start, end)`` (``vma_interval_tree_foreach``)."""
        for mm, vma in list(self.maps.values()):
            if vma.pgoff < end and vma.pgoff + vma.pages > start:
                yield mm, vma

    def link(self, mm: Mm, vma: Vma) -> None:
        """A mapping shows the file from now on (``vma_interval_tree_insert``)."""
        self.maps[id(vma)] = (mm, vma)

    def unlink(self, vma: Vma) -> None:
        """A mapping shows it no longer."""
        if self.maps.pop(id(vma), None) is not None and self.deleted and not self.maps and not self.users:
            self.ops.unused(self)

    def fault(self, memory: Any, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> Any:
        """Handle a fault of a page of a mapping that has no entry yet (``vm_ops->fault``)."""
        return self.ops.fault(self, memory, task, mm, vma, vpn, write)

    def page_mkwrite(self, pfn: int) -> None:
        """A shared mapping is about to write to a page (``vm_ops->page_mkwrite``): it becomes dirty."""
        self.ops.page_mkwrite(self, pfn)


class PageSupply(Protocol):
    """Who pages come from and go back to."""

    def free_pages_bulk(self, pfns: PFNs, order: int) -> None: ...


class ZoneCounts:
    """Counts pages by zone: the rows of ``zone_stat``, from which the node follows."""

    def __init__(self, zones: Sequence[Zone], vmstat: VmStat) -> None:
        self._vmstat = vmstat
        ordered = sorted((zone for zone in zones if zone.end_pfn > zone.start_pfn), key=lambda zone: zone.start_pfn)
        self._starts = np.array([zone.start_pfn for zone in ordered], dtype=np.int64)
        self._rows = [zone.index for zone in ordered]

    def nids(self, pfns: PFNs) -> PFNs:
        """The nodes of pages."""
        rows = np.array(self._rows, dtype=np.int64)
        found: PFNs = rows[self._starts.searchsorted(pfns, "right") - 1] // stats.ZONES_PER_NODE
        return found

    def by_zone(self, pfns: PFNs) -> list[tuple[int, int]]:
        """(zone, pages) for the zones that have any."""
        if len(pfns) == 1:
            return [(self._rows[int(self._starts.searchsorted(pfns[0], "right")) - 1], 1)]
        counts = np.bincount(self._starts.searchsorted(pfns, "right") - 1, minlength=1)
        return [(self._rows[at], int(counts[at])) for at in np.flatnonzero(counts).tolist()]

    def move(self, pfns: PFNs, sign: int, node_items: Sequence[int], zone_items: Sequence[int] = ()) -> None:
        """Change gauges by ``sign`` for each page, where the page is."""
        if not len(pfns):
            return
        for zi, count in self.by_zone(pfns):
            nid = zi // stats.ZONES_PER_NODE
            for item in node_items:
                self._vmstat.node_stat[nid, item] += sign * count
            for item in zone_items:
                self._vmstat.zone_stat[zi, item] += sign * count


def flag(*bits: int) -> np.uint32:
    """A mask of page flags."""
    return np.uint32(sum(1 << bit for bit in bits))


_DIRTY, _WRITEBACK, _PRIVATE, _RECLAIM = flag(PG_DIRTY), flag(PG_WRITEBACK), flag(PG_PRIVATE), flag(PG_RECLAIM)
_REFERENCED, _ACTIVE, _STAYS = flag(PG_REFERENCED), flag(PG_ACTIVE), flag(PG_ACTIVE, PG_UNEVICTABLE)
_IDLE = flag(PG_IDLE)
_DIRTY_ITEMS, _DIRTY_ZONE = (stats.NR_FILE_DIRTY,), (stats.NR_ZONE_WRITE_PENDING,)


class PageCache:
    """All files' pages. ``files`` by id."""

    def __init__(
        self,
        pages: PageMap,
        counts: ZoneCounts,
        vmstat: VmStat,
        lru: Lru,
        page_alloc: PageSupply,
        free_buffers: Callable[[PFNs], None] = lambda pfns: None,
    ) -> None:
        """``free_buffers(pfns)`` frees the buffer heads of pages that leave the cache.

        ``refault(pfns, shadows)`` hears of pages that come back, ``activated(pfns)`` of those that were used twice.
        """
        self._pages, self._counts, self._vmstat, self._free_buffers = pages, counts, vmstat, free_buffers
        self.lru, self._page_alloc = lru, page_alloc
        self.files: dict[int, File] = {}
        self.refault: Callable[[PFNs, Indices], None] | None = None
        self.activated: Callable[[PFNs], None] = lambda pfns: None
        self._pinned: list[PFNs] = []
        self._last_id = 0

    # -- files -------------------------------------------------------------------------------------------

    def new_file(self, path: str, ino: int, device: str, kind: FileKind, ops: FileOperations, size: int = 0) -> File:
        """A file without a page yet."""
        self._last_id += 1
        file = self.files[self._last_id] = File(self._last_id, path, ino, device, kind, ops, size)
        return file

    def next_id(self) -> int:
        """The number of a file that is made elsewhere, which then registers in ``files``."""
        self._last_id += 1
        return self._last_id

    def forget(self, file: File) -> None:
        """The inode goes (evict). Its pages must be gone."""
        assert not file.nrpages + file.swapped, f"{file.path} still has pages"
        self.files.pop(file.id, None)

    def owner(self, pfn: int) -> File | None:
        """The file whose cache a page is in."""
        mapping = int(self._pages.mapping[pfn])
        return self.files.get(-mapping) if mapping < 0 else None

    # -- references --------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, pfns: PFNs | list[int]) -> Iterator[None]:
        """Hold a reference to pages while somebody works with them, so that reclaim lets them be (folio_get)."""
        self._pinned.append(np.asarray(pfns, dtype=np.int64))
        try:
            yield
        finally:
            self._pinned.pop()

    @property
    def pinned(self) -> bool:
        """Whether somebody works with any page."""
        return bool(self._pinned)

    def pinned_of(self, pfns: PFNs) -> npt.NDArray[np.bool_] | None:
        """Which of the pages somebody works with, None for none of all."""
        return np.isin(pfns, np.concatenate(self._pinned)) if self._pinned else None

    # -- looking -----------------------------------------------------------------------------------------

    def find_get_page(self, file: File, index: int) -> int:
        """The page at an offset, -1 when the cache has none."""
        return max(file.slots.get(index), 0) - 1

    def find_get_pages(self, file: File, start: int = 0, end: int = 1 << 62) -> tuple[Indices, PFNs]:
        """Offsets and pages that the cache has of ``[start, end)``, in order."""
        window = file.slots.window(start, end)
        found = np.flatnonzero(window > 0)
        return found + start, window[found] - 1

    def missing(self, file: File, start: int, end: int) -> Indices:
        """The offsets of ``[start, end)`` without a page."""
        window = file.slots.window(start, end)
        beyond = np.arange(start + len(window), end, dtype=np.int64)
        return np.concatenate((np.flatnonzero(window <= 0) + start, beyond))

    def mapped(self, pfns: PFNs) -> None:
        """One more entry maps each of some small pages (``page_add_file_rmap``)."""
        mapcount = self._pages.mapcount
        mapcount[pfns] += 1
        self._counts.move(pfns[mapcount[pfns] == 1], 1, (stats.NR_FILE_MAPPED,))

    def mark_accessed(self, pfns: PFNs) -> None:
        """Pages were used by a system call: at the second time they become active (``folio_mark_accessed``)."""
        if self.lru.words[POLICY] != TWO_LIST:
            self.lru.mark_accessed_bulk(np.ascontiguousarray(pfns))
            return
        flags = self._pages.flags
        was = flags[pfns]
        if (was & _IDLE).any():
            flags[pfns] &= ~_IDLE
        first = was & _REFERENCED == 0
        flags[pfns[first]] |= _REFERENCED
        again = pfns[~first]
        again = again[flags[again] & _STAYS == 0]
        if len(again):
            queued = flags[again] & flag(PG_LRU) == 0
            flags[again[queued]] |= _ACTIVE
            flags[again] &= ~_REFERENCED
            self.lru.batch(ACTIVATE, np.ascontiguousarray(again[~queued]))
            self.activated(again)

    # -- adding and deleting -----------------------------------------------------------------------------

    def add(self, file: File, index: int, pfn: int) -> None:
        """One page (``add_to_page_cache_lru``)."""
        self.add_bulk(file, np.array([index], dtype=np.int64), np.array([pfn], dtype=np.int64))

    def add_bulk(self, file: File, indices: Indices, pfns: PFNs) -> None:
        """Pages at offsets that have none; they go to the LRU lists.

        Preconditions: the pages are fresh from the allocator, with no flags but those of their use.
        """
        window = file.slots.window(int(indices[0]), int(indices[-1]) + 1) if len(indices) else indices
        shadows = file.slots.array[indices[indices < file.slots.end]] if (window < 0).any() else None
        self.insert(file, indices, pfns)
        if shadows is not None and self.refault is not None and not file.is_shmem:
            self.refault(pfns[: len(shadows)], shadows)
        if len(pfns) == 1:
            self.lru.add(int(pfns[0]))
        else:
            self.lru.add_bulk(np.ascontiguousarray(pfns))

    def insert(self, file: File, indices: Indices, pfns: PFNs) -> None:
        """``add_bulk`` of pages that are on the LRU lists already (``filemap_add_folio``)."""
        file.slots.put(indices, pfns + 1)
        file.nrpages += len(pfns)
        self._pages.mapping[pfns] = -file.id
        self._pages.index[pfns] = indices
        if file.is_shmem:
            self._pages.flags[pfns] |= flag(PG_SWAPBACKED)
        self._counts.move(pfns, 1, self._items(file))
        trace_points.page_cache(self._vmstat.trace, ev.MM_FILEMAP_ADD_TO_PAGE_CACHE, file, indices, pfns)

    def replace(self, file: File, index: int, pfn: int) -> None:
        """Another page at an offset, as migration does; counters move with it."""
        old = file.slots.get(index) - 1
        assert old >= 0, f"{file.path} has no page at {index}"
        file.slots.set(index, pfn + 1)
        pages = self._pages
        if pages.flags[old] & _PRIVATE:  # buffer_migrate_folio
            pages.private[pfn], pages.private[old] = pages.private[old], 0
            pages.flags[pfn] |= _PRIVATE
            pages.flags[old] &= ~_PRIVATE
        pages.mapping[pfn], pages.index[pfn] = pages.mapping[old], pages.index[old]
        pages.mapping[old], pages.index[old] = 0, 0
        items = self._items(file)
        gauges = [*items, *(_DIRTY_ITEMS if pages.flags[old] & _DIRTY and not file.is_shmem else ())]
        zone_items = _DIRTY_ZONE if len(gauges) > len(items) else ()
        self._counts.move(np.array([old]), -1, gauges, zone_items)
        self._counts.move(np.array([pfn]), 1, gauges, zone_items)

    def replace_bulk(self, file: File, old: PFNs, new: PFNs) -> None:
        """``replace`` of several pages of a file."""
        pages, items = self._pages, self._items(file)
        file.slots.put(pages.index[old].astype(np.int64), new + 1)
        with_buffers = pages.flags[old] & _PRIVATE != 0
        pages.private[new[with_buffers]] = pages.private[old[with_buffers]]
        pages.private[old[with_buffers]] = 0
        pages.flags[new[with_buffers]] |= _PRIVATE
        pages.flags[old[with_buffers]] &= ~_PRIVATE
        pages.mapping[new], pages.index[new] = pages.mapping[old], pages.index[old]
        pages.mapping[old], pages.index[old] = 0, 0
        self._counts.move(old, -1, items)
        self._counts.move(new, 1, items)
        if not file.is_shmem:
            dirty = pages.flags[old] & _DIRTY != 0
            self._counts.move(old[dirty], -1, _DIRTY_ITEMS, _DIRTY_ZONE)
            self._counts.move(new[dirty], 1, _DIRTY_ITEMS, _DIRTY_ZONE)

    @staticmethod
    def _items(file: File) -> tuple[int, ...]:
        return (stats.NR_FILE_PAGES, stats.NR_SHMEM) if file.is_shmem else (stats.NR_FILE_PAGES,)

    def remove_bulk(self, file: File, indices: Indices, pfns: PFNs, instead: Indices | int = 0) -> None:
        """Pages leave the cache and stay allocated; ``instead`` takes their place (``__filemap_remove_folio``)."""
        self.clear_dirty(file, pfns, written=False)
        buffers = pfns[self._pages.flags[pfns] & _PRIVATE != 0]
        if len(buffers):
            self._free_buffers(buffers)
        file.slots.put(indices, instead)
        file.nrpages -= len(pfns)
        self._pages.mapping[pfns] = 0
        self._counts.move(pfns, -1, self._items(file))
        trace_points.page_cache(self._vmstat.trace, ev.MM_FILEMAP_DELETE_FROM_PAGE_CACHE, file, indices, pfns)

    def delete_bulk(self, file: File, indices: Indices, pfns: PFNs, instead: Indices | int = 0) -> None:
        """Pages leave the cache, and memory (``delete_from_page_cache``, and the last reference).

        Preconditions: nothing maps them, and none is being written back.
        """
        if not len(pfns):
            return
        assert not self._pages.mapcount[pfns].any(), f"a page of {file.path} is mapped"
        self.remove_bulk(file, indices, pfns, instead)
        self.release(pfns)

    def forget_shadows(self, file: File, start: int, end: int) -> None:
        """What is remembered of evicted pages of ``[start, end)`` goes, too (``clear_shadow_entries``)."""
        window = file.slots.window(start, end)
        if not file.is_shmem and len(window) and window.min() < 0:
            window[window < 0] = 0

    def release(self, pfns: PFNs, *, listed: bool = True) -> None:
        """The last reference to pages is dropped (``release_pages``). ``listed``: they are on a list, or will be."""
        flags = self._pages.flags
        pfns = np.ascontiguousarray(pfns)
        if listed and not (flags[pfns] & flag(PG_LRU)).all():
            self.lru.drain_all()  # a batch holds a reference to the pages in it
        self.lru.clear_mlock(pfns)
        self.lru.remove_bulk(pfns)
        flags[pfns] = 0
        self._pages.index[pfns] = 0
        self._page_alloc.free_pages_bulk(pfns, 0)
        self._vmstat.trace.emit_pages(ev.MM_PAGE_FREE_BATCHED, pfns, 0)

    # -- dirty and under write-back ----------------------------------------------------------------------

    def set_dirty(self, file: File, pfns: PFNs) -> int:
        """Pages differ from what is on the disk (``filemap_dirty_folio``). How many did not before."""
        flags = self._pages.flags
        fresh = pfns[flags[pfns] & _DIRTY == 0]
        flags[fresh] |= _DIRTY
        if not file.is_shmem and len(fresh):
            flags[fresh] &= ~_RECLAIM
            self._counts.move(fresh, 1, (stats.NR_FILE_DIRTY, stats.NR_DIRTIED), _DIRTY_ZONE)
            file.nr_dirty += len(fresh)
            trace_points.dirty_folios(self._vmstat.trace, file, self._pages.index[fresh])
            if file.wb is not None:
                file.wb.pages_dirtied(file, len(fresh))
        return len(fresh)

    def dirty_pages(self, pfns: PFNs) -> None:
        """Pages of files turned out to be dirty when their entries went."""
        owners = self._pages.mapping[pfns]
        for number in np.unique(owners).tolist():
            file = self.files.get(-number)
            if file is not None:
                self.set_dirty(file, pfns[owners == number])

    def clear_dirty(self, file: File, pfns: PFNs, *, written: bool) -> PFNs:
        """Pages are to be written, or thrown away (``clear_page_dirty_for_io``, ``folio_account_cleaned``)."""
        flags = self._pages.flags
        dirty = pfns[flags[pfns] & _DIRTY != 0]
        flags[dirty] &= ~_DIRTY
        if not file.is_shmem and len(dirty):
            self._counts.move(dirty, -1, _DIRTY_ITEMS, _DIRTY_ZONE)
            file.nr_dirty -= len(dirty)
            if file.wb is not None:
                file.wb.pages_cleaned(len(dirty), written=written)
        if written:
            self.begin_writeback(file, dirty)
        found: PFNs = dirty
        return found

    def begin_writeback(self, file: File, pfns: PFNs) -> None:
        """Pages are on their way to the disk (``folio_start_writeback``)."""
        self._pages.flags[pfns] |= _WRITEBACK
        self._counts.move(pfns, 1, (stats.NR_WRITEBACK,), _DIRTY_ZONE)
        first, file.nr_writeback = not file.nr_writeback, file.nr_writeback + len(pfns)
        if file.wb is not None:
            if first and len(pfns):
                trace_writeback.inode(self._vmstat.trace, ev.SB_MARK_INODE_WRITEBACK, file)
            file.wb.writeback += len(pfns)

    def end_writeback(self, file: File, pfns: PFNs) -> None:
        """They have arrived (``folio_end_writeback``)."""
        self._pages.flags[pfns] &= ~_WRITEBACK
        self._counts.move(pfns, -1, (stats.NR_WRITEBACK,), _DIRTY_ZONE)
        self._counts.move(pfns, 1, (stats.NR_WRITTEN,))
        file.nr_writeback -= len(pfns)
        if file.wb is not None:
            if len(pfns) and not file.nr_writeback:
                trace_writeback.inode(self._vmstat.trace, ev.SB_CLEAR_INODE_WRITEBACK, file)
            file.wb.writeback -= len(pfns)
            file.wb.written += len(pfns)

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Slots, pages and the files' own counts agree. AssertionError."""
        for file in self.files.values():
            self._check_file(file)

    def _check_file(self, file: File) -> None:
        indices, pfns = self.find_get_pages(file)
        pages = self._pages
        assert len(pfns) == file.nrpages, f"{file.path}: {len(pfns)} pages, nrpages is {file.nrpages}"
        assert (pages.mapping[pfns] == -file.id).all(), f"{file.path}: a page is another file's"
        assert (pages.index[pfns] == indices).all(), f"{file.path}: a page has another offset"
        assert not len(indices) or indices[-1] < file.pages, f"{file.path}: a page is beyond the end"
        evicted = int((file.slots.window(0, file.slots.end) < 0).sum())
        assert not file.is_shmem or evicted == file.swapped, f"{file.path}: {evicted} pages are in swap"
        if not file.is_shmem:
            dirty = int((pages.flags[pfns] & _DIRTY != 0).sum())
            assert dirty == file.nr_dirty, f"{file.path}: {dirty} dirty pages, nr_dirty is {file.nr_dirty}"
            writeback = int((pages.flags[pfns] & _WRITEBACK != 0).sum())
            assert writeback == file.nr_writeback, f"{file.path}: {writeback} pages under write-back"
