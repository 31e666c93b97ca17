"""The end of a task by a signal, while another task executes (kernel/exit.c ``do_group_exit``, kernel/signal.c).

Left out: core dumps, and what a parent learns of its child's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kmemd.core.context import Context
from kmemd.mm.handles import Handles, Kind
from kmemd.mm.sched import elsewhere
from kmemd.steps import Steps

UNINTERRUPTIBLE = "D"


class Ending(Protocol):
    """A task as far as its end goes."""

    pid: int
    tgid: int
    comm: str
    cpu: int
    state: str


class DoExit:
    """Ends tasks: each runs to its end on its own CPU. ``exit(pid)`` takes its memory and kernel objects back,
    ``empty(pid)`` most of its memory in slices; ``alive(task)`` says whether it has not ended otherwise.

    Invariants: the task that was executing goes on as if nothing had happened, at a later time. A task that sleeps
    uninterruptibly ends at the first ``deliver`` after it woke.
    """

    def __init__(
        self,
        context: Context,
        handles: Handles,
        exit: Callable[[int], object],
        alive: Callable[[Ending], bool],
        empty: Callable[[int], Steps[None]],
    ) -> None:
        self._context = context
        self._handles = handles
        self._exit = exit
        self._alive = alive
        self._empty = empty
        self._asleep: list[Ending] = []

    def __call__(self, task: Ending) -> bool:
        """End a task that has a fatal signal. False for one that cannot take it now, in uninterruptible sleep."""
        if task.state == UNINTERRUPTIBLE:
            if task not in self._asleep:
                self._asleep.append(task)
            return False
        with elsewhere(self._context):
            self._context.switch(task.pid, task.tgid, task.comm, task.cpu)
            self._exit(task.pid)
        for name, handle in list(self._handles.items()):
            if handle.kind in (Kind.TASK, Kind.MAPPING) and handle.pid == task.pid:
                self._handles.forget(name)
        return True

    def steps(self, task: Ending) -> Steps[bool]:
        """End a task in slices: what is large of its memory goes first."""
        if task.state != UNINTERRUPTIBLE:
            with elsewhere(self._context):
                self._context.switch(task.pid, task.tgid, task.comm, task.cpu)
                yield from self._empty(task.pid)
        return self(task)

    def deliver(self) -> None:
        """End the tasks that slept when their fatal signal came, and are awake now."""
        awake = [task for task in self._asleep if task.state != UNINTERRUPTIBLE]
        self._asleep = [task for task in self._asleep if task.state == UNINTERRUPTIBLE]
        for task in awake:
            if self._alive(task):
                self(task)
