"""Reading, writing and syncing files through their page cache (mm/filemap.c, mm/fadvise.c, mm/truncate.c).

Models: read(2) and write(2) of ranges with readahead, second references and partial pages that are read before they
are written; write-back that somebody waits for (fsync, msync, sync_file_range) and the errors that it tells; truncation
with its unmapping; invalidation of clean pages. Writers are throttled (mm/dirty_throttle.py), disks fail when they are
told to (mm/blk_mq.py). Left out: direct I/O, journals.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.lru_lists import HITS, MISSES
from kmemd.core.pages import (
    PG_DIRTY,
    PG_ERROR,
    PG_LRU,
    PG_UPTODATE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.blk_mq import REQ_RAHEAD, REQ_SYNC, SECTORS_PER_PAGE
from kmemd.mm.buffer import BDEV_DEVICE, Buffers
from kmemd.mm.contents import Contents
from kmemd.mm.dirty_throttle import DirtyThrottle, TaskDirty
from kmemd.mm.errseq import errseq_check_and_advance, errseq_sample
from kmemd.mm.file_fault import FileFaults
from kmemd.mm.file_write import FileWriter, runs, segments
from kmemd.mm.filemap import READAHEAD, File, Indices, PageCache, PFNs, flag
from kmemd.mm.fs_writeback import Flushers
from kmemd.mm.io_clock import IoClock
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.readahead import Readahead
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat

GFP_FILE, GFP_DEVICE = g.GFP_HIGHUSER_MOVABLE, g.GFP_USER
"""Whose pages they are: files' may be moved, those of block devices are the kernel's (``mapping_gfp_mask``)."""
GFP_READAHEAD = GFP_FILE | g.F.NORETRY | g.F.NOWARN
GFP_WRITE = GFP_FILE | g.F.WRITE
READ_PAGES = 256
"""Pages of the cache that read(2) copies at once."""
WRITE_PAGES = 32
"""Pages that write(2) fills before it asks whether it must wait, at least."""
_UPTODATE = flag(PG_UPTODATE)
_BUSY, _MARK, _ERROR = flag(PG_DIRTY, PG_WRITEBACK), flag(READAHEAD), flag(PG_ERROR)


class FilePages(Protocol):
    """Where pages for files come from: the policy of the task, then the page allocator."""

    def __call__(self, gfp: int, n: int) -> PFNs: ...


class Accounts(Protocol):
    """What is noted of the executing task: its throttling, and its I/O (``task_struct``)."""

    def dirty(self) -> TaskDirty: ...
    def read_from_disk(self, pages: int) -> None: ...
    def read(self, count: int, calls: int = 1) -> None: ...
    @property
    def opener(self) -> int: ...


@dataclass(frozen=True)
class DiskParts:
    """What is between the page cache and disks."""

    io: IoClock
    writer: FileWriter
    buffers: Buffers
    flushers: Flushers
    throttle: DirtyThrottle
    accounts: Accounts


class FileIo:
    """What tasks do with files of block devices; tmpfs files have pages from elsewhere (mm/shmem.py).

    ``zap(mm, start, end)`` unmaps a range of addresses; ``later(function)`` runs a function when the current call is
    over; ``copy_ns`` is the time that copying a page to or from a task takes.
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
        later: Callable[[Callable[[], None]], None],
        parts: DiskParts,
        copy_ns: int,
    ) -> None:
        self._cache, self._pages, self._vmstat, self._context = cache, pages, vmstat, context
        self.alloc, self._contents, self._zap = alloc, contents, zap
        self._later, self._copy_ns = later, copy_ns
        self._io, self.writer, self._buffers = parts.io, parts.writer, parts.buffers
        self._flushers, self._throttle, self._accounts = parts.flushers, parts.throttle, parts.accounts
        self.readahead = Readahead(cache, pages, self)
        self.ops = FileFaults(cache, pages, self, tracks_writes=True)

    # -- what mappings ask -------------------------------------------------------------------------------

    def fault_page(self, file: File, index: int, task: Any, vma: Vma, vpn: int) -> tuple[int, bool]:
        """The page for a fault, and whether the disk had to be asked. ENOMEM; SIGBUS when it cannot be read."""
        try:
            return self.get_page(file, index, vma.flags)
        except KernelError as error:
            if error.errno != errno.EIO:
                raise
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT) from error

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A shared mapping is about to write to a page (``filemap_page_mkwrite``)."""
        self._flushers.mark_inode_dirty(file)
        self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))
        self.balance(file)

    def balance(self, file: File) -> None:
        """The executing task made pages of a file dirty: it may have to wait (``balance_dirty_pages_ratelimited``)."""
        if file.wb is not None:
            self._throttle.balance_ratelimited(self._accounts.dirty(), self._context.cpu, file.wb)

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
        self._flushers.evicted(file)
        if file.mount is not None:
            file.mount.evicted(file)
        self._cache.forget(file)

    # -- reading -----------------------------------------------------------------------------------------

    def read_pages(self, file: File, start: int, end: int, gfp: int = GFP_READAHEAD, flags: int = 0) -> int:
        """Read what the cache lacks of ``[start, end)``; how many pages were read, fewer when memory is short."""
        ahead = gfp == GFP_READAHEAD
        if gfp & GFP_FILE == GFP_FILE and file.device == BDEV_DEVICE:
            gfp = gfp & ~GFP_FILE | GFP_DEVICE
        indices = self._cache.missing(file, start, min(end, file.pages))
        if not len(indices):
            return 0
        self.map_blocks(file, start, end)
        pfns = self.alloc(gfp, len(indices))
        if len(pfns):
            self.put_in(file, indices[: len(pfns)], pfns, flags or (REQ_RAHEAD if ahead else 0))
        return len(pfns)

    def put_in(self, file: File, indices: Indices, pfns: PFNs, flags: int) -> None:
        """Fresh pages enter the cache, and are read."""
        self._cache.add_bulk(file, indices, pfns)
        self._submit_read(file, indices, pfns, flags)

    @staticmethod
    def map_blocks(file: File, start: int, end: int, fresh: int | None = None) -> None:
        """The file system says where on the disk pages are. EIO, ENOMEM."""
        if file.blocks_at is not None:
            file.mount.fs.map_blocks(file, start, end, fresh)

    def _submit_read(self, file: File, indices: Indices, pfns: PFNs, flags: int) -> None:
        """One request for each run of pages, and wait for the last; pages that cannot be read are not up to date."""
        with self._cache.pin(pfns):  # they are locked while they are read
            self._read_pages(file, indices, pfns, flags)

    def _read_pages(self, file: File, indices: Indices, pfns: PFNs, flags: int) -> None:
        disk, done = file.wb.disk, 0
        for first, last, sector in runs(file, indices):
            part = pfns[first:last]
            done, failed = disk.read(sector, len(part), segments(part), flags)
            if failed:
                self._pages.flags[part] |= _ERROR
                if file.device == BDEV_DEVICE and not flags:
                    self._buffers.read_failed(file, indices[first:last])
            else:
                self._pages.flags[part] |= _UPTODATE
        self._vmstat.count(stats.PGPGIN, SECTORS_PER_PAGE * len(pfns))
        self._accounts.read_from_disk(len(pfns))
        self._io.sleep_until(done)
        self.fill(file, indices)

    def fill(self, file: File, indices: Indices) -> None:
        """The bytes that are known of pages of the disk come with them."""
        for index in indices.tolist() if file.data else ():
            if index in file.data:
                self._contents.write(self._cache.find_get_page(file, index), 0, file.data[index])

    def _up_to_date(self, file: File, index: int, pfn: int, *, shrink: bool = True) -> None:
        """A page whose reading failed is read again, alone (``filemap_read_folio``). EIO, after which less is read
        ahead with ``shrink``."""
        if self._pages.flags[pfn] & _UPTODATE:
            return
        self._pages.flags[pfn] &= ~_ERROR
        self._submit_read(file, np.array([index], dtype=np.int64), np.array([pfn], dtype=np.int64), 0)
        if not self._pages.flags[pfn] & _UPTODATE:
            file.ra.errors += shrink
            raise KernelError(errno.EIO, f"page {index} of {file.path} cannot be read")

    def get_page(self, file: File, index: int, vm_flags: int = 0) -> tuple[int, bool]:
        """The page a fault needs, and whether the disk had to be asked (``filemap_fault``). ENOMEM.

        Preconditions: ``index`` is before the end of the file.
        """
        pfn = self._cache.find_get_page(file, index)
        if pfn >= 0:
            with self._cache.pin([pfn]):
                self.readahead.fault_hit(file, index, pfn, vm_flags)
                self._up_to_date(file, index, pfn)
            return pfn, False
        self._vmstat.count(stats.PGMAJFAULT)
        self.readahead.fault_miss(file, index, vm_flags)
        if self._cache.find_get_page(file, index) < 0:
            self.read_pages(file, index, index + 1, GFP_FILE)
        pfn = self._cache.find_get_page(file, index)
        if pfn < 0:
            raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        self._up_to_date(file, index, pfn)
        return pfn, True

    def read(self, file: File, offset: int, count: int) -> int:
        """read(2): how many bytes there are, up to ``count`` (``filemap_read``), fewer in front of what the disk
        cannot read. ENOMEM, EIO."""
        count = max(0, min(count, file.size - offset))
        if not count:
            return 0
        last = (offset + count - 1) >> PAGE_SHIFT
        index = offset >> PAGE_SHIFT
        while index <= last:
            try:
                index = self._read_some(file, index, last, offset, offset + count)
            except KernelError:
                if index == offset >> PAGE_SHIFT:
                    raise
                return (index << PAGE_SHIFT) - offset
        return count

    def _read_some(self, file: File, index: int, last: int, offset: int, stop_at: int) -> int:
        """Read from ``index`` on as far as the cache reaches; the offset of the next page."""
        pfn = self._cache.find_get_page(file, index)
        wanted = last - index + 1
        missed = int(pfn < 0)
        if missed:
            self.readahead.sync(file, index, wanted)
            if self._cache.find_get_page(file, index) < 0:
                self.read_pages(file, index, index + 1, GFP_FILE)
            pfn = self._cache.find_get_page(file, index)
            if pfn < 0:
                raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        self._up_to_date(file, index, pfn)
        window = file.slots.window(index, min(last + 1, index + READ_PAGES))
        stop = np.flatnonzero(window <= 0)
        pfns = (window[: stop[0]] if len(stop) else window) - 1
        failed = np.flatnonzero(self._pages.flags[pfns] & _UPTODATE == 0)
        if len(failed):
            pfns = pfns[: failed[0]]
        marks = np.flatnonzero(self._pages.flags[pfns] & _MARK)
        if len(marks):
            pfns = pfns[: marks[0] + 1]
            with self._cache.pin(pfns):
                self.readahead.marked(file, index + int(marks[0]), int(pfns[-1]), wanted)
        if max(index << PAGE_SHIFT, offset) >> PAGE_SHIFT != (file.ra.prev_pos - 1) >> PAGE_SHIFT:
            self.mark_accessed(pfns)
        elif len(pfns) > 1:
            self.mark_accessed(pfns[1:])
        file.ra.prev_pos = min((index + len(pfns)) << PAGE_SHIFT, stop_at)
        self._cache.lru.words[MISSES] += missed
        self._cache.lru.words[HITS] += len(pfns) - missed
        self._context.charge(self._copy_ns * len(pfns))
        return index + len(pfns)

    def mark_accessed(self, pfns: PFNs) -> None:
        """Pages were used by a system call."""
        self._cache.mark_accessed(pfns)

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, file: File, offset: int, count: int) -> int:
        """write(2) of a range: the pages become dirty, the file as long as it must be. How many bytes were written,
        fewer when memory ran out on the way. ENOMEM, EIO."""
        end = offset + count
        first, last = offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT
        with ExitStack() as held:
            for edge, partial in ((first, offset % PAGE_SIZE), (last, end % PAGE_SIZE)):
                # a page that keeps bytes that are on the disk is read first
                if partial and edge < file.pages and not (edge == last and end >= file.size and edge != first):
                    held.enter_context(self._cache.pin([self._read_edge(file, edge)]))
            old = file.pages
            self._grow(file, end)
            at = first
            while at <= last:
                room = self._throttle.allowance(self._accounts.dirty(), file.wb)
                stop = min(at + max(room, WRITE_PAGES), last + 1)
                self.map_blocks(file, at, stop, old if stop > old else None)
                self._write_some(file, at, stop)
                at = stop
        return count

    def _read_edge(self, file: File, index: int) -> int:
        """A page that is written in part. ENOMEM, EIO."""
        self.read_pages(file, index, index + 1, GFP_WRITE)
        pfn = self._cache.find_get_page(file, index)
        if pfn < 0:
            raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        with self._cache.pin([pfn]):
            self._up_to_date(file, index, pfn, shrink=False)
        return pfn

    def _grow(self, file: File, end: int) -> None:
        """A file is at least so long; its new blocks are marked in the file system's own."""
        if end > file.size:
            file.size = end
            if file.mount is not None:
                file.mount.grown(file)
        self._flushers.mark_inode_dirty(file)

    def _write_some(self, file: File, first: int, end: int) -> None:
        """Pages ``[first, end)`` are filled and dirty (``generic_perform_write``); the writer may have to wait."""
        _, present = self._cache.find_get_pages(file, first, end)
        missing = self._cache.missing(file, first, end)
        if len(missing):
            with self._cache.pin(present):
                pfns = self.alloc(GFP_WRITE, len(missing))
            self._cache.add_bulk(file, missing[: len(pfns)], pfns)
            self._pages.flags[pfns] |= _UPTODATE
            if len(pfns) < len(missing):
                raise KernelError(errno.ENOMEM, f"no pages to write {file.path} to")
        _, pfns = self._cache.find_get_pages(file, first, end)
        self._pages.flags[pfns] |= _UPTODATE
        with self._cache.pin(pfns):
            self._buffers.create(pfns)
        self._cache.set_dirty(file, pfns)
        self._context.charge(self._copy_ns * len(pfns))
        self._io.run_due()
        self.balance(file)

    def writeback(self, file: File, start: int = 0, end: int = 1 << 62) -> int:
        """Write dirty pages of ``[start, end)`` and wait (``filemap_write_and_wait_range``). How many pages."""
        if file.is_shmem or file.wb is None:
            return 0
        written = self.writer.write_range(file, start, end, flags=REQ_SYNC)
        self.writer.wait(file, start, end)
        return written

    def write_inode(self, file: File, *, wait: bool = False) -> None:
        """The inode's own fields go to the file system's block (``write_inode``), and with ``wait`` to the disk.

        EIO when that cannot take it.
        """
        file.inode_dirty = False
        if file.mount is None or file.mount.fs is None:
            return
        block = file.mount.fs.write_inode(file.ino)
        if wait:
            device = self._buffers.device(file.wb.disk)
            self.writeback(device, block, block + 1)
            if self._pages.flags[self._cache.find_get_page(device, block)] & _ERROR:
                raise KernelError(errno.EIO, f"the inode of {file.path} could not be written to {file.wb.disk.path}")

    # -- errors of write-back ----------------------------------------------------------------------------

    def opened(self, file: File, opener: int) -> None:
        """A process has a file open: it is told of errors from now on (``file_sample_wb_err``)."""
        if opener not in file.openers:
            file.openers[opener] = errseq_sample(file.wb_err)

    def check_error(self, file: File, opener: int) -> None:
        """An error of write-back that the opener was not told of yet (``file_check_and_advance_wb_err``). EIO."""
        self.opened(file, opener)
        old = file.openers[opener]
        number, file.openers[opener] = errseq_check_and_advance(file.wb_err, old)
        if number:
            trace_points.told_wb_err(self._vmstat.trace, file, opener, old, file.openers[opener])
            file.wb_err = file.openers[opener]
            raise KernelError(number, f"pages of {file.path} could not be written to {file.wb.disk.path}")

    # -- bytes -------------------------------------------------------------------------------------------

    def store(self, file: File, offset: int, data: bytes) -> None:
        """Bytes that were written stand in the pages, or on the disk."""
        done = 0
        while done < len(data):
            index, inside = divmod(offset + done, PAGE_SIZE)
            part = data[done : done + PAGE_SIZE - inside]
            pfn = self._cache.find_get_page(file, index)
            if pfn >= 0:
                self._contents.write(pfn, inside, part)
            else:  # the disk got the page while the writer was held up, and reclaim took it
                old = file.data.get(index, b"").ljust(PAGE_SIZE, b"\0")
                file.data[index] = old[:inside] + part + old[inside + len(part) :]
            done += len(part)

    def load(self, file: File, offset: int, count: int) -> bytes:
        """Bytes that were read; zeros where nothing is known, and in holes. A page that went is on the disk."""
        parts: list[bytes] = []
        while count > 0:
            index, inside = divmod(offset, PAGE_SIZE)
            size = min(count, PAGE_SIZE - inside)
            pfn = self._cache.find_get_page(file, index)
            known = file.data.get(index, b"").ljust(PAGE_SIZE, b"\0")[inside : inside + size]
            parts.append(self._contents.read(pfn, inside, size) if pfn >= 0 else known)
            offset, count = offset + size, count - size
        return b"".join(parts)

    def dirty(self, file: File, start: int, end: int) -> int:
        """How many pages of a range are marked dirty."""
        _, pfns = self._cache.find_get_pages(file, start, end)
        return int((self._pages.flags[pfns] & flag(PG_DIRTY) != 0).sum())

    # -- giving up pages ---------------------------------------------------------------------------------

    def invalidate(self, file: File, start: int = 0, end: int = 1 << 62) -> int:
        """Drop pages that are clean and that nobody maps (``invalidate_mapping_pages``). How many."""
        return self.try_invalidate(file, start, end)[0]

    def try_invalidate(self, file: File, start: int, end: int) -> tuple[int, int]:
        """``invalidate``; how many pages went, and how many could not, which are to be reclaimed first
        (``invalidate_mapping_pagevec``)."""
        if file.is_shmem:
            return 0, 0
        indices, pfns = self._cache.find_get_pages(file, start, end)
        idle = (self._pages.mapcount[pfns] == 0) & (self._pages.flags[pfns] & _BUSY == 0)
        queued = self._pages.flags[pfns] & flag(PG_LRU) == 0
        idle &= ~queued  # the batch's reference keeps a page
        self._cache.delete_bulk(file, indices[idle], pfns[idle])
        self._cache.forget_shadows(file, start, end)
        left = pfns[~idle]
        if len(left):
            self._cache.lru.deactivate_file(left)
        return len(pfns) - len(left), len(left)

    def truncate_pages(self, file: File, start: int, end: int = 1 << 62) -> int:
        """Unmap and drop all pages of ``[start, end)`` (``unmap_mapping_range``, ``truncate_inode_pages_range``)."""
        for mm, vma in list(file.mappings(start, end)):
            low, high = self._part(vma, start, end)
            if low < high:
                self._zap(mm, low, high)
        if file.in_flight:
            self.writer.wait(file, start, end)
        indices, pfns = self._cache.find_get_pages(file, start, end)
        self._cache.delete_bulk(file, indices, pfns)
        self._cache.forget_shadows(file, start, end)
        for index in [index for index in file.data if start <= index < end]:
            del file.data[index]
        return len(pfns)

    @staticmethod
    def _part(vma: Vma, start: int, end: int) -> tuple[int, int]:
        """The addresses of a mapping that show pages of ``[start, end)``."""
        low = vma.start + (max(start - vma.pgoff, 0) << PAGE_SHIFT)
        high = vma.start + (min(end - vma.pgoff, vma.pages) << PAGE_SHIFT)
        return low, high
