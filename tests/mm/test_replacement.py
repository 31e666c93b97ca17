"""Replacement policies: which pages go first, hit ratios, switching while there is pressure."""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest

from kmemd.conformance.uo import machine_of
from kmemd.core import stats
from kmemd.machine import SwapDevice
from kmemd.mm.replacement import NAMES
from kmemd.mm.units import MIB
from kmemd.system import System, SystemCallError

SWAP, CMDLINE = (SwapDevice("/dev/vdb", 256 * MIB),), "transparent_hugepage=never"
FILE, CACHE_PAGES = "/mnt/data", 1 << 15


@pytest.fixture
def system() -> System:
    found = System.boot(machine=replace(machine_of("x86_64-128M-2cpu"), swap=SWAP), cmdline=CMDLINE)
    found.command(f"create {FILE} {256 * MIB}")
    return found


def select(system: System, name: str) -> None:
    assert system.write("/kmemd/replacement", name + "\n") == len(name) + 1


def ratio(system: System) -> dict[str, str]:
    return dict(word.split("=") for word in system.read("/kmemd/hit_ratio").decode().split())


def test_the_file_shows_the_policy_in_brackets(system: System) -> None:
    assert system.read("/kmemd/replacement") == b"[two-list] mglru fifo clock lru\n"
    select(system, "clock")
    assert system.read("/kmemd/replacement") == b"two-list mglru fifo [clock] lru\n"
    with pytest.raises(SystemCallError) as failed:
        system.write("/kmemd/replacement", "newest")
    assert failed.value.errno == errno.EINVAL


def test_generations_are_the_same_switch_as_linuxs_own(system: System) -> None:
    select(system, "mglru")
    assert system.read("/sys/kernel/mm/lru_gen/enabled") == b"0x0007\n"
    select(system, "fifo")
    assert system.read("/sys/kernel/mm/lru_gen/enabled") == b"0x0006\n"
    system.write("/sys/kernel/mm/lru_gen/enabled", "y")
    assert b"[mglru]" in system.read("/kmemd/replacement")
    system.write("/sys/kernel/mm/lru_gen/enabled", "n")
    assert system.read("/kmemd/replacement").startswith(b"[two-list]")


def test_reads_are_hits_and_misses(system: System) -> None:
    select(system, "lru")
    system.command(f"read_file {FILE} n={4 * MIB}")
    first = ratio(system)
    assert int(first["hits"]) + int(first["misses"]) == 4 * MIB >> 12
    system.command(f"read_file {FILE} n={4 * MIB}")
    second = ratio(system)
    assert second["misses"] == first["misses"]
    assert int(second["hits"]) == int(first["hits"]) + (4 * MIB >> 12)
    assert second["policy"] == "lru"
    select(system, "fifo")
    assert (ratio(system)["hits"], ratio(system)["ratio"]) == ("0", "-"), "counted since the switch"


@pytest.mark.parametrize("name", NAMES)
def test_each_policy_reclaims_under_pressure(system: System, name: str) -> None:
    select(system, name)
    system.command(f"read_file {FILE} n={200 * MIB}")
    pid = system.command("spawn hog").split()[0].split("=")[1]
    start = system.command(f"mmap {pid} {60 * MIB}").split("addr=")[1].split()[0]
    system.command(f"access {pid} {start} {60 * MIB} w")
    system.command(f"read_file {FILE} n={200 * MIB}")
    stolen = int(system.kernel.vmstat.events[stats.PGSTEAL_FILE])
    assert stolen > 1000
    system.check()
    assert int(ratio(system)["pgsteal_file"]) == stolen


def test_switching_loses_no_page(system: System) -> None:
    system.command(f"read_file {FILE} n={60 * MIB}")
    pid = system.command("spawn hog").split()[0].split("=")[1]
    start = system.command(f"mmap {pid} {20 * MIB}").split("addr=")[1].split()[0]
    system.command(f"access {pid} {start} {20 * MIB} w")
    system.kernel.lru.drain_all()

    def listed() -> list[int]:
        pages = system.kernel.vmstat.node_stat[0, stats.NR_INACTIVE_ANON : stats.NR_INACTIVE_ANON + 4]
        return [int(pages[0] + pages[1]), int(pages[2] + pages[3])]

    before = listed()
    for name in ("mglru", "lru", "two-list", "clock", "mglru", "two-list", "fifo", "two-list"):
        select(system, name)
        system.check()
        assert listed() == before, name


def test_true_lru_keeps_what_is_used_and_fifo_does_not(system: System) -> None:
    kept = {}
    for name in ("lru", "fifo"):
        fresh = System.boot(machine=replace(machine_of("x86_64-128M-2cpu"), swap=()), cmdline=CMDLINE)
        fresh.command(f"create {FILE} {512 * MIB}")
        fresh.command(f"create /mnt/hot {4 * MIB}")
        select(fresh, name)
        fresh.command(f"read_file /mnt/hot n={4 * MIB}")
        for part in range(8):
            fresh.command(f"read_file {FILE} offset={part * 32 * MIB} n={32 * MIB}")
            fresh.command(f"read_file /mnt/hot n={4 * MIB}")
        misses = int(ratio(fresh)["misses"])
        kept[name] = (misses, float(ratio(fresh)["ratio"]))
        fresh.check()
    assert kept["lru"][0] < kept["fifo"][0]
    assert kept["lru"][1] > kept["fifo"][1]


def test_marking_pages_in_bulk_is_the_policys(system: System) -> None:
    system.command(f"read_file {FILE} n={1 * MIB}")
    system.kernel.lru.drain_all()
    oldest = system.kernel.lru.pages_of(0, 2)[-3:]
    select(system, "lru")
    system.kernel.lru.mark_accessed_bulk(np.array(oldest, dtype=np.int64))
    assert system.kernel.lru.pages_of(0, 2)[:3] == oldest[::-1]
