"""The pass over charged pages: what they are, by group, in all three builds."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from kmemd.core import memcg, pages
from tests.core.builds import checked, uncompiled

FRAMES, MIDDLE = 64, 4


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def core(request: pytest.FixtureRequest) -> ModuleType:
    return {"installed": lambda: memcg, "uncompiled": lambda: uncompiled("memcg"), "checked": lambda: checked("memcg")}[
        request.param
    ]()


def put(table: pages.PageMap, pfn: int, group: int, *flags: int, order: int = 0, **fields: int) -> None:
    table.kind[pfn], table.order[pfn], table.memcg[pfn] = pages.ALLOCATED, order, group
    table.flags[pfn] = sum(1 << flag for flag in flags)
    for name, value in fields.items():
        getattr(table, name)[pfn] = value


def gauges(core: ModuleType, table: pages.PageMap, first: int = 0, last: int = FRAMES) -> tuple[int, dict[int, dict]]:
    found = np.zeros((2 * MIDDLE + 1, core.NR_ITEMS), dtype=np.int64)
    reader = core.Gauges(table)
    reader.begin(found, MIDDLE)
    charged = reader.add(first, last)
    rows = {row - MIDDLE: dict(zip(core.ITEMS, found[row].tolist(), strict=True)) for row in range(len(found))}
    return charged, {number: {k: v for k, v in row.items() if v} for number, row in rows.items() if any(row.values())}


def test_kinds_of_pages(core: ModuleType) -> None:
    table = pages.PageMap(FRAMES)
    put(table, 1, 1, pages.PG_SWAPBACKED, mapping=7, mapcount=1)
    put(table, 2, 1, pages.PG_SWAPBACKED, pages.PG_SWAPCACHE, pages.PG_WRITEBACK, mapping=7)
    put(table, 3, 2, pages.PG_DIRTY, mapping=-3, mapcount=2)
    put(table, 4, 2, pages.PG_SWAPBACKED, pages.PG_DIRTY, mapping=-4)
    put(table, 5, -2, pages.PG_TABLE)
    put(table, 6, -2, order=1)
    put(table, 8, 0, pages.PG_SWAPBACKED, mapping=7, mapcount=1)
    charged, found = gauges(core, table)
    assert charged == 6
    assert found == {
        -2: {"pagetables": 1},
        1: {"anon": 1, "swapcached": 1, "file_writeback": 1},
        2: {"file": 2, "shmem": 1, "file_mapped": 1, "file_dirty": 1},
    }


def test_huge_pages(core: ModuleType) -> None:
    table = pages.PageMap(FRAMES)
    put(table, 16, 3, pages.PG_SWAPBACKED, pages.PG_HEAD, order=4, mapping=7)
    table.mapping[17] = 1  # mapped as a whole
    put(table, 32, 3, pages.PG_SWAPBACKED, pages.PG_HEAD, order=4, mapping=7)
    table.mapcount[33:36] = 1  # three of its parts are mapped
    put(table, 48, 1, pages.PG_HEAD, order=4, mapping=-7)
    _, found = gauges(core, table)
    assert found == {1: {"file": 16, "file_thp": 16}, 3: {"anon": 19, "anon_thp": 16}}


def test_ranges(core: ModuleType) -> None:
    table = pages.PageMap(FRAMES)
    for pfn in range(10, 20):
        put(table, pfn, 1, mapping=1, mapcount=1)
    table.kind[15] = pages.IN_PCP  # freed: what it was charged to means nothing
    assert gauges(core, table, 12, 16) == (4, {1: {"anon": 3}})
