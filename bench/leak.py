"""kmemleak's table: objects tracked, pointers stored and looked up in the mark phase, objects forgotten.

Then a whole machine with a million objects, of which half are held by pointers in the other half and some leak: a scan
from its roots to its report, by the pointers that it looks up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from bench.result import Figure
from kmemd import System
from kmemd.core.leak import LeakTable

COUNT = 1_000_000
CHUNK = 1024
FIRST = 0xFFFF_8880_0400_0000
ROOTS = 200_000
LEAKED = 10_000
GOAL = 5.0


def rate(count: int, work: Callable[[], object]) -> float:
    """Million a second of CPU time."""
    began = time.process_time()
    work()
    return count / (time.process_time() - began) / 1e6


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
    yield from whole_scan()


def whole_scan() -> Iterator[Figure]:
    """Scans as the file's command starts them, of a machine with a million objects."""
    system = System.boot(seed=1, cmdline="kmemleak=on")
    half = (COUNT - LEAKED) // 2
    for line in (
        *(f"a = kmalloc 64 n={half}", f"b = kmalloc 64 n={half}", f"c = kmalloc 64 n={LEAKED}"),
        *("WRITE_ONCE a+8 b", "forget b", "forget c"),
    ):
        system.command(line)
    system.command("sleep 6")
    leaks = system.kernel.kmemleak
    rates = []
    for _ in range(3):
        began = time.process_time()
        leaks.scan()
        rates.append(leaks.table.lookups / (time.process_time() - began) / 1e6)
    yield Figure("kmemleak: objects of the machine", leaks.table.live / 1e6, "M")
    yield Figure("kmemleak: a whole scan, pointers looked up", max(rates), "M/s", GOAL)
    began = time.process_time()
    size = len(system.read("/sys/kernel/debug/kmemleak"))
    yield Figure("kmemleak: the report", size / 1e6 / (time.process_time() - began), "MB/s")
