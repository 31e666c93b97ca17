"""GFP masks: names both ways, zones and migratetypes."""

from __future__ import annotations

import pytest

from kmemd.errors import KernelError
from kmemd.mm.gfp import (
    GFP_ATOMIC,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_TRANSHUGE,
    F,
    format_gfp,
    gfp_migratetype,
    gfp_zone,
)
from kmemd.mm.mmzone_layout import I386_ZONES, X86_64_ZONES


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (0x140CCA, "GFP_HIGHUSER_MOVABLE|__GFP_COMP"),
        (0x140DCA, "GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO"),
        (0xCC0, "GFP_KERNEL"),
        (0xDC0, "GFP_KERNEL|__GFP_ZERO"),
        (0xA20, "GFP_ATOMIC"),
        (0x400CC0, "GFP_KERNEL_ACCOUNT"),
        (0x2CC1, "GFP_KERNEL|GFP_DMA|__GFP_NOWARN"),
        (0, "none"),
    ],
)
def test_text_of_a_mask_as_the_kernel_prints_it(mask: int, text: str) -> None:
    assert format_gfp(mask) == text


@pytest.mark.parametrize(
    ("mask", "x86_64", "i386"),
    [
        (GFP_KERNEL, "Normal", "Normal"),
        (GFP_HIGHUSER_MOVABLE, "Movable", "Movable"),
        (GFP_KERNEL | F.HIGHMEM, "Normal", "HighMem"),
        (F.DMA, "DMA", "DMA"),
        (F.DMA32, "DMA32", "Normal"),
        (F.MOVABLE, "Normal", "Normal"),
        (F.DMA | F.MOVABLE, "DMA", "DMA"),
    ],
)
def test_highest_zone(mask: int, x86_64: str, i386: str) -> None:
    assert X86_64_ZONES[gfp_zone(mask, X86_64_ZONES)] == x86_64
    assert I386_ZONES[gfp_zone(mask, I386_ZONES)] == i386


@pytest.mark.parametrize("mask", [F.DMA | F.HIGHMEM, F.DMA | F.DMA32, F.DMA32 | F.HIGHMEM])
def test_contradicting_zones_are_an_error(mask: int) -> None:
    with pytest.raises(KernelError):
        gfp_zone(mask, X86_64_ZONES)


def test_migratetypes() -> None:
    assert [gfp_migratetype(mask) for mask in (GFP_ATOMIC, F.MOVABLE, F.RECLAIMABLE, GFP_TRANSHUGE)] == [0, 1, 2, 1]
