"""The out-of-memory killer: its knobs, and a task's adjustment (mm/oom_kill.c, fs/proc/base.c).

Left out: the badness of a task and the killing, which need address spaces.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Protocol

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.tunable import Tunable, Tuned

OOM_DISABLE = -17
OOM_ADJUST_MIN, OOM_ADJUST_MAX = -16, 15
OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX = -1000, 1000
PROC_NUMBUF = 13


class Adjustable(Protocol):
    """A task as far as the OOM killer's bias goes."""

    oom_score_adj: int


class OomKill(Tuned):
    """Settings of the OOM killer."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("panic_on_oom", min=0, max=2),
        vm_knob("oom_kill_allocating_task"),
        vm_knob("oom_dump_tasks"),
    )

    def __init__(self, *, long_bits: int = 64) -> None:
        self.long_bits = long_bits
        self.panic_on_oom = 0
        self.oom_kill_allocating_task = 0
        self.oom_dump_tasks = 1


def _read_int(text: str) -> tuple[int, int]:
    """The number in a write to a /proc/PID file, and the bytes taken: at most twelve are looked at."""
    data = kstrtox.to_bytes(text)[: PROC_NUMBUF - 1]
    return kstrtox.kstrtoint(kstrtox.strip(kstrtox.c_string(data)), 0), len(data)


def write_oom_score_adj(task: Adjustable, text: str) -> int:
    """Set /proc/PID/oom_score_adj, -1000..1000. EINVAL, ERANGE."""
    value, taken = _read_int(text)
    if not OOM_SCORE_ADJ_MIN <= value <= OOM_SCORE_ADJ_MAX:
        raise KernelError(errno.EINVAL, f"oom_score_adj takes {OOM_SCORE_ADJ_MIN}..{OOM_SCORE_ADJ_MAX}")
    task.oom_score_adj = value
    return taken


def write_oom_adj(task: Adjustable, text: str) -> int:
    """Set the old /proc/PID/oom_adj, -16..15 or -17, which scales to oom_score_adj. EINVAL, ERANGE."""
    value, taken = _read_int(text)
    if value != OOM_DISABLE and not OOM_ADJUST_MIN <= value <= OOM_ADJUST_MAX:
        raise KernelError(errno.EINVAL, f"oom_adj takes {OOM_DISABLE}..{OOM_ADJUST_MAX}")
    if value == OOM_ADJUST_MAX:
        task.oom_score_adj = OOM_SCORE_ADJ_MAX
    else:
        task.oom_score_adj = _divide(value * OOM_SCORE_ADJ_MAX, -OOM_DISABLE)
    return taken


def oom_adj(task: Adjustable) -> int:
    """What /proc/PID/oom_adj reads: oom_score_adj scaled back, rounded towards zero."""
    if task.oom_score_adj == OOM_SCORE_ADJ_MAX:
        return OOM_ADJUST_MAX
    return min(_divide(task.oom_score_adj * -OOM_DISABLE, OOM_SCORE_ADJ_MAX), OOM_ADJUST_MAX)


def _divide(dividend: int, divisor: int) -> int:
    """C division: towards zero."""
    quotient = abs(dividend) // divisor
    return quotient if dividend >= 0 else -quotient
