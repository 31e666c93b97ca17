"""Trace events of write-back whose fields take some work (include/trace/events/writeback.h).

The group of an inode is the root's: cgroup write-back is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.mm.clock import HZ
from kmemd.mm.trace_points import bdi_name, dev
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.core.trace import TraceLog
    from kmemd.mm.bdi import BdiWriteback
    from kmemd.mm.filemap import File
    from kmemd.mm.vmstat import VmStat

BACKGROUND, VMSCAN, SYNC, PERIODIC, LAPTOP_TIMER = range(5)
"""``enum wb_reason``."""
ROOT_INO = 1
I_DIRTY_SYNC, I_DIRTY_DATASYNC, I_DIRTY_PAGES, I_SYNC = 1, 2, 4, 1 << 7
MSEC = 1000
LONG_MAX = (1 << 63) - 1
S_IFREG, S_IFBLK = 0o100000, 0o060000


@dataclass(frozen=True, slots=True)
class Control:
    """What is to be written of a file, ``[start, end)`` in pages, and for whom (``struct writeback_control``)."""

    start: int
    end: int
    kupdate: bool = False
    background: bool = False
    cyclic: bool = False


def inode_state(file: File, more: int = 0) -> int:
    """``inode->i_state``."""
    state = I_DIRTY_SYNC | I_DIRTY_DATASYNC if file.inode_dirty else 0
    return state | (I_DIRTY_PAGES if file.nr_dirty else 0) | more


def work(trace: TraceLog, event: int, wb: BdiWriteback, item: Any) -> None:
    """A flusher's work begins, or a part of it is done (writeback_start, writeback_written)."""
    if trace.on(event):
        flags = (0, int(item.kupdate), 1, int(item.background))
        trace.emit(event, bdi_name(wb), item.nr_pages, 0, *flags, item.reason, ROOT_INO)


def queue_io(trace: TraceLog, wb: BdiWriteback, item: Any, before: int, jiffies: int, moved: int) -> None:
    """Inodes are due that have been dirty since ``before`` (writeback_queue_io)."""
    if trace.on(ev.WRITEBACK_QUEUE_IO):
        age = (jiffies - before) * MSEC // HZ
        trace.emit(ev.WRITEBACK_QUEUE_IO, bdi_name(wb), before, age, moved, item.reason, ROOT_INO)


def pages_written(trace: TraceLog, pages: int) -> None:
    """A flusher has done what there was (writeback_pages_written)."""
    trace.emit(ev.WRITEBACK_PAGES_WRITTEN, pages)


def wake_background(trace: TraceLog, wb: BdiWriteback) -> None:
    """Too much is dirty (writeback_wake_background)."""
    if trace.on(ev.WRITEBACK_WAKE_BACKGROUND):
        trace.emit(ev.WRITEBACK_WAKE_BACKGROUND, bdi_name(wb), ROOT_INO)


def single_inode(
    trace: TraceLog, event: int, wb: BdiWriteback, file: File, since: int, wanted: int, wrote: int
) -> None:
    """An inode's turn begins or ends (writeback_single_inode_start, writeback_single_inode)."""
    if trace.on(event):
        place = (inode_state(file, I_SYNC), since, file.writeback_index)
        trace.emit(event, bdi_name(wb), file.ino, *place, wanted, wrote, ROOT_INO)


def write_inode(trace: TraceLog, event: int, wb: BdiWriteback, file: File) -> None:
    """An inode itself is written (writeback_write_inode_start, writeback_write_inode)."""
    if trace.on(event):
        trace.emit(event, bdi_name(wb), file.ino, 0, ROOT_INO)


def dirty_inode(trace: TraceLog, event: int, wb: BdiWriteback, file: File) -> None:
    """An inode's size or times changed (writeback_mark_inode_dirty and those of the call of the file system)."""
    if trace.on(event):
        trace.emit(event, bdi_name(wb), file.ino, inode_state(file), I_DIRTY_SYNC | I_DIRTY_DATASYNC)


def ratelimit(trace: TraceLog, wb: BdiWriteback, dirty_rate: int, task_ratelimit: int, balanced: int) -> None:
    """What a writer may do was estimated anew (bdi_dirty_ratelimit); rates in KB/s."""
    if trace.on(ev.BDI_DIRTY_RATELIMIT):
        pages = (wb.write_bandwidth, wb.avg_write_bandwidth, dirty_rate, wb.dirty_ratelimit, task_ratelimit, balanced)
        rates = [rate << PAGE_SHIFT - 10 for rate in pages]
        trace.emit(ev.BDI_DIRTY_RATELIMIT, bdi_name(wb), *rates, ROOT_INO)


def balance(
    trace: TraceLog,
    wb: BdiWriteback,
    control: Any,
    task: Any,
    dirty_limit: int,
    rates: tuple[int, int, int],
    pause: int,
    now: int,
) -> None:
    """A writer pauses (balance_dirty_pages); ``rates``: pages per second, pages, and the period in jiffies."""
    if not trace.on(ev.BALANCE_DIRTY_PAGES):
        return
    rate, pages, period = rates
    limit = max(dirty_limit, control.thresh)
    setpoint = (limit + control.freerun) // 2
    own = setpoint * control.wb_thresh // (control.thresh + 1)
    think = (now - task.paused_when) * MSEC // HZ if task.paused_when else 0
    kb = PAGE_SHIFT - 10
    trace.emit(
        ev.BALANCE_DIRTY_PAGES,
        *(bdi_name(wb), limit, setpoint, control.dirty, own, control.wb_dirty),
        *(wb.dirty_ratelimit << kb, rate << kb, pages, task.nr_dirtied_pause),
        *(0, pause * MSEC // HZ, period * MSEC // HZ, think, ROOT_INO),
    )


def inode(trace: TraceLog, event: int, file: File) -> None:
    """An inode gets onto a list, or leaves one (the class writeback_inode_template); the mode has no permissions."""
    if trace.on(event):
        mode = S_IFBLK if file.is_device else S_IFREG
        trace.emit(event, dev(file.device), file.ino, inode_state(file), mode, file.dirtied_when)


def pages_to_write(trace: TraceLog, file: File, control: Control, pages: int, limit: int, sync: bool) -> None:
    """Pages go to the disk, one after the other (wbc_writepage); ``limit`` is how many more there may be."""
    if not trace.on(ev.WBC_WRITEPAGE):
        return
    whole = control.end >= LONG_MAX >> PAGE_SHIFT
    last = LONG_MAX if whole else (control.end << PAGE_SHIFT) - 1
    reasons = int(sync), int(control.kupdate), int(control.background), 0, int(control.cyclic)
    for done in range(pages):
        place = control.start << PAGE_SHIFT, last, ROOT_INO
        trace.emit(ev.WBC_WRITEPAGE, bdi_name(file.wb), limit - done, 0, *reasons, *place)


def wait_for_page(trace: TraceLog, file: File, index: int) -> None:
    """Somebody waits for a page that is being written (folio_wait_writeback)."""
    if trace.on(ev.FOLIO_WAIT_WRITEBACK):
        trace.emit(ev.FOLIO_WAIT_WRITEBACK, bdi_name(file.wb), file.ino, index)


def watch_dirty_limits(vmstat: VmStat, dirty_limit: Callable[[], int]) -> Callable[[int, int], None]:
    """What hears of limits that somebody asked for (global_dirty_state); ``dirty_limit()`` follows them slowly."""

    def asked(background: int, limit: int) -> None:
        if vmstat.trace.on(ev.GLOBAL_DIRTY_STATE):
            now = [vmstat.node_total(item) for item in (stats.NR_FILE_DIRTY, stats.NR_WRITEBACK)]
            ever = [vmstat.node_total(item) for item in (stats.NR_DIRTIED, stats.NR_WRITTEN)]
            vmstat.trace.emit(ev.GLOBAL_DIRTY_STATE, *now, background, limit, dirty_limit(), *ever)

    return asked
