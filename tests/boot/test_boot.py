"""A fresh boot: populated as the captured machines are, by rules that scale."""

import re
import resource
from pathlib import Path

import pytest

from kmemd import System
from kmemd.boot.cache_table import BOOT_CACHES
from kmemd.boot.threads import kthreads
from kmemd.machine import Machine

BOOT = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"
MACHINES = sorted(path.name for path in BOOT.iterdir() if path.is_dir())


def kib(meminfo, name):
    return int(re.search(rf"^{name}: +(\d+)", meminfo, re.M).group(1))


@pytest.mark.parametrize("name", MACHINES)
def test_the_populated_machine_resembles_the_captured_one(name):
    system = System.boot(Machine.from_capture(BOOT / name, shape_only=True))
    model, captured = system.read("/proc/meminfo").decode(), (BOOT / name / "proc/meminfo").read_text()
    assert kib(model, "MemTotal") == kib(captured, "MemTotal")
    assert kib(model, "Percpu") == kib(captured, "Percpu")
    for field, tolerance in (
        ("Slab", 0.25),
        ("KernelStack", 0.15),
        ("Shmem", 0.02),
        ("Mapped", 0.2),
        ("Committed_AS", 0.1),
        ("SReclaimable", 0.25),
    ):
        wanted = kib(captured, field)
        assert abs(kib(model, field) - wanted) <= tolerance * wanted, field
    system.check()


@pytest.mark.parametrize("name", MACHINES)
def test_slab_caches_are_the_captured_ones(name):
    system = System.boot(Machine.from_capture(BOOT / name, shape_only=True))
    rows = [line.split() for line in system.read("/proc/slabinfo").decode().splitlines()[2:]]
    captured = [line.split() for line in (BOOT / name / "proc/slabinfo").read_text().splitlines()[2:]]
    assert [(row[0], *row[3:6]) for row in rows] == [(row[0], *row[3:6]) for row in captured]


def test_every_machine_boots_and_adds_up():
    for name in Machine.builtin_names():
        System.boot(name).check()


def test_nothing_of_boots_is_a_leak():
    system = System.boot("default")
    system.write("/sys/kernel/debug/kmemleak", "scan")
    system.advance(30)
    system.write("/sys/kernel/debug/kmemleak", "scan")
    assert system.read("/sys/kernel/debug/kmemleak") == b""


def test_the_same_seed_boots_the_same_machine():
    first, second = System.boot("two-node", seed=3), System.boot("two-node", seed=3)
    for path in ("/proc/buddyinfo", "/proc/zoneinfo", "/proc/slabinfo", "/proc/1/maps", "/proc/vmallocinfo"):
        assert first.read(path) == second.read(path)
    assert System.boot("two-node", seed=4).read("/proc/1/maps") != first.read("/proc/1/maps")


def test_threads_are_in_the_captured_order():
    names = [thread.comm for thread in kthreads(2, [0])]
    assert names[0] == "kthreadd"
    assert names.index("kworker/u4:0") == 8 - 2
    assert names.index("kworker/u4:1") == 22 - 2
    assert len(names) == 30
    assert len([*kthreads(1, [0])]) == 24


def test_kernel_stacks_are_counted_where_their_cpu_is():
    system = System.boot("two-node")
    stacks = [
        kib(
            system.read(f"/sys/devices/system/node/node{nid}/meminfo").decode().replace(f"Node {nid} ", ""),
            "KernelStack",
        )
        for nid in (0, 1)
    ]
    idle = system.kernel.machine.cpus - 1
    assert sum(stacks) == 16 * (len(system.kernel.tasks) + idle)
    assert stacks[1] >= 16 * 2 * 7


def test_i386_stacks_are_pages():
    system = System.boot("highmem")
    assert kib(system.read("/proc/meminfo").decode(), "KernelStack") == 8 * (len(system.kernel.tasks) + 1)
    assert b"kernel_clone" not in system.read("/proc/vmallocinfo")


def test_kmemleak_off_leaves_no_kmemleak_objects():
    system = System.boot("default", cmdline="kmemleak=off")
    row = next(
        line for line in system.read("/proc/slabinfo").decode().splitlines() if line.startswith("kmemleak_object")
    )
    assert row.split()[1:3] == ["0", "0"]


def test_caches_are_named_once_per_architecture():
    for arch in ("x86_64", "i386"):
        names = [row.name for row in BOOT_CACHES if row.size(arch)]
        assert len(names) == len(set(names))


def test_a_terabyte_costs_little():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    system = System.boot("server-1t")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert len(system.kernel.tasks) > 1280
    assert kib(system.read("/proc/meminfo").decode(), "MemTotal") > 1000 << 20


def test_pages_of_the_initramfs_belong_to_the_worker_that_unpacked_it():
    system = System.boot(cmdline="page_owner=on", clock="manual")
    records = system.read("/sys/kernel/debug/page_owner").decode().split("\n\n")
    files = [record for record in records if " shmem_write_begin+" in record]
    assert len(files) > 600
    assert all(re.search(r"pid \d+, tgid \d+ \(kworker/u\d+:0\)", record) for record in files)
    assert not any("fork_idle" in record and "lru" in record.split("Flags")[1] for record in records[:-1])
