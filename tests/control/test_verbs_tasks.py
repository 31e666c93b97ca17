"""Processes by commands: users, limits, what children have of their parents, and who may do what."""

from __future__ import annotations

import errno
import re

import pytest

from kmemd import KernelError, System


@pytest.fixture(params=["default", "highmem"])
def system(request: pytest.FixtureRequest) -> System:
    return System.boot(request.param, seed=1)


def refused(system: System, line: str) -> int:
    """The errno of a command."""
    with pytest.raises(KernelError) as caught:
        system.command(line)
    assert caught.value.errno is not None
    return caught.value.errno


def shown(system: System, name: str, pattern: str, file: str = "status") -> str:
    """What a file of a named process says."""
    pid = system.kernel.handles[name].pid
    found = re.search(pattern, system.read(f"/proc/{pid}/{file}").decode())
    assert found is not None
    return found[1]


def test_a_child_has_its_parents_user_and_limits(system: System) -> None:
    system.command("p = spawn p uid=1000")
    system.command("prlimit p RLIMIT_NOFILE 64 64")
    system.write(f"/proc/{system.kernel.handles['p'].pid}/oom_score_adj", "300")
    for line in ("q = spawn q pid=p", "r = fork p"):
        system.command(line)
        name = line[0]
        assert shown(system, name, r"Uid:\t(\d+)") == "1000"
        assert shown(system, name, r"CapEff:\t(\d+)") == "0" * 16
        assert shown(system, name, r"Max open files\s+(\d+)", "limits") == "64"
        assert shown(system, name, r"(\d+)", "oom_score_adj") == "300"
    assert refused(system, "spawn x uid=0 pid=p") == errno.EPERM
    system.check()


def test_flags_say_whether_a_program_runs_at_a_random_address(system: System) -> None:
    system.command("p = spawn p")
    system.command("q = fork p")
    flags = r"\) S (?:-?\d+ ){5}(\d+)"
    assert shown(system, "p", flags, "stat") == str(0x400000)
    assert shown(system, "q", flags, "stat") == str(0x400040)
    system.command("exec q q")
    assert shown(system, "q", flags, "stat") == str(0x400000)
    system.write("/proc/sys/kernel/randomize_va_space", "0")
    system.command("exec q q")
    assert shown(system, "q", flags, "stat") == "0"


def test_the_number_of_processes_is_limited(system: System) -> None:
    system.command("p = spawn p uid=1000")
    system.command("prlimit p RLIMIT_NPROC 2")
    system.command("q = fork p")
    last = int(shown(system, "q", r"Pid:\t(\d+)"))
    assert refused(system, "fork p") == errno.EAGAIN
    system.command("exit q")
    assert f"pid={last + 1} " in system.command("fork p")
    system.command("r = spawn r")
    system.command("prlimit r RLIMIT_NPROC 1 1")
    system.command("fork r")  # root's are not limited
    system.write("/proc/sys/kernel/threads-max", str(len(system.kernel.tasks)))
    assert refused(system, "fork r") == errno.EAGAIN
    system.check()


def test_limits_of_another_users_process_are_roots(system: System) -> None:
    system.command("p = spawn p uid=1000")
    system.command("q = spawn q uid=1001")
    pid = system.kernel.handles["p"].pid
    system.kernel.context.switch(pid, pid, "p", 0)
    assert refused(system, "prlimit q RLIMIT_AS") == errno.EPERM
    assert "soft=unlimited" in system.command("prlimit p RLIMIT_AS")


def test_a_parent_has_the_sums_of_children_that_ended(system: System) -> None:
    system.command("p = spawn p")
    fields = r"\) S (?:-?\d+ ){7}(\d+ \d+ \d+)"  # cminflt majflt cmajflt
    assert shown(system, "p", fields, "stat") == "0 0 0"
    system.command("q = fork p")
    system.command("m = mmap q 64K")
    system.command("access q m 64K w")
    system.command("exit q")
    assert shown(system, "p", fields, "stat") == "16 0 0"


def test_faults_survive_exec(system: System) -> None:
    system.command("p = spawn p")
    minor = r"\) S (?:-?\d+ ){6}(\d+)"
    start = int(shown(system, "p", minor, "stat"))
    system.command("m = mmap p 64K")
    system.command("access p m 64K w")
    system.command("exec p p")
    assert int(shown(system, "p", minor, "stat")) == 2 * start + 16


def test_a_child_lacks_what_is_not_for_children(system: System) -> None:
    system.command("p = spawn p")
    before = shown(system, "p", r"VmData:\s+(\d+)"), shown(system, "p", r"VmSize:\s+(\d+)")
    system.command("m = mmap p 1M")
    system.command("madvise p m 1M MADV_DONTFORK")
    system.command("mlockall p MCL_CURRENT|MCL_FUTURE")
    system.command("q = fork p")
    assert (shown(system, "q", r"VmData:\s+(\d+)"), shown(system, "q", r"VmSize:\s+(\d+)")) == before
    assert shown(system, "q", r"VmLck:\s+(\d+)") == "0"
    system.command("n = mmap q 64K")
    assert shown(system, "q", r"VmRSS:\s+(\d+)") == shown(system, "q", r"VmRSS:\s+(\d+)")
    assert shown(system, "q", r"VmLck:\s+(\d+)") == "0"
    system.check()


def test_a_users_fork_leaves_the_admins_reserve(system: System) -> None:
    """Strict overcommit: the last pages are root's (``cap_vm_enough_memory``)."""
    system.command("p = spawn p uid=1000")
    system.command("m = mmap p 8M")
    system.write("/proc/sys/vm/overcommit_memory", "2")
    system.write("/proc/sys/vm/admin_reserve_kbytes", "4096")
    system.write("/proc/sys/vm/user_reserve_kbytes", "0")
    for line in system.read("/proc/swaps").decode().splitlines()[1:]:
        system.command(f"swapoff {line.split()[0]}")
    found = re.search(r"Committed_AS:\s+(\d+)", system.read("/proc/meminfo").decode())
    assert found is not None
    system.write("/proc/sys/vm/overcommit_kbytes", str(int(found[1]) + (8 + 3) * 1024))
    assert refused(system, "fork p") == errno.ENOMEM
    system.command("r = spawn r")
    system.command("exit r")
    system.write("/proc/sys/vm/admin_reserve_kbytes", "0")
    system.command("q = fork p")
    system.check()
