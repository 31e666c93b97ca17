"""``/sys/kernel/mm`` beyond its plain knobs: huge page pools and page_idle (mm/hugetlb.c, mm/page_idle.c).

Also the same pools and ``compact`` below each NUMA node (drivers/base/node.c, mm/compaction.c), ``/proc/pressure``
(kernel/sched/psi.c) and ``/proc/swaps`` (mm/swapfile.c).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.page_idle import PageIdle
from kmemd.mm.params import memparse
from kmemd.mm.psi import RESOURCES
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SIZE
from kmemd.steps import Steps
from kmemd.views.pressure import PressureFile
from kmemd.views.sysctl import one_page
from kmemd.views.tree import Caller, File, OpenFile, debugfs, proc, sysfs

POOL = "kernel/mm/hugepages/{pool}"
NODE = "devices/system/node/node{nid}"
NODE_POOL = f"{NODE}/hugepages/{{pool}}"
PATH_WIDTH = 40
WIDE = 10_000_000

sysfs.dir("kernel/mm/lru_gen", exists=lambda kernel: kernel.vmscan.lru_gen)
sysfs.dir("kernel/mm/numa", exists=lambda kernel: kernel.vmscan.numa)
sysfs.dir(f"{NODE}/hugepages", exists=lambda kernel, nid: kernel.nodes[nid].has_memory)


def _pool(kernel: Any, name: str) -> Pool:
    found: Pool = kernel.hugetlb.pool(name)
    return found


@sysfs.keys(POOL, fixed=True)
def pools(kernel: Any) -> Iterable[str]:
    """A directory per page size."""
    return [pool.name for pool in kernel.hugetlb.pools]


@sysfs.keys(NODE_POOL, fixed=True)
def node_pools(kernel: Any, _nid: int) -> Iterable[str]:
    """The same sizes on each node that has memory."""
    return pools(kernel)


# -- pools of the whole machine ----------------------------------------------------------------------------


@sysfs.file(f"{POOL}/nr_hugepages", mode=0o644)
def nr_hugepages(kernel: Any, pool: str) -> str:
    """All pages of the pool."""
    return f"{_pool(kernel, pool).nr}\n"


@nr_hugepages.store
def nr_hugepages_store(kernel: Any, pool: str, text: str) -> Steps[int]:
    """Resize the pool. EINVAL, ERANGE."""
    return (yield from _resize(kernel, _pool(kernel, pool), text, None))


def _resize(kernel: Any, pool: Pool, text: str, nid: int | None, *, by_policy: bool = False) -> Steps[int]:
    data = kstrtox.to_bytes(one_page(text))
    if data:
        count = kstrtox.kstrtoul(data, 10, kernel.hugetlb.long_bits)
        yield from kernel.hugetlb.resize_steps(pool, count, nid, by_policy=by_policy)
    return len(data)


@sysfs.file(f"{POOL}/nr_overcommit_hugepages", mode=0o644)
def nr_overcommit_hugepages(kernel: Any, pool: str) -> str:
    """How many surplus pages the pool may grow by."""
    return f"{_pool(kernel, pool).overcommit}\n"


@nr_overcommit_hugepages.store
def nr_overcommit_hugepages_store(kernel: Any, pool: str, text: str) -> int:
    """Set the overcommit limit. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(one_page(text))
    found = _pool(kernel, pool)
    if data and found.gigantic:
        kernel.hugetlb.set_overcommit(found, 0)
    elif data:
        kernel.hugetlb.set_overcommit(found, kstrtox.kstrtoul(data, 10, kernel.hugetlb.long_bits))
    return len(data)


@sysfs.file(f"{POOL}/free_hugepages")
def free_hugepages(kernel: Any, pool: str) -> str:
    """Pages that no mapping uses."""
    return f"{_pool(kernel, pool).free}\n"


@sysfs.file(f"{POOL}/resv_hugepages")
def resv_hugepages(kernel: Any, pool: str) -> str:
    """Pages promised to mappings and not used yet."""
    return f"{_pool(kernel, pool).resv}\n"


@sysfs.file(f"{POOL}/surplus_hugepages")
def surplus_hugepages(kernel: Any, pool: str) -> str:
    """Pages above the pool's persistent size."""
    return f"{_pool(kernel, pool).surplus}\n"


nr_hugepages_mempolicy = File(0o644, sysfs.size, nr_hugepages.show, exists=lambda kernel, _pool: kernel.hugetlb.numa)


@nr_hugepages_mempolicy.store
def nr_hugepages_mempolicy_store(kernel: Any, pool: str, text: str) -> Steps[int]:
    """Resize the pool on the nodes of the writer's policy. EINVAL, ERANGE."""
    return (yield from _resize(kernel, _pool(kernel, pool), text, None, by_policy=True))


sysfs.add(f"{POOL}/nr_hugepages_mempolicy", nr_hugepages_mempolicy)


def _has_demotion(kernel: Any, *names: Any) -> bool:
    return _pool(kernel, names[-1]).demote_order > 0


def _demote_size(kernel: Any, name: str) -> str:
    return f"{PAGE_SIZE // 1024 << _pool(kernel, name).demote_order}kB\n"


def _demote(kernel: Any, name: str, text: str, nid: int | None) -> int:
    data = kstrtox.to_bytes(one_page(text))
    if data:
        kernel.hugetlb.demote(_pool(kernel, name), kstrtox.kstrtoul(data, 10, kernel.hugetlb.long_bits), nid)
    return len(data)


@sysfs.write_only(f"{POOL}/demote", exists=_has_demotion)
def demote(kernel: Any, pool: str, text: str) -> int:
    """Make pages of the smaller size of free ones. EINVAL, ERANGE."""
    return _demote(kernel, pool, text, None)


@sysfs.file(f"{POOL}/demote_size", mode=0o644, exists=_has_demotion)
def demote_size(kernel: Any, pool: str) -> str:
    """The size that pages are demoted to."""
    return _demote_size(kernel, pool)


@demote_size.store
def demote_size_store(kernel: Any, pool: str, text: str) -> int:
    """Choose that size. EINVAL."""
    written = one_page(text)
    if written:
        kernel.hugetlb.set_demote_size(_pool(kernel, pool), memparse(written)[0])
    return len(kstrtox.to_bytes(written))


# -- one node ------------------------------------------------------------------------------------------------


@sysfs.write_only(f"{NODE}/compact")
def compact(kernel: Any, nid: int, text: str) -> Steps[int]:
    """Compact the node, whatever is written."""
    data = kstrtox.to_bytes(one_page(text))
    if data:
        yield from kernel.compaction.compact_node_steps(nid)
    return len(data)


@sysfs.file(f"{NODE_POOL}/nr_hugepages", mode=0o644)
def node_nr_hugepages(kernel: Any, nid: int, pool: str) -> str:
    """The node's pages of the pool."""
    return f"{_pool(kernel, pool).nr_node[nid]}\n"


@node_nr_hugepages.store
def node_nr_hugepages_store(kernel: Any, nid: int, pool: str, text: str) -> Steps[int]:
    """Resize the node's part of the pool. EINVAL, ERANGE."""
    return (yield from _resize(kernel, _pool(kernel, pool), text, nid))


@sysfs.file(f"{NODE_POOL}/free_hugepages")
def node_free_hugepages(kernel: Any, nid: int, pool: str) -> str:
    """The node's pages that no mapping uses."""
    return f"{_pool(kernel, pool).free_node(nid)}\n"


@sysfs.file(f"{NODE_POOL}/surplus_hugepages")
def node_surplus_hugepages(kernel: Any, nid: int, pool: str) -> str:
    """The node's surplus pages."""
    return f"{_pool(kernel, pool).surplus_node[nid]}\n"


@sysfs.write_only(f"{NODE_POOL}/demote", exists=_has_demotion)
def node_demote(kernel: Any, nid: int, pool: str, text: str) -> int:
    """Make pages of the smaller size of the node's free ones. EINVAL, ERANGE."""
    return _demote(kernel, pool, text, nid)


node_demote_size = File(0o644, sysfs.size, lambda kernel, _nid, pool: _demote_size(kernel, pool), exists=_has_demotion)
node_demote_size.store(lambda kernel, _nid, pool, text: demote_size_store(kernel, pool, text))
sysfs.add(f"{NODE_POOL}/demote_size", node_demote_size)


# -- pressure ------------------------------------------------------------------------------------------------


proc.dir("pressure", exists=lambda kernel: kernel.psi.enabled)


@proc.device("pressure/{resource}", 0o666, pollable=True)
def pressure(kernel: Any, resource: str, caller: Caller) -> OpenFile:
    """Stall times of one resource, and triggers."""
    return PressureFile(kernel.psi, resource, caller)


@proc.keys("pressure/{resource}", fixed=True)
def resources(_kernel: Any) -> Iterable[str]:
    """What tasks may wait for."""
    return RESOURCES


# -- swap ----------------------------------------------------------------------------------------------------


@proc.file("swaps")
def swaps(kernel: Any) -> Iterator[str]:
    """The swap areas that are on; sizes in KiB."""
    yield "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    for area in kernel.swap.areas:
        size, used = area.pages * KIB_PER_PAGE, area.inuse_pages * KIB_PER_PAGE
        path = area.path + " " * (PATH_WIDTH - len(area.path) if len(area.path) < PATH_WIDTH else 1)
        kind = "partition" if area.kind == "partition" else "file\t"
        pads = ("" if size >= WIDE else "\t", "" if used >= WIDE else "\t")
        yield f"{path}{kind}\t{size}\t{pads[0]}{used}\t{pads[1]}{area.priority}\n"


# -- page_idle -----------------------------------------------------------------------------------------------


@sysfs.device("kernel/mm/page_idle/bitmap", 0o600)
def page_idle_bitmap(kernel: Any, _caller: Caller) -> OpenFile:
    """A bit per page that nobody has touched since it was set."""
    return PageIdleBitmap(kernel)


class PageIdleBitmap:
    """The open bitmap. Only pages on an LRU list can be idle."""

    CHUNK = 8

    def __init__(self, kernel: Any) -> None:
        self._max_pfn: int = max(zone.end_pfn for zone in kernel.zones)
        self._position = 0
        self._idle = PageIdle(kernel.pages, kernel.mmu, kernel.rmap, kernel.vmstat.hpage_pmd_nr)

    def read(self, offset: int, size: int) -> bytes:
        """Whole 64-bit words, one bit per page. EINVAL when the range is not of words."""
        if offset % self.CHUNK or size % self.CHUNK:
            raise KernelError(errno.EINVAL, "page_idle/bitmap is read in 8-byte words")
        whole = self._max_pfn // 64 * self.CHUNK  # page_idle_bitmap_read gives no word that it did not fill
        size = min(size, max(whole - offset, 0), PAGE_SIZE)
        idle = self._idle.idle(offset * 8, (offset + size) * 8)
        return np.packbits(idle, bitorder="little").tobytes()

    def write(self, data: bytes) -> Steps[int]:
        """``write_at`` behind what was written last."""
        return self.write_at(self._position, data)

    def write_at(self, offset: int, data: bytes) -> Steps[int]:
        """Mark pages idle. EINVAL when it is not of words, ENXIO behind the last page."""
        data = data[:PAGE_SIZE]
        if offset % self.CHUNK or len(data) % self.CHUNK:
            raise KernelError(errno.EINVAL, "page_idle/bitmap is written in 8-byte words")
        first = offset * 8
        if data and first >= self._max_pfn:
            raise KernelError(errno.ENXIO, "there are no pages there")
        wanted = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").astype(np.bool_)
        wanted = wanted[: max(self._max_pfn - first, 0)]
        self._idle.set_idle(first, wanted)
        taken = len(wanted) // 64 * self.CHUNK  # it, too, counts whole words only
        self._position = offset + taken
        return taken
        yield

    def close(self) -> None:
        """Nothing to let go."""


@debugfs.write_only("split_huge_pages")
def split_huge_pages(kernel: Any, text: str) -> Steps[int]:
    """Make small pages of huge ones (mm/huge_memory.c ``split_huge_pages_write``)."""
    taken: int = yield from kernel.user.split_huge_pages(text)
    return taken
