"""Kernel samepage merging: its knobs and counters (mm/ksm.c).

Left out: scanning and merging, for which no process has memory yet; the counters are true zeros.
"""

from __future__ import annotations

from typing import Any, ClassVar

from kmemd.mm.sysctl_handlers import refuse, show_number
from kmemd.mm.sysfs_handlers import einval, store_bool, store_int, store_uint, store_ulong
from kmemd.tunable import Tunable, Tuned

KSM_RUN_UNMERGE = 2


def _row(name: str, parse: Any = refuse, **more: Any) -> Tunable:
    return Tunable(f"sys/kernel/mm/ksm/{name}", name, show_number, parse, 0o444 if parse is refuse else 0o644, **more)


class Ksm(Tuned):
    """KSM's settings; ``numa``: built for NUMA."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        _row("sleep_millisecs", store_uint),
        _row("pages_to_scan", store_uint),
        _row("run", store_uint, max=KSM_RUN_UNMERGE),
        _row("pages_shared"),
        _row("pages_sharing"),
        _row("pages_unshared"),
        _row("pages_volatile"),
        _row("full_scans"),
        _row("merge_across_nodes", store_ulong, max=1, when="numa"),
        _row("max_page_sharing", store_int, min=2),
        _row("stable_node_chains"),
        _row("stable_node_dups"),
        _row("stable_node_chains_prune_millisecs", store_uint),
        _row("use_zero_pages", einval(store_bool)),
    )

    def __init__(self, *, numa: bool, long_bits: int = 64) -> None:
        self.numa = numa
        self.long_bits = long_bits
        self.run = 0
        self.sleep_millisecs = 20
        self.pages_to_scan = 100
        self.merge_across_nodes = 1
        self.max_page_sharing = 256
        self.stable_node_chains_prune_millisecs = 2000
        self.use_zero_pages = False
        self.pages_shared = 0
        self.pages_sharing = 0
        self.pages_unshared = 0
        self.rmap_items = 0
        self.full_scans = 0
        self.stable_node_chains = 0
        self.stable_node_dups = 0

    @property
    def pages_volatile(self) -> int:
        """Pages that change too fast to be kept in a tree."""
        return max(self.rmap_items - self.pages_shared - self.pages_sharing - self.pages_unshared, 0)
