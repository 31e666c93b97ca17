"""What watching costs: the allocators with page_owner, with kmemleak, and while perf samples, against the plain ones.

A run is of commands in the process itself, in CPU time. What the kernel's documents say of it: page_owner off leaves
two unlikely branches in the allocator, patched out by static keys; kmemleak's "main drawback is the reduced performance
of memory allocation and freeing" (mm/page_owner.rst, dev-tools/kmemleak.rst); neither gives a figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from bench.result import Figure
from kmemd import System

PAGES = 100_000
OBJECTS = 100_000
ROUNDS = 5
PAIRS = 1500


def seconds(system: System, *lines: str) -> float:
    """CPU time of lines."""
    began = time.process_time()
    for line in lines:
        system.command(line)
    return time.process_time() - began


def bulk(system: System) -> float:
    """Of pages that two commands allocate and free."""
    return seconds(system, f"p = alloc_pages order=0 n={PAGES} by=fill_memory", "free_pages p")


def objects(system: System) -> float:
    """Of objects that two commands allocate and free."""
    return seconds(system, f"o = kmalloc 256 n={OBJECTS} by=fill_memory", "kfree o")


def pairs(system: System) -> float:
    """Of pairs of commands that allocate and free one page."""
    return seconds(system, *("p = alloc_pages order=0", "free_pages p") * PAIRS)


def sampled(function: Callable[[System], float]) -> Callable[[System], float]:
    """The same while perf samples."""

    def run(system: System) -> float:
        system.command("perf_record cpu-clock,page-faults")
        found = function(system)
        system.command("perf_stop")
        return found

    return run


def compare(*runs: tuple[Callable[[System], float], System]) -> list[float]:
    """The fastest of some rounds of each, by turns."""
    times = [[function(system) for function, system in runs] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*times, strict=True)]


def more(base: float, watched: float) -> float:
    """Percent."""
    return 100 * (watched / base - 1)


def run() -> Iterator[Figure]:
    """The figures."""
    plain = System.boot(seed=1, cmdline="kmemleak=off")
    owner = System.boot(seed=1, cmdline="kmemleak=off page_owner=on")
    leak = System.boot(seed=1, cmdline="kmemleak=on")
    base, owned, seen = compare((bulk, plain), (bulk, owner), (sampled(bulk), plain))
    yield Figure("pages allocated and freed, nothing watches", PAGES / base / 1e6, "M/s")
    yield Figure("  with page_owner: time", more(base, owned), "% more")
    yield Figure("  while perf samples: time", more(base, seen), "% more")
    base, tracked = compare((objects, plain), (objects, leak))
    yield Figure("objects allocated and freed, nothing watches", OBJECTS / base / 1e6, "M/s")
    yield Figure("  with kmemleak: time", more(base, tracked), "% more")
    base, seen = compare((pairs, plain), (sampled(pairs), plain))
    yield Figure("commands, alloc_pages + free_pages", PAIRS / base, "pairs/s")
    yield Figure("  while perf samples: time", more(base, seen), "% more")
    plain.read("/kmemd/perf/script")
    began = time.process_time()
    size = len(plain.read("/kmemd/perf/script"))
    yield Figure("perf script text", size / 1e6 / (time.process_time() - began), "MB/s")
