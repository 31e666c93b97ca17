"""vm.zone_reclaim_mode: what the zone walk asks of a node before it goes to the next."""

from __future__ import annotations

import pytest

from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, GFP_NOWAIT, F


@pytest.fixture
def kernel() -> Kernel:
    """A two-node machine whose node 0 is full, and has page cache that could go."""
    kernel = Kernel.boot(Machine.load("two-node"))
    kernel.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE | F.THISNODE | F.NORETRY | F.NOWARN, 0, 1 << 20, 0)
    kernel.vmstat.mod_node(0, stats.NR_INACTIVE_FILE, 100_000)
    return kernel


def failed(kernel: Kernel) -> int:
    return int(kernel.vmstat.events[stats.PGSCAN_ZONE_RECLAIM_FAILED])


def test_off_by_default(kernel: Kernel) -> None:
    kernel.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, 10)
    assert failed(kernel) == 0


def test_each_request_tries_the_local_node_first(kernel: Kernel) -> None:
    """Each page from the other node comes after a vain try in every zone that was passed over."""
    kernel.vmscan.zone_reclaim_mode = 1
    zones = sum(zone.populated for zone in kernel.nodes[0].zones)
    pfns = kernel.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, 10)
    assert set(kernel.mempolicy.nid_of(pfns).tolist()) == {1}
    assert failed(kernel) == 10 * zones


def test_the_same_pages_as_without(kernel: Kernel) -> None:
    other = Kernel.boot(Machine.load("two-node"))
    other.vmscan.zone_reclaim_mode = 7
    plain = Kernel.boot(Machine.load("two-node"))
    wanted = plain.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, 2000).tolist()
    assert other.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, 2000).tolist() == wanted
    assert failed(other) == 0, "no zone was short"


@pytest.mark.parametrize(
    ("gfp", "cpu", "file_pages"),
    [(GFP_NOWAIT, 0, 100_000), (GFP_HIGHUSER_MOVABLE, 2, 100_000), (GFP_HIGHUSER_MOVABLE, 0, 100)],
    ids=["may not wait", "another node's CPU", "little page cache"],
)
def test_not_tried(kernel: Kernel, gfp: int, cpu: int, file_pages: int) -> None:
    kernel.vmscan.zone_reclaim_mode = 1
    kernel.context.cpu = cpu
    kernel.vmstat.node_stat[0, stats.NR_INACTIVE_FILE] = file_pages
    kernel.page_alloc.alloc_pages(gfp, 0, 0)
    assert failed(kernel) == 0


def test_dirty_pages_count_only_where_they_may_be_written(kernel: Kernel) -> None:
    kernel.vmstat.mod_node(0, stats.NR_FILE_DIRTY, 100_000)
    kernel.vmscan.zone_reclaim_mode = 1
    kernel.page_alloc.alloc_pages(GFP_HIGHUSER_MOVABLE, 0, 0)
    assert failed(kernel) == 0
    kernel.vmscan.zone_reclaim_mode = 3
    kernel.page_alloc.alloc_pages(GFP_HIGHUSER_MOVABLE, 0, 0)
    assert failed(kernel) > 0
