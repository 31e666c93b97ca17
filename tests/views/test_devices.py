"""devices, consoles, locks, cgroups and sys/fs: names and modes of Linux, and what this machine has."""

import dataclasses
import re
from pathlib import Path

import pytest

from kmemd import System
from kmemd.errors import KernelError
from kmemd.machine import Machine, SwapDevice
from kmemd.mm.file_table import FileTable

LISTING = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot" / "ls-proc.txt"
NAMES = ("cgroups", "consoles", "devices", "execdomains", "interrupts", "ioports", "locks", "softirqs")


def text(system, path):
    return system.read(path).decode()


@pytest.fixture(scope="module")
def system():
    return System.boot("default")


@pytest.mark.parametrize("name", NAMES)
def test_names_and_modes_are_the_captured_ones(system, name):
    (mode,) = re.findall(rf"^(\S+) .* {name}$", LISTING.read_text(), re.MULTILINE)
    assert (mode, system.tree.lookup(f"/proc/{name}").entry.mode) == ("-r--r--r--", 0o444)


def test_devices_are_those_of_the_machine(system):
    character, block = text(system, "/proc/devices").split("\n\n")
    assert character == "Character devices:\n  1 mem\n  4 ttyS\n  5 /dev/tty\n  5 /dev/console"
    assert block == "Block devices:\n254 virtblk\n259 blkext\n"


def test_the_only_domain_is_linux(system):
    assert text(system, "/proc/execdomains") == "0-0\tLinux           \t[kernel]\n"


@pytest.mark.parametrize(("disks", "count"), [((), 0), (("/dev/sda3", "/dev/sdb1"), 16), (("/dev/nvme0n1p2",), 0)])
def test_the_disk_driver_is_there_once_with_all_its_numbers(disks, count):
    swap = tuple(SwapDevice(path, 1 << 30) for path in disks)
    machine = dataclasses.replace(Machine.load("default"), swap=swap)
    lines = text(System.boot(machine), "/proc/devices").partition("Block devices:\n")[2].splitlines()
    assert sum(line.endswith(" sd") for line in lines) == count
    assert [int(line.split()[0]) for line in lines] == sorted({int(line.split()[0]) for line in lines})
    assert lines[-1] == "259 blkext"


SERIAL = "ttyS0                -W- (EC p a)    4:64\n"


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        ("", SERIAL),
        ("console=ttyS0,115200n8", SERIAL),
        ("console=tty0 console=ttyS0", SERIAL),
        ("console=0", SERIAL),
        ("console=tty0", ""),
        ("console=ttyS1", ""),
    ],
)
def test_the_console_is_the_serial_port(cmdline, shown):
    machine = dataclasses.replace(Machine.load("default"), cmdline="")
    assert text(System.boot(machine, cmdline=cmdline), "/proc/consoles") == shown


def test_nobody_holds_a_lock(system):
    assert text(system, "/proc/locks") == ""


@pytest.mark.parametrize(("cmdline", "enabled"), [("", 1), ("cgroup_disable=cpu,memory", 0), ("cgroup_disable=cpu", 1)])
def test_the_memory_controller_is_on_unless_disabled(cmdline, enabled):
    lines = text(System.boot("default", cmdline=cmdline), "/proc/cgroups").splitlines()
    assert lines == ["#subsys_name\thierarchy\tnum_cgroups\tenabled", f"memory\t0\t1\t{enabled}"]


def test_file_nr_counts_the_objects_of_open_files():
    system = System.boot("default")
    active = next(line.split()[1] for line in text(system, "/proc/slabinfo").splitlines() if line.startswith("filp "))
    limit = text(system, "/proc/sys/fs/file-max").strip()
    assert int(active) > 0
    assert text(system, "/proc/sys/fs/file-nr") == f"{active}\t0\t{limit}\n"


def test_file_max_is_a_tenth_of_memory_and_takes_numbers():
    system = System.boot("default")
    managed = system.kernel.totalram_pages() * 4
    assert int(text(system, "/proc/sys/fs/file-max")) == managed // 10
    assert system.write("/proc/sys/fs/file-max", "5000\n") == 5
    assert text(system, "/proc/sys/fs/file-nr").endswith("\t0\t5000\n")
    with pytest.raises(KernelError):
        system.write("/proc/sys/fs/file-nr", "1\n")


@pytest.mark.parametrize(("total", "taken", "files"), [(10_000_000, 0, 1_000_000), (10_000_000, 100_000, 985_000),
                                                       (40_000, 0, 8192), (100, 1000, 8192)])  # fmt: skip
def test_what_boot_took_counts_one_and_a_half_times(total, taken, files):
    assert FileTable(total, taken).max_files == files


def test_file_max_fits_a_long():
    (row,) = FileTable.TUNABLES
    for bits in (32, 64):
        knob = FileTable(1, 0, long_bits=bits).knob(row)
        assert (knob.min, knob.max) == (0, 2 ** (bits - 1) - 1)
