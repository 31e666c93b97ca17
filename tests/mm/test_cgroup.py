"""The tree of control groups: directories, controllers, tasks, threads."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.cgroup import Cgroup, Cgroups
from kmemd.mm.clock import Clock
from kmemd.mm.psi import Psi
from kmemd.mm.sched import PF_NO_SETAFFINITY, Task, TaskTable


class Memory:
    """A memory controller that remembers who came and went."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def css_alloc(self, cgroup: Cgroup, parent: object) -> str:
        self.log.append(f"+{cgroup.path}")
        return cgroup.path

    def css_offline(self, memcg: str) -> None:
        self.log.append(f"-{memcg}")


class World:
    def __init__(self) -> None:
        context = Context()
        self.tasks = TaskTable(context, 2)
        self.memory = Memory()
        self.killed: list[int] = []
        clock = Clock(context, 0)
        self.groups = Cgroups(self.tasks, self.memory, lambda: Psi(clock), self.kill)
        self.root = self.groups.root
        self.init = self.tasks.spawn("init")

    def kill(self, task: Task) -> None:
        self.killed.append(task.pid)

    def make(self, path: str) -> Cgroup:
        above, _, name = path.rpartition("/")
        return self.groups.mkdir(self.groups.find(above), name)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.groups.check()


@contextmanager
def refuses(number: int) -> Iterator[None]:
    with pytest.raises(KernelError) as caught:
        yield
    assert caught.value.errno == number


def test_directories(world: World) -> None:
    a = world.make("/a")
    b = world.make("/a/b")
    assert (a.path, b.path, world.root.path) == ("/a", "/a/b", "/")
    assert (world.root.nr_descendants, a.nr_descendants) == (2, 1)
    with refuses(errno.EEXIST):
        world.make("/a/b")
    with refuses(errno.EINVAL):
        world.make("/a/x\ny")
    with refuses(errno.EBUSY):
        world.groups.rmdir(a)
    world.groups.rmdir(b)
    world.groups.rmdir(a)
    with refuses(errno.ENODEV):
        world.groups.mkdir(a, "late")
    with refuses(errno.EPERM):
        world.groups.rmdir(world.root)
    assert world.root.nr_descendants == 0


def test_limits_of_depth_and_number(world: World) -> None:
    a = world.make("/a")
    a.max_depth, world.root.max_descendants = 1, 3
    world.make("/a/b")
    with refuses(errno.EAGAIN):
        world.make("/a/b/c")
    world.make("/a/d")
    with refuses(errno.EAGAIN):
        world.make("/e")


def test_controllers_are_handed_down_step_by_step(world: World) -> None:
    a, b = world.make("/a"), world.make("/a/b")
    assert world.groups.controllers(a) == []
    with refuses(errno.ENOENT):
        world.groups.write_subtree_control(a, "+memory")
    for wrong in ("memory", "+cpu", "+memory bogus", "*memory"):
        with refuses(errno.EINVAL):
            world.groups.write_subtree_control(world.root, wrong)
    world.groups.write_subtree_control(world.root, " +memory\n")
    world.groups.write_subtree_control(a, "+memory")
    assert (a.memcg, b.memcg) == ("/a", "/a/b")
    with refuses(errno.EBUSY):
        world.groups.write_subtree_control(world.root, "-memory")
    version = world.groups.version
    world.groups.write_subtree_control(a, "-memory")
    assert (b.memcg, b.own_memcg, world.groups.version) == ("/a", None, version + 1)
    assert world.memory.log == ["+/", "+/a", "+/a/b", "-/a/b"]


def test_a_group_with_controllers_has_no_processes(world: World) -> None:
    world.groups.write_subtree_control(world.root, "+memory")
    a = world.make("/a")
    task = world.tasks.spawn("shell")
    world.groups.write_procs(a, f"{task.pid}\n")
    with refuses(errno.EBUSY):
        world.groups.write_subtree_control(a, "+memory")
    world.groups.write_procs(world.root, str(task.pid))
    world.groups.write_subtree_control(a, "+memory")
    with refuses(errno.EBUSY):
        world.groups.write_procs(a, str(task.pid))
    assert task.cgroup is None


def test_tasks_move_and_end(world: World) -> None:
    a, b = world.make("/a"), world.make("/a/b")
    task = world.tasks.spawn("shell")
    world.groups.write_procs(b, str(task.pid))
    assert (a.populated, b.populated, world.groups.procs(b)) == (1, 1, [task.pid])
    assert world.groups.procs(world.root) == [world.init.pid]
    with refuses(errno.EBUSY):
        world.groups.rmdir(b)
    seen = a.events_version
    world.groups.exit(task)
    assert (a.populated, a.events_version) == (0, seen + 1)
    for text, number in (("x", errno.EINVAL), ("-1", errno.EINVAL), ("777", errno.ESRCH), ("9999999999", errno.EINVAL)):
        with refuses(number):
            world.groups.write_procs(b, text)
    kthread = world.tasks.spawn("kworker/0:0", flags=PF_NO_SETAFFINITY)
    with refuses(errno.EINVAL):
        world.groups.write_procs(b, str(kthread.pid))


def test_kill_takes_all_below(world: World) -> None:
    a, b = world.make("/a"), world.make("/a/b")
    first, second = world.tasks.spawn("one"), world.tasks.spawn("two")
    world.groups.move(first, a)
    world.groups.move(second, b)
    world.groups.kill(a)
    assert world.killed == [first.pid, second.pid]
    assert first.killed == second.killed == 9


def test_freezing_reaches_down(world: World) -> None:
    a, b = world.make("/a"), world.make("/a/b")
    world.groups.set_freeze(a, True)
    assert (b.freeze, b.frozen, b.events_version) == (False, True, 1)
    world.groups.set_freeze(a, False)
    assert not b.frozen


def test_threaded_groups(world: World) -> None:
    a, b, c = world.make("/a"), world.make("/a/b"), world.make("/a/c")
    with refuses(errno.EINVAL):
        world.groups.write_type(b, "domain")
    world.groups.write_type(b, "threaded\n")
    assert (a.kind, b.kind, c.kind) == ("domain threaded", "threaded", "domain invalid")
    assert b.domain is a
    with refuses(errno.EOPNOTSUPP):
        world.groups.procs(b)
    task = world.tasks.spawn("shell")
    with refuses(errno.EOPNOTSUPP):
        world.groups.write_procs(c, str(task.pid))
    world.groups.move(task, b)
    assert world.groups.procs(a) == [task.pid]
    with refuses(errno.EOPNOTSUPP):
        world.groups.kill(b)
    world.groups.exit(task)
