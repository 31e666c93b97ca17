"""Verbs of processes: ``spawn``, ``fork``, ``exec``, ``exit`` (kernel/fork.c, fs/exec.c, kernel/exit.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from kmemd.control.language import Reply, WordType, allocator, invalid, quoted, suggestion, verb
from kmemd.control.words import Comm, Pid
from kmemd.mm.exec import IMAGES, Image
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.sched import Task

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

NO_PROGRAM = "none"


def _image(text: str, kernel: Any) -> Image | None:
    """A built-in program of the machine's architecture. EINVAL."""
    known = IMAGES[kernel.machine.arch]
    if text != NO_PROGRAM and text not in known:
        invalid(f"no program {quoted(text)}; there are {', '.join([*known, NO_PROGRAM])}{suggestion(text, known)}")
    return known.get(text)


def _show(value: Image | None) -> str:
    return value.path.rpartition("/")[2] if value is not None else NO_PROGRAM


Program = Annotated[Image | None, WordType("PROGRAM", "busybox, tiny..., or none for no user memory", _image, _show)]
DEFAULT = "tiny"


@allocator
def spawn(kernel: Kernel, comm: Comm, *, image: Program | None = None) -> Reply:
    """Start a process that runs a program and then waits; a small static one unless image= says another.

    Its parent is the task that the line runs as (pid=). NAME may stand where a pid is asked for.
    """
    return _started(kernel.fork.spawn(comm, image or IMAGES[kernel.machine.arch][DEFAULT]))


@allocator
def fork(kernel: Kernel, pid: Pid) -> Reply:
    """Make a child of a process: it has the same memory, whose private pages are copied when one of them writes."""
    return _started(kernel.fork.fork(pid))


@verb
def exec(kernel: Kernel, pid: Pid, comm: Comm, *, image: Program | None = None) -> Reply:
    """Have a process run another program in place of what it had: its memory is new, its pid stays."""
    task = kernel.fork.exec(pid, comm, image or IMAGES[kernel.machine.arch][DEFAULT])
    return Reply({"pid": task.pid, "comm": task.comm})


@verb
def exit(kernel: Kernel, pid: Pid) -> Reply:
    """End a process and give its memory back. Kernel threads and init do not end (EPERM)."""
    task = kernel.fork.exit(pid)
    for name, handle in kernel.handles.items():
        if handle.kind in (Kind.TASK, Kind.MAPPING) and handle.pid == pid:
            kernel.handles.forget(name)
    return Reply({"pid": pid, "comm": task.comm})


def _started(task: Task) -> Reply:
    words: dict[str, int | str] = {"pid": task.pid, "comm": task.comm, "cpu": task.cpu}
    return Reply(words, Handle(Kind.TASK, pid=task.pid))
