"""Slab objects: allocate and free in bulk through the whole allocator, and read the files about them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.result import Figure, best_of
from kmemd import System
from kmemd.mm.gfp import GFP_KERNEL

COUNT = 100_000
ROUNDS = 10
GOAL = 10.0


def pairs(system: System, size: int, order: slice) -> float:
    """Million kmalloc and kfree pairs a second, objects freed in ``order``; the best of five runs."""
    slub = system.kernel.slub

    def once() -> None:
        for _ in range(ROUNDS):
            slub.kfree_bulk(slub.kmalloc_bulk(size, GFP_KERNEL, COUNT)[order])

    once()
    return COUNT * ROUNDS / best_of(5, once) / 1e6


def cpu_slab_pairs(system: System) -> float:
    """Million pairs a second when all objects fit a CPU's slab: no pages come or go."""
    slub = system.kernel.slub
    few, rounds = 32, 2000

    def once() -> None:
        for _ in range(rounds):
            slub.kfree_bulk(slub.kmalloc_bulk(64, GFP_KERNEL, few))

    once()
    return few * rounds / best_of(5, once) / 1e6


def slabinfo_us(system: System) -> float:
    """Microseconds to render /proc/slabinfo."""

    def once() -> None:
        system.read("/proc/slabinfo")

    return best_of(5, once) * 1e6


def attribute_us(system: System) -> float:
    """Microseconds to read one attribute of /sys/kernel/slab, over all attributes of all caches (slabinfo's work)."""
    slub = system.kernel.slub
    names = ("slab_size", "order", "objects", "objects_partial", "cpu_slabs", "alloc_fastpath", "aliases", "partial")
    paths = [f"/sys/kernel/slab/{directory}/{name}" for directory in slub.directories for name in names]

    def once() -> None:
        for path in paths:
            system.read(path)

    return best_of(3, once) * 1e6 / len(paths)


def run() -> Iterator[Figure]:
    """The figures."""
    system = System.boot(machine="default", seed=1, cmdline="kmemleak=off", clock="manual")
    forward, backward = slice(None), slice(None, None, -1)
    yield Figure("kmalloc(64)+kfree in bulk", pairs(system, 64, forward), "M/s", GOAL)
    yield Figure("kmalloc(64)+kfree in bulk, freed backwards", pairs(system, 64, backward), "M/s", GOAL)
    yield Figure("kmalloc(8)+kfree in bulk", pairs(system, 8, forward), "M/s", GOAL)
    yield Figure("kmalloc(1024)+kfree in bulk", pairs(system, 1024, forward), "M/s")
    yield Figure("kmalloc(64)+kfree, 32 at a time", cpu_slab_pairs(system), "M/s")
    yield Figure("read of proc/slabinfo", slabinfo_us(system), "us")
    yield Figure("read of one attribute of sys/kernel/slab", attribute_us(system), "us")
    watched = System.boot(machine="default", seed=1, clock="manual")
    yield Figure("kmalloc(64)+kfree in bulk with kmemleak", pairs(watched, 64, forward), "M/s")
