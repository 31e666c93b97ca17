"""zram: block devices whose pages are compressed and kept in memory (drivers/block/zram/zram_drv.c, zcomp.c).

Models: devices that come and go, their size and compressor, pages by index with same-filled, huge, idle and written
back ones, the limit of memory, compaction, a backing device, the statistics files. Sizes are mm/compress.py's, memory
is mm/zsmalloc.py's. Left out: CONFIG_ZRAM_MULTI_COMP, which 6.1 has not.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import kstrtox
from kmemd.mm.blk_mq import OP_READ, OP_WRITE, SECTORS_PER_PAGE, Disk, DiskSpeed, DiskStats
from kmemd.mm.compress import ALGORITHMS, SAME_FILLED, Compression
from kmemd.mm.params import memparse
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.swap_device import DiskSwap
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.zpool import Handle
from kmemd.mm.zram_disk import ZramDisk
from kmemd.mm.zsmalloc import Zsmalloc, huge_class_size
from kmemd.steps import Steps

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

DEFAULT_ALGORITHM = "lzo-rle"
LISTED = ("lzo", "lzo-rle", "lz4", "lz4hc", "842", "zstd")
"""What comp_algorithm shows; deflate is known and not listed (zcomp.c ``backends``)."""
ZRAM_MAJOR = 252
"""The first of the dynamic numbers that is free (``register_blkdev``)."""
GFP_FAST = g.F.KSWAPD_RECLAIM | g.F.NOWARN | g.F.HIGHMEM | g.F.MOVABLE
GFP_SLOW = g.GFP_NOIO | g.F.HIGHMEM | g.F.MOVABLE
COPY_NS = 400
"""A page that is not compressed, or filled with one word."""
SLICE = 512
"""Pages that are freed or written back before others may run."""
PAGE_SIGNATURE = b"page_index="
BACKED_BLOCK_0 = 1
"""Block 0 of a backing device is never used."""


@dataclass(eq=False, slots=True)
class Stored:
    """One page. ``size`` 0 is a same-filled one; ``block`` is its place on the backing device, 0 when it is here."""

    size: int
    handle: Handle | None = None
    idle: bool = False
    block: int = 0
    accessed_ns: int = 0


class Stats:
    """``struct zram_stats``."""

    def __init__(self) -> None:
        self.compr_data_size = self.pages_stored = self.same_pages = 0
        self.huge_pages = self.huge_pages_since = self.max_used_pages = 0
        self.failed_reads = self.failed_writes = self.invalid_io = self.notify_free = 0
        self.writestall = self.miss_free = 0
        self.bd_count = self.bd_reads = self.bd_writes = 0


@dataclass
class ZramParts:
    """What devices need: ``make_pool(name)``, ``charge(ns)``, ``backing(path)`` for a disk that may be written to,
    ``openers(path)`` counts swap areas and file systems on a device, ``now()`` in ns."""

    make_pool: Callable[[str], Zsmalloc]
    compression: Compression
    charge: Callable[[int], None]
    backing: Callable[[str], Disk]
    openers: Callable[[str], int]
    now: Callable[[], int]
    printk: Printk
    cpus: int
    long_bits: int


class Zram:
    """One device.

    Invariants: ``pages`` has the pages that are stored; ``stats`` counts them; every handle is one of ``pool``.
    """

    synchronous = True

    def __init__(self, number: int, disk: ZramDisk, parts: ZramParts) -> None:
        self.id, self.disk, self._parts = number, disk, parts
        self.name = f"zram{number}"
        self.disksize = self.limit_pages = 0
        self.algorithm = DEFAULT_ALGORITHM
        self.backing: Disk | None = None
        self.wb_limit = 0
        self.wb_limit_enable = False
        self.pool: Zsmalloc | None = None
        self.pages: dict[int, Stored] = {}
        self.header = bytes(PAGE_SIZE)
        self.stats = Stats()
        self._blocks: set[int] = set()
        self._huge = huge_class_size(parts.long_bits)
        disk.size, disk.zram = 0, self
        self._set_speed()

    @property
    def path(self) -> str:
        """``/dev/zramN``."""
        return self.disk.path

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor number."""
        return self.disk.major, self.disk.minor

    @property
    def used_pages(self) -> int:
        """Pages of memory that it takes."""
        return self.pool.pages if self.pool is not None else 0

    def _require_init(self) -> None:
        if not self.disksize:
            raise KernelError(errno.EINVAL, f"{self.name} has no size")

    # -- settings ----------------------------------------------------------------------------------------

    def set_disksize(self, text: str) -> None:
        """Give the device its size in bytes, which makes it usable. EINVAL, EBUSY."""
        size, _ = memparse(text)
        if not size:
            raise KernelError(errno.EINVAL, f"{self.name}: no size in {text.strip()!r}")
        if self.disksize:
            self._say("Cannot change disksize for initialized device")
            raise KernelError(errno.EBUSY, f"{self.name} has its size; reset it first")
        self.disksize = self.disk.size = -(-size // PAGE_SIZE) * PAGE_SIZE
        self.pool = self._parts.make_pool(self.name)

    def set_algorithm(self, text: str) -> None:
        """Choose the compressor. EINVAL, EBUSY."""
        name = text.removesuffix("\n")
        if name not in ALGORITHMS:
            raise KernelError(errno.EINVAL, f"no compressor {name}; there are {', '.join(LISTED)}")
        if self.disksize:
            self._say("Can't change algorithm for initialized device")
            raise KernelError(errno.EBUSY, f"{self.name} has its compressor; reset it first")
        self.algorithm = name
        self._set_speed()

    def _set_speed(self) -> None:
        """What the disk's requests take."""
        algorithm = ALGORITHMS[self.algorithm]
        self.disk.speed = DiskSpeed(0, 0, algorithm.decompress_ns, algorithm.compress_ns)

    def algorithms(self) -> str:
        """The compressors, the chosen one in brackets (``zcomp_available_show``)."""
        text = "".join(f"[{name}] " if name == self.algorithm else f"{name} " for name in LISTED)
        return text + ("" if self.algorithm in LISTED else f"[{self.algorithm}] ") + "\n"

    def set_mem_limit(self, text: str) -> None:
        """The most memory that it may take, in bytes; 0 is no limit. EINVAL."""
        size, rest = memparse(text)
        if rest == text:
            raise KernelError(errno.EINVAL, f"{self.name}: no size in {text.strip()!r}")
        self.limit_pages = -(-size // PAGE_SIZE)

    def reset_used_max(self, text: str) -> None:
        """The most memory that it took is what it takes now; only 0 can be written. EINVAL."""
        try:
            value = kstrtox.kstrtoul(kstrtox.to_bytes(text), 10, self._parts.long_bits)
        except KernelError as error:
            raise KernelError(errno.EINVAL, error.reason) from error
        if value:
            raise KernelError(errno.EINVAL, "mem_used_max takes 0")
        if self.disksize:
            self.stats.max_used_pages = self.used_pages

    def set_backing(self, text: str) -> None:
        """A disk that takes pages which are not worth their memory. EBUSY, ENOENT, ENOTBLK."""
        if self.disksize:
            self._say("Can't setup backing device for initialized device")
            raise KernelError(errno.EBUSY, f"{self.name} has its size; reset it first")
        self.backing = self._parts.backing(text.removesuffix("\n"))
        self._blocks.clear()
        self._say(f"setup backing device {self.backing.path}")

    def mark_idle(self, text: str) -> Steps[None]:
        """Mark pages that nobody used for so many seconds, or ``all``. EINVAL."""
        data, cutoff = kstrtox.to_bytes(text), -1
        if not kstrtox.sysfs_streq(data, "all"):
            try:
                cutoff = max(0, self._parts.now() - kstrtox.kstrtoull(data, 0) * 10**9)
            except KernelError as error:
                raise KernelError(errno.EINVAL, "idle takes all, or an age in seconds") from error
        self._require_init()
        for at, page in enumerate(list(self.pages.values())):
            page.idle = page.idle or cutoff < 0 or page.accessed_ns < cutoff
            if at % (8 * SLICE) == 0:
                yield

    def compact(self) -> None:
        """Move objects together. EINVAL."""
        self._require_init()
        assert self.pool is not None
        self.pool.compact()

    def check_unused(self) -> None:
        """EBUSY while a swap area or a file system is on it."""
        if self._parts.openers(self.path):
            raise KernelError(errno.EBUSY, f"{self.name} is in use")

    def reset(self) -> Steps[None]:
        """Free all pages and forget the size, in slices. EBUSY."""
        self.check_unused()
        self.disk.size = self.limit_pages = 0
        for at, index in enumerate(list(self.pages)):
            self._free(index)
            if at % SLICE == SLICE - 1:
                yield
        self.disksize = 0
        self.header = bytes(PAGE_SIZE)
        self.pool = None
        self.stats = Stats()
        self.disk.stats = DiskStats()
        self.backing = None
        self._blocks.clear()

    # -- pages -------------------------------------------------------------------------------------------

    def sectors(self, offsets: Numbers) -> Numbers:
        """Where slots are."""
        return offsets * SECTORS_PER_PAGE

    def cost(self, op: int, offsets: Numbers, pfns: Numbers | None) -> int:
        """ns of compressing, or of decompressing what is stored."""
        algorithm = ALGORITHMS[self.algorithm]
        if op == OP_WRITE:
            return algorithm.compress_ns * len(offsets)
        stored = [self.pages.get(offset) for offset in offsets.tolist()]
        packed = sum(1 for page in stored if page is not None and 0 < page.size < PAGE_SIZE)
        return algorithm.decompress_ns * packed + COPY_NS * (len(offsets) - packed)

    def write(self, offsets: Numbers, pfns: Numbers, requests: int, waited: int, busy: int) -> Mask:
        """Store pages of memory (``zram_rw_page``). Which ones could not be."""
        sizes = self._parts.compression.sizes(pfns, self.algorithm)
        return self.store(offsets, sizes, busy)

    def sizes_of(self, offsets: Numbers) -> Numbers:
        """What pages of a file system compress to."""
        return self._parts.compression.drawn(self.id, offsets, self.algorithm)

    def store(self, offsets: Numbers, sizes: Numbers, busy: int = 0) -> Mask:
        """Store pages that compress to so many bytes. Which ones could not be."""
        self._account(OP_WRITE, len(offsets), busy)
        rows = zip(offsets.tolist(), sizes.tolist(), strict=True)
        failed = np.array([not self._store(offset, size) for offset, size in rows], dtype=bool)
        self.stats.failed_writes += int(failed.sum())
        return failed

    def _store(self, index: int, size: int) -> bool:
        """One page; whether there was memory for it (``__zram_bvec_write``)."""
        if index >= self.disksize >> PAGE_SHIFT or self.pool is None:
            self.stats.invalid_io += 1
            return False
        handle = None
        if size != SAME_FILLED:
            size = PAGE_SIZE if size >= self._huge else size
            handle = self._malloc(self.pool, index, size)
            if handle is None:
                return False
            self.stats.compr_data_size += size
        self._free(index)
        self.stats.same_pages += handle is None
        if size == PAGE_SIZE:
            self.stats.huge_pages += 1
            self.stats.huge_pages_since += 1
        self.pages[index] = Stored(size, handle, accessed_ns=self._parts.now())
        self.stats.pages_stored += 1
        return True

    def _malloc(self, pool: Zsmalloc, index: int, size: int) -> Handle | None:
        """Memory for a page, at once or after reclaim, within the limit."""
        try:
            handle = pool.malloc(size, GFP_FAST, index)
        except KernelError:
            self.stats.writestall += 1
            try:
                handle = pool.malloc(size, GFP_SLOW, index)
            except KernelError:
                return None
        self.stats.max_used_pages = max(self.stats.max_used_pages, pool.pages)
        if self.limit_pages and pool.pages > self.limit_pages:
            pool.free(handle)
            return None
        return handle

    def write_header(self, header: bytes) -> None:
        """The first page of a swap area is written. EIO when there is no memory for it."""
        size = Compression.measured(header, self.algorithm)
        if self.store(np.zeros(1, dtype=np.int64), np.array([size], dtype=np.int64)).any():
            raise KernelError(errno.EIO, f"{self.name} has no memory for a page")
        self.header = header.ljust(PAGE_SIZE, b"\0")

    def read(self, offsets: Numbers, requests: int, busy: int) -> Mask:
        """Load pages. Which ones could not be: those whose backing device fails."""
        self._account(OP_READ, len(offsets), busy)
        return np.array([not self._load(offset) for offset in offsets.tolist()], dtype=bool)

    def _load(self, index: int) -> bool:
        page = self.pages.get(index)
        if page is None:
            return True
        page.idle, page.accessed_ns = False, self._parts.now()
        if not page.block:
            return True
        assert self.backing is not None
        self.stats.bd_reads += 1
        done, failed = self.backing.read(page.block * SECTORS_PER_PAGE, 1, 1, 0)
        self._parts.charge(max(0, done - self._parts.now()))
        self.stats.failed_reads += bool(failed)
        return not failed

    def _account(self, op: int, pages: int, busy: int) -> None:
        """rw_page counts each page as a request of its own (``bdev_end_io_acct``)."""
        stats = self.disk.stats
        stats.ios[op] += pages
        stats.sectors[op] += pages * SECTORS_PER_PAGE
        stats.nsecs[op] += busy
        stats.busy_ns += busy

    def freed(self, offsets: Numbers) -> None:
        """Swap does not use slots any more (``zram_slot_free_notify``)."""
        self.stats.notify_free += len(offsets)
        for offset in offsets.tolist():
            self._free(offset)

    def discard(self, start: int, pages: int) -> int:
        """Forget a run of pages (``zram_bio_discard``), which takes no request."""
        self.stats.notify_free += pages
        for index in range(start, start + pages) if len(self.pages) > pages else list(self.pages):
            if start <= index < start + pages:
                self._free(index)
        return 0

    def _free(self, index: int) -> None:
        """Forget a page (``zram_free_page``)."""
        page = self.pages.pop(index, None)
        if page is None:
            return
        stats = self.stats
        stats.pages_stored -= 1
        if page.block:
            self._blocks.discard(page.block)
            stats.bd_count -= 1
        elif page.handle is None:
            stats.same_pages -= 1
        else:
            assert self.pool is not None
            self.pool.free(page.handle)
            stats.compr_data_size -= page.size
            stats.huge_pages -= page.size == PAGE_SIZE

    # -- backing device ----------------------------------------------------------------------------------

    def writeback(self, text: str) -> Steps[None]:
        """Write idle or huge pages, or one, to the backing device. EINVAL, ENODEV, EIO, ENOSPC."""
        wanted = self._wanted(kstrtox.to_bytes(text))
        for at, index in enumerate(list(self.pages)):
            page = self.pages.get(index)
            if page is not None and page.handle is not None and wanted(index, page):
                self._write_back(page)
            if at % SLICE == SLICE - 1:
                yield

    def _wanted(self, data: bytes) -> Callable[[int, Stored], bool]:
        """Which pages a write to ``writeback`` means."""
        modes: dict[str, Callable[[int, Stored], bool]] = {
            "idle": lambda _index, page: page.idle,
            "huge": lambda _index, page: page.size == PAGE_SIZE,
            "huge_idle": lambda _index, page: page.idle and page.size == PAGE_SIZE,
        }
        found = next((test for word, test in modes.items() if kstrtox.sysfs_streq(data, word)), None)
        only = -1
        if found is None:
            if not data.startswith(PAGE_SIGNATURE):
                raise KernelError(errno.EINVAL, "writeback takes idle, huge, huge_idle or page_index=N")
            try:
                only = kstrtox.kstrtoul(data.removeprefix(PAGE_SIGNATURE), 10, self._parts.long_bits)
            except KernelError as error:
                raise KernelError(errno.EINVAL, error.reason) from error
        self._require_init()
        if self.backing is None:
            raise KernelError(errno.ENODEV, f"{self.name} has no backing device")
        if only >= self.disksize >> PAGE_SHIFT:
            raise KernelError(errno.EINVAL, f"{self.name} has no page {only}")
        return found or (lambda index, _page: index == only)

    def _write_back(self, page: Stored) -> None:
        """One page goes to a block of the backing device."""
        assert self.backing is not None
        assert self.pool is not None
        assert page.handle is not None
        if self.wb_limit_enable and not self.wb_limit:
            raise KernelError(errno.EIO, "the limit of pages to write back is used up")
        blocks = self.backing.size >> PAGE_SHIFT
        block = next((n for n in range(BACKED_BLOCK_0, blocks) if n not in self._blocks), 0)
        if not block:
            raise KernelError(errno.ENOSPC, f"{self.backing.path} is full")
        cost = self.backing.speed.write + self.backing.speed.write_page
        self._parts.charge(cost)
        place = np.array([block], dtype=np.int64)
        if DiskSwap(self.backing, synchronous=True).write(place, place, 1, 0, cost).any():
            raise KernelError(errno.EIO, f"{self.backing.path} cannot write block {block}")
        self._blocks.add(block)
        self.stats.bd_writes += 1
        self.stats.bd_count += 1
        self.stats.compr_data_size -= page.size
        self.stats.huge_pages -= page.size == PAGE_SIZE
        self.pool.free(page.handle)
        page.handle, page.block, page.idle = None, block, False
        if self.wb_limit_enable and self.wb_limit:
            self.wb_limit -= 1

    def _say(self, text: str) -> None:
        self._parts.printk.log(KERN_INFO, f"zram: {text}")

    def check(self) -> None:
        """The statistics are those of the pages. AssertionError."""
        stats, pages = self.stats, self.pages.values()
        packed = [page for page in pages if page.handle is not None]
        assert stats.pages_stored == len(self.pages), f"{self.name}: pages_stored is {stats.pages_stored}"
        assert stats.compr_data_size == sum(page.size for page in packed), f"{self.name}: compr_data_size is off"
        assert stats.huge_pages == sum(page.size == PAGE_SIZE for page in packed), f"{self.name}: huge_pages is off"
        same = sum(page.handle is None and not page.block for page in pages)
        assert stats.same_pages == same, f"{self.name}: {same} same-filled pages, {stats.same_pages} are counted"
        assert stats.bd_count == len(self._blocks), f"{self.name}: bd_count is {stats.bd_count}"
        if self.pool is not None:
            self.pool.check()


class ZramControl:
    """All devices, by number (``zram_index_idr``)."""

    def __init__(
        self, make_disk: Callable[[str], ZramDisk], drop_disk: Callable[[Disk], None], parts: ZramParts
    ) -> None:
        self._make_disk, self._drop_disk, self._parts = make_disk, drop_disk, parts
        self.devices: dict[int, Zram] = {}
        self.loaded = False

    def init(self, num_devices: int) -> None:
        """Load the module, with so many devices (``zram_init``)."""
        self.loaded = True
        for _ in range(num_devices):
            self.add()

    def add(self) -> Zram:
        """One more device, without a size (``zram_add``)."""
        number = next(n for n in range(len(self.devices) + 1) if n not in self.devices)
        device = Zram(number, self._make_disk(f"/dev/zram{number}"), self._parts)
        self.devices[number] = device
        self._parts.printk.log(KERN_INFO, f"zram: Added device: {device.name}")
        return device

    def remove(self, text: str) -> Steps[None]:
        """Take a device away. EINVAL, ENODEV, EBUSY."""
        number = kstrtox.kstrtoint(kstrtox.to_bytes(text))
        if number < 0:
            raise KernelError(errno.EINVAL, "a device has a number from 0 on")
        device = self.devices.get(number)
        if device is None:
            raise KernelError(errno.ENODEV, f"there is no zram{number}")
        yield from device.reset()
        self._parts.printk.log(KERN_INFO, f"zram: Removed device: {device.name}")
        self._drop_disk(device.disk)
        del self.devices[number]

    def find(self, path: str) -> Zram | None:
        """The device at a path."""
        return next((device for device in self.devices.values() if device.path == path), None)
