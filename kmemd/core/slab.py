"""SLUB's loops: objects taken and given back, and slabs that come and go with them (mm/slub.c).

Models the per-cpu slab with its two free lists, the per-cpu partial list and the per-node lists, and takes
objects and slabs in exactly the order in which Linux takes them; ``shuffle`` stands for SLAB_FREELIST_RANDOM. A page
that is needed, or is given back, is the caller's business: ``alloc`` returns short, ``discarded`` fills.

Left out: pfmemalloc slabs, the RCU grace period before the pages of a SLAB_TYPESAFE_BY_RCU cache go back,
cmpxchg retries (nothing runs between two operations here).

Invariants: a slab is the slab of one CPU, on one CPU's partial list, on its node's partial list (then it has
free objects and is not frozen), on its node's full list (debugged caches only), or full and on no list.
``inuse`` counts what is not on the slab's own free list; objects on a CPU's free list count as in use.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
import numpy.typing as npt
from cython import Py_ssize_t as Int

from kmemd.core import slab_layout as layout
from kmemd.core.context import NOW
from kmemd.core.pages import PG_SLAB
from kmemd.core.slab_table import SlabTable

_SIZE = cython.declare(cython.int, layout.SIZE)
_START = cython.declare(cython.int, layout.START)
_CPU_PARTIAL_SLABS = cython.declare(cython.int, layout.CPU_PARTIAL_SLABS)
_MIN_PARTIAL = cython.declare(cython.int, layout.MIN_PARTIAL)
_DEBUG = cython.declare(cython.int, layout.DEBUG)
_STAT_ITEM = cython.declare(cython.int, layout.STAT_ITEM)
_DEFRAG_RATIO = cython.declare(cython.int, layout.DEFRAG_RATIO)
_SLAB = cython.declare(cython.int, layout.SLAB)
_FREE = cython.declare(cython.int, layout.FREE)
_PARTIAL = cython.declare(cython.int, layout.PARTIAL)
_HEAD = cython.declare(cython.int, layout.HEAD)
_NR_PARTIAL = cython.declare(cython.int, layout.NR_PARTIAL)
_NR_SLABS = cython.declare(cython.int, layout.NR_SLABS)
_NR_OBJECTS = cython.declare(cython.int, layout.NR_OBJECTS)
_PFN = cython.declare(cython.int, layout.PFN)
_CACHE = cython.declare(cython.int, layout.CACHE)
_NEXT = cython.declare(cython.int, layout.NEXT)
_PREV = cython.declare(cython.int, layout.PREV)
_SLABS = cython.declare(cython.int, layout.SLABS)
_ARENA = cython.declare(cython.int, layout.ARENA)
_FREELIST = cython.declare(cython.int, layout.FREELIST)
_INUSE = cython.declare(cython.int, layout.INUSE)
_OBJECTS = cython.declare(cython.int, layout.OBJECTS)
_META = cython.declare(cython.int, layout.META)
_FROZEN = cython.declare(cython.int, layout.FROZEN)
_LINKED = cython.declare(cython.int, layout.LINKED)
_ROW_CACHE = cython.declare(cython.int, layout.CACHE_COLUMNS)
_ROW_CPU = cython.declare(cython.int, layout.CPU_COLUMNS)
_ROW_NODE = cython.declare(cython.int, layout.NODE_COLUMNS)
_ROW_SLAB = cython.declare(cython.int, layout.SLAB_COLUMNS)
_ALLOC_FASTPATH = cython.declare(cython.int, 0)
_ALLOC_SLOWPATH = cython.declare(cython.int, 1)
_FREE_FASTPATH = cython.declare(cython.int, 2)
_FREE_SLOWPATH = cython.declare(cython.int, 3)
_FREE_FROZEN = cython.declare(cython.int, 4)
_FREE_ADD_PARTIAL = cython.declare(cython.int, 5)
_FREE_REMOVE_PARTIAL = cython.declare(cython.int, 6)
_ALLOC_FROM_PARTIAL = cython.declare(cython.int, 7)
_ALLOC_SLAB = cython.declare(cython.int, 8)
_ALLOC_REFILL = cython.declare(cython.int, 9)
_ALLOC_NODE_MISMATCH = cython.declare(cython.int, 10)
_FREE_SLAB = cython.declare(cython.int, 11)
_CPUSLAB_FLUSH = cython.declare(cython.int, 12)
_DEACTIVATE_FULL = cython.declare(cython.int, 13)
_DEACTIVATE_EMPTY = cython.declare(cython.int, 14)
_DEACTIVATE_TO_HEAD = cython.declare(cython.int, 15)
_DEACTIVATE_TO_TAIL = cython.declare(cython.int, 16)
_DEACTIVATE_REMOTE_FREES = cython.declare(cython.int, 17)
_DEACTIVATE_BYPASS = cython.declare(cython.int, 18)
_ORDER_FALLBACK = cython.declare(cython.int, 19)
_CPU_PARTIAL_ALLOC = cython.declare(cython.int, 22)
_CPU_PARTIAL_FREE = cython.declare(cython.int, 23)
_CPU_PARTIAL_NODE = cython.declare(cython.int, 24)
_CPU_PARTIAL_DRAIN = cython.declare(cython.int, 25)
_STATS = cython.declare(cython.int, 26)
_CLOCK = cython.declare(cython.int, NOW)
_SLAB_BIT = cython.declare(cython.uint, 1 << PG_SLAB)
_NOT_SLAB = cython.declare(cython.uint, 0xFFFFFFFF ^ 1 << PG_SLAB)
_GONE = cython.declare(cython.int, -(1 << 30))
_CYCLES = cython.declare(cython.int, 1024)


@cython.final
@cython.cclass
class SlabCore(SlabTable):
    """The slabs of one machine; the arguments are those of ``SlabTable``."""

    # -- slabs and their pages ---------------------------------------------------------------------------------

    @cython.cfunc
    def _make_slab(self, cache: Int, pfn: Int, order: Int) -> Int:
        """A slab from a page block: ``allocate_slab`` after its page, and ``inc_slabs_node``."""
        objects: Int = (4096 << order) // self._cache[cache * _ROW_CACHE + _SIZE]
        slab: Int = self._new_number(objects)
        row: Int = slab * _ROW_SLAB
        nid: Int = self._nid_of(pfn)
        self._slab[row + _PFN] = pfn
        self._slab[row + _CACHE] = cache
        self._slab[row + _NEXT] = 0
        self._slab[row + _PREV] = 0
        self._slab[row + _SLABS] = 0
        self._slab[row + _FREELIST] = 0
        self._slab[row + _INUSE] = 0
        self._slab[row + _OBJECTS] = objects
        self._slab[row + _META] = nid << 16 | order << 8
        page: Int
        for page in range(pfn, pfn + (1 << order)):
            self._mapping[page] = slab
        self._flags[pfn] |= _SLAB_BIT
        self._node_stat[nid, self._cache[cache * _ROW_CACHE + _STAT_ITEM]] += 1 << order
        node: Int = self._node_row(slab)
        self._node[node + _NR_SLABS] += 1
        self._node[node + _NR_OBJECTS] += objects
        if self.shuffle is not None and objects > 1:
            self._set_chain(slab, self.shuffle(cache, objects))
        return slab

    def _set_chain(self, slab: Int, chain: Any) -> None:
        """The free list of a slab: objects by number, in order (``shuffle_freelist``)."""
        row: Int = slab * _ROW_SLAB
        self._slab[row + _FREELIST] = chain[0] if len(chain) else self._slab[row + _OBJECTS]
        for at, index in enumerate(chain):
            self._push(slab, index, chain[at + 1] if at + 1 < len(chain) else self._slab[row + _OBJECTS])

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _push(self, slab: Int, index: Int, after: Int) -> cython.void:
        """``set_freepointer``: the object after ``index`` in its free list is ``after``."""
        row: Int = slab * _ROW_SLAB
        self._link[self._slab[row + _ARENA] * 8 + index] = (after - index - 1) & 0xFFFF
        self._slab[row + _META] |= _LINKED

    @cython.cfunc
    def _discard(self, slab: Int) -> cython.void:
        """Give a slab's pages up (``discard_slab``): they wait in ``discarded`` as ``pfn << 4 | order``."""
        row: Int = slab * _ROW_SLAB
        node: Int = self._node_row(slab)
        objects: Int = self._slab[row + _OBJECTS]
        meta: Int = self._slab[row + _META]
        order: Int = meta >> 8 & 0xFF
        pfn: Int = self._slab[row + _PFN]
        self._node[node + _NR_SLABS] -= 1
        self._node[node + _NR_OBJECTS] -= objects
        cache: Int = self._slab[row + _CACHE]
        self._node_stat[meta >> 16, self._cache[cache * _ROW_CACHE + _STAT_ITEM]] -= 1 << order
        page: Int
        for page in range(pfn, pfn + (1 << order)):
            self._mapping[page] = 0
        self._flags[pfn] &= _NOT_SLAB
        at: Int = self._slab[row + _ARENA] * 8
        link: Int
        if meta & _LINKED:
            for link in range(at, at + objects):
                self._link[link] = 0
        self._slab[row + _META] = 0
        self._slab[row + _PFN] = _GONE
        self._slab[row + _NEXT] = self._spare[objects]
        self._spare[objects] = slab
        self.discarded.append(pfn << 4 | order)

    # -- CPUs' slabs -------------------------------------------------------------------------------------------

    @cython.cfunc
    def _put_cpu_partial(self, slab: Int, cpu: Int, drain: cython.bint) -> cython.void:
        row: Int = slab * _ROW_SLAB
        cache: Int = self._slab[row + _CACHE]
        at: Int = (cache * self.ncpus + cpu) * _ROW_CPU + _PARTIAL
        old: Int = self._cpu[at]
        unfreeze: Int = 0
        slabs: Int = 0
        if old:
            slabs = self._slab[old * _ROW_SLAB + _SLABS]
            if drain and slabs >= self._cache[cache * _ROW_CACHE + _CPU_PARTIAL_SLABS]:
                unfreeze = old
                old = 0
                slabs = 0
        self._slab[row + _SLABS] = slabs + 1
        self._slab[row + _NEXT] = old
        self._cpu[at] = slab
        if unfreeze:
            self._unfreeze_partials(unfreeze, cpu)
            self._stat(cache, cpu, _CPU_PARTIAL_DRAIN)

    @cython.cfunc
    def _unfreeze_partials(self, slab: Int, cpu: Int) -> cython.void:
        """Move a CPU's partial list to the nodes' lists (``__unfreeze_partials``)."""
        discard: Int = 0
        cache: Int = self._slab[slab * _ROW_SLAB + _CACHE]
        while slab:
            row: Int = slab * _ROW_SLAB
            after: Int = self._slab[row + _NEXT]
            self._slab[row + _META] &= ~_FROZEN
            if self._slab[row + _INUSE] == 0 and self._too_many(slab):
                self._slab[row + _NEXT] = discard
                discard = slab
            else:
                self._add_partial(slab, True)
                self._stat(cache, cpu, _FREE_ADD_PARTIAL)
            slab = after
        while discard:
            slab = discard
            discard = self._slab[slab * _ROW_SLAB + _NEXT]
            self._stat(cache, cpu, _DEACTIVATE_EMPTY)
            self._discard(slab)
            self._stat(cache, cpu, _FREE_SLAB)

    @cython.cfunc
    def _deactivate(self, slab: Int, head: Int, cpu: Int) -> cython.void:
        """Take a slab from its CPU, whose free list begins at ``head`` (``deactivate_slab``)."""
        row: Int = slab * _ROW_SLAB
        cache: Int = self._slab[row + _CACHE]
        objects: Int = self._slab[row + _OBJECTS]
        at: Int = self._slab[row + _ARENA] * 8
        tail: cython.bint = self._slab[row + _FREELIST] < objects
        if tail:
            self._stat(cache, cpu, _DEACTIVATE_REMOTE_FREES)
        count: Int = 0
        last: Int = objects
        current: Int = head
        while current < objects:
            last = current
            count += 1
            current = (current + 1 + self._link[at + current]) & 0xFFFF
        if count:
            self._link[at + last] = (self._slab[row + _FREELIST] - last - 1) & 0xFFFF
            self._slab[row + _FREELIST] = head
            self._slab[row + _INUSE] -= count
            self._slab[row + _META] |= _LINKED
        self._slab[row + _META] &= ~_FROZEN
        if self._slab[row + _INUSE] == 0 and self._too_many(slab):
            self._stat(cache, cpu, _DEACTIVATE_EMPTY)
            self._discard(slab)
            self._stat(cache, cpu, _FREE_SLAB)
        elif self._slab[row + _FREELIST] < objects:
            self._add_partial(slab, tail)
            self._stat(cache, cpu, _DEACTIVATE_TO_TAIL if tail else _DEACTIVATE_TO_HEAD)
        else:
            self._add_full(slab)
            self._stat(cache, cpu, _DEACTIVATE_FULL)

    @cython.cfunc
    def _load(self, slab: Int, at: Int) -> Int:
        """Make a frozen slab the CPU's, with its whole free list (``acquire_slab``, ``retry_load_slab``)."""
        row: Int = slab * _ROW_SLAB
        objects: Int = self._slab[row + _OBJECTS]
        self._cpu[at + _SLAB] = slab
        self._cpu[at + _FREE] = self._slab[row + _FREELIST]
        self._slab[row + _FREELIST] = objects
        self._slab[row + _INUSE] = objects
        return slab

    # -- allocation --------------------------------------------------------------------------------------------

    @cython.cfunc
    def _get_partial_node(self, cache: Int, nid: Int, cpu: Int) -> Int:
        """Take a slab off a node's partial list, and more of them onto the CPU's (``get_partial_node``)."""
        node: Int = (cache * self.nnodes + nid) * _ROW_NODE
        settings: Int = cache * _ROW_CACHE
        slab: Int = self._node[node + _HEAD]
        found: Int = 0
        extra: Int = 0
        while slab:
            row: Int = slab * _ROW_SLAB
            after: Int = self._slab[row + _NEXT]
            self._remove_partial(slab)
            self._slab[row + _META] |= _FROZEN
            if not found:
                found = slab
                self._stat(cache, cpu, _ALLOC_FROM_PARTIAL)
            else:
                self._put_cpu_partial(slab, cpu, False)
                self._stat(cache, cpu, _CPU_PARTIAL_NODE)
                extra += 1
            if extra > self._cache[settings + _CPU_PARTIAL_SLABS] // 2:
                break
            slab = after
        return found

    @cython.cfunc
    def _search(self, cache: Int, cpu: Int, node: Int, zone: Int) -> Int:
        """The node whose partial list serves a request (``get_partial``), or -1.

        Other nodes count when they keep more than ``min_partial`` slabs, and unless the cycle counter,
        which is model time here, says that this is one of the few requests that stay local.
        """
        local: Int = self._cpu_node[cpu] if node < 0 else node
        at: Int = cache * self.nnodes
        if self._node[(at + local) * _ROW_NODE + _NR_PARTIAL]:
            return local
        ratio: Int = self._cache[cache * _ROW_CACHE + _DEFRAG_RATIO]
        if node >= 0 or not ratio or self._words[_CLOCK] % _CYCLES > ratio:
            return -1
        order: Int = (zone * self.nnodes + local) * (self.nnodes + 1)
        while self._order[order] >= 0:
            nid: Int = self._order[order]
            if self._node[(at + nid) * _ROW_NODE + _NR_PARTIAL] > self._cache[cache * _ROW_CACHE + _MIN_PARTIAL]:
                return nid
            order += 1
        return -1

    @cython.cfunc
    def _slow(self, cache: Int, cpu: Int, node: Int, zone: Int) -> Int:
        """``___slab_alloc`` up to ``load_freelist``: the CPU's slab with its list loaded, 0: needs a page."""
        at: Int = (cache * self.ncpus + cpu) * _ROW_CPU
        slab: Int = self._cpu[at + _SLAB]
        if node >= 0 and not self._slab_node[node]:
            node = -1
        while True:
            if slab:
                row: Int = slab * _ROW_SLAB
                objects: Int = self._slab[row + _OBJECTS]
                if node >= 0 and self._slab[row + _META] >> 16 != node:
                    self._stat(cache, cpu, _ALLOC_NODE_MISMATCH)
                    self._cpu[at + _SLAB] = 0
                    self._deactivate(slab, self._cpu[at + _FREE], cpu)
                elif self._cpu[at + _FREE] < objects:
                    return slab
                elif self._slab[row + _FREELIST] < objects:
                    self._cpu[at + _FREE] = self._slab[row + _FREELIST]
                    self._slab[row + _FREELIST] = objects
                    self._slab[row + _INUSE] = objects
                    self._stat(cache, cpu, _ALLOC_REFILL)
                    return slab
                else:
                    self._slab[row + _META] &= ~_FROZEN
                    self._cpu[at + _SLAB] = 0
                    self._stat(cache, cpu, _DEACTIVATE_BYPASS)
            slab = self._cpu[at + _PARTIAL]
            if not slab:
                break
            row = slab * _ROW_SLAB
            self._cpu[at + _PARTIAL] = self._slab[row + _NEXT]
            self._cpu[at + _SLAB] = slab
            self._cpu[at + _FREE] = self._slab[row + _OBJECTS]
            self._stat(cache, cpu, _CPU_PARTIAL_ALLOC)
        nid: Int = self._search(cache, cpu, node, zone)
        if nid < 0:
            return 0
        return self._load(self._get_partial_node(cache, nid, cpu), at)

    @cython.cfunc
    def _take(self, at: Int, out: cython.ulonglong[::1], done: Int, want: Int) -> Int:
        """Pop the CPU's free list into ``out[done:want]``; the new ``done``."""
        slab: Int = self._cpu[at + _SLAB]
        row: Int = slab * _ROW_SLAB
        settings: Int = self._slab[row + _CACHE] * _ROW_CACHE
        size: cython.ulonglong = cython.cast(cython.ulonglong, self._cache[settings + _SIZE])
        base: cython.ulonglong = (
            self._page_offset
            + (cython.cast(cython.ulonglong, self._slab[row + _PFN]) << 12)
            + cython.cast(cython.ulonglong, self._cache[settings + _START])
        )
        arena: Int = self._slab[row + _ARENA]
        objects: Int = self._slab[row + _OBJECTS]
        head: Int = self._cpu[at + _FREE]
        while done < want and head < objects:
            out[done] = base + size * cython.cast(cython.ulonglong, head)
            self._used[arena + (head >> 3)] |= 1 << (head & 7)
            head = (head + 1 + self._link[arena * 8 + head]) & 0xFFFF
            done += 1
        self._cpu[at + _FREE] = head
        return done

    def alloc(
        self, cache: Int, cpu: Int, node: Int, zone: Int, out: cython.ulonglong[::1], done: Int, want: Int
    ) -> Int:
        """Fill ``out[done:want]`` with objects, as that many calls of ``slab_alloc_node``; the new ``done``.

        ``node`` is -1 for any; ``zone`` the highest zone type that the request may use. Short of ``want``,
        a page is needed: the slow path has been counted and has found nothing, call ``feed`` next.
        """
        at: Int = (cache * self.ncpus + cpu) * _ROW_CPU
        fast: Int = (cache * self.ncpus + cpu) * _STATS
        if self._cache[cache * _ROW_CACHE + _DEBUG]:
            return self._alloc_debug(cache, cpu, node, zone, out, done, want)
        while done < want:
            slab: Int = self._cpu[at + _SLAB]
            ready: cython.bint = False
            if slab:
                row: Int = slab * _ROW_SLAB
                ready = self._cpu[at + _FREE] < self._slab[row + _OBJECTS]
                ready = ready and (node < 0 or self._slab[row + _META] >> 16 == node)
            if not ready:
                self._stat(cache, cpu, _ALLOC_SLOWPATH)
                if not self._slow(cache, cpu, node, zone):
                    return done
                done = self._take(at, out, done, done + 1)
                continue
            before: Int = done
            done = self._take(at, out, done, want)
            self._stats[fast + _ALLOC_FASTPATH] += cython.cast(cython.uint, done - before)
        return done

    def feed(
        self,
        cache: Int,
        cpu: Int,
        node: Int,
        zone: Int,
        out: cython.ulonglong[::1],
        done: Int,
        want: Int,
        pfn: Int,
        order: Int,
        fallback: cython.bint,
    ) -> Int:
        """Go on from a short ``alloc`` with a new page block; ``fallback``: it is of the minimum order."""
        at: Int = (cache * self.ncpus + cpu) * _ROW_CPU
        if fallback:
            self._stat(cache, cpu, _ORDER_FALLBACK)
        slab: Int = self._make_slab(cache, pfn, order)
        self._stat(cache, cpu, _ALLOC_SLAB)
        if self._cache[cache * _ROW_CACHE + _DEBUG]:
            self._add_partial(slab, False)
            done = self._take_debug(slab, out, done)
        else:
            self._slab[slab * _ROW_SLAB + _META] |= _FROZEN
            self._load(slab, at)
            done = self._take(at, out, done, done + 1)
        return self.alloc(cache, cpu, node, zone, out, done, want)

    @cython.cfunc
    def _take_debug(self, slab: Int, out: cython.ulonglong[::1], done: Int) -> Int:
        """One object of a slab on the partial list (``alloc_single_from_partial``, ``..._from_new_slab``)."""
        row: Int = slab * _ROW_SLAB
        settings: Int = self._slab[row + _CACHE] * _ROW_CACHE
        head: Int = self._slab[row + _FREELIST]
        arena: Int = self._slab[row + _ARENA]
        self._slab[row + _FREELIST] = (head + 1 + self._link[arena * 8 + head]) & 0xFFFF
        self._slab[row + _INUSE] += 1
        self._used[arena + (head >> 3)] |= 1 << (head & 7)
        out[done] = (
            self._page_offset
            + (cython.cast(cython.ulonglong, self._slab[row + _PFN]) << 12)
            + cython.cast(cython.ulonglong, self._cache[settings + _START] + self._cache[settings + _SIZE] * head)
        )
        if self._slab[row + _INUSE] == self._slab[row + _OBJECTS]:
            self._remove_partial(slab)
            self._add_full(slab)
        return done + 1

    @cython.cfunc
    def _alloc_debug(
        self, cache: Int, cpu: Int, node: Int, zone: Int, out: cython.ulonglong[::1], done: Int, want: Int
    ) -> Int:
        """A debugged cache has no CPU slabs: every request goes to a node's partial list."""
        if node >= 0 and not self._slab_node[node]:
            node = -1
        while done < want:
            self._stat(cache, cpu, _ALLOC_SLOWPATH)
            nid: Int = self._search(cache, cpu, node, zone)
            if nid < 0:
                break
            row: Int = (cache * self.nnodes + nid) * _ROW_NODE
            done = self._take_debug(self._node[row + _HEAD], out, done)
        return done

    def next_debug(self, cache: Int, cpu: Int, node: Int, zone: Int) -> int:
        """The slab that serves the next object of a debugged cache, 0: a new one."""
        if node >= 0 and not self._slab_node[node]:
            node = -1
        nid: Int = self._search(cache, cpu, node, zone)
        return 0 if nid < 0 else int(self._node[(cache * self.nnodes + nid) * _ROW_NODE + _HEAD])

    # -- freeing -----------------------------------------------------------------------------------------------

    def free(self, cpu: Int, addresses: cython.ulonglong[::1], done: Int, end: Int, cache: Int) -> Int:
        """Free ``addresses[done:end]``, each as ``slab_free`` does; the new ``done``.

        Short of ``end``, the next address is no allocated object of ``cache`` (of any cache when it is -1).
        """
        while done < end:
            offset: Int = cython.cast(cython.ulonglong, addresses[done]) - self._page_offset
            pfn: Int = offset >> 12
            if pfn < 0 or pfn >= self._max_pfn:
                break
            slab: Int = self._mapping[pfn]
            if slab <= 0 or slab >= self.nslabs:
                break
            row: Int = slab * _ROW_SLAB
            first: Int = self._slab[row + _PFN]
            if pfn < first or pfn >= first + (1 << (self._slab[row + _META] >> 8 & 0xFF)):
                break
            owner: Int = self._slab[row + _CACHE]
            offset -= (first << 12) + self._cache[owner * _ROW_CACHE + _START]
            size: cython.uint = self._cache[owner * _ROW_CACHE + _SIZE]
            if offset < 0 or (cache >= 0 and cache != owner):
                break
            index: Int = cython.cast(cython.uint, offset) // size
            if index * size != offset or index >= self._slab[row + _OBJECTS]:
                break
            bit: Int = self._slab[row + _ARENA] + (index >> 3)
            if not self._used[bit] & 1 << (index & 7):
                break
            self._used[bit] &= ~(1 << (index & 7)) & 0xFF
            at: Int = (owner * self.ncpus + cpu) * _ROW_CPU
            if self._cpu[at + _SLAB] == slab:
                self._push(slab, index, self._cpu[at + _FREE])
                self._cpu[at + _FREE] = index
                self._stat(owner, cpu, _FREE_FASTPATH)
            else:
                self._free_slow(slab, index, cpu)
            done += 1
        return done

    @cython.cfunc
    def _free_slow(self, slab: Int, index: Int, cpu: Int) -> Int:
        """``__slab_free`` of one object, and ``free_to_partial_list`` for a debugged cache."""
        row: Int = slab * _ROW_SLAB
        cache: Int = self._slab[row + _CACHE]
        prior: Int = self._slab[row + _FREELIST]
        was_full: cython.bint = prior == self._slab[row + _OBJECTS]
        self._stat(cache, cpu, _FREE_SLOWPATH)
        self._push(slab, index, prior)
        self._slab[row + _FREELIST] = index
        self._slab[row + _INUSE] -= 1
        if self._slab[row + _META] & _FROZEN:
            self._stat(cache, cpu, _FREE_FROZEN)
            return 0
        if was_full and not self._cache[cache * _ROW_CACHE + _DEBUG]:
            self._slab[row + _META] |= _FROZEN
            self._put_cpu_partial(slab, cpu, True)
            self._stat(cache, cpu, _CPU_PARTIAL_FREE)
            return 0
        empty: cython.bint = self._slab[row + _INUSE] == 0 and self._too_many(slab)
        if was_full:
            self._remove_full(slab)
            if not empty:
                self._add_partial(slab, True)
                self._stat(cache, cpu, _FREE_ADD_PARTIAL)
        elif empty:
            self._remove_partial(slab)
            self._stat(cache, cpu, _FREE_REMOVE_PARTIAL)
        if empty:
            self._stat(cache, cpu, _FREE_SLAB)
            self._discard(slab)
        return 0

    # -- what happens rarely -----------------------------------------------------------------------------------

    def flush(self, cache: int, cpu: int) -> None:
        """Take a CPU's slab and partial list from it (``flush_cpu_slab``)."""
        at = (cache * self.ncpus + cpu) * _ROW_CPU
        slab = self._cpu[at + _SLAB]
        if slab:
            self._cpu[at + _SLAB] = 0
            self._deactivate(slab, self._cpu[at + _FREE], cpu)
            self._stat(cache, cpu, _CPUSLAB_FLUSH)
        slab = self._cpu[at + _PARTIAL]
        if slab:
            self._cpu[at + _PARTIAL] = 0
            self._unfreeze_partials(slab, cpu)

    def boot_slab(self, cache: int, pfn: int, order: int, out: npt.NDArray[np.uint64]) -> None:
        """A first slab with one object taken, on the partial list (``early_kmem_cache_node_alloc``)."""
        slab = self._make_slab(cache, pfn, order)
        self._add_partial(slab, False)
        self._take_debug(slab, out, 0)

    def cut(self, slab: Int, chain: Any) -> None:
        """Keep only ``chain`` of a slab's free objects: the others count as used for good, and nobody has them.

        A slab that keeps none leaves its node's partial list and is frozen (``alloc_debug_processing``).
        """
        row: Int = slab * _ROW_SLAB
        arena: Int = self._slab[row + _ARENA]
        objects: Int = self._slab[row + _OBJECTS]
        if not len(chain):
            self._remove_partial(slab)
            self._slab[row + _META] |= _FROZEN
        self._set_chain(slab, chain)
        self._slab[row + _INUSE] = objects - len(chain)
        kept = set(chain)
        for index in range(objects):
            if index not in kept:
                self._used[arena + (index >> 3)] |= 1 << (index & 7)

    def discard(self, slab: int) -> None:
        """Give up an empty slab that is on no list."""
        self._discard(slab)
