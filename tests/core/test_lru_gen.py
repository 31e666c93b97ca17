"""Generations: where pages go, what is scanned and protected, page tables, and the same state from all three builds."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import lru as installed_lru
from kmemd.core import lru_gen as installed
from kmemd.core import lru_gen_lists
from kmemd.core.context import Context
from kmemd.core.lru_lists import MGLRU, POLICY, TWO_LIST
from kmemd.core.pages import (
    LRU_GEN_PGOFF,
    LRU_REFS_MASK,
    PG_ACTIVE,
    PG_DIRTY,
    PG_LRU,
    PG_MLOCKED,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_WORKINGSET,
    PG_WRITEBACK,
    PageMap,
)
from tests.core import builds

PAGES = 600
ANON = 1 << PG_SWAPBACKED
YOUNG_ENTRY = 1 | 1 << 5
FILE_TYPE = 1


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def build(request: pytest.FixtureRequest) -> tuple[ModuleType, ModuleType]:
    """core/lru.py and core/lru_gen.py."""
    if request.param == "installed":
        return installed_lru, installed
    return getattr(builds, request.param)("lru"), getattr(builds, request.param)("lru_gen")


def make(build: tuple[ModuleType, ModuleType]) -> Any:
    """One node of two zones, the second from PFN 300 on, and generations switched on."""
    vmstat = SimpleNamespace(
        events=np.zeros(16, dtype=np.int64),
        zone_stat=np.zeros((2, 16), dtype=np.int64),
        node_stat=np.zeros((1, 48), dtype=np.int64),
    )
    pages, zones = PageMap(PAGES), [(0, 0, 300), (0, 300, PAGES)]
    lru = build[0].Lru(pages, Context(), zones, 2, vmstat, (1, 0, 7), range(9))
    lru.words[POLICY] = MGLRU
    gens = build[1].LruGen(lru, pages, zones, vmstat, (1, 0))
    return SimpleNamespace(lru=lru, gens=gens, pages=pages, vmstat=vmstat)


def add(made: Any, pfns: Any, flags: int = 0) -> None:
    numbers = np.array(list(pfns), dtype=np.int64)
    made.pages.flags[numbers] = flags
    made.lru.add_bulk(numbers)
    made.lru.drain_all()


def gen(made: Any, pfn: int) -> int:
    return (int(made.pages.flags[pfn]) >> LRU_GEN_PGOFF & 7) - 1


def scan(made: Any, tier: int = 3, highest: int = 1, file: int = FILE_TYPE) -> list[int]:
    out, skipped = np.zeros(64, dtype=np.int64), np.zeros(2, dtype=np.int64)
    blocks = made.gens.scan(0, file, tier, highest, True, True, out, skipped)
    return out[:blocks].tolist()


def check(made: Any) -> None:
    made.lru.check()
    made.gens.check(made.lru.lruvecs())


def test_new_pages_go_where_they_deserve(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, [1])
    add(made, [2], ANON)
    add(made, [3], ANON | 1 << PG_ACTIVE)
    made.lru.add_faulted(np.array([4], dtype=np.int64))
    made.lru.drain_all()
    assert [gen(made, pfn) for pfn in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert not made.pages.flags[3] >> PG_ACTIVE & 1
    assert made.vmstat.node_stat[0, :4].tolist() == [0, 2, 1, 1], "the two youngest generations are the active pages"
    check(made)


def test_a_new_generation_makes_the_second_youngest_inactive(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, [2, 400], ANON)
    add(made, [3], ANON | 1 << PG_ACTIVE)
    assert made.gens.try_to_inc_min_seq(0, True)
    made.gens.inc_max_seq(0, 0)
    assert made.vmstat.node_stat[0, :4].tolist() == [2, 1, 0, 0]
    assert made.lru.seqs[:3].tolist() == [1, 2, 2]
    check(made)


def test_the_oldest_are_isolated_and_used_ones_protected(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, range(10, 14))
    for _ in range(4):
        made.lru.mark_accessed(11)
    made.pages.flags[12] |= 1 << PG_DIRTY
    made.gens.try_to_inc_min_seq(0, True)
    assert scan(made, tier=0) == [10, 13]
    results = made.gens.results
    assert (results[lru_gen_lists.SCANNED], results[lru_gen_lists.SORTED], results[lru_gen_lists.GUARDED]) == (4, 2, 1)
    assert [gen(made, pfn) for pfn in (10, 11, 12)] == [-1, 2, 2]
    assert not made.pages.flags[10] >> PG_LRU & 1
    assert not made.pages.flags[11] & (LRU_REFS_MASK | 1 << PG_WORKINGSET | 1 << PG_REFERENCED), "uses are forgotten"
    check(made)


def test_pages_of_high_zones_are_passed_on(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, [400, 20])
    made.gens.try_to_inc_min_seq(0, True)
    assert scan(made, highest=0) == [20]
    assert gen(made, 400) == 2
    check(made)


def test_entries_that_were_used_make_pages_young(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, [30, 31, 32], ANON)
    made.pages.meta[30:33] = 3
    made.pages.mapcount[30:33] = 1
    made.pages.mapping[30:33] = 5
    words = np.array([0, 30 << 12 | YOUNG_ENTRY, 31 << 12 | 1, 32 << 12 | YOUNG_ENTRY], dtype=np.uint64)
    counts = np.zeros(3, dtype=np.int64)
    assert made.gens.walk(words, 0, 4, 0, 0, True, counts) == 2
    assert counts.tolist() == [4, 1, 2]
    assert [gen(made, pfn) for pfn in (30, 31, 32)] == [3, 2, 3]
    assert not words[1] & np.uint64(1 << 5)
    assert made.gens.walk(words, 0, 4, 0, 0, True, counts) == 0
    check(made)


def test_refaults_are_known_by_tier_as_long_as_the_generation_is(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    tokens, worked = (np.zeros(1, dtype=np.int64) for _ in range(2))
    made.pages.flags[40] = 1 << PG_WORKINGSET | LRU_REFS_MASK
    made.gens.evicted_bulk(np.zeros(1, dtype=np.int64), np.array([40], dtype=np.int64), tokens, worked)
    assert (tokens.tolist(), worked.tolist()) == ([3], [1])
    made.pages.flags[40] = 0
    assert made.gens.refaulted(0, 40, 3, (1 << 33) - 1, True, False) == 2
    assert made.pages.flags[40] & LRU_REFS_MASK == LRU_REFS_MASK
    made.gens.inc_min_seq(0, FILE_TYPE, True)
    assert made.gens.refaulted(0, 40, 3, (1 << 33) - 1, True, False) == 0


def test_locked_pages_are_let_through_to_be_culled(build: tuple[ModuleType, ModuleType]) -> None:
    made = make(build)
    add(made, [50])
    made.pages.flags[50] |= 1 << PG_MLOCKED
    made.gens.try_to_inc_min_seq(0, True)
    assert scan(made) == [50]


def run(build: tuple[ModuleType, ModuleType]) -> list[Any]:
    """A long random run; its state at the end."""
    made, rng = make(build), random.Random(7)
    isolated: list[int] = []
    free = list(range(1, PAGES))
    for _ in range(400):
        what = rng.randrange(7)
        if what <= 1 and len(free) > 40:
            some = [free.pop(rng.randrange(len(free))) for _ in range(rng.randrange(1, 30))]
            add(made, some, rng.choice((0, ANON)) | rng.choice((0, 1 << PG_ACTIVE)))
        elif what == 2:
            for pfn in rng.sample(range(1, PAGES), 60):
                if made.pages.flags[pfn] >> PG_LRU & 1:
                    made.lru.mark_accessed(pfn)
        elif what == 3:
            isolated += scan(made, rng.randrange(4), rng.randrange(2), rng.randrange(2))
            made.gens.try_to_inc_min_seq(0, rng.random() < 0.8)
        elif what == 4:
            for file in (1, 0):
                if made.lru.seqs[0] + 3 - made.lru.seqs[1 + file] == 3:
                    made.gens.inc_min_seq(0, file, True)
            made.gens.inc_max_seq(0, 0)
        elif what == 5 and isolated:
            made.pages.flags[isolated[0]] |= rng.choice((0, 1 << PG_ACTIVE, 1 << PG_WRITEBACK))
            made.lru.putback(np.array(isolated, dtype=np.int64))
            isolated = []
        else:
            gone = [pfn for pfn in rng.sample(range(1, PAGES), 20) if made.pages.flags[pfn] >> PG_LRU & 1]
            made.lru.remove_bulk(np.array(gone, dtype=np.int64))
            made.pages.flags[gone] = 0
            free += gone
        check(made)
    before = made.vmstat.node_stat[0, :4].sum()
    made.lru.words[POLICY] = TWO_LIST
    for key in made.lru.gen_keys(0):
        made.lru.refile(key, 1 << 20)
    check(made)
    assert made.vmstat.node_stat[0, :4].sum() == before, "switching lost pages"
    lists = [made.lru.pages_of(0, which) for which in range(4)]
    return [lists, made.lru.seqs[:3].tolist(), made.gens.ctrl[:40].tolist(), made.pages.flags.tolist()]


def test_all_builds_reach_the_same_state(build: tuple[ModuleType, ModuleType]) -> None:
    state = run(build)
    assert state == run((installed_lru, installed))
    assert state[1][0] > 4, "generations were made"
