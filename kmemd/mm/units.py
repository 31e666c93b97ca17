"""The units that all of the memory manager counts in (include/asm-generic/page.h, include/linux/{sizes,numa}.h).

Pages are 4 KiB on both architectures.
"""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = ~(PAGE_SIZE - 1)
KIB_PER_PAGE = PAGE_SIZE >> 10

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

NUMA_NO_NODE = -1
"""The node of a request that leaves the choice to the allocator."""
