"""``/proc/PID/oom_score_adj`` and its old form ``oom_adj`` (fs/proc/base.c)."""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.oom_adj import oom_adj
from kmemd.views.tree import Caller, proc


@proc.file("{pid}/oom_score_adj", mode=0o644)
def oom_score_adj(kernel: Kernel, pid: int) -> str:
    """How much the OOM killer is biased for or against the task."""
    return f"{kernel.tasks.find(pid).oom_score_adj}\n"


@oom_score_adj.store_as_caller
def oom_score_adj_store(kernel: Kernel, pid: int, text: str, caller: Caller) -> int:
    """Set the bias. EINVAL, ERANGE, EACCES."""
    return kernel.oom_adj.write_score_adj(kernel.tasks.find(pid), text, capable=caller.uid == 0)


@proc.file("{pid}/oom_adj", mode=0o644)
def oom_adj_show(kernel: Kernel, pid: int) -> str:
    """The same on the old scale."""
    return f"{oom_adj(kernel.tasks.find(pid).oom_score_adj)}\n"


@oom_adj_show.store_as_caller
def oom_adj_store(kernel: Kernel, pid: int, text: str, caller: Caller) -> int:
    """Set the bias on the old scale. EINVAL, ERANGE, EACCES."""
    return kernel.oom_adj.write_adj(kernel.tasks.find(pid), text, capable=caller.uid == 0)
