"""A growing array of numbers by page offset, which costs memory where it was touched (lib/xarray.c, ``i_pages``).

Linux keeps a tree; an array in memory that appears when it is written is as sparse, and whole ranges of it are one
numpy operation.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

SMALL = 1 << 12
"""Entries up to which it is an ordinary array."""
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


class PageSlots:
    """Numbers by offset, 0 where nothing was stored. ``array`` is their memory and may be replaced by any ``reserve``.

    Invariants: entries from ``end`` on are 0.
    """

    __slots__ = ("_memory", "array", "end")

    def __init__(self) -> None:
        self.array: Numbers = np.zeros(0, dtype=np.int64)
        self.end = 0
        self._memory: mmap.mmap | None = None

    def reserve(self, count: int) -> None:
        """Make room for offsets below ``count``."""
        room = len(self.array)
        if count <= room:
            return
        wanted = max(count, 2 * room, 64)
        if wanted <= SMALL:
            grown = np.zeros(wanted, dtype=np.int64)
            grown[:room] = self.array
            self.array = grown
        else:
            self._map(wanted)

    def _map(self, count: int) -> None:
        """Move to, or extend, memory that appears when it is touched."""
        old, self.array = self.array, np.zeros(0, dtype=np.int64)
        if self._memory is not None:
            del old
            try:
                self._memory.resize(8 * count)
                self.array = np.frombuffer(self._memory, dtype=np.int64)
                return
            except BufferError:  # somebody still looks at a part of it
                old = np.frombuffer(self._memory, dtype=np.int64)
        memory = mmap.mmap(-1, 8 * count, flags=FLAGS)
        self.array = np.frombuffer(memory, dtype=np.int64)
        self.array[: self.end] = old[: self.end]
        self._memory = memory

    def get(self, index: int) -> int:
        """The number at an offset."""
        return int(self.array[index]) if index < self.end else 0

    def set(self, index: int, value: int) -> None:
        """Store a number."""
        self.reserve(index + 1)
        self.array[index] = value
        if index >= self.end:
            self.end = index + 1

    def put(self, indices: Numbers, values: Numbers | int) -> None:
        """Store several numbers."""
        if len(indices):
            last = int(indices.max()) + 1
            self.reserve(last)
            self.array[indices] = values
            self.end = max(self.end, last)

    def window(self, start: int, end: int) -> Numbers:
        """A view of ``[start, end)``, shorter where nothing was ever stored. Keep it no longer than the next store."""
        return self.array[start : max(start, min(end, self.end))]
