"""mm.swap_area: which slots are taken, on disks that seek and on those that do not."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kmemd.mm.swap_area import SwapArea


def area(pages: int = 4096, *, ssd: bool = False, cpus: int = 2) -> SwapArea:
    return SwapArea(
        0,
        "/dev/vdb",
        "partition",
        pages << 12,
        cpus=cpus,
        long_bits=64,
        solid_state=ssd,
        synchronous=False,
        rng=Random(1),
    )


def test_the_header_is_no_slot() -> None:
    found = area(1024)
    assert (found.pages, found.lowest_bit, found.highest_bit) == (1023, 1, 1023)
    assert not found.is_free(0)


def test_a_disk_that_seeks_is_filled_from_the_start_in_order() -> None:
    found = area()
    assert found.scan_swap_map_slots(64, 0, full=False) == list(range(1, 65))
    assert found.scan_swap_map_slots(64, 1, full=False) == list(range(65, 129))
    found.check()


def test_after_a_cluster_the_first_run_of_free_slots_is_taken() -> None:
    found = area()
    for _ in range(8):
        found.scan_swap_map_slots(64, 0, full=False)
    found.give_back(np.arange(1, 101))
    got = found.scan_swap_map_slots(64, 0, full=False)
    assert got[0] == 513, "100 free slots are no run of 512"
    found.give_back(np.arange(101, 577))
    for _ in range(7):
        found.scan_swap_map_slots(64, 0, full=False)
    assert found.scan_swap_map_slots(64, 0, full=False)[0] == 1
    found.check()


def test_an_area_gives_all_it_has_and_no_more() -> None:
    found = area(700)
    got: list[int] = []
    while more := found.scan_swap_map_slots(64, 0, full=False):
        got += more
    assert sorted(got) == list(range(1, 700))
    assert (found.inuse_pages, found.highest_bit) == (699, 0)
    assert found.give_back(np.array([7, 300])) is True
    assert sorted(found.scan_swap_map_slots(64, 0, full=False)) in ([7, 300], [7])
    found.check()


@pytest.mark.parametrize("pages", [700, 5000])
def test_an_area_that_does_not_seek_gives_all_too(pages: int) -> None:
    found = area(pages, ssd=True)
    got: list[int] = []
    for turn in range(10 * pages):
        more = found.scan_swap_map_slots(64, turn % 2, full=False)
        got += more
        if len(got) == pages - 1:
            break
    assert sorted(got) == list(range(1, pages))
    found.check()


def test_cpus_have_clusters_of_their_own_where_nothing_seeks() -> None:
    found = area(1 << 15, ssd=True)
    first, second = (found.scan_swap_map_slots(64, cpu, full=False) for cpu in (0, 1))
    assert {offset // 512 for offset in first} != {offset // 512 for offset in second}
    assert found.scan_swap_map_slots(64, 0, full=False)[0] == first[-1] + 1
    found.check()


def test_a_cluster_without_slots_in_use_can_be_taken_again() -> None:
    found = area(1 << 15, ssd=True)
    free = len(found.free_clusters)
    got = found.scan_swap_map_slots(64, 0, full=False)
    assert len(found.free_clusters) == free - 1
    found.give_back(np.array(got))
    assert found.free_clusters[-1] == got[0] // 512
    found.check()


def test_slots_of_the_swap_cache_alone_are_won_back_when_swap_is_full() -> None:
    found = area(600)
    while found.scan_swap_map_slots(64, 0, full=False):
        pass
    found.cache[1:600] = 1000
    found.count[1:600] = 1
    found.count[77] = 0
    asked: list[int] = []

    def reclaim(swap: SwapArea, offset: int) -> bool:
        asked.append(offset)
        swap.give_back(np.array([offset]))
        return True

    found.reclaim = reclaim
    found.lowest_bit, found.highest_bit = 1, 599  # as after a slot was freed and taken by another CPU
    assert found.scan_swap_map_slots(1, 0, full=True) == [77]
    assert asked == [77]
