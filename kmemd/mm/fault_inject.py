"""Failures made on purpose: ``failslab``, ``fail_page_alloc`` and ``fail-nth`` (lib/fault-inject.c, mm/failslab.c,
mm/page_alloc.c ``should_fail_alloc_page``, Documentation/fault-injection/fault-injection.rst).

Both are set by files of debugfs and by ``failslab=`` and ``fail_page_alloc=`` on the command line. An allocation of
many ends at the first one that is to fail. Left out: filters by stack trace, which the captured kernels lack, and the
other capabilities of the framework.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from kmemd.core.context import Context
from kmemd.mm.debugfs_handlers import DEBUGFS, SimpleAttr, flag, show_flag, show_number
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.gfp import F
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import KERN_NOTICE, KERN_WARNING, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.sched import TaskTable
from kmemd.mm.slab_flags import SLAB_FAILSLAB
from kmemd.tunable import Tunable, Tuned

PERCENT = 100


def _row(path: str, attr: str, bits: int = 64, *, signed: bool = False) -> Tunable:
    parse: Callable[[str, Any, Tunable], tuple[Any, int]] = SimpleAttr(bits, signed=signed) if bits > 1 else flag
    show: Callable[[Any], str] = show_number if bits > 1 else show_flag
    return Tunable(f"{DEBUGFS}/{path}", attr, show, parse, mode=0o600, on_change="rearm")


def _rows(directory: str) -> tuple[Tunable, ...]:
    """The files that every capability has (``fault_create_debugfs_attr``)."""
    return (
        _row(f"{directory}/probability", "probability"),
        _row(f"{directory}/interval", "interval"),
        _row(f"{directory}/times", "times", 32, signed=True),
        _row(f"{directory}/space", "space", 32, signed=True),
        _row(f"{directory}/verbose", "verbose"),
        _row(f"{directory}/verbose_ratelimit_interval_ms", "ratelimit_interval", 32),
        _row(f"{directory}/verbose_ratelimit_burst", "ratelimit_burst", 32),
        _row(f"{directory}/task-filter", "task_filter", 1),
    )


class FaultAttr(Tuned):
    """One capability (``struct fault_attr``).

    ``armed`` is whether anything can fail at all: allocators look at this alone when nobody experiments.
    """

    NAME: ClassVar[str]
    FRAMES: ClassVar[tuple[str, ...]]
    """The functions that ask whether to fail, innermost first."""

    def __init__(
        self,
        context: Context,
        tasks: TaskTable,
        rng: Random,
        printk: Printk,
        dump_stack: DumpStack,
        cmdline: CommandLine,
    ) -> None:
        self._context, self._tasks, self._rng = context, tasks, rng
        self._printk, self._dump_stack = printk, dump_stack
        self.probability, self.interval, self.times, self.space = 0, 1, 1, 0
        self.verbose, self.task_filter = 2, False
        self.ratelimit_interval = self.ratelimit_burst = 0
        self.count = 0
        self.armed = False
        self._limit = RateLimit(
            lambda: context.now, printk, lambda: self.ratelimit_interval, lambda: self.ratelimit_burst
        )
        option = cmdline.get(self.NAME)
        if option is not None:
            self._setup(option)

    def _setup(self, option: str) -> None:
        """``interval,probability,space,times`` (``setup_fault_attr``)."""
        words = option.split(",")
        try:
            self.interval, self.probability, self.space, self.times = (int(word) for word in words[:4])
        except ValueError:
            self._printk.log(KERN_WARNING, "FAULT_INJECTION: failed to parse arguments")
        self.rearm()

    def rearm(self) -> None:
        """A setting changed, or a task's fail-nth."""
        self.armed = self.probability > 0 or any(task.fail_nth for task in self._tasks)

    def should_fail(self, size: int, gfp: int, callers: tuple[str, ...] = ()) -> bool:
        """Whether an allocation of ``size`` is to fail (``should_fail_ex``).

        ``callers`` are the functions of the allocator that ask, innermost first.
        """
        task = self._tasks.current()
        if task is not None and task.fail_nth:
            task.fail_nth -= 1
            if task.fail_nth:
                return False
            self.rearm()
        elif not self._chosen(size, make_it_fail=task is not None and bool(task.make_it_fail)):
            return False
        if not gfp & F.NOWARN:
            self._fail_dump(callers)
        if self.times > 0:
            self.times -= 1
        return True

    def _chosen(self, size: int, *, make_it_fail: bool) -> bool:
        """Whether settings and chance want this one to fail."""
        if not self.probability or (self.task_filter and not make_it_fail) or not self.times:
            return False
        if self.space > size:
            self.space -= size
            return False
        if self.interval > 1:
            self.count += 1
            if self.count % self.interval:
                return False
        return self.probability > self._rng.randrange(PERCENT)

    def _fail_dump(self, callers: tuple[str, ...]) -> None:
        if self.verbose > 0 and self._limit("fail_dump"):
            self._printk.log(
                KERN_NOTICE,
                f"FAULT_INJECTION: forcing a failure.\nname {self.NAME}, interval {self.interval}, "
                f"probability {self.probability}, space {self.space}, times {self.times}",
            )
            if self.verbose > 1:
                self._dump_stack((*self.FRAMES, *callers))


class FailPageAlloc(FaultAttr):
    """Blocks of pages."""

    NAME = "fail_page_alloc"
    FRAMES = ("should_fail_ex", "should_fail_alloc_page", "__alloc_pages")
    TUNABLES = (
        *_rows(NAME),
        _row(f"{NAME}/ignore-gfp-wait", "ignore_gfp_wait", 1),
        _row(f"{NAME}/ignore-gfp-highmem", "ignore_gfp_highmem", 1),
        _row(f"{NAME}/min-order", "min_order", 32),
    )
    ignore_gfp_wait = ignore_gfp_highmem = True
    min_order = 1

    def room(self, gfp: int, order: int, n: int) -> int:
        """How many of ``n`` blocks may be allocated before one is to fail."""
        spared = (F.DIRECT_RECLAIM if self.ignore_gfp_wait else 0) | (F.HIGHMEM if self.ignore_gfp_highmem else 0)
        if order < self.min_order or gfp & (F.NOFAIL | spared):
            return n
        return next((done for done in range(n) if self.should_fail(1 << order, gfp)), n)


class FailSlab(FaultAttr):
    """Objects of slabs."""

    NAME = "failslab"
    FRAMES = ("should_fail_ex", "should_failslab")
    TUNABLES = (
        *_rows(NAME),
        _row(f"{NAME}/ignore-gfp-wait", "ignore_gfp_wait", 1),
        _row(f"{NAME}/cache-filter", "cache_filter", 1),
    )
    ignore_gfp_wait, cache_filter = True, False

    def room(self, flags: int, size: int, gfp: int, n: int, callers: tuple[str, ...] = ()) -> int:
        """How many of ``n`` objects of a cache with ``flags`` may be allocated before one is to fail.

        ``callers`` are the functions of the allocator that ask, innermost first.
        """
        spared = F.DIRECT_RECLAIM if self.ignore_gfp_wait else 0
        if gfp & (F.NOFAIL | spared) or (self.cache_filter and not flags & SLAB_FAILSLAB):
            return n
        return next((done for done in range(n) if self.should_fail(size, gfp, callers)), n)
