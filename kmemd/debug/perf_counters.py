"""The events of perf that this machine counts (tools/perf ``event_symbols``, mm/vmstat.c, the translation path).

Software events are the kernel's own counters. Hardware events stand for what the model knows of hardware: look-ups in
its TLB and page walks are counted (a faulting access looks twice), cycles are the model time of work at the CPU's
frequency, and the last-level cache is a proxy: a reference is an access or a step of a page walk, a miss is an access
that the cost table charges with memory.
Every counter of ``/proc/vmstat`` is the event ``vmstat:NAME``, every step of translation ``mmu:NAME``.

What a real machine counts and the model does not (instructions, branches …) is known by name, and not supported.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from kmemd.core import access_stats, stats
from kmemd.core.access_stats import STAT_NAMES
from kmemd.core.context import NOW, Context
from kmemd.core.mmu import Mmu
from kmemd.errors import KernelError
from kmemd.mm.clock import Clock
from kmemd.mm.vmstat import VmStat

Read = Callable[[], int]

ALIASES = {
    "faults": "page-faults",
    "cs": "context-switches",
    "migrations": "cpu-migrations",
    "cpu-cycles": "cycles",
}
NOT_COUNTED = frozenset(
    (
        *("instructions", "branches", "branch-instructions", "branch-misses", "cache-references", "cache-misses"),
        *("bus-cycles", "ref-cycles", "stalled-cycles-frontend", "stalled-cycles-backend", "cpu-migrations"),
        *("alignment-faults", "emulation-faults", "cgroup-switches", "L1-dcache-loads", "L1-dcache-load-misses"),
        *("L1-dcache-stores", "L1-icache-load-misses", "LLC-stores", "LLC-store-misses", "dTLB-stores"),
        *("dTLB-store-misses", "iTLB-loads", "iTLB-load-misses", "node-loads", "node-load-misses"),
    )
)
CLOCKS = ("task-clock", "cpu-clock")
"""Events whose unit is the nanosecond."""


def _view(array: Any) -> memoryview:
    """An array whose elements are Python's integers."""
    return memoryview(array)


class Counters:
    """What can be counted: ``reader(name)`` gives the function that reads an event, which never goes back for good.

    ``mhz`` is the frequency of the CPUs.
    """

    def __init__(self, vmstat: VmStat, translation: Mmu, context: Context, clock: Clock, mhz: float) -> None:
        self._vmstat = vmstat
        self._mmu = translation
        # views, whose elements are read in no time: counters are read at every call while something is recorded
        self._events, self._steps_done, self._words = map(_view, (vmstat.events, translation.stats, context.words))
        self._clock = clock
        self._khz = round(mhz * 1000)
        self._named: dict[str, Read] = {
            "cpu-clock": self._busy,
            "task-clock": self._busy,
            "page-faults": self._event(stats.PGFAULT),
            "minor-faults": lambda: self._vm(stats.PGFAULT) - self._vm(stats.PGMAJFAULT),
            "major-faults": self._event(stats.PGMAJFAULT),
            "context-switches": self._step(access_stats.SWITCHES),
            "cycles": lambda: self._busy() * self._khz // 1_000_000,
            "dTLB-loads": lambda: sum(
                map(self._steps, (access_stats.L1_HITS, access_stats.L2_HITS, access_stats.WALKS))
            ),
            "dTLB-load-misses": self._step(access_stats.WALKS),
            "LLC-loads": lambda: self._steps(access_stats.ACCESSES) + self._steps(access_stats.WALK_LEVELS),
            "LLC-load-misses": self._step(access_stats.TLB_FILLS),
        }

    def reader(self, name: str) -> Read:
        """The function that reads an event. ENOENT: not one of this machine; EINVAL: not an event at all."""
        name = ALIASES.get(name, name)
        found = self._named.get(name) or self._from_table(name)
        if found is not None:
            return found
        if name in NOT_COUNTED:
            raise KernelError(errno.ENOENT, f"{name} is not counted by this machine")
        raise KernelError(errno.EINVAL, f"no event {name!r}; kmemd/perf/counters lists them")

    def lines(self) -> Iterator[tuple[str, int]]:
        """Every event and its count since boot."""
        for name, read in self._named.items():
            yield name, read()
        for name, count in self._vmstat.event_lines():
            yield f"vmstat:{name}", count
        for name, count in zip(STAT_NAMES, self._mmu.stats.tolist(), strict=True):
            yield f"mmu:{name}", count

    def _from_table(self, name: str) -> Read | None:
        group, _, word = name.partition(":")
        if group == "vmstat":
            number = next((event for event, text in self._vmstat.event_names if text == word), None)
            return None if number is None else lambda: self._vmstat.event(number)
        if group == "mmu" and word in STAT_NAMES:
            return self._step(STAT_NAMES.index(word))
        return None

    def _busy(self) -> int:
        """ns that were spent working, on whichever CPU."""
        return self._words[NOW] - self._clock.idle_ns

    def _vm(self, event: int) -> int:
        return self._events[event]

    def _event(self, event: int) -> Read:
        events = self._events
        return lambda: events[event]

    def _steps(self, step: int) -> int:
        return self._steps_done[step]

    def _step(self, step: int) -> Read:
        steps = self._steps_done
        return lambda: steps[step]
