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
from kmemd.mm.sched import Task
from kmemd.views.tree import Binary, Caller, proc

PROC, THREAD = "{pid}", "{pid}/task/{tid}"
Show = Callable[..., Any]
Store = Callable[[Kernel, Task, str], Any]


def task_of(kernel: Kernel, pid: int) -> Task:
    """The task of a directory. ESRCH when it is gone."""
    return kernel.tasks.visitor(pid) or kernel.tasks.find(pid)


def may_ptrace(task: Task, caller: Caller) -> bool:
    """Whether the caller may look into the task's memory (PTRACE_MODE_READ_FSCREDS)."""
    return caller.uid in (0, task.uid)


def is_privileged(caller: Caller) -> bool:
    """Whether the caller has root's capabilities."""
    return caller.uid == 0


def is_task(kernel: Kernel, pid: int, *tid: int) -> bool:
    """Whether a directory belongs to a task of the model and not to a visitor."""
    return kernel.tasks.visitor(pid) is None


def check_memory_access(kernel: Kernel, pid: int, *rest: Any) -> None:
    """``may_open`` of files of an address space. EACCES for other users' (``mm_access``)."""
    task, caller = task_of(kernel, pid), rest[-1]
    if task.mm is not None and not may_ptrace(task, caller):
        raise KernelError(errno.EACCES, f"uid {caller.uid} may not look into the memory of process {pid}")


def task_file(
    name: str,
    mode: int = 0o444,
    *,
    thread: bool = True,
    store: Store | None = None,
    caller: bool = False,
    private: bool = False,
    exists: Callable[..., bool] | None = None,
) -> Callable[[Show], Show]:
    """Decorator: a file of the process and, with ``thread``, of its thread.

    ``caller``: it takes ``caller=``. ``private``: it shows an address space. ``exists``: which machines have it.
    """

    def declare(show: Show) -> Show:
        for path in (PROC, THREAD) if thread else (PROC,):

            def of_task(kernel: Kernel, pid: int, *tid: int, **extra: Any) -> Any:
                return show(kernel, task_of(kernel, pid), **extra)

            declared = proc.file(f"{path}/{name}", mode, caller=caller, exists=exists)(of_task)
            declared.may_open = check_memory_access if private else None
            if store is not None:
                declared.store(_stored(store))
        return show

    return declare


def _stored(store: Store) -> Callable[..., Any]:
    def write(kernel: Kernel, pid: int, *rest: Any) -> Any:
        return store(kernel, task_of(kernel, pid), rest[-1])

    return write


def task_control(name: str, mode: int = 0o200) -> Callable[[Store], Store]:
    """Decorator: the store of a file of the process and of its thread that cannot be read."""

    def declare(store: Store) -> Store:
        for path in (PROC, THREAD):
            proc.write_only(f"{path}/{name}", mode)(_stored(store))
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
    """A link of the process and of its thread; visitors have the host's."""
    for path in (PROC, THREAD):

        def of_task(kernel: Kernel, pid: int, *rest: Any) -> str:
            return target(kernel, task_of(kernel, pid))

        of_task.__doc__ = f"/proc/PID/{name}."
        proc.link(f"{path}/{name}")(of_task).exists = is_task
