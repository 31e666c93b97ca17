"""Huge page pools take pages from the allocator and give them back."""

from __future__ import annotations

import pytest

from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.machine import Machine

MIB = 1 << 20


def boot(arch: str = "x86_64", nodes: int = 1, cmdline: str = "", size: int = 256 * MIB) -> Kernel:
    cpus = tuple((cpu,) for cpu in range(nodes))
    distances = tuple(tuple(10 if a == b else 20 for b in range(nodes)) for a in range(nodes))
    machine = Machine.of_memory("test", arch, nodes, (size,) * nodes, cpus, distances)
    return Kernel(machine, cmdline=cmdline)


def free_pages(kernel: Kernel) -> int:
    return kernel.vmstat.zone_total(stats.NR_FREE_PAGES) + sum(zone.pcp_pages for zone in kernel.zones)


def test_pool_grows_and_shrinks() -> None:
    kernel = boot()
    before = free_pages(kernel)
    kernel.hugetlb.nr_hugepages = 10
    pool = kernel.hugetlb.default
    assert (pool.nr, pool.free, kernel.hugetlb.nr_hugepages) == (10, 10, 10)
    assert before - free_pages(kernel) == 10 * 512
    kernel.hugetlb.nr_hugepages = 3
    assert (pool.nr, before - free_pages(kernel)) == (3, 3 * 512)
    kernel.hugetlb.nr_hugepages = 0
    assert free_pages(kernel) == before
    kernel.hugetlb.check()
    kernel.check()


def test_pool_ends_where_memory_ends() -> None:
    kernel = boot()
    kernel.hugetlb.nr_hugepages = 1 << 32
    assert 0 < kernel.hugetlb.nr_hugepages < 128
    assert kernel.vmstat.events[stats.HTLB_BUDDY_PGALLOC] == kernel.hugetlb.default.nr
    assert kernel.vmstat.events[stats.HTLB_BUDDY_PGALLOC_FAIL] == 1
    kernel.check()


def test_nodes_take_turns() -> None:
    kernel = boot(nodes=2)
    kernel.hugetlb.nr_hugepages = 7
    pool = kernel.hugetlb.default
    assert pool.nr_node == [4, 3]
    kernel.hugetlb.set_max_huge_pages(pool, 1, nid=0)
    assert pool.nr_node == [1, 3]
    assert kernel.hugetlb.nr_hugepages == 4
    for nid, pages in enumerate(pool.free_lists):
        spans = [(zone.start_pfn, zone.end_pfn) for zone in kernel.zones if zone.nid == nid]
        assert all(any(low <= pfn < high for low, high in spans) for pfn in pages)


def test_reserved_pages_stay() -> None:
    kernel = boot()
    kernel.hugetlb.nr_hugepages = 8
    pool = kernel.hugetlb.default
    pool.resv = 5
    kernel.hugetlb.nr_hugepages = 2
    assert (pool.nr, pool.surplus, kernel.hugetlb.nr_hugepages) == (5, 3, 2)
    kernel.hugetlb.nr_hugepages = 4
    assert (pool.nr, pool.surplus, kernel.hugetlb.nr_hugepages) == (5, 1, 4)


@pytest.mark.parametrize(
    ("cmdline", "per_node"),
    [
        ("hugepages=6", [3, 3]),
        ("hugepagesz=2M hugepages=4", [2, 2]),
        ("default_hugepagesz=2M hugepages=0:1,1:5", [1, 5]),
        ("hugepagesz=1G hugepages=1", [0, 0]),
        ("hugepages=7:1", [0, 0]),
        ("hugepages=x", [0, 0]),
    ],
)
def test_boot_parameters(cmdline: str, per_node: list[int]) -> None:
    assert boot(nodes=2, cmdline=cmdline).hugetlb.default.nr_node == per_node


def test_i386_has_pages_of_4_mib() -> None:
    kernel = boot("i386", size=1024 * MIB)
    kernel.hugetlb.nr_hugepages = 2
    pool = kernel.hugetlb.default
    assert (pool.name, pool.nr, pool.size) == ("hugepages-4096kB", 2, 4 * MIB)
    assert kernel.hugetlb.total_pages() == 2048
