"""/proc/PID/oom_score_adj and oom_adj: what is taken, from whom, and who else gets it."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.mm.oom_adj import OomAdj, oom_adj
from tests.mm.oom_fake import Arrays, Task


class Harness:
    def __init__(self) -> None:
        self.arrays = Arrays()
        self.tasks: list[Task] = []
        self.log: list[str] = []
        self.adj = OomAdj(lambda: self.tasks, self.warn_once, lambda: ("sh", 7))

    def warn_once(self, text: str) -> None:
        if not self.log:
            self.log.append(text)

    def task(self, pid: int, **more: object) -> Task:
        task = Task(pid, mm=self.arrays.mm(1), **more)  # type: ignore[arg-type]
        self.tasks.append(task)
        return task


@pytest.mark.parametrize(("text", "taken"), [("500", 3), ("-1000", 5)])
def test_the_captured_writes_that_are_taken(text: str, taken: int) -> None:
    harness = Harness()
    task = harness.task(50)
    assert harness.adj.write_score_adj(task, text, capable=True) == taken
    assert task.oom_score_adj == int(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [(text, errno.EINVAL) for text in ("1001", "-1001", "abc", "", "12x")] + [("99999999999", errno.ERANGE)],
)
def test_the_captured_writes_that_fail(text: str, number: int) -> None:
    harness = Harness()
    task = harness.task(50)
    with pytest.raises(KernelError) as caught:
        harness.adj.write_score_adj(task, text, capable=True)
    assert (caught.value.errno, task.oom_score_adj) == (number, 0)


def test_below_what_root_set_only_root_may_go() -> None:
    harness = Harness()
    task = harness.task(50)
    harness.adj.write_score_adj(task, "300", capable=True)
    with pytest.raises(KernelError) as caught:
        harness.adj.write_score_adj(task, "299", capable=False)
    assert caught.value.errno == errno.EACCES
    harness.adj.write_score_adj(task, "900", capable=False)
    harness.adj.write_score_adj(task, "300", capable=False)
    assert (task.oom_score_adj, task.oom_score_adj_min) == (300, 300)


def test_the_old_file_never_goes_down_for_a_user() -> None:
    harness = Harness()
    task = harness.task(50)
    harness.adj.write_adj(task, "8", capable=False)
    assert task.oom_score_adj == 470
    with pytest.raises(KernelError) as caught:
        harness.adj.write_adj(task, "7", capable=False)
    assert caught.value.errno == errno.EACCES
    assert task.oom_score_adj_min == 0


def test_the_old_file_is_complained_of_once() -> None:
    harness = Harness()
    first, second = harness.task(50), harness.task(51)
    harness.adj.write_adj(first, "15", capable=True)
    harness.adj.write_adj(second, "-17", capable=True)
    assert (first.oom_score_adj, second.oom_score_adj) == (1000, -1000)
    assert harness.log == [
        "sh (7): /proc/50/oom_adj is deprecated, please use /proc/50/oom_score_adj instead.",
    ]


def test_who_shares_the_memory_shares_the_bias() -> None:
    harness = Harness()
    task, other, stranger = harness.task(50), harness.task(51), harness.task(52)
    assert task.mm is not None
    other.mm, task.mm.users = task.mm, 2
    harness.adj.write_score_adj(task, "-5", capable=True)
    assert (other.oom_score_adj, other.oom_score_adj_min, stranger.oom_score_adj) == (-5, -5, 0)


@pytest.mark.parametrize(("adj", "shown"), [(-1000, -17), (1000, 15), (-500, -8), (500, 8), (0, 0), (999, 15)])
def test_the_old_scale(adj: int, shown: int) -> None:
    assert oom_adj(adj) == shown
