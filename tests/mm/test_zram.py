"""zram: compressed block devices, as swap and under a file system (mm.zram, views.zram)."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from kmemd import System
from kmemd.machine import Machine, SwapDevice
from tests.mm.files_fixture import Box

DISK = "/sys/block/zram0/"
PAGES = 512


class ZramBox(Box):
    """A system with one zram device."""

    def __init__(self) -> None:
        self.system = System.boot("default", seed=1, cmdline="zram.num_devices=1")
        self.kernel = self.system.kernel

    def figures(self, name: str) -> list[int]:
        """The numbers of a statistics file."""
        return [int(word) for word in self.system.read(DISK + name).split()]

    def refused(self, path: str, text: str) -> int:
        """The errno of a write."""
        with pytest.raises(OSError, match=r"E[A-Z]+") as error:
            self.system.write(path, text)
        self.system.check()
        return error.value.errno or 0


@pytest.fixture
def box() -> ZramBox:
    return ZramBox()


@pytest.fixture
def swap(box: ZramBox) -> ZramBox:
    """The device is swapped to before the disk."""
    box.system.write(DISK + "disksize", "16M\n")
    box.run("mkswap /dev/zram0", "swapon /dev/zram0 priority=100")
    return box


def swapped(box: Box, fill: str = "text", size: str = "2M") -> None:
    box.run("p = spawn t", f"m = mmap p {size} prot=rw", f"madvise p m {size} MADV_NOHUGEPAGE")
    box.run(f"access p m {size} w fill={fill}", f"madvise p m {size} MADV_PAGEOUT")


def test_there_is_none_unless_it_is_asked_for() -> None:
    system = System.boot("default", seed=1)
    assert b"zram" not in system.read("/proc/devices") + system.read("/proc/diskstats")
    with pytest.raises(OSError, match="ENOENT"):
        system.read("/sys/class/zram-control/hot_add")


def test_a_fresh_device(box: ZramBox) -> None:
    assert box.system.read(DISK + "comp_algorithm") == b"lzo [lzo-rle] lz4 lz4hc 842 zstd \n"
    assert box.system.read(DISK + "mm_stat") == b"       0" + b"        0" * 8 + b"\n"
    assert box.system.read(DISK + "debug_stat") == b"version: 1\n       0        0\n"
    assert box.system.read(DISK + "initstate") == b"0\n"
    assert box.system.read(DISK + "max_comp_streams") == b"2\n"
    assert box.system.read(DISK + "backing_dev") == b"none\n"
    assert b"252 zram\n" in box.system.read("/proc/devices")
    assert b"zram0" not in box.system.read("/proc/partitions"), "empty devices are not listed"
    assert b"zram0" in box.system.read("/proc/diskstats")


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("disksize", "0", errno.EINVAL),
        ("disksize", "many", errno.EINVAL),
        ("comp_algorithm", "rar", errno.EINVAL),
        ("mem_limit", "x", errno.EINVAL),
        ("mem_used_max", "1", errno.EINVAL),
        ("compact", "1", errno.EINVAL),
        ("idle", "all", errno.EINVAL),
        ("idle", "some", errno.EINVAL),
        ("reset", "0", errno.EINVAL),
        ("reset", "70000", errno.ERANGE),
        ("writeback", "idle", errno.EINVAL),
        ("backing_dev", "/dev/none", errno.ENOENT),
        ("backing_dev", "/dev/vdb", errno.EBUSY),
    ],
)
def test_what_a_fresh_device_refuses(box: ZramBox, name: str, text: str, number: int) -> None:
    assert box.refused(DISK + name, text) == number


def test_size_and_compressor_are_set_once(box: ZramBox) -> None:
    box.system.write(DISK + "comp_algorithm", "zstd\n")
    box.system.write(DISK + "disksize", "1000001")
    assert box.system.read(DISK + "disksize") == b"1003520\n"
    assert box.refused(DISK + "disksize", "2M") == errno.EBUSY
    assert box.refused(DISK + "comp_algorithm", "lzo") == errno.EBUSY
    box.system.write(DISK + "reset", "1\n")
    assert box.system.read(DISK + "disksize") == b"0\n"


def test_devices_come_and_go(box: ZramBox) -> None:
    assert box.system.read("/sys/class/zram-control/hot_add") == b"1\n"
    assert box.refused("/sys/class/zram-control/hot_remove", "7") == errno.ENODEV
    assert box.refused("/sys/class/zram-control/hot_remove", "-1") == errno.EINVAL
    box.system.write("/sys/class/zram-control/hot_remove", "0\n")
    assert box.system.read("/sys/class/zram-control/hot_add") == b"0\n", "the lowest number that is free"


def test_swap_to_it_needs_a_header(box: ZramBox) -> None:
    assert box.errno("swapon /dev/zram0") == errno.EINVAL
    box.system.write(DISK + "disksize", "16M")
    assert box.errno("swapon /dev/zram0") == errno.EINVAL
    box.run("mkswap /dev/zram0", "swapon /dev/zram0")
    assert "/dev/zram0" in box.system.read("/proc/swaps").decode()
    said = [record.text for record in box.kernel.printk.since(0)]
    assert any(line.endswith("SSFS") and "/dev/zram0" in line for line in said)


def test_pages_are_stored_at_once_and_come_back(swap: ZramBox) -> None:
    swapped(swap)
    assert swap.vmstat("pswpout", "pgpgout", "nr_writeback", "nr_swapcached") == [PAGES, 0, 0, 0]
    stored, compressed, used, limit, most, same, *_ = swap.figures("mm_stat")
    assert stored == (PAGES + 1) * 4096
    assert PAGES * 1200 < compressed < PAGES * 1730
    assert compressed < used == most == swap.vmstat("nr_zspages")[0] * 4096
    assert (limit, same) == (0, 0)
    assert swap.figures("stat")[4] == PAGES + 1
    reply = swap.run("access p m 2M r")
    assert int(reply["major"]) == swap.vmstat("pswpin")[0] == PAGES, "what it holds is not read ahead"
    swap.run("sleep 1", "swapoff /dev/zram0")
    assert swap.figures("mm_stat")[0] == 4096, "the header is left"
    assert swap.figures("io_stat")[3] == PAGES, "each slot was freed by notice"


def test_zeros_and_noise(swap: ZramBox) -> None:
    swapped(swap, "zero", "1M")
    assert swap.figures("mm_stat")[5] == 256
    swap.run("access p m 1M w fill=random", "madvise p m 1M MADV_PAGEOUT")
    assert swap.figures("mm_stat")[7:] == [256, 256]
    assert swap.figures("mm_stat")[2] >= 256 * 4096


def test_the_limit_is_a_write_error_and_no_page_is_lost(swap: ZramBox) -> None:
    swap.system.write(DISK + "mem_limit", "512K")
    swap.run("swapoff /dev/vdb")
    swapped(swap, "random")
    assert 0 < swap.figures("mm_stat")[2] <= 512 << 10
    failed = swap.figures("io_stat")[1]
    assert failed > 0
    said = [record.text for record in swap.kernel.printk.since(0)]
    assert any(line.startswith("Write-error on swap-device (252:0:") for line in said)
    swap.run("access p m 2M r", "swapoff /dev/zram0")
    assert swap.vmstat("pswpin")[0] == PAGES - failed


def test_compaction_frees_what_is_scattered(swap: ZramBox) -> None:
    swapped(swap)
    pid = swap.kernel.handles["p"].pid
    for page in range(0, PAGES, 3):
        swap.run(f"madvise {pid} m+{page * 4096} 4K MADV_DONTNEED") if page < 3 else swap.system.command(
            f"madvise {pid} m+{page * 4096} 4K MADV_DONTNEED"
        )
    swap.run("sleep 1")
    before = swap.figures("mm_stat")
    swap.system.write(DISK + "compact", "1\n")
    after = swap.figures("mm_stat")
    assert after[2] == before[2] - (after[6] << 12) < before[2]
    assert after[1] == before[1]
    swap.run("access p m 2M r")


def test_idle_pages_go_to_the_backing_device() -> None:
    box = ZramBox()
    box.run("swapoff /dev/vdb")
    box.system.write(DISK + "backing_dev", "/dev/vdb\n")
    assert box.system.read(DISK + "backing_dev") == b"/dev/vdb\n"
    box.system.write(DISK + "disksize", "16M")
    box.run("mkswap /dev/zram0", "swapon /dev/zram0")
    swapped(box, "random", "1M")
    box.system.write(DISK + "writeback_limit", "100")
    box.system.write(DISK + "writeback_limit_enable", "1")
    assert box.refused(DISK + "writeback", "huge") == errno.EIO
    assert box.figures("bd_stat") == [100, 0, 100]
    box.system.write(DISK + "writeback_limit_enable", "0")
    box.system.write(DISK + "writeback", "huge")
    assert box.figures("bd_stat") == [256, 0, 256]
    assert box.figures("mm_stat")[7] == 0
    box.run("access p m 1M r", "swapoff /dev/zram0")
    assert box.figures("bd_stat") == [0, 256, 256]


def test_idle_marks_show_in_block_state(swap: ZramBox) -> None:
    swapped(swap, "zero", "64K")
    path = "/sys/kernel/debug/zram/zram0/block_state"
    assert all(line.endswith(" s...") for line in swap.system.read(path).decode().splitlines()[1:])
    swap.system.write(DISK + "idle", "all")
    assert all(line.endswith(" s..i") for line in swap.system.read(path).decode().splitlines()[1:])
    swap.run("access p m 4K r")
    assert sum(line.endswith(" s...") for line in swap.system.read(path).decode().splitlines()[1:]) == 1


def test_it_cannot_be_reset_in_use(swap: ZramBox) -> None:
    assert swap.refused(DISK + "reset", "1") == errno.EBUSY
    assert swap.refused("/sys/class/zram-control/hot_remove", "0") == errno.EBUSY
    swap.run("swapoff /dev/zram0")
    swap.system.write(DISK + "reset", "1")
    assert swap.figures("mm_stat") == [0] * 9


def test_a_file_system_can_be_on_it(box: ZramBox) -> None:
    box.system.write(DISK + "disksize", "16M")
    box.run("mount /dev/zram0 /z type=ext2", "create /z/f 1M", "write_file /z/f n=1M", "write_file /z/f data=kept")
    box.run("sync")
    assert box.figures("mm_stat")[0] >= 1 << 20
    box.system.write("/proc/sys/vm/drop_caches", "3")
    assert bytes.fromhex(box.run("read_file /z/f n=4")["data"]) == b"kept"
    assert box.refused(DISK + "reset", "1") == errno.EBUSY


def test_a_machine_can_swap_to_one() -> None:
    swap = (SwapDevice("/dev/zram0", 1 << 26),)
    box = Box(dataclasses.replace(Machine.load("default"), swap=swap))
    swapped(box)
    assert box.vmstat("pswpout", "nr_swapcached") == [PAGES, 0]
    assert int(box.system.read(DISK + "mm_stat").split()[0]) == (PAGES + 1) * 4096


def test_pools_are_compacted_when_slab_caches_give_way(swap: ZramBox) -> None:
    """zs_shrinker_scan: as compaction by hand, for every pool."""
    swapped(swap)
    for page in range(0, PAGES, 3):
        swap.system.command(f"madvise p m+{page * 4096} 4K MADV_DONTNEED")
    swap.run("sleep 1")
    before = swap.figures("mm_stat")
    swap.system.write("/proc/sys/vm/drop_caches", "2\n")
    swap.system.check()
    after = swap.figures("mm_stat")
    assert swap.kernel.user.swap_storage.pools()[0].freeable == 0
    assert after[6] > before[6] == 0, "pages_compacted"
    assert after[2] == before[2] - (after[6] << 12), "mem_used_total"
