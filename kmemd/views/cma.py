"""Contiguous memory areas: ``/sys/kernel/mm/cma`` and ``/sys/kernel/debug/cma`` (mm/cma_sysfs.c, mm/cma_debug.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import numpy as np

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.cma import CmaArea
from kmemd.mm.debugfs_handlers import simple_number
from kmemd.steps import Steps
from kmemd.views.tree import debugfs, sysfs

SYSFS = "kernel/mm/cma"
AREA = f"{SYSFS}/{{area}}"
DEBUG = "cma"
DEBUG_AREA = f"{DEBUG}/{{area}}"


def _any(kernel: Kernel) -> bool:
    """Whether the command line made an area."""
    return bool(kernel.cma.areas)


sysfs.dir(SYSFS, exists=_any)
debugfs.dir(DEBUG)


@sysfs.keys(AREA, fixed=True)
@debugfs.keys(DEBUG_AREA, fixed=True)
def areas(kernel: Kernel) -> Iterable[str]:
    """The areas' names."""
    return [area.name for area in kernel.cma.areas]


def _area(kernel: Kernel, name: str) -> CmaArea:
    return next(area for area in kernel.cma.areas if area.name == name)


@sysfs.file(f"{AREA}/alloc_pages_success")
def alloc_pages_success(kernel: Kernel, area: str) -> str:
    """Pages of blocks that were had."""
    return f"{_area(kernel, area).succeeded}\n"


@sysfs.file(f"{AREA}/alloc_pages_fail")
def alloc_pages_fail(kernel: Kernel, area: str) -> str:
    """Pages of blocks that were not."""
    return f"{_area(kernel, area).failed}\n"


@debugfs.file(f"{DEBUG_AREA}/base_pfn")
def base_pfn(kernel: Kernel, area: str) -> str:
    """Where the area begins."""
    return f"{_area(kernel, area).base}\n"


@debugfs.file(f"{DEBUG_AREA}/count")
def count(kernel: Kernel, area: str) -> str:
    """How many pages it has."""
    return f"{_area(kernel, area).pages}\n"


@debugfs.file(f"{DEBUG_AREA}/order_per_bit")
def order_per_bit(kernel: Kernel, area: str) -> str:
    """A bit of the bitmap stands for a page."""
    return "0\n"


@debugfs.file(f"{DEBUG_AREA}/used")
def used(kernel: Kernel, area: str) -> str:
    """Pages that somebody has."""
    return f"{int(_area(kernel, area).used.sum())}\n"


@debugfs.file(f"{DEBUG_AREA}/maxchunk")
def maxchunk(kernel: Kernel, area: str) -> str:
    """The longest run of the others."""
    return f"{_area(kernel, area).max_chunk()}\n"


@debugfs.file(f"{DEBUG_AREA}/bitmap")
def bitmap(kernel: Kernel, area: str) -> str:
    """Who is taken, as 32-bit numbers."""
    taken = _area(kernel, area).used
    bits = np.zeros(-(-len(taken) // 32) * 32, dtype=np.uint8)
    bits[: len(taken)] = taken
    words = np.packbits(bits, bitorder="little").view("<u4")
    return " ".join(str(word) for word in words.tolist()) + "\n"


def _pages(text: str) -> int:
    """A number of pages, whose lower half counts. EINVAL, ERANGE."""
    return simple_number(text) & 0xFFFF_FFFF


@debugfs.write_only(f"{DEBUG_AREA}/alloc")
def alloc(kernel: Kernel, area: str, text: str) -> Steps[int]:
    """Take so many contiguous pages. ENOMEM."""
    found = _area(kernel, area)
    pages = _pages(text)
    pfn = (yield from kernel.cma.alloc_steps(found, pages)) if pages > 0 else None
    if pfn is None:
        raise KernelError(errno.ENOMEM, f"no {pages} contiguous pages in area {area}")
    kernel.cma.hold(found, pfn, pages)
    return len(text.encode())


@debugfs.write_only(f"{DEBUG_AREA}/free")
def free(kernel: Kernel, area: str, text: str) -> Steps[int]:
    """Give back so many pages of those taken here, the latest first."""
    yield from kernel.cma.drop(_area(kernel, area), _pages(text))
    return len(text.encode())
