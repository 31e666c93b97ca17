"""What fork and exit take from the allocators and give back."""

from __future__ import annotations

import errno

import pytest

from kmemd import KernelError, System
from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.mm.fork import DESCRIPTORS, INIT_PID


@pytest.fixture(params=["default", "highmem"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return System.boot(request.param, seed=1).kernel


def active_objects(kernel: Kernel) -> dict[str, int]:
    """Objects in use in the caches that describe a process, CPU slabs flushed."""
    counts = {}
    for name in DESCRIPTORS:
        cache = kernel.slub.cache(name)
        kernel.slub.flush_all(cache)
        counts[name] = kernel.slub.slab_counts(cache)[0]
    return counts


def stack_kib(kernel: Kernel) -> int:
    return sum(node.stat(stats.NR_KERNEL_STACK_KB) for node in kernel.nodes)


def test_a_process_has_a_stack_and_an_object_of_each_kind(kernel: Kernel) -> None:
    objects, stacks = active_objects(kernel), stack_kib(kernel)
    task = kernel.fork.spawn("worker")
    assert task.ppid == kernel.context.pid
    assert stack_kib(kernel) - stacks == (16 if kernel.machine.arch == "x86_64" else 8)
    assert {name: count - objects[name] for name, count in active_objects(kernel).items()} == dict.fromkeys(
        DESCRIPTORS, 1
    )
    kernel.check()
    assert kernel.fork.exit(task.pid) is task
    assert (active_objects(kernel), stack_kib(kernel)) == (objects, stacks)
    assert task.pid not in kernel.tasks
    kernel.check()


def test_a_process_is_no_leak(kernel: Kernel) -> None:
    kernel.fork.spawn("worker")
    kernel.advance(10**10)
    kernel.kmemleak.scan()
    assert kernel.kmemleak.scan() == 0


def test_no_memory_for_a_stack_leaves_nothing_behind(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nid: int, site: int) -> int:
        raise KernelError(errno.ENOMEM, "no stack")

    objects, tasks = active_objects(kernel), len(kernel.tasks)
    monkeypatch.setattr(kernel.stacks, "alloc", refuse)
    with pytest.raises(KernelError, match="no stack"):
        kernel.fork.spawn("worker")
    assert (active_objects(kernel), len(kernel.tasks)) == (objects, tasks)
    kernel.check()


def test_who_does_not_end(kernel: Kernel) -> None:
    kthread = next(task for task in kernel.tasks if task.is_kthread)
    for pid, number in (
        (INIT_PID, errno.EPERM),
        (kthread.pid, errno.EPERM),
        (3999, errno.ESRCH),
    ):
        with pytest.raises(KernelError) as caught:
            kernel.fork.exit(pid)
        assert caught.value.errno == number


def test_an_object_that_somebody_freed_is_a_report_and_no_crash(kernel: Kernel) -> None:
    task = kernel.fork.spawn("worker")
    kernel.slub.kfree(kernel.fork._objects[task.pid][0])
    kernel.fork.exit(task.pid)
    kernel.check()


def test_a_process_of_boot_ends_with_its_memory(kernel: Kernel) -> None:
    getty = next(task for task in kernel.tasks if task.comm == "getty")
    anon = kernel.vmstat.node_total(stats.NR_ANON_MAPPED)
    kernel.fork.exit(getty.pid)
    assert kernel.vmstat.node_total(stats.NR_ANON_MAPPED) < anon
    kernel.check()


def test_a_child_has_what_its_parent_has_and_goes_alone(kernel: Kernel) -> None:
    program = kernel.user.exec.image("tiny")
    parent = kernel.fork.spawn("worker", program)
    parent.oom_score_adj = 7
    child = kernel.fork.fork(parent.pid)
    assert (child.ppid, child.comm, child.oom_score_adj) == (parent.pid, "worker", 7)
    assert parent.mm is not None
    assert child.mm is not None
    assert [(vma.start, vma.end) for vma in child.mm.vmas] == [(vma.start, vma.end) for vma in parent.mm.vmas]
    kernel.check()
    kernel.fork.exit(parent.pid)
    kernel.check()
    assert child.pid in kernel.tasks
    kernel.fork.exit(child.pid)
    kernel.check()


def test_without_memory_for_its_page_tables_there_is_no_child(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(mm: int, vpn: int, level: int = 0) -> int:
        raise KernelError(errno.ENOMEM, "no table")

    parent = kernel.fork.spawn("worker", kernel.user.exec.image("tiny"))
    objects, tasks, promised = active_objects(kernel), len(kernel.tasks), kernel.mmap.committed
    monkeypatch.setattr(kernel.memory.tables, "ensure", refuse)
    with pytest.raises(KernelError, match="no table"):
        kernel.fork.fork(parent.pid)
    monkeypatch.undo()
    assert (active_objects(kernel), len(kernel.tasks), kernel.mmap.committed) == (objects, tasks, promised)
    kernel.check()


def test_exec_replaces_the_memory_and_keeps_the_pid(kernel: Kernel) -> None:
    task = kernel.fork.spawn("worker", kernel.user.exec.image("busybox"))
    assert task.mm is not None
    mappings = len(task.mm.vmas)
    assert kernel.fork.exec(task.pid, "other", kernel.user.exec.image("tiny")) is task
    assert task.comm == "other"
    assert task.mm is not None
    assert len(task.mm.vmas) < mappings
    kernel.check()
