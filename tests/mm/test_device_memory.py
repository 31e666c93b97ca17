"""The resource tree, memory types, ioremap, bounce buffers, DMA and its pools."""

import errno

import pytest

from kmemd import System
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import memtype as m
from kmemd.mm.dma import dma_bit_mask
from kmemd.mm.firmware import Resource
from kmemd.mm.printk import Printk
from kmemd.mm.resource import Resources
from kmemd.mm.swiotlb import IO_TLB_SEGSIZE, Swiotlb

IOMEM = (
    Resource(0, 0xFFF, "Reserved"),
    Resource(0x1000, 0x9FFFF, "System RAM"),
    Resource(0x100000, 0x7FFFFFFF, "System RAM"),
    Resource(0x80000000, 0xFEBFFFFF, "PCI Bus 0000:00"),
    Resource(0xFD000000, 0xFDFFFFFF, "0000:00:02.0", 1),
    Resource(0xFE000000, 0xFE003FFF, "0000:00:04.0", 1),
    Resource(0xFE000000, 0xFE003FFF, "virtio-pci-modern", 2),
    Resource(0xFEC00000, 0xFEC003FF, "IOAPIC 0"),
    Resource(0xFED00000, 0xFED003FF, "HPET 0"),
    Resource(0xFFFC0000, 0xFFFFFFFF, "Reserved"),
)


def refused(error, call, *args, **rest):
    with pytest.raises(KernelError) as caught:
        call(*args, **rest)
    assert caught.value.errno == error
    return caught.value.reason


# -- resources --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree():
    return Resources(IOMEM, (1 << 40) - 1, Printk(Context()))


def names(tree):
    return [(depth, region.name) for depth, region in tree]


def test_the_tree_of_boot_is_kept(tree):
    assert names(tree) == [(resource.depth, resource.name) for resource in IOMEM]
    assert tree.pci_devices() == ["0000:00:02.0", "0000:00:04.0"]


def test_a_claim_nests_in_what_is_not_busy(tree):
    tree.request_mem_region(0xFD000000, 0x1000, "fb")
    tree.request_mem_region(0xFED00000, 0x400, "hpet")
    tree.request_mem_region(0x90000000, 0x1000, "card")
    assert names(tree)[3:7] == [(0, "PCI Bus 0000:00"), (1, "card"), (1, "0000:00:02.0"), (2, "fb")]
    assert (1, "hpet") in names(tree)
    tree.check()


@pytest.mark.parametrize(
    ("start", "size", "says"),
    [
        (0x200000, 0x1000, "System RAM"),
        (0xFE001000, 0x1000, "virtio-pci-modern"),
        (0xFDFFF000, 0x2000, "goes beyond 0000:00:02.0"),
        (0xFEC00000, 1, "IOAPIC 0"),
        (1 << 40, 1, "goes beyond PCI mem"),
        (0, 0x100, "Reserved"),
    ],
)
def test_a_claim_of_what_is_taken_is_refused(tree, start, size, says):
    before = names(tree)
    assert says in refused(errno.EBUSY, tree.request_mem_region, start, size, "x")
    assert names(tree) == before


def test_a_claim_of_nothing(tree):
    refused(errno.EINVAL, tree.request_mem_region, 0xFD000000, 0, "x")


def test_a_claim_is_released_as_it_was_made(tree):
    tree.request_mem_region(0xFD000000, 0x2000, "fb")
    refused(errno.EINVAL, tree.release_mem_region, 0xFD000000, 0x1000)
    refused(errno.EINVAL, tree.release_mem_region, 0xFD000000, 0x1000000)  # registers are not a claim
    log = tree._printk.since(0)
    assert log[0].text == "Trying to free nonexistent resource <0x00000000fd000000-0x00000000fd000fff>"
    tree.release_mem_region(0xFD000000, 0x2000)
    assert names(tree) == [(resource.depth, resource.name) for resource in IOMEM]


def test_registers_get_the_lowest_free_place_of_the_window(tree):
    first = tree.allocate(0x10000, 0x10000, "a")
    assert first.start == 0x80000000
    tree.allocate(0x1000, 0x1000, "b")
    assert tree.allocate(0x10000, 0x10000, "c").start == 0x80020000
    refused(errno.EBUSY, tree.allocate, 1 << 31, 4096, "d")
    refused(errno.EINVAL, tree.allocate, 4096, 3, "e")
    tree.request_mem_region(first.start, 4096, "driver")
    refused(errno.EBUSY, tree.remove, first)
    tree.release_mem_region(first.start, 4096)
    tree.remove(first)
    assert tree.allocate(0x10000, 0x10000, "f").start == 0x80000000
    tree.check()


def test_memory_is_whole_pages_of_it(tree):
    assert tree.system_ram(0x100000, 0x100FFF)
    assert tree.system_ram(0x7FFFF000, 0x90000000)
    assert not tree.system_ram(0xA0000, 0xFFFFF)
    assert not tree.system_ram(0x80000000, 0x80000FFF)


def test_addresses_without_privilege_give_a_tree_of_zeros():
    """A capture that was made without root has no addresses: the tree is shown as it was read."""
    tree = Resources([Resource(0, 0, "Reserved"), Resource(0, 0, "System RAM")], (1 << 40) - 1, Printk(Context()))
    assert names(tree) == [(0, "Reserved"), (0, "System RAM")]
    tree.check()


# -- memory types and ioremap -----------------------------------------------------------------------------------


@pytest.fixture
def kernel():
    return System.boot(machine="two-node", seed=1).kernel


def said(kernel, text):
    return [record.text for record in kernel.printk.since(0) if text in record.text]


def test_boot_has_mapped_tables_cached_and_registers_uncached(kernel):
    held = {(one.start, one.type) for one in kernel.device_memory.memtypes.ranges}
    assert (0xBFFE0000, m.WB) in held
    assert {(0xFE000000, m.UC_MINUS), (0xFED00000, m.UC_MINUS)} <= held


def test_a_second_mapping_gets_the_type_of_the_first(kernel):
    mapper, types = kernel.device_memory.mapper, kernel.device_memory.memtypes
    first = mapper.ioremap(0xFD000000, 0x2000, "ioremap_wc")
    second = mapper.ioremap(0xFD001000, 0x1000)
    assert types.lookup(0xFD001000) == m.WC
    mapper.iounmap(first)
    assert types.lookup(0xFD001000) == m.WC
    mapper.iounmap(second)
    assert types.lookup(0xFD001000) == m.UC_MINUS
    mapper.check()


def test_cached_firmware_tables_are_not_mapped_uncached(kernel):
    before = len(kernel.device_memory.memtypes.ranges)
    refused(errno.EBUSY, kernel.device_memory.mapper.ioremap, 0xBFFE0000, 0x1000)
    assert said(kernel, "ioremap error for 0xbffe0000-0xbffe1000, requested 0x2, got 0x0")
    assert len(kernel.device_memory.memtypes.ranges) == before
    kernel.check()


def test_types_that_meet_are_a_conflict(kernel):
    mapper = kernel.device_memory.mapper
    mapper.ioremap(0xFD000000, 0x1000, "ioremap_wc")
    mapper.ioremap(0xFD001000, 0x1000, "ioremap")
    refused(errno.EBUSY, mapper.ioremap, 0xFD000000, 0x2000)
    assert said(kernel, "conflicting memory types fd000000-fd002000 write-combining<->uncached-minus")
    assert said(kernel, "x86/PAT: memtype_reserve failed [mem 0xfd000000-0xfd001fff], track uncached-minus")
    assert said(kernel, "ioremap memtype_reserve failed -16")
    kernel.check()


def test_write_back_of_registers_is_uncached_by_the_mtrrs(kernel):
    kernel.device_memory.mapper.ioremap(0xFD000000, 0x1000, "ioremap_cache")
    assert kernel.device_memory.memtypes.lookup(0xFD000000) == m.UC_MINUS


def test_the_isa_region_is_not_tracked(kernel):
    before = len(kernel.device_memory.memtypes.ranges)
    address = kernel.device_memory.mapper.ioremap(0xA0000, 0x20000)
    assert len(kernel.device_memory.memtypes.ranges) == before
    kernel.device_memory.mapper.iounmap(address)
    kernel.check()


def test_memory_is_not_remapped(kernel):
    for _ in range(2):
        refused(errno.EINVAL, kernel.device_memory.mapper.ioremap, 0x200000, 0x1000)
    assert said(kernel, "ioremap on RAM at ") == ["ioremap on RAM at 0x0000000000200000 - 0x0000000000200fff"]
    refused(errno.EINVAL, kernel.device_memory.mapper.ioremap, 1 << 41, 0x1000)
    assert said(kernel, "ioremap: invalid physical address 20000000000")
    refused(errno.EINVAL, kernel.device_memory.mapper.ioremap, 0xFD000000, 0)


def test_a_mapping_of_several_devices_is_warned_of(kernel):
    kernel.device_memory.mapper.ioremap(0xFE003000, 0x2000)
    (line,) = said(kernel, "resource sanity check: requesting")
    assert line.endswith("[mem 0x00000000fe003000-0x00000000fe004fff], which spans more than 0000:00:04.0 "
                         "[mem 0xfe000000-0xfe003fff]")  # fmt: skip
    assert said(kernel, "mapping multiple BARs")


def test_iounmap_of_what_is_no_area(kernel):
    refused(errno.EFAULT, kernel.device_memory.mapper.iounmap, kernel.layout.vmalloc_start + (1 << 30))
    assert said(kernel, "iounmap: bad address")


def test_i386_has_no_pat():
    kernel = System.boot(machine="highmem", seed=1).kernel
    assert not kernel.device_memory.memtypes.enabled
    kernel.device_memory.mapper.ioremap(0xFD000000, 0x1000, "ioremap_wc")
    kernel.device_memory.mapper.ioremap(0xFD000000, 0x1000)
    assert kernel.device_memory.memtypes.ranges == []
    kernel.check()


def test_descriptors_come_from_kmalloc_and_go_back(kernel):
    address = kernel.device_memory.mapper.ioremap(0xFD000000, 0x1000)
    region = kernel.device_memory.resources.request_mem_region(0xFD000000, 0x1000, "fb")
    memtype = next(one for one in kernel.device_memory.memtypes.ranges if one.start == 0xFD000000)
    assert {kernel.slub.cache_of(one.descriptor).name for one in (region, memtype)} == {"kmalloc-64"}
    kernel.device_memory.resources.release_mem_region(0xFD000000, 0x1000)
    assert kernel.slub.kmalloc(64) == region.descriptor  # the object that was freed last
    kernel.device_memory.mapper.iounmap(address)
    freed = {kernel.slub.kmalloc(64) for _ in range(2)}  # the vm_struct, too
    assert memtype.descriptor in freed
    kernel.check()


# -- bounce buffers ---------------------------------------------------------------------------------------------


def tlb(size=1 << 21, cpus=2):
    return Swiotlb(Context(), 0x10000000, size, cpus)


def test_large_transfers_begin_on_a_page():
    bounce = tlb()
    assert [bounce.map(size) - bounce.start for size in (100, 4096, 100)] == [0, 0x1000, 0x2000]
    assert bounce.used == 4
    bounce.check()


def test_a_buffer_goes_back_and_its_run_is_whole_again():
    bounce = tlb()
    places = [bounce.map(2048) for _ in range(4)]
    for place in [*places[1:3], places[0], places[3]]:
        bounce.unmap(place)
        bounce.check()
    assert bounce.free_run[0] == IO_TLB_SEGSIZE
    assert bounce.used == 0
    refused(errno.EINVAL, bounce.unmap, places[0])


def test_no_buffer_is_longer_than_a_segment():
    bounce = tlb()
    refused(errno.EIO, bounce.map, (IO_TLB_SEGSIZE << 11) + 1)
    assert bounce.map(IO_TLB_SEGSIZE << 11) == bounce.start


def test_a_full_area_hands_over_to_the_next():
    bounce = tlb()
    each = IO_TLB_SEGSIZE << 11
    places = [bounce.map(each) for _ in range(8)]
    assert places == [bounce.start + n * each for n in range(8)]
    assert "used 1024 (slots)" in refused(errno.EIO, bounce.map, 1)
    bounce.check()


def test_a_cpu_begins_in_its_own_area():
    bounce = tlb()
    bounce._context.cpu = 1
    assert bounce.map(10) == bounce.start + (1 << 20)


# -- DMA --------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(kernel):
    return kernel.device_memory.devices.find("0000:00:03.0")


@pytest.mark.parametrize(("bits", "zone"), [(24, "DMA"), (32, "DMA32"), (30, "DMA")])
def test_the_mask_chooses_the_zone(kernel, device, bits, zone):
    """Of 30 bits it is zone DMA in the end: what the near node has of DMA32 lies above 2 GiB."""
    dma = kernel.device_memory.dma
    dma.set_mask(device, dma_bit_mask(bits), coherent=True)
    kernel.context.cpu = 3  # on node 1, whose memory begins at 2 GiB
    block = dma.alloc_coherent(device, 10000)
    assert kernel.zones[kernel.buddy.zone_of(block.pfn)].name == zone
    assert block.dma + (4096 << block.order) - 1 <= dma_bit_mask(bits)
    assert (block.order, block.address) == (2, kernel.layout.page_address(block.pfn))
    dma.free_coherent(block.address)
    kernel.check()


def test_a_wide_mask_takes_the_nearest_memory(kernel, device):
    kernel.context.cpu = 3
    kernel.device_memory.dma.set_mask(device, dma_bit_mask(64), coherent=True)
    block = kernel.device_memory.dma.alloc_coherent(device, 4096)
    assert kernel.zones[kernel.buddy.zone_of(block.pfn)].nid == 1


@pytest.mark.parametrize(("bits", "zone"), [(33, "DMA32"), (40, "Normal")])
def test_memory_beyond_the_mask_is_tried_again_lower(bits, zone):
    """A mask of more than 32 bits begins anywhere; what lies too high goes back, and zone DMA32 is next."""
    kernel = System.boot(machine="four-node", seed=1).kernel
    device = kernel.device_memory.devices.find("0000:00:03.0")
    kernel.device_memory.dma.set_mask(device, dma_bit_mask(bits), coherent=True)
    kernel.context.cpu = next(cpu for cpu, nid in enumerate(kernel.machine.cpu_nodes) if nid == 3)
    block = kernel.device_memory.dma.alloc_coherent(device, 4096)
    assert kernel.zones[kernel.buddy.zone_of(block.pfn)].name == zone
    kernel.check()


def test_masks_below_zone_dma_are_refused(kernel, device):
    dma = kernel.device_memory.dma
    refused(errno.EIO, dma.set_mask, device, dma_bit_mask(23))
    assert device.dma_mask == dma_bit_mask(32)
    dma.set_mask(device, dma_bit_mask(24))
    assert (device.dma_mask, device.coherent_dma_mask) == (dma_bit_mask(24), dma_bit_mask(32))


def test_coherent_memory_that_there_cannot_be(kernel, device):
    dma = kernel.device_memory.dma
    refused(errno.EINVAL, dma.alloc_coherent, device, 0)
    refused(errno.ENOMEM, dma.alloc_coherent, device, (4 << 20) + 1)
    assert said(kernel, "at mm/page_alloc.c:5634 __alloc_pages")
    refused(errno.EINVAL, dma.free_coherent, kernel.layout.page_address(256))


def test_zone_dma_runs_out(kernel, device):
    dma = kernel.device_memory.dma
    dma.set_mask(device, dma_bit_mask(24), coherent=True)
    blocks: list = []
    failures: list = []
    for _ in range(16):
        try:
            blocks.append(dma.alloc_coherent(device, 1 << 20, g.GFP_KERNEL | g.F.NOWARN))
        except KernelError as error:
            failures.append(error.errno)
    assert set(failures) == {errno.ENOMEM}
    assert len(blocks) < 16  # zone DMA has 16 MiB, and not all of it is free
    kernel.check()
    for block in blocks:
        dma.free_coherent(block.address)
    assert device.coherent_bytes == 0
    kernel.check()


def test_a_page_in_reach_is_mapped_as_it_is(kernel, device):
    dma = kernel.device_memory.dma
    mapping = dma.map_page(device, 0x5000, 16, 100)
    assert (mapping.dma, mapping.bounced) == (0x5000010, False)
    dma.unmap_page(device, mapping.dma)
    refused(errno.EINVAL, dma.unmap_page, device, mapping.dma)


def test_a_page_out_of_reach_bounces(kernel, device):
    dma = kernel.device_memory.dma
    pfn = (4 << 30) >> 12
    mapping = dma.map_page(device, pfn, 0, 4096)
    assert mapping.bounced
    assert dma.swiotlb.holds(mapping.dma)
    assert dma.swiotlb.used == 2
    kernel.check()
    dma.unmap_page(device, mapping.dma)
    assert dma.swiotlb.used == 0
    dma.set_mask(device, dma_bit_mask(24))
    refused(errno.EIO, dma.map_page, device, pfn, 0, 4096)
    assert said(kernel, "overflow (mask ffffff, bus limit 0).")
    assert dma.swiotlb.used == 0
    dma.set_mask(device, dma_bit_mask(64))
    assert not dma.map_page(device, pfn, 0, 4096).bounced


def test_without_bounce_buffers_a_page_out_of_reach_is_an_error():
    kernel = System.boot(seed=1).kernel
    device = kernel.device_memory.devices.find("0000:00:03.0")
    kernel.device_memory.dma.set_mask(device, dma_bit_mask(24))
    refused(errno.EIO, kernel.device_memory.dma.map_page, device, 0x5000, 0, 4096)
    assert said(kernel, "at kernel/dma/direct.h:103 dma_map_page_attrs")
    refused(errno.EINVAL, kernel.device_memory.dma.map_page, device, kernel.layout.max_pfn, 0, 1)


# -- pools ------------------------------------------------------------------------------------------------------


def test_a_pool_cuts_pages_up_and_uses_what_was_freed_last(kernel, device):
    pools = kernel.device_memory.pools
    pool = pools.create("ring", device, 100, 64)
    assert pool.size == 128
    first, second, third = (pools.alloc(pool)[0] for _ in range(3))
    assert (second - first, third - second) == (128, 128)
    pools.free(pool, first)
    pools.free(pool, third)
    assert pools.alloc(pool)[0] == third
    assert pools.alloc(pool)[0] == first
    assert (pool.in_use, len(pool.pages)) == (3, 1)
    kernel.check()


def test_blocks_cross_no_boundary(kernel, device):
    pool = kernel.device_memory.pools.create("odd", device, 96, 0, 256)
    offsets = list(pool.offsets())
    assert offsets[:5] == [0, 96, 256, 352, 512]
    assert list(kernel.device_memory.pools.create("even", device, 128, 0, 256).offsets())[:3] == [0, 256, 512]  # as 6.1
    assert all(offset // 256 == (offset + 95) // 256 for offset in offsets)


@pytest.mark.parametrize(("size", "align", "boundary"), [(0, 0, 0), (16, 3, 0), (128, 0, 64), (64, 0, 96)])
def test_pools_that_there_cannot_be(kernel, device, size, align, boundary):
    refused(errno.EINVAL, kernel.device_memory.pools.create, "x", device, size, align, boundary)


def test_what_is_not_of_the_pool_does_not_go_back(kernel, device):
    pools = kernel.device_memory.pools
    pool = pools.create("ring", device, 64)
    refused(errno.EEXIST, pools.create, "ring", device, 64)
    address = pools.alloc(pool)[0]
    refused(errno.EINVAL, pools.free, pool, address + 4)
    refused(errno.EINVAL, pools.free, pool, address + 64)
    pools.free(pool, address)
    refused(errno.EINVAL, pools.free, pool, address)
    assert len(said(kernel, "dma_pool_free ring")) == 3


def test_a_pool_in_use_loses_its_pages(kernel, device):
    pools = kernel.device_memory.pools
    pool = pools.create("ring", device, 64)
    pools.alloc(pool)
    assert pools.destroy(pool) == 1
    assert said(kernel, "pci 0000:00:03.0: dma_pool_destroy ring")
    assert device.coherent_bytes == 4096
    refused(errno.ENOENT, pools.find, "ring")
    kernel.check()


# -- devices ----------------------------------------------------------------------------------------------------


def test_devices_come_and_go(kernel):
    devices = kernel.device_memory.devices
    card = devices.add("card", 0x10000)
    assert card.registers[0].start % 0x10000 == 0
    refused(errno.EEXIST, devices.add, "card")
    refused(errno.EBUSY, devices.remove, devices.find("0000:00:02.0"))
    devices.remove(card)
    refused(errno.ENODEV, devices.find, "card")
    kernel.check()
