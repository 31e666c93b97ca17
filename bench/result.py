"""One figure of a benchmark, and how it is printed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A measured value. ``goal`` is the bound it should keep: a minimum, or with ``at_most`` a maximum."""

    what: str
    value: float
    unit: str
    goal: float | None = None
    at_most: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether the goal is kept; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def row(self) -> str:
        """A line of the table."""
        goal = "" if self.goal is None else f"{'<=' if self.at_most else '>='} {self.goal:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[self.kept]
        return f"{self.what:<58} {self.value:>12.3f} {self.unit:<10} {goal:>10} {verdict}"


def best_of(rounds: int, function: Callable[[], None]) -> float:
    """Seconds of the fastest of several runs, without the garbage collector in between."""
    times = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
        gc.enable()
    return min(times)


def median_of(rounds: int, function: Callable[[], float]) -> float:
    """The median of several measurements."""
    return statistics.median(function() for _ in range(rounds))
