"""Swap devices that fail, are counted, run full, and are turned off under pressure (mm.page_io, swapoff)."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from kmemd.errors import KernelError
from kmemd.machine import Machine, SwapDevice
from kmemd.mm.swapoff import SwapOff
from kmemd.steps import finish
from tests.mm.files_fixture import Box

PAGES = 256


@pytest.fixture
def box() -> Box:
    return Box()


def written(box: Box, size: str = "1M") -> str:
    """A process with a mapping m of written pages; its pid."""
    pid = box.run("p = spawn t")["pid"]
    box.run(f"m = mmap p {size} prot=rw", f"madvise p m {size} MADV_NOHUGEPAGE", f"access p m {size} w")
    return pid


def swapped_out(box: Box, size: str = "1M") -> str:
    """The pages are in swap and in no cache."""
    pid = written(box, size)
    box.run(f"madvise p m {size} MADV_PAGEOUT", "sleep 1", f"access p m {size} r", f"madvise p m {size} MADV_PAGEOUT")
    assert box.vmstat("nr_swapcached") == [0]
    return pid


def said(box: Box, text: str) -> int:
    return sum(text in record.text for record in box.kernel.printk.since(0))


def rollup(box: Box, pid: str, name: str) -> int:
    """A line of /proc/PID/smaps_rollup, in pages."""
    lines = box.system.read(f"/proc/{pid}/smaps_rollup").decode().splitlines()[1:]
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) // 4


def figures(box: Box, name: str = "vdb") -> list[int]:
    """The counters of a disk in /proc/diskstats."""
    rows = [line.split() for line in box.system.read("/proc/diskstats").decode().splitlines()]
    return next([int(word) for word in row[3:]] for row in rows if row[2] == name)


def test_requests_are_counted_at_the_disk(box: Box) -> None:
    swapped_out(box)
    reads, _, sectors_read, _, writes, merged, sectors, _ = figures(box)[:8]
    assert (reads, sectors_read) == (0, 0)
    assert writes + merged == PAGES
    assert sectors == 8 * PAGES
    box.run("access p m 1M r")
    assert figures(box)[3] > 0, "ms that were waited for"
    assert figures(box)[2] == 8 * PAGES
    stat = [int(word) for word in box.system.read("/sys/block/vdb/stat").split()]
    assert stat == figures(box)


def test_requests_of_a_swap_file_are_its_disks(box: Box) -> None:
    box.run("swapoff /dev/vdb", "mount /dev/vdc /mnt type=ext2", "create /mnt/swap 8M", "mkswap /mnt/swap", "sync")
    box.run("swapon /mnt/swap")
    before = figures(box, "vdc")
    swapped_out(box)
    after = figures(box, "vdc")
    assert 8 * PAGES <= after[6] - before[6] <= 8 * (PAGES + 2), "the file system writes its inode, too"
    assert figures(box, "vdb")[6] == 0


def test_a_page_that_cannot_be_written_stays_dirty(box: Box) -> None:
    written(box)
    box.run("write p m kept", "disk_error vdb write", "madvise p m 1M MADV_PAGEOUT", "sleep 1")
    assert said(box, "Write-error on swap-device (254:16:") == 10, "the others are suppressed"
    assert box.vmstat("nr_swapcached", "nr_writeback") == [PAGES, 0]
    assert box.run("read p m 4")["data"] == "kept"
    box.run("disk_error vdb off", "madvise p m 1M MADV_PAGEOUT", "sleep 1", "madvise p m 1M MADV_PAGEOUT")
    assert box.run("read p m 4")["data"] == "kept"
    assert int(box.run("access p m 1M r")["major"]) >= 0


def test_a_page_that_cannot_be_read_is_a_bus_error(box: Box) -> None:
    pid = swapped_out(box)
    box.run("sigaction p SIGBUS catch", "disk_error vdb read")
    reply = box.run("access p m 4K r")
    assert (reply["signal"], reply["code"]) == ("7", "2")
    assert said(box, "Read-error on swap-device (254:16:")
    assert said(box, "I/O error, dev vdb, sector")
    assert rollup(box, pid, "Swap") == PAGES, "nothing is lost but what cannot be read"
    box.run("disk_error vdb off", "madvise p m 1M MADV_DONTNEED", "sleep 1")
    assert box.vmstat("nr_swapcached") == [0]


def test_swapoff_leaves_what_it_cannot_read_to_who_touches_it(box: Box) -> None:
    pid = swapped_out(box)
    box.run("sigaction p SIGBUS catch", "disk_error vdb read sectors=0-1024", "swapoff /dev/vdb")
    assert rollup(box, pid, "Swap") == 0
    assert rollup(box, pid, "Anonymous") > PAGES // 2, "what could be read is back"
    assert box.system.read("/proc/swaps").count(b"\n") == 1
    reply = box.run("access p m 1M r")
    assert reply.get("signal") == "7"
    box.run("q = fork p", "exit q", "madvise p m 1M MADV_DONTNEED", "access p m 1M w", "exit p")


def test_a_tmpfs_page_that_cannot_be_read_is_eio(box: Box) -> None:
    box.run("create /f 64K", "write_file /f n=64K", "p = spawn t", "m = mmap p 64K prot=rw file=/f flags=MAP_SHARED")
    box.run("access p m 64K r", "madvise p m 64K MADV_PAGEOUT", "sleep 1", "access p m 64K r")
    box.run("madvise p m 64K MADV_PAGEOUT", "sleep 1")
    if not int(box.run("fincore /f").get("swapped", "0")):
        box.run("madvise p m 64K MADV_PAGEOUT", "sleep 1", "madvise p m 64K MADV_PAGEOUT")
    assert int(box.run("fincore /f")["swapped"]) == 16
    box.run("sigaction p SIGBUS catch", "disk_error vdb read")
    if box.vmstat("nr_swapcached") == [0]:
        assert box.errno("read_file /f") == errno.EIO
        assert box.run("access p m 4K r")["signal"] == "7"
    box.run("disk_error vdb off", "truncate /f 0", "write_file /f n=64K", "access p m 64K r")


def test_swapoff_without_memory_fails_and_the_area_stays_on() -> None:
    swap = (SwapDevice("/dev/vdb", 4 << 30),)
    box = Box(dataclasses.replace(Machine.load("default"), swap=swap))
    box.system.write("/proc/sys/vm/overcommit_memory", "2\n")
    pid = box.run("p = spawn t")["pid"]
    box.run(
        "m = mmap p 2G prot=rw", "madvise p m 2G MADV_NOHUGEPAGE", "access p m 16M w", "madvise p m 16M MADV_PAGEOUT"
    )
    assert box.errno("swapoff /dev/vdb") == errno.ENOMEM
    assert "/dev/vdb" in box.system.read("/proc/swaps").decode()
    assert rollup(box, pid, "Swap") == 4096
    box.run("access p m 16M r")


def test_swapoff_that_is_left_alone_in_its_midst_changes_nothing(box: Box) -> None:
    swapped_out(box, "4M")
    steps = box.kernel.user.swap_off.swapoff("/dev/vdb")
    for _ in range(5):
        next(steps)
    steps.close()
    box.system.check()
    assert "/dev/vdb" in box.system.read("/proc/swaps").decode()
    box.run("access p m 4M r", "swapoff /dev/vdb")


def test_swapoff_goes_in_slices(box: Box) -> None:
    swapped_out(box, "8M")
    steps = box.kernel.user.swap_off.swapoff("/dev/vdb")
    slices = sum(1 for _ in steps)
    assert slices >= 2048 // 64
    box.system.check()


def test_an_area_that_goes_off_leaves_nothing_to_swap_to() -> None:
    devices = (SwapDevice("/dev/vdb", 16 << 20, priority=5), SwapDevice("/dev/vdc", 4 << 20, priority=1))
    box = Box(dataclasses.replace(Machine.load("default"), swap=devices))
    swapped_out(box, "8M")
    swap = box.kernel.swap
    left, other = swap.areas
    assert (left.path, other.inuse_pages) == ("/dev/vdb", 0)
    steps = box.kernel.user.swap_off.swapoff("/dev/vdb")
    next(steps)
    assert swap.nr_swap_pages == other.pages - left.inuse_pages < 0, "as Linux counts"
    assert swap.total_swap_pages == other.pages
    assert not box.kernel.vmscan.reclaim.balance.can_reclaim_anon(0), "so no anonymous page is looked at"
    assert (box.meminfo("SwapTotal"), box.meminfo("SwapFree")) == (other.pages + left.inuse_pages, other.pages)
    box.system.check()
    finish(steps)
    assert swap.nr_swap_pages == swap.total_swap_pages == other.pages


def state_after_swapoff() -> list[bytes]:
    """What can be seen after a swapoff of pages that are in the cache, or shared, or locked, or nowhere but in swap."""
    box = Box()
    pid = swapped_out(box, "4M")
    box.run("access p m 1M w", "q = fork p", "madvise p m 2M MADV_PAGEOUT", "access q m+1536K 1M r pattern=random")
    box.run("access p m+3M 256K r", "mprotect p m+64K 128K PROT_READ", "mlock p m+768K 64K")
    reply = box.run("swapoff /dev/vdb")
    paths = [f"/proc/{pid}/{name}" for name in ("smaps", "status", "stat")]
    paths += [f"/proc/{name}" for name in ("vmstat", "meminfo", "zoneinfo", "kpageflags", "uptime", "diskstats")]
    mmu = box.kernel.user.mmu
    rows = [row for mm in box.kernel.user.mms.living.values() for row in mmu.extents(mm.id, 0, 1 << 35).tolist()]
    entries = b"".join(mmu.words[slot : slot + count].tobytes() for _, count, slot, level in rows if not level)
    assert len(entries) >= 8 * 1024
    return [repr(reply).encode(), entries, *(box.system.read(path) for path in paths)]


def test_swapoff_in_the_core_is_swapoff_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = state_after_swapoff()
    monkeypatch.setattr(SwapOff, "_unuse_cached_ptes", lambda *_: 0)
    assert state_after_swapoff() == fast


def test_swapoff_without_room_looks_at_no_anonymous_page() -> None:
    box = Box("default", "mem=256M")
    box.run("p = spawn hog", "m = mmap p 300M", "access p m 300M w")
    scanned, kills = box.vmstat("pgscan_direct", "oom_kill")
    assert box.errno("swapoff /dev/vdb") == errno.EINTR
    assert box.vmstat("pgscan_direct", "oom_kill") == [scanned, kills + 1]


def test_full_swap_gives_cached_slots_back() -> None:
    box = Box(dataclasses.replace(Machine.load("default"), swap=(SwapDevice("/dev/vdb", 4 << 20),)))
    written(box, "8M")
    box.run("madvise p m 8M MADV_PAGEOUT", "sleep 1")
    assert box.meminfo("SwapFree") == 0
    box.run("access p m 8M r")
    cached = box.vmstat("nr_swapcached")[0]
    assert cached < 512, "more than half is in use: who reads a page back takes its slot away"
    assert box.meminfo("SwapFree") > 0
    box.run("exit p", "sleep 1", "swapoff /dev/vdb")


def test_a_signal_ends_swapoff(box: Box) -> None:
    swapped_out(box, "4M")
    killed: list[int] = []
    swap_off = box.kernel.user.swap_off
    swap_off._interrupted = lambda: bool(killed)
    steps = swap_off.swapoff("/dev/vdb")
    for _ in range(5):
        next(steps)
    killed.append(9)
    with pytest.raises(KernelError) as error:
        finish(steps)
    assert error.value.errno == errno.EINTR
    box.system.check()
    assert "/dev/vdb" in box.system.read("/proc/swaps").decode()
    box.run("access p m 4M r")
