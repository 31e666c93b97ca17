"""The slab caches of a fresh boot and the objects in them.

An object of boot's has no owner in the model: the kernel's data that would point to it is not modelled, so it is
allocated without telling kmemleak, as ``SlabCaches.boot_alloc`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.boot.areas import INIT
from kmemd.boot.cache_table import (
    BOOT_CACHES,
    CACHE_LINE_ALIGNED,
    KERNFS_PER_BLOCK,
    KERNFS_PER_CPU,
    KERNFS_PER_NODE,
    KMALLOC_OBJECTS,
    MOST_BOOT_CPUS,
    OBJECTS_I386,
    TASK_CACHES,
    USERCOPY,
)
from kmemd.mm.setup import memory_block_size
from kmemd.mm.units import PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def create_caches(kernel: Kernel) -> None:
    """Create the caches of the built-in subsystems, oldest first."""
    kernel.context.site = kernel.depot.save(INIT)
    for row in BOOT_CACHES:
        size = row.size(kernel.machine.arch)
        if size:
            align = kernel.machine.cpu_model.clflush if row.name in CACHE_LINE_ALIGNED else 0
            usersize = USERCOPY.get(row.name, (0, 0))[kernel.machine.arch != "x86_64"]
            kernel.slub.kmem_cache_create(row.name, size, align, row.create_flags, row.ctor, 0, usersize)


def fill_boot_slabs(kernel: Kernel) -> None:
    """Allocate the objects that boot leaves, each CPU's share on that CPU."""
    arch = kernel.machine.arch
    fewer = OBJECTS_I386 if arch == "i386" else {}
    counts = [(row.name, fewer.get(row.name, row.objects), row.per_cpu) for row in BOOT_CACHES if row.size(arch)]
    counts += KMALLOC_OBJECTS
    extra = _extra_objects(kernel)
    if not kernel.cmdline.flag("kmemleak", default=True):
        extra |= {"kmemleak_object": None, "kmemleak_scan_area": None}
    context, slub = kernel.context, kernel.slub
    for cpu in range(min(kernel.machine.cpus, MOST_BOOT_CPUS)):
        context.cpu = cpu
        for name, objects, per_cpu in counts:
            more = extra.get(name, 0)
            count = 0 if more is None else per_cpu if cpu else objects + more
            if count:
                # without accounting of kernel memory the accounted objects come from the general caches
                slub.boot_alloc(slub.cache(name if name in slub.names else name.replace("-cg", "")), count)
    context.cpu = 0


def _extra_objects(kernel: Kernel) -> dict[str, int | None]:
    """Objects on the boot CPU that scale with memory, nodes and tasks rather than with CPUs."""
    machine = kernel.machine
    pages = memory_block_size(max(zone.end_pfn for zone in kernel.zones)) // PAGE_SIZE
    blocks = sum(-(-(high - low) // pages) for zone in kernel.zones for low, high in zone.online)
    kernfs = KERNFS_PER_CPU * (machine.cpus - 1) + KERNFS_PER_NODE * (len(kernel.nodes) - 1)
    if machine.arch == "x86_64":
        kernfs += KERNFS_PER_BLOCK * blocks
    extra: dict[str, int | None] = {"kernfs_node_cache": kernfs}
    for row in BOOT_CACHES:
        if row.name in TASK_CACHES:
            filled = row.objects + row.per_cpu * (min(machine.cpus, MOST_BOOT_CPUS) - 1)
            extra[row.name] = max(0, len(kernel.tasks) - filled)
    return extra
