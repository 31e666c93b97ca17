"""Machines: the built-in ones, TOML files and what is wrong with them, the command line."""

import dataclasses
from pathlib import Path

import pytest

from kmemd.machine import CommandLine, Machine, MachineError

BOOT = Path(__file__).parent / "captures" / "linux-6.1" / "boot"
GIB = 1 << 30

NODES = {
    "default": ([2 * GIB], 2),
    "laptop": ([16 * GIB], 8),
    "two-node": ([2 * GIB, 2 * GIB], 4),
    "four-node": ([8 * GIB, 4 * GIB, 2 * GIB, GIB], 8),
    "highmem": ([3 * GIB], 2),
    "cpuless-node": ([2 * GIB, 4 * GIB], 2),
    "server-1t": ([128 * GIB] * 8, 256),
}


def test_default_comes_first_and_all_are_there():
    assert Machine.builtin_names()[0] == "default"
    assert set(Machine.builtin_names()) == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_built_in_machines(name):
    machine = Machine.load(name)
    sizes, cpus = NODES[name]
    assert machine.cpus == cpus
    assert sorted(cpu for node in machine.nodes for cpu in node.cpus) == list(range(cpus))
    for node, size in zip(machine.nodes, sizes, strict=True):
        usable = sum(end - start for start, end in node.ranges)
        assert size - (1 << 20) < usable <= size
        assert node.distance[node.nid] == 10
    for layout in machine.layouts(machine.command_line()):
        for zone in layout.zones:
            assert zone.managed == sum(high - low for low, high in zone.free)
            assert zone.managed <= zone.present <= zone.spanned


def test_the_node_without_cpus_has_memory_and_is_far():
    machine = Machine.load("cpuless-node")
    assert machine.nodes[1].cpus == ()
    assert machine.nodes[0].distance == (10, 40)
    assert machine.cpu_nodes == (0, 0)


def zone(machine, nid, name, cmdline=""):
    layout = machine.layouts(machine.command_line(cmdline))[nid]
    return next(zone for zone in layout.zones if zone.name == name)


def test_movablecore_takes_its_memory_from_the_end_of_each_node():
    machine = Machine.load("two-node")
    movable = [zone(machine, nid, "Movable", "movablecore=1G") for nid in (0, 1)]
    # node 0 lies below 4 GiB, where Movable is never taken from when there is a Normal zone
    assert movable[0].present == 0
    assert movable[1].present == (1 << 18) // 1
    assert zone(machine, 1, "Normal", "movablecore=1G").present == 0


def test_mem_cuts_memory_off():
    machine = Machine.load("default")
    assert zone(machine, 0, "DMA32", "mem=512M").end_pfn == 512 << 8


BAD = {
    "arch": ('arch = "arm64"\ncpus = 1\n[[node]]\nmemory = "1G"', ["arch", "'arm64'", '"x86_64" or "i386"']),
    "cpus": ('cpus = 0\n[[node]]\nmemory = "1G"', ["cpus", "0", "integer from 1"]),
    "no node": ("cpus = 1", ["node", "from 1 to 64"]),
    "no memory": ("cpus = 1\n[[node]]", ["node[0].memory", "missing"]),
    "size": ('[[node]]\nmemory = "2 gigs"', ["node[0].memory", "'2 gigs'", '"512M"']),
    "too small": ('[[node]]\nmemory = "1M"', ["node.memory", "67108864"]),
    "too large": ('arch = "i386"\n[[node]]\nmemory = "8G"', ["node.memory", "4294967296 bytes in all on i386"]),
    "unknown key": ('speed = 1\n[[node]]\nmemory = "1G"', ["speed", "unknown key", "latency"]),
    "cpu twice": (
        'cpus = 2\n[[node]]\nmemory = "1G"\ncpus = "0-1"\n[[node]]\nmemory = "1G"\ncpus = "1"',
        ["node.cpus", "exactly once"],
    ),
    "cpu list": ('cpus = 1\n[[node]]\nmemory = "1G"\ncpus = "a-b"', ["node[0].cpus", "'a-b'", "CPU list"]),
    "distance": (
        'cpus = 1\ndistances = [[10, 5], [20, 10]]\n[[node]]\nmemory = "1G"\ncpus = "0"\n[[node]]\nmemory = "1G"',
        ["distances[0][1]", "5", "from 11 to 254"],
    ),
    "swap": ('[[node]]\nmemory = "1G"\n[[swap]]\nsize = "1G"\nkind = "tape"', ["swap[0].kind", "'tape'", '"file"']),
    "latency": ('[[node]]\nmemory = "1G"\n[latency]\nlight = 1', ["latency.light", "unknown key", "minor_fault"]),
    "soft dirty": ('soft_dirty = 1\n[[node]]\nmemory = "1G"', ["soft_dirty", "1", "true or false"]),
    "soft dirty on i386": ('arch = "i386"\nsoft_dirty = true\n[[node]]\nmemory = "1G"', ["soft_dirty", "x86_64"]),
    "disk without a path": ('[[node]]\nmemory = "1G"\n[[disk]]\nread_latency = 1', ["disk[0].path", "/dev/ram0"]),
    "disk twice": (
        '[[node]]\nmemory = "1G"\n[[disk]]\npath = "/dev/vdb"\n[[disk]]\npath = "/dev/vdb"',
        ["disk[1].path", "another disk"],
    ),
    "disk latency": (
        '[[node]]\nmemory = "1G"\n[[disk]]\npath = "/dev/vdb"\nread_latency = -1',
        ["disk[0].read_latency", "-1", "from 0 to 1000000000"],
    ),
    "disk bandwidth": (
        '[[node]]\nmemory = "1G"\n[[disk]]\npath = "/dev/vdb"\nwrite_bandwidth = "fast"',
        ["disk[0].write_bandwidth", "'fast'", '"512M"'],
    ),
    "disk key": ('[[node]]\nmemory = "1G"\n[[disk]]\nspeed = 1', ["disk[0].speed", "unknown key", "read_bandwidth"]),
    "toml": ("cpus = = 1", ["not TOML"]),
}


def test_a_file_may_ask_for_soft_dirty_tracking(tmp_path):
    file = tmp_path / "machine.toml"
    file.write_text('soft_dirty = true\n[[node]]\nmemory = "1G"')
    assert Machine.load(file).soft_dirty
    assert not Machine.load("default").soft_dirty


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_says_where_and_what_would_be_right(tmp_path, case):
    text, words = BAD[case]
    file = tmp_path / "machine.toml"
    file.write_text(text)
    with pytest.raises(MachineError) as error:
        Machine.load(file)
    assert str(file) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_machine_lists_the_known_ones():
    with pytest.raises(MachineError, match=r"nosuch.*default.*server-1t"):
        Machine.load("nosuch")


@pytest.mark.parametrize(
    ("folder", "arch", "sizes"),
    [
        ("x86_64-256M-1cpu", "x86_64", [256]),
        ("x86_64-2G-2cpu", "x86_64", [2048]),
        ("x86_64-2node-4G-4cpu", "x86_64", [2048, 2048]),
        ("x86_64-2node-8G-movablecore2G", "x86_64", [4096, 4096]),
        ("i386-2G-highmem-2cpu", "i386", [2048]),
    ],
)
def test_the_rules_give_the_captured_memory_map_and_zones(folder, arch, sizes):
    captured = Machine.from_capture(BOOT / folder)
    share = captured.cpus // len(sizes)
    cpus = tuple(tuple(range(i * share, (i + 1) * share)) for i in range(len(sizes)))
    distances = tuple(node.distance for node in captured.nodes)
    machine = Machine.of_memory("", arch, captured.cpus, tuple(size << 20 for size in sizes), cpus, distances)
    assert machine.iomem == captured.iomem
    ours = machine.layouts(CommandLine(captured.cmdline))
    theirs = captured.layouts(CommandLine(captured.cmdline))
    for have, wanted in zip(ours, theirs, strict=True):
        assert have.cpus == wanted.cpus
        for zone, original in zip(have.zones, wanted.zones, strict=True):
            assert (zone.name, zone.spanned, zone.present, zone.managed) == (
                original.name,
                original.spanned,
                original.present,
                original.managed,
            )
            assert not zone.present or zone.start_pfn == original.start_pfn


def test_banner_is_the_captured_one():
    assert Machine.load("default").banner + "\n" == (BOOT / "x86_64-2G-2cpu/proc/version").read_text()
    assert Machine.load("highmem").banner + "\n" == (BOOT / "i386-2G-highmem-2cpu/proc/version").read_text()


def test_what_the_user_adds_to_a_command_line_is_the_kernels_and_not_inits():
    machine = dataclasses.replace(Machine.load("default"), cmdline="quiet rdinit=/x -- --flag a=b")
    cmdline = machine.command_line("page_owner=on")
    assert cmdline.text == "quiet rdinit=/x page_owner=on -- --flag a=b"
    assert cmdline.get("page_owner") == "on"
    assert Machine.load("default").command_line("quiet").text.endswith(" nokaslr quiet")


def test_too_little_memory_is_said_so():
    machine = Machine.load("default")
    with pytest.raises(MachineError, match="mem=1K: a machine needs 64M to boot"):
        machine.layouts(machine.command_line("mem=1K"))
