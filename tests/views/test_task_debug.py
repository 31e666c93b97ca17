"""Files about a task's sleep and scheduling."""

from __future__ import annotations

import errno
import re

import pytest

from kmemd import KernelError, System
from kmemd.views.tree import Caller


@pytest.fixture(params=["two-node", "highmem"])
def system(request: pytest.FixtureRequest) -> System:
    system = System.boot(request.param, seed=1)
    system.command("p = spawn worker uid=1000")
    return system


def pid_of(system: System) -> int:
    return system.kernel.handles["p"].pid


def opened(system: System, name: str, caller: Caller) -> bytes:
    """A file as somebody reads it."""
    file = system.tree.open(system.tree.lookup(f"/proc/{pid_of(system)}/{name}", caller), caller)
    return file.read(0, 4096) or b""


def test_a_process_sleeps_in_pause(system: System) -> None:
    arch, pid = system.kernel.machine.arch, pid_of(system)
    function = "__x64_sys_pause" if arch == "x86_64" else "__ia32_sys_pause"
    assert system.read(f"/proc/{pid}/wchan").decode() == function
    assert re.match(rf"\[<0>\] {function}\+0x[0-9a-f]+/0x[0-9a-f]+\n", system.read(f"/proc/{pid}/stack").decode())
    number, *arguments, sp, _ = system.read(f"/proc/{pid}/syscall").decode().split()
    assert (number, set(arguments)) == ("34" if arch == "x86_64" else "29", {"0x0"})
    assert int(sp, 16) == int(system.read(f"/proc/{pid}/stat").split()[27])


def test_kernel_threads_sleep_in_their_loops(system: System) -> None:
    assert system.read("/proc/2/wchan") == b"kthreadd"
    assert len(system.read("/proc/2/stack").splitlines()) == 2
    assert system.read("/proc/2/syscall") == b"0" + b" 0x0" * 8 + b"\n"


def test_who_may_look(system: System) -> None:
    own, other = Caller(99, 1000), Caller(98, 1001)
    assert opened(system, "wchan", other) == b"0"
    assert opened(system, "wchan", own).startswith(b"__")
    for name, caller, number in (
        ("stack", own, errno.EACCES),
        ("syscall", other, errno.EPERM),
        ("timerslack_ns", own, errno.EPERM),
    ):
        with pytest.raises(KernelError) as caught:
            opened(system, name, caller)
        assert caught.value.errno == number, name


@pytest.mark.parametrize(
    ("name", "text", "result"),
    [
        ("timerslack_ns", "70000", b"70000\n"),
        ("timerslack_ns", "0", b"50000\n"),
        ("timerslack_ns", "-1", errno.EINVAL),
        ("make-it-fail", "1", b"1\n"),
        ("make-it-fail", "2", errno.EINVAL),
        ("fail-nth", "0x10", b"16\n"),
        ("fail-nth", "x", errno.EINVAL),
        ("sched", "0", None),
    ],
)
def test_what_may_be_written(system: System, name: str, text: str, result: bytes | int | None) -> None:
    path = f"/proc/{pid_of(system)}/{name}"
    if isinstance(result, int):
        with pytest.raises(KernelError) as caught:
            system.write(path, text)
        assert caught.value.errno == result
        return
    assert system.write(path, text) == len(text)
    if result is not None:
        assert system.read(path) == result


def test_sched_has_the_weight_of_the_niceness(system: System) -> None:
    scale = 1024 if system.kernel.machine.arch == "x86_64" else 1
    lines = dict(line.split(":") for line in system.read(f"/proc/{pid_of(system)}/sched").decode().splitlines()[2:])
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert (found["se.load.weight"], found["prio"]) == (str(1024 * scale), "120")


def test_files_belong_to_the_user_of_the_process(system: System) -> None:
    for name, uid in ((f"{pid_of(system)}", 1000), (f"{pid_of(system)}/task", 1000), ("1", 0), ("meminfo", 0)):
        assert system.tree.owner(system.tree.lookup(f"/proc/{name}")) == uid
