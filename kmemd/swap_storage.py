"""What is below swap, wired: zswap and its pools, zram devices, disks of swap areas (init_zswap, zram_init).

A part of ``user_memory.py`` in a module of its own.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kmemd.errors import KernelError
from kmemd.mm.blk_mq import Disk
from kmemd.mm.compress import Compression
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.kstrtox import kstrtouint
from kmemd.mm.printk import KERN_ALERT
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.shrinker import Shrinker
from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swap_device import DiskSwap, SwapDevice
from kmemd.mm.swap_header import make_header
from kmemd.mm.z3fold import Z3fold
from kmemd.mm.zbud import Zbud
from kmemd.mm.zpool import Evict, Zpool
from kmemd.mm.zram import ZRAM_MAJOR, ZramControl, ZramParts
from kmemd.mm.zram_disk import ZramDisk
from kmemd.mm.zsmalloc import Zsmalloc, ZsSlabs
from kmemd.mm.zswap import Zswap

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

Slots = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]
EXTENDED_MAJOR = 259
"""Of disks whose names say nothing of a driver (BLOCK_EXT_MAJOR)."""
ZSPAGE_BYTES = {64: 56, 32: 36}


class _Entries:
    """Objects of a slab cache that the kernel holds by structures of its own."""

    def __init__(self, kernel: Kernel, name: str, size: int) -> None:
        self._kernel, self._name, self._size = kernel, name, size

    def _cache(self) -> Any:
        slub = self._kernel.slub
        if self._name not in slub.names:
            slub.kmem_cache_create(self._name, self._size)
        return slub.cache(self._name)

    def alloc(self, n: int, gfp: int = GFP_KERNEL) -> Addresses:
        """Up to ``n`` objects."""
        with self._kernel.kmemleak.kernel_data():
            found: Addresses = self._kernel.slub.kmem_cache_alloc_bulk(self._cache(), gfp, n)
        return found

    def free(self, addresses: Addresses) -> None:
        """Give objects back."""
        if len(addresses):
            self._kernel.slub.kmem_cache_free_bulk(self._cache(), addresses)


class SwapStorage:
    """Devices of swap areas, and what keeps pages in memory instead. ``user`` is the ``UserMemory`` being made."""

    def __init__(self, kernel: Kernel, user: Any) -> None:
        self._kernel, self._user = kernel, user
        self.zsmalloc: list[Zsmalloc] = []
        self._shrinkers: dict[Zsmalloc, Shrinker] = {}
        self.zsmalloc_loaded = False
        compression = Compression(kernel.pages, user.contents)
        self.zswap: Zswap = Zswap(
            self._make_zpool,
            compression,
            _Entries(kernel, "zswap_entry", 64 if kernel.machine.long_bits == 64 else 40),
            kernel.vmstat,
            kernel.printk,
            kernel.totalram_pages,
            kernel.context.charge,
            kernel.zswap_charging.owners,
            lambda work: user.block.io.call_at(kernel.clock.now, lambda when: self._as_worker(work)),
            user.swap_state.write_back,
            long_bits=kernel.machine.long_bits,
        )
        self.zswap.groups = kernel.zswap_charging
        self.zram = ZramControl(
            self._make_disk,
            self._drop_disk,
            ZramParts(
                lambda name: self._make_zsmalloc(name),
                compression,
                kernel.context.charge,
                self._backing,
                self._openers,
                lambda: kernel.clock.now,
                kernel.printk,
                kernel.machine.cpus,
                kernel.machine.long_bits,
            ),
        )
        self._devices: dict[SwapArea, SwapDevice | None] = {}
        self._discarding: set[SwapArea] = set()
        self._limits: dict[str, RateLimit] = {}
        self.zswap.init(lambda name: kernel.cmdline.get(f"zswap.{name}"))
        self._load_zram()
        self._connect()

    def _load_zram(self) -> None:
        """The devices that the command line asks for, and those that the machine swaps to."""
        kernel = self._kernel
        option = kernel.cmdline.get("zram.num_devices")
        named = [device for path, device in kernel.swap.devices.items() if path.startswith("/dev/zram")]
        wanted = max((int(device.path[9:]) + 1 for device in named if device.path[9:].isdigit()), default=0)
        if option is not None:
            try:
                wanted = max(wanted, kstrtouint(option.encode(), 0))
            except KernelError:
                wanted = max(wanted, 1)
        if option is not None or named:
            self.zram.init(wanted)
        for device in named:
            found = self.zram.find(device.path)
            if found is not None:
                found.set_disksize(str(device.size))
                found.write_header(make_header(device.size))

    def _connect(self) -> None:
        """Swap finds its devices here, and tells them of slots that are free."""
        kernel, io = self._kernel, self._user.swap_io
        files = kernel.swap.files
        io.account_read = self._user.block.accounts.read_from_disk
        io.frontswap, io.area_of, io.device_of, io.report = self.zswap, files.area, self.device, self._report
        files.on_free, files.on_end, files.on_swapon = self._freed, self._ended, lambda area: self.device(area)
        files.on_discard, files.schedule_discard = self._discard, self._schedule_discard
        for path, device in kernel.swap.devices.items():
            if device.kind == "partition" and self.zram.find(path) is None:
                self._disk(path).size = device.size
        for area in files.areas:
            self.device(area)

    # -- devices -----------------------------------------------------------------------------------------

    def device(self, area: SwapArea) -> SwapDevice | None:
        """What an area is on; None for a file of boot, of which the model has no disk."""
        if area not in self._devices:
            self._devices[area] = self._find(area)
        return self._devices[area]

    def _find(self, area: SwapArea) -> SwapDevice | None:
        zram = self.zram.find(area.path)
        if zram is not None:
            return zram
        if area.kind != "partition" and area.path in self._kernel.swap.devices:
            return None
        if area.kind == "partition":
            return DiskSwap(self._disk(area.path), synchronous=area.synchronous)
        file = self._user.vfs.lookup(area.path)
        return DiskSwap(file.wb.disk, synchronous=area.synchronous, blocks_at=file.blocks_at)

    def _disk(self, path: str) -> Disk:
        """A disk by any name; those whose name says nothing have numbers of their own."""
        disks = self._user.block.disks
        try:
            found: Disk = disks.get(path)
        except KernelError:
            minor = sum(disk.major == EXTENDED_MAJOR for disk in disks.by_path.values())
            found = disks.add(path, (EXTENDED_MAJOR, minor), Disk)
        return found

    def _make_disk(self, path: str) -> ZramDisk:
        number = ZRAM_MAJOR, int(path.removeprefix("/dev/zram"))
        found: ZramDisk = self._user.block.disks.add(path, number, ZramDisk)
        return found

    def _drop_disk(self, disk: Disk) -> None:
        del self._user.block.disks.by_path[disk.path]

    def _backing(self, path: str) -> Disk:
        """The disk that a zram device may write to. ENOENT, ENOTBLK."""
        if not path.startswith("/dev/"):
            self._user.vfs.lookup(path)
            raise KernelError(errno.ENOTBLK, f"{path} is no block device")
        try:
            found: Disk = self._user.block.disks.get(path)
        except KernelError as error:
            raise KernelError(errno.ENOENT, error.reason) from error
        if self._openers(path):
            raise KernelError(errno.EBUSY, f"{path} is in use")
        return found

    def _openers(self, path: str) -> int:
        """Swap areas and file systems on a device."""
        mounts: int = sum(mount.source == path for mount in self._user.vfs.mounts)
        backed = sum(zram.backing is not None and zram.backing.path == path for zram in self.zram.devices.values())
        return int(self._kernel.swap.files.find(path) is not None) + mounts + backed

    def _report(self, function: str, text: str) -> None:
        """An alert, ten of each kind in five seconds at most."""
        limit = self._limits.get(function)
        if limit is None:
            limit = self._limits[function] = RateLimit(lambda: self._kernel.context.now, self._kernel.printk)
        if limit(function):
            self._kernel.printk.log(KERN_ALERT, text)

    def _freed(self, area: SwapArea, offsets: Slots) -> None:
        """Slots are free (``swap_range_free``)."""
        if self.zswap.entries:
            self.zswap.invalidate(offsets | area.number << 50)
        device = self._devices.get(area)
        if device is not None:
            device.freed(offsets)

    def _discard(self, area: SwapArea, start: int, pages: int) -> None:
        """Tell the disk of slots without use (``blkdev_issue_discard``)."""
        device = self.device(area)
        if device is not None:
            self._kernel.context.charge(device.discard(start, pages))

    def _schedule_discard(self, area: SwapArea) -> None:
        """Have a kernel thread discard the clusters that wait for it, once (``swap_discard_work``)."""
        if area not in self._discarding:
            self._discarding.add(area)
            self._user.block.io.call_at(self._kernel.clock.now, lambda when: self._do_discard(area))

    def _do_discard(self, area: SwapArea) -> None:
        self._discarding.discard(area)
        area.do_scheduled_discard()

    def _ended(self, area: SwapArea) -> None:
        """An area is off (``frontswap_invalidate_area``); all its slots were freed before."""
        self._devices.pop(area, None)

    # -- pools -------------------------------------------------------------------------------------------

    def _make_zpool(self, kind: str, name: str, evict: Evict) -> Zpool:
        if kind == "zsmalloc":
            return self._make_zsmalloc(name)
        pool: Zpool = (Z3fold if kind == "z3fold" else Zbud)(name, self._kernel.page_alloc, evict)
        return pool

    def _make_zsmalloc(self, name: str) -> Zsmalloc:
        """A pool with slabs of its own for handles and groups (``create_cache``)."""
        kernel, bits = self._kernel, self._kernel.machine.long_bits
        caches = {
            "zs_handle": _Entries(kernel, "zs_handle", bits // 8),
            "zspage": _Entries(kernel, "zspage", ZSPAGE_BYTES[bits]),
        }

        def alloc(cache: str, gfp: int) -> int:
            found = caches[cache].alloc(1, gfp)
            if not len(found):
                raise KernelError(errno.ENOMEM, f"no object for a {cache}")
            return int(found[0])

        slabs = ZsSlabs(alloc, lambda cache, address: caches[cache].free(np.array([address], dtype=np.uint64)))
        pool = Zsmalloc(name, kernel.page_alloc, slabs, bits)
        self.zsmalloc = [*self.pools(), pool]
        self.zsmalloc_loaded = True
        self.register_shrinkers()
        return pool

    def register_shrinkers(self) -> None:
        """Pools can be compacted when memory is short (``zs_register_shrinker``), once there is reclaim."""
        reclaim = getattr(self._user, "page_reclaim", None)
        if reclaim is None:
            return
        for pool in [pool for pool in self._shrinkers if pool not in self.zsmalloc]:
            reclaim.shrinkers.unregister(self._shrinkers.pop(pool))
        for pool in self.zsmalloc:
            if pool not in self._shrinkers:
                self._shrinkers[pool] = reclaim.shrinkers.register(
                    f"mm-zspool:{pool.name}",
                    lambda nid, pool=pool: pool.freeable,
                    lambda nid, pages, pool=pool: pool.compact(),
                )

    def pools(self) -> list[Zsmalloc]:
        """The zsmalloc pools that are in use."""
        used: set[Any] = {pool.zpool for pool in self.zswap.pools} | {zram.pool for zram in self.zram.devices.values()}
        return [pool for pool in self.zsmalloc if pool in used]

    def zspages(self) -> list[int]:
        """Pages of zsmalloc by zone (NR_ZSPAGES)."""
        kernel = self._kernel
        found = [0] * len(kernel.zones)
        for pool in self.pools():
            for pfn in pool.pfns():
                found[kernel.buddy.zone_of(pfn)] += 1
        return found

    def _as_worker(self, work: Any) -> None:
        """Run as the work queue's thread."""
        self._user.run_as("zswap-shrink")
        work()

    def check(self) -> None:
        """Pools and devices agree with themselves and with swap. AssertionError."""
        self.zswap.check()
        for slot in self.zswap.entries:
            area = self._kernel.swap.files.area(slot)
            offset = slot & ((1 << 50) - 1)
            assert area.count[offset] or area.cache[offset], f"zswap holds slot {offset}, which is free"
        for zram in self.zram.devices.values():
            zram.check()
