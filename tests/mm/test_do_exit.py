"""Ending a task while another one executes."""

from __future__ import annotations

from kmemd.core.context import Context
from kmemd.mm.do_exit import DoExit
from kmemd.mm.handles import Handle, Handles, Kind
from tests.mm.oom_fake import Task


def test_the_executing_task_goes_on_and_the_handle_is_gone() -> None:
    context, handles = Context(), Handles()
    context.switch(50, 50, "sh", 1)
    ran: list[tuple[int, int, str, int]] = []

    def exit(pid: int) -> None:
        ran.append((pid, context.pid, context.comm, context.cpu))
        context.charge(700)
        context.site = 3

    handles.bind("p", Handle(Kind.TASK, pid=60))
    handles.bind("q", Handle(Kind.TASK, pid=50))
    assert DoExit(context, handles, exit, lambda task: True, lambda pid: iter(()))(Task(60, comm="hog", cpu=2))
    assert ran == [(60, 60, "hog", 2)]
    assert (context.pid, context.comm, context.cpu, context.site, context.now) == (50, "sh", 1, 0, 700)
    assert [name for name, _ in handles.items()] == ["q"]


def test_uninterruptible_sleep_puts_it_off() -> None:
    ended: list[int] = []
    do_exit = DoExit(Context(), Handles(), ended.append, lambda task: task.pid != 61, lambda pid: iter(()))
    sleepers = [Task(pid, state="D") for pid in (60, 61, 62)]
    assert not any(do_exit(task) for task in sleepers)
    assert not do_exit(sleepers[0])
    do_exit.deliver()
    assert ended == []
    for task in sleepers[:2]:
        task.state = "S"
    do_exit.deliver()
    do_exit.deliver()
    assert ended == [60], "61 ended by other means, 62 still sleeps"
