"""Huge pages of both kinds under random calls of several processes: everything that is counted stays true."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.signals import Signal
from tests.mm.huge_machine import HUGE, MIB, PRIVATE, SHARED, HugeMachine, Process

PAGE = 4096
STEPS = 50
ADVICE = (
    *(mman.MADV_DONTNEED, mman.MADV_FREE, mman.MADV_COLD, mman.MADV_COLLAPSE, mman.MADV_HUGEPAGE),
    *(mman.MADV_NOHUGEPAGE, mman.MADV_PAGEOUT, mman.MADV_REMOVE, mman.MADV_POPULATE_WRITE),
)
Area = tuple[int, int, bool]


class Monkey:
    """Makes calls at random. Areas are (address, bytes, whether it is hugetlb's)."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.m = HugeMachine(size=640 * MIB, nodes=self.rng.choice([1, 2]))
        self.m.kernel.hugetlb.nr_hugepages = self.rng.randrange(6)
        self.m.kernel.hugetlb.nr_overcommit = self.rng.randrange(3)
        self.areas: dict[Process, list[Area]] = {self.m.process(): []}

    def part(self, process: Process) -> Area:
        """A part of an area, often of whole huge pages."""
        address, size, huge = self.rng.choice(self.areas[process] or [(HUGE, HUGE, False)])
        unit = HUGE if huge or self.rng.random() < 0.5 else PAGE
        count = max(size // unit, 1)
        first = self.rng.randrange(count)
        return address + first * unit, self.rng.randrange(1, count - first + 1) * unit, huge

    def map(self, process: Process) -> None:
        size = self.rng.choice([2, 3, 4, 6]) * MIB
        self.areas[process].append((self.m.mmap(process, size), size, False))

    def map_hugetlb(self, process: Process) -> None:
        kind = self.rng.choice([PRIVATE, SHARED]) | self.rng.choice([0, mman.MAP_NORESERVE])
        size = self.rng.choice([1, 2]) * HUGE
        self.areas[process].append((self.m.mmap(process, size, kind | mman.MAP_HUGETLB), size, True))

    def write(self, process: Process) -> None:
        self.m.write(process, *self.part(process)[:2])

    def read(self, process: Process) -> None:
        self.m.read(process, *self.part(process)[:2])

    def unmap(self, process: Process) -> None:
        self.m.munmap(process, *self.part(process)[:2])

    def protect(self, process: Process) -> None:
        self.m.user.mprotect.mprotect(process, *self.part(process)[:2], self.rng.choice([0, 1, 3, 3]))

    def advise(self, process: Process) -> None:
        self.m.advise(process, *self.part(process)[:2], self.rng.choice(ADVICE))

    def lock(self, process: Process) -> None:
        address, size, _ = self.part(process)
        for _ in self.m.user.mlock.mlock(process, address, size):
            pass

    def move(self, process: Process) -> None:
        address, size, huge = self.part(process)
        to = self.m.mmap(process, size + HUGE, prot=0) + (0 if huge else self.rng.choice([0, PAGE]))
        flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED
        self.m.user.mremap.mremap(process, address, size, size, flags, to)
        self.areas[process].append((to, size, huge))

    def fork(self, process: Process) -> None:
        if len(self.areas) < 4:
            self.areas[self.m.fork(process)] = list(self.areas[process])

    def exit(self, process: Process) -> None:
        if len(self.areas) > 1:
            self.m.exit(process)
            del self.areas[process]

    def pool(self, _process: Process) -> None:
        self.m.kernel.hugetlb.nr_hugepages = self.rng.randrange(8)

    def split(self, _process: Process) -> None:
        self.m.user.huge_split.split_deferred(0, 2)

    def sleep(self, _process: Process) -> None:
        self.m.kernel.advance(10_000_000_000)

    def step(self) -> None:
        """One call; those that fail are as good as those that do not."""
        calls = (
            *(self.map, self.map_hugetlb, self.write, self.write, self.read, self.unmap, self.protect, self.advise),
            *(self.advise, self.move, self.fork, self.exit, self.pool, self.split, self.sleep, self.lock),
        )
        with suppress(KernelError, Signal):
            self.rng.choice(calls)(self.rng.choice(list(self.areas)))
        self.m.check()


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed: int) -> None:
    monkey = Monkey(seed)
    for _ in range(STEPS):
        monkey.step()
    m = monkey.m
    for process in monkey.areas:
        m.exit(process)
    m.kernel.advance(20_000_000_000)
    m.user.thp.shrink_zero_page()
    m.kernel.hugetlb.nr_overcommit = m.kernel.hugetlb.nr_hugepages = 0
    m.check()
    assert m.kernel.hugetlb.default.nr == 0
    assert m.free_pages() == m.free_at_boot
