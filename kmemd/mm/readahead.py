"""Reading files ahead of who reads them (mm/readahead.c, and the readahead of faults in mm/filemap.c).

Models: the window that starts small and doubles while reading is sequential, the marked page that starts the next
window, reading around a fault, and giving up on it after many misses; a device's read_ahead_kb, and what fadvise makes
of it. A window that is not waited for costs what the disk needs too: its pages are up to date at once. Left out: large
folios, congestion.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kmemd.core.pages import PG_WRITEBACK, PageMap
from kmemd.mm.filemap import READAHEAD, File, PageCache, flag
from kmemd.mm.mm_types import VM_RAND_READ, VM_SEQ_READ
from kmemd.mm.units import PAGE_SHIFT

FORCED_CHUNK = (2 << 20) >> PAGE_SHIFT
"""Pages that forced readahead reads at once."""
MMAP_LOTSAMISS = 100
_MARK, _WRITEBACK = flag(READAHEAD), flag(PG_WRITEBACK)


class PageReader(Protocol):
    """Reads pages of a file into its cache."""

    def read_pages(self, file: File, start: int, end: int) -> int:
        """Read what the cache lacks of ``[start, end)``; how many pages were read."""


def init_ra_size(size: int, most: int) -> int:
    """The first window for a request of ``size`` pages (``get_init_ra_size``)."""
    window = 1 << (size - 1).bit_length() if size > 1 else 1
    if window <= most // 32:
        return window * 4
    return window * 2 if window <= most // 4 else most


def next_ra_size(size: int, most: int) -> int:
    """The window after one of ``size`` pages (``get_next_ra_size``)."""
    if size < most // 16:
        return 4 * size
    return 2 * size if size <= most // 2 else most


class Readahead:
    """Decides what is read besides what was asked for."""

    def __init__(self, cache: PageCache, pages: PageMap, reader: PageReader) -> None:
        self._cache, self._pages, self._reader = cache, pages, reader

    # -- read(2) -----------------------------------------------------------------------------------------

    @staticmethod
    def ra_pages(file: File) -> int:
        """The largest window of a file, 0 for none (``ra->ra_pages``): with each page that cannot be read it is a
        quarter of what it was (``shrink_readahead_size_eio``)."""
        pages: int = file.wb.disk.ra_pages * file.ra.factor
        return pages >> 2 * file.ra.errors

    def _most(self, file: File, wanted: int) -> int:
        """The largest window for a request: one that is longer may take what the disk takes at once."""
        most, at_once = self.ra_pages(file), file.wb.disk.io_pages
        return min(wanted, at_once) if wanted > most and at_once > most else most

    def sync(self, file: File, index: int, wanted: int) -> None:
        """A page is not there (``page_cache_sync_ra``)."""
        if not self.ra_pages(file):
            self.force(file, index, 1)
        elif file.ra.random:
            self.force(file, index, wanted)
        else:
            self._ondemand(file, index, wanted, marked=False)

    def force(self, file: File, index: int, wanted: int) -> None:
        """Read what was asked for and no more, as far as the disk takes it (``force_page_cache_ra``)."""
        wanted = min(wanted, max(file.wb.disk.io_pages, self.ra_pages(file)))
        for start in range(index, index + wanted, FORCED_CHUNK):
            self._read(file, start, min(FORCED_CHUNK, index + wanted - start), 0)

    def marked(self, file: File, index: int, pfn: int, wanted: int) -> None:
        """A page is there; when it is the marked one, the next window is due (``page_cache_async_ra``)."""
        if self._pages.flags[pfn] & (_MARK | _WRITEBACK) == _MARK and self.ra_pages(file):
            self._pages.flags[pfn] &= ~_MARK
            self._ondemand(file, index, wanted, marked=True)

    def _ondemand(self, file: File, index: int, wanted: int, *, marked: bool) -> None:
        """ondemand_readahead."""
        ra, most = file.ra, self._most(file, wanted)
        if index and index in (ra.start + ra.size - ra.async_size, ra.start + ra.size):
            ra.start += ra.size
            ra.size = ra.async_size = max(ra.size, next_ra_size(ra.size, most))
        elif index and marked:
            ahead = self._cache.missing(file, index + 1, index + 1 + most)
            if not len(ahead):
                return
            ra.start = int(ahead[0])
            ra.size = ra.async_size = next_ra_size(ra.start - index + wanted, most)
        elif not index or wanted > most or index - (ra.prev_pos >> PAGE_SHIFT) in (0, 1):
            self._begin(file, index, wanted, most)
        elif not self._from_history(file, index, wanted, most):
            self._read(file, index, wanted, 0)
            return
        self._submit(file, index, most)

    @staticmethod
    def _begin(file: File, index: int, wanted: int, most: int) -> None:
        ra = file.ra
        ra.start, ra.size = index, init_ra_size(wanted, most)
        ra.async_size = ra.size - wanted if ra.size > wanted else ra.size

    @staticmethod
    def _from_history(file: File, index: int, wanted: int, most: int) -> bool:
        """Pages in front of this one are there: somebody reads on (``try_context_readahead``)."""
        low = max(0, index - most)
        window = np.zeros(index - low, dtype=np.int64)
        part = file.slots.window(low, index)
        window[: len(part)] = part
        gaps = np.flatnonzero(window <= 0)
        size = index - low - (int(gaps[-1]) + 1 if len(gaps) else 0)
        if size <= wanted:
            return False
        if size >= index:
            size *= 2
        ra = file.ra
        ra.start, ra.size, ra.async_size = index, min(size + wanted, most), 1
        return True

    def _submit(self, file: File, index: int, most: int) -> None:
        """Read the window; one whose own mark would be met at once is joined with the next."""
        ra = file.ra
        if index == ra.start and ra.size == ra.async_size:
            more = next_ra_size(ra.size, most)
            if ra.size + more <= most:
                ra.async_size = more
                ra.size += more
            else:
                ra.size, ra.async_size = most, most // 2
        self._read(file, ra.start, ra.size, ra.async_size)

    def _read(self, file: File, start: int, size: int, ahead: int) -> None:
        """Read pages, none beyond the end, and mark the one that starts the next window (``do_page_cache_ra``)."""
        size = min(size, file.pages - start)
        if size <= 0:
            return
        mark = start + size - ahead
        fresh = 0 < ahead <= size and file.slots.get(mark) <= 0
        self._reader.read_pages(file, start, start + size)
        pfn = self._cache.find_get_page(file, mark) if fresh else -1
        if pfn >= 0:
            self._pages.flags[pfn] |= _MARK

    # -- faults ------------------------------------------------------------------------------------------

    def fault_hit(self, file: File, index: int, pfn: int, vm_flags: int) -> None:
        """A fault found its page (``do_async_mmap_readahead``)."""
        if vm_flags & VM_RAND_READ or not self.ra_pages(file):
            return
        file.ra.mmap_miss = max(0, file.ra.mmap_miss - 1)
        self.marked(file, index, pfn, self.ra_pages(file))

    def fault_miss(self, file: File, index: int, vm_flags: int) -> None:
        """A fault did not find its page (``do_sync_mmap_readahead``): it may still not be there afterwards."""
        ra, most = file.ra, self.ra_pages(file)
        if vm_flags & VM_RAND_READ or not most:
            return
        if vm_flags & VM_SEQ_READ:
            self.sync(file, index, most)
            return
        ra.mmap_miss = min(ra.mmap_miss + 1, 10 * MMAP_LOTSAMISS)
        if ra.mmap_miss > MMAP_LOTSAMISS:
            return
        ra.start, ra.size, ra.async_size = max(0, index - most // 2), most, most // 4
        self._read(file, ra.start, ra.size, ra.async_size)
