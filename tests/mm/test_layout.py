"""The address space against Linux's documented bases and ranges."""

from random import Random

import pytest

from kmemd.errors import KernelError
from kmemd.mm.layout import CPU_ENTRY_AREA_BASE, PAGE_OFFSET_BASE, VMALLOC_SIZE, Layout
from kmemd.mm.units import GIB, TIB


def test_nokaslr_x86_64_bases():
    layout = Layout("x86_64", 0x80000)
    assert layout.page_address(0) == 0xFFFF888000000000
    assert layout.vmalloc_start == 0xFFFFC90000000000
    assert layout.vmemmap_start == 0xFFFFEA0000000000
    assert layout.text_base == 0xFFFFFFFF81000000
    assert layout.modules_start == 0xFFFFFFFFC0000000
    assert layout.vmalloc_total >> 10 == 34359738367
    assert layout.page_struct(2) == 0xFFFFEA0000000080


def test_i386_matches_the_captured_machine():
    layout = Layout("i386", 0x7FFDA)
    assert layout.max_low_pfn == 0x36FFE
    assert layout.vmalloc_total >> 10 == 122880
    assert layout.page_address(0x36FFD) == 0xF6FFD000
    assert layout.page_address(0x36FFE) == 0
    assert layout.format_address(0xC0001000) == "c0001000"


def test_i386_small_memory_has_no_highmem():
    layout = Layout("i386", 0x10000)
    assert layout.max_low_pfn == 0x10000
    assert layout.vmalloc_start == 0xC0000000 + (0x10000 << 12) + (8 << 20)


@pytest.mark.parametrize("seed", range(20))
def test_kaslr_regions_are_aligned_ordered_and_apart(seed):
    layout = Layout("x86_64", 0x80000, Random(seed))
    assert layout.page_offset % GIB == layout.vmalloc_start % GIB == layout.vmemmap_start % GIB == 0
    assert layout.page_offset >= PAGE_OFFSET_BASE
    assert layout.page_offset + TIB <= layout.vmalloc_start
    assert layout.vmalloc_start + VMALLOC_SIZE <= layout.vmemmap_start < CPU_ENTRY_AREA_BASE
    assert 0xFFFFFFFF81000000 <= layout.text_base < 0xFFFFFFFFC0000000
    assert layout.text_base % (2 << 20) == 0
    assert 0xFFFFFFFFC0001000 <= layout.modules_start <= 0xFFFFFFFFC0400000


def test_kaslr_is_a_function_of_the_seed():
    first, again, other = (Layout("x86_64", 0x80000, Random(seed)) for seed in (5, 5, 6))
    assert first.page_offset == again.page_offset
    assert first.page_offset != other.page_offset


def test_round_trip_and_bad_addresses():
    layout = Layout("x86_64", 0x80000)
    assert layout.virt_to_pfn(layout.page_address(0x1234) + 0xFFF) == 0x1234
    assert layout.is_vmalloc_addr(layout.vmalloc_start)
    assert not layout.is_vmalloc_addr(layout.page_offset)
    for bad in (0, layout.vmalloc_start, layout.high_memory):
        with pytest.raises(KernelError):
            layout.virt_to_pfn(bad)
    with pytest.raises(KernelError):
        Layout("arm64", 1)
