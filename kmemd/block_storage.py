"""Disks, write-back, buffer cache and names, wired (blk_mq_init, page_writeback_init, buffer_init, vfs_caches_init).

A part of ``user_memory.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.machine import DiskDevice
from kmemd.mm.bdi import BdiWriteback
from kmemd.mm.blk_mq import Disks, DiskSpeed
from kmemd.mm.buffer import Buffers
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.dcache import EXT2_INODE_BYTES, Dcache
from kmemd.mm.dirty_throttle import DirtyThrottle
from kmemd.mm.file_io import DiskParts
from kmemd.mm.file_write import FileWriter
from kmemd.mm.filemap import File, ZoneCounts
from kmemd.mm.fs_writeback import Flushers
from kmemd.mm.io_clock import IoClock
from kmemd.mm.printk import KERN_CRIT, KERN_ERR
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.sched import Task
from kmemd.mm.slab_flags import SLAB_ACCOUNT, SLAB_MEM_SPREAD, SLAB_RECLAIM_ACCOUNT
from kmemd.mm.task_io import TaskIo
from kmemd.mm.units import PAGE_SIZE
from kmemd.mm.vfs import Storage

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

INODE_CACHES = ("inode_cache", "proc_inode_cache", "shmem_inode_cache", "sock_inode_cache", "bdev_cache")
INODE_FLAGS = SLAB_RECLAIM_ACCOUNT | SLAB_MEM_SPREAD | SLAB_ACCOUNT


def speed_of(disk: DiskDevice, usual: DiskSpeed) -> DiskSpeed:
    """The speed of a disk that is not as fast as the others."""

    def page_ns(bandwidth: int | None, other: int) -> int:
        return other if bandwidth is None else PAGE_SIZE * NSEC_PER_SEC // bandwidth

    return DiskSpeed(
        usual.read if disk.read_latency is None else disk.read_latency,
        usual.write if disk.write_latency is None else disk.write_latency,
        page_ns(disk.read_bandwidth, usual.read_page),
        page_ns(disk.write_bandwidth, usual.write_page),
    )


class BlockStorage:
    """What is between files and disks. ``user`` is the ``UserMemory`` that is being made: what it makes later is asked
    for through it."""

    def __init__(self, kernel: Kernel, user: Any) -> None:
        self._kernel, self._user = kernel, user
        latency = kernel.machine.latency
        self.io = IoClock(kernel.clock, kernel.context, user.io_waited, lambda: user.swap_io.arrive())
        self.accounts = TaskIo(kernel.tasks, kernel.context)
        self.boot_dentries = self.boot_inodes = 0
        self._counts: ZoneCounts = ZoneCounts(kernel.zones, kernel.vmstat)
        self._reclaim_waits = False
        self._request_limit = RateLimit(lambda: kernel.context.now, kernel.printk)
        self._buffer_limit = RateLimit(lambda: kernel.context.now, kernel.printk)
        speed = DiskSpeed(latency.disk_read, latency.disk_write, latency.disk_read_page, latency.disk_write_page)
        own = {disk.path: speed_of(disk, speed) for disk in kernel.machine.disks}
        self.disks = Disks(self.io, speed, self._request_error, own)
        self.flushers: Flushers = Flushers(
            kernel.page_writeback,
            self.io,
            kernel.context,
            self._worker,
            lambda: self.writer,
            lambda: self.throttle,
            lambda file: user.file_io.write_inode(file),
            self._dirtied,
            self.accounts.cancelled,
            latency.dram_local,
        )
        self.throttle: DirtyThrottle = DirtyThrottle(
            kernel.page_writeback, kernel.vmstat, self.io, kernel.machine.cpus, self.flushers.start_background
        )
        self.buffers = Buffers(
            user.page_cache,
            kernel.pages,
            kernel.mempolicy.alloc_file_pages,
            kernel.slub,
            kernel.kmemleak.kernel_data,
            lambda: user.file_io,
            self.flushers.get,
            self._buffer_error,
        )
        self.writer: FileWriter = FileWriter(
            user.page_cache,
            kernel.pages,
            kernel.vmstat,
            user.contents,
            self.io,
            user.pageout.clean,
            self._arrived,
            self.buffers.lost,
        )
        self.dcache = Dcache(
            kernel.slub,
            kernel.kmemleak.kernel_data,
            self._nid_of,
            lambda: kernel.vmscan.vfs_cache_pressure,
            lambda *row, **more: user.page_reclaim.shrinkers.register(*row, **more),
            lambda shrinker: user.page_reclaim.shrinkers.unregister(shrinker),
            lambda file: user.file_io.invalidate(file),
            self._stolen,
            highmem=not kernel.machine.numa,
        )
        self.parts = DiskParts(self.io, self.writer, self.buffers, self.flushers, self.throttle, self.accounts)
        self.storage = Storage(self.disks, self.flushers, self.buffers, self.dcache, self.ext2_registered)

    # -- names and inodes --------------------------------------------------------------------------------

    def boot_finished(self) -> None:
        """What is in the slab caches now are names and inodes of boot, proc and sysfs, which stay."""
        self.boot_dentries = self._objects("dentry") - self.dcache.nr_dentry
        self.boot_inodes = self._objects(*INODE_CACHES) - self.dcache.nr_inodes

    def _objects(self, *names: str) -> int:
        """Objects in use of caches, as far as the machine has them."""
        slub = self._kernel.slub
        found = [slub.names.get(name) for name in names]
        return sum(slub.slab_counts(cache)[0] for cache in found if cache is not None)

    # -- who runs ----------------------------------------------------------------------------------------

    def _worker(self) -> Task | None:
        """The unbound worker that flushers run as."""
        comm = f"kworker/u{2 * self._kernel.machine.cpus}:1"
        return next((task for task in self._kernel.tasks if task.comm == comm), None)

    def _dirtied(self, wb: BdiWriteback, pages: int) -> None:
        self.accounts.dirtied(pages)
        self.throttle.account(self.accounts.dirty(), self._kernel.context.cpu, pages)

    def _arrived(self, file: File, pfns: npt.NDArray[np.int64]) -> None:
        """Pages of a file are not under write-back any more."""
        self._user.swap_io.rotate_reclaimable(pfns)
        if self._reclaim_waits:
            self._counts.move(pfns, 1, (stats.NR_THROTTLED_WRITTEN,))
        self.throttle.written(file.wb, len(pfns))
        self.flushers.io_done()

    def _stolen(self, pages: int) -> None:
        """An inode lost its pages to a shrinker (``inode_lru_isolate``)."""
        task = self._kernel.tasks.current()
        kswapd = task is not None and task.comm.startswith("kswapd")
        self._kernel.vmstat.count(stats.KSWAPD_INODESTEAL if kswapd else stats.PGINODESTEAL, pages)
        self._user.page_reclaim.shrinkers.reclaimed += pages

    # -- what is said ------------------------------------------------------------------------------------

    def _request_error(self, text: str) -> None:
        if self._request_limit("blk_print_req_error"):
            self._kernel.printk.log(KERN_ERR, text)

    def _buffer_error(self, text: str) -> None:
        if self._buffer_limit("buffer_io_error"):
            self._kernel.printk.log(KERN_ERR, text)

    def log_critical(self, text: str) -> None:
        """A file system says that something is wrong with it."""
        self._kernel.printk.log(KERN_CRIT, text)

    # -- where things are --------------------------------------------------------------------------------

    def _nid_of(self, address: int) -> int:
        """The node that an object is on."""
        kernel = self._kernel
        pfn = kernel.layout.virt_to_pfn(address)
        nid: int = kernel.zones[kernel.buddy.zone_of(pfn)].nid
        return nid

    def ext2_registered(self) -> None:
        """The cache of ext2's inodes, made when the first such file system is mounted (``init_inodecache``)."""
        slub, size = self._kernel.slub, EXT2_INODE_BYTES[self._kernel.layout.pointer_size]
        if "ext2_inode_cache" not in slub.names:
            with self._kernel.kmemleak.kernel_data():
                slub.kmem_cache_create("ext2_inode_cache", size, 0, INODE_FLAGS, "init_once")

    # -- waiting -----------------------------------------------------------------------------------------

    def wait_some(self, ns: int) -> int:
        """Reclaim waits up to ``ns`` for something to be written. How long it took."""
        start, first = self.io.now, self.io.next_event
        if first is None or first > start + ns:
            waited: int = self._user.swap_io.wait_some(ns)
            return waited
        self._reclaim_waits = True
        try:
            self.io.sleep_until(max(first, start))
        finally:
            self._reclaim_waits = False
        self._user.swap_io.wait_some(0)
        return self.io.now - start

    def wait_all(self) -> None:
        """Migration waits until nothing is under write-back."""
        self._user.swap_io.wait()
        for file in list(self._user.page_cache.files.values()):
            if file.in_flight:
                self.writer.wait(file)

    def check(self) -> None:
        """AssertionError where books are off."""
        self.disks.check()
