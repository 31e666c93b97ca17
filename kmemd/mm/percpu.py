"""The per-CPU allocator (mm/percpu.c, mm/percpu-stats.c): ``Percpu:`` in /proc/meminfo, ``percpu_stats`` in debugfs.

Models: the first chunk, whose dynamic part follows the kernel's own per-CPU data; chunks behind it, whose pages come
from the page allocator on each CPU's node when areas need them or few empty ones are left; the lists of chunks by the
room that they have. Who allocates: slab caches, zones and nodes, memory cgroups. Left out: areas of drivers and of
other subsystems; allocations that may not sleep; taking pages from chunks that are in use; the ranges of addresses of
chunks that boot does not make.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL, F
from kmemd.mm.page_supply import PageSupply
from kmemd.mm.percpu_chunk import MIN_ALLOC, Chunk
from kmemd.mm.setup import PERCPU_PAGES
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SIZE

POPULATED_BY_BOOT = {"x86_64": 6, "i386": 3}
"""Pages per CPU of further chunks when boot is over, as on the captured machines."""
STATIC = {"x86_64": (169216, 8192), "i386": (90400, 0)}
"""Bytes of the kernel's own per-CPU data, and of what modules may have, as the captured boots say."""
EMPTY_LOW, EMPTY_HIGH = 2, 4
"""PCPU_EMPTY_POP_PAGES_LOW, _HIGH: with fewer empty pages than the first, there are to be as many as the second."""
PCP_HEADER = {True: 20, False: 18}
"""Bytes of struct per_cpu_pages in front of its lists, with and without NUMA; how many lists there are."""
NR_PCP_LISTS = 13
SLOT_BASE_SHIFT, SLOT_FAIL_THRESHOLD = 5, 3
ALLOC = ("pcpu_populate_chunk", "pcpu_alloc", "__alloc_percpu")
FRAMES = ("pcpu_populate_chunk", "pcpu_balance_workfn", "process_one_work", "worker_thread", "kthread")


@dataclass(frozen=True)
class Area:
    """Per-CPU data: the same bytes of each CPU's unit of a chunk."""

    chunk: Chunk
    offset: int


@dataclass(frozen=True)
class Units:
    """How chunks are laid out (``struct pcpu_alloc_info``), in bytes: one CPU's unit, what parts are aligned to, and
    the least that is allocated at once."""

    size: int
    atom: int
    alloc: int


class Percpu:
    """Per-CPU memory of one machine. ``nr_pages`` counts the pages of all CPUs.

    Invariants: ``slots`` has each chunk once, in the list for the room that it has or in list 0 after a vain search.
    """

    def __init__(
        self,
        arch: str,
        cpu_nodes: Sequence[int],
        units: Units,
        page_alloc: PageSupply,
        context: Context,
        depot: StackDepot,
    ) -> None:
        self._arch, self._nodes, self.units = arch, Counter(cpu_nodes), units
        self._cpus = len(cpu_nodes)
        self._page_alloc, self._context, self._depot = page_alloc, context, depot
        self.static_size, self.reserved_size = STATIC[arch]
        end = PERCPU_PAGES[arch] * PAGE_SIZE
        self.dyn_size = end - self.static_size - self.reserved_size
        self.reserved: Chunk | None = None
        if self.reserved_size:
            start = self.static_size % PAGE_SIZE
            self.reserved = Chunk(start, start + self.reserved_size, immutable=True)
        start = (self.static_size + self.reserved_size) % PAGE_SIZE
        self.first = Chunk(start, start + self.dyn_size, immutable=True)
        self.slots: dict[int, list[Chunk]] = {}
        self._slot_of: dict[Chunk, int] = {}
        self._frames: dict[Chunk, list[int]] = {}
        self.nr_pages = 0
        self.nr_alloc = self.nr_dealloc = self.nr_max_alloc = self.max_alloc_size = 0
        self.min_alloc_size = units.size
        self.nr_chunks = self.nr_max_chunks = 0
        self._relocate(self.first)
        self._count_chunk()

    def boot(self, taken: int | None = None) -> None:
        """The chunk that boot makes, with its pages; ``taken``: those of all CPUs, that a twin has already. ENOMEM."""
        pages = POPULATED_BY_BOOT[self._arch]
        if taken is not None:
            pages = max(0, taken // self._cpus - PERCPU_PAGES[self._arch])
        chunk = self._create(pages)
        if taken is None:
            self._take(chunk, pages, FRAMES)
        self.nr_pages = PERCPU_PAGES[self._arch] * self._cpus + pages * self._cpus if taken is None else taken

    def setup_pageset(self, zones: int, nodes: int, word: int, cache_line: int, *, numa: bool) -> None:
        """Lists and counters of zones with memory, and counters of nodes (``setup_per_cpu_pageset``). ENOMEM."""
        lists = PCP_HEADER[numa] + word - 1 & -word
        pages = lists + NR_PCP_LISTS * 2 * word + cache_line - 1 & -cache_line
        counters = stats.NR_VM_ZONE_STAT_ITEMS + 1
        if numa:
            counters = (counters + word - 1 & -word) + stats.NR_VM_NUMA_EVENT_ITEMS * word
        for _ in range(zones):
            self.alloc(counters, word if numa else 1)
            self.alloc(pages, cache_line)
        for _ in range(nodes):
            self.alloc(stats.NR_VM_NODE_STAT_ITEMS + 1, 1)

    # -- lists of chunks -------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[Chunk]:
        """All but the reserved one, those with least room first."""
        for slot in sorted(self.slots):
            yield from self.slots[slot]

    def _slot(self, size: int) -> int:
        """``pcpu_size_to_slot``; wholly free chunks have the last list to themselves."""
        if size == self.units.size:
            return self._slot(size - 1) + 3
        return max(size.bit_length() - SLOT_BASE_SHIFT + 2, 1)

    def _relocate(self, chunk: Chunk) -> None:
        """Move a chunk to the list for its room (``pcpu_chunk_relocate``)."""
        room = chunk.contig_bytes
        self._move(chunk, self._slot(room) if room else 0)

    def _move(self, chunk: Chunk, slot: int, *, front: bool = False) -> None:
        old = self._slot_of.get(chunk, -1)
        if slot == old:
            return
        if old >= 0:
            self.slots[old].remove(chunk)
        found = self.slots.setdefault(slot, [])
        found.insert(0 if front or old < slot else len(found), chunk)
        self._slot_of[chunk] = slot

    def _count_chunk(self) -> None:
        self.nr_chunks += 1
        self.nr_max_chunks = max(self.nr_max_chunks, self.nr_chunks)

    def _create(self, populated: int = 0) -> Chunk:
        chunk = Chunk(0, self.units.size, populated=populated)
        self._frames[chunk] = []
        self._relocate(chunk)
        self._count_chunk()
        return chunk

    # -- pages -----------------------------------------------------------------------------------------------

    @property
    def empty_populated(self) -> int:
        """Pages that are there and hold nothing, in all chunks but the reserved one (pcpu_nr_empty_pop_pages)."""
        return sum(len(chunk.empty_populated()) for chunk in self.chunks())

    def _take(self, chunk: Chunk, pages: int, frames: tuple[str, ...]) -> None:
        """Take pages for each CPU. ENOMEM."""
        site = self._depot.save(frames) if frames is FRAMES else self._depot.extend(self._context.site, frames)
        got: list[int] = []
        for nid, cpus in sorted(self._nodes.items()):
            self._context.stack = site
            found = self._page_alloc.alloc_pages_bulk(GFP_KERNEL | F.HIGHMEM, 0, cpus * pages, nid)
            got += found.tolist()
        if len(got) < self._cpus * pages:
            self._page_alloc.free_pages_bulk(np.array(got, dtype=np.int64))
            raise KernelError(errno.ENOMEM, f"no memory for {pages} per-CPU pages")
        self._frames[chunk] += got

    def _populate(self, chunk: Chunk, pages: Sequence[int], frames: tuple[str, ...]) -> None:
        """Pages of a chunk are there for each CPU. ENOMEM."""
        if pages:
            self._take(chunk, len(pages), frames)
            chunk.populated.update(pages)
            self.nr_pages += len(pages) * self._cpus

    def _balance(self) -> None:
        """A few pages are to be there in advance (``pcpu_balance_populated``); whoever lacks memory goes without."""
        wanted = EMPTY_HIGH - self.empty_populated
        if not self.nr_pages or wanted <= EMPTY_HIGH - EMPTY_LOW:
            return
        for chunk in list(self.chunks()):
            if self._slot_of[chunk] >= self._slot(PAGE_SIZE) and not chunk.immutable:
                missing = [page for page in range(chunk.pages) if not chunk.has(page)][:wanted]
                try:
                    self._populate(chunk, missing, FRAMES)
                except KernelError:
                    return
                wanted -= len(missing)

    # -- areas -----------------------------------------------------------------------------------------------

    def alloc(self, size: int, align: int) -> Area:
        """An area of ``size`` bytes for each CPU (``pcpu_alloc``). ENOMEM."""
        size, align = -(-size // MIN_ALLOC) * MIN_ALLOC, max(align, MIN_ALLOC)
        area = self._find(size, align)
        if area is None:
            self._create()
            area = self._find(size, align)
        if area is None:
            raise KernelError(errno.ENOMEM, f"a chunk of {self.units.size} bytes has no room for {size}")
        try:
            self._populate(area.chunk, area.chunk.missing(area.offset, size), ALLOC)
        except KernelError:
            area.chunk.free(area.offset)
            self._relocate(area.chunk)
            raise
        self.nr_alloc += 1
        self.nr_max_alloc = max(self.nr_max_alloc, self.nr_alloc - self.nr_dealloc)
        self.min_alloc_size = min(self.min_alloc_size, size)
        self.max_alloc_size = max(self.max_alloc_size, size)
        self._balance()
        return area

    def _find(self, size: int, align: int) -> Area | None:
        """A place in the chunk with the least room that will do."""
        for slot in sorted(slot for slot in self.slots if slot >= self._slot(size)):
            for chunk in list(self.slots[slot]):
                offset = chunk.alloc(size, align)
                if offset >= 0:
                    self._relocate(chunk)
                    return Area(chunk, offset)
                if slot < SLOT_FAIL_THRESHOLD:
                    self._move(chunk, 0, front=True)
        return None

    def free(self, area: Area) -> None:
        """Give an area back (``free_percpu``). Of chunks that are wholly free one stays (``pcpu_balance_free``)."""
        area.chunk.free(area.offset)
        self.nr_dealloc += 1
        self._relocate(area.chunk)
        for chunk in self.slots.get(self._slot(self.units.size), [])[1:]:
            self._destroy(chunk)

    def _destroy(self, chunk: Chunk) -> None:
        self.slots[self._slot_of.pop(chunk)].remove(chunk)
        frames = self._frames.pop(chunk)
        self._page_alloc.free_pages_bulk(np.array(frames, dtype=np.int64))
        self.nr_pages -= len(frames)
        self.nr_chunks -= 1

    def check(self) -> None:
        """Areas are in their chunks, chunks in their lists, and pages are counted."""
        for chunk in self.chunks():
            chunk.check()
            slot = self._slot(chunk.contig_bytes) if chunk.contig_bytes else 0
            assert self._slot_of[chunk] in (slot, 0)
        assert sum(len(chunk.areas) for chunk in self.chunks()) == self.nr_alloc - self.nr_dealloc
        assert self.nr_chunks == sum(1 for _ in self.chunks())
