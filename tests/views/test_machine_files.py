"""iomem, cpuinfo, stat, uptime and the like."""

import re
from pathlib import Path

import pytest

from kmemd import System
from kmemd.machine import Machine
from kmemd.views.tree import Caller

BOOT = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"


@pytest.fixture(scope="module")
def system():
    return System.boot("two-node")


ROOT = Caller(0, 0)


def read(system, path, caller=ROOT):
    file = system.tree.open(system.tree.lookup(path, caller), caller)
    return file.read(0, 1 << 20).decode()


def test_iomem_has_addresses_for_root_alone(system):
    root, other = read(system, "/proc/iomem"), read(system, "/proc/iomem", Caller(5, 1000))
    assert "00100000-bffd9fff : System RAM\n  01000000-016011c7 : Kernel code\n" in root
    assert other.splitlines()[1] == "00000000-00000000 : System RAM"
    assert len(other.splitlines()) == len(root.splitlines())


PORT = re.compile(r"BAR \d \[io  0x([0-9a-f]+)(?:-0x([0-9a-f]+))?\]")


@pytest.mark.parametrize("name", ["x86_64-2G-2cpu", "i386-2G-highmem-2cpu"])
def test_ioports_are_those_that_the_captured_boots_tell_of(system, name):
    captured = {(first, last or first) for first, last in PORT.findall((BOOT / name / "dmesg").read_text())}
    lines = read(system, "/proc/ioports").splitlines()
    shown = {tuple(line.split()[0].split("-")) for line in lines if "0000:00:0" in line}
    assert shown == captured
    assert lines[:2] == ["0000-0cf7 : PCI Bus 0000:00", "  0000-001f : dma1"]
    starts = [int(line.split("-")[0], 16) for line in lines]
    assert starts == sorted(starts)


def test_ioports_have_numbers_for_root_alone_and_a_twin_only_those_of_every_pc(system):
    lines = read(system, "/proc/ioports", Caller(5, 1000)).splitlines()
    assert {line.split()[0] for line in lines} == {"0000-0000"}
    twin = System.boot(Machine.from_capture(BOOT / "x86_64-256M-1cpu"))
    assert "0020-0021 : pic1" in read(twin, "/proc/ioports").splitlines()
    assert "PCI" not in read(twin, "/proc/ioports")


@pytest.mark.parametrize("name", ["x86_64-256M-1cpu", "x86_64-2node-4G-4cpu", "i386-2G-highmem-2cpu"])
def test_cpuinfo_is_the_captured_one_but_for_its_measurements(name):
    system = System.boot(Machine.from_capture(BOOT / name, shape_only=True))

    def lines(text):
        return [line for line in text.splitlines() if not line.startswith(("cpu MHz", "bogomips"))]

    assert lines(read(system, "/proc/cpuinfo")) == lines((BOOT / name / "proc/cpuinfo").read_text())


@pytest.mark.parametrize("name", ["x86_64-256M-1cpu", "x86_64-2G-2cpu", "x86_64-2node-4G-4cpu", "i386-2G-highmem-2cpu"])
def test_mounts_have_the_captured_sizes(name):
    system = System.boot(Machine.from_capture(BOOT / name, shape_only=True))
    captured = (BOOT / name / "proc/mounts").read_text().splitlines()
    model = read(system, "/proc/mounts").splitlines()
    near = [line.replace("217404", "217405") for line in model]  # i386 rounds its inodes up
    assert near == [line for line in captured if not line.startswith("tmpfs /out")]


def test_time_passes_in_stat_and_uptime():
    system = System.boot("default")
    system.advance(10)
    up, idle = map(float, read(system, "/proc/uptime").split())
    assert up == pytest.approx(15, abs=0.1)
    assert idle == pytest.approx(2 * up, abs=0.1)
    first = read(system, "/proc/stat").splitlines()[0].split()
    assert int(first[4]) == pytest.approx(3000, abs=10)
    assert f"btime {system.kernel.clock.boot_time_s}\n" in read(system, "/proc/stat")


def test_stat_has_a_line_per_cpu_and_the_interrupts_of_the_machine(system):
    lines = read(system, "/proc/stat").splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["cpu", "cpu0", "cpu1", "cpu2", "cpu3"]
    assert len(lines[5].split()) == 2 + 40 + 4 * 8


def test_loadavg_counts_tasks(system):
    words = read(system, "/proc/loadavg").split()
    assert words[3] == f"1/{len(system.kernel.tasks)}"
    assert words[4] == str(system.kernel.tasks.last_pid)


def test_cmdline_is_the_machines_and_the_users():
    system = System.boot("default", cmdline="page_owner=on")
    assert read(system, "/proc/cmdline") == "console=ttyS0 panic=-1 loglevel=4 nokaslr page_owner=on\n"


def test_self_is_init_without_a_reader_and_a_visitor_with_one(system):
    assert read(system, "/proc/self/comm") == "init\n"
    visitor = Caller(77123, 1000)
    assert read(system, "/proc/self/comm", visitor) == "visitor\n"
    assert read(system, "/proc/77123/status").splitlines()[5] == "Pid:\t77123"
    listed = [node.path for node in system.tree.children(system.tree.lookup("/proc"))]
    assert "/proc/77123" not in listed
    assert "/proc/1" in listed
