"""A task's bias for or against the OOM killer, /proc/PID/oom_score_adj and oom_adj (fs/proc/base.c ``__set_oom_adj``).

Left out: namespaces of users, where a capability counts in its own namespace alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Protocol

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.mm_types import Mm

OOM_DISABLE = -17
OOM_ADJUST_MIN, OOM_ADJUST_MAX = -16, 15
OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX = -1000, 1000
PROC_NUMBUF = 13
INIT_PID = 1


class Adjustable(Protocol):
    """A task as far as the OOM killer's bias goes."""

    pid: int
    mm: Mm | None
    oom_score_adj: int
    oom_score_adj_min: int


class OomAdj:
    """Takes writes to the two files.

    ``tasks()`` lists all tasks, ``warn(text)`` logs the one complaint about the old file, ``writer()`` is the
    name and pid of who writes; ``updated(pid, comm, value)`` is told of each
    task whose bias has changed.
    """

    def __init__(
        self,
        tasks: Callable[[], Iterable[Adjustable]],
        warn_once: Callable[[str], None],
        writer: Callable[[], tuple[str, int]],
        updated: Callable[[int, str, int], None] = lambda pid, comm, value: None,
    ) -> None:
        self._updated = updated
        self._tasks = tasks
        self._warn_once = warn_once
        self._writer = writer

    def write_score_adj(self, task: Adjustable, text: str, *, capable: bool) -> int:
        """Set oom_score_adj, -1000..1000; below what root last set only with CAP_SYS_RESOURCE. EINVAL, ERANGE, EACCES.

        Returns the bytes taken.
        """
        value, taken = _read_int(text)
        if not OOM_SCORE_ADJ_MIN <= value <= OOM_SCORE_ADJ_MAX:
            raise KernelError(errno.EINVAL, f"oom_score_adj takes {OOM_SCORE_ADJ_MIN}..{OOM_SCORE_ADJ_MAX}")
        if value < task.oom_score_adj_min and not capable:
            reason = f"{value} is below {task.oom_score_adj_min}, and CAP_SYS_RESOURCE is missing"
            raise KernelError(errno.EACCES, reason)
        self._set(task, value, value if capable else None)
        return taken

    def write_adj(self, task: Adjustable, text: str, *, capable: bool) -> int:
        """Set the old oom_adj, -16..15 or -17, which scales to oom_score_adj. EINVAL, ERANGE, EACCES."""
        value, taken = _read_int(text)
        if value != OOM_DISABLE and not OOM_ADJUST_MIN <= value <= OOM_ADJUST_MAX:
            raise KernelError(errno.EINVAL, f"oom_adj takes {OOM_DISABLE}..{OOM_ADJUST_MAX}")
        score = OOM_SCORE_ADJ_MAX if value == OOM_ADJUST_MAX else _divide(value * OOM_SCORE_ADJ_MAX, -OOM_DISABLE)
        if score < task.oom_score_adj and not capable:
            raise KernelError(errno.EACCES, "a lower oom_adj needs CAP_SYS_RESOURCE")
        comm, pid = self._writer()
        old, new = f"/proc/{task.pid}/oom_adj", f"/proc/{task.pid}/oom_score_adj"
        self._warn_once(f"{comm} ({pid}): {old} is deprecated, please use {new} instead.")
        self._set(task, score, None)
        return taken

    def _set(self, task: Adjustable, value: int, lowest: int | None) -> None:
        """Give the bias to the task and to those that share its memory; ``lowest``: what others may go down to."""
        for other in [task, *self._sharers(task)]:
            other.oom_score_adj = value
            self._updated(other.pid, getattr(other, "comm", ""), value)
            if lowest is not None:
                other.oom_score_adj_min = lowest

    def _sharers(self, task: Adjustable) -> list[Adjustable]:
        mm = task.mm
        if mm is None or mm.users < 2:
            return []
        return [other for other in self._tasks() if other.mm is mm and other.pid not in (task.pid, INIT_PID)]


def oom_adj(score_adj: int) -> int:
    """What /proc/PID/oom_adj reads: oom_score_adj scaled back, rounded towards zero."""
    if score_adj == OOM_SCORE_ADJ_MAX:
        return OOM_ADJUST_MAX
    return min(_divide(score_adj * -OOM_DISABLE, OOM_SCORE_ADJ_MAX), OOM_ADJUST_MAX)


def _read_int(text: str) -> tuple[int, int]:
    """The number in a write to a /proc/PID file, and the bytes taken: at most twelve are looked at."""
    data = kstrtox.to_bytes(text)[: PROC_NUMBUF - 1]
    return kstrtox.kstrtoint(kstrtox.strip(kstrtox.c_string(data)), 0), len(data)


def _divide(dividend: int, divisor: int) -> int:
    """C division: towards zero."""
    quotient = abs(dividend) // divisor
    return quotient if dividend >= 0 else -quotient
