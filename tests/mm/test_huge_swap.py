"""Anonymous huge pages on their way to swap (mm.pageout, mm.swapfile): whole where a cluster is free, or split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kmemd.machine import Machine, SwapDevice
from tests.mm.files_fixture import Box

HUGE = 512


def box(path: str = "/dev/nvme0n1", size: int = 256 << 20) -> Box:
    """A machine with one swap area."""
    return Box(replace(Machine.load("default"), swap=(SwapDevice(path, size),)))


def mapping(found: Box, mib: int, name: str = "t") -> tuple[str, int]:
    """A process with a mapping that has room for so many MiB of huge pages: its pid, and where the first can be."""
    pid = found.run(f"{name} = spawn {name}")["pid"]
    reply = found.run(f"{name}m = mmap {pid} {mib + 2}M prot=rw")
    start = -(-int(reply["addr"], 16) // (2 << 20)) * (2 << 20)
    found.run(f"madvise {pid} {start:#x} {mib}M MADV_HUGEPAGE")
    return pid, start


def huge(found: Box, mib: int = 8) -> tuple[str, str]:
    """A process with so many MiB of huge pages: pid and range of these."""
    pid, start = mapping(found, mib)
    found.run(f"access {pid} {start:#x} {mib}M w")
    assert found.meminfo("AnonHugePages") == mib * 256
    return pid, f"{start:#x} {mib}M"


def slots(found: Box, pid: str, where: str) -> np.ndarray:
    """The slots that a range of huge pages is in, in order of address."""
    start, size = where.split()
    mm = found.kernel.tasks.find(int(pid)).mm
    at = [found.kernel.mmu.slot(mm.id, (int(start, 16) >> 12) + k) for k in range(int(size[:-1]) * 256)]
    words = found.kernel.mmu.words[at]
    return (~words >> np.uint64(9) & np.uint64((1 << 50) - 1)).astype(np.int64)


def paged_out(found: Box, mib: int = 8) -> tuple[str, str]:
    """``huge``, paged out."""
    pid, where = huge(found, mib)
    found.run(f"madvise {pid} {where} MADV_PAGEOUT", "sleep 1")
    return pid, where


def test_a_huge_page_goes_whole_to_a_disk_that_does_not_seek() -> None:
    found = box()
    pid, where = paged_out(found)
    assert found.vmstat("thp_swpout", "thp_swpout_fallback", "thp_split_page", "thp_split_pmd") == [4, 0, 0, 4]
    assert found.vmstat("pswpout", "nr_swapcached") == [2048, 2048]
    taken = slots(found, pid, where).reshape(-1, HUGE)
    assert (taken[:, 0] % HUGE == 0).all()
    assert (np.diff(taken, axis=1) == 1).all()
    reply = found.run(f"access {pid} {where} r")
    assert int(reply["faults"]) == 2048, "they come back one by one"
    assert found.meminfo("AnonHugePages") == 0
    found.run(f"exit {pid}", "sleep 1")
    assert found.kernel.swap.areas[0].inuse_pages <= 128


@pytest.mark.parametrize("path", ["/dev/vdb", "/dev/sda2"])
def test_a_disk_that_seeks_has_no_clusters(path: str) -> None:
    found = box(path)
    paged_out(found)
    assert found.vmstat("thp_swpout", "thp_swpout_fallback", "thp_split_page") == [0, 4, 4]
    assert found.vmstat("pswpout") == [2048]


def test_without_a_free_cluster_it_is_split() -> None:
    found = box(size=5 << 20)
    paged_out(found)
    assert found.vmstat("thp_swpout", "thp_swpout_fallback") == [1, 3], "the first and last cluster are not free"
    assert found.vmstat("pswpout")[0] <= 5 * 256 - 1


def test_a_page_of_which_a_part_is_unmapped_is_split_first() -> None:
    found = box()
    pid, where = huge(found, 2)
    start = int(where.split()[0], 16)
    mm = found.kernel.tasks.find(int(pid)).mm
    head = int(found.kernel.mmu.words[found.kernel.mmu.entry_slot(mm.id, start >> 12, 1)]) >> 12 & (1 << 40) - 1
    found.run(f"munmap {pid} {start:#x} 4K")
    assert found.kernel.user.pageout.reclaim_pages(np.array([head])) == 0, "all of it is on its way"
    assert found.vmstat("thp_swpout", "thp_swpout_fallback", "thp_split_page") == [0, 0, 1]


def test_zswap_takes_no_huge_page() -> None:
    found = box()
    found.system.write("/sys/module/zswap/parameters/enabled", "1")
    paged_out(found)
    assert found.vmstat("thp_swpout", "zswpout", "pswpout") == [4, 0, 2048]
    assert int(found.system.read("/sys/kernel/debug/frontswap/failed_stores")) == 4


def test_a_group_without_room_in_swap_has_it_split() -> None:
    found = box()
    found.system.write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
    found.system.mkdir("/sys/fs/cgroup/a")
    pid, start = mapping(found, 4)
    found.system.write("/sys/fs/cgroup/a/cgroup.procs", pid)
    found.system.write("/sys/fs/cgroup/a/memory.swap.max", "1M")
    found.run(f"access {pid} {start:#x} 4M w", f"madvise {pid} {start:#x} 4M MADV_PAGEOUT")
    assert found.vmstat("thp_swpout", "thp_swpout_fallback") == [0, 2]
    assert int(found.system.read("/sys/fs/cgroup/a/memory.swap.current")) == 1 << 20


def test_reclaim_takes_huge_pages_whole_too() -> None:
    found = box()
    huge(found, 64)
    found.run("p2 = spawn hog", "m2 = mmap p2 1900M prot=rw", "madvise p2 m2 1900M MADV_NOHUGEPAGE")
    found.run("access p2 m2 1900M w")
    assert found.vmstat("thp_swpout")[0] > 0
    assert found.vmstat("thp_swpout_fallback")[0] == 0


def test_bytes_survive() -> None:
    found = box()
    pid, where = huge(found, 2)
    at = int(where.split()[0], 16) + 8192
    found.run(f"write {pid} {at:#x} hello", f"madvise {pid} {where} MADV_PAGEOUT", "sleep 1")
    assert found.vmstat("thp_swpout") == [1]
    assert "hello" in found.system.command(f"read {pid} {at:#x} 5")
