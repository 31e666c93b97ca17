"""``/proc/meminfo`` (fs/proc/meminfo.c ``meminfo_proc_show``): where the machine's memory is.

NFS has no counterpart in the model: its line says 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.mm.sysinfo import highmem_pages, si_mem_available
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views.tree import proc


def show_val_kb(label: str, kib: int, width: int = 16) -> str:
    """A line of what is counted in KiB; the label takes ``width`` columns."""
    return f"{label + ':':<{width}}{kib:>8} kB\n"


def line(label: str, pages: int) -> str:
    """A line of what is counted in pages, in KiB."""
    return show_val_kb(label, pages * KIB_PER_PAGE)


@proc.file("meminfo")
def meminfo(kernel: Kernel) -> Iterator[str]:
    """Total, free and available memory, and what the rest is used for."""
    yield from _totals(kernel)
    yield from _lru(kernel)
    yield from _highmem(kernel)
    yield from _swap(kernel)
    yield from _page_cache(kernel)
    yield from _slab(kernel)
    yield from _kernel_memory(kernel)
    yield from _commit(kernel)
    yield from _huge_pages(kernel)
    yield from _hugetlb(kernel)
    yield from (show_val_kb(label, kib) for label, kib in kernel.direct_map.lines)


def _totals(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    swapcache = vmstat.node_total(stats.NR_SWAPCACHE)
    yield line("MemTotal", kernel.totalram_pages())
    yield line("MemFree", vmstat.zone_total(stats.NR_FREE_PAGES))
    yield line("MemAvailable", si_mem_available(vmstat, kernel.zones, kernel.watermarks.totalreserve_pages))
    buffers = kernel.user.block.buffers.nr_blockdev_pages
    yield line("Buffers", buffers)
    yield line("Cached", max(0, vmstat.node_total(stats.NR_FILE_PAGES) - swapcache - buffers))
    yield line("SwapCached", swapcache)


def _lru(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    active_anon = vmstat.node_total(stats.NR_ACTIVE_ANON)
    inactive_anon = vmstat.node_total(stats.NR_INACTIVE_ANON)
    active_file = vmstat.node_total(stats.NR_ACTIVE_FILE)
    inactive_file = vmstat.node_total(stats.NR_INACTIVE_FILE)
    yield line("Active", active_anon + active_file)
    yield line("Inactive", inactive_anon + inactive_file)
    yield line("Active(anon)", active_anon)
    yield line("Inactive(anon)", inactive_anon)
    yield line("Active(file)", active_file)
    yield line("Inactive(file)", inactive_file)
    yield line("Unevictable", vmstat.node_total(stats.NR_UNEVICTABLE))
    yield line("Mlocked", vmstat.zone_total(stats.NR_MLOCK))


def _highmem(kernel: Kernel) -> Iterator[str]:
    if kernel.machine.arch != "i386":
        return
    high_total, high_free = highmem_pages(kernel.zones)
    yield line("HighTotal", high_total)
    yield line("HighFree", high_free)
    yield line("LowTotal", kernel.totalram_pages() - high_total)
    yield line("LowFree", kernel.vmstat.zone_total(stats.NR_FREE_PAGES) - high_free)


def _swap(kernel: Kernel) -> Iterator[str]:
    yield line("SwapTotal", kernel.swap.total_pages)
    yield line("SwapFree", kernel.swap.free_pages)
    zswap = kernel.user.swap_storage.zswap
    yield line("Zswap", zswap.pool_pages)
    yield line("Zswapped", zswap.stored_pages)


def _page_cache(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    yield line("Dirty", vmstat.node_total(stats.NR_FILE_DIRTY))
    yield line("Writeback", vmstat.node_total(stats.NR_WRITEBACK))
    yield line("AnonPages", vmstat.node_total(stats.NR_ANON_MAPPED))
    yield line("Mapped", vmstat.node_total(stats.NR_FILE_MAPPED))
    yield line("Shmem", vmstat.node_total(stats.NR_SHMEM))


def _slab(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    reclaimable = vmstat.node_total(stats.NR_SLAB_RECLAIMABLE_B)
    unreclaimable = vmstat.node_total(stats.NR_SLAB_UNRECLAIMABLE_B)
    yield line("KReclaimable", reclaimable + vmstat.node_total(stats.NR_KERNEL_MISC_RECLAIMABLE))
    yield line("Slab", reclaimable + unreclaimable)
    yield line("SReclaimable", reclaimable)
    yield line("SUnreclaim", unreclaimable)


def _kernel_memory(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    yield show_val_kb("KernelStack", vmstat.node_total(stats.NR_KERNEL_STACK_KB))
    yield line("PageTables", vmstat.node_total(stats.NR_PAGETABLE))
    yield line("SecPageTables", vmstat.node_total(stats.NR_SECONDARY_PAGETABLE))
    yield line("NFS_Unstable", 0)
    yield line("Bounce", vmstat.zone_total(stats.NR_BOUNCE))
    yield line("WritebackTmp", vmstat.node_total(stats.NR_WRITEBACK_TEMP))


def _commit(kernel: Kernel) -> Iterator[str]:
    yield line("CommitLimit", kernel.mmap.commit_limit())
    yield line("Committed_AS", kernel.mmap.committed)
    yield show_val_kb("VmallocTotal", kernel.layout.vmalloc_total >> 10)
    yield line("VmallocUsed", kernel.vmalloc.nr_pages)
    yield line("VmallocChunk", 0)
    yield line("Percpu", kernel.percpu.nr_pages)


def _huge_pages(kernel: Kernel) -> Iterator[str]:
    vmstat = kernel.vmstat
    yield line("AnonHugePages", vmstat.node_total(stats.NR_ANON_THPS))
    yield line("ShmemHugePages", vmstat.node_total(stats.NR_SHMEM_THPS))
    yield line("ShmemPmdMapped", vmstat.node_total(stats.NR_SHMEM_PMDMAPPED))
    yield line("FileHugePages", vmstat.node_total(stats.NR_FILE_THPS))
    yield line("FilePmdMapped", vmstat.node_total(stats.NR_FILE_PMDMAPPED))
    yield line("CmaTotal", sum(zone.cma_pages for zone in kernel.zones))
    yield line("CmaFree", vmstat.zone_total(stats.NR_FREE_CMA_PAGES))


def _hugetlb(kernel: Kernel) -> Iterator[str]:
    pool = kernel.hugetlb.default
    for label, pages in (
        ("HugePages_Total", pool.nr),
        ("HugePages_Free", pool.free),
        ("HugePages_Rsvd", pool.resv),
        ("HugePages_Surp", pool.surplus),
    ):
        yield f"{label + ':':<18} {pages:>5}\n"
    yield show_val_kb("Hugepagesize", pool.size >> 10)
    yield show_val_kb("Hugetlb", kernel.hugetlb.total_pages() * KIB_PER_PAGE)
