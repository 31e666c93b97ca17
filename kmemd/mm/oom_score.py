"""How bad a task is: what the OOM killer chooses by (mm/oom_kill.c ``oom_badness``, fs/proc/base.c ``proc_oom_score``).

Left out: vfork, whose child is spared until it has memory of its own.
"""

from __future__ import annotations

from typing import Protocol

from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mm_types import MMF_OOM_SKIP, Mm
from kmemd.mm.oom_adj import INIT_PID, OOM_SCORE_ADJ_MIN
from kmemd.mm.units import PAGE_SIZE


class Scored(Protocol):
    """A task as far as its score goes."""

    pid: int
    mm: Mm | None
    oom_score_adj: int

    @property
    def is_kthread(self) -> bool: ...


def unkillable(task: Scored) -> bool:
    """Whether the task is init or a kernel thread (oom_unkillable_task)."""
    return task.is_kthread or task.pid == INIT_PID


def oom_badness(task: Scored, counters: MmCounters, total_pages: int) -> int | None:
    """Pages that killing the task would free, biased by its adjustment; None for one that must not be killed.

    ``total_pages`` is the memory and swap that the request could have used.
    """
    mm = task.mm
    if mm is None or unkillable(task) or task.oom_score_adj == OOM_SCORE_ADJ_MIN or mm.flags & MMF_OOM_SKIP:
        return None
    points = counters.rss(mm) + counters.swap(mm) + counters.pgtables_bytes(mm) // PAGE_SIZE
    return points + task.oom_score_adj * (total_pages // 1000)


def oom_score(task: Scored, counters: MmCounters, total_pages: int) -> int:
    """The number in /proc/PID/oom_score."""
    points = oom_badness(task, counters, total_pages)
    if points is None:
        return 0
    share = abs(points * 1000) // total_pages * (1 if points >= 0 else -1)
    return (1000 + share) * 2 // 3
