"""``make bench``: run every benchmark, pinned to one CPU, one after the other, and print a table of figures.

``python -m bench.run [MODULE ...]`` runs some of them. Goals are those of docs/benchmarks.md; one that is
missed is marked, and makes the exit status 1.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable

from bench.result import Figure

MODULES = (
    *("pages", "faults", "slab", "owner", "leak", "watched", "slices", "boot", "fuse_open"),
    *("reclaim", "replay", "compaction", "cgroups", "latency", "trace"),
)


def figures(name: str) -> Iterable[Figure]:
    """The figures of one benchmark module."""
    module = importlib.import_module(f"bench.{name}")
    found: Iterable[Figure] = module.run()
    return found


def pin() -> int:
    """Run on one CPU, the last that is allowed; servers that a benchmark starts inherit it."""
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all. 1 when a goal was missed or one failed."""
    print(f"pinned to CPU {pin()}; Python {sys.version.split()[0]}")
    missed = failed = 0
    for name in names or MODULES:
        print(f"-- {name}", flush=True)
        try:
            for figure in figures(name):
                print(figure.row(), flush=True)
                missed += figure.kept is False
        except Exception:
            traceback.print_exc()
            failed += 1
    print(f"{missed} goals missed, {failed} benchmarks failed")
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
