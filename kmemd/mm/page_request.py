"""A request to the page allocator, and whom the allocator turns to (mm/internal.h ``struct alloc_context``).

``Relief`` frees memory for a request that finds none, ``Charging`` is the memory controller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

PFNS = npt.NDArray[np.int64]
MAX_RECLAIM_RETRIES = 16
INIT_COMPACT_PRIORITY, DEF_COMPACT_PRIORITY = 2, 1
"""How hard compaction tries: without waiting for pages, and then waiting a little (enum compact_priority)."""
SUSPENDED = -3
"""Instead of a block: reclaim takes longer than the caller's slice, and goes on when the request is made again."""
COMPACT_SKIPPED, COMPACT_DEFERRED = 1, 2
"""Two of enum compact_result: there was too little room, or it failed lately."""


@dataclass(slots=True)
class Request:
    """What a request may use (struct alloc_context): a zonelist row, the highest zone and the nodes."""

    gfp: int
    order: int
    row: int
    highest: int
    nodemask: int
    migratetype: int
    compact_priority: int = INIT_COMPACT_PRIORITY
    compact_result: int = COMPACT_SKIPPED
    compact_retries: int = 0


class Relief(Protocol):
    """What frees memory for a request that finds none. Each returns what Linux's function returns.

    ``patience`` is how many steps of reclaim the caller can wait for, None for all that it takes; ``may_suspend``:
    direct reclaim stops when it is used up.
    """

    patience: int | None
    may_suspend: bool

    def needed_over(self, ns: int, after: int = 0) -> None:
        """The blocks of the next requests were needed one after the other in ``ns``, which ended ``after`` ns ago."""

    def meanwhile(self, left: int, n: int) -> int:
        """Others work while a request for ``n`` blocks still lacks ``left``: how many come before they are looked at
        again."""

    in_parts: bool

    @property
    def enough(self) -> bool:
        """Whether the other blocks of a request wait for the caller's next slice; with ``in_parts`` only."""

    def took_one(self) -> bool:
        """A page was asked for alone, after a look at the nodes; ``tired``."""

    def wakeup_kswapd(self, nid: int, order: int, highest: int, gfp: int = 0) -> None:
        """Wake a node's kswapd. ``gfp`` is what the request may do."""

    def drop_boosts(self) -> None:
        """A request goes into the slow path: kswapd has run meanwhile, and boosted watermarks are lowered."""

    def try_to_free_pages(self, request: Request) -> int:
        """Direct reclaim: the number of pages reclaimed, or ``SUSPENDED``."""

    def try_to_compact_pages(self, request: Request, alloc_flags: int, attempt: Callable[[], int]) -> int:
        """Direct compaction, after which ``attempt`` is made: the block, or -1; ``request`` remembers the result."""

    def should_compact_retry(self, request: Request, alloc_flags: int) -> bool:
        """Whether to reclaim and compact once more."""

    def reclaimable_pages(self, zi: int) -> int:
        """Pages of a zone that reclaim could free at most (zone_reclaimable_pages)."""

    def out_of_memory(self, request: Request) -> bool:
        """The OOM killer: whether a task was killed."""

    def is_reclaiming(self) -> bool:
        """Whether this is within reclaim, which may use all reserves (PF_MEMALLOC)."""

    def is_oom_victim(self) -> bool:
        """Whether the OOM killer has chosen the executing task, which may then use the reserves."""


class Charging(Protocol):
    """The memory controller. ``active``: there are groups; ``charged``: pages that are charged to them."""

    active: bool
    charged: int

    def charge_kmem(self, pfns: PFNS, order: int, gfp: int) -> int:
        """Charge the kernel's blocks to the group of who asks; how many."""

    def uncharge(self, pfns: PFNS, order: int) -> None:
        """Blocks are about to be freed."""

    def stalled(self, ns: int) -> None:
        """The executing task has waited so long for memory."""
