"""NUMA placement: the system-wide switches (mm/memory-tiers.c, kernel/sched/fair.c ``numa_balancing``).

Left out: policies of tasks and mappings, which need address spaces.
"""

from __future__ import annotations

from typing import ClassVar

from kmemd.mm.sysctl_handlers import proc_dointvec_minmax, show_number
from kmemd.mm.sysfs_handlers import show_word, store_bool
from kmemd.tunable import Tunable, Tuned

NUMA_BALANCING_DISABLED, NUMA_BALANCING_NORMAL = 0, 1
SYSCTL_FOUR = 4


class Mempolicy(Tuned):
    """``numa``: built for NUMA; ``nr_nodes``: nodes online. Balancing is on where there is more than one."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable("sys/kernel/mm/numa/demotion_enabled", "demotion_enabled", show_word, store_bool, when="numa"),
        Tunable(
            "proc/sys/kernel/numa_balancing",
            "numa_balancing",
            show_number,
            proc_dointvec_minmax,
            min=0,
            max=SYSCTL_FOUR,
            when="numa",
        ),
    )

    def __init__(self, nr_nodes: int, *, numa: bool, long_bits: int = 64) -> None:
        self.numa = numa
        self.long_bits = long_bits
        self.demotion_enabled = False
        self.numa_balancing = NUMA_BALANCING_NORMAL if numa and nr_nodes > 1 else NUMA_BALANCING_DISABLED
