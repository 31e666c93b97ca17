"""User memory, wired: page tables, files, swap, huge pages, mappings and programs, on top of the page allocator.

A part of ``kernel.py`` in a module of its own: what Linux sets up in ``mmu_init``, ``pagecache_init``, ``shmem_init``,
``swap_init``, ``hugepage_init`` and ``fork_init``. Each subsystem gets what it needs by its constructor.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kmemd.block_storage import BlockStorage
from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.mmu import READ, Mmu
from kmemd.core.ptes import PteRanges
from kmemd.core.swap_fault import SwapFaults
from kmemd.errors import KernelError
from kmemd.huge_pages import (
    make_huge_split,
    make_hugetlb_vm,
    make_khugepaged,
    make_split_huge_pages,
    make_thp,
)
from kmemd.memory_pressure import PageReclaim
from kmemd.mm import gfp as g
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.contents import Contents
from kmemd.mm.exec import IMAGE_SEGMENTS, Exec
from kmemd.mm.fault_parts import Parts
from kmemd.mm.file_check import FileCheck
from kmemd.mm.file_io import FileIo
from kmemd.mm.file_read import FileReads, Machinery
from kmemd.mm.filemap import File, FileKind, PageCache, ZoneCounts
from kmemd.mm.files import Files
from kmemd.mm.fork import Fork
from kmemd.mm.holders import Holders
from kmemd.mm.huge_page import HugePages
from kmemd.mm.huge_pmd import TransparentHuge
from kmemd.mm.hugetlb_migrate import HugetlbMigrate
from kmemd.mm.khugepaged import Khugepaged, KhugepagedSlots
from kmemd.mm.layout import PHYSICAL_START, X86_64
from kmemd.mm.madvise import Madvise
from kmemd.mm.mbind import Mbind
from kmemd.mm.memory import Memory
from kmemd.mm.migrate import Migrate
from kmemd.mm.mincore import Mincore
from kmemd.mm.mlock import Mlock
from kmemd.mm.mm_struct import MmStructs
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import AddressSpaces, Backing
from kmemd.mm.mprotect import Mprotect
from kmemd.mm.mremap import Mremap
from kmemd.mm.msync import Msync
from kmemd.mm.numa_balancing import NumaBalancing
from kmemd.mm.page_io import SwapIo
from kmemd.mm.pageout import PageCosts, PageOut
from kmemd.mm.pfnmap import DeviceFaults, PfnMap
from kmemd.mm.pgtable import PageTables
from kmemd.mm.remote_vm import RemoteVm
from kmemd.mm.rlimit import Rlimits
from kmemd.mm.rmap import Rmap
from kmemd.mm.sched import max_threads
from kmemd.mm.shmem import Shmem
from kmemd.mm.signals import Signal
from kmemd.mm.swap_fault import SwapAccess
from kmemd.mm.swap_state import SwapState
from kmemd.mm.swapfile import slots_of
from kmemd.mm.swapoff import SwapOff
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.unmapped_area import UnmappedArea, UserLayout
from kmemd.mm.vfs import Vfs, room
from kmemd.mm.vma import VmaList
from kmemd.mm.vma_pages import Services, VmaPages
from kmemd.mm.vma_slab import VmaObjects
from kmemd.mm.zap import ZapPages
from kmemd.swap_storage import SwapStorage

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PFNs = npt.NDArray[np.int64]
LRU_EVENTS = (
    *(stats.PGACTIVATE, stats.PGDEACTIVATE, stats.PGLAZYFREE, stats.UNEVICTABLE_PGCULLED, stats.UNEVICTABLE_PGRESCUED),
    *(stats.UNEVICTABLE_PGMLOCKED, stats.UNEVICTABLE_PGMUNLOCKED, stats.UNEVICTABLE_PGSTRANDED, stats.PGROTATED),
)
LEVELS = {X86_64: (9, 4), "i386": (10, 2)}
"""Bits of an index into a table, and levels of tables."""
LEVELS_LA57 = 5
ROOTFS_DEVICE = "00:02"
FIRST_PROGRAM_INO = 9
JIFFY_NS = NSEC_PER_SEC // HZ
GFP_SWAP = g.GFP_HIGHUSER_MOVABLE | g.F.COMP


class UserMemory:
    """Everything about user memory of one kernel, as attributes that the kernel passes on."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._programs_by_path: dict[str, File] = {}
        self._tables()
        self._files()
        self._huge()
        self._migration()
        self._faults()
        self._shmem_and_pageout()
        self._file_systems()
        self._areas()
        self._mapping_calls()
        self._programs()

    def _tables(self) -> None:
        """LRU lists, page tables, TLBs."""
        kernel = self._kernel
        machine, latency, vmstat = kernel.machine, kernel.machine.latency, kernel.vmstat
        zones = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in kernel.zones]
        lru_items = (stats.NR_ZONE_INACTIVE_ANON, stats.NR_INACTIVE_ANON, stats.NR_MLOCK)
        self.lru = Lru(kernel.pages, kernel.context, zones, machine.cpus, vmstat, lru_items, LRU_EVENTS)
        bits, levels = LEVELS[machine.arch]
        self.la57 = machine.arch == X86_64 and kernel.cmdline.has("la57")
        rss_items = (stats.NR_ANON_MAPPED, stats.NR_FILE_MAPPED)
        self.mmu = Mmu(
            kernel.pages,
            kernel.context,
            zones,
            machine.cpu_nodes,
            vmstat,
            self.lru,
            bits,
            LEVELS_LA57 if self.la57 else levels,
            self._kernel_data_pfn(),
            (stats.PGFAULT, stats.NR_ANON_MAPPED, stats.PGREUSE),
            (latency.tlb_hit, latency.tlb_walk, latency.minor_fault, latency.dram_local, latency.dram_remote),
        )
        self.ptes = PteRanges(self.mmu, kernel.pages, zones, vmstat, rss_items, vmstat.hpage_pmd_nr)
        self.tables = PageTables(
            self.mmu,
            kernel.page_alloc,
            kernel.pages,
            kernel.zones,
            vmstat,
            kernel.context,
            kernel.depot,
            lambda gfp: kernel.mempolicy.alloc_pages(kernel.tasks.current(), gfp),
        )
        self.contents = Contents(kernel.pages)

    def _kernel_data_pfn(self) -> int:
        """Where the kernel has its data, of which the first page is the shared zero page, the second the vDSO's."""
        iomem = self._kernel.machine.iomem
        start = next((found.start for found in iomem if found.name == "Kernel data"), PHYSICAL_START)
        return start >> PAGE_SHIFT

    def _files(self) -> None:
        """The page cache, the reverse map, the swap cache."""
        kernel = self._kernel
        latency = kernel.machine.latency
        counts = self._counts = ZoneCounts(kernel.zones, kernel.vmstat)
        self.page_cache = PageCache(
            kernel.pages,
            counts,
            kernel.vmstat,
            self.lru,
            kernel.page_alloc,
            lambda pfns: self.block.buffers.free(pfns),
        )
        self.vma_objects = VmaObjects(kernel.slub, kernel.kmemleak.kernel_data)
        self.rmap = Rmap(self.mmu, kernel.pages, kernel.zones, kernel.vmstat, self.page_cache.owner, self.vma_objects)
        self.swap_io = SwapIo(
            kernel.pages,
            counts,
            kernel.vmstat,
            kernel.context,
            kernel.clock,
            self.lru,
            latency.swap_read,
            latency.swap_write,
            self.io_waited,
        )
        self.swap_state = SwapState(
            kernel.swap,
            kernel.pages,
            counts,
            kernel.vmstat,
            self.page_cache,
            self.contents,
            self._swap_pages,
            self.swap_io,
            self._swap_faults,
        )

    def io_waited(self, ns: int, sleeps: int = 1) -> None:
        """The executing task has waited for a device; for a page that its working set lacks, for memory as well."""
        kernel = self._kernel
        task = kernel.tasks.current()
        kernel.tasks.io_waited(ns, sleeps)
        workingset = self.page_reclaim.workingset
        if ns and workingset.thrashing:
            workingset.thrashing = False
            kernel.psi.thrashing(task, ns)
        else:
            kernel.psi.iostall(task, ns)

    def _swap_faults(self, room: Any, windows: Any) -> SwapFaults:
        """The loop of faults on swap."""
        kernel = self._kernel
        zones = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in kernel.zones]
        items = stats.NR_ANON_MAPPED, stats.NR_FILE_PAGES, stats.NR_SWAPCACHE, stats.SWAP_RA_HIT
        return SwapFaults(self.mmu, kernel.pages, zones, kernel.vmstat, self.lru, items, room, windows)

    def _swap_pages(self, task: Any, vma: Vma | None, vpn: int, n: int) -> PFNs:
        """Pages to read swap slots into."""
        vpns = np.arange(vpn, vpn + n, dtype=np.int64)
        mempolicy = self._kernel.mempolicy
        if vma is None:
            return self._kernel.page_alloc.alloc_pages_bulk(GFP_SWAP, 0, n)
        return mempolicy.alloc_bulk(vma, task, vpns, GFP_SWAP)

    def _huge(self) -> None:
        """Transparent huge pages, and mappings of hugetlb's."""
        kernel = self._kernel
        spans = [(zone.start_pfn, zone.end_pfn, zone.nid) for zone in kernel.zones]
        huge = HugePages(kernel.pages, self.mmu, kernel.context, kernel.machine.latency.zero_page, spans)
        self.huge_pages = huge
        self.huge_split = make_huge_split(kernel, self)
        self.khugepaged_slots = KhugepagedSlots(kernel.huge_memory)
        self.thp: TransparentHuge = make_thp(kernel, self)
        self.hugetlb_vm = make_hugetlb_vm(kernel, self)

    def _migration(self) -> None:
        """Pages that move, and NUMA balancing, which moves them."""
        kernel = self._kernel
        self.migrate = Migrate(
            kernel.pages,
            self.mmu,
            self.lru,
            self.rmap,
            Holders(kernel.pages, self.page_cache, self.swap_state, self.contents, self.huge_split, self.thp),
            kernel.page_alloc,
            kernel.vmstat,
            kernel.context,
            kernel.mempolicy,
            kernel.owner,
            kernel.machine.latency.zero_page,
            lambda: self.block.wait_all(),
        )
        self.numa = NumaBalancing(
            kernel.pages,
            self.mmu,
            kernel.mempolicy,
            self.migrate,
            kernel.page_alloc,
            kernel.zones,
            kernel.nodes,
            kernel.vmstat,
            kernel.context,
            kernel.buddy.watermark_ok,
            kernel.mm_counters.rss,
        )

    def _faults(self) -> None:
        """The fault handler, and what takes pages out again."""
        kernel = self._kernel
        parts = Parts(self.thp, self.hugetlb_vm, self.swap_state, self.numa, self.page_cache)
        self.zap = ZapPages(
            self.mmu,
            self.ptes,
            self.lru,
            self.tables,
            kernel.pages,
            kernel.page_alloc,
            kernel.mm_counters,
            parts,
        )
        self.memory = Memory(
            self.mmu,
            self.ptes,
            self.lru,
            self.tables,
            self.rmap,
            kernel.pages,
            kernel.page_alloc,
            kernel.mempolicy,
            self.contents,
            kernel.context,
            kernel.depot,
            parts,
            self.zap,
            kernel.user_mode,
            kernel.vmstat,
            kernel.machine.latency.dram_local,
            kernel.memcg,
        )
        self.swap_access = SwapAccess(self.memory, self.swap_state, self.swap_state.faults)
        self.remote_vm = RemoteVm(self.memory, self.contents)

    # -- files in memory and on disks --------------------------------------------------------------------

    def _shmem_and_pageout(self) -> None:
        """tmpfs, and pages that go to swap or their files."""
        kernel = self._kernel
        latency = kernel.machine.latency
        self.shmem = Shmem(
            self.page_cache,
            kernel.pages,
            kernel.vmstat,
            self.swap_state,
            self.zap.zap_range,
            kernel.mempolicy.alloc_shmem_pages,
            self._promise,
            kernel.mmap.unaccount,
            self._later,
            room,
            lambda: kernel.context.cpu,
            kernel.context.charge,
            latency.zero_page,
        )
        self.pageout = PageOut(
            self.mmu,
            kernel.pages,
            self._counts,
            kernel.vmstat,
            self.rmap,
            self.lru,
            self.page_cache,
            self.swap_state,
            self.shmem,
            self.huge_split,
            self.huge_pages,
            kernel.context.charge,
            PageCosts.of(latency.dram_local, latency.pcp_free, latency.reclaim_page),
        )
        self.block: BlockStorage = BlockStorage(kernel, self)
        self.swap_storage: SwapStorage = SwapStorage(kernel, self)

    def _file_systems(self) -> None:
        """Files of block devices, paths, swapoff."""
        kernel = self._kernel
        latency = kernel.machine.latency
        self.file_io = FileIo(
            self.page_cache,
            kernel.pages,
            kernel.vmstat,
            kernel.context,
            kernel.mempolicy.alloc_file_pages,
            self.contents,
            self.zap.zap_range,
            self._later,
            self.block.parts,
            latency.dram_local,
        )
        half = kernel.totalram_pages() // 2
        self.vfs = Vfs(self.page_cache, self.file_io, self.shmem, kernel.swap.files, half, self.block.storage)
        self.vfs.mknod("/dev/mem", DeviceFaults())
        self.files = Files(
            self.page_cache,
            self.file_io,
            self.shmem,
            self.swap_state,
            self.vfs,
            self.mmu,
            self.lru,
            self.block.accounts,
            self.block.log_critical,
        )
        self.swap_off = SwapOff(
            kernel.pages,
            self.swap_state,
            self.shmem,
            lambda: self.memory,
            self._all_mms,
            self._enough,
            lambda: bool((task := kernel.tasks.current()) is not None and task.killed),
        )
        self.page_reclaim: PageReclaim = PageReclaim(kernel, self, self._counts)
        self.swap_storage.register_shrinkers()
        self.file_reads = FileReads(
            Machinery(
                *(kernel.pages, kernel.context, kernel.zones, kernel.vmstat, self.lru),
                *(self.page_reclaim.lruvecs, self.page_reclaim.workingset, latency.dram_local),
            ),
            self.page_cache,
            self.files,
            self.block.parts,
            kernel.mempolicy.take_file_pages,
            self.page_reclaim.reclaim.balance.swap_left,
        )
        self.file_check = FileCheck(
            self.files, kernel.pages, self._counts, kernel.vmstat, self.mmu, self.ptes, self._all_mms
        )

    def _all_mms(self) -> list[Mm]:
        """Address spaces of all processes."""
        return list(self.mms.living.values())

    def _enough(self, pages: int) -> bool:
        """Whether memory could be promised."""
        mmap = self._kernel.mmap
        if not mmap.enough_memory(pages, 0, root=True):
            return False
        mmap.unaccount(pages)
        return True

    def _later(self, function: Callable[[], None]) -> None:
        """Run something when the current call is over."""
        self._kernel.clock.call_at(self._kernel.clock.now, function)

    def _promise(self, pages: int) -> None:
        """Charge the commit limit for the executing task. ENOMEM."""
        task = self._kernel.tasks.current()
        if task is not None and task.mm is not None:
            self.spaces.charge(task, pages)
        elif not self._kernel.mmap.enough_memory(pages, 0, root=True):
            raise KernelError(errno.ENOMEM, "the commit limit leaves no room for a shared mapping")

    # -- mappings ----------------------------------------------------------------------------------------

    def _areas(self) -> None:
        """Mappings and their pages."""
        kernel = self._kernel
        threads = max_threads(kernel.machine.arch, kernel.totalram_pages())
        self.rlimits = Rlimits(threads, long_bits=kernel.machine.long_bits)
        self.user_layout = UserLayout.of(kernel.machine.arch, la57=self.la57)
        self.vma_pages = VmaPages(
            self.memory,
            Services(
                self.thp,
                self.hugetlb_vm,
                lambda vma: vma.file is not None and vma.file.kind is FileKind.DISK,
                self.swap_state.free_entries,
                self.swap_state.free_swap,
                self.pageout.reclaim_pages,
                self._willneed,
                lambda file, first, last: file.ops.remove(file, first, last),
                lambda mm, vma, start, end: self.khugepaged.madvise_collapse(mm, vma, start, end),
                self.khugepaged_slots.enter,
                lambda mm: None,
                lambda: self.swap_io.compresses,
            ),
        )
        self.split_huge_pages = make_split_huge_pages(kernel, self)
        max_map_count = lambda: kernel.mmap.max_map_count  # noqa: E731
        self.vmas = VmaList(self.rmap, max_map_count, self.vma_pages.split_huge, kernel.context.trace)
        self.mbind = Mbind(
            kernel.mempolicy,
            self.migrate,
            self.vmas,
            self.mmu,
            kernel.pages,
            kernel.page_alloc,
            self._fault_in,
            HugetlbMigrate(
                kernel.hugetlb, self.page_cache, self.rmap, self.mmu, kernel.pages, self.huge_pages, kernel.vmstat
            ),
        )
        self.pfn_map = PfnMap(
            self.mmu,
            self.tables,
            kernel.device_memory.resources,
            kernel.dump_stack,
            lambda: {task.mm.id: task.mm for task in kernel.tasks if task.mm is not None}.values(),
            kernel.device_memory.phys_bits,
        )

    def _mapping_calls(self) -> None:
        """The system calls that make, change and ask for mappings."""
        kernel = self._kernel
        backing = Backing(
            self.shmem.zero_setup,
            self.hugetlb_vm.file_setup,
            self._map_file,
            self._shmem_align,
            self.khugepaged_slots.enter,
            self.vfs.is_swapfile,
        )
        self.spaces = AddressSpaces(
            kernel.mmap,
            self.rlimits,
            self.vmas,
            UnmappedArea(self.user_layout, kernel.context.trace),
            self.vma_pages,
            backing,
            kernel.printk,
            kernel.ratelimit,
            kernel.set_memory.check_user,
        )
        self.khugepaged: Khugepaged = make_khugepaged(kernel, self)
        self.mprotect = Mprotect(self.spaces, self.vma_pages.populate_now)
        self.mremap = Mremap(self.spaces)
        self.madvise = Madvise(self.spaces, self.vma_pages, thp=True)
        self.mlock = Mlock(self.spaces, self.vma_pages.lock_pages)
        self.msync = Msync(self._fsync_range, self.user_layout.addresses)
        self.mincore = Mincore(self.mmu, self.user_layout.task_size, self._in_cache, self._in_swap_cache)

    def _fault_in(self, task: Any, vpn: int) -> None:
        """Make a page present for who asks where it is. EFAULT."""
        try:
            self.memory.access(task, np.array([vpn], dtype=np.int64), READ)
        except Signal as signal:
            raise KernelError(errno.EFAULT, f"{vpn << PAGE_SHIFT:#x} cannot be read") from signal

    def _willneed(self, mm: Mm, vma: Vma, first: int, last: int) -> None:
        """Read ahead what a mapping lacks: from its file, or from swap."""
        self.files.willneed(mm, vma, first, last)

    def _fsync_range(self, file: File, first: int, last: int) -> None:
        """Write pages of a file to its disk; tmpfs has none."""
        if file.kind is FileKind.DISK:
            self.files.fsync(file, first, last)

    def _in_cache(self, file: File, first: int, pages: int) -> npt.NDArray[np.uint8]:
        """Which pages of a file are in memory."""
        found = np.zeros(pages, dtype=np.uint8)
        indices, _ = self.page_cache.find_get_pages(file, first, first + pages)
        found[indices - first] = 1
        return found

    def _in_swap_cache(self, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Which swap entries have their page in memory still."""
        return (self._kernel.swap.files.cached(slots_of(entries)) > 0).astype(np.uint8)

    def _shmem_align(self, file: File | None) -> int:
        """Where mappings of memory files begin that may get huge pages (``shmem_get_unmapped_area``), 0: anywhere."""
        huge = self._kernel.huge_memory
        mount = huge.shmem_enabled if file is None else "never"  # no tmpfs of programs is mounted with huge=
        wanted = huge.shmem_enabled == "force" or mount not in ("never", "deny")
        return huge.hpage_pmd_size if wanted and (file is None or file.is_shmem) else 0

    def _map_file(self, mm: Mm, vma: Vma) -> None:
        if vma.file is not None and vma.file.is_hugetlb:
            self.hugetlb_vm.map_file(mm, vma)
        elif vma.file is not None and vma.file.kind is FileKind.DEVICE:
            self.pfn_map.mmap_mem(mm, vma)

    def run_as(self, comm: str) -> None:
        """Become a kernel thread."""
        kernel = self._kernel
        task = next((task for task in kernel.tasks if task.comm == comm), None)
        if task is not None:
            kernel.context.switch(task.pid, task.tgid, task.comm, task.cpu)
            kernel.tasks.slept(task)

    # -- programs ----------------------------------------------------------------------------------------

    def _programs(self) -> None:
        """Programs and processes."""
        kernel = self._kernel
        self.mms = MmStructs(self.memory, self.spaces, self.khugepaged_slots, self.thp)
        self.exec = Exec(
            self.memory,
            self.contents,
            self.mms,
            self.spaces,
            self.mprotect.mprotect,
            self.user_layout,
            self.executable,
            lambda: kernel.kernel_sysctl.randomize_va_space,
            kernel.rng,
            kernel.machine.arch,
        )
        self.fork = Fork(
            kernel.tasks,
            kernel.slub,
            kernel.context,
            kernel.depot,
            kernel.machine.cpu_nodes,
            kernel.stacks,
            kernel.kmemleak.kernel_data,
            kernel.machine.arch,
            self.mms,
            self.exec,
            self.rlimits,
            lambda: kernel.kernel_sysctl.threads_max,
            self.mmu.faults_of,
            kernel.cgroups,
        )

    def executable(self, path: str) -> File:
        """The file of a program in the initramfs, made when it is run for the first time. ENOMEM."""
        pages = max(segment.offset + segment.end - segment.start for segment in IMAGE_SEGMENTS[path]) >> PAGE_SHIFT
        return self._programs_by_path.get(path) or self.initramfs_file(path, pages << PAGE_SHIFT)

    def initramfs_file(self, path: str, size: int) -> File:
        """A file of the initramfs with all its pages. ENOMEM."""
        ino = FIRST_PROGRAM_INO + len(self._programs_by_path)
        file = self.files.install(path, ino, size >> PAGE_SHIFT)
        self._programs_by_path[path] = file
        return file
