"""``/proc/PID/oom_score_adj`` and its old form ``oom_adj``, of a process and of its thread (fs/proc/base.c)."""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYS_RESOURCE
from kmemd.mm.oom_adj import oom_adj
from kmemd.views.task_files import PROC, THREAD, task_of
from kmemd.views.tree import Caller, proc

for _path in (PROC, THREAD):

    @proc.file(f"{_path}/oom_score_adj", mode=0o644)
    def oom_score_adj(kernel: Kernel, pid: int, *tid: int) -> str:
        """How much the OOM killer is biased for or against the task."""
        return f"{task_of(kernel, pid).oom_score_adj}\n"

    @oom_score_adj.store_as_caller
    def oom_score_adj_store(kernel: Kernel, pid: int, *rest: int | str, caller: Caller) -> int:
        """Set the bias. EINVAL, ERANGE, EACCES."""
        task, text = task_of(kernel, pid), str(rest[-1])
        return kernel.oom_adj.write_score_adj(task, text, capable=caller.capable(CAP_SYS_RESOURCE))

    @proc.file(f"{_path}/oom_adj", mode=0o644)
    def oom_adj_show(kernel: Kernel, pid: int, *tid: int) -> str:
        """The same on the old scale."""
        return f"{oom_adj(task_of(kernel, pid).oom_score_adj)}\n"

    @oom_adj_show.store_as_caller
    def oom_adj_store(kernel: Kernel, pid: int, *rest: int | str, caller: Caller) -> int:
        """Set the bias on the old scale. EINVAL, ERANGE, EACCES."""
        return kernel.oom_adj.write_adj(task_of(kernel, pid), str(rest[-1]), capable=caller.capable(CAP_SYS_RESOURCE))
