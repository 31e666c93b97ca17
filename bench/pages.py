"""Order-0 pages: allocate and free in bulk against a buddy allocator in plain C; memory per page touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.result import Figure, best_of
from kmemd import System
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE

HERE = Path(__file__).parent
COUNT = 100_000
ROUNDS = 20
PAGES_1G = 1 << 18


def build_c() -> Path:
    """Compile the C allocator with the optimisation that Python's own extensions get."""
    binary = HERE / "bin" / "buddy"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O3", "-o", str(binary), str(HERE / "buddy.c")], check=True)
    return binary


def c_ns(binary: Path) -> float:
    """ns of one allocation and its free in C, the best of five runs."""
    arguments = [str(binary), str(PAGES_1G), str(COUNT), str(ROUNDS)]
    runs = [subprocess.run(arguments, check=True, capture_output=True, text=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def bulk_ns(system: System) -> float:
    """ns of one allocation and its free in the model, in bulk."""
    allocator = system.kernel.page_alloc

    def once() -> None:
        for _ in range(ROUNDS):
            pages = allocator.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, COUNT)
            allocator.free_pages_bulk(pages, 0)

    once()
    return best_of(5, once) * 1e9 / (COUNT * ROUNDS)


def resident() -> int:
    """Bytes of memory that this process has."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def bytes_per_page(system: System) -> float:
    """Bytes of memory for each simulated page that was allocated and freed once."""
    allocator = system.kernel.page_alloc
    before = resident()
    pages = allocator.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, PAGES_1G)
    touched = len(pages)
    allocator.free_pages_bulk(pages, 0)
    del pages
    return (resident() - before) / touched


def run() -> Iterator[Figure]:
    """The figures."""
    c = c_ns(build_c())
    system = System.boot(machine="default", seed=1, clock="manual")
    yield Figure("memory per simulated page touched", bytes_per_page(system), "bytes", 48, at_most=True)
    model = bulk_ns(system)
    yield Figure("C: alloc+free of an order-0 page", c, "ns")
    yield Figure("model, in bulk: alloc+free of an order-0 page", model, "ns")
    yield Figure("model against C", c / model, "ratio", 0.5)
