"""The bytes of kmemleak's objects: what they were filled with and the pointers stored since, and their checksums."""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.leak import POISON_END, POISON_LAST, LeakTable
from kmemd.debug.leak_text import crc
from kmemd.mm.leak_observer import FILL_ZERO


class LeakContents:
    """``table()`` is the table of objects in force; ``word`` the size of a pointer in bytes."""

    def __init__(self, table: Callable[[], LeakTable], word: int) -> None:
        self._table = table
        self._word = word
        self._crcs: dict[tuple[int, int], int] = {}

    def __call__(self, row: int, limit: int) -> bytearray:
        """The first ``limit`` bytes of an object."""
        table = self._table()
        size, fill = int(table.size[row]), int(table.fill[row])
        data = bytearray([fill & 0xFF]) * min(size, limit)
        if fill & POISON_LAST and len(data) == size:
            data[-1] = POISON_END
        word = self._word
        mask = (1 << 8 * word) - 1
        for offset, value in reversed(table.pointers_in(row)):
            if offset < len(data):
                data[offset : offset + word] = (value & mask).to_bytes(word, "little")[: len(data) - offset]
        return data

    def checksum(self, row: int) -> int:
        """That of all bytes of an object (update_checksum)."""
        return crc(self(row, int(self._table().size[row])))

    def fill_checksum(self, size: int, fill: int) -> int:
        """That of an object of ``size`` bytes without stored pointers; 0 for zeros."""
        if fill == FILL_ZERO:
            return 0
        known = self._crcs.get((size, fill))
        if known is None:
            data = bytearray([fill & 0xFF]) * size
            if fill & POISON_LAST:
                data[-1] = POISON_END
            known = self._crcs[size, fill] = crc(data)
        return known
