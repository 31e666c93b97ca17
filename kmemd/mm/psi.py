"""Pressure stall information (kernel/sched/psi.c, Documentation/accounting/psi.rst).

Models: the times for which some or all tasks waited for a resource, their running averages, updated every
two seconds of model time as Linux updates them, and the checks of a trigger. Whoever makes a task wait calls
``stall``. Left out: delivery of triggers to ``poll``, IRQ pressure (a kernel option that is off).
"""

from __future__ import annotations

import errno
import re

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.clock import NSEC_PER_SEC, Clock

RESOURCES = ("io", "memory", "cpu")
WINDOW_MIN_US = 500_000
WINDOW_MAX_US = 10_000_000
PSI_FREQ_NS = 2 * NSEC_PER_SEC + NSEC_PER_SEC // 250
FSHIFT = 11
FIXED_1 = 1 << FSHIFT
EXP = (1677, 1981, 2034)
"""Weights of the past after 2 s in averages over 10, 60 and 300 s."""
TRIGGER_SIZE = 32
NSEC_PER_USEC = 1000

_TRIGGER = re.compile(rb"(some|full)[ \t\n\v\f\r]*(\d++)[ \t\n\v\f\r]*(\d++)")


class Stall:
    """Time waited, in ns, and its averages in percent, fixed point."""

    def __init__(self) -> None:
        self.total_ns = 0
        self.averaged_ns = 0
        self.avg = [0, 0, 0]

    def update(self, period_ns: int, missed: int) -> None:
        """A new sample of ``period_ns``, after ``missed`` periods in which nobody looked (``calc_avgs``)."""
        for window, weight in enumerate(EXP):
            for _ in range(min(missed, 1000)):
                self.avg[window] = _calc_load(self.avg[window], weight, 0)
        sample = min(self.total_ns - self.averaged_ns, period_ns)
        percent = sample * 100 // period_ns * FIXED_1
        for window, weight in enumerate(EXP):
            self.avg[window] = _calc_load(self.avg[window], weight, percent)
        self.averaged_ns += sample


def _calc_load(load: int, weight: int, active: int) -> int:
    """One step of an exponential average (kernel/sched/loadavg.c ``calc_load``)."""
    fresh = load * weight + active * (FIXED_1 - weight)
    if active >= load:
        fresh += FIXED_1 - 1
    return fresh // FIXED_1


class Psi:
    """The system's pressure, per resource and per kind ("some", "full")."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ns = clock.now
        self._next_ns = clock.now + PSI_FREQ_NS
        self.stalls = {name: {"some": Stall(), "full": Stall()} for name in RESOURCES}

    def stall(self, resource: str, ns: int, *, full: bool) -> None:
        """A task waited ``ns`` for ``resource``; ``full``: and no other task could run meanwhile."""
        self.stalls[resource]["some"].total_ns += ns
        if full:
            self.stalls[resource]["full"].total_ns += ns

    def update_averages(self) -> None:
        """Bring the averages up to now."""
        now = self._clock.now
        if now < self._next_ns:
            return
        missed = (now - self._next_ns) // PSI_FREQ_NS
        period = now - (self._last_ns + missed * PSI_FREQ_NS)
        for kinds in self.stalls.values():
            for stall in kinds.values():
                stall.update(period, missed)
        self._last_ns = now
        self._next_ns += (missed + 1) * PSI_FREQ_NS

    def report(self, resource: str) -> list[tuple[str, tuple[int, int, int], int]]:
        """Rows of /proc/pressure/RESOURCE: kind, averages in percent times ``FIXED_1``, total in µs."""
        self.update_averages()
        rows = []
        for kind, stall in self.stalls[resource].items():
            # For the CPU as a whole "full" means nothing: a CPU that runs somebody is not waiting.
            known = not (resource == "cpu" and kind == "full")
            avg = (stall.avg[0], stall.avg[1], stall.avg[2]) if known else (0, 0, 0)
            rows.append((kind, avg, stall.total_ns // NSEC_PER_USEC if known else 0))
        return rows


def parse_trigger(text: str, *, privileged: bool = True) -> tuple[str, int, int]:
    """Check a trigger, "some 150000 1000000": (kind, threshold in µs, window in µs). EINVAL.

    The kernel takes the last of at most 32 bytes for the newline, whatever it is.
    """
    data = kstrtox.to_bytes(text)[:TRIGGER_SIZE]
    match = _TRIGGER.match(kstrtox.c_string(data[:-1]))
    if match is None:
        raise KernelError(errno.EINVAL, "a trigger is 'some' or 'full', threshold and window in microseconds")
    threshold, window = (int(number) & kstrtox.UINT_MAX for number in match.groups()[1:])
    if not WINDOW_MIN_US <= window <= WINDOW_MAX_US:
        raise KernelError(errno.EINVAL, f"a trigger's window is {WINDOW_MIN_US}..{WINDOW_MAX_US} us")
    if not privileged and window % 2_000_000:
        raise KernelError(errno.EINVAL, "without CAP_SYS_RESOURCE a window is a multiple of 2 s")
    if not 0 < threshold <= window:
        raise KernelError(errno.EINVAL, "a trigger's threshold is above 0 and not above its window")
    return match.group(1).decode(), threshold, window
