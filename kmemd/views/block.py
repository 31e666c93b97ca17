"""``/proc/partitions`` and ``/proc/diskstats`` (block/genhd.c): the block devices that the machine swaps to.

The model has no others, and does not swap: nothing has been read from them or written to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.views.tree import proc

MAJORS = {"sd": 8, "vd": 254}
SD_MAJORS = (8, *range(65, 72), *range(128, 136))
"""The SCSI disk driver takes them all at once."""
MINORS_PER_DISK = 16
EXTENDED_MAJOR = 259
"""Of devices whose driver has no numbers of its own."""
COUNTERS = 17
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
    for major, minor, _, name in _devices(kernel):
        yield f"{major:4} {minor:7} {name}{' 0' * COUNTERS}\n"
