"""Verbs of signals: ``sigaction``, ``kill`` (kernel/signal.c)."""

from __future__ import annotations

import errno
import signal as signals
from typing import TYPE_CHECKING

from kmemd.control.language import Reply, Slices, invalid, quoted, suggestion, verb
from kmemd.control.words import Pid, Text
from kmemd.errors import KernelError
from kmemd.mm.fork import INIT_PID
from kmemd.mm.signals import NSIG, STOPPING, Action, may_kill
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel
    from kmemd.mm.sched import Task


@verb
def sigaction(kernel: Kernel, pid: Pid, signal: Text, action: Text = "default") -> Reply:
    """Say what a process does with a signal: catch, ignore or default.

    SIGKILL and SIGSTOP cannot be changed (EINVAL). A caught signal does not end the process; a bad access then
    answers signal= and code=. One that is ignored ends it all the same when the kernel forces it: a bad access does.
    """
    number = signal_number(signal)
    actions = {found.value: found for found in Action}
    if action not in actions:
        invalid(f"action: {quoted(action)} is not one of {', '.join(actions)}{suggestion(action, actions)}")
    before = kernel.tasks.find(pid).signals.set(number, actions[action])
    return Reply({"pid": pid, "signal": number, "action": action, "old": before.value})


@verb
def kill(kernel: Kernel, pid: Pid, signal: Text = "TERM", *, sender: Pid | None = None) -> Slices:
    """Send a signal, by number or name (9, KILL, SIGKILL).

    A signal that is neither caught nor ignored ends the process; 0 only asks whether it is there. Kernel threads
    and init ignore signals, as in Linux; a process cannot be stopped. EPERM where the sender
    (the task that the line runs as) is another user's process, and not root's.
    """
    number = signal_number(signal)
    task = kernel.tasks.find(pid)
    source = kernel.tasks.current() if sender is None else kernel.tasks.find(sender)
    if source is not None and not may_kill(source.uid, task.uid):
        raise KernelError(errno.EPERM, f"user {source.uid} may not send signals to {task.comm} of user {task.uid}")
    if number in STOPPING:
        invalid("signal: processes of this model do not run and cannot be stopped")
    reply: dict[str, int | str] = {"pid": pid, "comm": task.comm, "signal": number}
    if number == 0 or task.is_kthread or pid == INIT_PID or not task.signals.fatal(number):
        return Reply(reply)
    yield from end(kernel, task, number)
    return Reply(reply)


def end(kernel: Kernel, task: Task, number: int) -> Steps[None]:
    """End a task by a fatal signal; one in uninterruptible sleep ends when it wakes."""
    task.killed = number
    try:
        yield from kernel.do_exit.steps(task)
    except KernelError:
        task.killed = 0
        raise


def signal_number(word: str) -> int:
    """The number of a signal. EINVAL."""
    if word.isascii() and word.isdigit() and len(word) < 4 and int(word) <= NSIG:
        return int(word)
    names = {found.name.removeprefix("SIG"): int(found) for found in signals.Signals}
    number = names.get(word.upper().removeprefix("SIG"))
    if number is None:
        invalid(f"signal: no signal {quoted(word)}{suggestion(word.upper(), names)}")
    return number
