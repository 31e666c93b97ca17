"""``kmemd/translation``: how accesses of processes became pages, counted at each step (no Linux counterpart)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.core.access_stats import STAT_NAMES
from kmemd.kernel import Kernel
from kmemd.views.tree import kmemd


@kmemd.file("translation", mode=0o444)
def translation(kernel: Kernel) -> Iterator[str]:
    """TLB, page tables, fault handler, page cache, swap and disk, TLB update and flushes: one count a line."""
    for name, count in zip(STAT_NAMES, kernel.mmu.stats.tolist(), strict=True):
        yield f"{name} {count}\n"
