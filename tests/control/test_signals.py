"""Signals by commands: the captured bad accesses, what catches them, who may send."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kmemd import System
from kmemd.mm.signals import Action

ACCESSES = (
    ("read PROT_NONE", "mmap p 64K prot=none", "{} 4096 r", "signal=11 code=2"),
    ("write PROT_READ", "mmap p 64K prot=r", "{} 4096 w", "signal=11 code=2"),
    ("read PROT_READ", "mmap p 64K prot=r", "{} 4096 r", "n=1"),
    ("execute rw-", "mmap p 64K prot=rw", "{} 4096 x", "signal=11 code=2"),
    ("read unmapped", "", "0x10000000 8 r", "signal=11 code=1 addr=0x10000000"),
    ("read null", "", "0 8 r", "signal=11 code=1 addr=0x0"),
    ("read kernel text", "", "0xffffffff81000000 8 r", "signal=11 code=1 addr=0xffffffff81000000"),
    ("write kernel direct map", "", "0xffff888000000000 8 w", "signal=11 code=1 addr=0xffff888000000000"),
    ("read non-canonical", "", "0x8000000000000000 8 r", "signal=11 code=128 addr=0x0"),
    (
        "read past the end of a file",
        "mmap p 16K file=/tmp/f prot=r flags=MAP_PRIVATE",
        "{}+8192 8 r",
        "signal=7 code=2",
    ),
)
"""Name in the capture ``uo_segv``, what is mapped, the access, what is answered."""


@pytest.fixture
def system() -> Iterator[System]:
    booted = System.boot(clock="manual")
    booted.command("p = spawn uo")
    yield booted
    booted.check()


def log(system: System) -> list[str]:
    return [record.text for record in system.kernel.printk.since(0)]


def pid_of(system: System) -> int:
    handle = dict(system.kernel.handles.items())["p"]
    return handle.pid


def status(system: System, name: str) -> int:
    lines = system.read(f"/proc/{pid_of(system)}/status").decode().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1], 16)


@pytest.mark.parametrize(
    ("mapped", "access", "answer"), [row[1:] for row in ACCESSES], ids=[row[0] for row in ACCESSES]
)
def test_the_captured_accesses(system: System, mapped: str, access: str, answer: str) -> None:
    system.command("sigaction p SEGV catch")
    system.command("sigaction p BUS catch")
    system.command("create /tmp/f 5000")
    if mapped:
        system.command(f"m = {mapped}")
    before = len(log(system))
    assert f" {answer} " in system.command(f"access p {access.format('m')}")
    assert len(log(system)) == before, "what is caught is not logged"


def test_nobody_catches_it(system: System) -> None:
    system.command("m = mmap p 64K prot=r")
    pid = pid_of(system)
    with pytest.raises(OSError, match=r"died: SIGSEGV at 0x[0-9a-f]+ \(si_code 2\)") as caught:
        system.command("access p m+100 4 w")
    assert caught.value.errno == errno.EFAULT
    line = next(line for line in log(system) if "segfault" in line)
    address = int(line.split()[3], 16)
    assert address & 0xFFF == 100
    assert line.startswith(f"uo[{pid}]: segfault at ")
    assert " error 6 in tiny[401000+" in line
    assert pid not in system.kernel.tasks
    assert "p" not in dict(system.kernel.handles.items())
    assert "m" not in dict(system.kernel.handles.items())


def test_a_page_that_is_there_shows_in_the_error_code(system: System) -> None:
    system.command("m = mmap p 64K")
    system.command("access p m 4096 w")
    system.command("mprotect p m 4096 r")
    with pytest.raises(OSError, match="died"):
        system.command("access p m 4096 w")
    assert any(" error 7 in " in line for line in log(system))


def test_masks_in_status_and_inheritance(system: System) -> None:
    system.command("sigaction p SEGV catch")
    system.command("sigaction p HUP ignore")
    assert (status(system, "SigCgt"), status(system, "SigIgn")) == (1 << 10, 1)
    child = int(system.command("c = fork p").split()[0].removeprefix("pid="))
    system.command("exec p other")
    assert (status(system, "SigCgt"), status(system, "SigIgn")) == (0, 1)
    assert system.kernel.tasks.find(child).signals.actions == {1: Action.IGNORE, 11: Action.CATCH}


@pytest.mark.parametrize(
    ("action", "signal", "ends"),
    [("default", "TERM", True), ("catch", "TERM", False), ("ignore", "TERM", False), ("default", "CHLD", False)],
)
def test_kill_asks_for_the_action(system: System, action: str, signal: str, ends: bool) -> None:
    pid = pid_of(system)
    system.command(f"sigaction p {signal} {action}")
    system.command(f"kill p {signal}")
    assert (pid not in system.kernel.tasks) is ends


def test_kill_cannot_be_caught(system: System) -> None:
    for signal in ("KILL", "STOP", "9", "19"):
        with pytest.raises(OSError, match="neither caught nor ignored") as caught:
            system.command(f"sigaction p {signal} catch")
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="did you mean catch"):
        system.command("sigaction p SEGV catsh")


def test_another_users_process_is_not_yours(system: System) -> None:
    sender = int(system.command("q = spawn other").split()[0].removeprefix("pid="))
    system.kernel.tasks.find(sender).uid = 1000
    with pytest.raises(OSError, match="user 1000 may not") as caught:
        system.command(f"kill p TERM sender={sender}")
    assert caught.value.errno == errno.EPERM
    system.kernel.tasks.find(pid_of(system)).uid = 1000
    system.command(f"kill p 0 sender={sender}")
