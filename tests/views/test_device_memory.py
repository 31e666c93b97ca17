"""kmemd/highmem, kmemd/dma and the debugfs files about memory types and bounce buffers."""

from __future__ import annotations

import pytest

from kmemd import System
from kmemd.views.tree import Caller, Namespace


def test_high_memory_of_a_machine_that_has_none() -> None:
    system = System.boot(seed=1)
    assert system.read("/kmemd/highmem") == (
        b"pkmap slots=0 in_use=0 need_flush=0 last_pkmap_nr=0 flushes=0 sleeps=0\n"
        b"local flushes=0 atomic_tasks=0 reports=0\n"
    )


def test_high_memory_in_use() -> None:
    system = System.boot(machine="highmem", seed=1)
    system.command("p = alloc_pages gfp=GFP_HIGHUSER n=3")
    system.command("m = kmap p[0]")
    system.command("n = kmap p[1]")
    system.command("kunmap n")
    system.command("a = kmap_atomic p[2]")
    pfn, pid = int(system.kernel.handles["p"].pfns[2]), system.kernel.context.pid
    assert system.read("/kmemd/highmem").decode() == (
        "pkmap slots=1024 in_use=1 need_flush=1 last_pkmap_nr=2 flushes=0 sleeps=0\n"
        "local flushes=0 atomic_tasks=1 reports=0\n"
        f"task pid={pid} comm=sh cpu=0 preempt_count=0x1 mapped=1\n"
        f"  addr=0xfffbb000 pfn={pfn}\n"
    )


def test_memory_types_of_boot() -> None:
    lines = System.boot(seed=1).read("/sys/kernel/debug/x86/pat_memtype_list").decode().splitlines()
    assert lines[0] == "PAT memtype list:"
    assert lines[1] == "PAT: [mem 0x000000007ffe0000-0x000000007ffe2000] write-back"
    assert lines[-1] == "PAT: [mem 0x00000000fed00000-0x00000000fed01000] uncached-minus"
    assert lines[1:] == sorted(lines[1:])


@pytest.mark.parametrize(("machine", "files"), [("default", []), ("two-node", ["io_tlb_nslabs", "io_tlb_used"])])
def test_bounce_buffers_are_there_where_memory_goes_beyond_4_gib(machine: str, files: list[str]) -> None:
    namespace = Namespace(System.boot(machine=machine, seed=1).kernel)
    folder = namespace.lookup("/sys/kernel/debug/swiotlb")
    assert sorted(child.path.rsplit("/", 1)[1] for child in namespace.children(folder)) == files


def test_claims_show_in_iomem_and_their_addresses_to_root_alone() -> None:
    system = System.boot(seed=1)
    system.command("request_mem_region 0xfd000000 4K fb")
    namespace = Namespace(system.kernel)
    node = namespace.lookup("/proc/iomem")
    shown = {uid: namespace.open(node, Caller(uid=uid)).read(0, 1 << 16) for uid in (0, 1000)}
    assert b"    fd000000-fd000fff : fb\n" in (shown[0] or b"")
    assert b"    00000000-00000000 : fb\n" in (shown[1000] or b"")


def test_devices_and_their_masks() -> None:
    system = System.boot(seed=1)
    system.command("dma_set_mask 0000:00:03.0 DMA_BIT_MASK(64)")
    lines = system.read("/kmemd/dma").decode().splitlines()
    assert len(lines) == 4
    assert lines[1] == (
        "device 0000:00:03.0 bus=pci node=-1 dma_mask=0xffffffffffffffff coherent_dma_mask=0xffffffff coherent=0"
    )
