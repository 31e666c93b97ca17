"""Block devices: ``/proc/partitions``, ``/proc/diskstats``, ``/sys/block``, ``/sys/class/bdi``, debugfs ``bdi``.

Linux: block/genhd.c, block/blk-sysfs.c, mm/backing-dev.c. The disks that the machine swaps to, and those that a file
system was mounted from. Left out: the requests of swapping, which no queue of the model's disks has seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.bdi import BdiWriteback
from kmemd.mm.blk_mq import NR_REQUESTS, Disk
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views.tree import debugfs, proc, sysfs

MAJORS = {"sd": 8, "vd": 254}
SD_MAJORS = (8, *range(65, 72), *range(128, 136))
"""The SCSI disk driver takes them all at once."""
MINORS_PER_DISK = 16
EXTENDED_MAJOR = 259
"""Of devices whose driver has no numbers of its own."""
COUNTERS = 17
NS_PER_MS = NSEC_PER_SEC // 1000
_DISK = re.compile(r"(sd|vd)([a-z])(\d*)")


def _devices(kernel: Kernel) -> Iterator[tuple[int, int, int, str]]:
    """Major and minor number, KiB and name of each."""
    for index, device in enumerate(kernel.machine.swap):
        if device.kind != "partition":
            continue
        name = device.path.rpartition("/")[2]
        found = _DISK.fullmatch(name)
        if found is None:
            yield EXTENDED_MAJOR, index, device.size >> 10, name
        else:
            driver, letter, partition = found.groups()
            minor = (ord(letter) - ord("a")) * MINORS_PER_DISK + int(partition or 0)
            yield MAJORS[driver], minor, device.size >> 10, name
    named = {device.path for device in kernel.machine.swap}
    for disk in _disks(kernel):
        if disk.path not in named:
            yield disk.major, disk.minor, disk.size >> 10, disk.name


def _disks(kernel: Kernel) -> list[Disk]:
    """The disks that a file system was mounted from."""
    return list(kernel.user.block.disks.by_path.values())


def drivers(kernel: Kernel) -> Iterator[tuple[int, str]]:
    """Major numbers and names of the drivers of the disks that there are."""
    present = {major for major, _, _, _ in _devices(kernel)}
    if MAJORS["vd"] in present:
        yield MAJORS["vd"], "virtblk"
    if MAJORS["sd"] in present:
        yield from ((major, "sd") for major in SD_MAJORS)


@proc.file("partitions")
def partitions(kernel: Kernel) -> Iterator[str]:
    """Numbers, size in KiB and name of each; nothing at all when there is none."""
    for number, (major, minor, size, name) in enumerate(_devices(kernel)):
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
    """The counters of a disk, times in ms; it has no discards and flushes."""
    stats = disk.stats
    found: list[int] = []
    for op in (0, 1):
        found += [stats.ios[op], stats.merges[op], stats.sectors[op], stats.nsecs[op] // NS_PER_MS]
    ticks = stats.busy_ns * HZ // NSEC_PER_SEC * (1000 // HZ)
    return [*found, len(disk.queue), ticks, sum(stats.nsecs) // NS_PER_MS, 0, 0, 0, 0, 0, 0]


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


@sysfs.file("block/{disk}/queue/nr_requests")
def nr_requests(kernel: Kernel, disk: str) -> str:
    """How many requests may wait."""
    return f"{NR_REQUESTS}\n"


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
