"""Bulk reads and evictions of the page cache's core: single steps, and the same from all three builds."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import filemap as installed
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.pages import PG_ACTIVE, PG_DIRTY, PG_REFERENCED, PG_UPTODATE, PG_WORKINGSET, PageMap
from tests.core import builds

PAGES, FILE_PAGES = 600, 300
SIZE = FILE_PAGES * 4096 - 100
READ_NS, COPY_NS, FAR = 1000, 10, 1 << 62
SHIFTS = (10, 16, 1, (1 << 35) - 1)
AGE_SHIFT = 27
ITEMS = (19, 0, 11, 13, 15)
"""NR_FILE_PAGES, NR_INACTIVE_ANON and the three of workingset, as numbered in Linux."""


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return installed if request.param == "installed" else getattr(builds, request.param)("filemap")


def make(module: ModuleType) -> Any:
    """One node of two zones, one file without a page, a disk whose pointer blocks are pages 1 and 2."""
    vmstat = SimpleNamespace(
        events=np.zeros(16, dtype=np.int64),
        zone_stat=np.zeros((2, 16), dtype=np.int64),
        node_stat=np.zeros((1, 48), dtype=np.int64),
    )
    pages, context = PageMap(PAGES), Context()
    zones = [(0, 0, 300), (0, 300, PAGES)]
    lru = Lru(pages, context, zones, 1, vmstat, (1, 0, 7), range(9))
    host = SimpleNamespace(told=[])
    host.activated = lambda pfn: host.told.append(("activated", pfn))
    host.refault = lambda pfn, shadow: host.told.append(("refault", pfn, shadow))
    host.touched = lambda pfns: host.told.append(("touched", pfns.tolist()))
    loop = module.ReadLoop(pages, context, zones, vmstat, lru, host, ITEMS, SHIFTS, COPY_NS)
    clean = module.CleanPages(pages, zones, vmstat, ITEMS[0], SHIFTS)
    blocks = np.array([0, 2, 3], dtype=np.int64)
    pages.flags[1:3] = 1 << PG_UPTODATE
    slots = np.zeros(FILE_PAGES, dtype=np.int64)
    made = SimpleNamespace(loop=loop, clean=clean, lru=lru, pages=pages, context=context, vmstat=vmstat, host=host)
    made.slots, made.blocks, made.prev_pos = slots, blocks, -1
    return made


def read(
    made: Any, indices: list[int], frames: list[int], mode: int = 0, deadline: int = FAR, *, foreign: bool = False
) -> tuple[int, int]:
    """Reads, with so many frames: how far they got, and how many pages were missing."""
    loop, wanted = made.loop, np.array(indices, dtype=np.int64)
    loop.begin(1, SIZE, made.slots, made.blocks, np.array([1], dtype=np.int64), 2)
    loop.window(mode, True, (40, 48), 32)
    loop.clocks(READ_NS, loop.free_at, made.prev_pos)
    loop.batches(0, foreign, False)
    stop = loop.scan(wanted, 0, installed.MOST, deadline)
    missing = loop.misses
    loop.undo(min(len(frames), missing))
    end = loop.run(wanted, 0, stop, np.array(frames, dtype=np.int64))
    loop.end()
    made.prev_pos = loop.prev_pos
    return end, missing


def test_missing_pages_get_frames_in_their_order_and_cost_time(module: ModuleType) -> None:
    made = make(module)
    assert read(made, [7, 3, 7, 200], [50, 51, 400]) == (4, 3)
    assert (made.slots[7], made.slots[3], made.slots[200]) == (51, 52, 401)
    assert made.context.now == 3 * READ_NS + 4 * COPY_NS == made.loop.free_at + COPY_NS
    assert made.vmstat.node_stat[0, ITEMS[0]] == 3
    assert (made.loop.waited_ns, made.loop.bytes, made.loop.done) == (3 * READ_NS, 4 * 4096, 3)
    assert (made.pages.mapping[400], made.pages.index[400]) == (-1, 200)
    assert made.lru.pending(0, 0) == [50, 51, 400]


def test_places_without_a_frame_are_given_back(module: ModuleType) -> None:
    made = make(module)
    made.slots[9] = -77
    assert read(made, [7, 7, 9, 7], [50]) == (2, 2)
    assert made.slots[9] == -77
    assert made.vmstat.node_stat[0, ITEMS[0]] == 1


def test_the_second_use_makes_active_and_the_same_page_again_does_not_count(module: ModuleType) -> None:
    made = make(module)
    read(made, [7, 7, 7], [50])
    assert made.pages.flags[50] >> PG_REFERENCED & 1
    made.lru.drain_all()
    read(made, [8, 7], [51])
    assert made.lru.pending(0, 1) == [50]
    assert made.loop.state[0, installed.AGE] == 1
    made.lru.drain_all()
    assert made.pages.flags[50] >> PG_ACTIVE & 1


def test_readahead_pointers_and_deadlines_stop_the_loop(module: ModuleType) -> None:
    made = make(module)
    for start in (0, 40, 48):
        assert read(made, [start], [50], installed.ONDEMAND) == (0, 0)
        assert made.loop.why == installed.READAHEAD
    assert read(made, [100, 101], [50, 51], installed.ONDEMAND) == (1, 1), "the page behind is sequential"
    made.blocks[1] = 0
    assert read(made, [5, 100, 150], [52, 53], 0)[0] == 2
    assert made.loop.why == installed.UNMAPPED
    assert read(made, [4], [54], 0, made.context.now + READ_NS) == (0, 0)


def test_the_end_of_the_file_is_shorter(module: ModuleType) -> None:
    made = make(module)
    read(made, [FILE_PAGES - 1], [50])
    assert (made.loop.bytes, made.prev_pos) == (4096 - 100, SIZE)


def test_evicted_pages_leave_shadows_and_come_back_active(module: ModuleType) -> None:
    made = make(module)
    read(made, [1, 2, 3], [50, 51, 52])
    made.pages.flags[51] |= 1 << PG_WORKINGSET
    made.pages.flags[52] |= 1 << PG_DIRTY
    clean, rest = (np.zeros(3, dtype=np.int64) for _ in range(2))
    assert made.clean.part(np.array([50, 51, 52]), clean, rest) == (2, 1)
    assert made.clean.run_of(clean[:2], 0) == (1, 2)
    made.pages.mapping[51] = -9
    assert [made.clean.run_of(clean[:2], at) for at in range(2)] == [(1, 1), (9, 2)]
    made.pages.mapping[51] = -1
    made.lru.drain_all()
    made.lru.remove_bulk(np.array([50, 51]))
    ages = np.array([7], dtype=np.int64)
    made.clean.drop(made.slots, clean[:2], 0, ages)
    assert ages.tolist() == [9]
    assert made.slots[1:4].tolist() == [-1 - (7 << AGE_SHIFT), -1 - (8 << AGE_SHIFT | 1), 53]
    assert made.vmstat.node_stat[0, ITEMS[0]] == 1
    made.loop.state[0, installed.AGE] = 9
    made.vmstat.node_stat[0, 3] = 2
    read(made, [2, 1], [60, 61])
    assert made.vmstat.node_stat[0, list(ITEMS[2:])].tolist() == [2, 1, 1], "one is too old by then"
    assert made.loop.thrashing_ns == READ_NS


def test_pages_of_cgroups_and_of_other_policies_are_told(module: ModuleType) -> None:
    made = make(module)
    made.pages.memcg[50] = 4
    made.slots[7] = -5
    read(made, [7, 9, 7, 9, 7], [50, 51])
    assert made.host.told == [("refault", 50, -5), ("activated", 50)]
    read(made, [9, 7], [], foreign=True)
    assert made.host.told[2:] == [("touched", [51, 50])]


def random_run(module: ModuleType, seed: int) -> list[object]:
    rng, made = random.Random(seed), make(module)
    frames, out = list(range(10, PAGES)), []
    for _ in range(60):
        indices = [min(int(rng.paretovariate(0.7)), FILE_PAGES) - 1 for _ in range(rng.randrange(1, 40))]
        end, missing = read(made, indices, frames[: rng.randrange(40)], rng.randrange(2))
        del frames[: made.loop.done]
        out.append((end, missing, made.loop.why, made.loop.done))
        made.lru.check()
    lists = [made.lru.pages_of(0, which) for which in range(4)]
    return [out, lists, made.slots.tolist(), made.pages.flags.tolist(), made.vmstat.events.tolist(), made.context.now]


@pytest.mark.parametrize("seed", range(3))
def test_all_builds_agree(seed: int) -> None:
    results = [random_run(m, seed) for m in (installed, builds.uncompiled("filemap"), builds.checked("filemap"))]
    assert results[0] == results[1] == results[2]
    assert sum(done for *_, done in results[0][0]) > 40  # type: ignore[attr-defined,has-type]
