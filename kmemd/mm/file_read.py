"""Many reads of single pages of a file (fs/read_write.c ``ksys_pread64``, mm/filemap.c), with the core's loop.

What pages in memory need, and pages that are missing and read alone, is core/filemap.py's: their frames come from the
free lists, without the allocator's slow path, so that nothing is woken and nothing reclaims in between. Everything
else is a read like any other: windows of readahead, pages that could not be read, memory that is short, a cgroup at its
limit, tmpfs. Both ways have the same effect. One difference shows: frames of one call have one time in page_owner.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.filemap import AGE, ANON_COST, FILE_COST, MOST, ONDEMAND, READAHEAD, SIMPLE, ReadLoop
from kmemd.core.lru import Lru
from kmemd.core.lru_lists import HITS, MISSES, POLICY, TWO_LIST
from kmemd.core.pages import PageMap
from kmemd.errors import KernelError
from kmemd.mm.blk_mq import REQ_RAHEAD, SECTORS_PER_PAGE
from kmemd.mm.ext2 import DIRECT, POINTERS, Ext2, pointer_blocks
from kmemd.mm.file_io import GFP_FILE, GFP_READAHEAD, DiskParts
from kmemd.mm.filemap import File, FileKind, Indices, PageCache, PFNs
from kmemd.mm.files import Files
from kmemd.mm.lruvec import ROOT_MEMCG, LruVecs
from kmemd.mm.mmzone import Zone
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat
from kmemd.mm.workingset import EVICTION_MASK, MEM_CGROUP_ID_SHIFT, NODES_SHIFT, WORKINGSET_SHIFT, Workingset
from kmemd.steps import Steps

NEVER = 1 << 62
MARGIN_NS = 1_000_000
"""More than what taking the pages of one call from the free lists costs."""
AT_ONCE = 1024
"""Pages that are read from the disk before others may run."""
LEAST = 64
"""Missing pages of one call at least, where fewer are free."""
NO_PAGES: PFNs = np.empty(0, dtype=np.int64)
COST, BATCH_COST = 100, 20
"""A read that takes the ordinary way counts as so many of the loop's pages, and so does a call of the loop."""
NODE_ITEMS = (
    *(stats.NR_FILE_PAGES, stats.NR_INACTIVE_ANON),
    *(stats.WORKINGSET_REFAULT_FILE, stats.WORKINGSET_ACTIVATE_FILE, stats.WORKINGSET_RESTORE_FILE),
)
SHIFTS = (NODES_SHIFT, MEM_CGROUP_ID_SHIFT, WORKINGSET_SHIFT, EVICTION_MASK)


class FreePages(Protocol):
    """Pages for a file as far as they are free and may be charged without reclaim."""

    def __call__(self, gfp: int, n: int) -> PFNs: ...


@dataclass(frozen=True)
class Machinery:
    """What the loop works on."""

    pages: PageMap
    context: Context
    zones: list[Zone]
    vmstat: VmStat
    lru: Lru
    lruvecs: LruVecs
    workingset: Workingset
    copy_ns: int


@dataclass(slots=True)
class _Pointers:
    """Where a file's blocks of pointers are, valid for one layout of the file."""

    layout: tuple[int, ...]
    leaves: Indices
    root: int


@dataclass(slots=True)
class Reads:
    """Reads that were done, the bytes that they gave, and those whose page the cache lacked. ``effort`` is what they
    took since others could run."""

    calls: int = 0
    bytes: int = 0
    missed: int = 0
    effort: int = 0


class FileReads:
    """``free_pages`` gives pages that are free at once; ``swap_left(memcg)`` the swap slots that are."""

    def __init__(
        self,
        machinery: Machinery,
        cache: PageCache,
        files: Files,
        parts: DiskParts,
        free_pages: FreePages,
        swap_left: Callable[[int], int],
    ) -> None:
        self._m, self._cache, self._files, self._parts = machinery, cache, files, parts
        self._free_pages, self._swap_left = free_pages, swap_left
        self._pointers: dict[int, _Pointers] = {}
        self._short, self._most, self._since = False, MOST, 0
        zones = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in machinery.zones]
        self._loop = ReadLoop(
            *(machinery.pages, machinery.context, zones, machinery.vmstat, machinery.lru, self),
            *(NODE_ITEMS, SHIFTS, machinery.copy_ns),
        )

    # -- what is asked for -----------------------------------------------------------------------------------

    def read_pages(self, file: File, indices: Indices, done: Reads) -> Steps[None]:
        """pread(2) of one page at each offset, in order; ``done`` adds up what came of it. ENOMEM, EIO."""
        indices = np.ascontiguousarray(indices, dtype=np.int64)
        most = int(indices.max()) if len(indices) else 0
        at = 0
        while at < len(indices):
            start, missed = at, done.missed
            if most < file.pages and file.kind is FileKind.DISK and file.blocks_at is not None:
                at += self._batch(file, indices, at, done)
            if at == start:
                self._read_one(file, int(indices[at]), done)
                at += 1
            done.effort += done.missed - missed + BATCH_COST
            if done.effort >= AT_ONCE:
                done.effort = 0
                yield

    def _read_one(self, file: File, index: int, done: Reads) -> None:
        """A read like any other."""
        found = file.slots.get(index) > 0
        done.effort += COST
        done.calls += 1
        done.missed += not found
        done.bytes += self._files.read(file, index << PAGE_SHIFT, PAGE_SIZE)

    # -- what the loop can do --------------------------------------------------------------------------------

    def _batch(self, file: File, indices: Indices, at: int, done: Reads) -> int:
        """Reads from ``indices[at]`` on, up to one that needs more. How many."""
        if file.wb.disk.bad[0] or self._m.vmstat.trace.any_on:
            return 0
        self._begin(file)
        if self._short and self._loop.next_alone(indices, at):
            return self._slow_path(file, indices, at, done)
        stop = self._loop.scan(indices, at, self._most, self._deadline())
        why = self._loop.why
        pfns = self._pages_for(0)
        if stop == at and why:
            self._loop.end()
            return 0 if why == READAHEAD else self._first_missing(file, indices, at, done)
        if self._loop.misses and not len(pfns) and self._loop.missing[0] == indices[at]:
            return self._slow_path(file, indices, at, done)
        return self._run(file, indices, at, stop, pfns, done)

    def _slow_path(self, file: File, indices: Indices, at: int, done: Reads) -> int:
        """The page at ``indices[at]`` is missing, and so are free pages: one comes by the allocator's slow path, in
        which kswapd catches up, and those that follow may find some free again. How many reads. ENOMEM, EIO."""
        io, loop = self._files.io, self._loop
        done.effort += COST
        self._take_state()
        loop.touch_place(int(indices[at]))
        self._give_state()
        loop.end()
        pfns = io.alloc(GFP_READAHEAD, 1)
        if not len(pfns):
            return self._without_page(file, int(indices[at]))
        self._begin(file)
        loop.mapped()
        stop = loop.scan(indices, at, self._most, self._deadline())
        if not loop.misses:
            return self._given_back(file, int(indices[at]), pfns)
        return self._run(file, indices, at, stop, self._pages_for(1, pfns), done)

    def _without_page(self, file: File, index: int) -> int:
        """There is no page for readahead; the read itself tries harder. ENOMEM, EIO."""
        if not self._files.io.read_pages(file, index, index + 1, GFP_FILE):
            raise KernelError(errno.ENOMEM, f"no page to read {file.path} into")
        return 0

    def _given_back(self, file: File, index: int, pfns: PFNs) -> int:
        """The loop cannot have the page that it needed any more: the ordinary way puts it in."""
        self._loop.end()
        self._files.io.put_in(file, np.array([index], dtype=np.int64), pfns, REQ_RAHEAD)
        return 0

    def _first_missing(self, file: File, indices: Indices, at: int, done: Reads) -> int:
        """The page at ``indices[at]`` is missing and is read alone, but its place must be read before. ENOMEM, EIO."""
        io, index = self._files.io, int(indices[at])
        done.effort += COST
        io.map_blocks(file, index, index + 1)
        pfns = io.alloc(GFP_READAHEAD, 1)
        if not len(pfns):
            return self._without_page(file, index)
        self._begin(file)
        self._loop.mapped()
        stop = self._loop.scan(indices, at, self._most, self._deadline())
        if not self._loop.misses:
            return self._given_back(file, index, pfns)
        return self._run(file, indices, at, stop, self._pages_for(1, pfns), done)

    def _run(self, file: File, indices: Indices, at: int, stop: int, pfns: PFNs, done: Reads) -> int:
        """The reads that were looked at, as far as there are pages. How many."""
        self._take_state()
        reads: int = self._loop.run(indices, at, stop, pfns) - at
        self._loop.end()
        self._give_state()
        self._account(file, reads)
        done.calls += reads
        done.bytes += self._loop.bytes
        done.missed += self._loop.done
        return reads

    def _pages_for(self, have: int, first: PFNs = NO_PAGES) -> PFNs:
        """Frames for the missing pages, of which ``have`` are there already; the places of those that get none are
        given back. How far the loop looks follows from how many there were."""
        loop, wanted = self._loop, self._loop.misses
        pfns = first
        try:
            if wanted > have:
                more = self._free_pages(GFP_READAHEAD, wanted - have)
                pfns = np.concatenate((first, more)) if have else np.ascontiguousarray(more)
        finally:
            loop.undo(len(pfns))
        self._short = len(pfns) < wanted
        self._since += len(pfns)
        if self._short:
            self._most = min(max(LEAST, self._since + self._since // 2), MOST)
            self._since = 0
        elif wanted == self._most:
            self._most = min(2 * self._most, MOST)
        return pfns

    def _begin(self, file: File) -> None:
        """Tell the loop of a file: its table, its blocks, its readahead, its disk."""
        loop, ra, disk = self._loop, file.ra, file.wb.disk
        file.slots.reserve(file.pages)
        pointers = self._pointers_of(file)
        blocks = self._parts.buffers.device(disk).slots.array
        loop.begin(file.id, file.size, file.slots.array, blocks, pointers.leaves, pointers.root)
        most = self._files.io.readahead.ra_pages(file)
        mode = SIMPLE if ra.random or not most else ONDEMAND
        loop.window(mode, bool(most), (ra.start + ra.size - ra.async_size, ra.start + ra.size), most)
        loop.clocks(disk.single_read_ns, disk.free_at, ra.prev_pos)
        foreign = bool(self._m.lru.words[POLICY] != TWO_LIST)
        loop.batches(self._m.context.cpu, foreign, self._swap_left(ROOT_MEMCG) > 0)

    def _deadline(self) -> int:
        """Before when the loop must be done: then something happens at a disk that may change what it sees."""
        event = self._parts.io.next_event
        return NEVER if event is None else event - MARGIN_NS

    def _pointers_of(self, file: File) -> _Pointers:
        fs: Ext2 = file.mount.fs
        held = fs.files[file].pointers
        layout = (file.pages, *held.first, *held.start)
        found = self._pointers.get(file.id)
        if found is None or found.layout != layout:
            count = max(0, -(-(file.pages - DIRECT) // POINTERS))
            leaves = [fs.place(held.at(pointer_blocks(DIRECT + leaf * POINTERS + 1) - 1)) for leaf in range(count)]
            root = fs.place(held.at(1)) if count > 1 else 0
            found = _Pointers(layout, np.array(leaves or [0], dtype=np.int64), root)
            self._pointers = {file.id: found}
        return found

    # -- books -----------------------------------------------------------------------------------------------

    def _take_state(self) -> None:
        """What workingset knows of the nodes, for the loop."""
        for nid, row in enumerate(self._loop.state):
            lruvec = self._m.lruvecs.get(ROOT_MEMCG, nid)
            row[AGE], row[ANON_COST], row[FILE_COST] = lruvec.nonresident_age, lruvec.anon_cost, lruvec.file_cost

    def _give_state(self) -> None:
        for nid, row in enumerate(self._loop.state.tolist()):
            lruvec = self._m.lruvecs.get(ROOT_MEMCG, nid)
            lruvec.nonresident_age, lruvec.anon_cost, lruvec.file_cost = row

    def _account(self, file: File, reads: int) -> None:
        """What the reads count besides."""
        loop, accounts = self._loop, self._parts.accounts
        self._m.lru.words[HITS] += reads - loop.done
        self._m.lru.words[MISSES] += loop.done
        file.ra.prev_pos = loop.prev_pos
        self._files.io.opened(file, accounts.opener)
        accounts.read(loop.bytes, reads)
        if not loop.done:
            return
        missing = loop.missing[: loop.done]
        file.nrpages += loop.done
        file.slots.end = max(file.slots.end, int(missing.max()) + 1)
        self._m.vmstat.count(stats.PGPGIN, SECTORS_PER_PAGE * loop.done)
        accounts.read_from_disk(loop.done)
        file.wb.disk.read_alone(loop.done, loop.waited_ns, loop.free_at)
        sleeps = loop.done
        for ns, thrashing in ((loop.waited_ns - loop.thrashing_ns, False), (loop.thrashing_ns, True)):
            if ns:
                self._m.workingset.thrashing = thrashing
                self._parts.io.slept(ns, sleeps)
                sleeps = 0
        if file.data:
            self._files.io.fill(file, missing)

    # -- what the loop asks ----------------------------------------------------------------------------------

    def touched(self, pfns: PFNs) -> None:
        """Pages were used, and another replacement policy than the two lists notes it."""
        self._files.io.mark_accessed(pfns)

    def activated(self, pfn: int) -> None:
        """A page that a cgroup is charged for became active."""
        self._in_python(lambda: self._cache.activated(np.array([pfn], dtype=np.int64)))

    def refault(self, pfn: int, shadow: int) -> None:
        """A page came back that a cgroup is, or was, charged for."""
        if self._cache.refault is not None:
            refault, one = self._cache.refault, np.array([pfn], dtype=np.int64)
            self._in_python(lambda: refault(one, np.array([shadow], dtype=np.int64)))

    def _in_python(self, function: Callable[[], None]) -> None:
        """Let workingset's own code do something in the midst of the loop."""
        self._give_state()
        function()
        self._take_state()
