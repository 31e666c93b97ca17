"""Verbs of processes: ``spawn``, ``exit``, ``kill`` (kernel/fork.c, kernel/exit.c, kernel/signal.c)."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING

from kmemd.control.language import Reply, allocator, invalid, quoted, suggestion, verb
from kmemd.control.words import Comm, Pid, Text
from kmemd.mm.fork import INIT_PID
from kmemd.mm.handles import Handle, Kind

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

NSIG = 64
IGNORED = {signals.SIGCHLD, signals.SIGURG, signals.SIGWINCH, signals.SIGCONT}
"""Signals whose default action is to do nothing."""
STOPPING = {signals.SIGSTOP, signals.SIGTSTP, signals.SIGTTIN, signals.SIGTTOU}


@allocator
def spawn(kernel: Kernel, comm: Comm) -> Reply:
    """Start a process that only waits: its kernel stack and the objects that describe it.

    Its parent is the task that the line runs as (pid=). NAME may stand where a pid is asked for.
    """
    task = kernel.fork.fork(comm)
    words: dict[str, int | str] = {"pid": task.pid, "comm": task.comm, "cpu": task.cpu}
    return Reply(words, Handle(Kind.TASK, pid=task.pid))


@verb
def exit(kernel: Kernel, pid: Pid) -> Reply:
    """End a process that spawn started.

    Kernel threads and init do not end (EPERM), nor do the processes of boot (EBUSY).
    """
    return _end(kernel, pid)


@verb
def kill(kernel: Kernel, pid: Pid, signal: Text = "TERM") -> Reply:
    """Send a signal, by number or name (9, KILL, SIGKILL).

    A signal whose default action is to end the process ends it; 0 only asks whether it is there. Kernel
    threads and init ignore signals, as in Linux; a process cannot be stopped.
    """
    number = _signal(signal)
    task = kernel.tasks.find(pid)
    if number in STOPPING:
        invalid("signal: processes of this model do not run and cannot be stopped")
    if number == 0 or number in IGNORED or task.is_kthread or pid == INIT_PID:
        return Reply({"pid": pid, "signal": number})
    return Reply({**_end(kernel, pid).words, "signal": number})


def _end(kernel: Kernel, pid: int) -> Reply:
    task = kernel.fork.exit(pid)
    for name, handle in kernel.handles.items():
        if handle.kind is Kind.TASK and handle.pid == pid:
            kernel.handles.forget(name)
    return Reply({"pid": pid, "comm": task.comm})


def _signal(word: str) -> int:
    """The number of a signal. EINVAL."""
    if word.isascii() and word.isdigit() and len(word) < 4 and int(word) <= NSIG:
        return int(word)
    names = {found.name.removeprefix("SIG"): int(found) for found in signals.Signals}
    number = names.get(word.upper().removeprefix("SIG"))
    if number is None:
        invalid(f"signal: no signal {quoted(word)}{suggestion(word.upper(), names)}")
    return number
