"""Long work on address spaces is done in slices, and all books agree between any two of them."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator

import pytest

from kmemd import System
from kmemd.errors import KernelError
from kmemd.mm.patience import PATIENCE
from kmemd.mm.vmscan_balance import ScanControl
from kmemd.mm.vmscan_reclaim import Pauses
from kmemd.system import SystemCallError
from kmemd.views.tree import Caller

SIZE = "96M"
PAGES = 96 << 8


@pytest.fixture
def system() -> System:
    """``p`` has ``m``, 96 MiB of small pages that were written."""
    system = System.boot("two-node", seed=1)
    system.command("p = spawn worker")
    system.command(f"m = mmap p {SIZE}")
    system.command(f"madvise p m {SIZE} MADV_NOHUGEPAGE")
    system.command(f"access p m {SIZE} w")
    return system


def steps(system: System, line: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command, with a stop at every place where others may get in; what is running does not count."""
    monkeypatch.setattr("kmemd.control.interpreter.SLICE_S", 0.0)
    tree = system.tree
    file = tree.open(tree.lookup("/kmemd/ctl"), Caller())
    try:
        yield from file.write(f"{line}\n".encode())
    finally:
        file.close()


def resident(system: System, pid: int) -> int:
    text = system.read(f"/proc/{pid}/smaps_rollup").decode()
    found = re.search(r"^Anonymous: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) // 4 if found else 0


def pid_of(system: System, name: str = "p") -> int:
    return int(system.kernel.handles.get(name).pid)


@pytest.mark.parametrize("line", ["exit p", "kill p", "exec p other"])
def test_the_memory_of_a_process_that_ends_goes_part_by_part(
    system: System, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = pid_of(system)
    left = [resident(system, pid)]
    for _ in steps(system, line, monkeypatch):
        system.check()
        left.append(resident(system, pid))
    assert len(left) > 6
    assert left == sorted(left, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(left)) <= 4096 + 64
    assert (pid in system.kernel.tasks) == line.startswith("exec")
    system.check()


def test_a_signal_ends_a_large_process_in_slices(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    work, stops = steps(system, "access p 0x10 1 r", monkeypatch), 0
    for _ in range(6):
        next(work)
        system.check()
        stops += 1
    with pytest.raises(KernelError, match="died"):
        list(work)
    assert stops == 6
    system.check()


def test_fork_copies_in_slices_and_nobody_may_write_meanwhile(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemd.mm.copy_range.ZAP_ROWS", 8)
    system.command("access p m 4K w")  # the TLB knows it as writable
    stops = 0
    for _ in steps(system, "q = fork p", monkeypatch):
        system.check()
        stops += 1
    assert stops >= 6
    assert resident(system, pid_of(system, "q")) == resident(system, pid_of(system))
    for name in ("VmSize", "VmData", "VmStk", "VmExe"):
        values = {
            re.search(rf"{name}:\s+(\d+)", system.read(f"/proc/{pid_of(system, who)}/status").decode())[1]
            for who in ("p", "q")
        }
        assert len(values) == 1, name
    system.command(f"access q m {SIZE} w")
    system.check()
    system.command("exit q")
    system.check()


def test_pages_that_mbind_moves_are_collected_in_slices(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = 0
    for _ in steps(system, f"mbind p m {SIZE} MPOL_BIND 1 flags=MPOL_MF_MOVE", monkeypatch):
        stops += 1
    assert stops >= PAGES // 512
    system.check()
    line = next(
        line for line in system.read(f"/proc/{pid_of(system)}/numa_maps").decode().splitlines() if "bind" in line
    )
    assert f" N1={PAGES} " in line
    assert " N0=" not in line


def test_slow_faults_come_in_small_parts(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.command("s = mmap p 16M flags=MAP_SHARED|MAP_ANONYMOUS")
    stats = system.kernel.mmu.stats
    before, most = int(stats[5]), 0
    for _ in steps(system, "access p s 16M w", monkeypatch):
        most, before = max(most, int(stats[5]) - before), int(stats[5])
    assert 0 < most <= 64
    system.check()


def test_a_process_that_may_not_end_keeps_its_memory(system: System) -> None:
    with pytest.raises(SystemCallError, match="EPERM"):
        system.command("exit 1")
    with pytest.raises(SystemCallError, match="EPERM"):
        system.command("exit 2")
    system.check()


def test_init_can_run_another_program(system: System) -> None:
    system.command("exec 1 init")
    system.check()


PRESSURE = (
    "access p m 96M r",
    "a = alloc_pages n=2000000",
    "v = vmalloc 3G",
    "free_pages a",
    "create /mnt/f 64M",
    "read_file /mnt/f",
    "create /tmp/t",
    "write_file /tmp/t n=32M",
    "fallocate /tmp/t 32M 32M",
    "fallocate /tmp/t 0 16M mode=punch_hole",
    "truncate /tmp/t 1M",
    "lookup /mnt/d n=3000",
    "sync",
    "fincore /mnt/f",
    "truncate /mnt/f 1M",
    "unlink /mnt/f",
    "sleep 3",
)
SHOWN = ("/proc/vmstat", "/proc/meminfo", "/proc/buddyinfo", "/proc/zoneinfo", "/proc/slabinfo", "/dev/kmsg")


def life(monkeypatch: pytest.MonkeyPatch, slice_s: float, mode: int, checked: int = 0) -> tuple[list[bytes], int]:
    """What files show after a machine was filled, and how many slices that took; at some of them all is checked."""
    monkeypatch.setattr("kmemd.control.interpreter.SLICE_S", slice_s)
    system = System.boot("two-node", seed=1)
    slices = 0
    system.write("/proc/sys/vm/zone_reclaim_mode", str(mode))
    for line in ("p = spawn worker", f"m = mmap p {SIZE}", f"madvise p m {SIZE} MADV_NOHUGEPAGE", *PRESSURE):
        file = system.tree.open(system.tree.lookup("/kmemd/ctl"), Caller())
        with contextlib.suppress(KernelError):
            for _ in file.write(f"{line}\n".encode()):
                slices += 1
                if checked and slices % checked == 0:
                    system.check()
        file.close()
    for _ in system.tree.open(system.tree.lookup("/proc/sys/vm/drop_caches"), Caller()).write(b"3\n"):
        slices += 1
    system.check()
    return [system.read(path) for path in SHOWN], slices


@pytest.mark.parametrize("mode", [0, 7])
def test_where_others_get_in_changes_nothing(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    rarely, few = life(monkeypatch, 1e9, mode)
    always, many = life(monkeypatch, 0.0, mode, checked=2500)
    assert many > 20 * few
    for path, one, other in zip(SHOWN, rarely, always, strict=True):
        assert one == other, path


def test_reclaim_for_one_request_ends_with_the_slice(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filling the machine by one command is never more than a few steps of reclaim between two places for others."""
    kernel, seen = system.kernel, 0
    taken: list[int] = []
    reclaim = kernel.vmscan.reclaim
    shrink = reclaim.shrink_lruvec

    def counted(memcg: int, nid: int, sc: ScanControl) -> Pauses[None]:
        for pause in shrink(memcg, nid, sc):
            taken.append(kernel.context.now)
            yield pause
        taken.append(kernel.context.now)

    monkeypatch.setattr(reclaim, "shrink_lruvec", counted)
    most = 0
    with contextlib.suppress(KernelError):
        for _ in steps(system, "a = alloc_pages n=2000000", monkeypatch):
            most, seen = max(most, len(taken) - seen), len(taken)
    assert len(taken) > 20 * PATIENCE
    assert most <= 3 * PATIENCE
