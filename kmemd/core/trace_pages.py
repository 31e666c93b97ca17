"""Pages of the trace ring read: what stands in one, and a page in a reader's hands (kernel/trace/ring_buffer.c)."""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view

PAGE = 4096
PAGE_HEADER = 16
PAGE_DATA = PAGE - PAGE_HEADER
MISSED_EVENTS = 1 << 31
MISSED_STORED = 1 << 30

_PAGE = cython.declare(cython.longlong, 4096)
_HEADER = cython.declare(cython.longlong, 16)
_EXTEND = cython.declare(cython.int, 30)
_DELTA_BITS = cython.declare(cython.int, 27)


@cython.final
@cython.cclass
class Decoder:
    """The events of pages, one after the other: time, where the payload begins and how long it is."""

    at = cython.declare(cython.longlong, visibility="readonly")
    length = cython.declare(cython.longlong, visibility="readonly")
    time = cython.declare(cython.longlong, visibility="readonly")
    size = cython.declare(cython.longlong, visibility="readonly")
    _data: cython.uchar[::1]
    _next: cython.longlong
    _end: cython.longlong
    _page: cython.longlong
    _pages: cython.longlong

    def __init__(self, data: Any) -> None:
        self._data = view(data)
        self._pages = len(data) // PAGE
        self._page = -1
        self._next = 0
        self._end = 0
        self.at = 0
        self.length = 0
        self.time = 0
        self.size = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _load(self, at: cython.longlong, size: cython.int) -> cython.longlong:
        value: cython.ulonglong = 0
        i: cython.int
        for i in range(size):
            value |= cython.cast(cython.ulonglong, self._data[at + i]) << (8 * i)
        return cython.cast(cython.longlong, value)

    def step(self) -> bool:
        """Go to the next event. Whether there is one."""
        word: cython.longlong
        words: cython.longlong
        while True:
            if self._next >= self._end:
                self._page += 1
                if self._page >= self._pages:
                    return False
                self._next = self._page * _PAGE
                self.time = self._load(self._next, 8)
                self._end = self._next + _HEADER + (self._load(self._next + 8, 8) & 0xFFFFF)
                self._next += _HEADER
                continue
            word = self._load(self._next, 4)
            words = word & 31
            self.time += word >> 5
            if words == _EXTEND:
                self.time += self._load(self._next + 4, 4) << _DELTA_BITS
                self._next += 8
                continue
            if words:
                self.at = self._next + 4
                self.length = words << 2
            else:
                self.at = self._next + 8
                self.length = self._load(self._next + 4, 4) - 4
            self.size = self.at + self.length - self._next
            self._next = self.at + self.length
            return True


def signed(value: Any) -> int:
    """A word as the log holds it: 64 bits, two's complement."""
    word = int(value) & 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >> 63 else word


def decode(data: Any) -> Any:
    """Times, places and lengths of all events of pages, as three int64 arrays."""
    decoder: Decoder = Decoder(data)
    most: cython.Py_ssize_t = len(data) // 8 + 1
    rows = np.empty((3, most), dtype=np.int64)
    out: cython.longlong[:, ::1] = view(rows)
    n: cython.Py_ssize_t = 0
    while decoder.step():
        out[0, n] = decoder.time
        out[1, n] = decoder.at
        out[2, n] = decoder.length
        n += 1
    return rows[:, :n]


class ReaderPage:
    """A page that was taken out of the circle for a reader."""

    def __init__(self, page: Any, lost: int) -> None:
        self.page = page
        self.lost = lost
        self.done = 0
        self.times = decode(page)
        ends = self.times[1] + self.times[2]
        self.sizes = np.diff(ends, prepend=PAGE_HEADER)

    def event(self) -> tuple[int, bytes, int]:
        """The next event."""
        ts, at, length = (int(word) for word in self.times[:, self.done])
        return ts, self.page[at : at + length].tobytes(), self.lost

    def rest(self) -> bytes:
        """What is left, as a page of its own that says whether events were lost before it."""
        out = np.zeros(PAGE, dtype=np.uint8)
        start = PAGE_HEADER + int(self.sizes[: self.done].sum())
        used = PAGE_HEADER + int(self.sizes.sum())
        body = self.page[start:used].copy()
        if self.done:  # the page's time becomes that of the first event left
            first = int(body[:4].view("<u4")[0])
            body[:4] = np.array([first & 31], dtype="<u4").view(np.uint8)
        out[PAGE_HEADER : PAGE_HEADER + len(body)] = body
        commit = len(body)
        if self.lost:
            commit |= MISSED_EVENTS
            if len(body) + 8 <= PAGE_DATA:
                commit |= MISSED_STORED
                at = PAGE_HEADER + len(body)
                out[at : at + 8] = np.array([self.lost], dtype="<u8").view(np.uint8)
        ts = int(self.times[0, self.done])
        out[:PAGE_HEADER] = np.array([ts, commit], dtype="<u8").view(np.uint8)
        return out.tobytes()


def refill(ring: Any, sizes: list, kept: list) -> None:
    """Put what each CPU had, as pages, state and reader's page, into a ring that was laid out anew; the newest pages
    that fit.
    """
    for cpu, (pages, state, reading) in enumerate(kept):
        ring.reading[cpu] = reading
        count = len(pages) // PAGE
        keep = min(count, sizes[cpu])
        base = int(ring.state[cpu, 0])
        ring.state[cpu, 2:] = state[2:]
        ring.state[cpu, 2], ring.state[cpu, 3] = 0, max(keep - 1, 0)
        start = (count - keep) * PAGE
        ring.data[base * PAGE : (base + keep) * PAGE] = pages[start:]
        for page in range(count):
            n = int(decode(pages[page * PAGE : (page + 1) * PAGE]).shape[1])
            if page < count - keep:
                ring.state[cpu, 7] += n
                ring.state[cpu, 11] += n
            else:
                ring.entries_of_page[base + page - (count - keep)] = n


def pages_in_use(ring: Any, cpu: int) -> Any:
    """A copy of a CPU's pages in use, the oldest first."""
    base, count, head, tail, used = (int(word) for word in ring.state[cpu, :5])
    if head == tail and not used:
        return np.empty(0, dtype=np.uint8)
    end = tail + 1 if tail >= head else count
    parts = [ring.data[(base + head) * PAGE : (base + end) * PAGE]]
    if tail < head:
        parts.append(ring.data[base * PAGE : (base + tail + 1) * PAGE])
    return np.concatenate(parts)


def snapshot_of(ring: Any, cpu: int) -> Any:
    """Times, places and lengths of a CPU's events that were not read, and the bytes that the places point into."""
    taken = ring.reading[cpu]
    pages = pages_in_use(ring, cpu)
    if taken is None:
        return decode(pages), pages
    rest = decode(taken.page)[:, taken.done :]
    later = decode(pages)
    later[1] += PAGE
    return np.concatenate([rest, later], axis=1), np.concatenate([taken.page, pages])


def take_oldest(ring: Any, cpu: int) -> bool:
    """Give the reader a CPU's oldest page. Whether there is one."""
    base, count, head, tail, used = (int(word) for word in ring.state[cpu, :5])
    if head == tail and not used:
        ring.reading[cpu] = None
        return False
    page = ring.data[(base + head) * PAGE : (base + head + 1) * PAGE].copy()
    ring.reading[cpu] = ReaderPage(page, int(ring.state[cpu, 11]))
    ring.state[cpu, 11] = 0
    ring.entries_of_page[base + head] = 0
    if head == tail:
        ring.state[cpu, 4] = 0
    else:
        ring.state[cpu, 2] = (head + 1) % count
    return True


def take_reader_page(ring: Any, cpu: int) -> bytes:
    """What is left of a CPU's page in the reader's hands, which is read with it. Preconditions: there is one."""
    taken = ring.reading[cpu]
    ring.reading[cpu] = None
    left = taken.times.shape[1] - taken.done
    ring.state[cpu, 9] += left
    ring.state[cpu, 10] -= int(taken.sizes[taken.done :].sum())
    rest: bytes = taken.rest()
    return rest
