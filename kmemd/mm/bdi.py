"""Backing devices: what of a disk's files is dirty, how fast the disk writes, and its share of the limits.

Linux: mm/backing-dev.c, and of mm/page-writeback.c the bandwidth estimate and the proportions of completions
(lib/flex_proportions.c). Left out: cgroup writeback, strict limits, the batches of the per-CPU counters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kmemd.mm.blk_mq import Disk
from kmemd.mm.clock import HZ
from kmemd.mm.filemap import File
from kmemd.mm.units import PAGE_SHIFT

INIT_BW = 100 << (20 - PAGE_SHIFT)
"""Pages per second that a disk is taken to write before it has written anything."""
BANDWIDTH_PERIOD = 1024
"""roundup_pow_of_two(3 * HZ), in jiffies."""
VM_COMPLETIONS_PERIOD_LEN = 3 * HZ
FPROP_FRAC_SHIFT = 10
FPROP_FRAC_BASE = 1 << FPROP_FRAC_SHIFT


@dataclass(slots=True)
class Completions:
    """Pages that all disks wrote, of which older ones weigh less: a period halves them (``fprop_global``).

    Periods stop when hardly anything is left, and begin again with the next page.
    """

    events: int = 1
    period: int = 0
    ends: int = 0

    def advance(self, jiffies: int) -> None:
        """Let the periods end that are over (``writeout_period``)."""
        while self.ends and jiffies >= self.ends:
            if self.events <= 1:
                self.ends = 0
                return
            self.events >>= 1
            self.period += 1
            self.ends += VM_COMPLETIONS_PERIOD_LEN

    def add(self, jiffies: int, pages: int) -> None:
        """Pages were written."""
        self.advance(jiffies)
        self.events += pages
        self.ends = self.ends or jiffies + VM_COMPLETIONS_PERIOD_LEN


@dataclass(slots=True)
class Share:
    """Those of one disk (``fprop_local``), halved in the same periods."""

    events: int = 0
    period: int = 0

    def reflect(self, every: Completions) -> int:
        """The count now."""
        self.events >>= min(every.period - self.period, 63)
        self.period = every.period
        return self.events

    def fraction(self, every: Completions) -> tuple[int, int]:
        """Numerator and denominator of this disk's part of all completions (``fprop_fraction_percpu``)."""
        mine, total = self.reflect(every), every.events
        return mine, total if total > mine else mine or 1

    def add(self, every: Completions, jiffies: int, pages: int, max_ratio: int) -> None:
        """Pages were written, of which no more count than keep the part below a ratio (``__fprop_add_percpu_max``)."""
        most = FPROP_FRAC_BASE * max_ratio // 100
        if most < FPROP_FRAC_BASE:
            mine, total = self.fraction(every)
            room = total * most - (mine << FPROP_FRAC_SHIFT)
            if room < 0:
                return
            pages = min(pages, -(-room // (FPROP_FRAC_BASE - most)))
        every.add(jiffies, pages)
        self.reflect(every)
        self.events += pages


@dataclass(eq=False)
class BdiWriteback:
    """``struct bdi_writeback`` with its ``backing_dev_info``. Counts in pages, stamps in jiffies, rates per second.

    ``dirtied_by_task(wb, file, pages)`` and ``cleaned_by_task(pages)`` account what the executing task did.

    Invariants: ``reclaimable`` and ``writeback`` are the sums of the files' ``nr_dirty`` and ``nr_writeback``; a file
    with dirty pages or a dirty inode is in exactly one of ``b_dirty``, ``b_io`` and ``b_more_io``.
    """

    disk: Disk
    dirtied_by_task: Callable[[BdiWriteback, File, int], None]
    cleaned_by_task: Callable[[int], None]
    reclaimable: int = 0
    writeback: int = 0
    dirtied: int = 0
    written: int = 0
    write_bandwidth: int = INIT_BW
    avg_write_bandwidth: int = INIT_BW
    dirty_ratelimit: int = INIT_BW
    balanced_dirty_ratelimit: int = INIT_BW
    bw_time_stamp: int = 0
    dirtied_stamp: int = 0
    written_stamp: int = 0
    dirty_exceeded: bool = False
    min_ratio: int = 0
    max_ratio: int = 100
    completions: Share = field(default_factory=Share)
    b_dirty: dict[File, int] = field(default_factory=dict)
    b_io: dict[File, int] = field(default_factory=dict)
    b_more_io: dict[File, int] = field(default_factory=dict)

    @property
    def has_dirty_io(self) -> bool:
        """Whether any of its inodes is dirty (``wb_has_dirty_io``)."""
        return bool(self.b_dirty or self.b_io or self.b_more_io)

    def pages_dirtied(self, file: File, pages: int) -> None:
        """Pages of a file became dirty."""
        self.reclaimable += pages
        self.dirtied += pages
        self.dirtied_by_task(self, file, pages)

    def pages_cleaned(self, pages: int, *, written: bool) -> None:
        """Pages are clean: they are on their way to the disk, or nobody needs them there."""
        self.reclaimable -= pages
        if not written:
            self.cleaned_by_task(pages)

    def forget(self, file: File) -> int | None:
        """An inode is clean, or goes: since when it was dirty, None when it was not."""
        for queue in (self.b_dirty, self.b_io, self.b_more_io):
            if file in queue:
                return queue.pop(file)
        return None

    def estimate_start(self, jiffies: int) -> None:
        """Writing begins after the disk idled for a second: what passed meanwhile says nothing about its speed."""
        if jiffies - self.bw_time_stamp > HZ and not self.writeback:
            self.stamp(jiffies)

    def stamp(self, jiffies: int) -> None:
        """The next estimate counts from now on."""
        self.dirtied_stamp, self.written_stamp, self.bw_time_stamp = self.dirtied, self.written, jiffies

    def update_write_bandwidth(self, elapsed: int) -> None:
        """What was written in ``elapsed`` jiffies moves the estimate (``wb_update_write_bandwidth``)."""
        average, old = self.avg_write_bandwidth, self.write_bandwidth
        rate = max(self.written - self.written_stamp, 0) * HZ
        if elapsed > BANDWIDTH_PERIOD:
            rate //= elapsed
            average = rate
        else:
            rate = (rate + old * (BANDWIDTH_PERIOD - elapsed)) // BANDWIDTH_PERIOD
            if average > old >= rate:
                average -= (average - old) >> 3
            if average < old <= rate:
                average += (old - average) >> 3
        self.avg_write_bandwidth = max(average, 1)
        self.write_bandwidth = rate

    def check(self, files: list[File]) -> None:
        """The counts are those of the files. AssertionError."""
        name = self.disk.name
        dirty = sum(file.nr_dirty for file in files)
        assert self.reclaimable == dirty, f"{name}: {dirty} pages of its files are dirty, not {self.reclaimable}"
        busy = sum(file.nr_writeback for file in files)
        assert self.writeback == busy, f"{name}: {busy} pages are written back, not {self.writeback}"
        listed = [*self.b_dirty, *self.b_io, *self.b_more_io]
        assert len(listed) == len({id(file) for file in listed}), f"{name}: an inode is on two lists"
        for file in files:
            wanted = bool(file.nr_dirty or file.inode_dirty)
            assert (file in listed) >= wanted, f"{file.path} is dirty and {name}'s flusher does not know"
