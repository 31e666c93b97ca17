"""Lists and masks of CPUs and nodes."""

from __future__ import annotations

import pytest

from kmemd.views.bitmap import format_list, format_mask


@pytest.mark.parametrize(
    ("members", "text"),
    [([], ""), ([0], "0"), ([3, 0, 1], "0-1,3"), (range(256), "0-255"), ([0, 2, 4, 5], "0,2,4-5")],
)
def test_lists(members: list[int], text: str) -> None:
    assert format_list(members) == text


@pytest.mark.parametrize(
    ("members", "nr_bits", "text"),
    [
        ([0, 1], 4, "3"),
        ([0], 1, "1"),
        ([], 8, "00"),
        ([32, 0], 36, "1,00000001"),
        (range(32, 64), 256, "00000000," * 6 + "ffffffff,00000000"),
    ],
)
def test_masks(members: list[int], nr_bits: int, text: str) -> None:
    assert format_mask(members, nr_bits) == text
