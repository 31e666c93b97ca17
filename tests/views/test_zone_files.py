"""Zone, memory and node files: their form is the captured one, and their sums agree."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from kmemd import System
from kmemd.core import stats
from kmemd.machine import Machine
from kmemd.views.buddyinfo import _capped
from kmemd.views.extfrag import index_line, thousandths
from kmemd.views.tree import Directory

BOOT = Path(__file__).parent.parent / "captures" / "linux-6.1" / "boot"
MACHINES = sorted(path.name for path in BOOT.iterdir() if path.is_dir())
NUMA_MACHINES = [name for name in MACHINES if not name.startswith("i386")]
NODE_SETS = ("has_cpu", "has_generic_initiator", "has_memory", "has_normal_memory", "online", "possible")
NODE_FILES = (*NODE_SETS, "node0/cpulist", "node0/cpumap", "node0/distance")


@cache
def booted(machine: str) -> System:
    """A fresh boot on a captured machine's zones. The tests only read it."""
    return System.boot(machine=Machine.from_capture(BOOT / machine, shape_only=True), seed=1)


def captured(machine: str, path: str) -> str:
    return (BOOT / machine / path).read_text()


def form(text: str) -> str:
    """A text with its numbers and their padding taken out."""
    return re.sub(r"(?<![\w(])[ \t]*\d+", " N", text)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["buddyinfo", "pagetypeinfo", "zoneinfo", "vmstat", "meminfo"])
def test_form_is_the_captured_one(machine: str, name: str) -> None:
    shown = booted(machine).read(f"/proc/{name}").decode()
    assert form(shown) == form(captured(machine, f"proc/{name}"))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["buddyinfo", "pagetypeinfo", "meminfo"])
def test_columns_are_as_wide_as_captured(machine: str, name: str) -> None:
    shown = booted(machine).read(f"/proc/{name}").decode().splitlines()
    assert [len(line) for line in shown] == [len(line) for line in captured(machine, f"proc/{name}").splitlines()]


@pytest.mark.parametrize("machine", NUMA_MACHINES)
@pytest.mark.parametrize("name", ["meminfo", "numastat", "vmstat", "uevent"])
def test_node_files_have_the_captured_form(machine: str, name: str) -> None:
    path = f"sys/devices/system/node/node0/{name}"
    shown = booted(machine).read(f"/{path}").decode()
    assert form(shown) == form(captured(machine, path))
    if name == "meminfo":
        assert [len(line) for line in shown.splitlines()] == [
            len(line) for line in captured(machine, path).splitlines()
        ]


@pytest.mark.parametrize("machine", NUMA_MACHINES)
@pytest.mark.parametrize("name", NODE_FILES)
def test_node_topology_is_the_captured_one(machine: str, name: str) -> None:
    path = f"sys/devices/system/node/{name}"
    assert booted(machine).read(f"/{path}").decode() == captured(machine, path)


@pytest.mark.parametrize("machine", MACHINES)
def test_direct_map_and_limits_are_the_captured_ones(machine: str) -> None:
    exact = ("MemTotal", "CommitLimit", "VmallocTotal", "DirectMap", "Hugepagesize", "HighTotal", "LowTotal")

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(exact)]

    shown = booted(machine).read("/proc/meminfo").decode()
    assert lines(shown) == lines(captured(machine, "proc/meminfo"))


def test_i386_has_no_nodes() -> None:
    system = booted("i386-2G-highmem-2cpu")
    names = {node.path for node in system.tree.children(system.tree.lookup("/sys/devices/system"))}
    assert "/sys/devices/system/node" not in names


def zone_sums(system: System) -> tuple[int, int, int]:
    """Free pages by buddyinfo, by pagetypeinfo and by zoneinfo."""
    counts = [line.split()[4:] for line in system.read("/proc/buddyinfo").decode().splitlines()]
    by_order = sum(int(count) << order for row in counts for order, count in enumerate(row))
    types = re.findall(r", type +\w+ +(.*)", system.read("/proc/pagetypeinfo").decode())
    by_type = sum(int(count) << order for row in types for order, count in enumerate(row.split()))
    pages = re.findall(r"pages free +(\d+)", system.read("/proc/zoneinfo").decode())
    return by_order, by_type, sum(map(int, pages))


def test_sums_agree_after_work() -> None:
    system = System.boot(machine="two-node", seed=1)
    before = system.read("/proc/buddyinfo")
    system.command("a = alloc_pages order=0 n=3000")
    system.command("b = alloc_pages order=4 n=40 node=1 gfp=GFP_HIGHUSER_MOVABLE")
    system.command("free_pages a every=3")
    by_order, by_type, by_zone = zone_sums(system)
    assert by_order == by_type == by_zone
    meminfo = dict(re.findall(r"(\w+): +(\d+)", system.read("/proc/meminfo").decode()))
    vmstat = dict(line.split() for line in system.read("/proc/vmstat").decode().splitlines())
    nodes = [
        dict(re.findall(r"(\w+): +(\d+)", system.read(f"/sys/devices/system/node/node{nid}/meminfo").decode()))
        for nid in (0, 1)
    ]
    assert int(meminfo["MemFree"]) == by_zone * 4 == int(vmstat["nr_free_pages"]) * 4
    for field in ("MemTotal", "MemFree", "Slab", "KernelStack"):
        assert int(meminfo[field]) == sum(int(node[field]) for node in nodes), field
    assert system.read("/proc/buddyinfo") != before
    system.check()


def test_knobs_move_the_watermarks() -> None:
    system = System.boot(seed=1)
    before = re.findall(r" (?:min|low|high) +(\d+)", system.read("/proc/zoneinfo").decode())
    system.write("/proc/sys/vm/min_free_kbytes", "20000\n")
    after = re.findall(r" (?:min|low|high) +(\d+)", system.read("/proc/zoneinfo").decode())
    assert before != after
    assert sum(map(int, re.findall(r" min +(\d+)", system.read("/proc/zoneinfo").decode()))) in (4999, 5000)


def test_pagetypeinfo_is_for_root_only() -> None:
    system = booted(MACHINES[0])
    assert system.tree.lookup("/proc/pagetypeinfo").entry.mode == 0o400
    assert system.tree.lookup("/proc/buddyinfo").entry.mode == 0o444


def test_pagetypeinfo_stops_counting() -> None:
    assert _capped(99_999) == " 99999 "
    assert _capped(262_144) == ">100000 "


def test_indices_are_printed_as_c_prints_them() -> None:
    assert thousandths(-1000, 2) == "-1.000 "
    assert thousandths(42, 1) == "0.042 "
    assert index_line(1, "Normal", [7], lambda free, order: 500, 2) == "Node 1, zone   Normal  0.500 \n"


def test_node_links_and_writes() -> None:
    system = System.boot(machine="two-node", seed=1)
    base = "/sys/devices/system/node/node1"
    names = {node.path.rsplit("/", 1)[1] for node in system.tree.children(system.tree.lookup(base))}
    assert {"compact", "cpulist", "cpumap", "distance", "meminfo", "numastat", "vmstat", "uevent"} <= names
    cpus = {f"cpu{cpu}" for cpu in system.kernel.nodes[1].cpus}
    assert {name for name in names if re.fullmatch(r"cpu\d+", name)} == cpus
    assert isinstance(system.tree.lookup(f"{base}/{min(cpus)}").entry, Directory)
    assert system.write(f"{base}/compact", "1\n") == 2
    assert system.write(f"{base}/uevent", "add\n") == 4
    with pytest.raises(OSError, match="uevent"):
        system.write(f"{base}/uevent", "dance\n")


def meminfo_of(system: System) -> dict[str, int]:
    text = system.read("/proc/meminfo").decode()
    return {name: int(number) for name, number in re.findall(r"^([\w()]+): +(\d+)", text, re.MULTILINE)}


def test_meminfo_tells_swap_cache_and_other_reclaimable_memory_apart() -> None:
    system = System.boot()
    before, node = meminfo_of(system), system.kernel.vmstat.node_stat
    node[0, stats.NR_FILE_PAGES] += 300
    node[0, stats.NR_SWAPCACHE] += 100
    node[0, stats.NR_KERNEL_MISC_RECLAIMABLE] += 50
    after = meminfo_of(system)
    grown = {name: after[name] - before[name] for name in ("Cached", "SwapCached", "KReclaimable", "SReclaimable")}
    assert grown == {"Cached": 800, "SwapCached": 400, "KReclaimable": 200, "SReclaimable": 0}


def test_available_memory_keeps_half_of_a_small_cache_and_the_watermarks_of_a_large_one() -> None:
    system = System.boot()
    kernel = system.kernel
    low = sum(zone.watermark_low for zone in kernel.zones)
    before = meminfo_of(system)["MemAvailable"]
    kernel.vmstat.node_stat[0, stats.NR_ACTIVE_FILE] += low
    assert meminfo_of(system)["MemAvailable"] - before == (low - low // 2) * 4
    kernel.vmstat.node_stat[0, stats.NR_ACTIVE_FILE] += 9 * low
    assert meminfo_of(system)["MemAvailable"] - before == 9 * low * 4
    kernel.buddy.boost[0] = 100
    assert meminfo_of(system)["MemAvailable"] - before == (9 * low - 100) * 4


def test_low_memory_is_what_is_not_high() -> None:
    shown = meminfo_of(System.boot("highmem"))
    assert shown["LowFree"] + shown["HighFree"] == shown["MemFree"]
    assert shown["LowTotal"] + shown["HighTotal"] == shown["MemTotal"]
    assert 0 < shown["LowFree"] < shown["LowTotal"]
