"""Calls on files by their path or file, whatever kind they are (fs/read_write.c, mm/fadvise.c, fs/drop_caches.c).

Models read, write, truncate, posix_fadvise, fsync, sync_file_range, sync, readahead for mappings (MADV_WILLNEED), and
what is in memory of a file (mincore). Left out: file descriptors: whoever reads names the file and the place.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.lru import Lru
from kmemd.core.mmu import Mmu
from kmemd.core.pte import MAX_SWAPFILES, PRESENT, PROTNONE, SWP_TYPE_SHIFT
from kmemd.errors import KernelError
from kmemd.mm.blk_mq import REQ_SYNC
from kmemd.mm.file_io import FileIo
from kmemd.mm.filemap import File, FileKind, Indices, PageCache
from kmemd.mm.mm_types import VM_SHARED, Mm, Vma
from kmemd.mm.shmem import Shmem
from kmemd.mm.swap_state import SwapState
from kmemd.mm.swapfile import slots_of
from kmemd.mm.trace_writeback import SYNC
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vfs import Vfs
from kmemd.steps import Steps

SLICE = 1 << 12
"""Pages that a long call handles before others may run."""
STATE_PAGES = 1 << 15
"""Pages that are looked at before others may run."""


SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7


class IoAccounts(Protocol):
    """What is noted of the executing process; ``opener`` is its number."""

    @property
    def opener(self) -> int: ...
    def read(self, count: int) -> None: ...
    def write(self, count: int) -> None: ...


class Files:
    """Files of one machine."""

    def __init__(
        self,
        cache: PageCache,
        io: FileIo,
        shmem: Shmem,
        swap: SwapState,
        vfs: Vfs,
        mmu: Mmu,
        lru: Lru,
        accounts: IoAccounts,
        log: Callable[[str], None],
    ) -> None:
        """``log(text)`` writes a kernel message of level critical."""
        self.cache, self.io, self.shmem, self.swap_state, self.vfs = cache, io, shmem, swap, vfs
        self._mmu, self._lru, self._accounts, self._log = mmu, lru, accounts, log

    # -- calls on files ----------------------------------------------------------------------------------

    def read(self, file: File, offset: int, count: int) -> int:
        """read(2) of a range: how many bytes there are. ENOMEM, EIO."""
        self.io.opened(file, self._accounts.opener)
        done = self.shmem.read(file, offset, count) if file.is_shmem else self.io.read(file, offset, count)
        self._accounts.read(done)
        return done

    def write(self, file: File, offset: int, count: int, *, sync: bool = False) -> int:
        """write(2) of a range, with ``sync`` of a file opened with O_SYNC. ENOMEM, ENOSPC, EFBIG, ETXTBSY, EIO."""
        self.io.opened(file, self._accounts.opener)
        if count:
            self.vfs.check_write(file, offset + count)
            (self.shmem.write if file.is_shmem else self.io.write)(file, offset, count)
            self._accounts.write(count)
            if sync:
                self.fsync(file, offset >> PAGE_SHIFT, (offset + count + PAGE_SIZE - 1) >> PAGE_SHIFT)
        return count

    def install(self, path: str, ino: int, pages: int) -> File:
        """A file of the initramfs, whose pages are there and dirty. ENOMEM."""
        file = self.vfs.create(path, pages << PAGE_SHIFT, ino)
        pfns = self.shmem.get_pages(file, 0, pages)
        self.cache.set_dirty(file, pfns)
        return file

    def punch_hole(self, file: File, offset: int, length: int) -> Steps[None]:
        """fallocate(2) with FALLOC_FL_PUNCH_HOLE: whole pages of a range of bytes go. EOPNOTSUPP on a disk."""
        self._has_fallocate(file)
        yield from self.shmem.punch_hole(file, offset, length)

    def fallocate(self, file: File, offset: int, length: int) -> Steps[None]:
        """fallocate(2). ENOMEM, ENOSPC; EOPNOTSUPP on a disk."""
        self._has_fallocate(file)
        yield from self.shmem.fallocate(file, offset, length)

    @staticmethod
    def _has_fallocate(file: File) -> None:
        if not file.is_shmem:
            raise KernelError(errno.EOPNOTSUPP, f"{file.path} is on ext2, whose files have no fallocate")

    def state(self, file: File) -> Steps[dict[str, int]]:
        """How many pages of a file are where."""
        dirty = 0
        for at in range(0, file.slots.end, STATE_PAGES):
            dirty += self.io.dirty(file, at, at + STATE_PAGES)
            yield
        return {
            "pages": file.nrpages,
            "dirty": dirty,
            "writeback": file.nr_writeback,
            "swapped": file.swapped,
        }

    def fadvise(self, file: File, advice: str, offset: int, count: int) -> Steps[int]:
        """posix_fadvise for a range, to the end when ``count`` is 0; how many pages it touched. EINVAL."""
        start = offset >> PAGE_SHIFT
        end = file.pages if not count else (offset + count + PAGE_SIZE - 1) >> PAGE_SHIFT
        if advice == "WILLNEED":
            return self.force_readahead(file, start, min(end, file.pages))
        if advice == "DONTNEED":
            first = (offset + PAGE_SIZE - 1) >> PAGE_SHIFT
            last = file.pages if not count or offset + count >= file.size else (offset + count) >> PAGE_SHIFT
            if file.is_shmem or first >= last:
                return 0
            self.io.writer.write_range(file, start, end, flags=0)
            yield
            return (yield from self._drop(file, first, min(last, file.slots.end)))
        if advice in ("NORMAL", "SEQUENTIAL", "RANDOM"):
            file.ra.random = advice == "RANDOM"
            if advice != "RANDOM":
                file.ra.factor, file.ra.errors = 2 if advice == "SEQUENTIAL" else 1, 0
            return 0
        if advice == "NOREUSE":
            return 0
        raise KernelError(
            errno.EINVAL, f"{advice} is no advice: NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, NOREUSE"
        )

    def _drop(self, file: File, first: int, last: int) -> Steps[int]:
        """Drop pages that are clean and not mapped; when some stay, the batches of other CPUs may hold them, and it is
        tried once more. How many went."""
        dropped = 0
        self._lru.drain_local()
        for _ in range(2):
            stayed = 0
            for at in range(first, last, SLICE):
                went, left = self.io.try_invalidate(file, at, min(at + SLICE, last))
                dropped, stayed = dropped + went, stayed + left
                yield
            if not stayed:
                break
            self._lru.drain_all()
        return dropped

    def force_readahead(self, file: File, start: int, end: int) -> int:
        """Read pages of a range of a file on a disk, as many as the disk takes at once at most
        (``force_page_cache_readahead``). How many were read."""
        if file.is_shmem or file.wb is None or start >= end:
            return 0
        before = file.nrpages
        self.io.readahead.force(file, start, end - start)
        return max(file.nrpages - before, 0)

    def fsync(self, file: File, start: int = 0, end: int = 1 << 62) -> int:
        """Write what is dirty, with the inode, and wait (``vfs_fsync_range``); offsets in pages. How many pages.

        EIO, or what else the disk said, for an error of write-back that the caller was not told of; EIO when the inode
        cannot be written.
        """
        if file.is_shmem or file.wb is None:
            return 0
        pages = self.io.writeback(file, start, end)
        try:
            self.io.check_error(file, self._accounts.opener)
            if file.inode_dirty:
                self.io.write_inode(file, wait=True)
        except KernelError as error:
            if error.errno == errno.EIO and file.mount is not None:
                name = file.wb.disk.name
                self._log(f"EXT2-fs ({name}): error: ext2_fsync: detected IO error when writing metadata buffers")
            raise
        return pages

    def sync_file_range(self, file: File, offset: int, count: int, flags: int) -> Steps[int]:
        """sync_file_range(2): wait, write, wait, as the flags say. How many pages it sent to the disk. EIO."""
        start = offset >> PAGE_SHIFT
        end = (offset + count + PAGE_SIZE - 1) >> PAGE_SHIFT if count else 1 << 62
        pages = 0
        self.io.opened(file, self._accounts.opener)
        if file.is_shmem or file.wb is None:
            return 0
        if flags & SYNC_FILE_RANGE_WAIT_BEFORE:
            yield from self.io.writer.wait_steps(file, start, end)
            self.io.check_error(file, self._accounts.opener)
        if flags & SYNC_FILE_RANGE_WRITE:
            whole = flags & SYNC_FILE_RANGE_WRITE_AND_WAIT == SYNC_FILE_RANGE_WRITE_AND_WAIT
            for at in range(start, min(end, file.pages), SLICE):
                stop = min(at + SLICE, end)
                pages += self.io.writer.write_range(file, at, stop, flags=REQ_SYNC if whole else 0)
                yield
        if flags & SYNC_FILE_RANGE_WAIT_AFTER:
            yield from self.io.writer.wait_steps(file, start, end)
            self.io.check_error(file, self._accounts.opener)
        return pages

    def sync(self) -> Steps[int]:
        """sync(2): everything that is dirty, inodes first and then the disks' own blocks. How many pages."""
        flushers, pages = self.vfs.storage.flushers, 0
        flushers.wakeup_flusher_threads(SYNC)
        for chosen in (lambda file: file.mount is not None, lambda file: file.mount is None):
            for wb in list(flushers.by_disk.values()):
                pages += yield from flushers.write_inodes(wb, chosen)
        return pages

    def drop_pagecache(self) -> Steps[None]:
        """Drop clean pages of all files that nobody maps (``drop_pagecache_sb``)."""
        for file in [file for file in self.cache.files.values() if file.nrpages]:
            for start in range(0, file.slots.end, SLICE):
                self.io.invalidate(file, start, start + SLICE)
                yield

    # -- what mappings ask -------------------------------------------------------------------------------

    def willneed(self, mm: Mm, vma: Vma, first: int, last: int) -> None:
        """MADV_WILLNEED for pages of address: from swap, or from the file (``madvise_willneed``)."""
        file = vma.file
        if file is None or (vma.anon_vma is not None and not vma.flags & VM_SHARED):
            self._swapin(mm, vma, first, last)
        if file is not None and file.kind is FileKind.DISK:
            start = vma.index_of(first)
            self.force_readahead(file, start, min(start + last - first, file.pages))
        elif file is not None and file.is_shmem:
            window = -file.slots.window(vma.index_of(first), vma.index_of(last))
            self._read_slots(np.ascontiguousarray(window[window > 0]))

    def _swapin(self, mm: Mm, vma: Vma, first: int, last: int) -> None:
        """Read what a range has in swap into the swap cache (``swapin_walk_pmd_entry``)."""
        for _, count, slot, level in self._mmu.extents(mm.id, first, last).tolist():
            words = self._mmu.words[slot : slot + count]
            out = (words != 0) & (words & np.uint64(PRESENT | PROTNONE) == 0)
            out &= words >> np.uint64(SWP_TYPE_SHIFT) < np.uint64(MAX_SWAPFILES)
            if not level:
                self._read_slots(slots_of(words[out]))

    def _read_slots(self, slots: Indices, task: Any = None) -> None:
        wanted = np.unique(slots)
        if len(wanted):
            wanted = wanted[self.swap_state.files.cached(wanted) < 0]
        if len(wanted):
            self.swap_state.read_slots(wanted, task)

    def in_cache(self, file: File, start: int, end: int) -> npt.NDArray[np.bool_]:
        """Which pages of ``[start, end)`` are in memory (``mincore_page``): a tmpfs page in the swap cache is too."""
        found = np.zeros(end - start, dtype=bool)
        window = file.slots.window(start, end)
        found[: len(window)] = window > 0
        if file.swapped:
            out = np.flatnonzero(window < 0)
            found[out] = self.swap_state.files.cached(-window[out]) >= 0
        return found

    def check(self) -> None:
        """Page caches, swap and paths agree with the pages. AssertionError."""
        self.cache.check()
        self.swap_state.check()
        self.vfs.check()
