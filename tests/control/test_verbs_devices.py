"""Verbs of drivers, and the files that show what they did."""

from __future__ import annotations

import errno

import pytest

from kmemd import System


@pytest.fixture
def system() -> System:
    return System.boot(machine="two-node", seed=1)


def words(reply: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in reply.split())


def refused(system: System, line: str, error: int) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        system.command(line)
    assert caught.value.errno == error
    system.check()
    return str(caught.value)


def lines(system: System, path: str, text: str) -> list[str]:
    return [line for line in system.read(path).decode().splitlines() if text in line]


def test_a_driver_claims_the_registers_of_its_device(system: System) -> None:
    system.command("platform_device_register card size=64K")
    system.command("request_mem_region 0xc0000000 4K the driver")
    assert lines(system, "/proc/iomem", "c0000000-") == [
        "c0000000-febfffff : PCI Bus 0000:00",
        "  c0000000-c000ffff : card",
        "    c0000000-c0000fff : the driver",
    ]
    assert "the driver" in refused(system, "request_mem_region 0xc0000000 8K other", errno.EBUSY)
    refused(system, "platform_device_unregister card", errno.EBUSY)
    refused(system, "request_mem_region 0xc0000000 8K", errno.EINVAL)
    refused(system, "release_mem_region 0xc0000000 8K", errno.EINVAL)
    system.command("release_mem_region 0xc0000000 4K")
    system.command("platform_device_unregister card")
    assert lines(system, "/proc/iomem", "card") == []
    refused(system, "dma_alloc_coherent card 4K", errno.ENODEV)


def test_ioremap_shows_in_vmallocinfo_and_the_list_of_memory_types(system: System) -> None:
    system.command("io = ioremap_wc 0xfd000010 4K")
    assert len(lines(system, "/proc/vmallocinfo", "phys=0x00000000fd000000 ioremap")) == 1
    shown = "PAT: [mem 0x00000000fd000000-0x00000000fd002000] write-combining"
    assert lines(system, "/sys/kernel/debug/x86/pat_memtype_list", "fd000000") == [shown]
    refused(system, "ioremap 0x100000 4K", errno.EINVAL)
    system.command("iounmap io")
    assert lines(system, "/sys/kernel/debug/x86/pat_memtype_list", "fd000000") == []


def test_i386_has_neither_memory_types_nor_bounce_buffers() -> None:
    system = System.boot(machine="highmem", seed=1)
    for path in ("/sys/kernel/debug/x86/pat_memtype_list", "/sys/kernel/debug/swiotlb/io_tlb_used"):
        with pytest.raises(OSError, match="ENOENT") as caught:
            system.read(path)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(("mask", "zone"), [("DMA_BIT_MASK(24)", "DMA"), ("0xffffffff", "DMA32")])
def test_coherent_memory_comes_from_where_the_mask_says(system: System, mask: str, zone: str) -> None:
    system.command(f"dma_set_coherent_mask 0000:00:03.0 {mask}")
    reply = words(system.command("d = dma_alloc_coherent 0000:00:03.0 9000 n=3 cpu=3"))
    assert (reply["zone"], reply["order"], reply["n"]) == (zone, "2", "3")
    assert int(reply["dma"], 16) == int(reply["addr"], 16) - system.kernel.layout.page_offset
    assert len(lines(system, "/kmemd/dma", "coherent 0000:00:03.0")) == 3
    system.command("WRITE_ONCE d+8 d")
    system.command("dma_free_coherent d[1]")
    refused(system, f"dma_free_coherent {system.kernel.handles['d'].address + 4096:#x}", errno.EINVAL)
    system.command("dma_free_coherent d")
    assert lines(system, "/kmemd/dma", "order=") == []
    system.check()


def test_coherent_memory_is_a_root_for_no_one_else_to_free(system: System) -> None:
    system.command("d = dma_alloc_coherent 0000:00:03.0 4K")
    refused(system, "vfree d", errno.EINVAL)
    refused(system, "dma_free_coherent 0xffff888000100000", errno.EINVAL)
    refused(system, "dma_set_mask 0000:00:03.0 DMA_BIT_MASK(0)", errno.EINVAL)
    refused(system, "dma_set_mask 0000:00:03.0 DMA_BIT_MASK(23)", errno.EIO)
    refused(system, "dma_alloc_coherent 0000:00:03.0 8M", errno.ENOMEM)
    refused(system, "dma_alloc_coherent 0000:00:03.0 0", errno.EINVAL)


def test_memory_that_runs_out_in_the_midst(system: System) -> None:
    system.command("dma_set_coherent_mask 0000:00:03.0 DMA_BIT_MASK(24)")
    said = refused(system, "d = dma_alloc_coherent 0000:00:03.0 1M n=100", errno.EAGAIN)
    assert "of 100" in said
    assert 8 <= len(system.kernel.handles["d"]) < 16
    system.command("dma_free_coherent d")
    system.check()


def test_transfers_bounce(system: System) -> None:
    system.command("p = alloc_pages node=1 n=4000")
    high = next(n for n, pfn in enumerate(system.kernel.handles["p"].pfns.tolist()) if pfn >= 1 << 20)
    reply = words(system.command(f"dma_map_page 0000:00:03.0 p[{high}]+512 size=1024"))
    assert reply["bounced"] == "1"
    assert system.read("/sys/kernel/debug/swiotlb/io_tlb_used") == b"1\n"
    assert system.read("/sys/kernel/debug/swiotlb/io_tlb_nslabs") == b"32768\n"
    refused(system, "dma_unmap_page 0000:00:02.0 " + reply["dma"], errno.EINVAL)
    system.command("dma_unmap_page 0000:00:03.0 " + reply["dma"])
    assert system.read("/sys/kernel/debug/swiotlb/io_tlb_used") == b"0\n"
    refused(system, "dma_map_page 0000:00:03.0", errno.EINVAL)
    refused(system, "dma_map_page 0000:00:03.0 pfn=0x7fffffff", errno.EINVAL)


def test_a_pool(system: System) -> None:
    assert words(system.command("dma_pool_create ring 0000:00:04.0 100 align=64"))["size"] == "128"
    reply = words(system.command("b = dma_pool_alloc ring n=40"))
    assert int(reply["addr"], 16) - int(reply["dma"], 16) == system.kernel.layout.page_offset
    system.command("dma_pool_free ring b n=39")
    assert lines(system, "/kmemd/dma", "pool ring") == [
        "pool ring device=0000:00:04.0 in_use=1 pages=2 blocks=64 size=128"
    ]
    refused(system, f"dma_pool_free ring {system.kernel.handles['b'].address + 8:#x}", errno.EINVAL)
    page = system.kernel.device_memory.pools.find("ring").pages[0].block.address
    refused(system, f"dma_free_coherent {page:#x}", errno.EINVAL)
    assert words(system.command("dma_pool_destroy ring"))["lost"] == "1"
    refused(system, "dma_pool_alloc ring", errno.ENOENT)
    system.check()
