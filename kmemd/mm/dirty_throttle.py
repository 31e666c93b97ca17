"""Writers wait when much is dirty (mm/page-writeback.c ``balance_dirty_pages``).

Models: the polling interval of a task, the free run below the middle of both thresholds, the position ratio and rate
limit by which a task pauses above it, and the estimates behind them, in jiffies and pages as the kernel reckons. Left
out: thresholds of control groups, which kernels with an io controller have, strict limits, asynchronous writers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kmemd.core import stats
from kmemd.core.trace import TraceLog
from kmemd.errors import KernelError
from kmemd.mm import trace_writeback as events
from kmemd.mm.bdi import BdiWriteback, Completions
from kmemd.mm.clock import HZ, INITIAL_JIFFIES, NSEC_PER_SEC
from kmemd.mm.io_clock import IoClock
from kmemd.mm.units import PAGE_SHIFT

MAX_PAUSE = HZ // 5
BANDWIDTH_INTERVAL = HZ // 5
DIRTY_POLL_THRESH = 128 >> (PAGE_SHIFT - 10)
EXCEEDED_RATELIMIT = 32 >> (PAGE_SHIFT - 10)
SHIFT = 10
"""RATELIMIT_CALC_SHIFT."""
RATIO_PERIOD, PAUSE_PERIOD = 256, 32
"""roundup_pow_of_two of HZ, and of 1 + HZ / 8."""
TICK_NS = NSEC_PER_SEC // HZ
MIN_RATELIMIT_PAGES = 16
WB_STAT_BATCH = 8
"""Pages that a CPU counts for itself, times the binary digits of the number of CPUs."""


class Limits(Protocol):
    """The dirty thresholds."""

    @property
    def laptop_mode(self) -> int: ...
    def global_dirty_limits(self) -> tuple[int, int]: ...


class NodeTotals(Protocol):
    """The gauges."""

    @property
    def trace(self) -> TraceLog: ...
    def node_total(self, item: int) -> int: ...


@dataclass(slots=True)
class TaskDirty:
    """What a task remembers of its writing (``task_struct``): pages since its last pause, and when that was."""

    nr_dirtied: int = 0
    nr_dirtied_pause: int = DIRTY_POLL_THRESH
    paused_when: int = 0


@dataclass(slots=True)
class Control:
    """What a decision is made on, in pages (``dirty_throttle_control``)."""

    dirty: int
    thresh: int
    bg_thresh: int
    wb_dirty: int = 0
    wb_thresh: int = 0
    pos_ratio: int = 0

    @property
    def freerun(self) -> int:
        """Up to here nobody waits (``dirty_freerun_ceiling``)."""
        return (self.thresh + self.bg_thresh) // 2


class DirtyThrottle:
    """The limits of the whole machine at work. ``start_background(wb)`` has a flusher begin, unless it is at it."""

    def __init__(
        self,
        limits: Limits,
        totals: NodeTotals,
        io: IoClock,
        cpus: int,
        start_background: Callable[[BdiWriteback], None],
    ) -> None:
        self._limits, self._totals, self._io, self._cpus = limits, totals, io, cpus
        self._start_background = start_background
        self.completions = Completions()
        self.min_ratios = 0
        self.dirty_limit = 0
        self._limit_stamp = 0
        self._per_cpu = [0] * cpus
        self.ratelimit_pages = MIN_RATELIMIT_PAGES
        self.pauses = 0
        self._stat_error = cpus * WB_STAT_BATCH * cpus.bit_length()

    def set_ratelimit(self) -> None:
        """The thresholds were changed (``writeback_set_ratelimit``)."""
        _, self.dirty_limit = self._limits.global_dirty_limits()
        self.ratelimit_pages = max(self.dirty_limit // (self._cpus * 32), MIN_RATELIMIT_PAGES)

    def control(self) -> Control:
        """The state of the whole machine."""
        dirty = self._totals.node_total(stats.NR_FILE_DIRTY)
        background, limit = self._limits.global_dirty_limits()
        return Control(dirty + self._totals.node_total(stats.NR_WRITEBACK), limit, background)

    def wb_calc_thresh(self, wb: BdiWriteback, thresh: int) -> int:
        """A disk's share of a threshold, by what it wrote lately (``wb_calc_thresh``)."""
        self.completions.advance(self._io.jiffies)
        mine, every = wb.completions.fraction(self.completions)
        share = thresh * (100 - self.min_ratios) // 100 * mine // every
        return min(share + thresh * wb.min_ratio // 100, thresh * wb.max_ratio // 100)

    def set_min_ratio(self, wb: BdiWriteback, percent: int) -> None:
        """What a disk may have of the limits whatever it wrote (``bdi_set_min_ratio``). EINVAL."""
        more = percent - wb.min_ratio
        if percent > wb.max_ratio or (more >= 0 and self.min_ratios + more >= 100):
            raise KernelError(errno.EINVAL, f"min_ratio: {percent} is above max_ratio, or too much with other disks'")
        self.min_ratios += more
        wb.min_ratio = percent

    @staticmethod
    def set_max_ratio(wb: BdiWriteback, percent: int) -> None:
        """The most that a disk may have of the limits (``bdi_set_max_ratio``). EINVAL."""
        if percent > 100 or wb.min_ratio > percent:
            raise KernelError(errno.EINVAL, f"max_ratio: {percent} is above 100, or below min_ratio")
        wb.max_ratio = percent

    def over_bg_thresh(self, wb: BdiWriteback) -> bool:
        """Whether there is so much that the flusher writes in the background (``wb_over_bg_thresh``)."""
        background, _ = self._limits.global_dirty_limits()
        if self._totals.node_total(stats.NR_FILE_DIRTY) > background:
            return True
        return wb.reclaimable > self.wb_calc_thresh(wb, background)

    def written(self, wb: BdiWriteback, pages: int) -> None:
        """Pages have arrived on a disk (``__wb_writeout_add``)."""
        self.completions.advance(self._io.jiffies)
        wb.completions.add(self.completions, self._io.jiffies, pages, wb.max_ratio)

    # -- writers -----------------------------------------------------------------------------------------

    def allowance(self, task: TaskDirty, wb: BdiWriteback) -> int:
        """Pages that a task may make dirty before it asks again."""
        limit = min(task.nr_dirtied_pause, EXCEEDED_RATELIMIT) if wb.dirty_exceeded else task.nr_dirtied_pause
        return max(limit - task.nr_dirtied, 1)

    def account(self, task: TaskDirty, cpu: int, pages: int) -> None:
        """A task made pages dirty (``folio_account_dirtied``)."""
        task.nr_dirtied += pages
        self._per_cpu[cpu] += pages

    def balance_ratelimited(self, task: TaskDirty, cpu: int, wb: BdiWriteback) -> None:
        """A writer asks whether to go on (``balance_dirty_pages_ratelimited``)."""
        limit = min(task.nr_dirtied_pause, EXCEEDED_RATELIMIT) if wb.dirty_exceeded else task.nr_dirtied_pause
        if task.nr_dirtied >= limit:
            self._per_cpu[cpu] = 0
        elif self._per_cpu[cpu] >= self.ratelimit_pages:
            self._per_cpu[cpu] = 0
            limit = 0
        if task.nr_dirtied >= limit:
            self._balance(task, wb, task.nr_dirtied)

    def _balance(self, task: TaskDirty, wb: BdiWriteback, pages_dirtied: int) -> None:
        """balance_dirty_pages."""
        while True:
            now = self._io.jiffies
            control = self.control()
            reclaimable = self._totals.node_total(stats.NR_FILE_DIRTY)
            if not self._limits.laptop_mode and reclaimable > control.bg_thresh:
                self._start_background(wb)
            if control.dirty <= control.freerun:
                task.paused_when, task.nr_dirtied = now, 0
                task.nr_dirtied_pause = dirty_poll_interval(control.dirty, control.thresh)
                return
            self._start_background(wb)
            self._position(wb, control)
            if now > wb.bw_time_stamp + BANDWIDTH_INTERVAL:
                self._update_bandwidth(wb, control, now)
            if self._pause(task, wb, control, pages_dirtied, now):
                return

    def _position(self, wb: BdiWriteback, control: Control) -> None:
        """Where the disk stands against its limits."""
        control.wb_thresh = self.wb_calc_thresh(wb, control.thresh)
        control.wb_dirty = wb.reclaimable + wb.writeback
        wb.dirty_exceeded = control.wb_dirty > control.wb_thresh and control.dirty > control.thresh
        control.pos_ratio = position_ratio(control, max(control.thresh, self.dirty_limit), wb.avg_write_bandwidth)

    def _pause(self, task: TaskDirty, wb: BdiWriteback, control: Control, pages: int, now: int) -> bool:
        """Wait as long as the task's share of the disk's speed says; whether that was enough."""
        ratelimit = wb.dirty_ratelimit * control.pos_ratio >> SHIFT
        most = max_pause(wb.avg_write_bandwidth, control.wb_dirty)
        least, interval = min_pause(wb, most, ratelimit)
        if ratelimit:
            period = HZ * pages // ratelimit
            pause = period - (now - task.paused_when if task.paused_when else 0)
            if pause < least:
                self._go_on(task, now, pause, period, pages)
                return True
            if pause > most:
                now += min(pause - most, most)
                pause = most
        else:
            pause = most
        rates = (ratelimit, pages, HZ * pages // ratelimit if ratelimit else 0)
        events.balance(self._totals.trace, wb, control, task, self.dirty_limit, rates, pause, now)
        self._sleep(pause)
        task.paused_when, task.nr_dirtied, task.nr_dirtied_pause = now + pause, 0, interval
        return bool(ratelimit) or control.wb_dirty <= self._stat_error

    @staticmethod
    def _go_on(task: TaskDirty, now: int, pause: int, period: int, pages: int) -> None:
        """The task is slower than it may be, or nearly so: it is not worth a pause."""
        if pause < -HZ:
            task.paused_when, task.nr_dirtied = now, 0
        elif period:
            task.paused_when += period
            task.nr_dirtied = 0
        elif task.nr_dirtied_pause <= pages:
            task.nr_dirtied_pause += pages

    def _sleep(self, ticks: int) -> None:
        """io_schedule_timeout: until the tick that ends the pause."""
        self.pauses += 1
        wake = (self._io.jiffies - INITIAL_JIFFIES + max(ticks, 1)) * TICK_NS
        self._io.sleep_until(wake)

    # -- estimates ---------------------------------------------------------------------------------------

    def update_bandwidth(self, wb: BdiWriteback) -> None:
        """A flusher comes by (``wb_update_bandwidth``)."""
        self._update_bandwidth(wb, None, self._io.jiffies)

    def _update_bandwidth(self, wb: BdiWriteback, control: Control | None, now: int) -> None:
        """__wb_update_bandwidth."""
        elapsed = max(now - wb.bw_time_stamp, 1)
        if control is not None:
            self._update_limit(control, now)
            self._update_ratelimit(wb, control, elapsed)
        wb.update_write_bandwidth(elapsed)
        wb.stamp(now)

    def _update_limit(self, control: Control, now: int) -> None:
        """The limit follows the threshold, downwards slowly (``update_dirty_limit``)."""
        if now < self._limit_stamp + BANDWIDTH_INTERVAL:
            return
        self._limit_stamp = now
        if self.dirty_limit < control.thresh:
            self.dirty_limit = control.thresh
        else:
            floor = max(control.thresh, control.dirty)
            self.dirty_limit -= max(self.dirty_limit - floor, 0) >> 5

    def _update_ratelimit(self, wb: BdiWriteback, control: Control, elapsed: int) -> None:
        """wb_update_dirty_ratelimit: what each writer may do moves to where writing and dirtying are in balance."""
        limit = max(control.thresh, self.dirty_limit)
        setpoint = (control.freerun + limit) // 2
        old = wb.dirty_ratelimit
        dirty_rate = (wb.dirtied - wb.dirtied_stamp) * HZ // elapsed
        task_ratelimit = (old * control.pos_ratio >> SHIFT) + 1
        balanced = min(task_ratelimit * wb.avg_write_bandwidth // (dirty_rate | 1), wb.avg_write_bandwidth)
        three = (wb.balanced_dirty_ratelimit, balanced, task_ratelimit)
        step = max(min(three) - old, 0) if control.dirty < setpoint else max(old - max(three), 0)
        shift = old // (2 * step + 1)
        step = -(-(step >> shift) // 8) if shift < 64 else 0
        wb.dirty_ratelimit = max(old + step if old < balanced else old - step, 1)
        wb.balanced_dirty_ratelimit = balanced
        events.ratelimit(self._totals.trace, wb, dirty_rate, task_ratelimit, balanced)


def dirty_poll_interval(dirty: int, thresh: int) -> int:
    """Pages that a task may write before it looks again."""
    return 1 << (((thresh - dirty).bit_length() - 1) >> 1) if thresh > dirty else 1


def polynomial(setpoint: int, dirty: int, limit: int) -> int:
    """Twice the rate at no dirty pages, once at the set point, nothing at the limit (``pos_ratio_polynom``)."""
    x = _quotient((setpoint - dirty) << SHIFT, (limit - setpoint) | 1)
    ratio = x * x >> SHIFT
    ratio = (ratio * x >> SHIFT) + (1 << SHIFT)
    return min(max(ratio, 0), 2 << SHIFT)


def position_ratio(control: Control, limit: int, write_bw: int) -> int:
    """How much of the rate limit a writer may use, times 1024 (``wb_position_ratio``)."""
    if control.dirty >= limit:
        return 0
    setpoint = (control.freerun + limit) // 2
    ratio = polynomial(setpoint, control.dirty, limit)
    share = max(min(control.wb_thresh, control.thresh), (limit - control.dirty) // 8)
    x = (share << 16) // (control.thresh | 1)
    wb_setpoint = setpoint * x >> 16
    span = (control.thresh - share + 8 * write_bw) * x >> 16
    end = wb_setpoint + span
    if control.wb_dirty < end - span // 4:
        ratio = ratio * (end - control.wb_dirty) // ((end - wb_setpoint) | 1)
    else:
        ratio //= 4
    reserve = share // 2
    if control.wb_dirty < reserve:
        ratio = ratio * reserve // control.wb_dirty if control.wb_dirty > reserve // 8 else ratio * 8
    return ratio


def max_pause(bandwidth: int, wb_dirty: int) -> int:
    """The longest pause that does not let the disk idle, in jiffies (``wb_max_pause``)."""
    return min(wb_dirty // (1 + bandwidth // PAUSE_PERIOD) + 1, MAX_PAUSE)


def min_pause(wb: BdiWriteback, most: int, task_ratelimit: int) -> tuple[int, int]:
    """The shortest pause worth taking, in jiffies, and the pages between pauses (``wb_min_pause``)."""
    rate = wb.dirty_ratelimit
    ticks = max(1, HZ // 100)
    more = wb.avg_write_bandwidth.bit_length() - rate.bit_length()
    if more > 0:
        ticks += more * (10 * HZ) // 1024
    ticks = min(ticks, 1 + most // 2)
    pages = rate * ticks // RATIO_PERIOD
    if pages < DIRTY_POLL_THRESH:
        ticks = most
        pages = rate * ticks // RATIO_PERIOD
        if pages > DIRTY_POLL_THRESH:
            pages = DIRTY_POLL_THRESH
            ticks = HZ * DIRTY_POLL_THRESH // rate
    if HZ * pages // (task_ratelimit + 1) > most:
        ticks = most
        pages = task_ratelimit * ticks // RATIO_PERIOD
    return (1 + ticks // 2 if pages >= DIRTY_POLL_THRESH else ticks), pages


def _quotient(a: int, b: int) -> int:
    """Division that rounds to zero, as C's."""
    return a // b if a >= 0 else -(-a // b)
