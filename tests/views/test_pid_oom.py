"""/proc/PID/oom_score_adj and oom_adj as files: who may write what, and what the log says."""

from __future__ import annotations

import errno

import pytest

from kmemd import System
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.signals import Action
from kmemd.steps import finish
from kmemd.views.tree import Caller, Namespace

ROOT, USER = Caller(), Caller(uid=1000)


@pytest.fixture
def tree() -> Namespace:
    return Namespace(Kernel.boot(Machine.load("default")))


def write(tree: Namespace, path: str, data: bytes, caller: Caller = ROOT) -> int:
    return finish(tree.open(tree.lookup(path), caller).write(data))


def read(tree: Namespace, path: str) -> str:
    data = tree.open(tree.lookup(path), USER).read(0, 100)
    assert data is not None
    return data.decode()


def test_a_user_may_not_go_below_what_root_set(tree: Namespace) -> None:
    assert write(tree, "/proc/1/oom_score_adj", b"100\n") == 4
    assert write(tree, "/proc/1/oom_score_adj", b"200\n", USER) == 4
    with pytest.raises(KernelError) as caught:
        write(tree, "/proc/1/oom_score_adj", b"99\n", USER)
    assert caught.value.errno == errno.EACCES
    assert read(tree, "/proc/1/oom_score_adj") == "200\n"
    assert write(tree, "/proc/1/oom_score_adj", b"99\n") == 3


def test_the_old_file_works_and_is_complained_of(tree: Namespace) -> None:
    assert write(tree, "/proc/1/oom_adj", b"-17\n") == 4
    assert read(tree, "/proc/1/oom_score_adj") == "-1000\n"
    assert read(tree, "/proc/1/oom_adj") == "-17\n"
    last = tree.kernel.printk.since(0)[-1]
    assert last.level == 4
    assert last.text.endswith("/proc/1/oom_adj is deprecated, please use /proc/1/oom_score_adj instead.")


def test_the_knobs_of_bad_accesses_are_there(tree: Namespace) -> None:
    assert read(tree, "/proc/sys/debug/exception-trace") == "1\n"
    assert read(tree, "/proc/sys/kernel/print-fatal-signals") == "0\n"
    assert write(tree, "/proc/sys/debug/exception-trace", b"0\n") == 2
    assert tree.kernel.bad_area.exception_trace == 0


def test_status_shows_what_a_task_does_with_signals(tree: Namespace) -> None:
    signals = tree.kernel.tasks.find(1).signals
    before = read_status(tree)
    assert (before["SigIgn"], before["SigCgt"]) == (f"{0:016x}",) * 2
    signals.set(11, Action.CATCH)
    signals.set(13, Action.IGNORE)
    after = read_status(tree)
    assert (after["SigIgn"], after["SigCgt"]) == ("0000000000001000", "0000000000000400")


def read_status(tree: Namespace) -> dict[str, str]:
    data = tree.open(tree.lookup("/proc/1/status"), USER).read(0, 4096)
    assert data is not None
    return dict(line.split(":\t", 1) for line in data.decode().splitlines())


def test_a_thread_has_the_files_of_its_process() -> None:
    system = System.boot("default", seed=1)
    system.command("p = spawn worker")
    pid = system.kernel.handles["p"].pid
    system.write(f"/proc/{pid}/task/{pid}/oom_score_adj", "500")
    assert system.read(f"/proc/{pid}/oom_score_adj") == b"500\n"
    assert system.read(f"/proc/{pid}/task/{pid}/oom_adj") == system.read(f"/proc/{pid}/oom_adj") == b"8\n"
