"""Dirty thresholds, against what a real kernel computed."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmemd.errors import KernelError
from kmemd.mm.page_writeback import PageWriteback

CAPTURE = Path(__file__).parent.parent / "captures/linux-6.1/process/x86_64-1G-2cpu"
LINE = re.compile(r"dirty_ratio (\d+) background (\d+): nr_dirty_threshold (\d+) nr_dirty_background_threshold (\d+)")


@dataclass
class Zone:
    """A zone with free pages and nothing else."""

    free_pages: int
    name: str = "Normal"
    populated: bool = True
    watermark_high: int = 0

    def stat(self, _item: int) -> int:
        return 0


def reserve() -> int:
    """calculate_totalreserve_pages, from the captured watermarks and protection."""
    total = 0
    for zone in (CAPTURE / "dirty.zoneinfo").read_text().split("Node ")[1:]:
        if high := re.search(r"^ +high +(\d+)\n +spanned", zone, re.M):
            protection = re.search(r"protection: \((.*)\)", zone)
            assert protection is not None
            total += int(high[1]) + max(int(word) for word in protection[1].split(","))
    return total


def test_thresholds_are_the_captured_ones() -> None:
    cases = 0
    for line in (CAPTURE / "dirty_thresholds").read_text().splitlines():
        match = LINE.match(line)
        free = re.search(r"nr_free_pages (\d+)", line)
        assert match is not None
        assert free is not None
        writeback = PageWriteback([Zone(int(free[1]))], [], reserve)
        writeback.dirty_ratio = int(match[1])
        writeback.dirty_background_ratio = int(match[2])
        background, limit = writeback.global_dirty_limits()
        # The two lines were read one after the other: a few pages may have come or gone between.
        assert abs(limit - int(match[3])) <= 10, line
        assert abs(background - int(match[4])) <= 10, line
        cases += 1
    assert cases == 28


def test_bytes_and_ratio_exclude_each_other() -> None:
    writeback = PageWriteback([Zone(100_000)], [], lambda: 0)
    writeback.dirty_bytes = 8192
    assert writeback.dirty_ratio == 0
    assert writeback.global_dirty_limits() == (1, 2)
    writeback.dirty_ratio = 10
    assert writeback.dirty_bytes == 0


def test_bytes_are_limited_to_32_bits_of_pages() -> None:
    writeback = PageWriteback([Zone(1)], [], lambda: 0)
    row = next(row for row in writeback.TUNABLES if row.attr == "dirty_background_bytes")
    with pytest.raises(KernelError) as raised:
        writeback.tune(row, str(1 << 60))
    assert raised.value.errno == errno.ERANGE
    assert writeback.dirty_background_bytes == 0


def test_highmem_is_not_dirtyable() -> None:
    zones = [Zone(1000), Zone(500, "HighMem", watermark_high=100)]
    writeback = PageWriteback(zones, [], lambda: 0, highmem=True)
    assert writeback.dirtyable_memory() == 1101
    writeback.highmem_is_dirtyable = 1
    assert writeback.dirtyable_memory() == 1501
