"""mm.percpu: the captured amounts, areas in chunks, and percpu_stats, which shows them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kmemd import System
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.percpu import Area, Percpu, Units
from kmemd.mm.percpu_chunk import Chunk
from kmemd.mm.stackdepot import StackDepot

BOOT = Path(__file__).parent.parent / "captures" / "linux-6.1" / "boot"
STATS = "/sys/kernel/debug/percpu_stats"
UNITS = {"x86_64": Units(1 << 20, 2 << 20, 2 << 20), "i386": Units(30 * 4096, 4096, 30 * 4096)}
EMBEDDED = re.compile(r"Embedded \d+ pages/cpu s(\d+) r(\d+) d(\d+) u(\d+)")


class CountingAllocator:
    """Hands out page frames one after the other, up to ``most``, and remembers the nodes."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.nodes: list[int] = []
        self.most, self.taken = most, 0

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = -1) -> int:
        return int(self.alloc_pages_bulk(gfp, order, 1, nid)[0])

    def alloc_pages_bulk(self, gfp: int, order: int, n: int, nid: int = -1) -> npt.NDArray[np.int64]:
        n = min(n, self.most - self.taken)
        self.nodes += [nid] * n
        self.taken += n
        return np.arange(n, dtype=np.int64)

    def free_pages_bulk(self, pfns: npt.NDArray[np.int64], order: int = 0) -> None:
        self.taken -= len(pfns)


def make(arch: str, cpu_nodes: list[int], pages: CountingAllocator | None = None) -> Percpu:
    percpu = Percpu(arch, cpu_nodes, UNITS[arch], pages or CountingAllocator(), Context(), StackDepot())
    percpu.boot()
    return percpu


@pytest.mark.parametrize(
    ("machine", "cpus"),
    [("i386-2G-highmem-2cpu", 2), ("x86_64-256M-1cpu", 1), ("x86_64-2G-2cpu", 2), ("x86_64-2node-4G-4cpu", 4)],
)
def test_captured_amounts(machine: str, cpus: int) -> None:
    percpu = make(machine.split("-")[0], [0] * cpus)
    meminfo = (BOOT / machine / "proc" / "meminfo").read_text()
    captured = re.search(r"Percpu: +(\d+)", meminfo)
    assert captured is not None
    assert percpu.nr_pages * 4 == int(captured[1])


@pytest.mark.parametrize(("captured", "model"), [("x86_64-2G-2cpu", "default"), ("i386-2G-highmem-2cpu", "highmem")])
def test_units_are_the_captured_ones(captured: str, model: str) -> None:
    found = EMBEDDED.search((BOOT / captured / "dmesg").read_text())
    assert found is not None
    lines = System.boot(machine=model).read(STATS).decode().splitlines()
    rows = dict(re.findall(r"  (\w+) +: +(\d+)", "\n".join(lines[:10])))
    names = ("static_size", "reserved_size", "dyn_size", "unit_size")
    assert tuple(rows[name] for name in names) == found.groups()


def test_pages_come_from_the_cpus_nodes() -> None:
    allocator = CountingAllocator()
    make("x86_64", [0, 1], allocator)
    assert allocator.nodes == [0] * 6 + [1] * 6


def test_areas_take_the_lowest_place_that_will_do() -> None:
    chunk = Chunk(1280, 4096 * 3, immutable=True)
    wanted = ((8, 4), (100, 64), (40, 8), (4000, 4))
    assert [chunk.alloc(size, align) for size, align in wanted] == [1280, 1344, 1288, 1444]
    chunk.free(1344)
    assert (chunk.first_free, chunk.contig_bytes) == (1328, 3 * 4096 - 5444)
    assert chunk.sizes() == [-116, 8, 40, 4000]
    assert chunk.empty_populated() == {2}
    assert chunk.alloc(4096 * 2, 4) == -1
    chunk.check()


def test_pages_come_when_areas_need_them_and_go_with_their_chunk() -> None:
    pages = CountingAllocator()
    percpu = make("i386", [0, 0], pages)
    before = (percpu.nr_pages, percpu.nr_chunks)
    areas = [percpu.alloc(3000, 4) for _ in range(100)]
    percpu.check()
    assert percpu.nr_chunks > before[1]
    assert percpu.nr_pages - before[0] == pages.taken - 6
    assert percpu.empty_populated >= 2, "atomic allocations find some"
    for area in areas:
        percpu.free(area)
    percpu.check()
    assert (percpu.nr_chunks, percpu.nr_max_chunks > 2, percpu.nr_alloc, percpu.nr_dealloc) == (2, True, 100, 100)
    assert percpu.nr_pages == 60 + pages.taken


def test_without_memory_nothing_is_taken() -> None:
    percpu = make("i386", [0, 0], CountingAllocator(6))
    done = 0
    while percpu.empty_populated > 1:
        percpu.alloc(3000, 4)
        done += 1
    with pytest.raises(KernelError, match="per-CPU pages"):
        percpu.alloc(30000, 4)
    percpu.check()
    assert percpu.nr_alloc == done


@pytest.mark.parametrize("seed", range(5))
def test_random_areas_are_apart(seed: int) -> None:
    rng = random.Random(seed)
    percpu = make("i386", [0])
    live: list[Area] = []
    for _ in range(600):
        if live and rng.random() < 0.45:
            percpu.free(live.pop(rng.randrange(len(live))))
        else:
            live.append(percpu.alloc(rng.randrange(1, 5000), 1 << rng.randrange(7)))
        percpu.check()
    places = [(id(area.chunk), area.offset) for area in live]
    assert len(places) == len(set(places)) == percpu.nr_alloc - percpu.nr_dealloc


def row(system: System, name: str) -> int:
    return int(re.findall(rf"  {name} +: +(\d+)", system.read(STATS).decode())[0])


def test_caches_and_groups_have_areas() -> None:
    system = System.boot(machine="default")
    kib = int(re.findall(r"Percpu: +(\d+)", system.read("/proc/meminfo").decode())[0])
    before = row(system, "nr_cur_alloc")
    system.command("kmem_cache_create mine 64")
    assert row(system, "nr_cur_alloc") == before + 1
    system.command("kmem_cache_destroy mine")
    assert (row(system, "nr_cur_alloc"), row(system, "nr_dealloc")) == (before, 1)
    system.write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
    for number in range(40):
        system.mkdir(f"/sys/fs/cgroup/g{number}")
    assert row(system, "nr_cur_alloc") == before + 40 * (1 + len(system.kernel.nodes))
    assert int(re.findall(r"Percpu: +(\d+)", system.read("/proc/meminfo").decode())[0]) > kib
    system.check()
    for number in range(40):
        system.rmdir(f"/sys/fs/cgroup/g{number}")
    assert row(system, "nr_cur_alloc") == before
    system.check()


def test_the_form_is_linuxs() -> None:
    system = System.boot(machine="default")
    text = system.read(STATS).decode()
    head = ["Percpu Memory Statistics", "Allocation Info:", "-" * 40, "  unit_size           :      1048576"]
    assert text.splitlines()[:4] == head
    assert [line for line in text.splitlines() if line.startswith("Chunk")] == [
        "Chunk: <- Reserved Chunk",
        "Chunk: <- First Chunk",
        "Chunk:",
    ]
    assert text.count("\n\n") == 5
    assert system.tree.lookup(STATS).entry.mode == 0o444
