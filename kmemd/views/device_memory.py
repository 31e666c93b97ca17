"""Files about high memory and devices: memory types, bounce buffers, and the model's own state of kmap and DMA.

arch/x86/mm/pat/memtype.c and kernel/dma/swiotlb.c in debugfs; ``kmemd/highmem`` and ``kmemd/dma`` have no Linux
counterpart (docs/highmem-and-devices.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.memtype import NAMES
from kmemd.views.tree import debugfs, kmemd


@debugfs.file("x86/pat_memtype_list", mode=0o400, exists=lambda kernel: kernel.device_memory.memtypes.enabled)
def pat_memtype_list(kernel: Kernel) -> Iterator[str]:
    """The ranges of device memory that are mapped, and how."""
    yield "PAT memtype list:\n"
    for held in kernel.device_memory.memtypes.listed():
        yield f"PAT: [mem 0x{held.start:016x}-0x{held.end:016x}] {NAMES[held.type]}\n"


def _bounces(kernel: Kernel) -> bool:
    return kernel.device_memory.swiotlb.active


debugfs.dir("swiotlb")


@debugfs.file("swiotlb/io_tlb_nslabs", mode=0o400, exists=_bounces)
def io_tlb_nslabs(kernel: Kernel) -> str:
    """Slots of 2 KiB for bounce buffers."""
    return f"{kernel.device_memory.swiotlb.nslabs}\n"


@debugfs.file("swiotlb/io_tlb_used", mode=0o400, exists=_bounces)
def io_tlb_used(kernel: Kernel) -> str:
    """Slots that are taken."""
    return f"{kernel.device_memory.swiotlb.used}\n"


@kmemd.file("highmem", mode=0o400)
def highmem(kernel: Kernel) -> Iterator[str]:
    """kmap's slots and flushes, who waits for one, and the local mappings of tasks."""
    high = kernel.highmem
    yield f"pkmap slots={high.slots} in_use={high.slots_in_use()} need_flush={high.slots_to_flush()}"
    yield f" last_pkmap_nr={high.last_nr} flushes={high.flushes} sleeps={high.sleeps}\n"
    yield f"local flushes={high.local_flushes} atomic_tasks={kernel.preempt.atomic} reports={kernel.preempt.reports}\n"
    for waiter in high.waiters():
        yield f"waiter pid={waiter.thread.pid} comm={waiter.thread.comm} pfn={waiter.pfn}\n"
    for thread in kernel.preempt.threads():
        yield f"task pid={thread.pid} comm={thread.comm} cpu={thread.cpu} preempt_count={thread.preempt_count:#x}"
        yield f" mapped={len(thread.held)}\n"
        for address, pfn in high.local_maps(thread):
            yield f"  addr={address:#x} pfn={pfn}\n"


@kmemd.file("dma", mode=0o400)
def dma(kernel: Kernel) -> Iterator[str]:
    """Devices with their masks and memory, the blocks and mappings there are, and the pools."""
    memory = kernel.device_memory
    for device in memory.devices:
        yield f"device {device.name} bus={device.bus} node={device.nid} dma_mask={device.dma_mask:#x}"
        yield f" coherent_dma_mask={device.coherent_dma_mask:#x} coherent={device.coherent_bytes}\n"
    for block in memory.dma.blocks.values():
        yield f"coherent {block.device.name} addr={block.address:#x} dma={block.dma:#x} order={block.order}"
        yield f" size={block.size}\n"
    for mapping in memory.dma.mappings:
        yield f"mapping {mapping.device.name} dma={mapping.dma:#x} phys={mapping.phys:#x} size={mapping.size}"
        yield f" bounced={int(mapping.bounced)}\n"
    for pool in memory.pools:
        yield f"pool {pool.name} device={pool.device.name} in_use={pool.in_use} pages={len(pool.pages)}"
        yield f" blocks={len(pool.pages) * (pool.allocation // pool.size)} size={pool.size}\n"
