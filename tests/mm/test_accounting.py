"""The books: every counter that somebody falsifies is noticed, and none is off after work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kmemd.core import stats
from kmemd.core.pages import PG_LRU
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.accounting import COUNTED_UP
from kmemd.system import System

CAPTURE = Path(__file__).parents[1] / "captures/linux-6.1/boot/x86_64-2G-2cpu"
WORK = (
    "a = alloc_pages order=3 n=50 gfp=GFP_KERNEL|__GFP_COMP",
    "b = kmalloc 192 n=500",
    "v = vmalloc 100K n=3",
    "h = alloc_pages order=2 gfp=GFP_ATOMIC n=20",
    "spawn worker",
    "free_pages a every=2",
    "vfree v n=1",
)


@pytest.fixture(scope="module")
def worked() -> System:
    """A machine that has done something of everything."""
    system = System.boot(machine="two-node", cmdline="page_owner=on")
    system.run(WORK)
    system.write("/proc/sys/vm/nr_hugepages", "3\n")
    system.check()
    return system


@pytest.mark.parametrize("machine", [*Machine.builtin_names(), CAPTURE], ids=str)
def test_the_books_are_right_after_boot_and_work(machine: str | Path) -> None:
    system = System.boot(machine=machine)
    system.check()
    system.run(WORK)
    system.check()


@pytest.mark.parametrize("machine", Machine.builtin_names())
def test_a_machine_that_booted_by_itself_owes_no_pages(machine: str) -> None:
    owed = System.boot(machine=machine).kernel.accounting.owed
    assert not any("in use" in name or "PG_lru" in name for name in owed)
    assert not any(any(owed[name]) for name in owed if "numa" in name or "LRU" in name or "CMA" in name)


def _noticed(system: System, numbers: np.ndarray, place: tuple[int, ...] | int) -> None:
    numbers[place] += 1
    try:
        with pytest.raises(AssertionError):
            system.check()
    finally:
        numbers[place] -= 1
    system.check()


@pytest.mark.parametrize(
    "item",
    [item for item in range(stats.NR_VM_NODE_STAT_ITEMS) if item not in COUNTED_UP],
    ids=lambda item: stats.NODE_STAT_NAMES[item],
)
def test_a_wrong_node_item_is_noticed(worked: System, item: int) -> None:
    _noticed(worked, worked.kernel.vmstat.node_stat, (1, item))


@pytest.mark.parametrize(
    "item", [stats.NR_FREE_PAGES, stats.NR_FREE_CMA_PAGES, *range(stats.NR_ZONE_INACTIVE_ANON, stats.NR_MLOCK)]
)
def test_a_wrong_zone_item_is_noticed(worked: System, item: int) -> None:
    if item != stats.NR_ZONE_WRITE_PENDING:
        _noticed(worked, worked.kernel.vmstat.zone_stat, (1, item))


@pytest.mark.parametrize("event", [stats.PGALLOC + 1, stats.PGFREE])
def test_a_wrong_event_is_noticed(worked: System, event: int) -> None:
    _noticed(worked, worked.kernel.vmstat.events, event)


FALSIFIED: dict[str, Callable[[Kernel], tuple[np.ndarray, tuple[int, ...] | int]]] = {
    "watermark": lambda kernel: (kernel.buddy.wmark, (1, 1)),
    "protection": lambda kernel: (kernel.buddy.reserve, (0, 2)),
    "batch": lambda kernel: (kernel.buddy.pcp_batch, 1),
    "high": lambda kernel: (kernel.buddy.pcp_high, 1),
    "per-cpu count": lambda kernel: (kernel.buddy.pcp_count, 4),
    "blocks on a list": lambda kernel: (kernel.buddy.nr_list, 80),
    "highatomic": lambda kernel: (kernel.buddy.highatomic, 1),
    "numa hit": lambda kernel: (kernel.vmstat.numa_stat, (1, 0)),
}


@pytest.mark.parametrize("what", FALSIFIED)
def test_a_wrong_threshold_or_list_is_noticed(worked: System, what: str) -> None:
    _noticed(worked, *FALSIFIED[what](worked.kernel))


def test_a_lost_page_is_noticed(worked: System) -> None:
    pages = worked.kernel.pages
    pfn = worked.kernel.layout.virt_to_pfn(int(worked.kernel.handles["b"].addresses[0]))
    _noticed(worked, pages.mapping, pfn)
    head = int(worked.kernel.handles["a"].pfns[0])
    _noticed(worked, pages.order, head)


def test_a_page_on_no_lru_list_is_noticed(worked: System) -> None:
    flags = worked.kernel.pages.flags
    pfn = int(np.flatnonzero(flags[: 1 << 19] >> PG_LRU & 1)[0])
    flags[pfn] ^= np.uint32(1 << PG_LRU)
    with pytest.raises(AssertionError, match="PG_lru"):
        worked.check()
    flags[pfn] ^= np.uint32(1 << PG_LRU)
    worked.check()


def test_totalreserve_pages_is_recomputed(worked: System) -> None:
    worked.kernel.watermarks.totalreserve_pages += 1
    with pytest.raises(AssertionError, match="totalreserve"):
        worked.check()
    worked.kernel.watermarks.totalreserve_pages -= 1
    worked.check()


def test_knobs_that_move_thresholds_keep_the_books_right() -> None:
    system = System.boot(machine="two-node")
    for knob, text in (
        ("min_free_kbytes", "20000"),
        ("watermark_scale_factor", "300"),
        ("lowmem_reserve_ratio", "100 0 20 1"),
        ("percpu_pagelist_high_fraction", "50"),
        ("percpu_pagelist_high_fraction", "0"),
    ):
        system.write(f"/proc/sys/vm/{knob}", text)
        system.check()
