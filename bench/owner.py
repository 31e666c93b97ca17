"""How fast page_owner of a full 2 GiB machine is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.result import Figure
from kmemd import System
from kmemd.views.tree import Caller

CHUNK = 1 << 17


def read_all(system: System) -> tuple[int, float]:
    """Bytes of page_owner, and the seconds that reading it took."""
    tree = system.tree
    began = time.perf_counter()
    file = tree.open(tree.lookup("/sys/kernel/debug/page_owner"), Caller())
    size = 0
    while data := file.read(size, CHUNK):
        size += len(data)
    file.close()
    return size, time.perf_counter() - began


def run() -> Iterator[Figure]:
    """The figures."""
    system = System.boot(machine="default", seed=1, cmdline="page_owner=on", clock="manual")
    system.command("fill = alloc_pages order=0 gfp=GFP_HIGHUSER_MOVABLE n=480000 by=fill_memory+0x10")
    size, seconds = read_all(system)
    yield Figure("page_owner of a full 2 GiB machine", size / 1e6, "MB")
    yield Figure("page_owner of a full 2 GiB machine: speed", size / 1e6 / seconds, "MB/s")
