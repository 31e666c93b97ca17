"""The counters of an address space (include/linux/mm.h ``get_mm_counter``, ``mm_pgtables_bytes``).

They are the synced ones: what a task has not yet handed over of its last 64 faults (SPLIT_RSS_COUNTING) is not in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.core.trace import TraceLog
from kmemd.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, MM_SWAPENTS, NR_MM_COUNTERS, Mm
from kmemd.mm.units import PAGE_SIZE


class CounterArrays(Protocol):
    """The core's arrays: ``rss[mm.id * NR_MM_COUNTERS + MM_*]`` and ``tables[mm.id]``, both in pages."""

    rss: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int64]


class MmCounters:
    """Reads the counters by address space. ``arrays()`` are the core's, once there are address spaces."""

    def __init__(self, arrays: Callable[[], CounterArrays], trace: TraceLog | None = None) -> None:
        self.trace = trace if trace is not None else Context().trace
        self._arrays = arrays

    def counter(self, mm: Mm, kind: int) -> int:
        """One counter in pages; a sum that is below zero for want of a sync reads as 0."""
        return max(0, int(self._arrays().rss[mm.id * NR_MM_COUNTERS + kind]))

    def rss(self, mm: Mm) -> int:
        """Resident pages (get_mm_rss)."""
        return sum(self.counter(mm, kind) for kind in (MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES))

    def swap(self, mm: Mm) -> int:
        """Pages in swap, by entries of the page tables."""
        return self.counter(mm, MM_SWAPENTS)

    def pgtables_bytes(self, mm: Mm) -> int:
        """Bytes of page tables below the top level."""
        return int(self._arrays().tables[mm.id]) * PAGE_SIZE
