"""Dropping clean caches on request (fs/drop_caches.c).

Models: the trigger, its counters and its kernel log line, the page cache: clean pages that nobody maps go, and the
caches that have shrinkers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps
from kmemd.tunable import Tunable, Tuned

PAGECACHE, SLAB, QUIET = 1, 2, 4


class DropCaches(Tuned):
    """``drop_caches`` takes 1 (page cache), 2 (slab), 3 (both), 4 (say no more in the log)."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (vm_knob("drop_caches", mode=0o200, min=1, max=4, steps="drop"),)

    def __init__(
        self,
        context: Context,
        vmstat: VmStat,
        printk: Printk,
        drop_pagecache: Callable[[], Steps[None]],
        drop_slab: Callable[[], Steps[None]],
        *,
        long_bits: int = 64,
    ) -> None:
        """``drop_pagecache()`` drops what can go of all files' page caches, ``drop_slab()`` of other caches."""
        self._drop_pagecache, self._drop_slab = drop_pagecache, drop_slab
        self._context = context
        self._vmstat = vmstat
        self._printk = printk
        self._quiet = False
        self.long_bits = long_bits
        self.drop_caches = 0

    def drop(self, value: int) -> Steps[None]:
        """Drop what the value says; a write of nothing repeats the last one."""
        self.drop_caches = value
        if self.drop_caches & PAGECACHE:
            yield from self._drop_pagecache()
            self._vmstat.count(stats.DROP_PAGECACHE)
        if self.drop_caches & SLAB:
            yield from self._drop_slab()
            self._vmstat.count(stats.DROP_SLAB)
        if not self._quiet:
            who = f"{self._context.comm} ({self._context.pid})"
            self._printk.log(KERN_INFO, f"{who}: drop_caches: {self.drop_caches}")
        self._quiet = self._quiet or bool(self.drop_caches & QUIET)
