"""Rate limits of log lines (lib/ratelimit.c ``___ratelimit``): so many in an interval, and how many were left out.

Left out: the lock, whose contention also suppresses a line.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.printk import KERN_WARNING, Printk

DEFAULT_INTERVAL = 5 * HZ
DEFAULT_BURST = 10


class RateLimit:
    """Lets ``burst`` lines through in ``interval`` jiffies of the model's time. ``now()`` is in ns.

    Both bounds are read at each call: for ``printk_ratelimit`` they are knobs.
    """

    def __init__(
        self,
        now: Callable[[], int],
        printk: Printk,
        interval: Callable[[], int] = lambda: DEFAULT_INTERVAL,
        burst: Callable[[], int] = lambda: DEFAULT_BURST,
    ) -> None:
        self._now = now
        self._printk = printk
        self._interval = interval
        self._burst = burst
        self._begin_ns: int | None = None
        self._printed = 0
        self._missed = 0

    def __call__(self, function: str) -> bool:
        """Whether ``function`` may log now; the first line of an interval tells what the last one left out."""
        interval_ns = self._interval() * NSEC_PER_SEC // HZ
        if not interval_ns:
            return True
        now = self._now()
        if self._begin_ns is None:
            self._begin_ns = now
        if now > self._begin_ns + interval_ns:
            if self._missed:
                self._printk.log(KERN_WARNING, f"{function}: {self._missed} callbacks suppressed")
            self._begin_ns, self._printed, self._missed = now, 0, 0
        if self._printed < self._burst():
            self._printed += 1
            return True
        self._missed += 1
        return False
