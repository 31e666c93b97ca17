"""Swap through the machine: page-out, swap-in, readahead, swapoff (mm.pageout, swap_state, swapoff)."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from kmemd.machine import Machine, SwapDevice
from tests.mm.files_fixture import Box


@pytest.fixture
def box() -> Box:
    return Box()


def machine(*swap: SwapDevice) -> Machine:
    return dataclasses.replace(Machine.load("default"), swap=swap)


def swapped_out(box: Box, size: str = "8M") -> str:
    """A process with a mapping m of written pages, which are in swap and in no cache; its pid."""
    pid = box.run("p = spawn t")["pid"]
    box.run(f"m = mmap p {size} prot=rw", f"madvise p m {size} MADV_NOHUGEPAGE", f"access p m {size} w")
    box.run(f"madvise p m {size} MADV_PAGEOUT", "sleep 1", f"access p m {size} r", f"madvise p m {size} MADV_PAGEOUT")
    return pid


def test_pages_that_are_written_out_stay_in_the_swap_cache(box: Box) -> None:
    """The captured 64 MiB: written, paged out, half read back."""
    pid = box.run("p = spawn t")["pid"]
    box.run("m = mmap p 64M prot=rw", "madvise p m 64M MADV_NOHUGEPAGE", "access p m 64M w")
    box.run("madvise p m 64M MADV_PAGEOUT")
    assert box.vmstat("pswpin", "pswpout") == [0, 16384]
    assert "VmSwap:\t   65536 kB" in box.system.read(f"/proc/{pid}/status").decode()
    reply = box.run("access p m 32M r")
    assert (reply["faults"], reply["major"]) == ("8192", "0")
    assert box.vmstat("pswpin", "pgmajfault", "nr_swapcached") == [0, 0, 16384]
    rollup = box.system.read(f"/proc/{pid}/smaps_rollup").decode()
    assert "Private_Clean:     32768 kB" in rollup
    assert "Swap:              32768 kB" in rollup
    assert box.meminfo("SwapTotal") - box.meminfo("SwapFree") == 16384 + 32, "32 are the CPU's, as captured"
    box.run("exit p")
    assert box.meminfo("SwapTotal") - box.meminfo("SwapFree") == 96, "64 more came back to it, as captured"


def test_a_disk_that_discards_is_told_of_the_area(box: Box) -> None:
    box.run("swapoff /dev/vdb", "swapon /dev/vdb discard=once")
    row = next(line for line in box.system.read("/proc/diskstats").decode().splitlines() if " vdb " in line).split()
    assert row[14:17] == ["1", "0", str(262143 * 8)]
    assert box.errno("swapon /dev/vdb discard=never") == errno.EINVAL


def test_writes_are_under_way_until_the_disk_had_its_time(box: Box) -> None:
    box.run("p = spawn t", "m = mmap p 8M prot=rw", "madvise p m 8M MADV_NOHUGEPAGE", "access p m 8M w")
    box.system.command("madvise p m 8M MADV_PAGEOUT")
    assert box.vmstat("nr_writeback")[0] > 0
    box.run("sleep 1")
    assert box.vmstat("nr_writeback", "nr_written", "pgrotated")[:2] == [0, 2048]


def test_a_clean_page_of_the_swap_cache_is_dropped_and_read_again(box: Box) -> None:
    swapped_out(box)
    assert box.vmstat("nr_swapcached", "pswpin") == [0, 0]
    reply = box.run("access p m 8M r")
    assert box.vmstat("pswpin", "nr_swapcached") == [2048, 2048]
    assert int(reply["major"]) == box.vmstat("pgmajfault")[0] < 300
    ahead, hits = box.vmstat("swap_ra", "swap_ra_hit")
    assert ahead == hits == 2048 - int(reply["major"])


def test_page_cluster_says_how_much_is_read_at_once(box: Box) -> None:
    swapped_out(box)
    box.system.write("/proc/sys/vm/page-cluster", "0\n")
    assert box.run("access p m 4M r")["major"] == "1024"
    assert box.vmstat("swap_ra") == [0]


def test_a_write_takes_the_slot_away(box: Box) -> None:
    swapped_out(box)
    used = box.meminfo("SwapTotal") - box.meminfo("SwapFree")
    box.run("access p m 4M w")
    assert box.vmstat("nr_swapcached")[0] < 8, "what was read ahead of the last page"
    assert used - 1024 <= box.meminfo("SwapTotal") - box.meminfo("SwapFree") <= used - 1024 + 64


def test_children_share_what_is_in_swap_until_they_write(box: Box) -> None:
    pid = swapped_out(box, "1M")
    child = box.run("q = fork p")["pid"]
    for task in (pid, child):
        assert "SwapPss:             512 kB" in box.system.read(f"/proc/{task}/smaps_rollup").decode()
    box.run("access q m 1M w")
    free = box.vmstat("nr_anon_pages")[0]
    assert box.run("access p m 1M r")["major"] == "0", "the child's reading left the pages in the swap cache"
    assert box.vmstat("nr_anon_pages")[0] == free + 256
    box.run("exit p", "exit q")
    assert box.vmstat("nr_swapcached") == [0]


def test_a_page_that_nobody_shares_any_more_is_written_to_in_place(box: Box) -> None:
    swapped_out(box, "1M")
    box.run("q = fork p", "access p m 1M r")
    assert box.vmstat("nr_swapcached") == [256]
    box.run("exit q")
    before = box.vmstat("nr_swapcached", "pgalloc_dma32")
    box.run("access p m 1M w")
    after = box.vmstat("nr_swapcached", "pgalloc_dma32")
    assert [before[0], *after] == [256, 0, before[1]]


def test_what_is_unmapped_leaves_swap(box: Box) -> None:
    swapped_out(box)
    box.run("madvise p m 4M MADV_DONTNEED", "exit p", "sleep 1")
    assert box.vmstat("nr_swapcached") == [0]
    assert box.meminfo("SwapTotal") - box.meminfo("SwapFree") <= 128, "what CPUs keep at hand"


def test_content_survives_swap(box: Box) -> None:
    pid = box.run("p = spawn t", "m = mmap p 1M prot=rw", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w")
    assert pid
    task = box.kernel.tasks.find(box.kernel.handles["p"].pid)
    vpn = box.kernel.handles["m"].address >> 12
    pfn = int(box.kernel.mmu.words[box.kernel.mmu.slot(task.mm.id, vpn)]) >> 12 & (1 << 40) - 1
    box.kernel.contents.write(pfn, 10, b"swap me")
    box.run(
        "madvise p m 1M MADV_PAGEOUT",
        "sleep 1",
        "access p m 1M r",
        "madvise p m 1M MADV_PAGEOUT",
        "a = alloc_pages n=300",
    )
    box.run("access p m 4K r")
    again = int(box.kernel.mmu.words[box.kernel.mmu.slot(task.mm.id, vpn)]) >> 12 & (1 << 40) - 1
    assert box.kernel.contents.read(again, 10, 7) == b"swap me"


def test_willneed_reads_into_the_swap_cache(box: Box) -> None:
    swapped_out(box)
    box.run("madvise p m 2M MADV_WILLNEED")
    assert box.vmstat("pswpin", "nr_swapcached") == [512, 512]
    assert box.run("access p m 2M r")["major"] == "0"


# -- tmpfs -----------------------------------------------------------------------------------------------


def test_shared_memory_goes_to_swap_and_comes_back(box: Box) -> None:
    box.run("p = spawn t", "s = mmap p 8M prot=rw flags=MAP_SHARED|MAP_ANONYMOUS", "access p s 8M w")
    shmem = box.meminfo("Shmem")
    box.run("madvise p s 8M MADV_PAGEOUT", "sleep 1")
    assert box.meminfo("Shmem") == shmem - 2048
    assert box.vmstat("pswpout", "nr_swapcached") == [2048, 2048]
    assert box.run("access p s 4M r")["major"] == "0"
    assert box.meminfo("Shmem") == shmem - 1024
    box.run("madvise p s+4M 2M MADV_REMOVE")
    assert box.vmstat("nr_swapcached") == [512]
    box.run("swapoff /dev/vdb")
    assert (box.meminfo("Shmem"), box.meminfo("SwapTotal")) == (shmem - 512, 0)
    box.run("exit p")


def test_a_tmpfs_file_is_read_back_by_read(box: Box) -> None:
    box.run("create /tmp/f", "write_file /tmp/f n=64K", "write_file /tmp/f offset=5000 data=there")
    box.run("p = spawn t", "f = mmap p 64K file=/tmp/f prot=rw flags=MAP_SHARED", "access p f 64K r")
    box.run("madvise p f 64K MADV_PAGEOUT", "sleep 1")
    assert box.run("fincore /tmp/f")["swapped"] == "16"
    assert box.run("read_file /tmp/f offset=5000 n=5")["data"] == b"there".hex()
    assert box.run("fincore /tmp/f")["swapped"] == "15"
    box.run("exit p", "unlink /tmp/f")


# -- files of a disk -------------------------------------------------------------------------------------


def test_pageout_drops_clean_pages_of_files_and_keeps_dirty_ones(box: Box) -> None:
    box.run("create /mnt/f 64K", "p = spawn t", "f = mmap p 64K file=/mnt/f prot=rw flags=MAP_SHARED")
    box.run("access p f 64K r", "access p f 16K w", "madvise p f 64K MADV_PAGEOUT")
    state = box.run("fincore /mnt/f")
    assert (state["pages"], state["dirty"]) == ("4", "4")
    assert box.run("access p f+32K 4K r")["major"] == "1"


# -- areas -----------------------------------------------------------------------------------------------


def test_swapoff_brings_everything_back(box: Box) -> None:
    pid = swapped_out(box)
    box.run("q = fork p", "access q m 1M w")
    assert box.run("swapoff /dev/vdb")["pages"] == str(2048 + 1792)
    assert box.meminfo("SwapTotal") == 0
    assert "Swap:                  0 kB" in box.system.read(f"/proc/{pid}/smaps_rollup").decode()
    assert box.system.read("/proc/swaps").decode().count("\n") == 1
    assert box.run("access p m 8M r")["major"] == "0"
    assert box.errno("swapoff /dev/vdb") == errno.EINVAL
    assert box.run("swapon /dev/vdb priority=7")["priority"] == "7"
    box.run("exit p", "exit q")


def test_commit_limit_follows_swap(box: Box) -> None:
    limit = box.meminfo("CommitLimit")
    box.run("swapoff /dev/vdb")
    assert box.meminfo("CommitLimit") == limit - 262143


def test_the_log_tells_of_areas(box: Box) -> None:
    box.run("swapoff /dev/vdb", "swapon /dev/vdb")
    line = "Adding 1048572k swap on /dev/vdb.  Priority:-2 extents:1 across:1048572k FS"
    assert line in box.system.read("/dev/kmsg").decode()


def test_a_file_can_be_swapped_to_once_it_has_a_header(box: Box) -> None:
    box.run("create /mnt/s 8M")
    assert box.errno("swapon /mnt/s") == errno.EINVAL
    assert "Unable to find swap-space signature" in box.system.read("/dev/kmsg").decode()
    assert box.run("mkswap /mnt/s", "swapon /mnt/s priority=1")["size"] == str(2047 << 12)
    assert "/mnt/s                                  file\t\t8188\t\t0\t\t1\n" in box.system.read("/proc/swaps").decode()
    assert box.errno("swapon /mnt/s") == errno.EBUSY
    assert box.errno("unlink /mnt/s") == errno.EPERM
    assert box.errno("truncate /mnt/s 0") == errno.ETXTBSY
    assert box.errno("write_file /mnt/s n=1") == errno.ETXTBSY
    swapped_out(box, "1M")
    assert [area.inuse_pages > 0 for area in box.kernel.swap.areas] == [False, True]
    box.run("swapoff /mnt/s", "unlink /mnt/s", "exit p")


def test_a_header_that_promises_too_much_is_refused(box: Box) -> None:
    box.run("create /mnt/s 1M", "mkswap /mnt/s", "truncate /mnt/s 512K")
    assert box.errno("swapon /mnt/s") == errno.EINVAL
    assert box.errno("mkswap /bin/none") == errno.ENOENT
    box.run("create /tmp/s 1M", "mkswap /tmp/s")
    assert box.errno("swapon /tmp/s") == errno.EINVAL
    assert box.errno("swapon /dev/none") == errno.ENOENT


def test_full_swap_keeps_pages_and_activates_them() -> None:
    box = Box(machine(SwapDevice("/dev/vdb", 1 << 20)))
    box.run("p = spawn t", "m = mmap p 2M prot=rw", "madvise p m 2M MADV_NOHUGEPAGE", "access p m 2M w")
    box.run("madvise p m 2M MADV_PAGEOUT", "sleep 1")
    assert box.vmstat("pswpout", "pgactivate") == [255, 257]
    assert box.meminfo("SwapFree") == 0
    box.run("access p m 2M r", "exit p", "sleep 1")
    assert box.meminfo("SwapFree") == 255


def test_a_device_that_does_not_seek_reads_around_the_address() -> None:
    box = Box(machine(SwapDevice("/dev/nvme0n1", 1 << 28)))
    swapped_out(box, "4M")
    reply = box.run("access p m 4M r")
    assert int(reply["major"]) < 200
    assert box.vmstat("pswpin") == [1024]
    box.run("exit p", "swapoff /dev/nvme0n1", "swapon /dev/nvme0n1")
    assert "k SSFS" in box.system.read("/dev/kmsg").decode()


def test_a_device_with_rw_page_is_done_at_once() -> None:
    box = Box(machine(SwapDevice("/dev/zram0", 1 << 28)))
    free = box.vmstat("nr_anon_pages")[0]
    box.run("p = spawn t", "m = mmap p 4M prot=rw", "madvise p m 4M MADV_NOHUGEPAGE", "access p m 4M w")
    box.run("madvise p m 4M MADV_PAGEOUT")
    assert box.vmstat("nr_swapcached", "nr_writeback", "pswpout") == [0, 0, 1024]
    assert box.vmstat("nr_anon_pages")[0] <= free + 8
    reply = box.run("access p m 4M r")
    assert reply["major"] == "1024"
    assert box.vmstat("nr_swapcached", "swap_ra") == [0, 0]
    box.run("exit p")


def test_only_root_changes_areas(box: Box) -> None:
    pid = box.run("p = spawn t")["pid"]
    box.kernel.tasks.find(int(pid)).uid = 1000
    assert box.errno("swapoff /dev/vdb pid=p") == errno.EPERM
    assert box.errno("swapon /dev/vdb pid=p") == errno.EPERM
