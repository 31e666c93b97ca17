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
    assert found.scan_swap_map_slots(64, 0, full=False) == [1, 2, 3], "the search for a run of 512 took its time"
    assert found.scan_swap_map_slots(64, 1, full=False) == list(range(4, 68))
    found.check()


def test_after_a_cluster_the_first_run_of_free_slots_is_taken() -> None:
    found = area()
    got = [0]
    while got[-1] < 512:
        got = found.scan_swap_map_slots(min(64, 512 - got[-1]), 0, full=False)
    found.give_back(np.arange(1, 101))
    got = found.scan_swap_map_slots(64, 0, full=False)
    assert got[0] == 513, "100 free slots are no run of 512"
    found.give_back(np.arange(101, 513))
    while got[-1] != 1024:
        got = found.scan_swap_map_slots(min(64, 1024 - got[-1]), 0, full=False)
    assert found.scan_swap_map_slots(64, 0, full=False)[0] == 1
    found.check()


def test_a_long_search_takes_what_it_comes_upon_and_no_more() -> None:
    found = area(2048)
    while found.scan_swap_map_slots(64, 0, full=False):
        pass
    free = [301, 303, 305]
    found.give_back(np.array(free))
    found.cluster_next, found.cluster_nr = 1, 5
    assert found.scan_swap_map_slots(64, 0, full=False) == [301], "301 slots were looked at: more than 256"
    found.cluster_next, found.cluster_nr = 302, 5
    assert found.scan_swap_map_slots(64, 0, full=False) == [303, 305]
    found.check()


def test_a_huge_page_gets_a_whole_cluster() -> None:
    found = area(1 << 13, ssd=True)
    free = len(found.free_clusters)
    offset = found.alloc_cluster()
    assert offset % 512 == 0
    assert (found.inuse_pages, len(found.free_clusters)) == (512, free - 1)
    assert not any(found.is_free(at) for at in range(offset, offset + 512))
    taken = {at // 512 for _ in range(4) for at in found.scan_swap_map_slots(64, 0, full=False)}
    assert offset // 512 not in taken
    assert area(1 << 13).alloc_cluster() == -1, "a disk that seeks has no clusters"


def test_a_cluster_is_free_when_its_disk_was_told() -> None:
    found = area(2048, ssd=True)
    told: list[tuple[int, int]] = []
    later: list[SwapArea] = []
    found.discardable = found.page_discard = True
    found.discard, found.schedule_discard = (lambda _, start, pages: told.append((start, pages))), later.append
    got = found.scan_swap_map_slots(64, 0, full=False)
    found.give_back(np.array(got))
    start = got[0] // 512 * 512
    assert later == [found]
    assert not told
    assert not found.is_free(start)
    found.check()
    found.do_scheduled_discard()
    assert told == [(start, 512)]
    assert found.is_free(start)
    assert found.free_clusters[-1] == start // 512
    found.check()


def test_who_finds_no_free_cluster_discards_those_that_wait() -> None:
    found = area(1025, ssd=True)
    assert len(found.free_clusters) == 1
    found.page_discard = True
    got = found.scan_swap_map_slots(64, 0, full=False)
    found.give_back(np.array(got))
    found._cpu_cluster[0] = -1
    assert found.scan_swap_map_slots(64, 0, full=False)[0] == 512
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
