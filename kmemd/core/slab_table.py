"""SLUB's caches and slabs as rows of arrays, and the lists that slabs are on (include/linux/slub_def.h, mm/slab.h).

All caches of one machine live in one table: structures of arrays over caches, (cache, CPU) pairs, (cache, node) pairs
and slabs, laid out as core/slab_layout.py says.

An object is its index in the slab; the index ``objects`` ends a free list. ``_link[arena + i]`` holds
``next(i) - (i + 1)`` modulo 2**16, so that zero-filled memory is the sequential free list of a fresh slab.
``_used`` has one bit per object, set while it is allocated. Slabs are numbered from 1; 0 is none.
A number that was given back is used again by a slab with as many objects, and keeps its place in the arenas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cython
import numpy as np
import numpy.typing as npt
from cython import Py_ssize_t as Int

from kmemd.core import slab_layout as layout
from kmemd.core.array_view import view
from kmemd.core.pages import PageMap, lazy_zeros

# Room that is reserved for the slabs and objects of a machine, so that none has to wait for a copy; see ``lazy_zeros``.
_OBJECTS_PER_PAGE, _MOST_SLABS, _MOST_OBJECTS = 64, 1 << 24, 1 << 30

_MIN_PARTIAL = cython.declare(cython.int, layout.MIN_PARTIAL)
_STORE_USER = cython.declare(cython.int, layout.STORE_USER)
_HEAD = cython.declare(cython.int, layout.HEAD)
_FULL = cython.declare(cython.int, layout.FULL)
_NR_PARTIAL = cython.declare(cython.int, layout.NR_PARTIAL)
_CACHE = cython.declare(cython.int, layout.CACHE)
_NEXT = cython.declare(cython.int, layout.NEXT)
_PREV = cython.declare(cython.int, layout.PREV)
_ARENA = cython.declare(cython.int, layout.ARENA)
_INUSE = cython.declare(cython.int, layout.INUSE)
_OBJECTS = cython.declare(cython.int, layout.OBJECTS)
_META = cython.declare(cython.int, layout.META)
_LINKED = cython.declare(cython.int, layout.LINKED)
_ROW_CACHE = cython.declare(cython.int, layout.CACHE_COLUMNS)
_ROW_CPU = cython.declare(cython.int, layout.CPU_COLUMNS)
_ROW_NODE = cython.declare(cython.int, layout.NODE_COLUMNS)
_ROW_SLAB = cython.declare(cython.int, layout.SLAB_COLUMNS)
_STATS = cython.declare(cython.int, 26)


@cython.cclass
class SlabTable:
    """The slabs of one machine.

    ``cpu_node[cpu]`` is the node a CPU allocates from (``numa_mem_id``); ``slab_nodes`` are the nodes with
    normal memory; ``node_order[zone][nid]`` lists the nodes that have a zone up to ``zone``, nearest first;
    ``spans`` are ``(start PFN, end PFN, nid)``; ``node_stat[nid, item]`` counts slab pages. ``words`` is the
    executing context. ``page_offset`` is the virtual address of PFN 0.

    ``arrays`` are the arrays themselves by name (core/slab_layout.py), for readers. ``shuffle(cache, objects)`` gives
    the order of a fresh slab's objects, None: one after the other.
    """

    def __init__(
        self,
        pages: PageMap,
        node_stat: npt.NDArray[np.int64],
        words: npt.NDArray[np.int64],
        page_offset: int,
        cpu_node: Sequence[int],
        slab_nodes: Sequence[int],
        node_order: Sequence[Sequence[Sequence[int]]],
        spans: Sequence[tuple[int, int, int]],
    ) -> None:
        self._page_offset = page_offset
        self._max_pfn = pages.max_pfn
        self._mapping = view(pages.mapping)
        self._flags = view(pages.flags)
        self._node_stat = view(node_stat)
        self._words = view(words)
        self.ncpus = len(cpu_node)
        self.nnodes = node_stat.shape[0]
        self._cpu_node = view(np.array(cpu_node, dtype=np.int32))
        allowed = np.zeros(self.nnodes, dtype=np.uint8)
        allowed[list(slab_nodes)] = 1
        self._slab_node = view(allowed)
        self._set_order(node_order)
        self._nspans = len(spans)
        self._spans = view(np.array(spans, dtype=np.int64).reshape(-1))
        self._spare = view(np.zeros(1 << 15, dtype=np.int32))
        self.discarded: list[int] = []
        self.arrays: dict[str, Any] = {}
        self.shuffle: Any = None
        self.ncaches = 0
        self.nslabs = 1
        self._arena_used = 0
        self._grow_caches(256)
        self._grow_slabs(min(max(pages.max_pfn, 512), _MOST_SLABS))
        self._grow_arena(min(max(pages.max_pfn * _OBJECTS_PER_PAGE, 1 << 16), _MOST_OBJECTS))

    def _set_order(self, node_order: Sequence[Sequence[Sequence[int]]]) -> None:
        """Nodes by distance as one table: a row for each (zone, node), ended by -1."""
        self._zones = len(node_order)
        table = np.full((len(node_order), self.nnodes, self.nnodes + 1), -1, dtype=np.int32)
        for zone, rows in enumerate(node_order):
            for nid, row in enumerate(rows):
                table[zone, nid, : len(row)] = row
        self._order = view(table.reshape(-1))

    # -- room for more -----------------------------------------------------------------------------------------

    def _larger(self, name: str, kind: Any, room: int, used: int) -> Any:
        old = self.arrays.get(name)
        new = lazy_zeros(room, np.dtype(kind).name)
        if old is not None:
            new[:used] = old[:used]
        self.arrays[name] = new
        return view(new)

    def _grow_caches(self, room: int) -> None:
        used = self.ncaches
        self._cache = self._larger("cache", np.int64, room * _ROW_CACHE, used * _ROW_CACHE)
        cpus = self.ncpus
        self._cpu = self._larger("cpu", np.int32, room * cpus * _ROW_CPU, used * cpus * _ROW_CPU)
        self._stats = self._larger("stats", np.uint32, room * cpus * _STATS, used * cpus * _STATS)
        nodes = self.nnodes
        self._node = self._larger("node", np.int64, room * nodes * _ROW_NODE, used * nodes * _ROW_NODE)
        self._cache_room = room

    def _grow_slabs(self, room: int) -> None:
        self._slab = self._larger("slab", np.int32, room * _ROW_SLAB, self.nslabs * _ROW_SLAB)
        self._slab_room = room

    def _grow_arena(self, room: int) -> None:
        """Enlarge the arenas to ``room`` objects, copying only the links that were written."""
        old: Any = self.arrays.get("link")
        links = lazy_zeros(room, "uint16")
        for slab in range(1, self.nslabs):
            row = slab * _ROW_SLAB
            if self._slab[row + _META] & _LINKED:
                start = self._slab[row + _ARENA] * 8
                end = start + self._slab[row + _OBJECTS]
                links[start:end] = old[start:end]
        self.arrays["link"] = links
        self._link = view(links)
        self._used = self._larger("used", np.uint8, room // 8, self._arena_used // 8)
        self._arena_room = room

    # -- caches ------------------------------------------------------------------------------------------------

    def add_cache(self) -> int:
        """Make room for a cache; its number. All its fields are zero."""
        if self.ncaches == self._cache_room:
            self._grow_caches(self._cache_room * 2)
        self.ncaches += 1
        return self.ncaches - 1

    def reset_cache(self, cache: int) -> None:
        """Zero a cache's rows, so that its number can be used again."""
        cpus, nodes = self.ncpus, self.nnodes
        for name, width in (
            ("cache", _ROW_CACHE),
            ("cpu", cpus * _ROW_CPU),
            ("stats", cpus * _STATS),
            ("node", nodes * _ROW_NODE),
        ):
            self.arrays[name][cache * width : (cache + 1) * width] = 0

    def configure(
        self,
        cache: int,
        size: int,
        start: int,
        cpu_partial_slabs: int,
        min_partial: int,
        debug: bool,
        store_user: bool,
        stat_item: int,
        defrag_ratio: int,
    ) -> None:
        """Set a cache's constants: bytes from object to object, bytes before the first, limits and flags."""
        fields = (size, start, cpu_partial_slabs, min_partial, debug, store_user, stat_item, defrag_ratio)
        for field, value in enumerate(fields):
            self._cache[cache * _ROW_CACHE + field] = int(value)

    # -- lists and counters ------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _stat(self, cache: Int, cpu: Int, item: Int) -> cython.void:
        self._stats[(cache * self.ncpus + cpu) * _STATS + item] += 1

    @cython.final
    @cython.cfunc
    @cython.inline
    def _node_row(self, slab: Int) -> Int:
        """The row of the (cache, node) that a slab belongs to."""
        row: Int = slab * _ROW_SLAB
        nid: Int = self._slab[row + _META] >> 16
        return (self._slab[row + _CACHE] * self.nnodes + nid) * _ROW_NODE

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _link_slab(self, head: Int, slab: Int, tail: cython.bint) -> cython.void:
        """Put a slab on the list whose head is ``_node[head]``."""
        row: Int = slab * _ROW_SLAB
        end: Int = head + 1 if tail else head
        other: Int = self._node[end]
        self._slab[row + _NEXT] = 0 if tail else other
        self._slab[row + _PREV] = other if tail else 0
        self._node[end] = slab
        if other == 0:
            self._node[head if tail else head + 1] = slab
        elif tail:
            self._slab[other * _ROW_SLAB + _NEXT] = slab
        else:
            self._slab[other * _ROW_SLAB + _PREV] = slab

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _unlink_slab(self, head: Int, slab: Int) -> cython.void:
        row: Int = slab * _ROW_SLAB
        after: Int = self._slab[row + _NEXT]
        before: Int = self._slab[row + _PREV]
        if before:
            self._slab[before * _ROW_SLAB + _NEXT] = after
        else:
            self._node[head] = after
        if after:
            self._slab[after * _ROW_SLAB + _PREV] = before
        else:
            self._node[head + 1] = before

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_partial(self, slab: Int, tail: cython.bint) -> cython.void:
        node: Int = self._node_row(slab)
        self._node[node + _NR_PARTIAL] += 1
        self._link_slab(node + _HEAD, slab, tail)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _remove_partial(self, slab: Int) -> cython.void:
        node: Int = self._node_row(slab)
        self._unlink_slab(node + _HEAD, slab)
        self._node[node + _NR_PARTIAL] -= 1

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_full(self, slab: Int) -> cython.void:
        if self._cache[self._slab[slab * _ROW_SLAB + _CACHE] * _ROW_CACHE + _STORE_USER]:
            self._link_slab(self._node_row(slab) + _FULL, slab, False)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _remove_full(self, slab: Int) -> cython.void:
        if self._cache[self._slab[slab * _ROW_SLAB + _CACHE] * _ROW_CACHE + _STORE_USER]:
            self._unlink_slab(self._node_row(slab) + _FULL, slab)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _too_many(self, slab: Int) -> cython.bint:
        """Whether an empty slab's node keeps enough partial slabs without it (``nr_partial >= min_partial``)."""
        cache: Int = self._slab[slab * _ROW_SLAB + _CACHE]
        return self._node[self._node_row(slab) + _NR_PARTIAL] >= self._cache[cache * _ROW_CACHE + _MIN_PARTIAL]

    def take_partial(self, slab: int) -> None:
        """Take a slab off its node's partial list."""
        self._remove_partial(slab)

    def put_partial(self, slab: int) -> None:
        """Put a slab at the end of its node's partial list."""
        self._add_partial(slab, True)

    def count_partial(self, cache: Int, nid: Int) -> tuple[int, int]:
        """Objects in use and objects in all on a node's partial list."""
        slab: Int = self._node[(cache * self.nnodes + nid) * _ROW_NODE + _HEAD]
        inuse: Int = 0
        total: Int = 0
        while slab:
            inuse += self._slab[slab * _ROW_SLAB + _INUSE]
            total += self._slab[slab * _ROW_SLAB + _OBJECTS]
            slab = self._slab[slab * _ROW_SLAB + _NEXT]
        return inuse, total

    # -- pages -------------------------------------------------------------------------------------------------

    def nid_of(self, pfn: int) -> int:
        """The node of a page frame."""
        return self._nid_of(pfn)

    @cython.final
    @cython.cfunc
    def _nid_of(self, pfn: Int) -> Int:
        at: Int
        for at in range(self._nspans):
            if self._spans[at * 3] <= pfn < self._spans[at * 3 + 1]:
                return self._spans[at * 3 + 2]
        return 0

    def _new_number(self, objects: int) -> int:
        """A number for a slab of ``objects`` objects, with zeroed places in the arenas."""
        slab = self._spare[objects]
        if slab:
            self._spare[objects] = self._slab[slab * _ROW_SLAB + _NEXT]
            return slab
        if self.nslabs == self._slab_room:
            self._grow_slabs(self._slab_room * 2)
        need = (objects + 7) // 8 * 8
        if self._arena_used + need > self._arena_room:
            self._grow_arena(self._arena_room * 2)
        slab = self.nslabs
        self.nslabs += 1
        self._slab[slab * _ROW_SLAB + _ARENA] = self._arena_used // 8
        self._arena_used += need
        return slab
