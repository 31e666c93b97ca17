"""Reads of single pages of a file, many in one call (mm/filemap.c ``filemap_read``, mm/swap.c), and dropping pages.

Models: the look-up of a page by its offset, its second use, and pages that are missing and will be read alone:
standalone random reads, where readahead has nothing to add. ``scan`` goes as far as neither readahead nor the
allocator's slow path has a say, and reserves the places of the pages that are missing; the caller gets that many pages
at once; ``run`` does the reads in their order. What a read needs besides is left to mm/filemap.py and its neighbours.

Pages go to the LRU batches exactly when they would one by one: the loop collects what fits into a batch, and hands it
over at the moment at which the batch is drained.

Invariants: between ``scan`` and the end of ``run`` or ``undo`` nobody else looks at the file's slots.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.lru import ACTIVATE, ADD, PAGEVEC_SIZE
from kmemd.core.page_arrays import PageArrays

MOST = 1024
"""Missing pages of one call."""
DIRECT, POINTERS_SHIFT = 12, 10
"""A file's first pages need no block of pointers; each such block has the places of 1024 pages."""
SIMPLE, ONDEMAND = 0, 1
"""How readahead sees a missing page: it is read alone, or that depends on what was read before."""

READAHEAD, UNMAPPED = 1, 2
"""Why ``scan`` stopped: readahead has a say, or a block with the place of a missing page is not at hand; 0: neither."""
_DIRECT = cython.declare(cython.longlong, 12)
_POINTERS_SHIFT = cython.declare(cython.int, 10)
_SIZE = cython.declare(cython.int, 15)
_PENDING = cython.declare(cython.longlong, 1 << 62)
_AHEAD = cython.declare(cython.Py_ssize_t, 32)

_NOW = cython.declare(cython.int, 0)
_REFERENCED = cython.declare(cython.uint, 1 << 1)
_IDLE = cython.declare(cython.uint, 1 << 29)
_UPTODATE = cython.declare(cython.uint, 1 << 2)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_WORKINGSET = cython.declare(cython.uint, 1 << 6)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_READAHEAD = cython.declare(cython.uint, 1 << 18)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)

# what keeps a page of a file from being dropped: locked, dirty, in a slab, private, under write-back, huge, in swap or
# swap-backed, unevictable, mlocked
_BUSY = cython.declare(
    cython.uint, 0x1 | 1 << 3 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 19 | 1 << 20 | 1 << 21
)

# huge, unevictable, mlocked: what becomes of such a page is not for its flags alone to say
_ASKED = cython.declare(cython.uint, 1 << 16 | 1 << 20 | 1 << 21)

# columns of ``state``: what workingset knows of the root's lruvec of a node
AGE, ANON_COST, FILE_COST = range(3)
_AGE = cython.declare(cython.int, 0)
_ANON_COST = cython.declare(cython.int, 1)
_FILE_COST = cython.declare(cython.int, 2)


@cython.final
@cython.cclass
class ReadLoop(PageArrays):
    """Reads of one file at a time. ``zones`` rows are ``(nid, start_pfn, end_pfn)``, numbered as the counters' rows.

    ``host`` does what the loop leaves: ``touched(pfns)`` when another replacement policy marks pages,
    ``activated(pfn)`` and ``refault(pfn, shadow)`` of pages that a memory cgroup is charged for. ``items`` are the node
    counters NR_FILE_PAGES, NR_INACTIVE_ANON (the first of the lists), and WORKINGSET_{REFAULT, ACTIVATE, RESTORE}_FILE;
    ``shifts`` how a shadow is packed: bits of the node, of the cgroup, of the flag, and the mask of the age.

    ``why`` says why ``scan`` stopped, ``misses`` are the pages that it found missing, ``done`` those that ``run`` put
    in; ``waited_ns`` is how long they were waited for, ``thrashing_ns`` what of that was for pages of the workingset,
    ``free_at`` when the disk has done them.
    """

    why = cython.declare(cython.int, visibility="public")
    misses = cython.declare(cython.int, visibility="public")
    done = cython.declare(cython.int, visibility="public")
    waited_ns = cython.declare(cython.longlong, visibility="public")
    thrashing_ns = cython.declare(cython.longlong, visibility="public")
    free_at = cython.declare(cython.longlong, visibility="public")
    prev_pos = cython.declare(cython.longlong, visibility="public")
    bytes = cython.declare(cython.longlong, visibility="public")
    state = cython.declare(object, visibility="public")
    missing = cython.declare(object, visibility="public")

    _ctx: cython.longlong[::1]
    _state: cython.longlong[:, ::1]
    _missing: cython.longlong[::1]
    _old: cython.longlong[::1]
    _add: cython.longlong[::1]
    _activate: cython.longlong[::1]
    _touched: cython.longlong[::1]
    _no: cython.longlong[::1]
    _slots: cython.longlong[::1]
    _blocks: cython.longlong[::1]
    _leaves: cython.longlong[::1]
    _lru: Any
    _host: Any
    _adds: cython.int
    _activates: cython.int
    _touches: cython.int
    _add_room: cython.int
    _activate_room: cython.int
    _file: cython.int
    _root: cython.longlong
    _size: cython.longlong
    _mode: cython.int
    _marks: cython.bint
    _foreign: cython.bint
    _swap_left: cython.bint
    _mapped: cython.bint
    _next: cython.longlong
    _after: cython.longlong
    _window: cython.longlong
    _loaded: cython.longlong
    _read_ns: cython.longlong
    _copy_ns: cython.longlong
    _items: cython.longlong[::1]
    _flag_bits: cython.int
    _nid_bits: cython.int
    _memcg_bits: cython.int
    _age_mask: cython.longlong

    def __init__(
        self,
        pages: Any,
        context: Any,
        zones: Any,
        vmstat: Any,
        lru: Any,
        host: Any,
        items: Any,
        shifts: Any,
        copy_ns: Any,
    ) -> None:
        super().__init__(pages, zones, vmstat)
        self._ctx = view(context.words)
        self.state = np.zeros((vmstat.node_stat.shape[0], 3), dtype=np.int64)
        self.missing = np.zeros(MOST, dtype=np.int64)
        self._state, self._missing = view(self.state), view(self.missing)
        self._old, self._touched = (view(np.zeros(n, dtype=np.int64)) for n in (MOST, 1024))
        self._add, self._activate = (view(np.zeros(PAGEVEC_SIZE, dtype=np.int64)) for _ in range(2))
        self._no = view(np.zeros(1, dtype=np.int64))
        self._slots = self._blocks = self._leaves = self._no
        self._lru, self._host = lru, host
        self._items = view(np.array(items, dtype=np.int64))
        self._nid_bits, self._memcg_bits, self._flag_bits, self._age_mask = shifts
        self._copy_ns = copy_ns
        self._adds = self._activates = self._touches = 0
        self._loaded = 0
        self.why = self.misses = self.done = 0
        self.waited_ns = self.thrashing_ns = self.free_at = self.bytes = 0
        self.prev_pos = -1

    # -- a file ----------------------------------------------------------------------------------------------

    def begin(
        self, file: cython.int, size: cython.longlong, slots: Any, blocks: Any, leaves: Any, root: cython.longlong
    ) -> None:
        """Read a file of ``size`` bytes. ``slots`` is its table, ``blocks`` that of its disk; the pointers to page
        ``n`` are in block ``leaves[(n - 12) >> 10]`` of the disk, and ``root`` says where the later ones of these are.
        """
        self._file, self._size, self._root = file, size, root
        self._slots, self._blocks, self._leaves = view(slots), view(blocks), view(leaves)
        self._mapped = False

    def window(self, mode: cython.int, marks: cython.bint, expected: Any, most: cython.longlong) -> None:
        """What readahead would do: ``marks`` of pages begin a window, and so does a page that is ``expected``, when the
        mode is ONDEMAND; ``most`` are the pages of the largest window.
        """
        self._mode, self._marks, self._window = mode, marks, most
        self._next, self._after = expected

    def mapped(self) -> None:
        """The place of the first missing page was looked up already."""
        self._mapped = True

    def clocks(self, read_ns: cython.longlong, free_at: cython.longlong, prev_pos: cython.longlong) -> None:
        """A page takes ``read_ns`` to read, by a disk that is busy until ``free_at``; the last read ended at
        ``prev_pos``.
        """
        self._read_ns, self.free_at, self.prev_pos = read_ns, free_at, prev_pos
        self.waited_ns = self.thrashing_ns = self.bytes = 0

    def batches(self, cpu: cython.int, foreign: cython.bint, swap_left: cython.bint) -> None:
        """How full the CPU's batches are. ``foreign``: another policy marks pages; ``swap_left``: pages of memory
        compete with those of files.
        """
        self._add_room = _SIZE - len(self._lru.pending(cpu, ADD))
        self._activate_room = _SIZE - len(self._lru.pending(cpu, ACTIVATE))
        self._foreign, self._swap_left = foreign, swap_left

    def end(self) -> None:
        """The file's table is somebody else's again; what was collected goes to the batches."""
        self._flush_touched()
        self._flush_adds()
        self._flush_activates()
        self._slots = self._blocks = self._leaves = self._no

    # -- looking ahead -----------------------------------------------------------------------------------------

    def scan(
        self, indices: cython.longlong[::1], start: cython.Py_ssize_t, most: cython.int, deadline: cython.longlong
    ) -> int:
        """How far reads from ``indices[start]`` on need no more than ``most`` pages, which are read alone before
        ``deadline``. The places of the missing ones are reserved.
        """
        i: cython.Py_ssize_t = start
        n: cython.Py_ssize_t = indices.shape[0]
        index: cython.longlong
        entry: cython.longlong
        flags: cython.uint
        now: cython.longlong = self._ctx[_NOW]
        free: cython.longlong = self.free_at
        prev_pos: cython.longlong = self.prev_pos
        ahead: cython.Py_ssize_t = start
        self.misses = self.why = 0
        while i < n:
            if i == ahead:
                ahead = min(i + _AHEAD, n)
                self._load(indices, i, ahead)
            index = indices[i]
            entry = self._slots[index]
            if entry <= 0:
                free = max(now, free) + self._read_ns
                if self.misses >= most:
                    break
                if free >= deadline or not self._alone(index, prev_pos >> 12):
                    self.why = 1
                    break
                if not self._has_place(index):
                    self.why = 2
                    break
                now = free
                self._missing[self.misses] = index
                self._old[self.misses] = entry
                self._slots[index] = _PENDING | self.misses
                self.misses += 1
            elif entry < _PENDING:
                flags = self._flags[entry - 1]
                if not flags & _UPTODATE or (self._marks and flags & (_READAHEAD | _WRITEBACK) == _READAHEAD):
                    self.why = 1
                    break
            now += self._copy_ns
            prev_pos = min((index + 1) << 12, self._size)
            i += 1
        return i

    def next_alone(self, indices: cython.longlong[::1], at: cython.Py_ssize_t) -> bool:
        """Whether the page of the next read is missing and is read alone, with its place at hand."""
        index: cython.longlong = indices[at]
        return self._slots[index] <= 0 and self._alone(index, self.prev_pos >> 12) and self._has_place(index)

    def touch_place(self, index: cython.longlong) -> None:
        """The place of a missing page is looked up."""
        self._use_place(index)
        self._flush_touched()
        self._flush_activates()

    @cython.cfunc
    def _use_place(self, index: cython.longlong) -> object:
        if index >= _DIRECT:
            if (index - _DIRECT) >> _POINTERS_SHIFT:
                self._mark_accessed(self._blocks[self._root] - 1)
            self._mark_accessed(self._blocks[self._leaves[(index - _DIRECT) >> _POINTERS_SHIFT]] - 1)
        return None

    @cython.cfunc
    @cython.exceptval(check=False)
    def _load(self, indices: cython.longlong[::1], start: cython.Py_ssize_t, stop: cython.Py_ssize_t) -> cython.void:
        """Have the processor fetch what some reads look at together, instead of one after the other."""
        i: cython.Py_ssize_t
        entry: cython.longlong
        entries: cython.longlong = 0
        flags: cython.uint = 0
        for i in range(start, stop):
            entries |= self._slots[indices[i]]
        for i in range(start, stop):
            entry = self._slots[indices[i]]
            flags |= self._flags[entry - 1 if 0 < entry < _PENDING else 0]
        self._loaded = entries | flags

    @cython.cfunc
    @cython.exceptval(check=False)
    def _alone(self, index: cython.longlong, before: cython.longlong) -> cython.bint:
        """Whether a missing page is read without readahead."""
        if self._mode != 0:
            if index == 0 or index == self._next or index == self._after or 0 <= index - before <= 1:
                return False
            if index > 1 and self._window > 1 and self._slots[index - 1] > 0 and self._slots[index - 2] > 0:
                return False
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _has_place(self, index: cython.longlong) -> cython.bint:
        """Whether the blocks with the place of a page are at hand."""
        block: cython.longlong
        if index >= _DIRECT:
            block = (index - _DIRECT) >> _POINTERS_SHIFT
            if block and not self._at_hand(self._root):
                return False
            return self._at_hand(self._leaves[block])
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _at_hand(self, block: cython.longlong) -> cython.bint:
        entry: cython.longlong = self._blocks[block] if block < self._blocks.shape[0] else 0
        return entry > 0 and self._flags[entry - 1] & _UPTODATE != 0

    def undo(self, first: cython.int) -> None:
        """Give back the places from the ``first`` missing page on."""
        k: cython.int
        for k in range(first, self.misses):
            self._slots[self._missing[k]] = self._old[k]

    # -- reading -----------------------------------------------------------------------------------------------

    def run(
        self,
        indices: cython.longlong[::1],
        start: cython.Py_ssize_t,
        stop: cython.Py_ssize_t,
        pfns: cython.longlong[::1],
    ) -> int:
        """Do the reads that ``scan`` looked at, with pages for those that are missing, in their order. How far it got.

        Preconditions: ``undo`` has given back the places for which there is no page; it ends at the first of them.
        """
        i: cython.Py_ssize_t = start
        index: cython.longlong
        entry: cython.longlong
        self.done = 0
        while i < stop:
            index = indices[i]
            entry = self._slots[index]
            if entry >= _PENDING:
                entry ^= _PENDING
                self._read(index, pfns[entry], self._old[entry])
                entry = pfns[entry] + 1
            elif entry <= 0:
                break
            if index != (self.prev_pos - 1) >> 12:
                self._mark_accessed(entry - 1)
            self.bytes += min((index + 1) << 12, self._size) - (index << 12)
            self.prev_pos = min((index + 1) << 12, self._size)
            self._ctx[_NOW] += self._copy_ns
            i += 1
        return i

    @cython.cfunc
    def _read(self, index: cython.longlong, pfn: cython.longlong, shadow: cython.longlong) -> object:
        """A missing page gets its frame and is waited for."""
        start: cython.longlong
        if not self._mapped:
            self._use_place(index)
        self._mapped = False
        self._slots[index] = pfn + 1
        self._mapping[pfn] = -self._file
        self._index[pfn] = index
        self._node_stat[self._nid_of(pfn), self._items[0]] += 1
        if shadow < 0:
            self._refault(pfn, shadow)
        self._add[self._adds] = pfn
        self._adds += 1
        if self._adds == self._add_room:
            self._flush_adds()
        start = self._ctx[_NOW]
        self.free_at = max(start, self.free_at) + self._read_ns
        self.waited_ns += self.free_at - start
        if self._flags[pfn] & _WORKINGSET:
            self.thrashing_ns += self.free_at - start
        self._ctx[_NOW] = self.free_at
        self._flags[pfn] |= _UPTODATE
        self.done += 1
        return None

    @cython.cfunc
    def _mark_accessed(self, pfn: cython.longlong) -> object:
        """The second use of a page makes it active (folio_mark_accessed)."""
        flags: cython.uint = self._flags[pfn]
        if flags & _IDLE:
            flags &= ~_IDLE
            self._flags[pfn] = flags
        if self._foreign:
            self._touched[self._touches] = pfn
            self._touches += 1
            if self._touches == 1024:
                self._flush_touched()
        elif not flags & _REFERENCED:
            self._flags[pfn] = flags | _REFERENCED
        elif not flags & (_ACTIVE | _UNEVICTABLE):
            self._flags[pfn] = flags & ~_REFERENCED
            if flags & _LRU:
                self._activate[self._activates] = pfn
                self._activates += 1
                if self._activates == self._activate_room:
                    self._flush_activates()
            else:
                self._flags[pfn] |= _ACTIVE
            if self._memcg[pfn]:
                self._host.activated(pfn)
            else:
                self._state[self._nid_of(pfn), _AGE] += 1
        return None

    @cython.cfunc
    def _refault(self, pfn: cython.longlong, shadow: cython.longlong) -> object:
        """A page comes back whose eviction is remembered (workingset_refault)."""
        packed: cython.longlong = (-1 - shadow) >> self._flag_bits
        nid: cython.longlong = packed & ((1 << self._nid_bits) - 1)
        size: cython.longlong
        packed >>= self._nid_bits
        if self._foreign or self._memcg[pfn] or packed & ((1 << self._memcg_bits) - 1):
            self._host.refault(pfn, shadow)
            return None
        packed >>= self._memcg_bits
        self._node_stat[nid, self._items[2]] += 1
        size = self._node_stat[nid, self._items[1] + 3]
        if self._swap_left:
            size += self._node_stat[nid, self._items[1]] + self._node_stat[nid, self._items[1] + 1]
        if ((self._state[nid, _AGE] - packed) & self._age_mask) > size:
            return None
        self._flags[pfn] |= _ACTIVE
        self._state[nid, _AGE] += 1
        self._node_stat[nid, self._items[3]] += 1
        if (-1 - shadow) & ((1 << self._flag_bits) - 1):
            self._flags[pfn] |= _WORKINGSET
            self._note_cost(nid)
            self._node_stat[nid, self._items[4]] += 1
        return None

    @cython.cfunc
    @cython.exceptval(check=False)
    def _note_cost(self, nid: cython.longlong) -> cython.void:
        """A page was taken that was needed (lru_note_cost)."""
        k: cython.int
        pages: cython.longlong = 0
        for k in range(4):
            pages += self._node_stat[nid, self._items[1] + k]
        self._state[nid, _FILE_COST] += 1
        if self._state[nid, _FILE_COST] + self._state[nid, _ANON_COST] > pages // 4:
            self._state[nid, _FILE_COST] //= 2
            self._state[nid, _ANON_COST] //= 2

    # -- the batches -------------------------------------------------------------------------------------------

    @cython.cfunc
    def _flush_adds(self) -> object:
        """New pages go to their batch, which is full then unless the loop ends."""
        if self._adds:
            self._flush_touched()
            self._lru.add_bulk(np.asarray(self._add[: self._adds]))
            self._adds, self._add_room = 0, _SIZE
        return None

    @cython.cfunc
    def _flush_activates(self) -> object:
        """The same of pages that become active."""
        if self._activates:
            self._lru.batch(ACTIVATE, np.asarray(self._activate[: self._activates]))
            self._activates, self._activate_room = 0, _SIZE
        return None

    @cython.cfunc
    def _flush_touched(self) -> object:
        """Pages that were used, for a policy that marks them itself."""
        if self._touches:
            self._host.touched(np.asarray(self._touched[: self._touches]).copy())
            self._touches = 0
        return None


@cython.final
@cython.cclass
class CleanPages(PageArrays):
    """Pages of files on disks that reclaim can drop without asking anybody: clean, mapped by nobody, without buffers.

    ``zones`` and ``shifts`` are ``ReadLoop``'s; ``item`` is the node counter NR_FILE_PAGES.
    """

    _item: cython.int
    _flag_bits: cython.int
    _nid_bits: cython.int
    _memcg_bits: cython.int
    _age_mask: cython.longlong

    def __init__(self, pages: Any, zones: Any, vmstat: Any, item: cython.int, shifts: Any) -> None:
        super().__init__(pages, zones, vmstat)
        self._item = item
        self._nid_bits, self._memcg_bits, self._flag_bits, self._age_mask = shifts

    def part(self, pfns: cython.longlong[::1], clean: cython.longlong[::1], rest: cython.longlong[::1]) -> tuple:
        """Part pages into those that can be dropped and the others, in their order: how many of each."""
        i: cython.Py_ssize_t
        dropped: cython.Py_ssize_t = 0
        kept: cython.Py_ssize_t = 0
        pfn: cython.longlong
        for i in range(pfns.shape[0]):
            pfn = pfns[i]
            if self._flags[pfn] & _BUSY or self._mapping[pfn] >= 0 or self._mapcount[pfn] > 0:
                rest[kept] = pfn
                kept += 1
                continue
            clean[dropped] = pfn
            dropped += 1
        return dropped, kept

    def run_of(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t) -> tuple:
        """The number of the file that ``pfns[start]`` is of, and how far the pages behind it are of the same."""
        owner: cython.int = self._mapping[pfns[start]]
        stop: cython.Py_ssize_t = start + 1
        while stop < pfns.shape[0] and self._mapping[pfns[stop]] == owner:
            stop += 1
        return -owner, stop

    def deactivate(self, pfns: cython.longlong[::1]) -> bool:
        """Pages that left the active list are inactive if nobody maps or locks any of them, whether that is so."""
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            if self._flags[pfns[i]] & _ASKED or self._mapcount[pfns[i]] > 0:
                return False
        for i in range(pfns.shape[0]):
            self._flags[pfns[i]] = self._flags[pfns[i]] & ~_ACTIVE | _WORKINGSET
        return True

    def drop(self, slots: Any, pfns: cython.longlong[::1], memcg: cython.longlong, ages: cython.longlong[::1]) -> None:
        """Isolated pages leave a file's table, a shadow takes the place of each (__remove_mapping);
        ``ages`` are those of the cgroup's lruvecs by node.
        """
        table: cython.longlong[::1] = view(slots)
        i: cython.Py_ssize_t
        pfn: cython.longlong
        nid: cython.longlong
        shadow: cython.longlong
        for i in range(pfns.shape[0]):
            pfn = pfns[i]
            nid = self._nid_of(pfn)
            shadow = ((ages[nid] & self._age_mask) << self._memcg_bits | memcg) << self._nid_bits | nid
            ages[nid] += 1
            table[self._index[pfn]] = -1 - (shadow << self._flag_bits | (1 if self._flags[pfn] & _WORKINGSET else 0))
            self._node_stat[nid, self._item] -= 1
            self._mapping[pfn] = 0
            self._index[pfn] = 0
            self._flags[pfn] = 0
