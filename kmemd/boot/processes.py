"""The first processes: init, a getty and a shell, all of one static executable in the initramfs (mm/shmem.c).

Sizes are those of the captured busybox processes. The initramfs is a tmpfs: its pages are shared memory, on the
anonymous LRU lists; those that a process maps are active.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kmemd.boot.threads import give_stack
from kmemd.core import stats
from kmemd.core.pages import PG_ACTIVE, PG_DIRTY, PG_LRU, PG_REFERENCED, PG_SWAPBACKED, PG_UPTODATE
from kmemd.mm import gfp as g
from kmemd.mm.sched import PF_RANDOMIZE, Mapping, Task

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PFNs = npt.NDArray[np.int64]
ROOTFS_PAGES = {"x86_64": 678, "i386": 694}
"""Pages of the files in the initramfs."""
EXECUTABLE, EXECUTABLE_INODE = "/bin/busybox", 9
PAGE_TABLE_PAGES = {"x86_64": 7, "i386": 3}
FAULT_FRAMES = ("vma_alloc_folio", "do_anonymous_page", "__handle_mm_fault", "handle_mm_fault", "exc_page_fault")
ROOTFS_FRAMES = ("vma_alloc_folio", "shmem_alloc_folio", "shmem_get_folio_gfp", "shmem_write_begin")
PAGE_TABLE_FRAMES = ("pte_alloc_one", "__pte_alloc", "__handle_mm_fault", "handle_mm_fault", "exc_page_fault")

# start, end, permissions, offset, anonymous pages, file pages
_SEGMENTS_64 = (
    (0x400000, 0x401000, "r--p", 0, 0, 1),
    (0x401000, 0x585000, "r-xp", 0x1000, 0, 260),
    (0x585000, 0x5DB000, "r--p", 0x185000, 0, 86),
    (0x5DB000, 0x5E2000, "r--p", 0x1DA000, 2, 5),
    (0x5E2000, 0x5E5000, "rw-p", 0x1E1000, 3, 0),
)
_SEGMENTS_32 = (
    (0x8048000, 0x8049000, "r--p", 0, 0, 1),
    (0x8049000, 0x81CD000, "r-xp", 0x1000, 0, 260),
    (0x81CD000, 0x823A000, "r--p", 0x185000, 0, 64),
    (0x823A000, 0x823E000, "r--p", 0x1F2000, 2, 2),
    (0x823E000, 0x8240000, "rw-p", 0x1F6000, 2, 0),
)
_BSS_PAGES, _HEAP_PAGES, _STACK_PAGES = {"x86_64": 7, "i386": 4}, 34, 33


def busybox_mappings(arch: str, rng: Random, sharers: int) -> list[Mapping]:
    """The address space of one process; heap, mmap base and stack are randomised."""
    segments = _SEGMENTS_64 if arch == "x86_64" else _SEGMENTS_32
    mappings = [
        Mapping(start, end, perms, EXECUTABLE, offset, EXECUTABLE_INODE, anon, file, sharers)
        for start, end, perms, offset, anon, file in segments
    ]
    end = mappings[-1].end
    mappings.append(Mapping(end, end + (_BSS_PAGES[arch] << 12), "rw-p", anon_pages=3))
    heap = mappings[-1].end + 0x1000 + (rng.randrange(1 << 13) << 12)
    mappings.append(Mapping(heap, heap + (_HEAP_PAGES << 12), "rw-p", "[heap]", anon_pages=2))
    top, bits = (0x7FFFFFFFF000, 22) if arch == "x86_64" else (0xBFFFF000, 11)
    stack_end = top - (rng.randrange(1 << bits) << 12)
    stack = Mapping(stack_end - (_STACK_PAGES << 12), stack_end, "rw-p", "[stack]", anon_pages=3)
    mmap_base = (stack.start >> 30 << 30) - (rng.randrange(1 << 8) << 12) - (1 << 20)
    vvar = stack_end + 0x10000 if arch == "x86_64" else mmap_base
    special = [
        Mapping(vvar, vvar + 0x4000, "r--p", "[vvar]"),
        Mapping(vvar + 0x4000, vvar + 0x5000, "r-xp", "[vdso]"),
    ]
    buffer = Mapping(mmap_base - 0x10000, mmap_base, "rw-p")
    return sorted([*mappings, stack, buffer, *special], key=lambda mapping: mapping.start)


def spawn_processes(kernel: Kernel, init: Task) -> None:
    """Give init its memory and start the others. ENOMEM."""
    init.argv = ("init",)
    tasks = [init]
    for comm, argv in (("getty", ("getty", "0", "ttyS0")), ("sh", ("-sh",))):
        tasks.append(kernel.tasks.spawn(comm, init.pid, argv=argv, flags=PF_RANDOMIZE))
    mapped = 0
    arch = kernel.machine.arch
    for task in tasks:
        task.mappings = busybox_mappings(arch, kernel.rng, len(tasks))
        kernel.context.switch(task.pid, task.tgid, task.comm, task.cpu)
        give_stack(kernel, task)
        _page_tables(kernel, task)
        pages = _user_pages(kernel, FAULT_FRAMES, task.rss_anon)
        account_anon(kernel, pages)
        task.min_flt = task.rss
        mapped = max(mapped, task.rss_shmem)
    rootfs = _user_pages(kernel, ROOTFS_FRAMES, ROOTFS_PAGES[arch])
    account_shmem(kernel, rootfs, mapped)
    kernel.mmap.committed = len(rootfs) + sum(
        mapping.pages for task in tasks for mapping in task.mappings if mapping.accounted
    )


def _page_tables(kernel: Kernel, task: Task) -> None:
    count = PAGE_TABLE_PAGES[kernel.machine.arch]
    kernel.context.site = kernel.depot.save(PAGE_TABLE_FRAMES)
    pfns = kernel.page_alloc.alloc_pages_bulk(g.GFP_KERNEL_ACCOUNT | g.F.ZERO, 0, count)
    for nid, pages in by_node(kernel, pfns):
        kernel.vmstat.mod_node(nid, stats.NR_PAGETABLE, pages)
    task.page_table_pages = count


def _user_pages(kernel: Kernel, frames: tuple[str, ...], count: int) -> PFNs:
    kernel.context.site = kernel.depot.save(frames)
    return kernel.page_alloc.alloc_pages_bulk(g.GFP_HIGHUSER_MOVABLE | g.F.COMP, 0, count)


def by_node(kernel: Kernel, pfns: PFNs) -> list[tuple[int, int]]:
    """(node, pages) of some page frames."""
    return [(kernel.zones[zi].nid, count) for zi, count in by_zone(kernel, pfns)]


def by_zone(kernel: Kernel, pfns: PFNs) -> list[tuple[int, int]]:
    """(zone number, pages) of some page frames, for the zones that have any."""
    counts = [(zone.index, int(((pfns >= zone.start_pfn) & (pfns < zone.end_pfn)).sum())) for zone in kernel.zones]
    return [(zi, count) for zi, count in counts if count]


def account_anon(kernel: Kernel, pfns: PFNs) -> None:
    """Count anonymous pages, which begin on the inactive list and are active once touched again."""
    _flag(kernel, pfns, active=True)
    for zi, count in by_zone(kernel, pfns):
        nid = kernel.zones[zi].nid
        kernel.vmstat.mod_zone(zi, stats.NR_ZONE_ACTIVE_ANON, count)
        kernel.vmstat.mod_node(nid, stats.NR_ACTIVE_ANON, count)
        kernel.vmstat.mod_node(nid, stats.NR_ANON_MAPPED, count)


def account_shmem(kernel: Kernel, pfns: PFNs, mapped: int) -> None:
    """Count tmpfs pages; the first ``mapped`` are mapped by processes, and active."""
    for part, active in ((pfns[:mapped], True), (pfns[mapped:], False)):
        _flag(kernel, part, active=active)
        zone_item = stats.NR_ZONE_ACTIVE_ANON if active else stats.NR_ZONE_INACTIVE_ANON
        node_item = stats.NR_ACTIVE_ANON if active else stats.NR_INACTIVE_ANON
        for zi, count in by_zone(kernel, part):
            nid = kernel.zones[zi].nid
            kernel.vmstat.mod_zone(zi, zone_item, count)
            for item in (node_item, stats.NR_SHMEM, stats.NR_FILE_PAGES):
                kernel.vmstat.mod_node(nid, item, count)
            if active:
                kernel.vmstat.mod_node(nid, stats.NR_FILE_MAPPED, count)


def _flag(kernel: Kernel, pfns: PFNs, *, active: bool) -> None:
    bits = 1 << PG_UPTODATE | 1 << PG_DIRTY | 1 << PG_LRU | 1 << PG_SWAPBACKED
    bits |= 1 << PG_ACTIVE | 1 << PG_REFERENCED if active else 0
    kernel.pages.flags[pfns] |= np.uint32(bits)
