"""Write-back: flusher threads, throttled writers, sync, errors of disks, names and inodes, the buffer cache."""

import errno
from itertools import pairwise
from pathlib import Path

import pytest

from kmemd.machine import Machine
from kmemd.mm.bdi import BANDWIDTH_PERIOD, BdiWriteback, Completions, Share
from kmemd.mm.clock import HZ
from kmemd.mm.dirty_throttle import Control, dirty_poll_interval, max_pause, polynomial, position_ratio
from kmemd.mm.errseq import errseq_check_and_advance, errseq_sample, errseq_set
from kmemd.mm.ext2 import DATA_PER_GROUP, OVERHEAD, Ext2, Runs, pointer_blocks
from tests.mm.files_fixture import Box


@pytest.fixture
def box() -> Box:
    return Box()


def text(box: Box, path: str) -> str:
    return box.system.read(path).decode()


def advance(box: Box, seconds: float) -> None:
    box.system.advance(seconds)
    box.system.check()


def kmsg(box: Box) -> str:
    return text(box, "/dev/kmsg")


def debug(box: Box, name: str) -> int:
    rows = dict(line.split(":") for line in text(box, "/sys/kernel/debug/bdi/1:0/stats").splitlines())
    return int(rows[name].split()[0], 16 if name == "state" else 10)


# -- the flusher ---------------------------------------------------------------------------------------------


def test_old_data_is_written_after_it_expired_and_by_no_caller(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=1M sync=1", "write_file /mnt/f n=1M")
    advance(box, 29)
    assert box.vmstat("nr_dirty")[0] >= 256
    advance(box, 7)
    assert box.vmstat("nr_dirty", "nr_writeback")[1] == 0
    assert box.run("fincore /mnt/f")["dirty"] == "0"
    assert box.vmstat("pgpgout")[0] >= 1024


def test_a_shorter_expiry_and_interval_write_sooner(box: Box) -> None:
    box.system.write("/proc/sys/vm/dirty_expire_centisecs", "100")
    box.system.write("/proc/sys/vm/dirty_writeback_centisecs", "50")
    box.run("create /mnt/f", "write_file /mnt/f n=1M sync=1", "write_file /mnt/f n=1M")
    advance(box, 0.9)
    assert box.run("fincore /mnt/f")["dirty"] == "256"
    advance(box, 1)
    assert box.run("fincore /mnt/f")["dirty"] == "0"


def test_without_an_interval_nothing_is_written_periodically(box: Box) -> None:
    box.system.write("/proc/sys/vm/dirty_writeback_centisecs", "0")
    box.run("create /mnt/f", "write_file /mnt/f n=1M")
    advance(box, 300)
    assert box.run("fincore /mnt/f")["dirty"] == "256"
    box.system.write("/proc/sys/vm/dirty_writeback_centisecs", "500")
    advance(box, 1)
    assert box.run("fincore /mnt/f")["dirty"] == "0", "another interval wakes the flushers"


def test_a_disk_that_has_written_nothing_yet_has_no_share_of_the_threshold(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=1M")
    assert debug(box, "BdiDirtyThresh") == 0
    advance(box, 4)
    assert box.run("fincore /mnt/f")["dirty"] == "256"
    advance(box, 2)
    assert box.run("fincore /mnt/f")["dirty"] == "0"
    assert debug(box, "BdiDirtyThresh") > 0


def test_above_the_background_threshold_the_flusher_begins_at_once(box: Box) -> None:
    box.system.write("/proc/sys/vm/dirty_background_bytes", str(4 << 20))
    box.run("create /mnt/f", "write_file /mnt/f n=16M")
    advance(box, 0.5)
    assert box.vmstat("nr_dirty")[0] <= 1024
    assert debug(box, "BdiWritten") >= 12 << 10


def test_pages_are_under_write_back_until_the_disk_is_done(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=8M", "sync_file_range /mnt/f flags=WRITE")
    assert box.vmstat("nr_writeback")[0] == 2048
    assert box.meminfo("Writeback") == 2048
    assert int(text(box, "/proc/diskstats").split("ram0")[1].split()[8]) == 8, "requests of 1 MiB"
    box.run("sync_file_range /mnt/f flags=WAIT_AFTER")
    assert box.vmstat("nr_writeback") == [0]


def test_the_flusher_takes_cpu_time_and_says_what_it_does(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=256M", "write_file /mnt/f n=256M")
    advance(box, 40)
    worker = box.kernel.user.block._worker()
    assert text(box, f"/proc/{worker.pid}/comm") == "kworker/u4:1-flush-1:0\n"
    assert worker.stime_ns > 0


def test_laptop_mode_writes_everything_soon_after_the_disk_was_used(box: Box) -> None:
    box.system.write("/proc/sys/vm/laptop_mode", "2")
    box.run("create /mnt/f", "create /mnt/g 64K", "write_file /mnt/f n=1M", "write_file /mnt/g n=4K sync=1")
    advance(box, 1)
    assert box.run("fincore /mnt/f")["dirty"] == "256"
    advance(box, 1.5)
    assert box.run("fincore /mnt/f")["dirty"] == "0"


def test_sync_writes_files_inodes_and_the_disks_own_blocks(box: Box) -> None:
    box.run("create /mnt/f", "create /mnt/g", "write_file /mnt/f n=1M", "write_file /mnt/g n=64K")
    before = box.vmstat("nr_written")[0]
    box.run("sync")
    assert box.vmstat("nr_written")[0] - before >= 256 + 16 + 2
    assert box.vmstat("nr_dirty", "nr_writeback") == [0, 0]
    assert debug(box, "b_dirty") == 0
    assert box.run("sync")["pages"] == "0"


def test_o_sync_waits_at_each_write(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=1M sync=1")
    assert box.run("fincore /mnt/f")["dirty"] == "0"
    assert box.vmstat("nr_writeback") == [0]


def test_truncating_waits_for_what_is_being_written(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=4M", "sync_file_range /mnt/f flags=WRITE", "truncate /mnt/f 0")
    assert box.vmstat("nr_writeback") == [0]
    box.run("write_file /mnt/f n=4M", "sync_file_range /mnt/f flags=WRITE", "unlink /mnt/f")
    assert box.vmstat("nr_writeback") == [0]


def test_what_is_written_comes_back_after_everything_was_dropped(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f offset=100K data=hello", "sync")
    advance(box, 1)
    box.kernel.lru.drain_all()
    box.system.write("/proc/sys/vm/drop_caches", "3")
    assert box.run("fincore /mnt/f")["pages"] == "0"
    assert box.run("read_file /mnt/f offset=100K n=5")["data"] == b"hello".hex()


# -- writers wait --------------------------------------------------------------------------------------------


def test_a_writer_goes_as_fast_as_the_disk_once_much_is_dirty(box: Box) -> None:
    box.system.write("/proc/sys/vm/dirty_background_bytes", str(8 << 20))
    box.system.write("/proc/sys/vm/dirty_bytes", str(32 << 20))
    box.run("create /mnt/f", "write_file /mnt/f n=8M")
    first = int(box.run("write_file /mnt/f offset=8M n=8M")["ns"])
    for part in range(2, 16):
        last = int(box.run(f"write_file /mnt/f offset={part * 8}M n=8M")["ns"])
        dirty, writeback, limit = box.vmstat("nr_dirty", "nr_writeback", "nr_dirty_threshold")
        assert dirty + writeback <= limit + 256
    disk_ns = 8 * (70_000 + 256 * 10_000)
    assert first < disk_ns / 4
    assert disk_ns / 2 < last < disk_ns * 2
    assert box.kernel.user.block.throttle.pauses > 0


def test_a_throttled_writer_sees_swap_being_written(tmp_path: Path) -> None:
    """Pages on their way to swap are part of what is being written: they arrive while the writer waits for fewer."""
    file = tmp_path / "small.toml"
    file.write_text('cpus = 2\n[[node]]\nmemory = "80M"\n[[swap]]\npath = "/dev/vdb"\nsize = "200M"\n')
    box = Box(Machine.load(file))
    box.run("w = spawn worker", "d = mmap w 66M", "create /mnt/f", "access w d 66M w", "access w d+40M 20M w")
    for _ in range(2):
        took = int(box.run("write_file /mnt/f n=8M")["ns"])
        assert took < 2_000_000_000, "a disk of 400 MB/s takes 8 MiB"
        box.run("access w d+40M 20M w")
    stalled = box.system.read("/proc/pressure/io").decode().split("total=")[1].split()[0]
    assert int(stalled) < 4_000_000


def test_a_shared_mapping_is_throttled_too(box: Box) -> None:
    box.system.write("/proc/sys/vm/dirty_background_bytes", str(2 << 20))
    box.system.write("/proc/sys/vm/dirty_bytes", str(8 << 20))
    box.run(
        "create /mnt/f 32M", "read_file /mnt/f", "p = spawn t", "f = mmap p 32M file=/mnt/f prot=rw flags=MAP_SHARED"
    )
    box.run("access p f 32M w")
    assert box.kernel.user.block.throttle.pauses > 0
    dirty, writeback, limit = box.vmstat("nr_dirty", "nr_writeback", "nr_dirty_threshold")
    assert dirty + writeback <= limit + 256


def test_the_position_ratio_is_one_at_the_set_point_and_nothing_at_the_limit() -> None:
    assert polynomial(1000, 1000, 2000) == 1024
    assert polynomial(1000, 0, 2000) >= 2040
    assert polynomial(1000, 2000, 2000) <= 8
    assert position_ratio(Control(dirty=2000, thresh=2000, bg_thresh=1000), 2000, 25600) == 0
    assert position_ratio(Control(1000, 2000, 1000, 1000, 2000), 2000, 25600) > 1024


def test_tasks_poll_the_more_often_the_nearer_the_limit() -> None:
    assert [dirty_poll_interval(dirty, 65536) for dirty in (0, 49152, 65535, 65536)] == [256, 128, 1, 1]
    assert max_pause(25600, 0) == 1
    assert max_pause(1, 10**6) == HZ // 5


def test_the_bandwidth_estimate_follows_what_was_written() -> None:
    wb = BdiWriteback(None, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    for _ in range(200):
        wb.written += 1000
        wb.update_write_bandwidth(50)
        wb.stamp(wb.bw_time_stamp + 50)
    assert wb.write_bandwidth == pytest.approx(5000, rel=0.05)
    wb.written += 2000
    wb.update_write_bandwidth(2 * BANDWIDTH_PERIOD)
    assert wb.avg_write_bandwidth == 2000 * HZ // (2 * BANDWIDTH_PERIOD)


def test_completions_halve_every_period() -> None:
    every, share = Completions(), Share()
    every.add(0, 799)
    share.events = 800
    found = []
    for period in (0, 1, 2, 4, 100):
        every.advance(3 * HZ * period)
        found.append((every.events, share.reflect(every)))
    assert found == [(800, 800), (400, 400), (200, 200), (50, 50), (1, 1)], "nothing is forgotten while all is idle"


# -- broken disks --------------------------------------------------------------------------------------------


def test_each_opener_is_told_once_of_a_page_that_was_lost(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=64K", "p = spawn other", "read_file /mnt/f n=1 pid=p")
    box.run("disk_error ram0 write")
    advance(box, 40)
    box.run("disk_error ram0 off")
    assert box.errno("fsync /mnt/f") == errno.EIO
    assert box.run("fsync /mnt/f")["pages"] == "0"
    assert box.errno("fsync /mnt/f pid=p") == errno.EIO
    box.run("fsync /mnt/f pid=p", "q = spawn late", "fsync /mnt/f pid=q")


def test_the_kernel_says_what_could_not_be_written(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=64K", "disk_error /dev/ram0 write")
    assert box.errno("fsync /mnt/f") == errno.EIO
    assert box.errno("fsync /mnt/f") == errno.EIO, "now it is the inode that cannot be written"
    log = kmsg(box)
    assert "I/O error, dev ram0, sector 4128 op 0x1:(WRITE) flags 0x800 phys_seg " in log
    assert "Buffer I/O error on dev ram0, logical block 4, lost async page write" in log
    assert "EXT2-fs (ram0): error: ext2_fsync: detected IO error when writing metadata buffers" in log
    assert box.vmstat("nr_dirty", "nr_writeback")[1] == 0


def test_a_lost_page_is_still_in_memory_and_can_be_written_again(box: Box) -> None:
    box.run("create /mnt/f 64K", "write_file /mnt/f data=hello", "disk_error ram0 write")
    assert box.errno("fsync /mnt/f") == errno.EIO
    box.run("disk_error ram0 off")
    assert box.run("read_file /mnt/f n=5")["data"] == b"hello".hex()
    box.run("write_file /mnt/f offset=5 data=!", "fsync /mnt/f", "fadvise /mnt/f DONTNEED")
    assert box.run("read_file /mnt/f n=6")["data"] == b"hello!".hex()


def test_reading_a_bad_sector_is_an_error_and_a_fault_on_it_a_signal(box: Box) -> None:
    box.run("create /mnt/f 1M", "read_file /mnt/f n=4K", "fadvise /mnt/f DONTNEED")
    block = int(box.kernel.user.vfs.lookup("/mnt/f").blocks_at([5])[0])
    box.run(f"disk_error ram0 read sectors={block * 8}-{block * 8 + 7}")
    assert box.errno("read_file /mnt/f offset=20K n=4K") == errno.EIO
    box.run("p = spawn t", "f = mmap p 1M file=/mnt/f prot=r flags=MAP_SHARED", "sigaction p SIGBUS catch")
    assert box.run("access p f+20K 4K r")["signal"] == "7"
    box.run("disk_error ram0 off", "access p f+20K 4K r")
    assert "op 0x0:(READ)" in kmsg(box)


def test_msync_tells_of_a_lost_page(box: Box) -> None:
    box.run("create /mnt/f 64K", "p = spawn t", "f = mmap p 64K file=/mnt/f prot=rw flags=MAP_SHARED")
    box.run("access p f 64K w", "disk_error ram0 write")
    assert box.errno("msync p f 64K MS_SYNC") == errno.EIO


def test_bad_words_for_a_disk(box: Box) -> None:
    assert box.errno("disk_error nowhere write") == errno.ENODEV
    for line in ("disk_error ram0 wreck", "disk_error ram0 read sectors=9-3", "disk_error ram0 read sectors=x"):
        assert box.errno(line) == errno.EINVAL


def test_an_error_is_told_once_to_each_who_had_the_file_open_and_unseen_to_the_next() -> None:
    value = errseq_set(0, 5)
    late = errseq_sample(value)
    assert late == 0, "nobody has seen it: who opens now is told"
    number, early = errseq_check_and_advance(value, 0)
    assert number == 5
    value = early
    assert errseq_check_and_advance(value, early) == (0, early)
    assert errseq_sample(value) == value, "seen: who opens now is not told"
    again = errseq_set(value, 5)
    assert again != value
    assert errseq_check_and_advance(again, value)[0] == 5


# -- the buffer cache and the disk's layout ------------------------------------------------------------------


def test_the_file_systems_own_blocks_are_buffers(box: Box) -> None:
    assert box.meminfo("Buffers") == 0
    box.run("create /mnt/f 64M")
    mounted = box.meminfo("Buffers")
    assert mounted == 3, "super block, descriptor, the first inodes"
    box.run("read_file /mnt/f n=64M")
    assert box.meminfo("Buffers") == mounted + 1 + 16, "the blocks that point to the file's, and to those"
    box.system.write("/proc/sys/vm/drop_caches", "1")
    assert box.meminfo("Buffers") < mounted + 17


def test_pages_that_were_written_to_have_buffer_heads_until_they_go(box: Box) -> None:
    def heads() -> int:
        return box.kernel.user.block.buffers.heads

    box.run("create /mnt/f 1M", "read_file /mnt/f")
    before = heads()
    box.run("write_file /mnt/f n=1M")
    assert heads() >= before + 256
    box.run("fsync /mnt/f", "fadvise /mnt/f DONTNEED")
    assert heads() <= before + 4


def test_umount_writes_everything_and_leaves_no_buffer(box: Box) -> None:
    box.run("mount /dev/vdc /data type=ext2", "create /data/f", "write_file /data/f n=4M")
    box.run("umount /data")
    assert box.vmstat("nr_dirty", "nr_writeback") == [0, 0]
    assert box.meminfo("Buffers") == 0
    assert box.kernel.user.block.buffers.heads == 0


def test_pointer_blocks_of_a_file() -> None:
    assert [pointer_blocks(n) for n in (0, 12, 13, 1036, 1037, 2061)] == [0, 0, 1, 1, 3, 4]


def test_runs_join_and_are_cut_from_the_end() -> None:
    runs = Runs()
    runs.append(0, 10)
    runs.append(10, 5)
    runs.append(100, 5)
    assert (runs.first, runs.count, runs.at(14), runs.at(15)) == ([0, 15], 20, 14, 100)
    assert runs.cut(12) == [(100, 5), (12, 3)]
    assert (runs.first, runs.count) == ([0], 12)


def test_data_stands_behind_each_groups_overhead() -> None:
    assert Ext2.place(0) == OVERHEAD
    assert Ext2.place(DATA_PER_GROUP) == 32768 + OVERHEAD


# -- names and inodes ----------------------------------------------------------------------------------------


def state(box: Box) -> list[int]:
    return [int(word) for word in text(box, "/proc/sys/fs/dentry-state").split()]


def test_looking_up_fills_the_slabs_and_dropping_empties_them(box: Box) -> None:
    box.run("create /mnt/x")
    before = state(box)[0]
    box.run("lookup /mnt/d n=3000")
    total, unused, *_ = state(box)
    assert total - before == 3001
    assert unused >= 3000
    slab = box.meminfo("SReclaimable")
    for _ in range(2):
        box.system.write("/proc/sys/vm/drop_caches", "2")
        box.system.check()
    assert state(box)[1] < 10
    assert box.meminfo("SReclaimable") < slab
    assert box.kernel.user.block.dcache.nr_inodes < 20
    assert box.vmstat("drop_slab") == [2]


def test_names_that_do_not_exist_are_cached_on_a_disk_alone(box: Box) -> None:
    assert box.errno("stat /mnt/none") == errno.ENOENT
    assert state(box)[4] == 1
    box.run("lookup /mnt/d n=10 missing=1")
    negative = state(box)[4]
    box.run("create /mnt/none")
    assert state(box)[4] == negative - 1
    box.run("mount none /t type=tmpfs", "create /t/f")
    assert box.errno("stat /t/none") == errno.ENOENT
    assert state(box)[4] == negative - 1


def test_an_inode_with_pages_stays_until_they_are_gone(box: Box) -> None:
    box.run("create /mnt/f 1M", "read_file /mnt/f")
    box.kernel.lru.drain_all()
    for _ in range(3):
        box.system.write("/proc/sys/vm/drop_caches", "2")
    assert box.kernel.user.block.dcache.nr_inodes == 1
    box.system.write("/proc/sys/vm/drop_caches", "3")
    box.system.write("/proc/sys/vm/drop_caches", "3")
    box.system.check()
    assert box.kernel.user.block.dcache.nr_inodes == 0
    assert box.run("read_file /mnt/f n=4K")["n"] == "4096"


def test_with_high_memory_an_inode_takes_its_pages_along() -> None:
    """Its object is in low memory, where there is less (``mapping_shrinkable``)."""
    box = Box("highmem")
    box.run("create /mnt/f 1M", "read_file /mnt/f")
    box.kernel.lru.drain_all()
    for _ in range(3):
        box.system.write("/proc/sys/vm/drop_caches", "2")
    box.system.check()
    assert box.vmstat("pginodesteal", "kswapd_inodesteal", "drop_pagecache") == [256, 0, 0]
    assert box.kernel.user.page_reclaim.shrinkers.reclaimed == 256  # a reclaim that did it has got these
    assert box.kernel.user.block.dcache.nr_inodes == 0


def test_pressure_scales_what_a_shrinker_offers(box: Box) -> None:
    box.run("lookup /mnt/d n=1000")
    dcache = box.kernel.user.block.dcache
    (block,) = (block for point, block in dcache.supers.items() if point == "/mnt")
    usual = dcache.count(block, 0)
    box.system.write("/proc/sys/vm/vfs_cache_pressure", "1000")
    assert dcache.count(block, 0) == 10 * usual
    box.system.write("/proc/sys/vm/vfs_cache_pressure", "0")
    assert dcache.count(block, 0) == 0


def test_a_name_that_was_used_again_has_a_second_chance(box: Box) -> None:
    box.run("lookup /mnt/d n=100", "stat /mnt/d/f0")
    dcache = box.kernel.user.block.dcache
    block = dcache.supers["/mnt"]
    dcache._prune(block, 0, 50)
    assert "/mnt/d/f0" in block.dentries
    assert "/mnt/d/f1" not in block.dentries
    dcache.check()


def test_unlink_leaves_a_negative_name(box: Box) -> None:
    box.run("create /mnt/f")
    before = state(box)
    box.run("unlink /mnt/f")
    assert state(box)[4] == before[4] + 1
    assert box.errno("stat /mnt/f") == errno.ENOENT


# -- readahead, and the figures of tasks and disks -----------------------------------------------------------


def test_a_smaller_window_reads_less_ahead(box: Box) -> None:
    box.run("create /mnt/f 4M", "create /mnt/g 4M")
    box.run("read_file /mnt/f n=4K")
    usual = int(box.run("fincore /mnt/f")["pages"])
    box.system.write("/sys/block/ram0/queue/read_ahead_kb", "0")
    box.run("read_file /mnt/g n=4K")
    assert usual == 4
    assert box.run("fincore /mnt/g")["pages"] == "1"
    assert text(box, "/sys/class/bdi/1:0/read_ahead_kb") == "0\n"


def test_advice_changes_the_window(box: Box) -> None:
    box.run("create /mnt/f 8M", "fadvise /mnt/f RANDOM", "read_file /mnt/f offset=1M n=4K")
    assert box.run("fincore /mnt/f")["pages"] == "1"
    box.run("create /mnt/g 8M", "fadvise /mnt/g SEQUENTIAL")
    for page in range(128):
        box.system.command(f"read_file /mnt/g offset={page * 4}K n=4K")
    assert box.kernel.user.vfs.lookup("/mnt/g").ra.size == 64
    box.run("fadvise /mnt/g NORMAL")
    for page in range(128, 256):
        box.system.command(f"read_file /mnt/g offset={page * 4}K n=4K")
    assert box.kernel.user.vfs.lookup("/mnt/g").ra.async_size <= 64


def test_a_task_and_a_disk_count_what_they_did(box: Box) -> None:
    pid = box.run("p = spawn t")["pid"]
    box.run("create /mnt/f 1M", "read_file /mnt/f pid=p", "write_file /mnt/f n=64K pid=p")
    rows = dict(line.split(": ") for line in text(box, f"/proc/{pid}/io").splitlines())
    assert (rows["rchar"], rows["wchar"], rows["syscr"], rows["syscw"]) == ("1048576", "65536", "1", "1")
    assert int(rows["read_bytes"]) == (256 + 1) * 4096
    assert int(rows["write_bytes"]) == 16 * 4096
    box.run("truncate /mnt/f 0 pid=p")
    rows = dict(line.split(": ") for line in text(box, f"/proc/{pid}/io").splitlines())
    assert int(rows["cancelled_write_bytes"]) == 16 * 4096
    disk = text(box, "/proc/diskstats").split("ram0")[1].split()
    assert int(disk[2]) == 8 * (256 + 1 + 3 + 1)
    assert len(disk) == 17


def test_bi_and_bo_move_while_a_workload_runs(box: Box) -> None:
    box.run("create /mnt/f 16M", "create /mnt/g")
    figures = []
    for part in range(4):
        box.run(f"read_file /mnt/f offset={part * 4}M n=4M", f"write_file /mnt/g offset={part * 4}M n=4M", "sync")
        figures.append(box.vmstat("pgpgin", "pgpgout"))
    for (bi, bo), (more_in, more_out) in pairwise(figures):
        assert more_in >= bi + 3500
        assert more_out >= bo + 4096


# -- knobs and speeds of disks -------------------------------------------------------------------------------

BDI = "/sys/class/bdi/1:0"


def refused(box: Box, path: str, value: str) -> int:
    with pytest.raises(OSError, match=r".") as error:
        box.system.write(path, value)
    return error.value.errno or 0


def test_ratios_bound_a_disks_part_of_the_limits(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=8M sync=1")
    assert text(box, f"{BDI}/min_ratio") + text(box, f"{BDI}/max_ratio") == "0\n100\n"
    whole = debug(box, "DirtyThresh")
    assert debug(box, "BdiDirtyThresh") == pytest.approx(whole, rel=0.01)
    box.system.write(f"{BDI}/max_ratio", "25")
    assert debug(box, "BdiDirtyThresh") == pytest.approx(whole / 4, rel=0.01)
    assert refused(box, f"{BDI}/min_ratio", "26") == errno.EINVAL
    assert refused(box, f"{BDI}/max_ratio", "101") == errno.EINVAL
    assert refused(box, f"{BDI}/max_ratio", "-1") == errno.EINVAL
    box.system.write(f"{BDI}/min_ratio", "20")
    assert refused(box, f"{BDI}/max_ratio", "19") == errno.EINVAL
    box.run("mount /dev/vdc /data type=ext2")
    assert refused(box, "/sys/class/bdi/254:32/min_ratio", "80") == errno.EINVAL, "100 with the other disk's"
    box.system.write("/sys/class/bdi/254:32/min_ratio", "79")
    assert text(box, "/sys/class/bdi/254:32/stable_pages_required") == "0\n"


def test_a_disk_that_wrote_nothing_has_its_min_ratio(box: Box) -> None:
    box.run("create /mnt/f")
    box.system.write(f"{BDI}/min_ratio", "10")
    assert debug(box, "BdiDirtyThresh") == pytest.approx(debug(box, "DirtyThresh") / 10, abs=8)


def test_a_disk_may_be_slow(box: Box) -> None:
    box.run("create /mnt/f", "disk_speed ram0 write_latency=5000 write_bandwidth=1M", "write_file /mnt/f n=1M")
    assert int(box.run("fsync /mnt/f")["ns"]) == pytest.approx(1.01e9, rel=0.02)
    assert box.run("disk_speed /dev/ram0")["write_latency"] == "5000"
    assert box.errno("disk_speed ram0 read_bandwidth=0") == errno.EINVAL
    assert box.errno("disk_speed tape") == errno.ENODEV


SLOW_DISKS = """
cpus = 2
[[node]]
memory = "80M"
[[swap]]
path = "/dev/vdb"
size = "200M"
[[disk]]
path = "/dev/ram0"
read_latency = 4000
write_bandwidth = 8192000
[[disk]]
path = "/dev/vdb"
read_latency = 5000
read_bandwidth = "4M"
"""


def test_a_machine_says_how_fast_its_disks_are(tmp_path: Path) -> None:
    file = tmp_path / "slow.toml"
    file.write_text(SLOW_DISKS)
    box = Box(Machine.load(file))
    assert box.run("disk_speed ram0") == {
        "device": "ram0",
        "read_latency": "4000",
        "write_latency": "70",
        "read_bandwidth": str(512_000_000),
        "write_bandwidth": "8192000",
        "ns": "0",
    }
    took = int(box.run("create /mnt/f", "write_file /mnt/f n=4M sync=1")["ns"])
    assert 500_000_000 <= took < 600_000_000, "4 MiB at 8.2 MB/s"
    box.run("w = spawn worker", "d = mmap w 66M", "access w d 66M w", "access w d 66M w")
    before, pages = box.system.read("/proc/pressure/io"), box.vmstat("pswpin")[0]
    box.run("access w d 1M r")
    read = box.vmstat("pswpin")[0] - pages
    waited = total(box.system.read("/proc/pressure/io")) - total(before)
    assert read > 0
    assert waited >= read * 4096 * 1_000_000 // (4 << 20) + 5000, "a request and so many pages of swap"


def total(pressure: bytes) -> int:
    """Microseconds in which some task waited."""
    return int(pressure.decode().split("total=")[1].split()[0])


def test_requests_that_may_wait(box: Box) -> None:
    box.run("mount /dev/vdc /data type=ext2", "create /data/f", "write_file /data/f n=64M")
    path = "/sys/block/vdc/queue/nr_requests"
    box.system.write(path, "1")
    assert text(box, path) == "4\n"
    box.run("sync_file_range /data/f flags=WRITE")
    assert text(box, "/sys/block/vdc/inflight").split() == [
        "0",
        text(box, "/proc/diskstats").split(" vdc ")[1].split()[8],
    ]
    assert refused(box, "/sys/block/vdc/queue/nr_requests", "many") == errno.EINVAL
    box.run("create /mnt/f")
    assert refused(box, "/sys/block/ram0/queue/nr_requests", "64") == errno.EINVAL


def test_an_inode_that_cannot_be_written_is_told_of(box: Box) -> None:
    box.run("create /mnt/f", "write_file /mnt/f n=4K", "sync", "truncate /mnt/f 8K", "disk_error ram0 write")
    assert box.errno("fsync /mnt/f") == errno.EIO
    box.run("disk_error ram0 off", "truncate /mnt/f 4K", "fsync /mnt/f")


def test_many_names_at_once_are_those_looked_up_one_by_one(box: Box) -> None:
    other = Box()
    box.run("lookup /mnt/d n=500")
    other.run("lookup /mnt/d n=1")
    other.kernel.user.vfs.populate("/mnt/d", 500)
    for number in range(1, 500):
        other.system.command(f"stat /mnt/d/f{number}")
    for one in (box, other):
        one.system.check()
    assert text(box, "/proc/sys/fs/dentry-state") == text(other, "/proc/sys/fs/dentry-state")
    shown = [one.kernel.user.block.dcache.supers["/mnt"] for one in (box, other)]
    assert list(shown[0].dentries) == list(shown[1].dentries)
    assert {path: inode.ino for path, inode in shown[0].by_path.items()} == {
        path: inode.ino for path, inode in shown[1].by_path.items()
    }


def test_names_that_do_not_exist_leave_negative_dentries(box: Box) -> None:
    box.run("lookup /mnt/d n=10", "lookup /mnt/d n=300 missing=1")
    assert box.kernel.user.block.dcache.nr_negative == 300
    box.system.write("/proc/sys/vm/drop_caches", "2")
    assert box.kernel.user.block.dcache.nr_negative == 0


def test_umount_takes_all_names(box: Box) -> None:
    box.run("mount /dev/vdc /data type=ext2", "lookup /data/a/b n=3000", "create /data/f 1M", "read_file /data/f")
    box.run("umount /data")
    assert box.kernel.user.block.dcache.nr_dentry == 0
    assert box.errno("stat /data/f") == errno.ENOENT
