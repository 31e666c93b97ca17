"""Page flags in words, as captured and for a page of a booted machine."""

import errno

import pytest

from kmemd.core.pages import PageMap
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.page_flags import PageFlags


def page_flags(arch: str) -> PageFlags:
    return PageFlags(arch, 2, PageMap(1), [])


def test_flags_as_captured():
    flags = page_flags("x86_64")
    assert flags.show(0xA0004, 0, 1) == (
        "0x1ffe000000a0004(uptodate|mappedtodisk|swapbacked|node=0|zone=1|lastcpupid=0x7ff)"
    )
    assert flags.show(0, 1, 2) == "0x6ffe00000000000(node=1|zone=2|lastcpupid=0x7ff)"
    assert page_flags("i386").show(0x14, 0, 2) == "0x80000014(uptodate|lru|zone=2)"


def test_flags_of_a_page() -> None:
    kernel = Kernel(Machine.load("two-node"))
    pfn = kernel.page_alloc.alloc_pages(GFP_KERNEL, 1, 1)
    assert kernel.page_flags.of_page(pfn) == "0x6ffe00000000000(node=1|zone=2|lastcpupid=0x7ff)"
    with pytest.raises(KernelError) as caught:
        kernel.page_flags.of_page(kernel.layout.max_pfn + 1)
    assert caught.value.errno == errno.EFAULT
