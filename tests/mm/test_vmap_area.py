"""Free ranges of the vmalloc area against a bitmap."""

import random

import pytest

from kmemd.mm.vmap_area import FreeSpace, Ranges

PAGE = 4096


def test_the_lowest_aligned_place_is_taken_and_given_back():
    free = FreeSpace(0, 100 * PAGE)
    assert free.allocate(2 * PAGE, 1, 0, 100 * PAGE) == 0
    assert free.allocate(5 * PAGE, 4 * PAGE, 0, 100 * PAGE) == 4 * PAGE
    assert free.allocate(2 * PAGE, 1, 0, 100 * PAGE) == 2 * PAGE
    assert free.allocate(PAGE, 1, 50 * PAGE, 60 * PAGE) == 50 * PAGE
    assert free.allocate(20 * PAGE, 1, 40 * PAGE, 60 * PAGE) == -1
    free.release(2 * PAGE, 4 * PAGE)
    assert free.allocate(PAGE, 1, 0, 100 * PAGE) == 2 * PAGE
    free.check()


def test_the_top_is_for_percpu_areas():
    free = FreeSpace(PAGE, 1000 * PAGE)
    assert free.allocate_top(256 * PAGE, 256 * PAGE, 1000 * PAGE) == 512 * PAGE
    assert free.allocate_top(256 * PAGE, 256 * PAGE, 1000 * PAGE) == 256 * PAGE
    assert free.allocate_top(512 * PAGE, 512 * PAGE, 1000 * PAGE) == -1


@pytest.mark.parametrize("seed", range(5))
def test_random_histories_against_a_bitmap(seed):
    rng = random.Random(seed)
    pages = 4000
    free, taken, used = FreeSpace(0, pages * PAGE), {}, [False] * pages
    for _ in range(3000):
        if rng.random() < 0.55 or not taken:
            size, align = rng.choice([1, 1, 2, 3, 5]), rng.choice([1, 1, 4])
            expected = next((i for i in range(0, pages - size + 1, align) if not any(used[i : i + size])), -1)
            got = free.allocate(size * PAGE, align * PAGE, 0, pages * PAGE)
            assert got == (expected * PAGE if expected >= 0 else -1)
            if expected >= 0:
                taken[expected] = size
                used[expected : expected + size] = [True] * size
        else:
            start = rng.choice(list(taken))
            size = taken.pop(start)
            used[start : start + size] = [False] * size
            free.release(start * PAGE, (start + size) * PAGE)
    free.check()
    assert sum(end - start for start, end in free) == used.count(False) * PAGE


def test_lazily_freed_neighbours_are_merged():
    ranges = Ranges()
    for start, end in ((30, 40), (10, 20), (20, 30), (50, 60)):
        ranges.add(start, end)
    assert list(ranges) == [(10, 40), (50, 60)]
    assert ranges.take(1) == [(10, 40)]
    assert ranges.take(9) == [(50, 60)]
    assert len(ranges) == 0
