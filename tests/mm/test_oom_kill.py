"""The OOM killer: whom it chooses, when it panics, what dies with the victim, what the reaper does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.mm_types import MM_ANONPAGES, Mm
from kmemd.mm.mpol import MPOL_BIND, Policy
from kmemd.mm.oom_kill import OomKill, OomReaper
from kmemd.mm.oom_report import OomReport
from kmemd.mm.page_alloc import ALL_NODES
from kmemd.mm.printk import Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.user_regs import UserMode
from tests.mm.oom_fake import Arrays, Table, Task, reports

GFP = g.GFP_HIGHUSER_MOVABLE | g.F.COMP | g.F.ZERO
TOTAL = 1492392 // 4


@dataclass
class Request:
    """A request that found no page."""

    gfp: int = GFP
    order: int = 0
    highest: int = 2
    nodemask: int = ALL_NODES


@dataclass
class FakeZone:
    present: int


@dataclass
class FakeNode:
    nid: int
    zones: list[FakeZone]
    has_memory: bool = True


class Counts:
    """Stands for the machine's counters: none but OOM kills move."""

    def __init__(self) -> None:
        self.trace = Context().trace
        self.kills = 0
        self.slab = 0

    def count(self, event: int) -> None:
        assert event == stats.OOM_KILL
        self.kills += 1

    def node_total(self, item: int) -> int:
        return self.slab if item == stats.NR_SLAB_UNRECLAIMABLE_B else 0


class Harness:
    """A killer over tasks made by hand; what it kills is gone at once, unless it is in state D."""

    def __init__(self, nodes: int = 1) -> None:
        self.arrays = Arrays()
        self.context = Context()
        self.clock = Clock(self.context, 0)
        self.printk = Printk(self.context)
        self.counts = Counts()
        self.shown: list[tuple[int, int | None]] = []
        self.tasks: list[Task] = []
        self.order: list[int] = []
        dump = DumpStack(self.context, StackDepot(), self.printk, str, "6.1.192 #2", user=UserMode("x86_64"))
        report = OomReport(
            self.context,
            self.printk,
            dump,
            lambda highest, nodes: self.shown.append((highest, nodes)),
            self.arrays.counters,
            self.counts,  # type: ignore[arg-type]
            lambda: [("kmalloc-4k", 4096 * 10, 4096 * 16), ("empty", 0, 0)],
        )
        self.killer = OomKill(
            [FakeNode(nid, [FakeZone(1000), FakeZone(5000)]) for nid in range(nodes)],  # type: ignore[arg-type]
            lambda: self.tasks,
            lambda: next((task for task in self.tasks if task.pid == self.context.pid), None),
            lambda: (TOTAL, 100),
            self.arrays.counters,
            self.counts,  # type: ignore[arg-type]
            report,
            OomReaper(self.context, self.clock, report, self.reap),
            self.end,
        )

    def reap(self, mm: Mm) -> None:
        self.arrays.rss[mm.id * 4 + MM_ANONPAGES] = 0

    def end(self, task: Task) -> bool:
        if task.state == "D":
            return False
        assert task.killed
        self.tasks.remove(task)
        self.order.append(task.pid)
        task.mm = None
        return True

    def task(self, pid: int, rss: int, **more: object) -> Task:
        task = Task(pid, mm=self.arrays.mm(rss), **more)  # type: ignore[arg-type]
        self.tasks.append(task)
        return task

    def run_as(self, pid: int) -> None:
        self.context.switch(pid, pid, "uo", 0)

    @property
    def log(self) -> list[str]:
        return [record.text for record in self.printk.since(0)]


def capture() -> list[Table]:
    return list(reports(Arrays()))


@pytest.mark.parametrize("number", range(6))
def test_the_captured_victims_and_their_lines(number: int) -> None:
    """With the tasks of each captured table, the same one dies, and all lines on tasks are the captured bytes."""
    harness = Harness()
    table = list(reports(harness.arrays))[number]
    harness.tasks = table.tasks
    harness.run_as(table.tasks[-2].pid)
    assert harness.killer.out_of_memory(Request())
    said = [line for line in table.lines if line.startswith(("[", "Tasks", "oom-kill", "Out of memory", "uo invoked"))]
    ours = [line for line in harness.log if line.startswith(("[", "Tasks", "oom-kill", "Out of memory", "uo invoked"))]
    assert ours == said
    assert harness.counts.kills == 1


def test_levels_and_frames_of_the_report() -> None:
    harness = Harness()
    harness.task(40, 500)
    harness.run_as(40)
    assert harness.killer.out_of_memory(Request())
    levels = {record.text.split(":")[0].split(" ")[0]: record.level for record in harness.printk.since(0)}
    assert (levels["uo"], levels["Tasks"], levels["oom-kill"], levels["Out"]) == (4, 6, 6, 3)
    frames = [line.strip() for line in harness.log if line.startswith(" ") and "TASK" not in line]
    assert frames == [
        *("dump_stack_lvl", "dump_stack", "dump_header", "oom_kill_process", "out_of_memory"),
        *("__alloc_pages_slowpath.constprop.0", "__alloc_pages"),
    ]
    assert harness.shown == [(2, None)]


def test_the_last_of_equals_dies() -> None:
    harness = Harness()
    harness.task(40, 500)
    harness.task(41, 500)
    harness.killer.out_of_memory(Request())
    assert harness.order == [41]


def test_who_asks_is_marked_and_not_ended() -> None:
    harness = Harness()
    task = harness.task(40, 500)
    harness.run_as(40)
    assert harness.killer.out_of_memory(Request())
    assert (task.killed, task.oom_victim, harness.order) == (9, True, [])
    assert harness.killer.is_victim()
    said = len(harness.log)
    assert harness.killer.out_of_memory(Request())
    assert len(harness.log) == said, "a task that is about to end is not reported again"
    assert harness.counts.kills == 1


def test_a_dying_task_gets_at_the_reserves_without_a_kill() -> None:
    harness = Harness()
    task = harness.task(40, 500)
    harness.run_as(40)
    task.killed = 15
    assert harness.killer.out_of_memory(Request())
    assert task.oom_victim
    assert harness.counts.kills == 0


def test_all_that_share_the_memory_die() -> None:
    harness = Harness()
    task, other = harness.task(40, 500), harness.task(41, 1)
    assert task.mm is not None
    other.mm, task.mm.users = task.mm, 2
    harness.task(42, 10)
    harness.killer.out_of_memory(Request())
    assert sorted(harness.order) == [40, 41]
    assert harness.counts.kills == 1


def test_memory_that_init_shares_stays() -> None:
    harness = Harness()
    init, task = harness.task(1, 10, comm="init"), harness.task(40, 500)
    init.mm = task.mm
    harness.killer.out_of_memory(Request())
    assert "oom killer 40 (uo) has mm pinned by 1 (init)" in harness.log
    assert harness.clock.next_timer_ns is None, "the reaper leaves it alone"
    assert not init.killed


def test_nobody_to_kill_is_a_panic_that_the_model_survives() -> None:
    harness = Harness()
    harness.task(1, 100)
    harness.task(40, 500, oom_score_adj=-1000)
    assert not harness.killer.out_of_memory(Request())
    assert "Out of memory and no killable processes..." in harness.log
    assert "Kernel panic - not syncing: System is deadlocked on memory" in harness.log
    assert harness.counts.kills == 0
    assert not any(line.startswith("oom-kill:") for line in harness.log)


@pytest.mark.parametrize(
    ("knob", "nodemask", "panics"),
    [(0, ALL_NODES, ""), (1, ALL_NODES, "system-wide"), (1, 1, ""), (2, ALL_NODES, "compulsory"), (2, 1, "compulsory")],
)
def test_panic_on_oom(knob: int, nodemask: int, panics: str) -> None:
    harness = Harness(nodes=2)
    harness.task(40, 500)
    harness.killer.panic_on_oom = knob
    killed = harness.killer.out_of_memory(Request(nodemask=nodemask))
    assert killed is not bool(panics)
    text = f"Kernel panic - not syncing: Out of memory: {panics} panic_on_oom is enabled"
    assert (text in harness.log) is bool(panics)


def test_the_one_that_asks_may_be_the_one_to_die() -> None:
    harness = Harness()
    small = harness.task(40, 5)
    harness.task(41, 500)
    harness.killer.oom_kill_allocating_task = 1
    harness.run_as(40)
    assert harness.killer.out_of_memory(Request())
    assert small.killed
    assert harness.log[-1].startswith("Out of memory (oom_kill_allocating_task): Killed process 40 (uo)")


@pytest.mark.parametrize("spared", ["kthread", "minimum", "nobody"])
def test_the_one_that_asks_may_be_spared(spared: str) -> None:
    harness = Harness()
    harness.task(40, 5, oom_score_adj=-1000 if spared == "minimum" else 0, is_kthread=spared == "kthread")
    harness.task(41, 500)
    harness.killer.oom_kill_allocating_task = 1
    harness.run_as(0 if spared == "nobody" else 40)
    harness.killer.out_of_memory(Request())
    assert harness.order == [41]


def test_a_policy_bounds_the_choice_and_the_total() -> None:
    harness = Harness(nodes=2)
    far, near = harness.task(40, 900), harness.task(41, 100)
    assert far.mm is not None
    assert near.mm is not None
    far.mm.policy, near.mm.policy = Policy(MPOL_BIND, nodes=1), Policy(MPOL_BIND, nodes=2)
    harness.task(42, 170, oom_score_adj=-10)
    assert harness.killer.out_of_memory(Request(nodemask=2))
    # the adjustment takes off 10 * (6100 // 1000) = 60 pages; of all memory it would be 3730
    assert harness.order == [42]
    line = next(line for line in harness.log if line.startswith("oom-kill:"))
    assert line.startswith("oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=1,global_oom,task_memcg=/,task=uo")
    assert harness.shown == [(2, 2)]
    rows = [line for line in harness.log if line.startswith("[     4")]
    assert [row[6:8] for row in rows] == ["41", "42"]


def test_this_node_alone_is_no_constraint() -> None:
    harness = Harness(nodes=2)
    harness.task(40, 900)
    harness.killer.out_of_memory(Request(gfp=GFP | g.F.THISNODE, nodemask=2))
    assert "constraint=CONSTRAINT_NONE,nodemask=(null)" in harness.log[-2]


def test_without_file_systems_nobody_dies() -> None:
    harness = Harness()
    harness.task(40, 900)
    assert not harness.killer.out_of_memory(Request(gfp=g.GFP_KERNEL & ~g.F.FS))
    assert harness.log == []


def test_a_victim_that_sleeps_is_reaped_after_two_seconds() -> None:
    harness = Harness()
    task = harness.task(40, 900, state="D")
    harness.task(41, 300)
    assert harness.killer.out_of_memory(Request())
    assert task.oom_victim
    harness.clock.advance(2 * NSEC_PER_SEC - 1)
    assert not any(line.startswith("oom_reaper") for line in harness.log)
    harness.clock.advance(1)
    reaped = "oom_reaper: reaped process 40 (uo), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB"
    assert harness.log[-1] == reaped
    harness.killer.out_of_memory(Request())
    assert harness.order == [41], "one that was reaped is no reason to wait"


def test_while_a_victim_is_dying_others_wait_for_the_reaper() -> None:
    harness = Harness()
    harness.task(40, 900, state="D")
    harness.task(41, 300)
    harness.killer.out_of_memory(Request())
    assert harness.killer.out_of_memory(Request())
    assert harness.context.now == 2 * NSEC_PER_SEC
    assert harness.counts.kills == 1
    assert harness.log[-1].startswith("oom_reaper: reaped process 40")
    said = len(harness.log)
    harness.clock.advance(NSEC_PER_SEC)
    assert len(harness.log) == said


def test_a_victim_that_ended_is_not_reaped() -> None:
    harness = Harness()
    harness.task(40, 900)
    harness.killer.out_of_memory(Request())
    harness.clock.advance(3 * NSEC_PER_SEC)
    assert not any(line.startswith("oom_reaper") for line in harness.log)


def test_reports_are_limited_and_kills_are_not() -> None:
    harness = Harness()
    for pid in range(40, 52):
        harness.task(pid, pid)
    for _ in range(12):
        assert harness.killer.out_of_memory(Request())
    assert harness.counts.kills == 12
    assert sum(line.startswith("Out of memory: Killed") for line in harness.log) == 12
    assert sum(line.startswith("oom-kill:") for line in harness.log) == 10


def test_no_table_when_it_is_switched_off() -> None:
    harness = Harness()
    harness.task(40, 900)
    harness.killer.oom_dump_tasks = 0
    harness.killer.out_of_memory(Request())
    assert not any(line.startswith(("Tasks", "[")) for line in harness.log)
    assert any(line.startswith("oom-kill:") for line in harness.log)


def test_slabs_are_listed_when_they_are_most_of_it() -> None:
    harness = Harness()
    harness.task(40, 900)
    harness.counts.slab = 1
    harness.killer.out_of_memory(Request())
    at = harness.log.index("Unreclaimable slab info:")
    assert harness.log[at + 1 : at + 3] == [
        "Name                      Used          Total",
        "kmalloc-4k                40KB         64KB",
    ]
    assert not any(line.startswith("empty") for line in harness.log)
