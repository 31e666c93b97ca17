"""Pressure stall information (kernel/sched/psi.c, Documentation/accounting/psi.rst).

Models: the times for which some or all tasks waited for a resource, in the system and in each control group, their
running averages, updated every two seconds of model time as Linux updates them, and triggers: a growth within a window
that wakes a poller at most once in a window. Whoever makes a task wait calls ``memstall`` or ``iostall``.
Left out: IRQ pressure (a kernel option that is off); averages stop a little later than Linux's when nothing stalls, for
they are brought up to date by whoever looks.
"""

from __future__ import annotations

import errno
import re
from typing import Any

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
UPDATES_PER_WINDOW = 10

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


class Trigger:
    """One trigger of one open file (``struct psi_trigger``): ``event`` is what a poller takes away."""

    def __init__(self, stall: Stall, threshold_us: int, window_us: int, now: int) -> None:
        self.stall = stall
        self.threshold_ns = threshold_us * NSEC_PER_USEC
        self.window_ns = window_us * NSEC_PER_USEC
        self.event = False
        self.pending = False
        self.last_event_ns = 0
        self._seen_ns = stall.total_ns
        self._reset(now, 0)

    def _reset(self, now: int, growth: int) -> None:
        self._start_ns, self._start_value, self._previous_growth = now, self.stall.total_ns, growth

    def _growth(self, now: int) -> int:
        """The growth within a window that ends now; the last window counts as far as it reaches in."""
        elapsed = now - self._start_ns
        growth = self.stall.total_ns - self._start_value
        if elapsed > self.window_ns:
            self._reset(now, growth)
            return growth
        return growth + self._previous_growth * (self.window_ns - elapsed) // self.window_ns

    def update(self, now: int) -> bool:
        """Look at what has stalled since the last time (``update_triggers``). Whether it goes off."""
        stalled, self._seen_ns = self.stall.total_ns != self._seen_ns, self.stall.total_ns
        if not stalled and not self.pending:
            return False
        if stalled and self._growth(now) >= self.threshold_ns:
            self.pending = True
        if not self.pending or (self.last_event_ns and now < self.last_event_ns + self.window_ns):
            return False
        self.last_event_ns, self.pending, self.event = now, False, True
        return True


class Psi:
    """Pressure of the system or of a control group, per resource and per kind ("some", "full")."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ns = clock.now
        self._next_ns = clock.now + PSI_FREQ_NS
        self._triggers: list[Trigger] = []
        self._armed = False
        self.enabled = True
        self.stalls = {name: {"some": Stall(), "full": Stall()} for name in RESOURCES}

    def stall(self, resource: str, ns: int, *, full: bool) -> None:
        """A task waited ``ns`` for ``resource``; ``full``: and no other task could run meanwhile."""
        if not self.enabled or ns <= 0:
            return
        self.stalls[resource]["some"].total_ns += ns
        if full:
            self.stalls[resource]["full"].total_ns += ns
        if self._triggers:
            self._arm()

    def memstall(self, task: Any, ns: int, *, full: bool = True) -> None:
        """``task`` (None: none that is in a group) could not go on for want of memory: it reclaimed, compacted, or
        waited for a page that had been in memory before. One CPU's work stops everybody here: mostly all stall."""
        self._everywhere(task, "memory", ns, full=full)

    def iostall(self, task: Any, ns: int, *, full: bool = True) -> None:
        """``task`` waited for a device."""
        self._everywhere(task, "io", ns, full=full)

    def _everywhere(self, task: Any, resource: str, ns: int, *, full: bool) -> None:
        """In the task's group, in those above it and in the system."""
        group = task.cgroup if task is not None else None
        while group is not None:
            if group.psi is not self:
                group.psi.stall(resource, ns, full=full)
            group = group.parent
        self.stall(resource, ns, full=full)

    def restart(self) -> None:
        """Accounting goes on after a pause (``psi_cgroup_restart``)."""
        self._last_ns = self._clock.now
        self._next_ns = self._clock.now + PSI_FREQ_NS

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

    # -- triggers ----------------------------------------------------------------------------------------

    def add_trigger(self, resource: str, kind: str, threshold_us: int, window_us: int) -> Trigger:
        """A trigger that ``parse_trigger`` has checked."""
        trigger = Trigger(self.stalls[resource][kind], threshold_us, window_us, self._clock.now)
        self._triggers.append(trigger)
        return trigger

    def remove_trigger(self, trigger: Trigger) -> None:
        """The open file is closed."""
        self._triggers.remove(trigger)

    def _arm(self) -> None:
        """Something stalled: look at the triggers ten times in the shortest window, as long as it goes on."""
        if not self._armed:
            self._armed = True
            period = min(trigger.window_ns for trigger in self._triggers) // UPDATES_PER_WINDOW
            self._clock.call_at(self._clock.now + period, self._poll_work)

    def _poll_work(self) -> None:
        self._armed = False
        for trigger in self._triggers:
            trigger.update(self._clock.now)
        if any(trigger.pending for trigger in self._triggers):
            self._arm()


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
