"""Memory runs out: the captured scenario on a machine of that size, victim by victim and line by line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd import System
from kmemd.machine import Machine

MIB = 1 << 20
CAPTURE = Path(__file__).parent / "captures/linux-6.1/oom/x86_64-1500M/oom.dmesg"
PROCESSES = ((100, 0), (200, 0), (150, 500), (300, -500), (50, 1000), (250, -1000))
"""MiB and oom_score_adj of the six that were there before the hogs."""
VICTIMS = (50, 150, 400, 400, 400, 400)
"""MiB of those that died, in order: two of the six, then the hogs before the last."""


def small_machine() -> Machine:
    return Machine.of_memory("small", "x86_64", 2, (1500 * MIB,), ((0, 1),), ((10,),))


def words(reply: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in reply.split())


def hog(system: System, mib: int, adj: int = 0) -> int:
    """A process that maps and touches so much; its pid, whether it lives or not."""
    pid = words(system.command("spawn uo"))["pid"]
    system.write(f"/proc/{pid}/oom_score_adj", str(adj))
    address = words(system.command(f"mmap {pid} {mib}M"))["addr"]
    system.command(f"access {pid} {address} {mib}M w")
    return int(pid)


def log(system: System) -> list[str]:
    printk = system.kernel.printk
    return [record.text for record in printk.since(0)]


@pytest.fixture(scope="module")
def exhausted() -> tuple[System, list[str]]:
    """The machine after five hogs of 400 MiB, and what the log said since the first."""
    system = System.boot(small_machine(), clock="manual", cmdline="transparent_hugepage=never")
    for mib, adj in PROCESSES:
        hog(system, mib, adj)
    before = len(log(system))
    for _ in range(5):
        hog(system, 400)
    system.check()
    return system, log(system)[before:]


def shape(line: str) -> str:
    """A line without its numbers, names of functions and lists of free blocks."""
    if re.match(r" [a-z_].*\+0x", line):
        return "frame"
    line = re.sub(r"\([UMEHCI]+\) ", "", line)
    line = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|\b[0-9a-f]{2}\b|-?\d+", "#", line)
    return re.sub(r" +", " ", line).replace("? yes", "? no")


def parts(lines: list[str]) -> list[list[str]]:
    """The reports: from one ``invoked oom-killer`` to the next."""
    starts = [at for at, line in enumerate(lines) if "invoked oom-killer" in line]
    return [lines[low:high] for low, high in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_victims_die_in_the_captured_order(exhausted: tuple[System, list[str]]) -> None:
    system, lines = exhausted
    killed = [line for line in lines if line.startswith("Out of memory: Killed process")]
    sizes = [int(re.search(r"anon-rss:(\d+)kB", line)[1]) // 1024 for line in killed]  # type: ignore[index]
    assert [min(VICTIMS, key=lambda mib: abs(mib - size)) for size in sizes] == list(VICTIMS)
    assert all(abs(size - mib) <= 1 for size, mib in zip(sizes, VICTIMS, strict=True))
    assert b"oom_kill 6\n" in system.read("/proc/vmstat")


def test_every_line_has_the_captured_shape(exhausted: tuple[System, list[str]]) -> None:
    captured, ours = parts(CAPTURE.read_text().splitlines()), parts(exhausted[1])
    assert len(ours) == len(captured) == 6
    for expected, lines in zip(captured, ours, strict=True):
        rows = [line for line in lines if re.match(r"\[ *\d+\]", line)]
        wanted = [shape(line) for line in expected if not re.match(r"\[ *\d+\]", line)]
        assert [shape(line) for line in lines if line not in rows] == wanted
        assert all(
            re.fullmatch(
                r"\[[ \d]{7}\] [ \d]{5} [ \d]{5} [ \d]{8} [ \d]{8} [ \d]{8} [ \d]{8}         [- \d]{5} \S+", row
            )
            for row in rows
        )


# -- other machines and settings ---------------------------------------------------------------------------


@pytest.fixture
def system() -> Iterator[System]:
    """A small machine that has all its counts right in the end."""
    booted = System.boot(small_machine(), clock="manual", cmdline="transparent_hugepage=never")
    yield booted
    booted.check()


def free_kb(system: System) -> int:
    match = re.search(rb"MemFree: +(\d+)", system.read("/proc/meminfo"))
    assert match is not None
    return int(match[1])


def fails(system: System, command: str) -> int | None:
    with pytest.raises(OSError, match=r".") as caught:
        system.command(command)
    return caught.value.errno


def start(system: System, name: str, mib: int) -> str:
    """A process that has mapped so much; the command that touches it."""
    system.command(f"{name} = spawn {name}")
    system.command(f"m_{name} = mmap {name} {mib}M")
    return f"access {name} m_{name} {mib}M w"


def test_a_process_that_eats_all_is_its_own_victim(system: System) -> None:
    system.write("/proc/sys/vm/overcommit_memory", "1")
    before = free_kb(system)
    assert fails(system, start(system, "hog", 2000)) == errno.EFAULT
    assert log(system)[-2].startswith("Out of memory: Killed process")
    assert [task.comm for task in system.kernel.tasks.processes] == ["init", "getty", "sh"]
    assert abs(free_kb(system) - before) < 2048
    assert fails(system, "kill hog 0") == errno.ENOENT


def test_the_reserves_are_for_the_victim_alone(system: System) -> None:
    """Below the low watermark only the victim is served, and it leaves half of the lowest watermark."""
    system.write("/proc/sys/vm/overcommit_memory", "1")
    zone = system.kernel.zones[1]
    lowest: list[int] = []
    report = system.kernel.oom_kill._report
    killed = report.killed
    report.killed = lambda *args: (lowest.append(zone.free_pages), killed(*args))  # type: ignore[method-assign, assignment, func-returns-value]
    assert fails(system, start(system, "hog", 2000)) == errno.EFAULT
    assert zone.watermark_min // 2 < lowest[0] <= zone.watermark_low


def test_the_one_that_asks(system: System) -> None:
    system.write("/proc/sys/vm/oom_kill_allocating_task", "1")
    system.command(start(system, "big", 1100))
    assert fails(system, start(system, "small", 500)) == errno.EFAULT
    assert "Out of memory (oom_kill_allocating_task): Killed process" in log(system)[-2]
    assert [task.comm for task in system.kernel.tasks.processes][-1] == "big"


def test_a_panic_fails_the_fault_and_nothing_more(system: System) -> None:
    system.write("/proc/sys/vm/panic_on_oom", "1")
    system.command(start(system, "big", 1100))
    assert fails(system, start(system, "small", 500)) == errno.ENOMEM
    assert "Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled" in log(system)
    assert b"oom_kill 0\n" in system.read("/proc/vmstat")
    assert system.kernel.tasks.processes[-1].comm == "small"


def test_a_plain_flood_of_the_kernel_kills_all_and_panics(system: System) -> None:
    system.command(start(system, "one", 100))
    assert fails(system, "p = alloc_pages n=1000000") == errno.EAGAIN
    killed = [line for line in log(system) if line.startswith("Out of memory: Killed process")]
    assert next(re.search(r"\((\w+)\)", line)[1] for line in killed) == "one"  # type: ignore[index]
    system.command("free_pages p")
    assert system.command(start(system, "two", 100)).startswith("pid=")


def test_without_retries_nobody_dies(system: System) -> None:
    system.command(start(system, "one", 100))
    assert fails(system, "p = alloc_pages n=1000000 gfp=GFP_KERNEL|__GFP_NORETRY") == errno.EAGAIN
    assert b"oom_kill 0\n" in system.read("/proc/vmstat")


def test_a_child_in_the_making_may_be_lost_and_nothing_with_it(system: System) -> None:
    system.write("/proc/sys/vm/overcommit_memory", "1")
    system.command(start(system, "parent", 1300))
    system.command("child = fork parent")
    assert fails(system, "access child m_parent 1300M w") in (errno.EFAULT, None)
    assert b"oom_kill 1\n" in system.read("/proc/vmstat")


def test_memory_bound_to_a_node_that_is_full() -> None:
    machine = Machine.of_memory("two", "x86_64", 2, (512 * MIB,) * 2, ((0,), (1,)), ((10, 20), (20, 10)))
    system = System.boot(machine, clock="manual", cmdline="transparent_hugepage=never")
    far, near = start(system, "far", 450), start(system, "near", 600)
    system.command("set_mempolicy far MPOL_BIND 0")
    system.command("set_mempolicy near MPOL_BIND 1")
    system.command(start(system, "free", 10))
    before = len(log(system))
    system.command(far)
    assert fails(system, near) == errno.EFAULT
    said = log(system)[before:]
    summary = next(line for line in said if line.startswith("oom-kill:"))
    assert summary.startswith(
        "oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=1,global_oom,task_memcg=/,task=near"
    )
    assert not any(line.startswith("Node 0 ") for line in said)
    names = [line.split()[-1] for line in said if re.match(r"\[ *\d+\]", line)]
    assert names == ["getty", "sh", "near", "free"]
    system.check()


def test_the_same_again_gives_the_same_bytes() -> None:
    def run() -> list[str]:
        system = System.boot(small_machine(), seed=3, clock="manual", cmdline="transparent_hugepage=never")
        hog(system, 900)
        hog(system, 900)
        return log(system)

    assert run() == run()
