"""Zone thresholds: the captured ones, and how they follow from the sysctls."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd.conformance import watermarks as conformance
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.watermarks import zone_batchsize

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "watermarks"


def test_captured_thresholds() -> None:
    cases = list(conformance.run(CAPTURES))
    assert len(cases) > 40
    assert [case for case in cases if not case.passed] == []


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(Machine.load("default"))


def test_watermarks_step_by_equal_gaps(kernel: Kernel) -> None:
    for zone in kernel.populated_zones():
        assert zone.watermark_high - zone.watermark_low == zone.watermark_low - zone.watermark_min > 0


def test_min_free_kbytes_is_shared_out_by_size(kernel: Kernel) -> None:
    kernel.watermarks.min_free_kbytes = 40_000
    kernel.watermarks.on_min_free_kbytes()
    total = sum(zone.watermark_min for zone in kernel.populated_zones())
    assert 10_000 - len(kernel.zones) <= total <= 10_000


def test_a_user_value_is_not_replaced_by_a_smaller_one(kernel: Kernel) -> None:
    kernel.watermarks.min_free_kbytes = 90_000
    kernel.watermarks.on_min_free_kbytes()
    kernel.watermarks.set_recommended_min_free_kbytes(False)
    assert kernel.watermarks.min_free_kbytes == 90_000
    assert "preferred" in kernel.printk.since(0)[-1].text


def test_ratio_below_one_means_no_protection(kernel: Kernel) -> None:
    kernel.watermarks.lowmem_reserve_ratio = [0, -5, 32, 0]
    kernel.watermarks.on_lowmem_reserve_ratio()
    assert kernel.watermarks.lowmem_reserve_ratio == [0, 0, 32, 0]
    assert all(pages == 0 for zone in kernel.zones for pages in zone.protection[:2])


def test_numa_stat_off_clears_and_stops_counting(kernel: Kernel) -> None:
    kernel.page_alloc.alloc_pages(0xCC0)
    kernel.watermarks.numa_stat = 0
    kernel.watermarks.on_numa_stat()
    kernel.page_alloc.alloc_pages(0xCC0)
    assert kernel.vmstat.numa_stat.sum() == 0


@pytest.mark.parametrize(("managed", "batch"), [(3840, 0), (40_000, 7), (262_144, 63), (10**9, 63), (0, 0)])
def test_batch_is_a_power_of_two_less_one(managed: int, batch: int) -> None:
    assert zone_batchsize(managed) == batch


def test_high_memory_has_a_small_minimum_and_the_gap_of_its_share() -> None:
    kernel = Kernel(Machine.load("highmem"))
    kernel.watermarks.min_free_kbytes = 200_000
    kernel.watermarks.on_min_free_kbytes()
    (high,) = (zone for zone in kernel.zones if zone.is_highmem and zone.populated)
    low = sum(zone.managed for zone in kernel.zones if not zone.is_highmem)
    share = 50_000 * high.managed // low
    assert high.managed // 1024 > high.watermark_min == 128
    assert high.watermark_low - high.watermark_min == share // 4 > high.managed // 1000


def test_a_node_without_cpus_shares_its_lists_out_among_all_of_them() -> None:
    kernel = Kernel(Machine.load("cpuless-node"))
    kernel.watermarks.min_free_kbytes = 200_000
    kernel.watermarks.on_min_free_kbytes()
    (node,) = (node for node in kernel.nodes if not node.cpus)
    for zone in (zone for zone in node.zones if zone.populated):
        _, high, batch = zone.pageset(0)
        assert high == zone.watermark_low // kernel.machine.cpus > 4 * batch


def test_new_watermarks_are_not_boosted(kernel: Kernel) -> None:
    kernel.buddy.boost[:] = 512
    kernel.watermarks.on_watermark_scale_factor()
    assert all(zone.boost == 0 for zone in kernel.zones)


def test_no_more_is_kept_from_users_than_there_is(kernel: Kernel) -> None:
    kernel.watermarks.min_free_kbytes = 4_000_000
    kernel.watermarks.on_min_free_kbytes()
    assert kernel.watermarks.totalreserve_pages == kernel.totalram_pages()
