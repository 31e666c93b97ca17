"""Pressure stall information (kernel/sched/psi.c, Documentation/accounting/psi.rst).

Models: for each CPU and group the times in which some or all of its tasks waited, the sum over CPUs weighted by how
long each was busy, running averages with the kernel's fixed point every two seconds as long as anything goes on, and
triggers of both kinds: those of root, which a thread watches ten times in a window, and those of others, which the
averages' clock watches. Left out: IRQ pressure (a kernel option that is off), and waiting for a CPU: one task executes
at a time.

Tasks say how long they have stalled once it is over, so a stall is entered as the interval that it was: what Linux does
on its clock meanwhile, the averages, is caught up with at the right moments.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.clock import HZ, NSEC_PER_SEC, NSEC_PER_USEC, Clock
from kmemd.mm.sched import PF_KTHREAD, TaskTable

RESOURCES = ("io", "memory", "cpu")
NONIDLE = 2 * len(RESOURCES)
"""States: some and full of each resource, and that a CPU has any task that runs or waits."""
NR_STATES = NONIDLE + 1
AVGS, POLL = range(2)
WINDOW_MIN_US = 500_000
WINDOW_MAX_US = 10_000_000
JIFFY_NS = NSEC_PER_SEC // HZ
PSI_FREQ_NS = (2 * HZ + 1) * JIFFY_NS
FSHIFT = 11
FIXED_1 = 1 << FSHIFT
EXP = (1677, 1981, 2034)
"""Weights of the past after 2 s in averages over 10, 60 and 300 s."""
TRIGGER_SIZE = 32
UPDATES_PER_WINDOW = 10
KTHREADD = 2

_TRIGGER = re.compile(rb"(some|full)[ \t\n\v\f\r]*(\d++)[ \t\n\v\f\r]*(\d++)")


def state_of(resource: str, *, full: bool) -> int:
    """The number of a state."""
    return 2 * RESOURCES.index(resource) + full


def _calc_load(load: int, weight: int, active: int) -> int:
    """One step of an exponential average (kernel/sched/loadavg.c ``calc_load``)."""
    fresh = load * weight + active * (FIXED_1 - weight)
    if active >= load:
        fresh += FIXED_1 - 1
    return fresh // FIXED_1


def _fixed_power(weight: int, n: int) -> int:
    """``weight`` to the power of ``n`` in fixed point, rounded at each step (``fixed_power_int``)."""
    result = FIXED_1
    while n:
        if n & 1:
            result = (result * weight + (FIXED_1 >> 1)) >> FSHIFT
        weight = (weight * weight + (FIXED_1 >> 1)) >> FSHIFT
        n >>= 1
    return result


class Average:
    """The averages of one state, in percent, fixed point. ``seen_ns`` of its total are in them."""

    __slots__ = ("avg", "seen_ns")

    def __init__(self) -> None:
        self.avg = [0, 0, 0]
        self.seen_ns = 0

    def update(self, total_ns: int, period_ns: int, missed: int) -> None:
        """A new sample of ``period_ns``, after ``missed`` periods in which nothing went on (``calc_avgs``)."""
        sample = min(total_ns - self.seen_ns, period_ns)
        self.seen_ns += sample
        percent = sample * 100 // period_ns * FIXED_1
        for window, weight in enumerate(EXP):
            load = self.avg[window]
            if missed and load:
                load = _calc_load(load, _fixed_power(weight, missed), 0)
            self.avg[window] = _calc_load(load, weight, percent) if load or percent else 0


class CpuTimes:
    """What the tasks of a group did on one CPU, in ns by state, and how much of it each aggregator has seen."""

    __slots__ = ("seen", "times")

    def __init__(self) -> None:
        self.times = [0] * NR_STATES
        self.seen = ([0] * NR_STATES, [0] * NR_STATES)

    def recent(self, aggregator: int) -> list[int]:
        """What is new (``get_recent_times``)."""
        found = [have - old for have, old in zip(self.times, self.seen[aggregator], strict=True)]
        self.seen[aggregator][:] = self.times
        return found


class Trigger:
    """One trigger of one open file (``struct psi_trigger``): ``event`` is what a poller takes away."""

    def __init__(self, state: int, aggregator: int, threshold_us: int, window_us: int) -> None:
        self.state, self.aggregator = state, aggregator
        self.threshold_ns = threshold_us * NSEC_PER_USEC
        self.window_ns = window_us * NSEC_PER_USEC
        self.event = False
        self.pending = False
        self.last_event_ns = 0
        self._start_ns = self._start_value = self._previous_growth = 0

    def reset(self, now: int, value: int, growth: int) -> None:
        """A new window begins (``window_reset``)."""
        self._start_ns, self._start_value, self._previous_growth = now, value, growth

    def _growth(self, now: int, value: int) -> int:
        """The growth within a window that ends now; the last window counts as far as it reaches in."""
        elapsed = now - self._start_ns
        growth = value - self._start_value
        if elapsed > self.window_ns:
            self.reset(now, value, growth)
            return growth
        return growth + self._previous_growth * (self.window_ns - elapsed) // self.window_ns

    def update(self, now: int, value: int, *, stalled: bool) -> None:
        """Look at a total; ``stalled``: it has grown since the last time (``update_triggers``)."""
        if not stalled and not self.pending:
            return
        if stalled and self._growth(now, value) >= self.threshold_ns:
            self.pending = True
        if self.pending and now >= self.last_event_ns + self.window_ns:
            self.last_event_ns, self.pending, self.event = now, False, True


class Monitor:
    """The thread that watches the triggers of one group (``psi_rtpoll_worker``)."""

    def __init__(self, tasks: TaskTable) -> None:
        self._tasks, self._pid = tasks, 0

    def __call__(self, start: bool) -> None:
        """Start it, or end it."""
        if start:
            parent = KTHREADD if KTHREADD in self._tasks else 0
            self._pid = self._tasks.spawn("psimon", parent, flags=PF_KTHREAD).pid
        elif self._pid in self._tasks:
            self._tasks.exit(self._pid)


class Psi:
    """Pressure of the system or of a control group (``struct psi_group``).

    ``cpu()`` is the executing CPU; ``watch(True)`` starts the thread that watches triggers of root, ``watch(False)``
    ends it. ``whole``: this is the whole system's. ``told_ns`` is the sum of all that the executing task told.
    """

    def __init__(
        self,
        clock: Clock,
        cpu: Callable[[], int] = lambda: 0,
        cpus: int = 1,
        watch: Callable[[bool], None] = lambda start: None,
        *,
        whole: bool = False,
    ) -> None:
        self._whole = whole
        self._clock, self._cpu, self._cpus, self._watch = clock, cpu, cpus, watch
        self._times: dict[int, CpuTimes] = {}
        self._total = ([0] * NONIDLE, [0] * NONIDLE)
        self._averages = [Average() for _ in range(NONIDLE)]
        self._last_ns = clock.now
        self._next_ns = clock.now + PSI_FREQ_NS
        self._work_ns: int | None = None
        self._timer_ns: int | None = None
        self._triggers: list[Trigger] = []
        self._polled = [0] * NONIDLE
        self._poll_until_ns = self._poll_next_ns = 0
        self._poll_armed = False
        self.enabled = True
        self.told_ns = 0

    # -- what tasks tell ---------------------------------------------------------------------------------

    def memstall(self, task: Any, ns: int, *, elsewhere: bool = False) -> None:
        """``task`` (None: none that is in a group) could not go on for want of memory for the last ``ns``: it
        reclaimed, compacted, was throttled at a limit, or waited for a page that had been in memory before.
        ``elsewhere``: it has a CPU of its own, on which the executing task is not (a kernel thread)."""
        self._everywhere(task, "memory", ns, elsewhere=elsewhere)

    def iostall(self, task: Any, ns: int, *, elsewhere: bool = False) -> None:
        """``task`` waited for a device (``in_iowait``) for the last ``ns``."""
        self._everywhere(task, "io", ns, elsewhere=elsewhere)

    def thrashing(self, task: Any, ns: int) -> None:
        """``task`` waited for a device for the last ``ns``, to read what had been in memory before: it stalled for
        both."""
        self.told_ns += max(ns, 0)
        for psi in self._above(task):
            psi.enter((state_of("io", full=True), state_of("memory", full=True)), ns, self._cpu())

    def ran(self, task: Any, ns: int) -> None:
        """``task`` ran for ``ns``, what it told as stalls not counted: its CPU was busy."""
        for psi in self._above(task):
            psi.enter((), ns, self._cpu())

    def _everywhere(self, task: Any, resource: str, ns: int, *, elsewhere: bool) -> None:
        cpu = (self._cpu() + elsewhere) % self._cpus
        if not elsewhere:
            self.told_ns += max(ns, 0)
        for psi in self._above(task):
            psi.stall(resource, ns, full=True, cpu=cpu)

    def _above(self, task: Any) -> Iterator[Psi]:
        """The task's group, those above it and the system."""
        group = task.cgroup if task is not None else None
        while group is not None:
            if group.psi is not self:
                yield group.psi
            group = group.parent
        yield self

    def stall(self, resource: str, ns: int, *, full: bool, cpu: int = 0) -> None:
        """Some tasks of this group waited for the last ``ns``; ``full``: and none of it ran on this CPU."""
        self.enter((state_of(resource, full=full),), ns, cpu)

    def enter(self, states: tuple[int, ...], ns: int, cpu: int) -> None:
        """A CPU was busy, and in some states, for the last ``ns`` (``psi_group_change``, ``record_times``)."""
        if not self.enabled or ns <= 0:
            return
        times = self._times.get(cpu)
        if times is None:
            times = self._times[cpu] = CpuTimes()
        now = self._clock.now
        start = now - ns
        if states and any(t.aggregator == POLL for t in self._triggers):
            self._start_polling(start)
        if self._work_ns is None:
            self._work_ns = start + PSI_FREQ_NS
        while self._work_ns is not None and self._work_ns <= now:
            end = max(start, self._work_ns)
            self._record(times.times, states, end - start)
            start = end
            self._avgs_work(end)
        self._record(times.times, states, now - start)
        self._arm()

    @staticmethod
    def _record(times: list[int], states: tuple[int, ...], ns: int) -> None:
        times[NONIDLE] += ns
        for state in states:
            times[state & ~1] += ns
            if state & 1:
                times[state] += ns

    def restart(self) -> None:
        """Accounting goes on after a pause (``psi_cgroup_restart``): nothing is left to do, for no state lasts."""

    # -- totals and averages -----------------------------------------------------------------------------

    def _collect(self, aggregator: int) -> bool:
        """Add what is new to the totals, each CPU weighted by how long it was busy (``collect_percpu_times``).

        Linux weighs in ticks, and loses what took less than one; here a stall counts however short it was. Whether
        anything went on.
        """
        recent = [times.recent(aggregator) for times in self._times.values()]
        busy = sum(times[NONIDLE] for times in recent)
        if busy:
            for state, total in enumerate(self._total[aggregator]):
                self._total[aggregator][state] = total + sum(each[state] * each[NONIDLE] for each in recent) // busy
        return busy > 0

    def _update_averages(self, now: int) -> None:
        """A sample of what was since the last one (``update_averages``)."""
        missed = (now - self._next_ns) // PSI_FREQ_NS
        period = now - (self._last_ns + missed * PSI_FREQ_NS)
        for total, average in zip(self._total[AVGS], self._averages, strict=True):
            average.update(total, period, missed)
        self._last_ns = now
        self._next_ns += (missed + 1) * PSI_FREQ_NS

    def _avgs_work(self, now: int) -> None:
        """Every two seconds as long as anything goes on (``psi_avgs_work``)."""
        busy = self._collect(AVGS)
        if now >= self._next_ns:
            for trigger in self._triggers:
                if trigger.aggregator == AVGS:
                    total = self._total[AVGS][trigger.state]
                    trigger.update(now, total, stalled=total != self._averages[trigger.state].seen_ns)
            self._update_averages(now)
        self._work_ns = now + ((self._next_ns - now) // JIFFY_NS + 1) * JIFFY_NS if busy else None

    def _arm(self) -> None:
        """Have the clock look when the averages are due."""
        if self._timer_ns is None and self._work_ns is not None:
            self._timer_ns = self._work_ns
            self._clock.call_at(self._work_ns, self._timer)

    def _timer(self) -> None:
        self._timer_ns = None
        if self._work_ns is not None and self._work_ns <= self._clock.now:
            self._avgs_work(self._clock.now)
        self._arm()

    def report(self, resource: str) -> list[tuple[str, tuple[int, int, int], int]]:
        """Rows of /proc/pressure/RESOURCE: kind, averages in percent times ``FIXED_1``, total in µs (``psi_show``)."""
        now = self._clock.now
        self._collect(AVGS)
        if now >= self._next_ns:
            self._update_averages(now)
        rows = []
        for full, kind in enumerate(("some", "full")):
            state = state_of(resource, full=bool(full))
            if self._whole and resource == "cpu" and full:  # a CPU that runs somebody is not waiting
                rows.append((kind, (0, 0, 0), 0))
                continue
            first, second, third = self._averages[state].avg
            rows.append((kind, (first, second, third), self._total[AVGS][state] // NSEC_PER_USEC))
        return rows

    # -- triggers ----------------------------------------------------------------------------------------

    def add_trigger(
        self, resource: str, kind: str, threshold_us: int, window_us: int, *, privileged: bool = True
    ) -> Trigger:
        """A trigger that ``parse_trigger`` has checked (``psi_trigger_create``)."""
        state = state_of(resource, full=kind == "full")
        if privileged and not self._watched:
            self._watch(True)
        trigger = Trigger(state, POLL if privileged else AVGS, threshold_us, window_us)
        trigger.reset(self._clock.now, self._total[POLL][state], 0)
        self._triggers.append(trigger)
        return trigger

    def remove_trigger(self, trigger: Trigger) -> None:
        """The open file is closed (``psi_trigger_destroy``)."""
        self._triggers.remove(trigger)
        if trigger.aggregator == POLL and not self._watched:
            self._poll_until_ns = 0
            self._watch(False)

    @property
    def _watched(self) -> list[Trigger]:
        return [trigger for trigger in self._triggers if trigger.aggregator == POLL]

    @property
    def _poll_period_ns(self) -> int:
        return min(trigger.window_ns for trigger in self._watched) // UPDATES_PER_WINDOW

    def _start_polling(self, start: int) -> None:
        """Something stalls that may be watched: windows begin with it (``init_rtpoll_triggers``)."""
        if self._clock.now > self._poll_until_ns:
            self._collect(POLL)
            self._polled[:] = self._total[POLL]
            for trigger in self._watched:
                trigger.reset(start, self._total[POLL][trigger.state], 0)
            self._poll_next_ns = start + self._poll_period_ns
        self._poll_until_ns = self._clock.now + self._poll_period_ns * UPDATES_PER_WINDOW
        self._arm_poll(JIFFY_NS)

    def _arm_poll(self, delay: int) -> None:
        if not self._poll_armed:
            self._poll_armed = True
            self._clock.call_at(self._clock.now + delay, self._poll_work)

    def _poll_work(self) -> None:
        """Look at root's triggers, and again, until a window without a stall has gone by (``psi_rtpoll_work``)."""
        self._poll_armed = False
        now = self._clock.now
        if not self._watched:
            return
        self._collect(POLL)
        if now >= self._poll_next_ns:
            for trigger in self._watched:
                total = self._total[POLL][trigger.state]
                trigger.update(now, total, stalled=total != self._polled[trigger.state])
            self._polled[:] = self._total[POLL]
            self._poll_next_ns = now + self._poll_period_ns
        if now <= self._poll_until_ns or any(trigger.pending for trigger in self._watched):
            self._arm_poll(((self._poll_next_ns - now) // JIFFY_NS + 1) * JIFFY_NS)


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
