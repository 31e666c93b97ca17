"""Block devices: ``/proc/partitions``, ``/proc/diskstats``, ``/sys/block``, ``/sys/class/bdi``, debugfs ``bdi``.

Linux: block/genhd.c, block/blk-sysfs.c, mm/backing-dev.c. The disks that the machine swaps to, and those that a file
system was mounted from.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.bdi import BdiWriteback
from kmemd.mm.blk_mq import BRD_MAJOR, FEWEST_REQUESTS, OP_DISCARD, OP_READ, OP_WRITE, Disk
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.mm.zram import ZRAM_MAJOR
from kmemd.views.tree import debugfs, proc, sysfs

MAJORS = {"sd": 8, "vd": 254}
SD_MAJORS = (8, *range(65, 72), *range(128, 136))
"""The SCSI disk driver takes them all at once."""
EXTENDED_MAJOR = 259
"""Of devices whose driver has no numbers of its own."""
COUNTERS = 17
NS_PER_MS = NSEC_PER_SEC // 1000


def _devices(kernel: Kernel) -> Iterator[tuple[int, int, int, str]]:
    """Major and minor number, KiB and name of each."""
    for disk in _disks(kernel):
        yield disk.major, disk.minor, disk.size >> 10, disk.name


def _disks(kernel: Kernel) -> list[Disk]:
    """The disks that the machine swaps to, and those that a file system was mounted from."""
    return list(kernel.user.block.disks.by_path.values())


def drivers(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """Major numbers and names of the drivers of the disks that there are."""
    present = {major for major, _, _, _ in _devices(kernel)}
    if MAJORS["vd"] in present:
        yield MAJORS["vd"], "virtblk"
    if MAJORS["sd"] in present:
        yield from ((major, "sd") for major in SD_MAJORS)
    if kernel.user.swap_storage.zram.loaded:
        yield ZRAM_MAJOR, "zram"


@proc.file("partitions")
def partitions(kernel: Kernel) -> Iterator[str]:
    """Numbers, size in KiB and name of each; nothing at all when there is none."""
    for number, (major, minor, size, name) in enumerate(device for device in _devices(kernel) if device[2]):
        if number == 0:
            yield "major minor  #blocks  name\n\n"
        yield f"{major:4}  {minor:7} {size:10} {name}\n"


@proc.file("diskstats")
def diskstats(kernel: Kernel) -> Iterator[str]:
    """Numbers and name of each, then requests, sectors and times of reads, writes, discards and flushes."""
    disks = {disk.name: disk for disk in _disks(kernel)}
    for major, minor, _, name in _devices(kernel):
        disk = disks.get(name)
        figures = " 0" * COUNTERS if disk is None else " " + " ".join(map(str, _figures(disk)))
        yield f"{major:4} {minor:7} {name}{figures}\n"


def _figures(disk: Disk) -> list[int]:
    """The counters of a disk, times in ms; it has no flushes."""
    stats = disk.stats
    reads, writes, discards = (
        [stats.ios[op], stats.merges[op], stats.sectors[op], stats.nsecs[op] // NS_PER_MS]
        for op in (OP_READ, OP_WRITE, OP_DISCARD)
    )
    ticks = stats.busy_ns * HZ // NSEC_PER_SEC * (1000 // HZ)
    return [*reads, *writes, len(disk.queue), ticks, sum(stats.nsecs) // NS_PER_MS, *discards, 0, 0]


# -- sysfs ---------------------------------------------------------------------------------------------------


@sysfs.keys("block/{disk}")
def block_disks(kernel: Kernel) -> list[str]:
    """A directory for each disk that a file system was mounted from."""
    return [disk.name for disk in _disks(kernel)]


@sysfs.keys("class/bdi/{number}")
def bdis(kernel: Kernel) -> list[str]:
    """A directory for each backing device."""
    return [disk.number for disk in _disks(kernel)]


def _find(kernel: Kernel, name: str) -> Disk:
    return next(disk for disk in _disks(kernel) if name in (disk.name, disk.number))


def _show_read_ahead(kernel: Kernel, name: str) -> str:
    """The largest readahead window."""
    return f"{_find(kernel, name).ra_pages * KIB_PER_PAGE}\n"


def _store_read_ahead(kernel: Kernel, name: str, text: str) -> int:
    """Set the window; whole pages of it count. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(text)
    if data:
        _find(kernel, name).ra_pages = kstrtox.kstrtoul(data, 10, kernel.machine.long_bits) // KIB_PER_PAGE
    return len(data)


for _path in ("block/{disk}/queue/read_ahead_kb", "class/bdi/{number}/read_ahead_kb"):
    sysfs.file(_path, mode=0o644)(_show_read_ahead).store(_store_read_ahead)


@sysfs.file("block/{disk}/queue/max_sectors_kb")
def max_sectors_kb(kernel: Kernel, disk: str) -> str:
    """The largest request."""
    return f"{_find(kernel, disk).io_pages * KIB_PER_PAGE}\n"


@sysfs.file("block/{disk}/queue/nr_requests", mode=0o644)
def nr_requests(kernel: Kernel, disk: str) -> str:
    """How many requests may wait."""
    return f"{_find(kernel, disk).nr_requests}\n"


@nr_requests.store
def _store_nr_requests(kernel: Kernel, disk: str, text: str) -> int:
    """Set it, to 4 at least. EINVAL for a disk that has no queue, ERANGE."""
    found, data = _find(kernel, disk), kstrtox.to_bytes(text)
    if found.major == BRD_MAJOR:
        raise KernelError(errno.EINVAL, f"{disk} takes bios as they come: it has no queue of requests")
    if data:
        found.nr_requests = max(kstrtox.kstrtouint(data), FEWEST_REQUESTS)
    return len(data)


def _constant(text: str) -> Callable[[Kernel, str], str]:
    """A file in which the disks of the model do not differ."""

    def show(kernel: Kernel, disk: str) -> str:
        """The same for every disk."""
        return text + "\n"

    return show


for _name, _text in {
    "ro": "0",
    "removable": "0",
    "queue/stable_writes": "0",
    "queue/logical_block_size": "512",
    "queue/hw_sector_size": "512",
}.items():
    sysfs.file(f"block/{{disk}}/{_name}")(_constant(_text))


@sysfs.file("block/{disk}/dev")
def dev(kernel: Kernel, disk: str) -> str:
    """The numbers."""
    return f"{_find(kernel, disk).number}\n"


@sysfs.file("block/{disk}/inflight")
def inflight(kernel: Kernel, disk: str) -> str:
    """Requests of reads and writes that are under way; who reads waits, so that only writes are ever seen."""
    return f"{0:8} {len(_find(kernel, disk).queue):8}\n"


@sysfs.file("block/{disk}/size")
def size(kernel: Kernel, disk: str) -> str:
    """Sectors of the disk."""
    return f"{_find(kernel, disk).size >> 9}\n"


@sysfs.file("block/{disk}/stat")
def stat(kernel: Kernel, disk: str) -> str:
    """The counters of diskstats, right-aligned."""
    found = _figures(_find(kernel, disk))
    widths = (8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8)
    return " ".join(f"{value:>{width}}" for value, width in zip(found, widths, strict=True)) + "\n"


# -- a disk's part of the dirty limits -----------------------------------------------------------------------


def _wb(kernel: Kernel, number: str) -> BdiWriteback:
    return kernel.user.block.flushers.get(_find(kernel, number))


@sysfs.file("class/bdi/{number}/min_ratio", mode=0o644)
def min_ratio(kernel: Kernel, number: str) -> str:
    """Percent of the dirty limits that are its own."""
    return f"{_wb(kernel, number).min_ratio}\n"


@min_ratio.store
def _store_min_ratio(kernel: Kernel, number: str, text: str) -> int:
    """Set it. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(text)
    if data:
        kernel.user.block.throttle.set_min_ratio(_wb(kernel, number), kstrtox.kstrtouint(data))
    return len(data)


@sysfs.file("class/bdi/{number}/max_ratio", mode=0o644)
def max_ratio(kernel: Kernel, number: str) -> str:
    """Percent of the dirty limits that it has at most."""
    return f"{_wb(kernel, number).max_ratio}\n"


@max_ratio.store
def _store_max_ratio(kernel: Kernel, number: str, text: str) -> int:
    """Set it. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(text)
    if data:
        kernel.user.block.throttle.set_max_ratio(_wb(kernel, number), kstrtox.kstrtouint(data))
    return len(data)


sysfs.file("class/bdi/{number}/stable_pages_required")(_constant("0"))


# -- debugfs -------------------------------------------------------------------------------------------------


@debugfs.keys("bdi/{number}")
def debug_bdis(kernel: Kernel) -> list[str]:
    """A directory for each backing device."""
    return [disk.number for disk in _disks(kernel)]


@debugfs.file("bdi/{number}/stats")
def bdi_stats(kernel: Kernel, number: str) -> Iterator[str]:
    """What is dirty and under write-back, the limits, the speed, and how many inodes are on the flusher's lists."""
    block = kernel.user.block
    wb = block.flushers.get(_find(kernel, number))
    background, limit = kernel.page_writeback.global_dirty_limits()
    rows = (
        ("BdiWriteback", wb.writeback, "kB"),
        ("BdiReclaimable", wb.reclaimable, "kB"),
        ("BdiDirtyThresh", block.throttle.wb_calc_thresh(wb, limit), "kB"),
        ("DirtyThresh", limit, "kB"),
        ("BackgroundThresh", background, "kB"),
        ("BdiDirtied", wb.dirtied, "kB"),
        ("BdiWritten", wb.written, "kB"),
        ("BdiWriteBandwidth", wb.write_bandwidth, "kBps"),
    )
    for label, pages, unit in rows:
        yield f"{label + ':':<19} {pages * KIB_PER_PAGE:>10} {unit}\n"
    for label, queue in (("b_dirty", wb.b_dirty), ("b_io", wb.b_io), ("b_more_io", wb.b_more_io), ("b_dirty_time", ())):
        yield f"{label + ':':<19} {len(queue):>10}\n"
    yield f"{'bdi_list:':<19} {1:>10}\n{'state:':<19} {_state(kernel, wb):>10x}\n"


def _state(kernel: Kernel, wb: BdiWriteback) -> int:
    """WB_registered, WB_writeback_running, WB_has_dirty_io, WB_start_all."""
    running, start_all = kernel.user.block.flushers.state(wb)
    return 1 | running << 1 | wb.has_dirty_io << 2 | start_all << 3
