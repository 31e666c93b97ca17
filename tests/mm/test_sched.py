"""The task table."""

import errno
import re

import pytest

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.sched import MAX_VISITORS, PF_KTHREAD, TaskTable
from tests.mm.files_fixture import Box


@pytest.fixture
def tasks():
    table = TaskTable(Context(), 2)
    table.spawn("init")
    table.spawn("kthreadd", flags=PF_KTHREAD)
    return table


def test_pids_go_up_and_names_are_cut(tasks):
    task = tasks.spawn("a-very-long-command", 1)
    assert (task.pid, task.ppid, task.comm, task.argv) == (3, 1, "a-very-long-com", ("a-very-long-command",))
    assert tasks.find(3) is task
    assert tasks.last_pid == 3
    assert tasks.forks == 3


def test_children_of_the_dead_become_inits(tasks):
    parent = tasks.spawn("sh", 1)
    child = tasks.spawn("sleep", parent.pid)
    tasks.exit(parent.pid)
    assert child.ppid == 1
    tasks.check()
    with pytest.raises(KernelError) as error:
        tasks.find(parent.pid)
    assert error.value.errno == errno.ESRCH


def test_pids_wrap_to_300_and_run_out(tasks):
    tasks.pid_max = 303
    tasks.last_pid = 301
    assert [tasks.spawn("x", 1).pid for _ in range(3)] == [302, 300, 301]
    tasks.pid_max = 4
    tasks.last_pid = 2
    tasks.spawn("x", 1)
    tasks.pid_max = 3
    with pytest.raises(KernelError) as error:
        tasks.spawn("x", 1)
    assert error.value.errno == errno.EAGAIN


def test_init_stays(tasks):
    with pytest.raises(KernelError) as error:
        tasks.exit(1)
    assert error.value.errno == errno.EPERM


def test_visitors_have_their_own_pid_and_are_in_no_listing(tasks):
    assert tasks.visit(4711, 1000) == 4711
    assert tasks.visitor(4711).uid == 1000
    assert 4711 not in tasks
    assert tasks.pids() == [1, 2]
    assert tasks.visit(0, 0) == 1
    assert tasks.visit(2, 0) == 2
    for pid in range(5000, 5000 + MAX_VISITORS):
        tasks.visit(pid, 0)
    assert tasks.visitor(4711) is None


def switches(box: Box) -> int:
    return int(box.system.read("/proc/stat").decode().partition("ctxt ")[2].split()[0])


def test_sleeps_are_switches() -> None:
    box = Box()
    pid = box.run("p = spawn t")["pid"]
    status = f"/proc/{pid}/status"
    assert "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n" in box.system.read(status).decode()
    box.run("m = mmap p 8M prot=rw", "madvise p m 8M MADV_NOHUGEPAGE", "access p m 8M w", "madvise p m 8M MADV_PAGEOUT")
    box.run("sleep 1", "access p m 8M r", "madvise p m 8M MADV_PAGEOUT")
    before = switches(box)
    major = int(box.run("access p m 8M r")["major"])
    slept = box.kernel.tasks.find(int(pid)).nvcsw
    assert slept >= major > 0
    shown = dict(re.findall(r"(\w+) +: +(\d+)\n", box.system.read(f"/proc/{pid}/sched").decode()))
    assert (shown["nr_switches"], shown["nr_voluntary_switches"]) == (str(slept), str(slept))
    assert switches(box) - before >= 2 * major
