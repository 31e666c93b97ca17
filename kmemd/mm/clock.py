"""Model time and the timers that run on it (kernel/time/timer.c). Kernel threads are scheduled here.

Left out: the tick, which nothing waits for; jiffies are computed from the time. All CPUs share one time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from kmemd.core.context import Context
from kmemd.steps import Steps, finish

NSEC_PER_SEC, NSEC_PER_USEC = 1_000_000_000, 1_000
HZ = 250
INITIAL_JIFFIES = (1 << 32) - 300 * HZ


class Clock:
    """Time since boot, moved by work (``Context.charge``), ``advance`` and nothing else.

    ``idle_ns`` is the time that passed without work, since boot.

    Invariants: a timer runs at the first ``run_due`` or ``advance`` at or after its time; timers of
    the same time run in the order in which they were added.
    """

    def __init__(self, context: Context, boot_time_s: int) -> None:
        self._context = context
        self.boot_time_s = boot_time_s
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self.idle_ns = 0

    @property
    def now(self) -> int:
        """ns since boot."""
        return self._context.now

    @property
    def jiffies(self) -> int:
        """The kernel's tick counter, which starts five minutes before it wraps 32 bits."""
        return INITIAL_JIFFIES + self.now * HZ // NSEC_PER_SEC

    @property
    def next_timer_ns(self) -> int | None:
        """When the first timer runs, in ns since boot; None without timers."""
        return self._timers[0][0] if self._timers else None

    def call_at(self, when_ns: int, function: Callable[[], None]) -> None:
        """Run ``function`` once, when model time reaches ``when_ns``."""
        heapq.heappush(self._timers, (when_ns, next(self._order), function))

    def run_due(self) -> None:
        """Run the timers that are due now."""
        finish(self.due_steps())

    def due_steps(self) -> Steps[None]:
        """``run_due`` in slices, one for each timer."""
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
            yield

    def advance(self, ns: int) -> None:
        """Let idle time pass, stopping at each timer on the way."""
        finish(self.advance_steps(ns))

    def advance_steps(self, ns: int) -> Steps[None]:
        """``advance`` in slices, one for each timer."""
        end = self.now + ns
        while self._timers and self._timers[0][0] <= end:
            self._idle_until(self._timers[0][0])
            yield from self.due_steps()
        self._idle_until(end)

    def _idle_until(self, when_ns: int) -> None:
        """Nothing is done until then."""
        if when_ns > self.now:
            self.idle_ns += when_ns - self.now
            self._context.now = when_ns
