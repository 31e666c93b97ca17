"""What disks and flushers do in time: events that also run while a task waits for one (kernel/sched/completion.c).

A timer of the model's clock runs when a command is over, or between its slices. A task that waits for a disk inside
of a call lets the disk's events happen, and no other kernel thread's. Linux has the scheduler for that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from kmemd.core.context import Context
from kmemd.mm.clock import Clock
from kmemd.mm.sched import elsewhere
from kmemd.steps import Steps


class IoClock:
    """Events by time. Invariants: those that are due run in order of their time, then of their making."""

    def __init__(
        self,
        clock: Clock,
        context: Context,
        waited: Callable[[int, int], None] = lambda ns, sleeps: None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        """``waited(ns, sleeps)`` hears how long the executing task has waited, and how often; ``arrived()`` lets end
        what other devices, those of swap, have done until now."""
        self._waited, self._arrived = waited, arrived
        self._clock, self._context = clock, context
        self._events: list[tuple[int, int, Callable[[int], None]]] = []
        self._order = count()
        self._running = False

    @property
    def now(self) -> int:
        """ns since boot."""
        return self._clock.now

    @property
    def jiffies(self) -> int:
        """The kernel's tick counter."""
        return self._clock.jiffies

    @property
    def next_event(self) -> int | None:
        """When the first event is due; None when there is none."""
        return self._events[0][0] if self._events else None

    def call_at(self, when: int, function: Callable[[int], None]) -> None:
        """Run ``function(when)`` once, at ``when`` or as soon after as anybody looks."""
        heapq.heappush(self._events, (when, next(self._order), function))
        self._clock.call_at(when, self._run_next)

    def run_due(self) -> None:
        """Run the events that are due now, and those that they make due."""
        while not self._running and self._events and self._events[0][0] <= self.now:
            self._run_next()

    def _run_next(self) -> None:
        """Run one event that is due, if there is one: others may get in between two of them."""
        if self._running or not self._events or self._events[0][0] > self.now:
            return
        self._running = True
        try:
            when, _, function = heapq.heappop(self._events)
            with elsewhere(self._context):
                function(when)
        finally:
            self._running = False

    def sleep_until(self, when: int) -> None:
        """The executing task waits; time stands at ``when`` at least afterwards."""
        start = self.now
        while not self._running and self._events and self._events[0][0] <= when:
            self._context.now = max(self.now, self._events[0][0])
            self._others_arrive()
            self.run_due()
        self._context.now = max(self.now, when)
        self._others_arrive()
        self._waited(self.now - start, 1)

    def slept(self, ns: int, sleeps: int) -> None:
        """The executing task has waited so often and so long together, in which nothing else was due."""
        self._waited(ns, sleeps)

    def sleep_steps(self, when: int) -> Steps[None]:
        """``sleep_until`` in slices."""
        start = self.now
        while not self._running and self._events and self._events[0][0] <= when:
            self._context.now = max(self.now, self._events[0][0])
            self._others_arrive()
            self.run_due()
            yield
        self._context.now = max(self.now, when)
        self._others_arrive()
        self._waited(self.now - start, 1)

    def _others_arrive(self) -> None:
        """Pages on their way to swap are counted as being written: who waits for fewer of these must see them go."""
        with elsewhere(self._context):
            self._arrived()
