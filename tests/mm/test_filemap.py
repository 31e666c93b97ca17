"""Files through the machine: page cache, mappings, tmpfs, paths (mm.filemap, file_io, file_fault, shmem, vfs)."""

from __future__ import annotations

import errno

import pytest

from tests.mm.files_fixture import Box


@pytest.fixture
def box() -> Box:
    return Box()


# -- reading and writing ---------------------------------------------------------------------------------


def test_reading_fills_the_cache_and_counts_sectors(box: Box) -> None:
    box.run("create /mnt/f 1M")
    before = [*box.vmstat("pgpgin"), box.meminfo("Cached"), box.meminfo("Buffers")]
    box.run("read_file /mnt/f")
    after = [*box.vmstat("pgpgin"), box.meminfo("Cached"), box.meminfo("Buffers")]
    # besides the file, the block with the places of its pages from the 13th on
    assert [b - a for a, b in zip(before, after, strict=True)] == [1024 + 4, 256, 1]


def test_a_disk_is_read_into_buffers_that_cannot_be_moved(box: Box) -> None:
    before = box.meminfo("Buffers"), box.meminfo("Cached"), unmovable_blocks(box)
    box.run("read_file /dev/vda n=16M")
    after = box.meminfo("Buffers"), box.meminfo("Cached"), unmovable_blocks(box)
    assert after[0] - before[0] >= 4096
    assert after[1] == before[1]
    assert after[2] - before[2] >= 4, "page blocks of 4 MiB and less changed hands"
    assert box.run("read_file /dev/vda offset=1M n=16")["data"] == "00" * 16
    box.run("create /mnt/f 16M", "read_file /mnt/f")
    assert unmovable_blocks(box) <= after[2] + 1, "pages of files are movable"
    box.system.write("/proc/sys/vm/drop_caches", "1")
    box.system.check()
    assert box.meminfo("Buffers") < 64


def test_a_file_system_finds_blocks_that_were_read_from_its_disk(box: Box) -> None:
    box.run("read_file /dev/vdc n=1M", "mount /dev/vdc /x type=ext2", "create /x/f 1M", "write_file /x/f n=1M")
    box.run("fsync /x/f", "read_file /dev/vdc n=64K", "umount /x")
    assert box.meminfo("Buffers") == 0


def unmovable_blocks(box: Box) -> int:
    text = box.system.read("/proc/pagetypeinfo").decode()
    rows = text[text.index("Number of blocks") :].splitlines()[1:]
    return sum(int(row.split()[4]) for row in rows)


def test_readahead_begins_small_and_grows_to_32_pages(box: Box) -> None:
    cached = []
    box.run("create /mnt/f 4M")
    for page in range(0, 12):
        cached.append(int(box.run(f"read_file /mnt/f offset={page * 4096} n=4096", "fincore /mnt/f")["pages"]))
    assert cached == [4, 12, 12, 12, 28, 28, 28, 28, 28, 28, 28, 28]
    box.run("read_file /mnt/f offset=48K n=4096")
    assert box.run("fincore /mnt/f")["pages"] == "60"


def test_a_random_read_reads_what_it_needs(box: Box) -> None:
    box.run("create /mnt/f 4M", "read_file /mnt/f offset=2M n=8192")
    assert box.run("fincore /mnt/f")["pages"] == "2"


def test_a_second_read_makes_pages_active(box: Box) -> None:
    box.run("create /mnt/f 1M", "read_file /mnt/f")
    box.kernel.lru.drain_all()
    before = box.vmstat("nr_active_file", "pgactivate")
    box.run("read_file /mnt/f")
    box.kernel.lru.drain_all()
    after = box.vmstat("nr_active_file", "pgactivate")
    assert [b - a for a, b in zip(before, after, strict=True)] == [256, 256]


def test_what_is_written_is_read_after_it_went_to_the_disk(box: Box) -> None:
    box.run("create /mnt/f 1M", "write_file /mnt/f offset=4094 data=hello")
    assert box.vmstat("nr_dirty") == [2]
    assert box.run("read_file /mnt/f offset=4092 n=9")["data"] == "000068656c6c6f0000"
    before = box.vmstat("pgpgout", "nr_written")
    assert box.run("fsync /mnt/f")["pages"] == "2"
    assert box.vmstat("nr_dirty", "nr_writeback") == [0, 0]
    after = box.vmstat("pgpgout", "nr_written")
    assert [b - a for a, b in zip(before, after, strict=True)] == [8 + 4, 2 + 1], "the inode's block, too"
    assert box.run("fadvise /mnt/f DONTNEED", "fincore /mnt/f")["pages"] == "0"
    assert box.run("read_file /mnt/f offset=4092 n=9")["data"] == "000068656c6c6f0000"


def test_writing_a_part_of_a_page_reads_the_rest(box: Box) -> None:
    box.run("create /mnt/f 64K")
    before = box.vmstat("pgpgin")[0]
    box.run("write_file /mnt/f offset=8192 n=8192")
    assert box.vmstat("pgpgin")[0] == before
    box.run("write_file /mnt/f offset=100 n=100")
    assert box.vmstat("pgpgin")[0] == before + 4


def test_appending_makes_a_file_longer(box: Box) -> None:
    assert box.run("create /mnt/f", "write_file /mnt/f n=10000")["size"] == "10000"
    assert box.run("write_file /mnt/f offset=10000 n=1")["size"] == "10001"
    assert box.run("read_file /mnt/f offset=20000 n=5")["n"] == "0"


def test_drop_caches_drops_what_is_clean_and_not_mapped(box: Box) -> None:
    box.run("create /mnt/a 1M", "read_file /mnt/a", "create /mnt/b 1M", "write_file /mnt/b n=1M")
    box.run(
        "create /mnt/c 64K", "p = spawn t", "c = mmap p 64K file=/mnt/c prot=r flags=MAP_SHARED", "access p c 64K r"
    )
    box.kernel.lru.drain_all()
    shmem = box.vmstat("nr_shmem")
    box.system.write("/proc/sys/vm/drop_caches", "1\n")
    pages = [box.run(f"fincore /mnt/{name}")["pages"] for name in "abc"]
    assert pages == ["0", "256", "16"]
    assert box.vmstat("nr_shmem") == shmem


def test_fadvise_willneed_reads_and_others_do_nothing(box: Box) -> None:
    box.run("create /mnt/f 1M")
    assert box.run("fadvise /mnt/f WILLNEED offset=64K n=64K")["pages"] == "16"
    assert box.run("fadvise /mnt/f POSIX_FADV_RANDOM")["pages"] == "0"
    assert box.errno("fadvise /mnt/f NEED") == errno.EINVAL


# -- mappings --------------------------------------------------------------------------------------------


def test_a_shared_mapping_written_through_is_dirty_and_private(box: Box) -> None:
    """The captured mapping of a file of 2 MiB."""
    pid = box.run("create /mnt/f 2M", "p = spawn t")["pid"]
    box.run("f = mmap p 2M file=/mnt/f prot=rw flags=MAP_SHARED", "access p f 2M w")
    line = next(line for line in box.system.read(f"/proc/{pid}/maps").decode().splitlines() if "/mnt/f" in line)
    assert line.split()[1:] == ["rw-s", "00000000", "01:00", "12", "/mnt/f"]
    (figures,) = box.smaps(pid, "/mnt/f")
    assert {
        name: figures[name] for name in ("Rss", "Pss", "Pss_Dirty", "Private_Dirty", "Referenced", "Anonymous")
    } == {
        "Rss": 2048,
        "Pss": 2048,
        "Pss_Dirty": 2048,
        "Private_Dirty": 2048,
        "Referenced": 2048,
        "Anonymous": 0,
    }
    assert box.vmstat("nr_dirty", "nr_mapped")[0] == 512


def test_a_private_mapping_gets_pages_of_its_own(box: Box) -> None:
    pid = box.run("create /mnt/f 2M", "p = spawn t")["pid"]
    box.run("f = mmap p 2M file=/mnt/f prot=rw flags=MAP_PRIVATE", "access p f 512K w")
    (figures,) = box.smaps(pid, "/mnt/f")
    assert (figures["Rss"], figures["Anonymous"], figures["Private_Dirty"]) == (512, 512, 512)
    assert box.vmstat("nr_dirty") == [0]
    assert box.run("access p f 512K r")["faults"] == "0"


def test_faults_of_reads_map_sixteen_pages(box: Box) -> None:
    box.run("create /mnt/f 1M", "read_file /mnt/f", "p = spawn t")
    box.run("f = mmap p 1M file=/mnt/f prot=r flags=MAP_SHARED addr=0x10000000")
    reply = box.run("access p f 1M r")
    # the cache's marked pages are passed over, and mapped by faults of their own
    assert int(reply["faults"]) - 16 <= 256 // 32 + 1
    assert reply["major"] == "0"


def test_the_window_begins_with_the_mapping(box: Box) -> None:
    """As captured of shared memory: 8 pages more than were read, for the mapping begins within a window."""
    pid = box.run("p = spawn t")["pid"]
    box.run("s = mmap p 8M prot=rw flags=MAP_SHARED|MAP_ANONYMOUS addr=0x10008000", "access p s 8M w")
    child = box.run("q = fork p")["pid"]
    assert box.run("access q s 4M r")["faults"] == "65"
    (figures,) = box.smaps(child, "/dev/zero (deleted)")
    assert (figures["Rss"], figures["Shared_Dirty"], figures["Pss"]) == (4128, 4128, 2064)
    assert pid != child


def test_reading_a_mapping_from_the_disk_is_a_major_fault(box: Box) -> None:
    box.run("create /mnt/f 1M", "p = spawn t", "f = mmap p 1M file=/mnt/f prot=r flags=MAP_SHARED")
    before = box.vmstat("pgmajfault", "pgpgin")
    assert box.run("access p f+512K 4K r")["major"] == "1"
    after = box.vmstat("pgmajfault", "pgpgin")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 128 + 4]
    assert box.run("fincore /mnt/f")["pages"] == "32"


def test_a_shared_page_is_noticed_again_after_it_was_written_back(box: Box) -> None:
    box.run("create /mnt/f 64K", "p = spawn t", "f = mmap p 64K file=/mnt/f prot=rw flags=MAP_SHARED")
    box.run("access p f 64K w", "access p f 64K w")
    box.run("msync p f 64K MS_SYNC")
    assert box.vmstat("nr_dirty") == [0]
    assert box.run("access p f 64K w")["faults"] == "16"
    assert box.vmstat("nr_dirty") == [16]


def test_behind_the_end_is_a_bus_error(box: Box) -> None:
    box.run("create /mnt/f 5000", "p = spawn t", "sigaction p SIGBUS catch")
    box.run("f = mmap p 16K file=/mnt/f prot=rw flags=MAP_SHARED", "access p f 8K w")
    reply = box.run("access p f+8K 4K r")
    assert (reply["signal"], reply["code"]) == ("7", "2")
    box.run("truncate /mnt/f 100")
    reply = box.run("access p f+4K 4K w")
    assert (reply["signal"], reply["code"]) == ("7", "2")
    assert box.run("fincore /mnt/f")["pages"] == "1"


def test_truncation_takes_private_copies_too(box: Box) -> None:
    box.run("create /mnt/f 64K", "p = spawn t", "sigaction p SIGBUS catch")
    box.run("f = mmap p 64K file=/mnt/f prot=rw flags=MAP_PRIVATE", "access p f 64K w", "truncate /mnt/f 4096")
    assert "signal" not in box.run("access p f 4K r")
    assert box.run("access p f+4K 4K r")["signal"] == "7"


def test_a_deleted_file_lives_as_long_as_it_is_mapped(box: Box) -> None:
    pid = box.run("create /mnt/f 64K", "p = spawn t")["pid"]
    before = box.meminfo("Cached")
    box.run("f = mmap p 64K file=/mnt/f prot=rw flags=MAP_SHARED", "access p f 64K w", "unlink /mnt/f")
    assert "/mnt/f (deleted)" in box.system.read(f"/proc/{pid}/maps").decode()
    assert box.vmstat("nr_dirty") == [16]
    box.run("munmap p f 64K")
    assert box.meminfo("Cached") == before
    assert box.vmstat("nr_dirty") == [3], "two bitmaps and a descriptor of the disk"
    assert box.run("create /mnt/g 1")["inode"] == "12", "the disk uses its inode again"


# -- tmpfs and shared memory -----------------------------------------------------------------------------


def test_shared_memory_counts_as_shmem_and_is_charged_at_once(box: Box) -> None:
    pid = box.run("p = spawn t")["pid"]
    charged, shmem = box.meminfo("Committed_AS"), box.meminfo("Shmem")
    box.run("s = mmap p 8M prot=rw flags=MAP_SHARED|MAP_ANONYMOUS")
    assert box.meminfo("Committed_AS") == charged + 2048
    box.run("access p s 1M w")
    assert box.meminfo("Shmem") == shmem + 256
    assert " 00:01 1024 " in box.system.read(f"/proc/{pid}/maps").decode()
    box.run("munmap p s 8M")
    assert (box.meminfo("Committed_AS"), box.meminfo("Shmem")) == (charged, shmem)


def test_shared_memory_without_reserve_is_charged_by_the_page(box: Box) -> None:
    box.run("p = spawn t")
    charged = box.meminfo("Committed_AS")
    box.run("s = mmap p 8M prot=rw flags=MAP_SHARED|MAP_ANONYMOUS|MAP_NORESERVE")
    assert box.meminfo("Committed_AS") == charged
    box.run("access p s 1M w")
    assert box.meminfo("Committed_AS") == charged + 256
    box.run("munmap p s 8M")
    assert box.meminfo("Committed_AS") == charged


def test_pages_of_a_tmpfs_are_charged_one_by_one(box: Box) -> None:
    committed = box.meminfo("Committed_AS")
    box.run("create /tmp/f 1M")
    assert box.meminfo("Committed_AS") == committed
    box.run("write_file /tmp/f offset=64K n=64K")
    assert box.meminfo("Committed_AS") == committed + 16
    assert box.run("fallocate /tmp/f 0 256K", "fincore /tmp/f")["pages"] == "64"
    assert box.run("fallocate /tmp/f 4K 10000 mode=punch_hole", "fincore /tmp/f")["pages"] == "62"
    box.run("unlink /tmp/f")
    assert box.meminfo("Committed_AS") == committed


def test_a_hole_is_made_in_shared_memory(box: Box) -> None:
    box.run("p = spawn t", "s = mmap p 1M prot=rw flags=MAP_SHARED|MAP_ANONYMOUS", "access p s 1M w")
    shmem = box.meminfo("Shmem")
    box.run("madvise p s+64K 128K MADV_REMOVE")
    assert box.meminfo("Shmem") == shmem - 32
    box.run("access p s 1M r")
    assert box.meminfo("Shmem") == shmem


def test_a_full_tmpfs_is_enospc_and_for_mappings_a_bus_error(box: Box) -> None:
    box.run("mount tmpfs /small size=64K", "create /small/f 1M", "write_file /small/f n=32K")
    assert box.errno("write_file /small/f offset=32K n=64K") == errno.ENOSPC
    box.run("p = spawn t", "sigaction p SIGBUS catch", "f = mmap p 1M file=/small/f prot=rw flags=MAP_SHARED")
    assert "signal" not in box.run("access p f 64K w")
    assert box.run("access p f+64K 4K w")["signal"] == "7"
    assert box.errno("umount /small") == errno.EBUSY
    box.run("exit p", "umount /small")
    assert "/small" not in box.system.read("/proc/mounts").decode()


# -- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("create f 4K", errno.EINVAL),
        ("create /mnt/../f 4K", errno.EINVAL),
        ("create /mnt 4K", errno.EISDIR),
        ("create /bin 4K", errno.EISDIR),
        ("create /bin/busybox 4K", errno.EEXIST),
        ("create /bin/busybox/f 4K", errno.ENOTDIR),
        ("create /proc/f 4K", errno.EPERM),
        ("create /mnt/f 3T", errno.EFBIG),
        (f"create /mnt/{'f' * 256} 4K", errno.ENAMETOOLONG),
        ("read_file /mnt/none", errno.ENOENT),
        ("unlink /", errno.EISDIR),
        ("truncate /none 0", errno.ENOENT),
        ("write_file /bin/busybox", errno.EINVAL),
        ("write_file /bin/busybox n=1 data=x", errno.EINVAL),
        ("fallocate /bin/busybox 0 0", errno.EINVAL),
        ("fallocate /bin/busybox 0 1 mode=zero", errno.EINVAL),
        ("mount none /x type=btrfs", errno.ENODEV),
        ("mount /dev/tty /x type=ext2", errno.ENODEV),
        ("mount tmpfs / type=tmpfs", errno.EBUSY),
        ("umount /proc", errno.EINVAL),
        ("write_file /dev/mem n=1", errno.EPERM),
        ("truncate /dev/mem 0", errno.EINVAL),
    ],
)
def test_what_cannot_be_done_with_paths(box: Box, line: str, number: int) -> None:
    assert box.errno(line) == number


def test_the_disk_is_mounted_when_it_is_used(box: Box) -> None:
    assert "/mnt" not in box.system.read("/proc/mounts").decode()
    box.run("create /mnt/f 4K")
    assert "/dev/ram0 /mnt ext2 rw,relatime 0 0\n" in box.system.read("/proc/mounts").decode()
    assert box.errno("mount /dev/ram0 /elsewhere type=ext2") == errno.EBUSY


def test_a_disk_of_a_given_size_fills_up(box: Box) -> None:
    box.run("mount /dev/vdc /disk type=ext2 size=1M", "create /disk/a 768K")
    assert box.errno("create /disk/b 512K") == errno.ENOSPC
    assert box.errno("truncate /disk/a 2M") == errno.ENOSPC
    box.run("unlink /disk/a", "create /disk/b 1M")
    box.run("umount /disk", "mount /dev/vdc /disk type=ext2")
    assert box.errno("read_file /disk/b") == errno.ENOENT


def test_executables_are_pages_of_the_root_file_system(box: Box) -> None:
    state = box.run("fincore /bin/busybox")
    assert (state["inode"], state["device"]) == ("9", "00:02")
    assert state["pages"] == state["dirty"] != "0"
