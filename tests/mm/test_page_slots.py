"""mm.page_slots: a sparse array that grows."""

from __future__ import annotations

import numpy as np

from kmemd.mm.page_slots import SMALL, PageSlots


def test_what_was_never_stored_is_zero() -> None:
    slots = PageSlots()
    assert slots.get(0) == 0
    assert slots.get(1 << 40) == 0
    assert len(slots.window(0, 10)) == 0


def test_growing_keeps_what_is_there_through_all_sizes() -> None:
    slots = PageSlots()
    places = [0, 3, 63, 64, SMALL - 1, SMALL, 3 * SMALL, 100 * SMALL, 1 << 24]
    for at, place in enumerate(places):
        slots.set(place, at + 1)
        assert [slots.get(other) for other in places[: at + 1]] == list(range(1, at + 2))
    assert slots.end == (1 << 24) + 1
    assert slots.get(5) == 0


def test_it_grows_while_somebody_looks_at_a_part_of_it() -> None:
    slots = PageSlots()
    slots.set(2 * SMALL, 7)
    held = slots.window(0, 2 * SMALL + 1)
    slots.set(200 * SMALL, 8)
    assert (held[-1], slots.get(2 * SMALL), slots.get(200 * SMALL)) == (7, 7, 8)


def test_a_window_ends_where_nothing_was_stored() -> None:
    slots = PageSlots()
    slots.put(np.array([2, 4]), np.array([20, 40]))
    assert slots.window(1, 100).tolist() == [0, 20, 0, 40]
    assert slots.window(50, 100).tolist() == []
    slots.put(np.array([2, 4]), 0)
    assert slots.window(0, 5).tolist() == [0] * 5
