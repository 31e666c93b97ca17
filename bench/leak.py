"""kmemleak's table: objects tracked, pointers stored and looked up in the mark phase, objects forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from bench.result import Figure
from kmemd.core.leak import LeakTable

COUNT = 1_000_000
CHUNK = 1024
FIRST = 0xFFFF_8880_0400_0000
ROOTS = 200_000
GOAL = 5.0


def rate(count: int, work: Callable[[], object]) -> float:
    """Million a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began) / 1e6


def run() -> Iterator[Figure]:
    """The figures."""
    table = LeakTable(8, 1 << 19)
    objects = np.uint64(FIRST) + np.arange(COUNT, dtype=np.uint64) * np.uint64(64)
    shuffled = np.random.default_rng(1).permutation(objects)
    values = shuffled.copy()
    values[::3] += np.uint64(24)

    def track() -> None:
        for start in range(0, COUNT, CHUNK):
            table.insert_bulk(objects[start : start + CHUNK], 64, 1, 0, 0, 0, 0)

    def scan() -> None:
        table.mark(objects[:ROOTS])
        table.drain()

    yield Figure("kmemleak: objects tracked", rate(COUNT, track), "M/s")
    stored = rate(COUNT, lambda: table.store_bulk(objects + np.uint64(8), values))
    yield Figure("kmemleak: pointers stored", stored, "M/s")
    rates = []
    for _ in range(3):
        table.whiten()
        rates.append(rate(COUNT + ROOTS, scan))
    yield Figure("kmemleak: pointers marked, a third interior", max(rates), "M/s", GOAL)
    yield Figure("kmemleak: objects forgotten, in any order", rate(COUNT, lambda: table.remove_bulk(shuffled)), "M/s")
