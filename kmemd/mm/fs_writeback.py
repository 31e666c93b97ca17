"""The flusher threads: who writes dirty pages when nobody waits for it (fs/fs-writeback.c).

Models ``kworker/u*:flush-MAJOR:MINOR`` of each disk: woken after dirty_writeback_centisecs for inodes that have been
dirty for dirty_expire_centisecs, in the background above the threshold, at once when reclaim or sync(2) asks, and
after the last I/O in laptop mode. It writes a chunk of each inode in turn and waits while the disk's queue is full.
Left out: lazy time stamps (b_dirty_time), cgroup writeback.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.mm import trace_writeback as events
from kmemd.mm.bdi import BdiWriteback
from kmemd.mm.blk_mq import REQ_BACKGROUND, REQ_SYNC, Disk
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.dirty_throttle import BANDWIDTH_INTERVAL, TICK_NS, DirtyThrottle
from kmemd.mm.file_write import FileWriter
from kmemd.mm.filemap import File
from kmemd.mm.io_clock import IoClock
from kmemd.steps import Steps

MIN_WRITEBACK_PAGES = 4096 >> 2
DIRTY_SCOPE = 8
SYNC_PAGES = 1 << 10
"""Pages of a file that a flusher or sync(2) sends to the disk before others may run."""
CENTISEC_NS = NSEC_PER_SEC // 100
LONG_MAX = (1 << 63) - 1


class Knobs(Protocol):
    """The flusher's sysctls."""

    @property
    def dirty_writeback_centisecs(self) -> int: ...
    @property
    def dirty_expire_centisecs(self) -> int: ...
    @property
    def laptop_mode(self) -> int: ...


class FlusherTask(Protocol):
    """The kernel thread that a flusher runs as."""

    pid: int
    tgid: int
    comm: str
    cpu: int
    desc: str
    stime_ns: int


@dataclass
class Work:
    """What a flusher is to do (``wb_writeback_work``)."""

    nr_pages: int
    reason: int
    background: bool = False
    kupdate: bool = False


Waits = Generator[int, None, int]
"""A flusher's work; each ``yield`` says when it goes on. The value is the pages written."""


class Flushers:
    """The write-back of all disks. ``worker()`` gives the kernel thread; ``write_inode(file)`` writes an inode's own
    dirty fields to the buffers of its disk; ``dirtied(wb, pages)`` and ``cleaned(pages)`` account to the task;
    ``page_ns`` is the time that a flusher takes for a page."""

    def __init__(
        self,
        knobs: Knobs,
        io: IoClock,
        context: Context,
        worker: Callable[[], FlusherTask | None],
        writer: Callable[[], FileWriter],
        throttle: Callable[[], DirtyThrottle],
        write_inode: Callable[[File], None],
        dirtied: Callable[[BdiWriteback, int], None],
        cleaned: Callable[[int], None],
        page_ns: int,
    ) -> None:
        self._knobs, self._io, self._context, self._worker = knobs, io, context, worker
        self._writer, self._throttle, self._write_inode = writer, throttle, write_inode
        self._dirtied, self._cleaned, self._page_ns = dirtied, cleaned, page_ns
        self.by_disk: dict[Disk, BdiWriteback] = {}
        self._running: dict[Disk, Waits] = {}
        self._timers: dict[Disk, int] = {}
        self._start_all: set[Disk] = set()
        self._again: set[Disk] = set()
        self._last_old_flush: dict[Disk, int] = {}
        self._laptop_timer = 0
        self._reason = events.VMSCAN

    def get(self, disk: Disk) -> BdiWriteback:
        """The write-back of a disk."""
        wb = self.by_disk.get(disk)
        if wb is None:
            wb = self.by_disk[disk] = BdiWriteback(disk, self._pages_dirtied, self._cleaned)
            wb.bw_time_stamp = self._io.jiffies
            self._last_old_flush[disk] = self._io.jiffies
        return wb

    def state(self, wb: BdiWriteback) -> tuple[bool, bool]:
        """Whether a disk's flusher runs, and whether it is to write everything."""
        return wb.disk in self._running, wb.disk in self._start_all

    # -- inodes become dirty -----------------------------------------------------------------------------

    def _pages_dirtied(self, wb: BdiWriteback, file: File, pages: int) -> None:
        self._list(wb, file)
        self._dirtied(wb, pages)

    def mark_inode_dirty(self, file: File) -> None:
        """An inode's size or times changed (``__mark_inode_dirty``)."""
        if file.wb is not None:
            trace = self._context.trace
            for event in (ev.WRITEBACK_MARK_INODE_DIRTY, ev.WRITEBACK_DIRTY_INODE_START, ev.WRITEBACK_DIRTY_INODE):
                events.dirty_inode(trace, event, file.wb, file)
            file.inode_dirty = True
            self._list(file.wb, file)

    def _list(self, wb: BdiWriteback, file: File) -> None:
        """Put an inode on the dirty list; the first one of a disk starts the timer."""
        if file in wb.b_dirty or file in wb.b_io or file in wb.b_more_io:
            return
        idle = not wb.has_dirty_io
        wb.b_dirty[file] = file.dirtied_when = self._io.jiffies
        if idle and self._knobs.dirty_writeback_centisecs:
            self._wake_later(wb)
        events.inode(self._context.trace, ev.WRITEBACK_DIRTY_INODE_ENQUEUE, file)

    def evicted(self, file: File) -> None:
        """An inode goes."""
        if file.wb is not None:
            file.inode_dirty = False
            file.wb.forget(file)

    # -- who wakes a flusher -----------------------------------------------------------------------------

    def _wake_later(self, wb: BdiWriteback) -> None:
        """wb_wakeup_delayed: not sooner than a flusher that is woken anyway."""
        if wb.disk not in self._timers and wb.disk not in self._running:
            self._wake_at(wb, self._io.now + self._knobs.dirty_writeback_centisecs * CENTISEC_NS)

    def _wake_at(self, wb: BdiWriteback, when: int) -> None:
        self._timers[wb.disk] = when
        self._io.call_at(when, lambda due: self._woken(wb, when))

    def _wake(self, wb: BdiWriteback) -> None:
        """wb_wakeup."""
        if self._timers.get(wb.disk, LONG_MAX) > self._io.now:
            self._wake_at(wb, self._io.now)

    def _woken(self, wb: BdiWriteback, when: int) -> None:
        if self._timers.get(wb.disk) == when:
            del self._timers[wb.disk]
            if wb.disk in self._running:
                self._again.add(wb.disk)
            else:
                self._running[wb.disk] = self._workfn(wb)
                self._run(wb)

    def start_background(self, wb: BdiWriteback) -> None:
        """Too much is dirty (``wb_start_background_writeback``)."""
        if wb.disk not in self._running:
            events.wake_background(self._context.trace, wb)
            self._wake(wb)

    def wakeup_flusher_threads(self, reason: int = events.VMSCAN) -> None:
        """Reclaim met dirty pages, or sync(2) begins: write everything (``wakeup_flusher_threads``)."""
        self._reason = reason
        for wb in self.by_disk.values():
            if wb.has_dirty_io and wb.disk not in self._start_all:
                self._start_all.add(wb.disk)
                self._wake(wb)

    def io_done(self) -> None:
        """A request is done: in laptop mode the disk is busy now, and everything is written soon."""
        if self._knobs.laptop_mode:
            when = self._laptop_timer = self._io.now + self._knobs.laptop_mode * TICK_NS
            self._io.call_at(when, lambda due: self._laptop_woken(when))

    def _laptop_woken(self, when: int) -> None:
        if self._laptop_timer == when:
            self.wakeup_flusher_threads(events.LAPTOP_TIMER)

    # -- a flusher at work -------------------------------------------------------------------------------

    def _run(self, wb: BdiWriteback) -> None:
        """Run as the kernel thread until it waits for the disk, or is done."""
        context, task = self._context, self._worker()
        if task is not None:
            task.desc = f"flush-{wb.disk.number}"
            context.switch(task.pid, task.tgid, task.comm, task.cpu)
        try:
            when = next(self._running[wb.disk])
        except StopIteration:
            del self._running[wb.disk]
            if wb.disk in self._again:
                self._again.discard(wb.disk)
                self._wake(wb)
            elif wb.has_dirty_io and self._knobs.dirty_writeback_centisecs:
                self._wake_later(wb)
        else:
            self._io.call_at(when, lambda due: self._run(wb))

    def _workfn(self, wb: BdiWriteback) -> Waits:
        """wb_do_writeback."""
        wrote = 0
        if wb.disk in self._start_all:
            wrote += yield from self._writeback(wb, Work(self._nr_dirty(wb), self._reason))
            self._start_all.discard(wb.disk)
        if self._old_data_due(wb):
            wrote += yield from self._writeback(wb, Work(self._nr_dirty(wb), events.PERIODIC, kupdate=True))
        if self._throttle().over_bg_thresh(wb):
            wrote += yield from self._writeback(wb, Work(LONG_MAX, events.BACKGROUND, background=True))
        events.pages_written(self._context.trace, wrote)
        return wrote

    @staticmethod
    def _nr_dirty(wb: BdiWriteback) -> int:
        """Pages and inodes (``get_nr_dirty_pages``)."""
        return wb.reclaimable + len(wb.b_dirty) + len(wb.b_io) + len(wb.b_more_io)

    def _old_data_due(self, wb: BdiWriteback) -> bool:
        """Whether it is time to look for old data (``wb_check_old_data_flush``)."""
        interval = self._knobs.dirty_writeback_centisecs * HZ // 100
        if not interval or self._io.jiffies < self._last_old_flush[wb.disk] + interval:
            return False
        self._last_old_flush[wb.disk] = self._io.jiffies
        return True

    def _writeback(self, wb: BdiWriteback, work: Work) -> Waits:
        """wb_writeback."""
        asked = work.nr_pages
        before = self._io.jiffies
        while work.nr_pages > 0:
            if work.background and not self._throttle().over_bg_thresh(wb):
                break
            if work.kupdate:
                before = self._io.jiffies - self._knobs.dirty_expire_centisecs * HZ // 100
            elif work.background:
                before = self._io.jiffies
            events.work(self._context.trace, ev.WRITEBACK_START, wb, work)
            if not wb.b_io:
                moved = self._queue_io(wb, before)
                events.queue_io(self._context.trace, wb, work, before, self._io.jiffies, moved)
            progress = yield from self._inodes(wb, work)
            events.work(self._context.trace, ev.WRITEBACK_WRITTEN, wb, work)
            if not progress:
                break
        return asked - work.nr_pages

    @staticmethod
    def _queue_io(wb: BdiWriteback, before: int) -> int:
        """The inodes that have been dirty since then or longer, and those that had their turn (``queue_io``). How many
        of the first there are.
        """
        wb.b_io.update(wb.b_more_io)
        wb.b_more_io.clear()
        due = [file for file, since in wb.b_dirty.items() if since <= before]
        for file in due:
            wb.b_io[file] = wb.b_dirty.pop(file)
        return len(due)

    def _inodes(self, wb: BdiWriteback, work: Work) -> Waits:
        """A chunk of each inode in turn (``writeback_sb_inodes``). How much was written, inodes count, too."""
        start, total = self._io.jiffies, 0
        while wb.b_io:
            file = next(iter(wb.b_io))
            chunk = self._chunk(wb, work)
            wrote = yield from self._turn(wb, file, chunk, work)
            work.nr_pages -= wrote
            cleaned = self._requeue(wb, file, wrote >= chunk)
            total += wrote + cleaned
            if total and (self._io.jiffies > start + HZ // 10 or work.nr_pages <= 0):
                break
        return total

    def _chunk(self, wb: BdiWriteback, work: Work) -> int:
        """writeback_chunk_size."""
        pages = min(wb.avg_write_bandwidth // 2, self._throttle().dirty_limit // DIRTY_SCOPE, work.nr_pages)
        return (pages + MIN_WRITEBACK_PAGES) // MIN_WRITEBACK_PAGES * MIN_WRITEBACK_PAGES

    def _turn(self, wb: BdiWriteback, file: File, chunk: int, work: Work) -> Waits:
        """An inode's turn: up to ``chunk`` pages. The thread has a CPU of its own, so that others work meanwhile."""
        done, part, wrote = 0, 1, 1
        while done < chunk and wrote >= part:
            part = min(chunk - done, SYNC_PAGES)
            wrote = yield from self._write_some(wb, file, part, work)
            done += wrote
            if wrote:
                yield self._io.now + self._busy(wrote)
            while wb.disk.congested:
                yield wb.disk.drained_by()
        return done

    def _busy(self, pages: int) -> int:
        """How long the thread works for pages, in ns."""
        task, cost = self._worker(), self._page_ns * pages
        if task is not None:
            task.stime_ns += cost
        return cost

    def _write_some(self, wb: BdiWriteback, file: File, limit: int, work: Work) -> Waits:
        """__writeback_single_inode: pages from where the last turn ended, then the inode itself."""
        flags = REQ_BACKGROUND if work.background or work.kupdate else 0
        wb.estimate_start(self._io.jiffies)
        writer, first, trace = self._writer(), file.writeback_index, self._context.trace
        since = wb.b_io.get(file, self._io.jiffies)
        events.single_inode(trace, ev.WRITEBACK_SINGLE_INODE_START, wb, file, since, limit, 0)
        control = events.Control(0, LONG_MAX, kupdate=work.kupdate, background=work.background, cyclic=True)
        steps = partial(writer.write_steps, file, flags=flags, control=control)
        wrote = yield from self._at_once(steps(start=first, end=LONG_MAX, limit=limit))
        if wrote < limit and first:
            wrote += yield from self._at_once(steps(start=0, end=first, limit=limit - wrote))
        file.writeback_index = max((part.last for part in file.in_flight), default=0) if wrote >= limit else 0
        if self._io.jiffies > wb.bw_time_stamp + BANDWIDTH_INTERVAL:
            self._throttle().update_bandwidth(wb)
        if file.inode_dirty:
            file.inode_dirty = False
            events.write_inode(trace, ev.WRITEBACK_WRITE_INODE_START, wb, file)
            self._write_inode(file)
            events.write_inode(trace, ev.WRITEBACK_WRITE_INODE, wb, file)
        events.single_inode(trace, ev.WRITEBACK_SINGLE_INODE, wb, file, since, limit, wrote)
        return wrote

    def _at_once(self, steps: Steps[int]) -> Waits:
        """Work in which no time of the flusher's passes, and between whose slices others may look."""
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                return int(stop.value)
            yield self._io.now

    def _requeue(self, wb: BdiWriteback, file: File, used_up: bool) -> int:
        """requeue_inode: where an inode goes after its turn; 1 when it is clean."""
        since = wb.b_io.pop(file, None)
        if not file.nr_dirty and not file.inode_dirty:
            return 1
        if used_up:
            wb.b_more_io[file] = since or 0
        else:
            wb.b_dirty[file] = file.dirtied_when = self._io.jiffies
        return 0

    # -- sync(2) -----------------------------------------------------------------------------------------

    def write_inodes(self, wb: BdiWriteback, chosen: Callable[[File], bool]) -> Generator[None, None, int]:
        """Write all inodes that are dirty now, and wait for them (``sync_inodes_sb``). How many pages."""
        pages = 0
        files = [file for file in (*wb.b_io, *wb.b_more_io, *wb.b_dirty) if chosen(file)]
        for file in files:
            if file.inode_dirty:
                file.inode_dirty = False
                self._write_inode(file)
            for start in range(0, max(file.slots.end, 1), SYNC_PAGES):
                pages += self._writer().write_range(file, start, start + SYNC_PAGES, flags=REQ_SYNC)
                while wb.disk.congested:
                    yield from self._io.sleep_steps(wb.disk.drained_by())
                yield
            if not file.nr_dirty and not file.inode_dirty:
                wb.forget(file)
        for file in files:
            yield from self._writer().wait_steps(file)
        return pages

    def check(self, files: list[File]) -> None:
        """Every disk's books are right. AssertionError."""
        for wb in self.by_disk.values():
            wb.check([file for file in files if file.wb is wb])
            wb.disk.check()
