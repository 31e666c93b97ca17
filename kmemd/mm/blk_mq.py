"""Disks and their request queues (block/blk-mq.c, block/blk-merge.c, block/genhd.c, drivers/block/brd.c).

A disk does one request after the other: each costs the latency of the machine's table and the time that its pages
take at the disk's bandwidth; both can be set for each disk. Reads go before writes that wait, as mq-deadline has it; a
bio that follows the last waiting request is merged with it. Sectors can be made bad: a request that touches one fails,
with the kernel's line and errno.
Left out: more than one hardware queue, barriers, priorities; discards wait for nothing in the queue.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from kmemd.errors import KernelError
from kmemd.mm.io_clock import IoClock
from kmemd.mm.units import GIB, PAGE_SIZE

SECTOR_SIZE = 512
SECTORS_PER_PAGE = PAGE_SIZE // SECTOR_SIZE
BIO_MAX_VECS = 256
"""Pages of one bio."""
MAX_REQUEST_PAGES = 320
"""BLK_DEF_MAX_SECTORS: 1280 KiB."""
NR_REQUESTS, FEWEST_REQUESTS = 128, 4
"""Waiting requests, when a submitter has to wait itself (BLKDEV_DEFAULT_RQ, BLKDEV_MIN_RQ)."""
ERRORS = {
    errno.EIO: "I/O",
    errno.ETIMEDOUT: "timeout",
    errno.ENOSPC: "critical space allocation",
    errno.ENOLINK: "recoverable transport",
    errno.EREMOTEIO: "critical target",
    errno.ENODATA: "critical medium",
    errno.EILSEQ: "protection",
    errno.ENODEV: "device offline",
}
"""What a disk can complain of (``blk_errors``)."""
VM_READAHEAD_PAGES = 32
BRD_MAJOR, VIRTIO_MAJOR, SD_MAJOR = 1, 254, 8
MINORS_PER_DISK = 16
OP_READ, OP_WRITE, OP_DISCARD = 0, 1, 2
"""As rows of /proc/diskstats (``op_stat_group``)."""
OP_NAMES = ("READ", "WRITE")
REQ_FAILFAST, REQ_SYNC, REQ_META, REQ_PRIO = 0x700, 0x800, 0x1000, 0x2000
REQ_RAHEAD, REQ_BACKGROUND = 0x80000, 0x100000
IOPRIO_CLASS_BE = 2
DEFAULT_BYTES = 4096 * GIB


@dataclass(frozen=True)
class DiskSpeed:
    """Model time in ns of a request, and of each of its pages."""

    read: int
    write: int
    read_page: int
    write_page: int


@dataclass(eq=False, slots=True)
class Bio:
    """A run of pages on their way to a disk. ``done(error)`` is called when they have arrived, or cannot: an errno."""

    sector: int
    pages: int
    segments: int
    flags: int
    done: Callable[[int], None]

    @property
    def end(self) -> int:
        """The sector behind."""
        return self.sector + self.pages * SECTORS_PER_PAGE


@dataclass(eq=False, slots=True)
class Request:
    """Neighbouring bios that the disk does at once."""

    bios: list[Bio]
    pages: int
    start_ns: int

    @property
    def sector(self) -> int:
        """Where it begins."""
        return self.bios[0].sector

    def takes(self, bio: Bio) -> bool:
        """Whether a bio can be merged behind (``blk_try_merge``)."""
        last = self.bios[-1]
        follows = last.end == bio.sector and last.flags == bio.flags
        return follows and self.pages + bio.pages <= MAX_REQUEST_PAGES


@dataclass
class DiskStats:
    """A row of /proc/diskstats; each list is of reads, writes and discards."""

    ios: list[int] = field(default_factory=lambda: [0, 0, 0])
    merges: list[int] = field(default_factory=lambda: [0, 0, 0])
    sectors: list[int] = field(default_factory=lambda: [0, 0, 0])
    nsecs: list[int] = field(default_factory=lambda: [0, 0, 0])
    busy_ns: int = 0


class Disk:
    """One block device. ``log(text)`` writes a limited kernel message of level error; ``usual_speed`` is the one of
    disks of which nobody said how fast they are.

    Invariants: ``queue[0]`` is the request in service while there is one; its end is an event.
    """

    def __init__(self, path: str, number: tuple[int, int], io: IoClock, speed: DiskSpeed, log: Callable[[str], None]):
        self.path, self.name = path, path.rpartition("/")[2]
        self.major, self.minor = number
        self.size = DEFAULT_BYTES
        self.stats = DiskStats()
        self.ra_pages = VM_READAHEAD_PAGES
        self.io_pages = VM_READAHEAD_PAGES if self.major == BRD_MAJOR else MAX_REQUEST_PAGES
        self.bad: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]] = ([], [])
        self.queue: deque[Request] = deque()
        self.nr_requests = NR_REQUESTS
        self.speed = self.usual_speed = speed
        self._io, self._log = io, log
        self._free_at = 0

    @property
    def number(self) -> str:
        """``major:minor`` as /sys/class/bdi has it."""
        return f"{self.major}:{self.minor}"

    @property
    def device(self) -> str:
        """``major:minor`` as /proc/PID/maps has it."""
        return f"{self.major:02x}:{self.minor:02x}"

    @property
    def has_own_speed(self) -> bool:
        """Whether somebody said how fast it is."""
        return self.speed != self.usual_speed

    def cost(self, op: int, requests: int, pages: int) -> int:
        """ns that it takes for so many requests with so many pages in all."""
        speed = self.speed
        each, page = (speed.read, speed.read_page) if op == OP_READ else (speed.write, speed.write_page)
        return each * requests + page * pages

    @property
    def congested(self) -> bool:
        """Whether who submits must wait for a request to be done."""
        return len(self.queue) >= self.nr_requests

    def fails(self, op: int, sector: int, end: int) -> int:
        """The errno of a range that has a bad sector; 0 when all is well."""
        return next((error for low, high, error in self.bad[op] if low < end and sector < high), 0)

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, sector: int, pages: int, segments: int, flags: int) -> tuple[int, int]:
        """When a read is done that is asked for now, and its errno or 0. It goes before waiting writes."""
        start = max(self._io.now, self._free_at)
        cost = self.speed.read + self.speed.read_page * pages
        self._free_at = start + cost
        self._account(OP_READ, pages, self._free_at - self._io.now, cost)
        failed = self.fails(OP_READ, sector, sector + pages * SECTORS_PER_PAGE)
        if failed:
            self.print_error(failed, OP_READ, sector, segments, flags | (REQ_FAILFAST if flags & REQ_RAHEAD else 0))
        return self._free_at, failed

    @property
    def free_at(self) -> int:
        """When it has done what it was asked to do so far; a moment that may be over."""
        return self._free_at

    @property
    def single_read_ns(self) -> int:
        """What reading a page alone takes."""
        return self.speed.read + self.speed.read_page

    def read_alone(self, count: int, waited_ns: int, free_at: int) -> None:
        """``count`` pages were read, each alone and after the one before had come, as ``read`` would have done it; they
        were waited for so long together, and the last one came at ``free_at``."""
        self._free_at = free_at
        self.stats.ios[OP_READ] += count
        self.stats.sectors[OP_READ] += count * SECTORS_PER_PAGE
        self.stats.nsecs[OP_READ] += waited_ns
        self.stats.busy_ns += count * self.single_read_ns

    # -- writing -----------------------------------------------------------------------------------------

    def submit(self, bio: Bio) -> None:
        """A bio to write; it is merged with the last request when it follows that one and the disk has not begun."""
        last = self.queue[-1] if len(self.queue) > 1 else None
        if last is not None and last.takes(bio):
            last.bios.append(bio)
            last.pages += bio.pages
            self.stats.merges[OP_WRITE] += 1
            return
        self.queue.append(Request([bio], bio.pages, self._io.now))
        if len(self.queue) == 1:
            self._start(self._io.now)

    def _start(self, now: int) -> None:
        """The first of the queue is in service."""
        cost = self.speed.write + self.speed.write_page * self.queue[0].pages
        self._free_at = max(now, self._free_at) + cost
        self.stats.busy_ns += cost
        self._io.call_at(self._free_at, self._end)

    def _end(self, when: int) -> None:
        """The request in service is done; the next one begins at once."""
        request = self.queue.popleft()
        if self.queue:
            self._start(when)
        sectors = request.pages * SECTORS_PER_PAGE
        self._account(OP_WRITE, request.pages, when - request.start_ns, 0)
        failed = self.fails(OP_WRITE, request.sector, request.sector + sectors)
        if failed:
            blocks = sum(bio.segments for bio in request.bios)
            self.print_error(failed, OP_WRITE, request.sector, blocks, request.bios[0].flags)
        for bio in request.bios:
            bio.done(failed)

    def discard(self, pages: int) -> int:
        """A range is of no use any more (``blkdev_issue_discard``): ns that the request takes."""
        self._account(OP_DISCARD, pages, self.speed.write, self.speed.write)
        return self.speed.write

    def drained_by(self) -> int:
        """When the request in service will be done; now, when there is none."""
        return max(self._free_at, self._io.now) if self.queue else self._io.now

    # -- books -------------------------------------------------------------------------------------------

    def _account(self, op: int, pages: int, waited: int, busy: int) -> None:
        stats = self.stats
        stats.ios[op] += 1
        stats.sectors[op] += pages * SECTORS_PER_PAGE
        stats.nsecs[op] += waited
        stats.busy_ns += busy

    def print_error(self, error: int, op: int, sector: int, segments: int, flags: int) -> None:
        """blk_print_req_error."""
        self._log(
            f"{ERRORS[error]} error, dev {self.name}, sector {sector} op 0x{op:x}:({OP_NAMES[op]}) flags 0x{flags:x}"
            f" phys_seg {segments} prio class {IOPRIO_CLASS_BE}"
        )

    def check(self) -> None:
        """Requests have the pages of their bios. AssertionError."""
        for request in self.queue:
            assert request.pages == sum(bio.pages for bio in request.bios), f"{self.name}: a request's pages are off"


AnyDisk = TypeVar("AnyDisk", bound=Disk)


class Disks:
    """The disks that hold file systems, by path, made when they are first mounted. ``own`` are the speeds of those that
    are not as fast as others."""

    def __init__(
        self, io: IoClock, speed: DiskSpeed, log: Callable[[str], None], own: Mapping[str, DiskSpeed] | None = None
    ) -> None:
        self._io, self._speed, self._log = io, speed, log
        self._own = own or {}
        self.by_path: dict[str, Disk] = {}

    def get(self, path: str) -> Disk:
        """The disk at a path. ENODEV."""
        disk = self.by_path.get(path)
        if disk is None:
            disk = self.add(path, disk_number(path), Disk)
        return disk

    def add(self, path: str, number: tuple[int, int], kind: type[AnyDisk]) -> AnyDisk:
        """A disk of another kind, or whose name says nothing of its number."""
        disk = self.by_path[path] = kind(path, number, self._io, self._speed, self._log)
        disk.speed = self._own.get(path, self._speed)
        return disk

    def check(self) -> None:
        """AssertionError where a queue's books are off."""
        for disk in self.by_path.values():
            disk.check()


def disk_number(path: str) -> tuple[int, int]:
    """Major and minor number that a disk's name says. ENODEV."""
    name = path.rpartition("/")[2]
    if name.startswith("ram") and name[3:].isdigit():
        return BRD_MAJOR, int(name[3:])
    if name[:2] in ("vd", "sd") and name[2:3].islower() and (name[3:] or "0").isdecimal():
        minor = MINORS_PER_DISK * (ord(name[2]) - ord("a")) + int(name[3:] or 0)
        return (VIRTIO_MAJOR if name[0] == "v" else SD_MAJOR), minor
    raise KernelError(errno.ENODEV, f"there is no block device {path}")
