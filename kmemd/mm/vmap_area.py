"""Free and lazily freed ranges of the vmalloc area (the two trees of vmap areas in mm/vmalloc.c).

Free ranges are kept by address in chunks that know their longest range, which is what Linux's augmented
red-black tree is for. The lowest range that holds the request, aligned, is taken. Linux prunes subtrees by
``size + align - 1`` and can pass by a lower range that fits only because it happens to be aligned; here
it is found.

Invariants: ranges are page-aligned, sorted, apart from one another and never adjacent (neighbours are merged).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from itertools import pairwise

CHUNK = 256


class Ranges:
    """Ranges ``[start, end)`` of addresses, merged with their neighbours when they are added."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, start: int, end: int) -> None:
        """Put a range in, merged with those that touch it (``merge_or_add_vmap_area``)."""
        ranges = self._ranges
        index = bisect_right(ranges, (start, end))
        if index < len(ranges) and ranges[index][0] == end:
            end = ranges.pop(index)[1]
        if index and ranges[index - 1][1] == start:
            index -= 1
            start = ranges.pop(index)[0]
        ranges.insert(index, (start, end))

    def take(self, count: int) -> list[tuple[int, int]]:
        """The ``count`` lowest ranges, which are no longer there."""
        taken = self._ranges[:count]
        del self._ranges[:count]
        return taken


class FreeSpace:
    """The free ranges, searched from below."""

    def __init__(self, start: int, end: int) -> None:
        self._chunks: list[list[tuple[int, int]]] = [[(start, end)]]
        self._longest: list[int] = [end - start]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for chunk in self._chunks:
            yield from chunk

    def allocate(self, size: int, align: int, low: int, high: int) -> int:
        """Take ``size`` bytes at the lowest aligned address in ``[low, high)``. That address, or -1."""
        for number, chunk in enumerate(self._chunks):
            if self._longest[number] < size or chunk[-1][1] <= low:
                continue
            for index, (start, end) in enumerate(chunk):
                address = max(start, low) + align - 1 & -align
                if address + size > high:
                    return -1
                if address + size <= end:
                    self._cut(number, index, address, address + size)
                    return address
        return -1

    def allocate_top(self, size: int, align: int, high: int) -> int:
        """Take ``size`` bytes at the highest aligned address below ``high`` (``pcpu_get_vm_areas``). It, or -1."""
        for number in range(len(self._chunks) - 1, -1, -1):
            chunk = self._chunks[number]
            for index in range(len(chunk) - 1, -1, -1):
                start, end = chunk[index]
                address = min(end, high) - size & -align
                if address >= start:
                    self._cut(number, index, address, address + size)
                    return address
        return -1

    def _cut(self, number: int, index: int, low: int, high: int) -> None:
        """Take ``[low, high)`` out of a range, leaving what stands on either side."""
        chunk = self._chunks[number]
        start, end = chunk[index]
        chunk[index : index + 1] = [(a, b) for a, b in ((start, low), (high, end)) if a < b]
        self._tidy(number)

    def _tidy(self, number: int) -> None:
        """Recompute a chunk's longest range; drop it when empty, halve it when large."""
        chunk = self._chunks[number]
        if not chunk and len(self._chunks) > 1:
            del self._chunks[number], self._longest[number]
            return
        if len(chunk) > CHUNK:
            half = len(chunk) // 2
            self._chunks.insert(number + 1, chunk[half:])
            self._longest.insert(number + 1, max(end - start for start, end in chunk[half:]))
            del chunk[half:]
        self._longest[number] = max((end - start for start, end in chunk), default=0)

    def release(self, start: int, end: int) -> None:
        """Give a range back, merged with its neighbours."""
        number = self._chunk_of(start)
        chunk = self._chunks[number]
        index = bisect_right(chunk, (start, end))
        if index < len(chunk) and chunk[index][0] == end:
            end = chunk.pop(index)[1]
        elif index == len(chunk) and number + 1 < len(self._chunks) and self._chunks[number + 1][0][0] == end:
            end = self._chunks[number + 1].pop(0)[1]
            self._tidy(number + 1)
        if index and chunk[index - 1][1] == start:
            start = chunk.pop(index - 1)[0]
        insort(chunk, (start, end))
        self._tidy(number)

    def _chunk_of(self, address: int) -> int:
        """The last chunk that begins at or below ``address``, or the first."""
        found = bisect_right(self._chunks, address, key=lambda chunk: chunk[0][0] if chunk else 0)
        return max(found - 1, 0)

    def check(self) -> None:
        """Sorted, apart, and the longest ranges are right."""
        ranges = list(self)
        for (_, end), (start, _) in pairwise(ranges):
            assert end < start, (hex(end), hex(start))
        for chunk, longest in zip(self._chunks, self._longest, strict=True):
            assert longest == max((end - start for start, end in chunk), default=0)
