"""NUMA policies: what a program may pass, what is shown, and where pages come from."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np
import pytest

from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm import gfp as g
from kmemd.mm.mempolicy import GFP_USER_PAGE
from kmemd.mm.mm_types import VM_READ, VM_WRITE, Mm, Vma
from kmemd.mm.mpol import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    Policy,
    SharedPolicy,
    mpol_equal,
    mpol_new,
    mpol_to_str,
    sanitize_mpol_flags,
    user_mask,
)

BASE = 0x7F0D64621000
PAGES = 2048
NUMA_ITEMS = stats.NUMA_STAT_NAMES


@dataclass
class FakeTask:
    """A task with memory and nothing else."""

    mm: Mm | None


@pytest.fixture
def kernel() -> Kernel:
    return Kernel.boot(Machine.load("two-node"))


@pytest.fixture
def task() -> FakeTask:
    return FakeTask(Mm(1))


def vma(policy: Policy | None = None, pages: int = PAGES) -> Vma:
    return Vma(BASE, BASE + pages * 4096, VM_READ | VM_WRITE, pgoff=BASE >> 12, policy=policy)


def vpns(area: Vma, pages: int = PAGES) -> np.ndarray:
    return np.arange(area.vpn, area.vpn + pages, dtype=np.int64)


def numa(kernel: Kernel) -> dict[str, int]:
    return {name: kernel.vmstat.numa_total(item) for item, name in enumerate(NUMA_ITEMS)}


def moved(kernel: Kernel, before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in numa(kernel).items() if value != before[name]}


def policy(mode: int, nodes: int, flags: int = 0) -> Policy:
    made = mpol_new(*sanitize_mpol_flags(mode | flags), nodes, 0b11)
    assert made is not None
    return made


def fails(number: int, function, *arguments) -> str:
    with pytest.raises(KernelError) as failure:
        function(*arguments)
    assert failure.value.errno == number
    return failure.value.reason


# -- what a program passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "mask"),
    [(0, 0b1), (3, 0), (2, 0b1000), (9, 0b1), (2, 0), (4, 0b1), (5, 0), (5, 0b100)],
)
def test_refused(mode: int, mask: int) -> None:
    """The pairs that the captured kernel refused, and more like them."""

    def make() -> None:
        plain, flags = sanitize_mpol_flags(mode)
        mpol_new(plain, flags, mask, 0b11)

    fails(errno.EINVAL, make)


@pytest.mark.parametrize(
    "flags",
    [
        MPOL_PREFERRED | MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES,
        MPOL_PREFERRED | MPOL_F_NUMA_BALANCING,
        6,
        -1,
    ],
)
def test_refused_flags(flags: int) -> None:
    fails(errno.EINVAL, sanitize_mpol_flags, flags)


def test_empty_preferred_is_local_but_not_with_flags() -> None:
    assert mpol_new(MPOL_PREFERRED, 0, 0, 0b11) == Policy(MPOL_LOCAL)
    fails(errno.EINVAL, mpol_new, MPOL_PREFERRED, MPOL_F_STATIC_NODES, 0, 0b11)
    fails(errno.EINVAL, mpol_new, MPOL_LOCAL, MPOL_F_RELATIVE_NODES, 0, 0b11)
    assert mpol_new(MPOL_DEFAULT, 0, 0, 0b11) is None


@pytest.mark.parametrize(
    ("mask", "maxnode", "nodes"),
    [(0b11, 65, 0b11), (0b11, 2, 0b1), (0b11, 1, 0), (None, 0, 0), (None, 65, 0), (0b111, 3, 0b11)],
)
def test_masks_are_one_bit_shorter_than_said(mask: int | None, maxnode: int, nodes: int) -> None:
    assert user_mask(mask, maxnode) == nodes


def test_masks_beyond_the_kernel() -> None:
    assert user_mask(0b1, 32769) == 0b1
    fails(errno.EINVAL, user_mask, 0b1, 32770)
    fails(errno.EINVAL, user_mask, 0b1, 0)
    fails(errno.EINVAL, user_mask, 1 << 64, 128)
    assert user_mask(1 << 64 | 1, 65) == 1


# -- what is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "nodes", "text"),
    [
        (MPOL_PREFERRED, 0b11, "prefer:0"),
        (MPOL_PREFERRED, 0b10, "prefer:1"),
        (MPOL_BIND, 0b10, "bind:1"),
        (MPOL_INTERLEAVE, 0b11, "interleave:0-1"),
        (MPOL_PREFERRED_MANY, 0b11, "prefer (many):0-1"),
        (MPOL_LOCAL, 0, "local"),
        (MPOL_BIND | MPOL_F_STATIC_NODES, 0b111, "bind=static:0-1"),
        (MPOL_BIND | MPOL_F_RELATIVE_NODES, 0b100, "bind=relative:0"),
        (MPOL_BIND | MPOL_F_NUMA_BALANCING, 0b1, "bind=balancing:0"),
        (MPOL_BIND | MPOL_F_NUMA_BALANCING | MPOL_F_STATIC_NODES, 0b1, "bind=static|balancing:0"),
    ],
)
def test_text(mode: int, nodes: int, text: str) -> None:
    assert mpol_to_str(policy(mode, nodes)) == text


def test_the_default_has_no_nodes() -> None:
    assert mpol_to_str(None) == "default"


def test_equal_policies_may_share_a_mapping() -> None:
    static = policy(MPOL_BIND, 0b111, MPOL_F_STATIC_NODES)
    assert mpol_equal(static, static.dup())
    assert not mpol_equal(static, policy(MPOL_BIND, 0b11, MPOL_F_STATIC_NODES)), "other nodes were asked for"
    assert not mpol_equal(static, policy(MPOL_BIND, 0b11))
    assert not mpol_equal(static, None)
    assert mpol_equal(None, None)
    one, other = policy(MPOL_INTERLEAVE, 0b11), policy(MPOL_INTERLEAVE, 0b11)
    other.il_prev = 0
    assert mpol_equal(one, other)


# -- where pages come from ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "mode", "nodes", "expected"),
    [
        (2, MPOL_PREFERRED, 0b01, {"numa_hit": 2048, "numa_other": 2048}),
        (2, MPOL_PREFERRED, 0b10, {"numa_hit": 2048, "numa_local": 2048}),
        (2, MPOL_BIND, 0b10, {"numa_hit": 2048, "numa_local": 2048}),
        (0, MPOL_BIND, 0b10, {"numa_hit": 2048, "numa_other": 2048}),
        (2, MPOL_INTERLEAVE, 0b10, {"numa_hit": 2048, "numa_interleave": 2048, "numa_local": 2048}),
        (
            2,
            MPOL_INTERLEAVE,
            0b11,
            {"numa_hit": 2048, "numa_interleave": 2048, "numa_local": 1024, "numa_other": 1024},
        ),
        (0, MPOL_LOCAL, 0, {"numa_hit": 2048, "numa_local": 2048}),
        (0, MPOL_PREFERRED_MANY, 0b10, {"numa_hit": 2048, "numa_other": 2048}),
    ],
)
def test_counters(kernel: Kernel, task: FakeTask, cpu: int, mode: int, nodes: int, expected: dict[str, int]) -> None:
    """As the captured kernel counted 8 MiB of each policy."""
    kernel.context.cpu = cpu
    area = vma(policy(mode, nodes))
    before = numa(kernel)
    pfns = kernel.mempolicy.alloc_bulk(area, task, vpns(area))
    assert moved(kernel, before) == expected
    wanted = nodes if mode in (MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED, MPOL_PREFERRED_MANY) else 1
    assert set(kernel.mempolicy.nid_of(pfns).tolist()) <= {nid for nid in (0, 1) if wanted >> nid & 1}


def test_interleaving_goes_by_offset(kernel: Kernel, task: FakeTask) -> None:
    area = vma(policy(MPOL_INTERLEAVE, 0b11))
    pfns = kernel.mempolicy.alloc_bulk(area, task, vpns(area))
    assert kernel.mempolicy.nid_of(pfns).tolist() == [(area.pgoff + i) % 2 for i in range(PAGES)]
    half = kernel.mempolicy.alloc_bulk(area, task, vpns(area)[::2])
    assert set(kernel.mempolicy.nid_of(half).tolist()) == {area.pgoff % 2}


def test_bulk_and_single_allocations_are_the_same_pages(task: FakeTask) -> None:
    for mode, nodes in ((MPOL_INTERLEAVE, 0b11), (MPOL_BIND, 0b10), (MPOL_PREFERRED_MANY, 0b01), (MPOL_LOCAL, 0)):
        one, other = (Kernel.boot(Machine.load("two-node")) for _ in range(2))
        area = vma(policy(mode, nodes))
        bulk = one.mempolicy.alloc_bulk(area, task, vpns(area, 300))
        single = [other.mempolicy.alloc_pages_vma(area, task, int(vpn), GFP_USER_PAGE) for vpn in vpns(area, 300)]
        assert bulk.tolist() == single
        assert numa(one) == numa(other)
        assert one.context.now == other.context.now


def test_task_policy_counts_where_the_mapping_has_none(kernel: Kernel, task: FakeTask) -> None:
    kernel.mempolicy.set_mempolicy(task, MPOL_BIND, 0b10)
    area = vma()
    assert set(kernel.mempolicy.nid_of(kernel.mempolicy.alloc_bulk(area, task, vpns(area, 10))).tolist()) == {1}
    assert kernel.mempolicy.shown(area, task) == "bind:1"
    area.policy = policy(MPOL_PREFERRED, 0b01)
    assert set(kernel.mempolicy.nid_of(kernel.mempolicy.alloc_bulk(area, task, vpns(area, 10))).tolist()) == {0}
    assert kernel.mempolicy.shown(area, task) == "prefer:0"


def test_a_task_interleaves_its_own_pages_in_turn(kernel: Kernel, task: FakeTask) -> None:
    """il_prev: what is not of a mapping comes from the next node each time, whatever faults do in between."""
    kernel.mempolicy.set_mempolicy(task, MPOL_INTERLEAVE, 0b11)
    area = vma()
    got = []
    for _ in range(4):
        got.append(kernel.mempolicy.alloc_pages(task, g.GFP_KERNEL))
        kernel.mempolicy.alloc_bulk(area, task, vpns(area, 3))
    assert kernel.mempolicy.nid_of(np.array(got)).tolist() == [0, 1, 0, 1]
    assert task.mm is not None
    assert task.mm.policy is not None
    child = task.mm.policy.dup()
    assert kernel.mempolicy.interleave_next(child) == 0


def test_bind_stays_on_its_nodes_until_memory_is_gone(kernel: Kernel, task: FakeTask) -> None:
    area = vma(policy(MPOL_BIND, 0b10), 1 << 20)
    pages = sum(zone.managed for zone in kernel.nodes[1].zones)
    pfns = kernel.mempolicy.alloc_bulk(area, task, vpns(area, pages), GFP_USER_PAGE | g.F.NORETRY | g.F.NOWARN)
    assert 0 < len(pfns) < pages
    assert set(kernel.mempolicy.nid_of(pfns).tolist()) == {1}


def test_interleaving_falls_back_when_a_node_is_full(kernel: Kernel, task: FakeTask) -> None:
    area = vma(policy(MPOL_INTERLEAVE, 0b11))
    gfp = GFP_USER_PAGE | g.F.THISNODE | g.F.NOWARN | g.F.NORETRY
    kernel.page_alloc.alloc_pages_bulk(gfp, 0, 1 << 20, 1)
    before = numa(kernel)
    pfns = kernel.mempolicy.alloc_bulk(area, task, vpns(area, 100))
    assert len(pfns) == 100
    change = moved(kernel, before)
    from_zero = int((kernel.mempolicy.nid_of(pfns) == 0).sum())
    assert from_zero > 90
    assert change["numa_interleave"] == change["numa_hit"]
    assert change["numa_miss"] == change["numa_foreign"] == 100 - change["numa_hit"]


def test_huge_pages_from_the_nearest_node(kernel: Kernel, task: FakeTask) -> None:
    kernel.context.cpu = 2
    gfp = g.GFP_TRANSHUGE_LIGHT
    area = vma()
    pfn = kernel.mempolicy.alloc_hugepage(area, task, area.vpn, gfp, 9)
    assert kernel.mempolicy.nid_of(np.array([pfn])).tolist() == [1]
    area.policy = policy(MPOL_BIND, 0b01)
    pfn = kernel.mempolicy.alloc_hugepage(area, task, area.vpn, gfp, 9)
    assert kernel.mempolicy.nid_of(np.array([pfn])).tolist() == [0]
    area.policy = policy(MPOL_INTERLEAVE, 0b11)
    offsets = [area.vpn, area.vpn + 512, area.vpn + 1024]
    pfns = [kernel.mempolicy.alloc_hugepage(area, task, vpn, gfp, 9) for vpn in offsets]
    first = (area.pgoff >> 9) % 2
    assert kernel.mempolicy.nid_of(np.array(pfns)).tolist() == [first, 1 - first, first]


def test_a_huge_page_does_not_leave_the_node_without_reclaim(kernel: Kernel, task: FakeTask) -> None:
    kernel.context.cpu = 2
    kernel.page_alloc.alloc_pages_bulk(GFP_USER_PAGE | g.F.THISNODE | g.F.NOWARN | g.F.NORETRY, 0, 1 << 20, 1)
    area = vma()
    fails(errno.ENOMEM, kernel.mempolicy.alloc_hugepage, area, task, area.vpn, g.GFP_TRANSHUGE_LIGHT, 9)
    pfn = kernel.mempolicy.alloc_hugepage(area, task, area.vpn, g.GFP_TRANSHUGE | g.F.NORETRY, 9)
    assert kernel.mempolicy.nid_of(np.array([pfn])).tolist() == [0]


def test_hugetlb_nodes(kernel: Kernel, task: FakeTask) -> None:
    area = vma(policy(MPOL_BIND, 0b10))
    assert kernel.mempolicy.huge_node(area, area.vpn, task, 9) == (0, 0b10)
    area.policy = policy(MPOL_PREFERRED, 0b10)
    assert kernel.mempolicy.huge_node(area, area.vpn, task, 9)[0] == 1
    assert kernel.mempolicy.pool_nodes(task) is None
    kernel.mempolicy.set_mempolicy(task, MPOL_BIND, 0b10)
    assert kernel.mempolicy.pool_nodes(task) == 0b10
    assert kernel.mempolicy.in_oom_domain(task, 0b10)
    assert not kernel.mempolicy.in_oom_domain(task, 0b01)


def test_lower_zones_are_not_bound(kernel: Kernel, task: FakeTask) -> None:
    kernel.mempolicy.set_mempolicy(task, MPOL_BIND, 0b10)
    pfn = kernel.mempolicy.alloc_pages(task, g.GFP_KERNEL | g.F.DMA)
    assert kernel.mempolicy.nid_of(np.array([pfn])).tolist() == [0]


def test_no_policies_without_numa(task: FakeTask) -> None:
    kernel = Kernel(Machine.load("highmem"))
    fails(errno.ENOSYS, kernel.mempolicy.set_mempolicy, task, MPOL_BIND, 0b1)
    area = vma()
    assert len(kernel.mempolicy.alloc_bulk(area, task, vpns(area, 5))) == 5


def test_ranges_of_a_shared_file() -> None:
    shared = SharedPolicy()
    bind, prefer = policy(MPOL_BIND, 0b10), policy(MPOL_PREFERRED, 0b01)
    shared.replace(0, 100, bind)
    shared.replace(40, 60, prefer)
    assert [(low, high, str(found)) for low, high, found in shared] == [
        (0, 40, "bind:1"),
        (40, 60, "prefer:0"),
        (60, 100, "bind:1"),
    ]
    shared.replace(30, 70, None)
    assert [(low, high) for low, high, _ in shared] == [(0, 30), (70, 100)]
    assert shared.lookup(29) is not None
    assert shared.lookup(30) is None
