"""Verbs of processes: ``spawn``, ``fork``, ``exec``, ``exit`` (kernel/fork.c, fs/exec.c, kernel/exit.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from kmemd.control.language import Reply, Slices, WordType, allocator, invalid, quoted, suggestion, verb
from kmemd.control.words import Comm, Pid, number
from kmemd.mm.exec import IMAGES, Image
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.sched import Task

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def _image(text: str, kernel: Any) -> Image:
    """A built-in program of the machine's architecture. EINVAL."""
    known = IMAGES[kernel.machine.arch]
    if text not in known:
        invalid(f"no program {quoted(text)}; there are {', '.join(known)}{suggestion(text, known)}")
    return known[text]


def _show(value: Image) -> str:
    return value.path.rpartition("/")[2]


Program = Annotated[Image, WordType("PROGRAM", "busybox, tiny...", _image, _show)]
DEFAULT = "tiny"
UID_MAX = (1 << 32) - 2
Uid = Annotated[
    int, WordType("UID", "a user's number, 0 for root", lambda text, kernel: number(text, UID_MAX, "a user"))
]


@allocator
def spawn(kernel: Kernel, comm: Comm, *, image: Program | None = None, uid: Uid | None = None) -> Reply:
    """Start a process that runs a program and then waits; a small static one unless image= says another.

    Its parent is the task that the line runs as (pid=), whose user, limits and oom_score_adj it has; uid= makes it
    another user's. NAME may stand where a pid is asked for.
    """
    return _started(kernel.fork.spawn(comm, image or IMAGES[kernel.machine.arch][DEFAULT], uid))


@allocator
def fork(kernel: Kernel, pid: Pid) -> Slices:
    """Make a child of a process: it has the same memory, whose private pages are copied when one of them writes."""
    return _started((yield from kernel.fork.fork_steps(pid)))


@verb
def exec(kernel: Kernel, pid: Pid, comm: Comm, *, image: Program | None = None) -> Slices:
    """Have a process run another program in place of what it had: its memory is new, its pid stays."""
    yield from kernel.fork.empty(pid)
    task = kernel.fork.exec(pid, comm, image or IMAGES[kernel.machine.arch][DEFAULT])
    return Reply({"pid": task.pid, "comm": task.comm})


@verb
def exit(kernel: Kernel, pid: Pid) -> Slices:
    """End a process and give its memory back. Kernel threads and init do not end (EPERM)."""
    kernel.fork.mortal(pid)
    yield from kernel.fork.empty(pid)
    task = kernel.fork.exit(pid)
    for name, handle in kernel.handles.items():
        if handle.kind in (Kind.TASK, Kind.MAPPING) and handle.pid == pid:
            kernel.handles.forget(name)
    return Reply({"pid": pid, "comm": task.comm})


def _started(task: Task) -> Reply:
    words: dict[str, int | str] = {"pid": task.pid, "comm": task.comm, "cpu": task.cpu}
    return Reply(words, Handle(Kind.TASK, pid=task.pid))
