"""The OOM killer, bad accesses and SysRq, wired (oom_init, trap_init, sysrq_init).

A part of ``kernel.py`` in a module of its own. The killer ends tasks by means that are made after the page allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kmemd.core import trace_ids as ev
from kmemd.mm.bad_area import BadArea
from kmemd.mm.gfp import GFP_KERNEL, gfp_zone
from kmemd.mm.oom_adj import OomAdj
from kmemd.mm.oom_kill import OomKill, OomReaper
from kmemd.mm.oom_report import OomReport, SlabUse
from kmemd.mm.printk import KERN_WARNING
from kmemd.mm.sched import Task
from kmemd.mm.slab_flags import SLAB_RECLAIM_ACCOUNT
from kmemd.mm.sysrq import SysRq

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def make_oom_kill(kernel: Kernel, executing: Callable[[], Task | None]) -> OomKill:
    """The OOM killer with its report and its reaper. ``executing()`` is the task that asks for memory."""
    report = OomReport(
        kernel.context,
        kernel.printk,
        kernel.dump_stack,
        kernel.show_mem,
        kernel.mm_counters,
        kernel.vmstat,
        lambda: unreclaimable_slabs(kernel),
        lambda memcg: kernel.memcg_stat.lines(memcg),
    )
    return OomKill(
        kernel.nodes,
        kernel.tasks.in_order_of_fork,
        executing,
        lambda: (kernel.totalram_pages(), kernel.swap.total_swap_pages),
        kernel.mm_counters,
        kernel.vmstat,
        report,
        OomReaper(kernel.context, kernel.clock, report, lambda mm: kernel.user.zap.reap(mm)),
        kernel.do_exit,
        long_bits=kernel.machine.long_bits,
    )


def make_oom_adj(kernel: Kernel) -> OomAdj:
    """Who may set which oom_score_adj."""

    def warn_once(text: str) -> None:
        if kernel.printk.once("oom_adj"):
            kernel.printk.log(KERN_WARNING, text)

    return OomAdj(
        kernel.tasks.in_order_of_fork,
        warn_once,
        lambda: (kernel.context.comm, kernel.context.pid),
        lambda pid, comm, value: kernel.context.trace.emit(ev.OOM_SCORE_ADJ_UPDATE, pid, comm, value),
    )


def make_bad_area(kernel: Kernel) -> BadArea:
    """Signals for bad accesses of programs."""
    return BadArea(
        kernel.context,
        kernel.printk,
        kernel.user_mode,
        kernel.ratelimit,
        kernel.dump_stack,
        lambda cpu: (cpu, 0),
        long_bits=kernel.machine.long_bits,
        print_fatal_signals=int(kernel.cmdline.has("print-fatal-signals")),
    )


def make_sysrq(kernel: Kernel) -> SysRq:
    """What the magic SysRq keys do."""
    names = tuple(zone.name for zone in kernel.nodes[0].zones)
    return SysRq(
        kernel.context,
        kernel.depot,
        kernel.printk,
        kernel.dump_stack,
        kernel.tasks,
        lambda: kernel.kernel_sysctl,
        kernel.show_mem,
        kernel.oom_kill,
        kernel.do_exit,
        lambda: kernel.user.files.sync(),
        (len(names) - 1, gfp_zone(GFP_KERNEL, names)),
    )


def unreclaimable_slabs(kernel: Kernel) -> Iterator[SlabUse]:
    """What each cache that cannot be reclaimed uses, the newest first, for the OOM report."""
    for cache in kernel.slub.caches:
        if not cache.flags & SLAB_RECLAIM_ACCOUNT:
            active, objects, _ = kernel.slub.slab_counts(cache)
            yield cache.name, active * cache.size, objects * cache.size
