"""The buffer cache of block devices, and buffer heads (fs/buffer.c, block/fops.c).

Models: a device's page cache, which file systems read their own blocks through; a ``buffer_head`` for each block of
its pages, and for pages of files that were written to, in PG_private pages; dirty buffers and their errors. Blocks are
as large as pages. Left out: the buffers that CPUs look up first, and those that a mounted file system holds on to.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from kmemd.core.pages import PG_DIRTY, PG_PRIVATE, PG_UPTODATE, PageMap
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.bdi import BdiWriteback
from kmemd.mm.blk_mq import Disk
from kmemd.mm.filemap import File, FileKind, FileOperations, Indices, PageCache, PFNs, flag

BDEV_DEVICE = "00:06"
"""The file system of block devices' inodes."""
GFP_BUFFERS = g.GFP_NOFS | g.F.MOVABLE | g.F.NOFAIL
GFP_HEAD = g.GFP_NOFS | g.F.ACCOUNT
_PRIVATE, _UPTODATE, _DIRTY = flag(PG_PRIVATE), flag(PG_UPTODATE), flag(PG_DIRTY)


class Slab(Protocol):
    """Where buffer heads come from."""

    def cache(self, name: str) -> Any: ...
    def kmem_cache_alloc_bulk(self, cache: Any, gfp: int, n: int) -> Any: ...
    def kmem_cache_free_bulk(self, cache: Any, addresses: Any) -> None: ...


class Reader(Protocol):
    """Reads pages of a device, and says when they were used."""

    ops: FileOperations

    def read_pages(self, file: File, start: int, end: int, gfp: int, flags: int = 0) -> int: ...
    def mark_accessed(self, pfns: PFNs) -> None: ...


class Buffers:
    """Device files by disk, and all buffer heads. ``alloc(gfp, n)`` gives pages; ``kernel_data()`` marks what is held
    by the kernel's own structures; ``log(text)`` writes a limited kernel message of level error.

    Invariants: a page with PG_private of a file has the address of its buffer head in ``PageMap.private``. A page of a
    device's cache has one when its file system asked for it; what read(2) brought has none (``blkdev_readahead``).
    """

    def __init__(
        self,
        cache: PageCache,
        pages: PageMap,
        alloc: Callable[[int, int], PFNs],
        slab: Slab,
        kernel_data: Callable[[], AbstractContextManager[None]],
        reader: Callable[[], Reader],
        write_back: Callable[[Disk], BdiWriteback],
        log: Callable[[str], None],
    ) -> None:
        self._cache, self._pages, self._alloc, self._slab = cache, pages, alloc, slab
        self._kernel_data, self._reader, self._write_back, self._log = kernel_data, reader, write_back, log
        self.devices: dict[Disk, File] = {}
        self.heads = 0

    def device(self, disk: Disk) -> File:
        """The page cache of a disk (``bdev->bd_inode``)."""
        file = self.devices.get(disk)
        if file is None:
            ops = self._reader().ops
            number = len(self.devices) + 1
            file = self._cache.new_file(disk.path, number, BDEV_DEVICE, FileKind.DISK, ops, disk.size)
            file.wb = self._write_back(disk)
            self.devices[disk] = file
        return file

    @property
    def nr_blockdev_pages(self) -> int:
        """What meminfo calls Buffers."""
        return sum(file.nrpages for file in self.devices.values())

    # -- buffer heads ------------------------------------------------------------------------------------

    def create(self, pfns: PFNs) -> None:
        """Give pages their buffer heads, where they have none (``create_empty_buffers``). ENOMEM."""
        pfns = pfns[self._pages.flags[pfns] & _PRIVATE == 0]
        if not len(pfns):
            return
        with self._kernel_data(), self._cache.pin(pfns):
            found = self._slab.kmem_cache_alloc_bulk(self._slab.cache("buffer_head"), GFP_HEAD, len(pfns))
        pfns = pfns[: len(found)]
        self._pages.private[pfns] = np.asarray(found, dtype=np.uint64).view(np.int64)
        self._pages.flags[pfns] |= _PRIVATE
        self.heads += len(found)

    def free(self, pfns: PFNs) -> None:
        """Pages lose their buffer heads (``try_to_free_buffers``). Preconditions: they have them."""
        addresses = np.ascontiguousarray(self._pages.private[pfns]).view(np.uint64)
        self._pages.private[pfns] = 0
        self._pages.flags[pfns] &= ~_PRIVATE
        self.heads -= len(pfns)
        self._slab.kmem_cache_free_bulk(self._slab.cache("buffer_head"), addresses)

    # -- blocks ------------------------------------------------------------------------------------------

    def bread(self, disk: Disk, block: int) -> int:
        """The page of a block, read when the cache has it not (``__bread``). EIO, ENOMEM."""
        file = self.device(disk)
        pfn = self._cache.find_get_page(file, block)
        if pfn < 0 or not self._pages.flags[pfn] & _UPTODATE:
            self._reader().read_pages(file, block, block + 1, GFP_BUFFERS)
            pfn = self._cache.find_get_page(file, block)
            if pfn < 0:
                raise KernelError(errno.ENOMEM, f"no page for block {block} of {disk.path}")
            if not self._pages.flags[pfn] & _UPTODATE:
                self.create(np.array([pfn], dtype=np.int64))
                raise KernelError(errno.EIO, f"block {block} of {disk.path} cannot be read")
        self.create(np.array([pfn], dtype=np.int64))
        self._reader().mark_accessed(np.array([pfn], dtype=np.int64))
        return pfn

    def getblk(self, disk: Disk, block: int) -> int:
        """The page of a block that is about to be written as a whole (``sb_getblk``). ENOMEM."""
        file = self.device(disk)
        pfn = self._cache.find_get_page(file, block)
        if pfn >= 0:
            self.create(np.array([pfn], dtype=np.int64))
            return pfn
        found = self._alloc(GFP_BUFFERS, 1)
        if not len(found):
            raise KernelError(errno.ENOMEM, f"no page for block {block} of {disk.path}")
        self._cache.add_bulk(file, np.array([block], dtype=np.int64), found)
        self._pages.flags[found] |= _UPTODATE
        self.create(found)
        return int(found[0])

    def mark_dirty(self, disk: Disk, pfn: int) -> None:
        """A block was changed (``mark_buffer_dirty``)."""
        self._cache.set_dirty(self.device(disk), np.array([pfn], dtype=np.int64))

    def lost(self, file: File, blocks: range) -> None:
        """A disk could not take blocks (``end_buffer_async_write``); of other files' pages nothing is said here."""
        if file.device != BDEV_DEVICE:
            return
        for block in blocks:
            self._log(f"Buffer I/O error on dev {file.wb.disk.name}, logical block {block}, lost async page write")

    def read_failed(self, file: File, blocks: Indices) -> None:
        """A disk could not read blocks that somebody reads a device's page for (``end_buffer_async_read``)."""
        for block in blocks.tolist():
            self._log(f"Buffer I/O error on dev {file.wb.disk.name}, logical block {block}, async page read")

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Each page with PG_private has a head of its own, devices' dirty pages have one. AssertionError."""
        total = 0
        for file in self._cache.files.values():
            if file.is_shmem or not file.nrpages:
                continue
            _, pfns = self._cache.find_get_pages(file)
            held = pfns[self._pages.flags[pfns] & _PRIVATE != 0]
            addresses = self._pages.private[held]
            assert addresses.all(), f"{file.path}: a page has PG_private and no buffer head"
            assert len(np.unique(addresses)) == len(held), f"{file.path}: two pages have one buffer head"
            bare = pfns[self._pages.flags[pfns] & (_PRIVATE | _DIRTY) == _DIRTY]
            assert file.device != BDEV_DEVICE or not len(bare), f"{file.path}: a dirty page has no buffer head"
            total += len(held)
        assert total == self.heads, f"{total} pages have buffer heads, {self.heads} are in use"
