"""The multi-generational LRU of a whole machine: generations in debugfs, aging, eviction, protection, min_ttl."""

from __future__ import annotations

import errno
import re
from dataclasses import replace

import pytest

from kmemd.conformance.uo import machine_of
from kmemd.core import stats
from kmemd.machine import SwapDevice
from kmemd.mm.lru_gen import CtrlPos, positive_ctrl_err
from kmemd.mm.units import MIB
from kmemd.system import System, SystemCallError

SWAP, CMDLINE = (SwapDevice("/dev/vdb", 256 * MIB),), "transparent_hugepage=never"
FILE, DEBUG = "/mnt/data", "/sys/kernel/debug/lru_gen"


@pytest.fixture
def system() -> System:
    found = System.boot(machine=replace(machine_of("x86_64-128M-2cpu"), swap=SWAP), cmdline=CMDLINE)
    found.write("/sys/kernel/mm/lru_gen/enabled", "y")
    found.command(f"create {FILE} {256 * MIB}")
    return found


def generations(system: System) -> dict[int, tuple[int, int]]:
    """Anonymous and file pages of each generation of the root on node 0."""
    rows = re.findall(r"^ +(\d+) +\d+ +(\d+) +(\d+) $", system.read(DEBUG).decode(), re.MULTILINE)
    return {int(seq): (int(anon), int(file)) for seq, anon, file in rows}


def writer(system: System, size: int) -> tuple[str, str]:
    pid = system.command("spawn hog").split()[0].split("=")[1]
    start = system.command(f"mmap {pid} {size}").split("addr=")[1].split()[0]
    system.command(f"access {pid} {start} {size} w")
    return pid, start


def event(system: System, number: int) -> int:
    return int(system.kernel.vmstat.events[number])


def test_what_debugfs_shows(system: System) -> None:
    writer(system, 8 * MIB)
    text = system.read(DEBUG).decode()
    assert text.startswith("memcg     1 /\n node     0\n          0 ")
    assert list(generations(system)) == [0, 1, 2, 3]
    assert generations(system)[3][0] > (8 * MIB >> 12) - 100, "what was faulted in is the youngest"
    full = system.read(DEBUG + "_full").decode().splitlines()
    assert len(full) == 2 + 4 * 6
    assert re.fullmatch(r" {12} {9}0( +\d+r +\d+e +\d+p){2}", full[3])
    assert re.fullmatch(r" {22} +\d+L +\d+O +\d+Y +\d+N +\d+F +\d+A", full[-1])
    assert re.fullmatch(r" {12} {9}3( +\d+R +\d+T +0 ){2}", full[-2])


def test_aging_walks_page_tables(system: System) -> None:
    pid, start = writer(system, 8 * MIB)
    for _ in range(2):
        system.write(DEBUG, f"+ 1 0 {max(generations(system))} 1 1")
    before = generations(system)
    assert before[3][0] > 2000, "their pages were used, but not since"
    assert before[5][0] < 100
    system.command(f"access {pid} {start} {4 * MIB} r")
    system.kernel.user.mmu.flush_mm(system.kernel.tasks.find(int(pid)).mm.id)
    system.command(f"access {pid} {start} {4 * MIB} r")
    system.write(DEBUG, f"+ 1 0 {max(before)} 1 1")
    assert generations(system)[5][0] >= (4 * MIB >> 12) - 64
    system.check()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("+ 1 0 9", errno.EINVAL),
        ("+ 7 0 3", errno.EINVAL),
        ("+ 1 5 3", errno.EINVAL),
        ("* 1 0 3", errno.EINVAL),
        ("+ 1 0", errno.EINVAL),
        ("+ 1 0 3 x", errno.EINVAL),
        ("- 1 0 2", errno.EINVAL),
        ("- 1 0 0 201", errno.EINVAL),
        ("+ 1 0 3 1 0", errno.ERANGE),
    ],
)
def test_commands_that_are_refused(system: System, command: str, error: int) -> None:
    with pytest.raises(SystemCallError) as failed:
        system.write(DEBUG, command)
    assert failed.value.errno == error


def test_several_commands_and_those_without_effect(system: System) -> None:
    text = "+ 1 0 3 1 1, + 1 0 4 1 1;\n + 1 0 2\n"
    assert system.write(DEBUG, text) == len(text)
    assert max(generations(system)) == 5


def test_eviction_by_command_takes_the_oldest(system: System) -> None:
    system.command(f"read_file {FILE} n={8 * MIB}")
    system.kernel.lru.drain_all()
    system.write(DEBUG, "- 1 0 1 0 1000")
    assert 1000 <= event(system, stats.PGSTEAL_FILE) < 1100
    assert event(system, stats.PGSTEAL_ANON) == 0
    system.check()


def test_pressure_ages_and_swaps(system: System) -> None:
    system.write("/proc/sys/vm/swappiness", "200")
    first = max(generations(system))
    for _ in range(4):
        writer(system, 40 * MIB)
        system.check()
    assert max(generations(system)) > first
    assert event(system, stats.PSWPOUT) > 1000
    gauges = system.kernel.vmstat.node_stat[0]
    sizes = generations(system)
    active = [sum(sizes[seq][file] for seq in sorted(sizes)[-2:]) for file in range(2)]
    assert active == [int(gauges[stats.NR_ACTIVE_ANON]), int(gauges[stats.NR_ACTIVE_FILE])]


def test_refaults_are_counted(system: System) -> None:
    for _ in range(3):
        system.command(f"read_file {FILE} n={240 * MIB}")
    assert system.kernel.vmstat.node_total(stats.WORKINGSET_REFAULT_FILE) > 1000
    system.check()


def test_a_young_workingset_is_protected_by_killing(system: System) -> None:
    system.write("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000000")
    for _ in range(4):
        writer(system, 60 * MIB)
    assert event(system, stats.OOM_KILL) > 0
    assert event(system, stats.PSWPOUT) == 0 or event(system, stats.OOM_KILL) >= 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(CtrlPos(63, 64, 1), True), (CtrlPos(64, 64, 1), False), (CtrlPos(64, 1 << 16, 1), True)],
)
def test_the_controller(value: CtrlPos, expected: bool) -> None:
    assert positive_ctrl_err(CtrlPos(0, 0, 1), value) is expected
