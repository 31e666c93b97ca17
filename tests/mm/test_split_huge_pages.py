"""split_huge_pages of debugfs, and how much a fault maps around itself."""

from __future__ import annotations

import re

import pytest

from kmemd.system import System

SPLIT = "/sys/kernel/debug/split_huge_pages"
AROUND = "/sys/kernel/debug/fault_around_bytes"
HUGE = 2 << 20


@pytest.fixture
def system() -> System:
    found = System.boot(machine="default", seed=1, clock="manual")
    found.command("p = spawn user")
    return found


def vmstat(system: System, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", system.read("/proc/vmstat").decode(), re.M)
    assert found is not None
    return int(found[1])


def mapped(system: System, size: str, name: str = "m") -> tuple[int, int]:
    """Memory of the process that is in huge pages: its pid, and the first address of a huge page."""
    found = re.search(r"addr=(\S+)", system.command(f"{name} = mmap p {size}"))
    pid = re.search(r"pid=(\d+)", system.command(f"access p {name} {size} w"))
    assert found is not None
    assert pid is not None
    return int(pid[1]), -(-int(found[1], 16) // HUGE) * HUGE


def test_all(system: System) -> None:
    mapped(system, "64M")
    before = vmstat(system, "nr_anon_transparent_hugepages")
    assert before >= 31
    system.write(SPLIT, "1\n")
    system.check()
    assert vmstat(system, "nr_anon_transparent_hugepages") == 0
    assert vmstat(system, "thp_split_page") == vmstat(system, "thp_split_pmd") == before


def test_a_range_of_a_process(system: System) -> None:
    pid, start = mapped(system, "32M")
    before = vmstat(system, "nr_anon_transparent_hugepages")
    system.write(SPLIT, f"{pid},{start:#x},{start + 4096:#x}")
    assert vmstat(system, "thp_split_page") == 1, "part of a huge page is enough"
    system.write(SPLIT, f"{pid},{start:#x},{start + HUGE:#x}\n")
    assert vmstat(system, "thp_split_page") == 1, "it is small by now"
    system.write(SPLIT, f"{pid},{start:#x},{start + 4 * HUGE:#x}\n")
    system.check()
    assert vmstat(system, "thp_split_page") == 4
    assert vmstat(system, "nr_anon_transparent_hugepages") == before - 4


def test_what_small_entries_map_is_split_too(system: System) -> None:
    pid, start = mapped(system, "8M")
    system.command(f"mprotect p {start + 4096:#x} 4K r")
    assert (vmstat(system, "thp_split_pmd"), vmstat(system, "thp_split_page")) == (1, 0)
    system.write(SPLIT, f"{pid},{start + 8192:#x},{start + 12288:#x}")
    system.check()
    assert vmstat(system, "thp_split_page") == 1


def test_it_ends_at_the_first_hole(system: System) -> None:
    pid, start = mapped(system, "16M")
    before = vmstat(system, "nr_anon_transparent_hugepages")
    system.write(SPLIT, f"{pid},0x1000,{start + 16 * HUGE:#x}")
    assert vmstat(system, "nr_anon_transparent_hugepages") == before


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *[(text, "EINVAL") for text in ("", "x", "2", "7,0x1", "/file", "/none,0x0,0x1", "2,0x0,0x1000")],
        ("9999,0x0,0x1000", "ESRCH"),
    ],
)
def test_errors(system: System, text: str, error: str) -> None:
    with pytest.raises(OSError, match=error):
        system.write(SPLIT, text)


def test_a_file_without_huge_pages(system: System) -> None:
    system.command("create /mnt/file 1M")
    system.command("read_file /mnt/file")
    system.write(SPLIT, "/mnt/file,0x0,0x100")
    assert vmstat(system, "thp_split_page") == 0


@pytest.mark.parametrize(("size", "pages"), [(4096, 1), (16384, 4), (65536, 16), (1 << 20, 256)])
def test_faults_map_as_much_as_is_wanted(system: System, size: int, pages: int) -> None:
    system.command("create /mnt/file 1M")
    system.command("read_file /mnt/file")
    system.write(AROUND, str(size))
    start = int(system.command("m = mmap p 1M file=/mnt/file").split("addr=")[1].split()[0], 16) >> 12
    windows, at = 0, start
    while at < start + 256:
        windows, at = windows + 1, max(at & -pages, start) + pages
    assert f"faults={windows} " in system.command("access p m 1M r")
    system.check()


@pytest.mark.parametrize(
    ("text", "bytes_"), [("0", 4096), ("4097", 4096), ("0x5000", 16384), ("2097152\n", 2097152), ("65535", 32768)]
)
def test_the_size_is_a_power_of_two(system: System, text: str, bytes_: int) -> None:
    assert system.read(AROUND) == b"65536\n"
    system.write(AROUND, text)
    assert system.read(AROUND) == b"%d\n" % bytes_


def test_at_most_a_page_table(system: System) -> None:
    with pytest.raises(OSError, match=r"EINVAL.*2097153 is out of range \.\.2097152"):
        system.write(AROUND, "2097153")
    assert System.boot(machine="highmem", seed=1).read(AROUND) == b"65536\n"
