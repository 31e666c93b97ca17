"""How the files of ``/proc/PID`` and ``/proc/PID/task/TID`` are declared, and who may open them (fs/proc/base.c).

A process has one thread, so that most files exist twice. What shows the inside of an address space opens for root and
for the task's own user alone (``ptrace_may_access``); left out: dumpable, security modules, user namespaces.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYS_PTRACE
from kmemd.mm.sched import Task
from kmemd.views.tree import Binary, Caller, proc

PROC, THREAD = "{pid}", "{pid}/task/{tid}"
Show = Callable[..., Any]
Store = Callable[[Kernel, Task, str], Any]


def task_of(kernel: Kernel, pid: int) -> Task:
    """The task of a directory. ESRCH when it is gone."""
    return kernel.tasks.visitor(pid) or kernel.tasks.find(pid)


def may_ptrace(task: Task, caller: Caller) -> bool:
    """Whether the caller may look into the task's memory (kernel/ptrace.c ``__ptrace_may_access``).

    The same user in the same group may, and who has CAP_SYS_PTRACE; a visitor may look into itself.
    """
    mine = (caller.uid, caller.group) == (task.uid, task.gid)
    return mine or caller.capable(CAP_SYS_PTRACE) or caller.process == task.pid


def check_ptrace(task: Task, caller: Caller) -> None:
    """Refuse who may not look into the task. EACCES."""
    if not may_ptrace(task, caller):
        raise KernelError(errno.EACCES, f"uid {caller.uid} may not look into process {task.pid}")


def check_ptrace_of(kernel: Kernel, pid: int, *rest: Any) -> None:
    """``may_open`` of what shows a task's open files. EACCES (``proc_fdinfo_permission``)."""
    check_ptrace(task_of(kernel, pid), rest[-1])


def is_task(kernel: Kernel, pid: int, *tid: int) -> bool:
    """Whether a directory belongs to a task of the model and not to a visitor."""
    return kernel.tasks.visitor(pid) is None


def check_memory_access(kernel: Kernel, pid: int, *rest: Any) -> None:
    """``may_open`` of files of an address space. EACCES for other users' (``mm_access``)."""
    task = task_of(kernel, pid)
    if task.mm is not None:
        check_ptrace(task, rest[-1])


def task_file(
    name: str,
    mode: int = 0o444,
    *,
    thread: bool = True,
    store: Store | None = None,
    caller: bool = False,
    private: bool = False,
    needs: int | None = None,
    exists: Callable[..., bool] | None = None,
) -> Callable[[Show], Show]:
    """Decorator: a file of the process and, with ``thread``, of its thread.

    ``caller``: it takes ``caller=``. ``private``: it shows an address space. ``needs``: the capability that a
    write takes, EPERM. ``exists``: which machines have it.
    """

    def declare(show: Show) -> Show:
        for path in (PROC, THREAD) if thread else (PROC,):

            def of_task(kernel: Kernel, pid: int, *tid: int, **extra: Any) -> Any:
                return show(kernel, task_of(kernel, pid), **extra)

            declared = proc.file(f"{path}/{name}", mode, caller=caller, exists=exists)(of_task)
            declared.may_open = check_memory_access if private else None
            if store is not None:
                declared.store_as_caller(_stored(store, needs))
        return show

    return declare


def _stored(store: Store, needs: int | None = None) -> Callable[..., Any]:
    def write(kernel: Kernel, pid: int, *rest: Any, caller: Caller) -> Any:
        if needs is not None and not caller.capable(needs):
            raise KernelError(errno.EPERM, f"uid {caller.uid} lacks capability {needs}")
        return store(kernel, task_of(kernel, pid), rest[-1])

    return write


def task_control(name: str, mode: int = 0o200) -> Callable[[Store], Store]:
    """Decorator: the store of a file of the process and of its thread that cannot be read."""

    def declare(store: Store) -> Store:
        for path in (PROC, THREAD):
            proc.write_only(f"{path}/{name}", mode)(_stored(store)).takes_writer = True
        return store

    return declare


def task_binary(name: str, mode: int = 0o400) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
    """Decorator: ``read(kernel, task, offset, size, caller)`` gives a range of a file of an address space."""

    def declare(read: Callable[..., bytes]) -> Callable[..., bytes]:
        for path in (PROC, THREAD):

            def of_task(kernel: Kernel, pid: int, *rest: int, caller: Caller) -> bytes:
                offset, size = rest[-2:]
                return read(kernel, task_of(kernel, pid), offset, size, caller)

            declared: Binary = proc.binary(f"{path}/{name}", mode, caller=True)(of_task)
            declared.may_open = check_memory_access
        return read

    return declare


def task_link(name: str, target: Callable[[Kernel, Task], str]) -> None:
    """A link of the process and of its thread; visitors have the host's.

    EACCES for who may not look into the task (``proc_pid_readlink``), also where it leads nowhere.
    """
    for path in (PROC, THREAD):

        def of_task(kernel: Kernel, pid: int, *rest: Any) -> str:
            task, caller = task_of(kernel, pid), rest[-1]
            check_ptrace(task, caller)
            return target(kernel, task)

        of_task.__doc__ = f"/proc/PID/{name}."
        proc.link(f"{path}/{name}")(of_task).exists = is_task
