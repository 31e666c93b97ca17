"""Pieces of long work: how large they are, and arrays that lose their gaps in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kmemd.mm.pace import FEW, Pace, pieces, room, squeeze
from kmemd.steps import Steps


def sizes(slow: Callable[[int], int], total: int) -> list[int]:
    """The pieces of ``total`` blocks; ``slow(first)`` of a piece's blocks took the slow path."""
    count = 0
    pace = Pace(lambda: count, 160)
    found: list[int] = []
    while sum(found) < total:
        found.append(pace.next(total - sum(found)))
        count += slow(sum(found))
    return found


def test_pieces_are_full_size_as_long_as_the_fast_path_gives() -> None:
    assert sizes(lambda done: 0, 500) == [160, 160, 160, 20]
    assert sizes(lambda done: 3, 500) == [160, 160, 160, 20]


def test_pieces_are_small_on_the_slow_path_and_grow_again_behind_it() -> None:
    found = sizes(lambda done: 160 if done < 340 else 0, 900)
    assert found[0] == 160
    assert found[1:18] == [160 // FEW] * 17
    assert found[18:24] == [10, 20, 40, 80, 160, 160]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_gaps_are_closed_in_place_and_nothing_is_twice_in_between(size: int) -> None:
    items = np.array([5, -1, 6, 7, -1, -1, 8, 9, -1], dtype=np.int64)
    steps = squeeze(items, -1, size)

    def watched() -> Steps[None]:
        left = yield from steps
        assert left.tolist() == [5, 6, 7, 8, 9]

    for _ in watched():
        assert items[items != -1].tolist() == [5, 6, 7, 8, 9]


def test_room_is_written_like_any_array() -> None:
    items = room(50_000, np.uint64)
    items[49_999] = 1 << 63
    assert int(items.sum()) == 1 << 63
    assert [len(part) for part in pieces(items, 20_000)] == [20_000, 20_000, 10_000]
    assert len(room(0, np.int64)) == 0
