"""Reclaim on small machines: what goes first, what comes back, and that nothing is lost."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kmemd.conformance.uo import machine_of
from kmemd.core import stats
from kmemd.core.lru_lists import LRU_ACTIVE_FILE, LRU_INACTIVE_ANON, LRU_INACTIVE_FILE
from kmemd.machine import SwapDevice
from kmemd.mm.units import MIB, PAGE_SIZE
from kmemd.system import System, SystemCallError

SWAP = SwapDevice("/dev/vdb", 512 * MIB)
CMDLINE = "transparent_hugepage=never"


def boot(*, swap: bool = True, size: str = "x86_64-128M-2cpu") -> System:
    machine = replace(machine_of(size), swap=(SWAP,) if swap else ())
    return System.boot(machine=machine, cmdline=CMDLINE)


def number(reply: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\w+)", reply)
    assert match is not None, reply
    return int(match[1], 0)


def writer(system: System, size: int) -> tuple[int, int]:
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {size}"), "addr")
    system.command(f"access {pid} {start:#x} {size} w")
    return pid, start


def event(system: System, item: int) -> int:
    return int(system.kernel.vmstat.events[item])


def gauge(system: System, item: int) -> int:
    return system.kernel.vmstat.node_total(item)


def test_two_programs_larger_than_memory_lose_nothing() -> None:
    system = boot()
    programs = []
    for which in range(2):
        pid = number(system.command("spawn hog"), "pid")
        start = number(system.command(f"mmap {pid} {80 * MIB}"), "addr")
        for page in range(0, 80 * MIB, MIB):
            system.command(f"write {pid} {start + page:#x} {page + which:016x}")
        programs.append((pid, start, which))
        system.command(f"access {pid} {start:#x} {80 * MIB} w")
        system.check()
    assert event(system, stats.PSWPOUT) > 8000
    for pid, start, which in programs:
        for page in range(0, 80 * MIB, MIB):
            reply = system.command(f"read {pid} {start + page:#x} 16")
            assert f"{page + which:016x}" in reply
        system.command(f"access {pid} {start:#x} {80 * MIB} r")
    assert event(system, stats.PSWPIN) > 8000
    system.check()
    for pid, _, _ in programs:
        system.command(f"exit {pid}")
    system.check()
    assert gauge(system, stats.NR_ISOLATED_ANON) == gauge(system, stats.NR_ISOLATED_FILE) == 0


def test_clean_pages_of_a_file_go_before_anything_else() -> None:
    system = boot()
    system.command(f"create /mnt/data {200 * MIB}")
    system.command(f"read_file /mnt/data n={200 * MIB}")
    assert event(system, stats.PGSTEAL_FILE) > 15000
    skipped = system.kernel.vmstat.events[stats.PGSCAN_SKIP : stats.PGSCAN_SKIP + stats.ZONES_PER_NODE].sum()
    assert event(system, stats.PGSTEAL_FILE) + skipped == event(system, stats.PGSCAN_FILE)
    assert event(system, stats.PGSTEAL_ANON) == event(system, stats.PSWPOUT) == 0
    assert event(system, stats.OOM_KILL) == 0
    system.check()


def test_pages_that_come_back_soon_are_active_and_later_restored() -> None:
    system = boot()
    system.write("/proc/sys/vm/swappiness", "0")
    system.command(f"create /mnt/data {84 * MIB}")
    for size in (42, 84):
        system.command(f"read_file /mnt/data n={size * MIB}")
    assert gauge(system, stats.WORKINGSET_REFAULT_FILE) == 0
    writer(system, 46 * MIB)
    system.command(f"read_file /mnt/data n={84 * MIB}")
    refaults = gauge(system, stats.WORKINGSET_REFAULT_FILE)
    assert refaults >= gauge(system, stats.WORKINGSET_ACTIVATE_FILE) > refaults // 2
    assert gauge(system, stats.WORKINGSET_ACTIVATE_FILE) > gauge(system, stats.WORKINGSET_RESTORE_FILE) > 0
    assert event(system, stats.PGDEACTIVATE) > 0
    system.check()


def test_pages_that_were_read_once_go_before_those_that_were_used_twice() -> None:
    system = boot()
    for path, size in (("/mnt/hot", 20), ("/mnt/cold", 300)):
        system.command(f"create {path} {size * MIB}")
    for _ in range(2):
        system.command(f"read_file /mnt/hot n={20 * MIB}")
    assert gauge(system, stats.NR_ACTIVE_FILE) > 5000
    system.command(f"read_file /mnt/cold n={300 * MIB}")
    hot = number(system.command("fincore /mnt/hot"), "pages")
    assert hot == 20 * MIB // PAGE_SIZE
    system.check()


@pytest.mark.parametrize(("swappiness", "swaps"), [(0, False), (200, True)])
def test_swappiness_decides_between_programs_and_files(swappiness: int, swaps: bool) -> None:
    system = boot()
    system.write("/proc/sys/vm/swappiness", str(swappiness))
    pid, _ = writer(system, 50 * MIB)
    system.command(f"create /mnt/data {40 * MIB}")
    for _ in range(2):
        system.command(f"read_file /mnt/data n={40 * MIB}")
    writer(system, 40 * MIB)
    anon, file = event(system, stats.PGSTEAL_ANON), event(system, stats.PGSTEAL_FILE)
    assert (anon > file) is swaps
    assert anon + file > 4000
    assert pid in system.kernel.tasks
    system.check()


def test_without_swap_programs_are_not_scanned_and_the_killer_comes() -> None:
    system = boot(swap=False)
    system.write("/proc/sys/vm/overcommit_memory", "1")
    with pytest.raises(SystemCallError):
        writer(system, 200 * MIB)
    assert event(system, stats.PGSCAN_ANON) == 0
    assert event(system, stats.OOM_KILL) == 1
    system.check()


def test_a_full_swap_is_not_scanned_for() -> None:
    system = System.boot(
        machine=replace(machine_of("x86_64-128M-2cpu"), swap=(SwapDevice("/dev/vdb", 16 * MIB),)), cmdline=CMDLINE
    )
    system.write("/proc/sys/vm/overcommit_memory", "1")
    with pytest.raises(SystemCallError):
        writer(system, 200 * MIB)
    assert event(system, stats.OOM_KILL) == 1
    system.check()


def test_kswapd_keeps_a_node_between_its_watermarks() -> None:
    system = boot()
    system.command(f"create /mnt/data {200 * MIB}")
    system.command(f"read_file /mnt/data n={200 * MIB}")
    zone = max(system.kernel.zones, key=lambda zone: zone.managed)
    system.advance(1)
    assert zone.free_pages + zone.pcp_pages >= zone.watermark_low
    assert event(system, stats.PGSTEAL_KSWAPD) > 10 * event(system, stats.PGSTEAL_DIRECT)
    assert event(system, stats.PAGEOUTRUN) > 10
    thread = next(task for task in system.kernel.tasks if task.comm == "kswapd0")
    assert thread.stime_ns > 0


def test_text_that_programs_run_stays_active() -> None:
    system = boot()
    pid = number(system.command("spawn hog image=busybox"), "pid")
    mapped = gauge(system, stats.NR_FILE_MAPPED)
    assert mapped > 0
    system.command(f"create /mnt/data {300 * MIB}")
    system.command(f"read_file /mnt/data n={300 * MIB}")
    assert gauge(system, stats.NR_FILE_MAPPED) == mapped
    assert pid in system.kernel.tasks
    system.check()


def test_locked_memory_is_never_reclaimed() -> None:
    system = boot()
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {8 * MIB}"), "addr")
    system.command(f"access {pid} {start:#x} {8 * MIB} w")
    system.command(f"mlock {pid} {start:#x} {8 * MIB}")
    writer(system, 150 * MIB)
    status = system.read(f"/proc/{pid}/status").decode()
    assert "VmSwap:\t       0 kB" in status or "VmLck:\t    8192 kB" in status
    assert system.kernel.vmstat.zone_total(stats.NR_MLOCK) == 2048
    system.check()


def test_a_cgroup_interface_reclaims_as_much_as_asked() -> None:
    system = boot()
    system.command(f"create /mnt/data {30 * MIB}")
    system.command(f"read_file /mnt/data n={30 * MIB}")
    lru = system.kernel.lru
    lru.drain_all()
    before = lru.size(0, LRU_INACTIVE_FILE, 9) + lru.size(0, LRU_ACTIVE_FILE, 9)
    assert before >= 30 * MIB // PAGE_SIZE
    assert lru.size(0, LRU_INACTIVE_ANON, 9) == gauge(system, stats.NR_INACTIVE_ANON)
    freed = system.kernel.vmscan.try_to_free_mem_cgroup_pages(0, 1000, 0xCC0, True)
    assert freed >= 1000
    assert lru.size(0, LRU_INACTIVE_FILE, 9) + lru.size(0, LRU_ACTIVE_FILE, 9) <= before - 1000
    system.check()
