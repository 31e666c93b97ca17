"""The per-CPU allocator's pages (mm/percpu.c): what ``Percpu:`` in /proc/meminfo counts.

Models: the first chunk, which boot reserves, and the pages with which boot's own per-CPU allocations populate
another chunk, taken from the page allocator on each CPU's node. Left out: allocations within chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kmemd.core.context import Context
from kmemd.mm.gfp import GFP_KERNEL, F
from kmemd.mm.page_supply import PageSupply
from kmemd.mm.setup import PERCPU_PAGES
from kmemd.mm.stackdepot import StackDepot

POPULATED_BY_BOOT = {"x86_64": 6, "i386": 3}
"""Pages per CPU of further chunks when boot is over, as on the captured machines."""
FRAMES = ("pcpu_populate_chunk", "pcpu_balance_workfn", "process_one_work", "worker_thread", "kthread")


class Percpu:
    """Pages that hold per-CPU data. ``nr_pages`` counts the units of all CPUs."""

    def __init__(self, nr_pages: int = 0) -> None:
        self.nr_pages = nr_pages
        self.populated: list[int] = []

    def boot(
        self, arch: str, cpu_nodes: Sequence[int], page_alloc: PageSupply, context: Context, depot: StackDepot
    ) -> None:
        """Take the pages that boot takes; ``cpu_nodes`` is the node of each CPU. ENOMEM."""
        for nid, cpus in sorted(Counter(cpu_nodes).items()):
            context.stack = depot.save(FRAMES)
            pages = page_alloc.alloc_pages_bulk(GFP_KERNEL | F.HIGHMEM, 0, cpus * POPULATED_BY_BOOT[arch], nid)
            self.populated += pages.tolist()
        self.nr_pages += PERCPU_PAGES[arch] * len(cpu_nodes) + len(self.populated)
