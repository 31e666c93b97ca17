"""``--clock real``: idle model time follows the wall clock.

Work moves model time by itself. When it has run ahead of the wall clock, the wall clock catches up
first; when it has fallen behind, the model gets the difference as idle time, in which its timers and
kernel threads run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import trio

from kmemd.steps import Steps

TICK_S = 0.1
SLICE_NS = 1_000_000_000
"""At most this much idle time passes between two points where readers get in."""


log = logging.getLogger("kmemd.daemon")


class Runner(Protocol):
    """What runs work on the model."""

    async def run(self, steps: Steps[int]) -> int:
        """Run ``steps`` to the end."""


def catch_up(kernel: Any, target_ns: int) -> Steps[int]:
    """Let idle time pass until ``target_ns`` since boot. Returns the ns passed."""
    start = kernel.clock.now
    clock = kernel.clock
    while clock.now < target_ns:
        until, timer = min(target_ns, clock.now + SLICE_NS), clock.next_timer_ns
        if timer is not None:  # one at a time: a slice of a thread's work waits as a timer
            until = min(until, max(timer, clock.now + 1))
        yield from kernel.advance_steps(until - clock.now)
        yield
    return int(kernel.clock.now - start)


async def follow(
    kernel: Any, runner: Runner, wall_ns: Callable[[], int] = time.monotonic_ns, tick_s: float = TICK_S
) -> None:
    """Keep model time from falling behind the wall clock, for ever.

    A timer that fails is a bug of the model: it is logged, once for failures in a row, and time goes on.
    """
    offset = kernel.clock.now - wall_ns()
    failing = False
    while True:
        await trio.sleep(tick_s)
        target = wall_ns() + offset
        if kernel.clock.now >= target:
            continue
        try:
            await runner.run(catch_up(kernel, target))
            failing = False
        except Exception:
            if not failing:
                log.exception("the model failed while time passed")
            failing = True
