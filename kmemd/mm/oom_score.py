"""How bad a task is: what the OOM killer would choose by.

Models ``oom_badness`` (mm/oom_kill.c) and ``proc_oom_score`` (fs/proc/base.c).

Left out: memory policies and cgroups that narrow the choice.
"""

from __future__ import annotations

from kmemd.mm.oom_kill import OOM_SCORE_ADJ_MIN
from kmemd.mm.sched import Task


def oom_badness(task: Task, total_pages: int) -> int | None:
    """Pages that killing the task would free, biased by its adjustment; None for one that must not be killed.

    ``total_pages`` is RAM and swap together.
    """
    if task.is_kthread or task.pid == 1 or task.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return None
    points = task.rss + task.swap_pages + task.page_table_pages
    return points + task.oom_score_adj * (total_pages // 1000)


def oom_score(task: Task, total_pages: int) -> int:
    """The number in /proc/PID/oom_score."""
    points = oom_badness(task, total_pages)
    if points is None:
        return 0
    scaled = points * 1000
    share = abs(scaled) // total_pages * (1 if scaled >= 0 else -1)
    return max(0, (1000 + share) * 2 // 3)
