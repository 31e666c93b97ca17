"""Huge page pools take pages from the allocator and give them back."""

from __future__ import annotations

import errno

import pytest

from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.hugetlb_pool import Pool

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


# -- 1 GiB pages -------------------------------------------------------------------------------------------

GIB = 1 << 30


def boot_gbpages(cmdline: str = "", sizes: tuple[int, ...] = (6 * GIB,)) -> Kernel:
    nodes = range(len(sizes))
    distances = tuple(tuple(10 if a == b else 20 for b in nodes) for a in nodes)
    cpus = tuple((nid,) for nid in nodes)
    machine = Machine.of_memory("test", "x86_64", len(sizes), sizes, cpus, distances, cpu_features=("pdpe1gb",))
    return Kernel(machine, cmdline=cmdline)


def gigantic(kernel: Kernel) -> Pool:
    pool = kernel.hugetlb.pool("hugepages-1048576kB")
    assert pool is not None
    return pool


def test_cpus_without_gbpages_have_one_size() -> None:
    assert [pool.name for pool in boot(cmdline="hugepagesz=1G hugepages=2").hugetlb.pools] == ["hugepages-2048kB"]


def test_boot_sets_gigantic_pages_aside() -> None:
    plain, kernel = boot_gbpages(), boot_gbpages("hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=3")
    pool = gigantic(kernel)
    assert (pool.nr, pool.free, kernel.hugetlb.default.nr) == (2, 2, 3)
    assert all(pfn % (1 << 18) == 0 for pfn in pool.free_lists[0])
    assert kernel.totalram_pages() == pytest.approx(plain.totalram_pages(), abs=600)
    assert free_pages(plain) - free_pages(kernel) == pytest.approx((2 << 18) + 3 * 512, abs=600)
    kernel.check()


@pytest.mark.parametrize(
    ("cmdline", "nr", "default"),
    [
        ("hugepages=3 hugepagesz=1G hugepages=1", [1, 3], "hugepages-2048kB"),
        ("default_hugepagesz=1G hugepages=2", [2, 0], "hugepages-1048576kB"),
        ("hugepages=1 default_hugepagesz=1G", [1, 0], "hugepages-1048576kB"),
        ("hugepagesz=1G hugepages=400", [3, 0], "hugepages-2048kB"),
        ("hugepagesz=1G hugepages=1 hugepages=3", [1, 0], "hugepages-2048kB"),
        ("hugepagesz=4M hugepages=3 hugepages=2", [0, 2], "hugepages-2048kB"),
    ],
)
def test_parameters_of_several_sizes(cmdline: str, nr: list[int], default: str) -> None:
    hugetlb = boot_gbpages(cmdline).hugetlb
    assert [pool.nr for pool in sorted(hugetlb.pools, key=lambda pool: -pool.order)] == nr
    assert hugetlb.default.name == default


def test_gigantic_pages_by_node() -> None:
    kernel = boot_gbpages("hugepagesz=1G hugepages=0:1,1:2", (4 * GIB, 4 * GIB))
    assert gigantic(kernel).nr_node == [1, 2]
    kernel.check()


def test_gigantic_pages_at_run_time_need_free_ranges() -> None:
    kernel = boot_gbpages()
    before, pool = free_pages(kernel), gigantic(kernel)
    kernel.hugetlb.set_max_huge_pages(pool, 100)
    assert (pool.nr, pool.max_huge_pages) == (2, 2)
    assert before - free_pages(kernel) == 2 << 18
    kernel.check()
    kernel.hugetlb.set_max_huge_pages(pool, 0)
    assert free_pages(kernel) == before
    kernel.page_alloc.alloc_pages_bulk(0, 0, int(before * 0.9))
    kernel.hugetlb.set_max_huge_pages(pool, 1)
    assert pool.nr == 0
    kernel.check()


def test_gigantic_pages_are_demoted() -> None:
    kernel = boot_gbpages("hugepagesz=1G hugepages=2")
    pool, small = gigantic(kernel), kernel.hugetlb.default
    pool.resv = 1
    kernel.hugetlb.demote(pool, 5)
    assert (pool.nr, small.nr, pool.max_huge_pages, small.max_huge_pages) == (1, 512, 1, 512)
    pool.resv = 0
    kernel.hugetlb.set_max_huge_pages(small, 0)
    kernel.check()
    with pytest.raises(KernelError) as error:
        kernel.hugetlb.demote(small, 1)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(KernelError):
        kernel.hugetlb.set_demote_size(pool, GIB)


def test_gigantic_pages_cannot_be_overcommitted() -> None:
    kernel = boot_gbpages()
    with pytest.raises(KernelError) as error:
        kernel.hugetlb.set_overcommit(gigantic(kernel), 1)
    assert error.value.errno == errno.EINVAL


# -- promises ----------------------------------------------------------------------------------------------


def test_promises_need_free_pages() -> None:
    kernel = boot()
    kernel.hugetlb.nr_hugepages = 4
    pool = kernel.hugetlb.default
    kernel.hugetlb.acct_memory(pool, 3)
    with pytest.raises(KernelError) as error:
        kernel.hugetlb.acct_memory(pool, 2)
    assert error.value.errno == errno.ENOMEM
    assert (pool.resv, pool.available) == (3, 1)
    kernel.hugetlb.acct_memory(pool, -3)
    assert pool.resv == 0


def test_promises_may_grow_the_pool() -> None:
    kernel = boot()
    before = free_pages(kernel)
    kernel.hugetlb.nr_hugepages = 4
    kernel.hugetlb.nr_overcommit = 3
    pool = kernel.hugetlb.default
    kernel.hugetlb.acct_memory(pool, 6)
    assert (pool.nr, pool.free, pool.resv, pool.surplus) == (6, 6, 6, 2)
    kernel.hugetlb.check()
    with pytest.raises(KernelError):
        kernel.hugetlb.acct_memory(pool, 2)
    assert (pool.nr, pool.surplus) == (6, 2)
    kernel.hugetlb.acct_memory(pool, -6)
    assert (pool.nr, pool.resv, pool.surplus) == (4, 0, 0)
    kernel.hugetlb.nr_hugepages = 0
    assert free_pages(kernel) == before
    kernel.check()


def test_promises_of_a_bound_task_are_checked_on_its_nodes() -> None:
    kernel = boot(nodes=2)
    kernel.hugetlb.nr_hugepages = 4
    pool = kernel.hugetlb.default
    with pytest.raises(KernelError):
        kernel.hugetlb.acct_memory(pool, 3, mask=0b10)
    assert pool.resv == 0
    kernel.hugetlb.acct_memory(pool, 2, mask=0b10)
    assert pool.resv == 2


def test_pages_go_out_and_come_back() -> None:
    kernel = boot(nodes=2)
    kernel.hugetlb.nr_hugepages = 4
    pool = kernel.hugetlb.default
    kernel.hugetlb.acct_memory(pool, 1)
    promised = kernel.hugetlb.take_page(pool, 1, 0b10, reserved=True, avoid_reserve=False)
    assert promised is not None
    assert kernel.hugetlb.node_of(promised) == 1
    assert (pool.resv, pool.free) == (0, 3)
    others = [kernel.hugetlb.take_page(pool, 1, 0b11, reserved=False, avoid_reserve=False) for _ in range(4)]
    assert others[3] is None
    kernel.hugetlb.check()
    kernel.hugetlb.free_huge_page(pool, promised)
    assert (pool.resv, pool.free) == (1, 1)
    for pfn in others[:3]:
        assert pfn is not None
        kernel.hugetlb.free_huge_page(pool, pfn)
    assert (pool.free, pool.active) == (4, {})
