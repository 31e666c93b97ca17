"""``/proc/PID/oom_score_adj`` and its old form ``oom_adj`` (fs/proc/base.c)."""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.oom_kill import oom_adj, write_oom_adj, write_oom_score_adj
from kmemd.views.tree import proc


@proc.file("{pid}/oom_score_adj", mode=0o644)
def oom_score_adj(kernel: Kernel, pid: int) -> str:
    """How much the OOM killer is biased for or against the task."""
    return f"{kernel.tasks.find(pid).oom_score_adj}\n"


@oom_score_adj.store
def oom_score_adj_store(kernel: Kernel, pid: int, text: str) -> int:
    """Set the bias. EINVAL, ERANGE."""
    return write_oom_score_adj(kernel.tasks.find(pid), text)


@proc.file("{pid}/oom_adj", mode=0o644)
def oom_adj_show(kernel: Kernel, pid: int) -> str:
    """The same on the old scale."""
    return f"{oom_adj(kernel.tasks.find(pid))}\n"


@oom_adj_show.store
def oom_adj_store(kernel: Kernel, pid: int, text: str) -> int:
    """Set the bias on the old scale. EINVAL, ERANGE."""
    return write_oom_adj(kernel.tasks.find(pid), text)
