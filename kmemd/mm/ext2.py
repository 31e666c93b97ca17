"""Where an ext2 file system has what on its disk, and which of its own blocks it reads and writes (fs/ext2).

Models: block groups with their bitmaps and inode tables, runs of blocks that a file gets as it grows, pointer blocks
behind its first 12; all of that goes through the buffer cache. A plain layout: every group begins with a copy of the
super block and its descriptor; a file's pointer blocks stand behind the data that they were made with. Left out:
directories' own blocks, reservation windows, extended attributes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np

from kmemd.mm.blk_mq import Disk
from kmemd.mm.buffer import Buffers
from kmemd.mm.filemap import File, Indices

BLOCKS_PER_GROUP = 32768
INODES_PER_GROUP = 8192
INODES_PER_BLOCK = 16
SUPER, DESCRIPTOR, BLOCK_BITMAP, INODE_BITMAP, INODE_TABLE = range(5)
"""Blocks of a group."""
OVERHEAD = INODE_TABLE + INODES_PER_GROUP // INODES_PER_BLOCK
DATA_PER_GROUP = BLOCKS_PER_GROUP - OVERHEAD
DIRECT = 12
POINTERS = 1024
"""Block numbers in a block."""
ROOT_INODE = 2
USES = 3


@dataclass(slots=True)
class Runs:
    """Which of the file system's data blocks hold a file's, in order: where each run begins in the file, and there."""

    first: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    count: int = 0

    def append(self, start: int, blocks: int) -> None:
        """More blocks at the end."""
        if self.first and self.start[-1] + self.count - self.first[-1] == start:
            self.count += blocks
            return
        self.first.append(self.count)
        self.start.append(start)
        self.count += blocks

    def cut(self, count: int) -> list[tuple[int, int]]:
        """The file has so many only: the runs that it gives back."""
        gone: list[tuple[int, int]] = []
        while self.first and self.count > count:
            low = max(self.first[-1], count)
            gone.append((self.start[-1] + low - self.first[-1], self.count - low))
            self.count = low
            if low == self.first[-1]:
                self.first.pop()
                self.start.pop()
        return gone

    def at(self, index: int) -> int:
        """The data block of one of the file's."""
        run = bisect_right(self.first, index) - 1
        return self.start[run] + index - self.first[run]


@dataclass(slots=True)
class Blocks:
    """A file's blocks: its data, and those with the numbers of its data's blocks."""

    data: Runs = field(default_factory=Runs)
    pointers: Runs = field(default_factory=Runs)


def pointer_blocks(blocks: int) -> int:
    """Blocks of numbers that a file of so many blocks needs."""
    if blocks <= DIRECT:
        return 0
    leaves = -(-(blocks - DIRECT) // POINTERS)
    if leaves == 1:
        return 1
    middle = 1 if leaves - 1 <= POINTERS else 1 + -(-(leaves - 1 - POINTERS) // POINTERS) + 1
    return leaves + middle


class Ext2:
    """One mounted file system. Blocks of data are numbered on their own and then placed behind the groups' overhead.

    Invariants: no data block belongs to two files, or to a file and to ``free``.
    """

    def __init__(self, disk: Disk, buffers: Buffers) -> None:
        self.disk, self._buffers = disk, buffers
        self._next = 0
        self.free: list[tuple[int, int]] = []
        self.files: dict[File, Blocks] = {}

    def mounted(self) -> None:
        """The super block, the first group's descriptor and the root's inode are read (``ext2_fill_super``)."""
        for block in (SUPER, DESCRIPTOR):
            self._buffers.bread(self.disk, block)
        self.read_inode(ROOT_INODE)

    # -- places ------------------------------------------------------------------------------------------

    @staticmethod
    def place(data_block: int) -> int:
        """The block of the disk that is a data block."""
        group, inside = divmod(data_block, DATA_PER_GROUP)
        return group * BLOCKS_PER_GROUP + OVERHEAD + inside

    @staticmethod
    def inode_block(ino: int) -> int:
        """The block of the disk that an inode is in."""
        group, inside = divmod(ino - 1, INODES_PER_GROUP)
        return group * BLOCKS_PER_GROUP + INODE_TABLE + inside // INODES_PER_BLOCK

    def attach(self, file: File) -> None:
        """A file is on this disk."""
        self.files[file] = Blocks()
        file.blocks_at = lambda indices: self.blocks_at(file, indices)

    def blocks_at(self, file: File, indices: Indices) -> Indices:
        """The disk's blocks of a file's pages."""
        runs = self.files[file].data
        first, start = np.array(runs.first, dtype=np.int64), np.array(runs.start, dtype=np.int64)
        run = first.searchsorted(indices, "right") - 1
        data = start[run] + indices - first[run]
        group = data // DATA_PER_GROUP
        found: Indices = group * BLOCKS_PER_GROUP + OVERHEAD + data - group * DATA_PER_GROUP
        return found

    # -- blocks come and go ------------------------------------------------------------------------------

    def resize(self, file: File, blocks: int) -> list[tuple[int, int]]:
        """A file has so many blocks from now on: the runs of data blocks that it got, or gave back."""
        held = self.files[file]
        pointers = pointer_blocks(blocks)
        if blocks < held.data.count:
            gone = held.data.cut(blocks) + held.pointers.cut(pointers)
            self.free = sorted(self.free + gone)
            return gone
        got = self._allocate(held.data, blocks - held.data.count)
        return got + self._allocate(held.pointers, pointers - held.pointers.count)

    def _allocate(self, runs: Runs, blocks: int) -> list[tuple[int, int]]:
        """The lowest free blocks, then those that were never used."""
        got: list[tuple[int, int]] = []
        while blocks > 0 and self.free:
            start, count = self.free.pop(0)
            if count > blocks:
                self.free.insert(0, (start + blocks, count - blocks))
            got.append((start, min(count, blocks)))
            blocks -= got[-1][1]
        if blocks > 0:
            got.append((self._next, blocks))
            self._next += blocks
        for start, count in got:
            runs.append(start, count)
        return got

    # -- what is read and written of the file system itself ----------------------------------------------

    def allocated(self, runs: list[tuple[int, int]]) -> None:
        """Blocks came into use, or out of it: bitmaps and descriptors change. EIO, ENOMEM."""
        groups = {
            group
            for start, count in runs
            for group in range(start // DATA_PER_GROUP, (start + count - 1) // DATA_PER_GROUP + 1)
        }
        for group in sorted(groups):
            self._change(group * BLOCKS_PER_GROUP + BLOCK_BITMAP)
            self._change(group * BLOCKS_PER_GROUP + DESCRIPTOR)

    def _change(self, block: int) -> None:
        self._buffers.mark_dirty(self.disk, self._buffers.bread(self.disk, block))

    def map_blocks(self, file: File, first: int, end: int, fresh: int | None = None) -> None:
        """The pointer blocks for pages ``[first, end)`` are needed (``ext2_get_block``): from ``fresh`` on they are
        new ones. EIO, ENOMEM."""
        held = self.files[file].pointers
        old = pointer_blocks(fresh) if fresh is not None else held.count
        for number in self._needed(first, min(end, self.files[file].data.count)):
            block = self.place(held.at(number))
            if number >= old:
                self._buffers.mark_dirty(self.disk, self._buffers.getblk(self.disk, block))
            else:
                pfn = self._buffers.bread(self.disk, block)
                if fresh is not None and end > fresh:
                    self._buffers.mark_dirty(self.disk, pfn)

    @staticmethod
    def _needed(first: int, end: int) -> Iterable[int]:
        """Numbers of the pointer blocks on the way to pages: the leaf of each, and what is above it."""
        if end <= DIRECT:
            return ()
        low, high = (max(first, DIRECT) - DIRECT) // POINTERS, (end - 1 - DIRECT) // POINTERS
        leaves = {pointer_blocks(DIRECT + leaf * POINTERS + 1) - 1 for leaf in range(low, high + 1)}
        return sorted(leaves | ({1} if high else set()))

    def read_inode(self, ino: int) -> None:
        """An inode comes into memory (``ext2_iget``). EIO, ENOMEM."""
        self._buffers.bread(self.disk, self.inode_block(ino))

    def read_inodes(self, numbers: Sequence[int]) -> None:
        """Inodes come into memory, one after the other; those in one block are read with it. EIO, ENOMEM."""
        for block, group in groupby(numbers, self.inode_block):
            # a third use of a page says no more than a second one
            for _ in range(min(sum(1 for _ in group), USES)):
                self._buffers.bread(self.disk, block)

    def write_inode(self, ino: int) -> int:
        """An inode's fields go to its block, which is dirty then (``ext2_write_inode``). The block. EIO, ENOMEM."""
        block = self.inode_block(ino)
        self._change(block)
        return block

    def inode_changed(self, ino: int) -> None:
        """An inode came into use, or out of it: its group's bitmap and descriptor change. EIO, ENOMEM."""
        start = (ino - 1) // INODES_PER_GROUP * BLOCKS_PER_GROUP
        self._change(start + INODE_BITMAP)
        self._change(start + DESCRIPTOR)

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every data block has one owner, or none. AssertionError."""
        taken = list(self.free)
        for file, held in self.files.items():
            assert held.data.count == file.blocks, f"{file.path}: {held.data.count} blocks, not {file.blocks}"
            for runs in (held.data, held.pointers):
                ends = [*runs.first[1:], runs.count] if runs.first else []
                taken += [
                    (at, end - low) for at, low, end in zip(runs.start, runs.first, ends, strict=True) if end > low
                ]
        taken.sort()
        for (start, count), (after, _) in pairwise(taken):
            assert start + count <= after, f"{self.disk.path}: data block {after} belongs to two"
        assert sum(count for _, count in taken) == self._next, f"{self.disk.path}: blocks belong to nobody"
