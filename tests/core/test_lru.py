"""The LRU lists' order, isolating and putting back, and the same lists from all three builds."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import lru as installed
from kmemd.core import lru_lists
from kmemd.core.context import Context
from kmemd.core.pages import PG_ACTIVE, PG_DIRTY, PG_LRU, PG_MLOCKED, PG_SWAPBACKED, PG_UNEVICTABLE, PageMap
from tests.core import builds

PAGES = 600
FILE, ANON = 0, 1 << PG_SWAPBACKED
LISTS = range(lru_lists.NR_LRU_LISTS - 1)


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return installed if request.param == "installed" else getattr(builds, request.param)("lru")


def make(module: ModuleType) -> Any:
    """One node of two zones, the second from PFN 300 on, and two CPUs."""
    vmstat = SimpleNamespace(
        events=np.zeros(16, dtype=np.int64),
        zone_stat=np.zeros((2, 16), dtype=np.int64),
        node_stat=np.zeros((1, 48), dtype=np.int64),
    )
    pages, context = PageMap(PAGES), Context()
    zones = [(0, 0, 300), (0, 300, PAGES)]
    lru = module.Lru(pages, context, zones, 2, vmstat, (1, 0, 7), range(9))
    return SimpleNamespace(lru=lru, pages=pages, context=context, vmstat=vmstat)


def pfns(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def isolate(made: Any, which: int, count: int, highest: int = 1, *, may_unmap: bool = True) -> tuple[list[int], int]:
    out, skipped = np.zeros(max(count, 1), dtype=np.int64), np.zeros(2, dtype=np.int64)
    blocks, scanned, _ = made.lru.isolate(0, which, count, highest, may_unmap, out, skipped)
    assert scanned >= blocks + skipped.sum()
    return out[:blocks].tolist(), scanned


def test_the_oldest_go_first_and_come_back_as_the_youngest(module: ModuleType) -> None:
    made = make(module)
    made.lru.add_bulk(pfns(*range(10, 40)))
    made.lru.drain_all()
    inactive = lru_lists.LRU_INACTIVE_FILE
    assert made.lru.pages_of(0, inactive) == list(range(39, 9, -1))
    taken, scanned = isolate(made, inactive, 4)
    assert (taken, scanned) == ([10, 11, 12, 13], 4)
    assert not made.pages.flags[10] >> PG_LRU & 1
    made.pages.flags[11] |= 1 << PG_ACTIVE
    assert made.lru.putback(pfns(*taken)) == 1
    assert made.lru.pages_of(0, inactive)[:4] == [13, 12, 10, 39]
    assert made.lru.pages_of(0, lru_lists.LRU_ACTIVE_FILE) == [11]
    assert made.lru.size(0, inactive, 1) == 29
    made.lru.check()


def test_pages_of_higher_zones_and_mapped_ones_are_passed_over(module: ModuleType) -> None:
    made = make(module)
    made.lru.add_bulk(pfns(400, 20, 401, 21, 22))
    made.lru.drain_all()
    made.pages.mapcount[20] = 1
    taken, scanned = isolate(made, lru_lists.LRU_INACTIVE_FILE, 3, 0, may_unmap=False)
    assert (taken, scanned) == ([21, 22], 5)
    assert made.lru.pages_of(0, lru_lists.LRU_INACTIVE_FILE) == [401, 20, 400]
    made.lru.check()


def test_written_pages_are_the_next_to_go(module: ModuleType) -> None:
    made = make(module)
    made.lru.add_bulk(pfns(*range(10, 20)))
    made.lru.drain_all()
    made.pages.flags[16] |= 1 << PG_DIRTY
    made.lru.rotate(pfns(15, 16))
    assert made.vmstat.events[8] == 0
    made.lru.drain_all()
    assert made.vmstat.events[8] == 1
    assert isolate(made, lru_lists.LRU_INACTIVE_FILE, 1)[0] == [15]


def test_small_pages_of_a_huge_one_are_younger_than_its_head(module: ModuleType) -> None:
    made = make(module)
    made.lru.add_bulk(pfns(100, 8))
    made.lru.drain_all()
    made.pages.flags[9:12] = made.pages.flags[8]
    made.pages.meta[8] = 0
    zone, node = made.vmstat.zone_stat, made.vmstat.node_stat
    zone[0, 1 + 2] += 3
    node[0, 2] += 3
    made.lru.split(8, 4)
    assert made.lru.pages_of(0, lru_lists.LRU_INACTIVE_FILE) == [11, 10, 9, 8, 100]


def test_cgroups_have_lists_of_their_own(module: ModuleType) -> None:
    made = make(module)
    made.pages.memcg[30:35] = 7
    made.lru.add_bulk(pfns(*range(28, 37)))
    made.lru.drain_all()
    assert made.lru.pages_of(7, lru_lists.LRU_INACTIVE_FILE) == [34, 33, 32, 31, 30]
    assert made.lru.pages_of(0, lru_lists.LRU_INACTIVE_FILE) == [36, 35, 29, 28]
    assert made.vmstat.node_stat[0, lru_lists.LRU_INACTIVE_FILE] == 9
    made.lru.check()


def random_run(module: ModuleType, seed: int) -> list[object]:
    """Random operations; what the lists, flags and counters are in the end."""
    rng, made = random.Random(seed), make(module)
    out: set[int] = set(range(1, PAGES))
    isolated: list[int] = []
    for _ in range(300):
        on_list = [pfn for pfn in range(1, PAGES) if made.pages.flags[pfn] >> PG_LRU & 1]
        action = rng.randrange(7)
        if action == 0 and out:
            new = rng.sample(sorted(out), min(20, len(out)))
            out -= set(new)
            made.pages.flags[new] = rng.choice((FILE, ANON))
            made.lru.add_bulk(pfns(*new))
        elif action == 1:
            isolated += isolate(made, rng.choice(LISTS), rng.randrange(40), rng.randrange(2))[0]
        elif action == 2 and isolated:
            made.pages.flags[isolated[::2]] |= 1 << PG_ACTIVE
            made.lru.putback(pfns(*isolated))
            isolated = []
        elif action == 3 and on_list:
            kind = rng.choice((installed.ACTIVATE, installed.DEACTIVATE))
            made.lru.batch(kind, pfns(*rng.sample(on_list, min(9, len(on_list)))))
        elif action == 4 and on_list:
            made.lru.rotate(pfns(*rng.sample(on_list, min(5, len(on_list)))))
        elif action == 5:
            made.lru.drain_all()
        elif action == 6 and on_list:
            gone = rng.sample(on_list, min(5, len(on_list)))
            made.lru.drain_all()
            made.lru.remove_bulk(pfns(*gone))
            made.pages.flags[gone] = 0
            out |= set(gone)
        made.context.cpu = rng.randrange(2)
        made.lru.check()
    assert not (made.pages.flags & (1 << PG_MLOCKED | 1 << PG_UNEVICTABLE)).any()
    lists = [made.lru.pages_of(0, which) for which in LISTS]
    return [lists, made.pages.flags.tolist(), made.vmstat.events.tolist(), made.vmstat.zone_stat.tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_all_builds_agree(seed: int) -> None:
    results = [random_run(m, seed) for m in (installed, builds.uncompiled("lru"), builds.checked("lru"))]
    assert results[0] == results[1] == results[2]
    assert sum(len(found) for found in results[0][0]) > 20  # type: ignore[attr-defined]
