"""Reading, writing and syncing files through their page cache (mm/filemap.c, mm/fadvise.c, mm/truncate.c).

Models: read(2) and write(2) of ranges with readahead, second references and partial pages that are read before they
are written; write-back that somebody waits for (fsync, msync); truncation with its unmapping; invalidation of clean
pages; fadvise. Write-back in the background and its limits are another module's. Left out: direct I/O, journals,
blocks of the file system.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.lru import ACTIVATE
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_CONTENT,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_UNEVICTABLE,
    PG_UPTODATE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.contents import Contents
from kmemd.mm.file_fault import FileFaults
from kmemd.mm.filemap import READAHEAD, File, Indices, PageCache, PFNs, flag
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.page_io import requests
from kmemd.mm.readahead import Readahead
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat

SECTORS_PER_PAGE = PAGE_SIZE >> 9
GFP_FILE = g.GFP_HIGHUSER_MOVABLE
GFP_READAHEAD = GFP_FILE | g.F.NORETRY | g.F.NOWARN
GFP_WRITE = GFP_FILE | g.F.WRITE
READ_PAGES = 256
"""Pages of the cache that read(2) copies at once."""
_UPTODATE, _REFERENCED, _ACTIVE = flag(PG_UPTODATE), flag(PG_REFERENCED), flag(PG_ACTIVE)
_BUSY, _MARK = flag(PG_DIRTY, PG_WRITEBACK), flag(READAHEAD)


class FilePages(Protocol):
    """Where pages for files come from: the policy of the task, then the page allocator."""

    def __call__(self, gfp: int, n: int) -> PFNs: ...


@dataclass(frozen=True)
class DiskCosts:
    """Model time in ns of one request to a disk, and of copying a page to or from a task."""

    read: int
    write: int
    copy: int


class FileIo:
    """What tasks do with files of block devices; tmpfs files have pages from elsewhere (mm/shmem.py).

    ``zap(mm, start, end)`` unmaps a range of addresses; ``clean(file, pfns)`` makes the entries of pages read-only and
    clean, marking pages dirty whose entries were: write-back begins with it (page_mkclean). ``later(function)`` runs a
    function when the current call is over.
    """

    def __init__(
        self,
        cache: PageCache,
        pages: PageMap,
        vmstat: VmStat,
        context: Context,
        alloc: FilePages,
        contents: Contents,
        zap: Callable[[Mm, int, int], None],
        clean: Callable[[File, PFNs], None],
        later: Callable[[Callable[[], None]], None],
        costs: DiskCosts,
    ) -> None:
        self._cache, self._pages, self._vmstat, self._context = cache, pages, vmstat, context
        self._alloc, self._contents, self._zap, self._clean = alloc, contents, zap, clean
        self._later, self._costs = later, costs
        self.readahead = Readahead(cache, pages, self)
        self.ops = FileFaults(cache, pages, self, tracks_writes=True)

    # -- what mappings ask -------------------------------------------------------------------------------

    def fault_page(self, file: File, index: int, task: Any, vma: Vma, vpn: int) -> tuple[int, bool]:
        """The page for a fault, and whether the disk had to be asked. ENOMEM."""
        return self.get_page(file, index, vma.flags)

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A shared mapping is about to write to a page (``filemap_page_mkwrite``)."""
        self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))

    def unused(self, file: File) -> None:
        """The last mapping went of a file without a name: it goes when the call that did that is over."""
        self._later(lambda: self._evict_unused(file))

    def remove(self, file: File, start: int, end: int) -> int:
        """A hole in a file, which ext2 cannot make (it has no fallocate). EOPNOTSUPP."""
        raise KernelError(errno.EOPNOTSUPP, f"{file.path} is on ext2, whose files have no fallocate")

    def _evict_unused(self, file: File) -> None:
        if not file.maps and not file.users and file.id in self._cache.files:
            self.evict(file)

    def evict(self, file: File) -> None:
        """The inode goes, with its pages."""
        self.truncate_pages(file, 0)
        if file.mount is not None:
            file.mount.evicted(file)
        self._cache.forget(file)

    # -- reading -----------------------------------------------------------------------------------------

    def read_pages(self, file: File, start: int, end: int, gfp: int = GFP_READAHEAD) -> int:
        """Read what the cache lacks of ``[start, end)``; how many pages were read, fewer when memory is short."""
        indices = self._cache.missing(file, start, min(end, file.pages))
        if not len(indices):
            return 0
        pfns = self._alloc(gfp, len(indices))
        indices = indices[: len(pfns)]
        if len(pfns):
            self._cache.add_bulk(file, indices, pfns)
            self._submit_read(file, indices, pfns)
        return len(pfns)

    def _submit_read(self, file: File, indices: Indices, pfns: PFNs) -> None:
        """One request for each run of pages; the model's disk is done when this returns."""
        self._context.charge(self._costs.read * requests(indices))
        self._vmstat.count(stats.PGPGIN, SECTORS_PER_PAGE * len(pfns))
        self._pages.flags[pfns] |= _UPTODATE
        if file.data:
            for index, pfn in zip(indices.tolist(), pfns.tolist(), strict=True):
                if index in file.data:
                    self._contents.write(pfn, 0, file.data[index])

    def get_page(self, file: File, index: int, vm_flags: int = 0) -> tuple[int, bool]:
        """The page a fault needs, and whether the disk had to be asked (``filemap_fault``). ENOMEM.

        Preconditions: ``index`` is before the end of the file.
        """
        pfn = self._cache.find_get_page(file, index)
        if pfn >= 0:
            self.readahead.fault_hit(file, index, pfn, vm_flags)
            return pfn, False
        self._vmstat.count(stats.PGMAJFAULT)
        self.readahead.fault_miss(file, index, vm_flags)
        if self._cache.find_get_page(file, index) < 0:
            self.read_pages(file, index, index + 1, GFP_FILE)
        pfn = self._cache.find_get_page(file, index)
        if pfn < 0:
            raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        return pfn, True

    def read(self, file: File, offset: int, count: int) -> int:
        """read(2): how many bytes there are, up to ``count`` (``filemap_read``). ENOMEM."""
        count = max(0, min(count, file.size - offset))
        if not count:
            return 0
        last = (offset + count - 1) >> PAGE_SHIFT
        index = offset >> PAGE_SHIFT
        while index <= last:
            index = self._read_some(file, index, last)
        return count

    def _read_some(self, file: File, index: int, last: int) -> int:
        """Read from ``index`` on as far as the cache reaches; the offset of the next page."""
        pfn = self._cache.find_get_page(file, index)
        wanted = last - index + 1
        if pfn < 0:
            self.readahead.sync(file, index, wanted)
            if self._cache.find_get_page(file, index) < 0:
                self.read_pages(file, index, index + 1, GFP_FILE)
            pfn = self._cache.find_get_page(file, index)
            if pfn < 0:
                raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        window = file.slots.window(index, min(last + 1, index + READ_PAGES))
        stop = np.flatnonzero(window <= 0)
        pfns = (window[: stop[0]] if len(stop) else window) - 1
        marks = np.flatnonzero(self._pages.flags[pfns] & _MARK)
        if len(marks):
            pfns = pfns[: marks[0] + 1]
            self.readahead.marked(file, index + int(marks[0]), int(pfns[-1]), wanted)
        if index != file.ra.previous:
            self.mark_accessed(pfns)
        elif len(pfns) > 1:
            self.mark_accessed(pfns[1:])
        file.ra.previous = index + len(pfns) - 1
        self._context.charge(self._costs.copy * len(pfns))
        return index + len(pfns)

    def mark_accessed(self, pfns: PFNs) -> None:
        """Pages were used by a system call: at the second time they become active (``folio_mark_accessed``)."""
        flags = self._pages.flags
        first = flags[pfns] & _REFERENCED == 0
        flags[pfns[first]] |= _REFERENCED
        again = pfns[~first]
        again = again[flags[again] & flag(PG_ACTIVE, PG_UNEVICTABLE) == 0]
        if len(again):
            queued = flags[again] & flag(PG_LRU) == 0
            flags[again[queued]] |= _ACTIVE
            flags[again] &= ~_REFERENCED
            self._cache.lru.batch(ACTIVATE, np.ascontiguousarray(again[~queued]))

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, file: File, offset: int, count: int) -> int:
        """write(2) of a range: the pages become dirty, the file as long as it must be. ENOMEM, and what was written."""
        end = offset + count
        first, last = offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT
        for edge, partial in ((first, offset % PAGE_SIZE), (last, end % PAGE_SIZE)):
            # a page that keeps bytes that are on the disk is read first
            if partial and edge < file.pages and not (edge == last and end >= file.size and edge != first):
                self.read_pages(file, edge, edge + 1, GFP_WRITE)
        missing = self._cache.missing(file, first, last + 1)
        file.size = max(file.size, end)
        if len(missing):
            pfns = self._alloc(GFP_WRITE, len(missing))
            self._cache.add_bulk(file, missing[: len(pfns)], pfns)
            self._pages.flags[pfns] |= _UPTODATE
            if len(pfns) < len(missing):
                raise KernelError(errno.ENOMEM, f"no pages to write {file.path} to")
        _, pfns = self._cache.find_get_pages(file, first, last + 1)
        self._cache.set_dirty(file, pfns)
        self.mark_accessed(pfns)
        self._context.charge(self._costs.copy * len(pfns))
        return count

    def writeback(self, file: File, start: int = 0, end: int = 1 << 62) -> int:
        """Write dirty pages of ``[start, end)`` and wait (``filemap_write_and_wait_range``). How many pages."""
        indices, pfns = self._cache.find_get_pages(file, start, end)
        if file.is_shmem or not len(pfns):
            return 0
        mapped = self._pages.mapcount[pfns] > 0
        if mapped.any():
            self._clean(file, pfns[mapped])
        dirty = self._pages.flags[pfns] & flag(PG_DIRTY) != 0
        indices, pfns = indices[dirty], pfns[dirty]
        if not len(pfns):
            return 0
        self._cache.clear_dirty(file, pfns, written=True)
        self._keep_data(file, indices, pfns)
        self._context.charge(self._costs.write * requests(indices))
        self._vmstat.count(stats.PGPGOUT, SECTORS_PER_PAGE * len(pfns))
        self._cache.end_writeback(file, pfns)
        return len(pfns)

    def _keep_data(self, file: File, indices: Indices, pfns: PFNs) -> None:
        """The disk gets what stands in pages, where that is known."""
        known = self._pages.flags[pfns] & flag(PG_CONTENT) != 0
        for index, pfn in zip(indices[known].tolist(), pfns[known].tolist(), strict=True):
            file.data[index] = self._contents.read(pfn)

    # -- bytes -------------------------------------------------------------------------------------------

    def store(self, file: File, offset: int, data: bytes) -> None:
        """Bytes that were written stand in the pages. Preconditions: the cache has them."""
        done = 0
        while done < len(data):
            index, inside = divmod(offset + done, PAGE_SIZE)
            part = data[done : done + PAGE_SIZE - inside]
            self._contents.write(self._cache.find_get_page(file, index), inside, part)
            done += len(part)

    def load(self, file: File, offset: int, count: int) -> bytes:
        """Bytes that were read; zeros where nothing is known, and in holes."""
        parts: list[bytes] = []
        while count > 0:
            index, inside = divmod(offset, PAGE_SIZE)
            size = min(count, PAGE_SIZE - inside)
            pfn = self._cache.find_get_page(file, index)
            parts.append(self._contents.read(pfn, inside, size) if pfn >= 0 else bytes(size))
            offset, count = offset + size, count - size
        return b"".join(parts)

    def dirty(self, file: File) -> int:
        """How many pages are marked dirty."""
        _, pfns = self._cache.find_get_pages(file)
        return int((self._pages.flags[pfns] & flag(PG_DIRTY) != 0).sum())

    # -- giving up pages ---------------------------------------------------------------------------------

    def invalidate(self, file: File, start: int = 0, end: int = 1 << 62) -> int:
        """Drop pages that are clean and that nobody maps (``invalidate_mapping_pages``). How many."""
        if file.is_shmem:
            return 0
        indices, pfns = self._cache.find_get_pages(file, start, end)
        idle = (self._pages.mapcount[pfns] == 0) & (self._pages.flags[pfns] & _BUSY == 0)
        queued = self._pages.flags[pfns] & flag(PG_LRU) == 0
        idle &= ~queued  # the batch's reference keeps a page
        self._cache.delete_bulk(file, indices[idle], pfns[idle])
        return int(idle.sum())

    def truncate_pages(self, file: File, start: int, end: int = 1 << 62) -> int:
        """Unmap and drop all pages of ``[start, end)`` (``unmap_mapping_range``, ``truncate_inode_pages_range``)."""
        for mm, vma in list(file.mappings(start, end)):
            low, high = self._part(vma, start, end)
            if low < high:
                self._zap(mm, low, high)
        indices, pfns = self._cache.find_get_pages(file, start, end)
        self._cache.delete_bulk(file, indices, pfns)
        for index in [index for index in file.data if start <= index < end]:
            del file.data[index]
        return len(pfns)

    @staticmethod
    def _part(vma: Vma, start: int, end: int) -> tuple[int, int]:
        """The addresses of a mapping that show pages of ``[start, end)``."""
        low = vma.start + (max(start - vma.pgoff, 0) << PAGE_SHIFT)
        high = vma.start + (min(end - vma.pgoff, vma.pages) << PAGE_SHIFT)
        return low, high
