"""vm.stat_interval and vm.stat_refresh (mm/vmstat.c).

The model's counters are always exact, so that the interval is kept and changes nothing, and a refresh finds
nothing to fold in.
"""

from __future__ import annotations

from typing import ClassVar

from kmemd.mm.clock import HZ
from kmemd.mm.sysctl_handlers import proc_dointvec_jiffies, show_jiffies, show_nothing, take_all, vm_knob
from kmemd.tunable import Tunable, Tuned


class VmStatSysctl(Tuned):
    """When Linux folds its per-CPU counters."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("stat_interval", proc_dointvec_jiffies, show_jiffies),
        vm_knob("stat_refresh", take_all, show_nothing, mode=0o600),
    )

    def __init__(self, *, long_bits: int = 64) -> None:
        self.long_bits = long_bits
        self.stat_interval = HZ
        self.stat_refresh = 0
