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
