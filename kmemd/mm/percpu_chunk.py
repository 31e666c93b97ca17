"""Areas in a chunk of per-CPU memory (mm/percpu.c ``pcpu_alloc_area``, ``pcpu_free_area``).

An area is at the same offset in the unit of each CPU: one map stands for all units. It goes to the lowest place that is
large enough; Linux's hints only skip places that are too small.
"""

from __future__ import annotations

from bisect import insort

from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

MIN_ALLOC = 4
"""PCPU_MIN_ALLOC_SIZE: what sizes and offsets are multiples of, in bytes."""


class Chunk:
    """Bytes ``[start, end)`` of each CPU's unit; those before and behind on its pages are others'.

    ``areas`` are offsets and sizes, in order; ``populated`` the pages that are there.

    Invariants: areas are apart, inside, and on populated pages.
    """

    def __init__(self, start: int, end: int, *, populated: int = 0, immutable: bool = False) -> None:
        self.start, self.end, self.immutable = start, end, immutable
        self.pages = -(-end // PAGE_SIZE)
        self.populated = set(range(self.pages) if immutable else range(populated))
        self.areas: list[tuple[int, int]] = []
        self.max_alloc_size = 0
        self._holes: list[tuple[int, int]] | None = None

    def holes(self) -> list[tuple[int, int]]:
        """Free offsets and sizes, in order."""
        if self._holes is None:
            at, found = self.start, []
            for offset, size in [*self.areas, (self.end, 0)]:
                if offset > at:
                    found.append((at, offset - at))
                at = offset + size
            self._holes = found
        return self._holes

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has."""
        return self.end - self.start - sum(size for _, size in self.areas)

    @property
    def contig_bytes(self) -> int:
        """The largest hole."""
        return max((size for _, size in self.holes()), default=0)

    @property
    def first_free(self) -> int:
        """Where the first hole begins."""
        return next((offset for offset, _ in self.holes()), self.end)

    def empty_populated(self) -> set[int]:
        """Pages that are there and that no area is on (``nr_empty_pop_pages``)."""
        found: set[int] = set()
        for offset, size in self.holes():
            found.update(range(-(-offset // PAGE_SIZE), (offset + size) >> PAGE_SHIFT))
        return found & self.populated

    def alloc(self, size: int, align: int) -> int:
        """The offset of a new area; -1 without room."""
        for offset, room in self.holes():
            at = -(-offset // align) * align
            if at + size <= offset + room:
                insort(self.areas, (at, size))
                self.max_alloc_size = max(self.max_alloc_size, size)
                self._holes = None
                return at
        return -1

    def free(self, offset: int) -> None:
        """Give an area back. Preconditions: one begins there."""
        self.areas.remove(next(area for area in self.areas if area[0] == offset))
        self._holes = None

    def missing(self, offset: int, size: int) -> list[int]:
        """Pages of an area that are not there yet."""
        return [page for page in range(offset >> PAGE_SHIFT, -(-(offset + size) // PAGE_SIZE)) if not self.has(page)]

    def has(self, page: int) -> bool:
        """Whether a page is there."""
        return page in self.populated

    def sizes(self) -> list[int]:
        """Areas as their sizes, holes between them as negative ones, the smallest first (``chunk_map_stats``)."""
        end = sum(self.areas[-1]) if self.areas else 0
        between = [-size for offset, size in self.holes() if offset < end]
        return sorted([*between, *(size for _, size in self.areas)])

    def check(self) -> None:
        """The invariants."""
        at = self.start
        for offset, size in self.areas:
            assert offset >= at, f"per-CPU area at {offset:#x} is in another one"
            at = offset + size
        assert at <= self.end, "a per-CPU area leaves its chunk"
        assert not any(self.missing(*area) for area in self.areas), "a per-CPU area is on no page"
