"""mm.percpu: the captured amounts, taken from each CPU's own node."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kmemd.core.context import Context
from kmemd.mm.percpu import Percpu
from kmemd.mm.stackdepot import StackDepot

BOOT = Path(__file__).parent.parent / "captures" / "linux-6.1" / "boot"


class CountingAllocator:
    """Hands out page frames one after the other, and remembers the nodes."""

    def __init__(self) -> None:
        self.nodes: list[int] = []

    def alloc_pages_bulk(self, gfp: int, order: int, n: int, nid: int = -1) -> npt.NDArray[np.int64]:
        self.nodes += [nid] * n
        return np.arange(n, dtype=np.int64)


@pytest.mark.parametrize(
    ("machine", "cpus"),
    [("i386-2G-highmem-2cpu", 2), ("x86_64-256M-1cpu", 1), ("x86_64-2G-2cpu", 2), ("x86_64-2node-4G-4cpu", 4)],
)
def test_captured_amounts(machine: str, cpus: int) -> None:
    percpu = Percpu()
    percpu.boot(machine.split("-")[0], [0] * cpus, CountingAllocator(), Context(), StackDepot())
    meminfo = (BOOT / machine / "proc" / "meminfo").read_text()
    captured = re.search(r"Percpu: +(\d+)", meminfo)
    assert captured is not None
    assert percpu.nr_pages * 4 == int(captured[1])


def test_pages_come_from_the_cpus_nodes() -> None:
    allocator = CountingAllocator()
    Percpu().boot("x86_64", [0, 1], allocator, Context(), StackDepot())
    assert allocator.nodes == [0] * 6 + [1] * 6
