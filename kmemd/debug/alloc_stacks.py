"""Who holds memory, by call stack: what page_owner, kmemleak and SLUB's tracks know, added up (no Linux counterpart).

Each source gives for every stack how many allocations it made that are still there, and their bytes. The text is
what flame graph programs call folded stacks: frames from the outermost to the innermost, joined by semicolons, and a
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.leak import OBJECT_ALLOCATED, LeakTable
from kmemd.core.owner import ALLOCATED, OwnerTable
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SIZE

WEIGHTS = ("bytes", "count")
PIECE = 1 << 18
"""Rows added up at a time, in a few milliseconds."""

Sums = dict[int, list[int]]
"""By stack depot handle: allocations, and their bytes."""
Numbers = npt.NDArray[np.int64]


class Tracked(Protocol):
    """An allocation whose maker SLUB remembers (struct track)."""

    @property
    def handle(self) -> int:
        """The stack."""

    @property
    def size(self) -> int:
        """Bytes."""


class AllocStacks:
    """The sources of one kernel: ``source`` to text by ``folded``; those that are off give nothing."""

    def __init__(
        self,
        depot: StackDepot,
        owner: OwnerTable | None,
        leaks: Callable[[], LeakTable],
        tracks: Callable[[], Iterable[Tracked]],
    ) -> None:
        self._depot = depot
        self._owner = owner
        self._leaks = leaks
        self._tracks = tracks
        self.sources: dict[str, Callable[[], Sums]] = {
            "page_owner": self._pages,
            "kmemleak": self._objects,
            "slab": self._tracked,
        }

    def folded(self, source: str, weight: str) -> Iterator[str]:
        """A line for every stack, by descending weight."""
        column = WEIGHTS.index(weight) ^ 1
        by_text: dict[str, int] = {}
        for handle, sums in self.sources[source]().items():
            frames = self._depot.frames(handle) or ("[unknown]",)
            text = ";".join(_name(frame) for frame in reversed(frames))
            by_text[text] = by_text.get(text, 0) + sums[column]
        for text, number in sorted(by_text.items(), key=lambda item: (-item[1], item[0])):
            yield f"{text} {number}\n"

    def _pages(self) -> Sums:
        """Blocks of pages in use, as page_owner's file counts them."""
        sums: Sums = {}
        table = self._owner
        for start in range(0, table.max_pfn, PIECE) if table is not None else ():
            assert table is not None
            pfns = np.flatnonzero(table.allocated[start : start + PIECE] == ALLOCATED) + start
            orders = table.order[pfns].astype(np.int64)
            heads = (pfns & ((1 << orders) - 1) == 0) & (table.stack[pfns] != 0)
            _add(sums, table.stack[pfns[heads]], PAGE_SIZE << orders[heads])
        return sums

    def _objects(self) -> Sums:
        """Objects that kmemleak tracks."""
        sums: Sums = {}
        table = self._leaks()
        for start in range(0, int(table.rows), PIECE):
            part = slice(start, min(start + PIECE, int(table.rows)))
            live = table.flags[part] & OBJECT_ALLOCATED != 0
            _add(sums, table.stack[part][live], table.size[part][live])
        return sums

    def _tracked(self) -> Sums:
        """Objects of caches that are debugged with ``slub_debug=U``."""
        sums: Sums = {}
        for track in self._tracks():
            found = sums.setdefault(track.handle, [0, 0])
            found[0] += 1
            found[1] += track.size
        return sums


def _add(sums: Sums, stacks: npt.NDArray[np.uint32], sizes: Numbers) -> None:
    handles, where = np.unique(stacks, return_inverse=True)
    counts = np.bincount(where, minlength=len(handles))
    totals = np.zeros(len(handles), dtype=np.int64)
    np.add.at(totals, where, sizes)
    for handle, count, total in zip(handles.tolist(), counts.tolist(), totals.tolist(), strict=True):
        found = sums.setdefault(handle, [0, 0])
        found[0] += count
        found[1] += total


def _name(frame: str) -> str:
    """A frame without its offset: a function is one box, wherever in it the call is."""
    where, bracket, module = frame.partition("[")
    return where.partition("+")[0] + bracket + module
