"""Memory short and disks broken at the same time: errors as Linux gives them, and nothing lost without one."""

import errno
from pathlib import Path

import pytest

from kmemd.machine import Machine
from tests.mm.files_fixture import Box

TOML = """
arch = "x86_64"
cpus = 2
[[node]]
memory = "96M"
[[swap]]
path = "/dev/vdb"
size = "32M"
"""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """A machine of 96 MiB with 32 MiB of swap."""
    file = tmp_path / "small.toml"
    file.write_text(TOML)
    return Box(Machine.load(file))


def tagged(box: Box, pages: int, step: int) -> tuple[str, int]:
    """A process with so many written pages, every ``step``th with a word of its own: its pid and address."""
    pid = box.run("p = spawn holder")["pid"]
    address = int(box.run(f"m = mmap p {pages * 4}K")["addr"], 16)
    box.run(f"madvise p m {pages * 4}K MADV_NOHUGEPAGE", f"access p m {pages * 4}K w")
    for page in range(0, pages, step):
        box.system.command(f"write p m+{page * 4}K tag{page}")
    return pid, address


def lost(box: Box, pages: int, step: int) -> list[int]:
    """Tagged pages that hold something else."""
    found = [(page, box.run(f"read p m+{page * 4}K")["data"]) for page in range(0, pages, step)]
    return [page for page, data in found if data != f"tag{page}"]


def swapped(box: Box) -> int:
    """KiB of the device that are in use."""
    return int(box.system.read("/proc/swaps").decode().split()[-2])


def out(kib: int) -> tuple[str, ...]:
    """Lines that bring memory to the device and out of the swap cache: clean pages are dropped."""
    away = f"madvise p m {kib}K MADV_PAGEOUT"
    return away, "sleep 1", f"access p m {kib}K r", away


def kmsg(box: Box) -> str:
    return box.system.read("/dev/kmsg").decode()


def test_swapoff_under_pressure_brings_everything_back(box: Box) -> None:
    tagged(box, 12_000, 1500)
    box.run("create /mnt/f 40M", "read_file /mnt/f", "madvise p m 20M MADV_PAGEOUT")
    assert swapped(box) > 0
    assert int(box.run("swapoff /dev/vdb")["pages"]) > 0
    assert lost(box, 12_000, 1500) == []
    assert box.vmstat("oom_kill") == [0]


def test_swapoff_that_nobody_may_commit_to_fails_and_the_area_stays(box: Box) -> None:
    tagged(box, 14_000, 1500)
    box.run("madvise p m 20M MADV_PAGEOUT")
    used = swapped(box)
    box.system.write("/proc/sys/vm/overcommit_ratio", "10")
    box.system.write("/proc/sys/vm/overcommit_memory", "2")
    assert box.errno("swapoff /dev/vdb") == errno.ENOMEM
    assert swapped(box) == used > 0
    assert lost(box, 14_000, 1500) == []


def test_when_swap_is_full_the_largest_dies_and_others_keep_their_pages(box: Box) -> None:
    tagged(box, 6_000, 700)
    box.run("q = spawn greedy", "n = mmap q 100M")
    assert box.errno("access q n 100M w") == errno.EFAULT
    assert box.vmstat("oom_kill") == [1]
    assert "Killed process" in kmsg(box)
    assert lost(box, 6_000, 700) == []


def test_pages_that_the_swap_disk_does_not_take_stay_in_memory(box: Box) -> None:
    tagged(box, 4_000, 500)
    box.run("disk_error vdb write", "madvise p m 16000K MADV_PAGEOUT", "sleep 1")
    assert "Write-error on swap-device (254:16:" in kmsg(box)
    box.run("disk_error vdb read")
    assert lost(box, 4_000, 500) == []


def test_a_page_that_cannot_be_read_from_swap_kills_who_needs_it(box: Box) -> None:
    tagged(box, 4_000, 500)
    box.run(*out(16_000), "disk_error vdb read")
    assert box.errno("access p m 16000K r") == errno.EFAULT
    assert "Read-error on swap-device (254:16:" in kmsg(box)


def test_what_reclaim_could_not_write_is_told_to_each_opener_once(box: Box) -> None:
    box.run("a = spawn a", "b = spawn b", "create /mnt/f", "write_file /mnt/f n=8M", "disk_error ram0 write")
    box.run("p = spawn hog", "m = mmap p 80M", "access p m 80M w", "sleep 40", "disk_error ram0 off")
    assert box.run("fincore /mnt/f")["dirty"] == "0"
    assert box.errno("fsync /mnt/f") == errno.EIO
    box.run("fsync /mnt/f")


def test_a_thin_disk_that_is_full_says_so(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=1M", "disk_error ram0 write error=ENOSPC")
    assert box.errno("fsync /mnt/f") == errno.ENOSPC
    assert "critical space allocation error, dev ram0" in kmsg(box)
    assert box.errno("disk_error ram0 write error=ENOTTY") == errno.EINVAL


def test_willneed_twice_reads_once(box: Box) -> None:
    tagged(box, 3_000, 400)
    box.run(*out(12_000))
    assert box.meminfo("SwapCached") == 0
    before = box.vmstat("pswpin")[0]
    box.run("madvise p m 12000K MADV_WILLNEED")
    box.run("madvise p m 12000K MADV_WILLNEED")
    assert box.vmstat("pswpin") == [before + 3_000]
    assert box.meminfo("SwapCached") == 3_000
