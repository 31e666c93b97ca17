"""Where subsystems get their pages: what slab caches, huge page pools and per-CPU chunks ask of the page allocator.

``mm.page_alloc.PageAllocator`` is the real one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.mm.units import NUMA_NO_NODE

PFNs = npt.NDArray[np.int64]


class PageSupply(Protocol):
    """Gives blocks of ``2**order`` pages and takes them back."""

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = NUMA_NO_NODE) -> int:
        """The PFN of a block. ENOMEM."""

    def alloc_pages_bulk(self, gfp: int, order: int, n: int, nid: int = NUMA_NO_NODE) -> PFNs:
        """The PFNs of ``n`` blocks, fewer when memory ran out."""

    def free_pages_bulk(self, pfns: PFNs, order: int = 0) -> None:
        """Give blocks back."""
