"""The vmalloc areas of a booted kernel: device registers, per-CPU chunks, hash tables, buffers of drivers.

As on the captured machines, whose devices are those in mm/firmware.py; the areas come from mm/percpu.c, fs/dcache.c,
drivers/acpi/osl.c, arch/x86/kernel/hpet.c, drivers/virtio and drivers/tty. Left out: what modules map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kmemd.boot.cache_table import MOST_BOOT_CPUS
from kmemd.mm import gfp as g
from kmemd.mm.units import KIB, PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

INIT = ("do_one_initcall", "kernel_init_freeable", "kernel_init", "ret_from_fork")
HPET = 0xFED00000
ACPI_LENGTHS = (0x2000, 0x1000)
ACPI_TABLES_BELOW_END = 0x20000
VIRTIO_BAR = 0xFE000000
VIRTIO_PAGES = 8
SCOMP_SCRATCH = 128 * KIB
SCOMP_PER_CPU = 2
N_TTY_DATA = 3 * 4096
PERCPU_ATOM = {"x86_64": 2 << 20, "i386": 4096}
"""What a per-CPU chunk's parts are aligned to (atom_size)."""
PERCPU_UNIT = {"x86_64": 2 << 20, "i386": 30 * 4096}
MOST_UNITS = 8
OBJECT_SIZE = 4
"""PCPU_MIN_ALLOC_SIZE: a chunk has a bit in each of two maps, and an object cgroup pointer, per 4 bytes."""


def map_areas(kernel: Kernel) -> None:
    """Make boot's areas, in its order. ENOMEM."""
    _percpu_chunk(kernel)
    _hash_tables(kernel)
    _device_registers(kernel)
    _driver_buffers(kernel)


def _site(kernel: Kernel, *frames: str) -> None:
    kernel.context.site = kernel.depot.save((*frames, *INIT))


def units_per_allocation(kernel: Kernel) -> int:
    """CPUs that share one large page of a per-CPU chunk (pcpu_build_alloc_info)."""
    most = max(len(node.cpus) for node in kernel.nodes)
    return min(MOST_UNITS, 1 << (most - 1).bit_length())


def percpu_groups(kernel: Kernel) -> tuple[int, tuple[int, ...]]:
    """The bytes between two CPUs' parts of a per-CPU chunk, and how many CPUs each of its areas is for."""
    machine = kernel.machine
    unit = PERCPU_UNIT[machine.arch]
    if machine.arch != "x86_64":
        return unit, (machine.cpus,)
    return unit // units_per_allocation(kernel), tuple(len(node.cpus) for node in kernel.nodes if node.cpus)


def _group_offsets(kernel: Kernel, sizes: Sequence[int]) -> list[int]:
    """Where the groups of CPUs have their parts of every chunk, from the first group's: as far apart as those of the
    first chunk, which is at the top of each node's memory (pcpu_embed_first_chunk).
    """
    if kernel.machine.arch != "x86_64":
        return [0]
    atom = PERCPU_ATOM[kernel.machine.arch]
    tops = [max(zone.end_pfn for zone in node.zones) << PAGE_SHIFT for node in kernel.nodes if node.cpus]
    offsets: list[int] = []
    for top, size in zip(tops, (0, *sizes), strict=False):
        least = offsets[-1] + (size + atom - 1) // atom * atom if offsets else 0
        offsets.append(max(top // atom * atom - tops[0] // atom * atom, least))
    return offsets


def _percpu_chunk(kernel: Kernel) -> None:
    """The second per-CPU chunk: its range for each group of CPUs, its maps, and the CPUs' interrupt stacks."""
    machine = kernel.machine
    units = units_per_allocation(kernel)
    word = kernel.layout.pointer_size
    unit, groups = percpu_groups(kernel)
    whole = units if machine.arch == "x86_64" else 1
    sizes = [-(-cpus // whole) * whole * unit for cpus in groups]
    bits = unit // OBJECT_SIZE
    _site(kernel, "pcpu_mem_zalloc", "pcpu_create_chunk", "pcpu_alloc", "__alloc_percpu")
    for size in (bits // 8, bits // 8 + word, unit // 4096 * 32, bits * word):
        if size > 4096:
            kernel.vmalloc.alloc(size, g.GFP_KERNEL | g.F.ZERO, function="")
    _site(kernel, "pcpu_get_vm_areas", "pcpu_create_chunk", "pcpu_alloc", "__alloc_percpu")
    kernel.vmalloc.pcpu_get_vm_areas(_group_offsets(kernel, sizes), sizes, PERCPU_ATOM[machine.arch])
    if machine.arch == "x86_64":
        _site(kernel, "irq_init_percpu_irqstack", "init_IRQ", "start_kernel")
        for _ in range(min(machine.cpus, MOST_BOOT_CPUS)):
            kernel.vmalloc.vmap(np.zeros(4, dtype=np.int64))


def _hash_tables(kernel: Kernel) -> None:
    """Tables that several nodes share are spread over them by vmalloc; else they are blocks of pages."""
    nodes = [node.nid for node in kernel.nodes if node.has_memory]
    _site(kernel, "alloc_large_system_hash", "vfs_caches_init", "start_kernel")
    for table in kernel.boot_memory.hash_tables:
        if table.early:
            continue
        if len(nodes) > 1:
            kernel.vmalloc.alloc(table.size, g.GFP_KERNEL | g.F.ZERO, huge=True, function="", interleave=nodes)
            continue
        order = max(0, (table.size - 1).bit_length() - 12)
        kernel.page_alloc.alloc_pages(g.GFP_KERNEL | g.F.ZERO, order)


def _device_registers(kernel: Kernel) -> None:
    low_end = next(r.start for r in kernel.machine.iomem if r.name.startswith("PCI Bus") and r.start >= 1 << 20)
    tables = low_end - ACPI_TABLES_BELOW_END
    _site(kernel, "acpi_os_map_iomem", "acpi_tb_acquire_table", "acpi_early_init", "start_kernel")
    for length in ACPI_LENGTHS:
        kernel.vmalloc.ioremap(tables, length)
        tables += 0x1000
    kernel.vmalloc.ioremap(HPET, 0x1000)
    if kernel.machine.arch == "x86_64":
        _site(kernel, "hpet_enable", "hpet_time_init", "x86_late_time_init", "start_kernel")
        kernel.vmalloc.ioremap(HPET, 0x1000)
    _site(kernel, "pci_iomap_range", "vp_modern_map_capability", "vp_modern_probe", "virtio_pci_probe")
    for page in range(VIRTIO_PAGES):
        kernel.vmalloc.ioremap(VIRTIO_BAR + (page << 12), 0x1000)


def _driver_buffers(kernel: Kernel) -> None:
    machine = kernel.machine
    _site(kernel, "crypto_scomp_init_tfm", "crypto_create_tfm_node", "crypto_alloc_tfm_node", "zswap_pool_create")
    for cpu in range(min(machine.cpus, MOST_BOOT_CPUS)):
        for _ in range(SCOMP_PER_CPU):
            kernel.vmalloc.alloc(SCOMP_SCRATCH, g.GFP_KERNEL, machine.cpu_nodes[cpu])
    _site(kernel, "n_tty_open", "tty_ldisc_open", "tty_ldisc_setup", "tty_init_dev")
    kernel.vmalloc.alloc(N_TTY_DATA, g.GFP_KERNEL | g.F.ZERO)
