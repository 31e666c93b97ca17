"""Trace events from the loops to the ring: what is on, what was emitted, how records are laid out (ring_buffer.c).

Emission appends a row of words to a *log* that all emitters share: the event's number, where it happened, and its
arguments. When the log is full, or when somebody looks, ``drain`` turns rows into records: fields in the order, the
places and the sizes of the event's format file (kernel/trace/trace_events.c, include/trace/stages). An event that is
off costs its emitter one test of a bit.

The ring is a circle of pages per CPU, as ``trace_pipe_raw`` gives them: 4096 bytes, the time of the first event, how
many bytes are used, then events. An event has a header of 32 bits, ``type_len`` (5) and the ns since the event before
(27); ``type_len`` counts words of four bytes, 0 says that the length stands behind the header, 30 is an extension of
the time. The payload begins with the event's number.

Invariants: a CPU's pages in use are ``head`` to ``tail`` of its circle; a reader's page is a copy that writing never
changes; entries = written - (overrun + read). Times of one CPU ascend.
Left out: nesting (nothing interrupts a writer here), so that commit overruns stay 0.

Events that need more than a record in the top buffer (filters, triggers, instances) are handed to ``slow``, in order.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core import trace_ids, trace_pages
from kmemd.core.pages import lazy_zeros
from kmemd.core.trace_pages import PAGE, PAGE_HEADER, signed

ROW = 24
ROWS = 1024
ARGS = 7
MAX_ARGS = ROW - ARGS
EVENTS = len(trace_ids.NAMES)

# places in TraceLog.control
MASK = 0  # a bit per event of the core that is on
STAGED = 1  # rows in the log
MEMMAP = 2  # where struct pages begin, and how large one is
STRUCT_PAGE = 3

# where a row says what
EVENT, TIME, CPU, PID, COMM, SITE, STACK = range(7)

# kinds of fields
WORD, TEXT, DATA_LOC, CALLER = range(4)

OFF, PLAIN, SLOW = range(3)

_ROW = cython.declare(cython.int, 24)
_ROWS = cython.declare(cython.int, 1024)
_ARGS = cython.declare(cython.int, 7)
_CORE = cython.declare(cython.int, 62)
_NOW = cython.declare(cython.int, 0)
_MASK = cython.declare(cython.int, 0)
_STAGED = cython.declare(cython.int, 1)
_WORD = cython.declare(cython.int, 0)
_TEXT = cython.declare(cython.int, 1)
_DATA_LOC = cython.declare(cython.int, 2)
_CALLER = cython.declare(cython.int, 3)
_HEADS = cython.declare(cython.int, 4)
_FIELDS = cython.declare(cython.int, 17)

_PAGE = cython.declare(cython.longlong, 4096)
_HEADER = cython.declare(cython.longlong, 16)
_SMALL = cython.declare(cython.int, 112)  # RB_MAX_SMALL_DATA
_EXTEND = cython.declare(cython.int, 30)
_DELTA_BITS = cython.declare(cython.int, 27)

# columns of the per-CPU state
_BASE = cython.declare(cython.int, 0)
_NPAGES = cython.declare(cython.int, 1)
_HEAD = cython.declare(cython.int, 2)
_TAIL = cython.declare(cython.int, 3)
_USED = cython.declare(cython.int, 4)
_LAST = cython.declare(cython.int, 5)
_WRITTEN = cython.declare(cython.int, 6)
_OVERRUN = cython.declare(cython.int, 7)
_DROPPED = cython.declare(cython.int, 8)
_READ = cython.declare(cython.int, 9)
_BYTES = cython.declare(cython.int, 10)
_LOST = cython.declare(cython.int, 11)
_COLUMNS = cython.declare(cython.int, 12)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.final
@cython.cclass
class Ring:
    """The buffers of all CPUs of one trace array. Sizes are pages of each CPU; the memory appears with the events.

    ``entries`` of a CPU are written - (overrun + read).
    """

    ncpus = cython.declare(cython.int, visibility="readonly")
    on = cython.declare(cython.bint, visibility="public")
    overwrite = cython.declare(cython.bint, visibility="public")
    _data: cython.uchar[::1]
    _state: cython.longlong[::1]
    _entries: cython.int[::1]
    _head: cython.longlong[::1]
    _field: cython.longlong[::1]

    # numpy arrays for Python readers
    data = cython.declare(object, visibility="readonly")
    state = cython.declare(object, visibility="readonly")
    entries_of_page = cython.declare(object, visibility="readonly")
    reading = cython.declare(list, visibility="readonly")

    def __init__(self, sizes: list) -> None:
        self.ncpus = len(sizes)
        self.on = True
        self.overwrite = True
        self.state = np.zeros((self.ncpus, 12), dtype=np.int64)
        self._state = _view(self.state.reshape(-1))
        self._lay_out(sizes)

    def _lay_out(self, sizes: list) -> None:
        self.data = lazy_zeros(sum(sizes) * PAGE, "uint8")
        self._data = _view(self.data)
        self.entries_of_page = np.zeros(sum(sizes), dtype=np.int32)
        self._entries = _view(self.entries_of_page)
        self.reading = [None] * self.ncpus
        base = 0
        for cpu, size in enumerate(sizes):
            self.state[cpu] = 0
            self.state[cpu, 0], self.state[cpu, 1] = base, size
            base += size

    def sizes(self) -> list:
        """Pages of each CPU."""
        return [int(self.state[cpu, 1]) for cpu in range(self.ncpus)]

    def resize(self, sizes: list) -> None:
        """Give the CPUs buffers of so many pages; a CPU keeps its newest pages that fit (``ring_buffer_resize``)."""
        kept = [(self.pages(cpu), self.state[cpu].copy(), self.reading[cpu]) for cpu in range(self.ncpus)]
        self._lay_out(sizes)
        trace_pages.refill(self, sizes, kept)

    def reset(self, cpu: cython.int) -> None:
        """Forget everything of a CPU, its counts too (``ring_buffer_reset_cpu``)."""
        i: cython.int
        for i in range(2, _COLUMNS):
            self._state[cpu * _COLUMNS + i] = 0
        self.reading[cpu] = None
        base = int(self.state[cpu, 0])
        self.entries_of_page[base : base + int(self.state[cpu, 1])] = 0

    # -- writing -------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _store(self, at: cython.longlong, value: cython.longlong, size: cython.int) -> cython.void:
        i: cython.int
        for i in range(size):
            self._data[at + i] = cython.cast(cython.uchar, (value >> (8 * i)) & 0xFF)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _next_page(self, cpu: cython.int) -> cython.bint:
        """Go on with the next page; the oldest is given up for it, or the event when it must not be."""
        s: cython.int = cpu * _COLUMNS
        following: cython.longlong = (self._state[s + _TAIL] + 1) % self._state[s + _NPAGES]
        lost: cython.int
        if following == self._state[s + _HEAD]:
            if not self.overwrite:
                return False
            lost = self._entries[self._state[s + _BASE] + following]
            self._state[s + _OVERRUN] += lost
            self._state[s + _LOST] += lost
            self._state[s + _BYTES] -= self._used_of(self._state[s + _BASE] + following)
            self._state[s + _HEAD] = (following + 1) % self._state[s + _NPAGES]
        self._state[s + _TAIL] = following
        self._state[s + _USED] = 0
        self._entries[self._state[s + _BASE] + following] = 0
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _used_of(self, page: cython.longlong) -> cython.longlong:
        at: cython.longlong = page * _PAGE + 8
        return self._data[at] | cython.cast(cython.longlong, self._data[at + 1]) << 8

    @cython.cfunc
    @cython.exceptval(check=False)
    def _reserve(self, cpu: cython.int, ts: cython.longlong, length: cython.longlong) -> cython.longlong:
        """Room for a payload: where it begins, -1 when the event is dropped (``ring_buffer_lock_reserve``)."""
        s: cython.int = cpu * _COLUMNS
        body: cython.longlong = (length + 3) & ~3
        size: cython.longlong = body + (4 if length <= _SMALL else 8)
        delta: cython.longlong = 0
        at: cython.longlong
        if ts < self._state[s + _LAST]:
            ts = self._state[s + _LAST]
        if self._state[s + _USED]:
            delta = ts - self._state[s + _LAST]
        if self._state[s + _USED] + size + (8 if delta >> _DELTA_BITS else 0) > _PAGE - _HEADER:
            if not self._next_page(cpu):
                self._state[s + _DROPPED] += 1
                return -1
            delta = 0
        at = (self._state[s + _BASE] + self._state[s + _TAIL]) * _PAGE
        if self._state[s + _USED] == 0:
            self._store(at, ts, 8)
        at += _HEADER + self._state[s + _USED]
        if delta >> _DELTA_BITS:
            self._store(at, _EXTEND | (delta & ((1 << _DELTA_BITS) - 1)) << 5, 4)
            self._store(at + 4, delta >> _DELTA_BITS, 4)
            delta = 0
            at += 8
            size += 8
        self._state[s + _LAST] = ts
        self._state[s + _USED] += size
        self._state[s + _BYTES] += size
        self._state[s + _WRITTEN] += 1
        self._entries[self._state[s + _BASE] + self._state[s + _TAIL]] += 1
        self._store((self._state[s + _BASE] + self._state[s + _TAIL]) * _PAGE + 8, self._state[s + _USED], 8)
        if length <= _SMALL:
            self._store(at, body >> 2 | delta << 5, 4)
            return at + 4
        self._store(at, delta << 5, 4)
        self._store(at + 4, body + 4, 4)
        return at + 8

    def write(self, cpu: cython.int, ts: cython.longlong, payload: bytes) -> bool:
        """Append an event. Whether it was taken."""
        at: cython.longlong
        i: cython.Py_ssize_t
        n: cython.Py_ssize_t = len(payload)
        if not self.on:
            return False
        at = self._reserve(cpu, ts, n)
        if at < 0:
            return False
        for i in range(n):
            self._data[at + i] = payload[i]
        for i in range(n, (n + 3) & ~3):
            self._data[at + i] = 0
        return True

    def lay_out(self, heads: Any, fields: Any) -> None:
        """Take the layouts: ``heads`` rows are ``(number, flags, size, fields)``, ``fields`` those of each event."""
        self._head = _view(heads.reshape(-1))
        self._field = _view(fields.reshape(-1))

    @cython.cfunc
    @cython.exceptval(check=False)
    def _record(
        self,
        rows: cython.longlong[::1],
        row: cython.Py_ssize_t,
        texts: cython.uchar[::1],
        starts: cython.longlong[::1],
        callers: cython.ulonglong[::1],
    ) -> cython.bint:
        """Append one row of the log as a record."""
        event: cython.Py_ssize_t = rows[row]
        head: cython.Py_ssize_t = event * _HEADS
        size: cython.longlong = self._head[head + 2]
        end: cython.longlong = size
        at: cython.longlong
        place: cython.longlong
        value: cython.longlong
        length: cython.longlong
        i: cython.Py_ssize_t
        k: cython.longlong
        kind: cython.longlong
        f: cython.Py_ssize_t
        room: cython.int
        if not self.on:
            return False
        for i in range(self._head[head + 3]):
            if self._field[(event * _FIELDS + i) * 3 + 2] == _DATA_LOC:
                value = rows[row + _ARGS + i]
                end += starts[value + 1] - starts[value] + 1
        at = self._reserve(cython.cast(cython.int, rows[row + 2]), rows[row + 1], end)
        if at < 0:
            return False
        for k in range(8, (end + 3) & ~3):
            self._data[at + k] = 0
        self._store(at, self._head[head] | self._head[head + 1] << 16, 4)
        self._store(at + 4, rows[row + 3], 4)
        for i in range(self._head[head + 3]):
            f = (event * _FIELDS + i) * 3
            place = at + self._field[f]
            room = cython.cast(cython.int, self._field[f + 1])
            kind = self._field[f + 2]
            value = rows[row + _ARGS + i]
            if kind == _CALLER:
                value = cython.cast(cython.longlong, callers[value])
            if kind != _TEXT and kind != _DATA_LOC:
                self._store(place, value, room)
                continue
            length = starts[value + 1] - starts[value]
            if kind == _DATA_LOC:
                self._store(place, size | (length + 1) << 16, 4)
                place = at + size
                size += length + 1
            else:
                length = min(length, room - 1)
            for k in range(length):
                self._data[place + k] = texts[starts[value] + k]
        return True

    # -- reading -------------------------------------------------------------------------------------------

    def pages(self, cpu: int) -> Any:
        """A copy of the pages in use, the oldest first, without the reader's page."""
        return trace_pages.pages_in_use(self, cpu)

    def snapshot(self, cpu: int) -> Any:
        """Times, places and lengths of the events not yet read, and the bytes that the places point into."""
        return trace_pages.snapshot_of(self, cpu)

    def take_page(self, cpu: int) -> bool:
        """Give the reader the oldest page (``rb_get_reader_page``). Whether there is one."""
        return trace_pages.take_oldest(self, cpu)

    def peek(self, cpu: int) -> Any:
        """The oldest event as ``(time, payload, events lost before it)``, or None."""
        while True:
            taken = self.reading[cpu]
            if taken is not None and taken.done < taken.times.shape[1]:
                return taken.event()
            if not self.take_page(cpu):
                return None

    def consume(self, cpu: int) -> None:
        """The event that ``peek`` gave is read."""
        taken = self.reading[cpu]
        self.state[cpu, 9] += 1
        self.state[cpu, 10] -= int(taken.sizes[taken.done])
        taken.done += 1
        taken.lost = 0

    def read_page(self, cpu: int) -> Any:
        """The oldest page as ``trace_pipe_raw`` gives it, or None (``ring_buffer_read_page``)."""
        return None if self.peek(cpu) is None else trace_pages.take_reader_page(self, cpu)


@cython.final
@cython.cclass
class TraceLog:
    """The events of one machine on their way to the buffers.

    ``words`` is ``Context.words``; ``control`` says which events of the core are on and how full the log is. ``top`` is
    the top buffer once there is one. ``slow(row)`` takes rows that need more; ``resolve(handle)`` gives the address of
    a call site, ``function(name)`` that of a function.
    """

    rows = cython.declare(object, visibility="readonly")
    modes = cython.declare(object, visibility="readonly")
    used = cython.declare(object, visibility="readonly")
    comm_of = cython.declare(dict, visibility="readonly")
    control = cython.declare(object, visibility="readonly")
    _ctx: cython.longlong[::1]
    _control: cython.longlong[::1]
    _rows: cython.longlong[::1]
    _modes: cython.uchar[::1]
    _texts: cython.uchar[::1]
    _starts: cython.longlong[::1]
    _callers: cython.ulonglong[::1]
    _text_number: dict
    _ntexts: cython.longlong
    _known_callers: cython.longlong
    _top: Ring
    _scratch: Ring
    _slow: Any
    _resolve: Any
    _function: Any
    _draining: cython.bint
    _seen_pid: cython.longlong

    def __init__(self, words: Any) -> None:
        self._ctx = _view(words)
        self.rows = np.zeros((ROWS, ROW), dtype=np.int64)
        self._rows = _view(self.rows.reshape(-1))
        self.control = np.zeros(4, dtype=np.int64)
        self._control = _view(self.control)
        self.modes = np.zeros(EVENTS, dtype=np.uint8)
        self._modes = _view(self.modes)
        self._texts = _view(np.zeros(1024, dtype=np.uint8))
        self._starts = _view(np.zeros(64, dtype=np.int64))
        self._callers = _view(np.zeros(256, dtype=np.uint64))
        self._known_callers = 0
        self._text_number = {}
        self._ntexts = 0
        self._top = Ring([2])
        self._scratch = Ring([2])
        self._slow = None
        self._resolve = None
        self._function = None
        self._draining = False
        self._seen_pid = -1
        self.comm_of = {}

    def attach(self, top: Ring, slow: Any, resolve: Any, function: Any) -> None:
        """Deliver to a buffer from here on."""
        self._function = function
        self._top = top
        self._slow = slow
        self._resolve = resolve

    def set_mode(self, event: int, mode: int) -> None:
        """Switch an event OFF, to the top buffer alone (PLAIN), or to whoever wants it (SLOW)."""
        self.modes[event] = mode
        if event < 62:
            bit = 1 << event
            self._control[_MASK] = (self._control[_MASK] | bit) if mode else (self._control[_MASK] & ~bit)

    @property
    def any_on(self) -> bool:
        """Whether anybody wants an event of those that loops over many pages emit."""
        return self._control[_MASK] != 0

    @property
    def now(self) -> int:
        """Model time in ns."""
        return self._ctx[_NOW]

    def on(self, event: cython.int) -> bool:
        """Whether anybody wants an event."""
        return self._modes[event] != 0

    def text(self, text: str) -> int:
        """The number that stands for a text in the log."""
        number = self._text_number.get(text)
        if number is None:
            number = self._add_text(text)
        return number

    def _add_text(self, text: str) -> int:
        data = text.encode("utf-8", "surrogateescape")
        number = int(self._ntexts)
        start = int(self._starts[number])
        if number + 2 > len(self._starts):
            self._starts = _view(np.concatenate([np.asarray(self._starts), np.zeros(number + 2, dtype=np.int64)]))
        if start + len(data) > len(self._texts):
            more = np.zeros(start + len(data) + 1024, dtype=np.uint8)
            self._texts = _view(np.concatenate([np.asarray(self._texts), more]))
        for i in range(len(data)):
            self._texts[start + i] = data[i]
        self._starts[number + 1] = start + len(data)
        self._text_number[text] = number
        self._ntexts += 1
        return number

    # -- emitting ------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _begin(self, event: cython.int, ts: cython.longlong) -> cython.Py_ssize_t:
        n: cython.longlong
        row: cython.Py_ssize_t
        if self._control[_STAGED] >= _ROWS:
            self.drain()
        n = self._control[_STAGED]
        row = n * _ROW
        self._rows[row] = event
        self._rows[row + 1] = ts
        self._rows[row + 2] = self._ctx[1]
        self._rows[row + 3] = self._ctx[2]
        self._rows[row + 4] = self._ctx[4]
        self._rows[row + 5] = self._ctx[6]
        self._rows[row + 6] = self._ctx[5]
        self._control[_STAGED] = n + 1
        return row

    def emit(self, event: cython.int, *args: Any) -> None:
        """An event happened; ``args`` are its fields in order, ints and texts. Nothing when it is off."""
        i: cython.Py_ssize_t = _ARGS
        row: cython.Py_ssize_t
        if self._modes[event] == 0:
            return
        values = [self.text(arg) if isinstance(arg, str) else signed(arg) for arg in args]
        row = self._begin(event, self._ctx[_NOW])
        for value in values:
            self._rows[row + i] = value
            i += 1

    def emit_pages(self, event: cython.int, pfns: Any, step: cython.longlong, *args: Any) -> None:
        """An event for each page, ``args`` after its PFN; ``step`` ns have passed between two, the last is now."""
        i: cython.Py_ssize_t
        k: cython.Py_ssize_t
        n: cython.Py_ssize_t = len(pfns)
        view: cython.longlong[::1] = _view(np.ascontiguousarray(pfns, dtype=np.int64))
        now: cython.longlong = self._ctx[_NOW]
        row: cython.Py_ssize_t
        values: list = [int(arg) for arg in args]
        if self._modes[event] == 0:
            return
        for i in range(n):
            row = self._begin(event, now - (n - 1 - i) * step)
            self._rows[row + _ARGS] = view[i]
            for k in range(len(values)):
                self._rows[row + _ARGS + 1 + k] = values[k]

    def emit_objects(self, event: cython.int, objects: Any, step: cython.longlong, *args: Any) -> None:
        """A slab event each: call site, object, ``args``. Times as ``emit_pages``; with a step < 0 the first is now."""
        i: cython.Py_ssize_t
        k: cython.Py_ssize_t
        n: cython.Py_ssize_t = len(objects)
        view: cython.ulonglong[::1] = _view(np.ascontiguousarray(objects, dtype=np.uint64))
        now: cython.longlong = self._ctx[_NOW]
        row: cython.Py_ssize_t
        if self._modes[event] == 0:
            return
        values: list = [self.text(arg) if isinstance(arg, str) else int(arg) for arg in args]
        if step > 0:
            now -= (n - 1) * step
        for i in range(n):
            row = self._begin(event, now + i * (step if step > 0 else -step))
            self._rows[row + _ARGS] = self._ctx[6]
            self._rows[row + _ARGS + 1] = cython.cast(cython.longlong, view[i]) if cython.compiled else signed(view[i])
            for k in range(len(values)):
                self._rows[row + _ARGS + 2 + k] = values[k]

    # -- delivering ----------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Bring all rows to the buffers."""
        n: cython.longlong = self._control[_STAGED]
        i: cython.longlong
        row: cython.Py_ssize_t
        mode: cython.int
        if self._draining:
            return
        self._draining = True
        try:
            for i in range(n):
                row = i * _ROW
                mode = self._modes[self._rows[row]]
                if mode == 1:
                    self._record(self._top, row)
                elif mode == 2:
                    self._slow(i)
        finally:
            self._control[_STAGED] = 0
            self._draining = False

    @cython.cfunc
    def _record(self, ring: Ring, row: cython.Py_ssize_t) -> cython.bint:
        i: cython.Py_ssize_t
        event: cython.Py_ssize_t = self._rows[row]
        if self._rows[row + 3] != self._seen_pid:
            self._seen_pid = self._rows[row + 3]
            self.comm_of[int(self._rows[row + 3])] = int(self._rows[row + 4])
        for i in range(ring._head[event * _HEADS + 3]):
            if ring._field[(event * _FIELDS + i) * 3 + 2] == _CALLER:
                self._learn(self._rows[row + _ARGS + i])
        return ring._record(self._rows, row, self._texts, self._starts, self._callers)

    @cython.cfunc
    def _learn(self, handle: cython.longlong) -> cython.void:
        """Make sure that a call site's address is known."""
        if handle >= len(self._callers):
            more = np.zeros(int(handle) + 256, dtype=np.uint64)
            old = np.asarray(self._callers)
            more[: len(old)] = old
            self._callers = _view(more)
        if self._callers[handle] == 0:
            self._callers[handle] = self._resolve(int(handle))

    def record(self, ring: Ring, index: int) -> bool:
        """Append row ``index`` of the log to a buffer. Whether it was taken."""
        return self._record(ring, index * _ROW)

    def payload(self, index: int) -> bytes:
        """Row ``index`` of the log as a record."""
        scratch: Ring = self._scratch
        scratch._head, scratch._field = self._top._head, self._top._field
        scratch._state[_USED] = 0
        scratch._state[_LAST] = 0
        cpu = self._rows[index * _ROW + 2]
        self._rows[index * _ROW + 2] = 0
        self._record(scratch, index * _ROW)
        self._rows[index * _ROW + 2] = cpu
        start: cython.Py_ssize_t = PAGE_HEADER + (8 if scratch._data[PAGE_HEADER] & 31 == 0 else 4)
        return bytes(scratch._data[start : PAGE_HEADER + scratch._state[_USED]])

    def function(self, name: str) -> int:
        """The address of a function of the kernel."""
        return int(self._function(name)) if self._function is not None else 0

    def caller(self, handle: int) -> int:
        """The address of a call site."""
        self._learn(handle)
        return int(self._callers[handle])

    def text_of(self, number: int) -> str:
        """The text that a number in the log stands for."""
        data = bytes(self._texts[int(self._starts[number]) : int(self._starts[number + 1])])
        return data.decode("utf-8", "surrogateescape")
