"""A kernel with processes that are nothing but an address space, for tests of huge pages."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kmemd.core import mmu as core
from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import Request
from kmemd.steps import finish

MIB = 1 << 20
RW = mman.PROT_READ | mman.PROT_WRITE
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
HUGE = 2 * MIB


@dataclass(eq=False)
class Process:
    """What memory management asks of a task."""

    pid: int
    mm: Mm
    comm: str = "test"
    uid: int = 0
    killed: int = 0
    oom_victim: bool = False
    cgroup: None = None
    utime_ns: int = 0
    stime_ns: int = 0
    rlimits: dict[int, tuple[int, int]] = field(default_factory=dict)


class HugeMachine:
    """One machine; addresses and lengths are in bytes."""

    def __init__(self, size: int = 1024 * MIB, nodes: int = 1, cmdline: str = "", **rest: object) -> None:
        cpus = tuple((cpu,) for cpu in range(nodes))
        distances = tuple(tuple(10 if a == b else 20 for b in range(nodes)) for a in range(nodes))
        machine = Machine.of_memory("test", "x86_64", nodes, (size,) * nodes, cpus, distances, **rest)
        self.kernel = Kernel(machine, cmdline=cmdline)
        self.user = self.kernel.user
        self._pids = 100
        self.free_at_boot = self.free_pages()

    def process(self) -> Process:
        """A process without a mapping."""
        self._pids += 1
        mm = self.user.mms.alloc()
        layout = self.user.user_layout
        mm.task_size = layout.task_size
        mm.mmap_base = 0x7F00_0000_0000
        return Process(self._pids, mm)

    def fork(self, parent: Process) -> Process:
        """A child with a copy of the address space."""
        self._pids += 1
        return Process(self._pids, finish(self.user.mms.dup(parent)))

    def exit(self, process: Process) -> None:
        """End a process."""
        self.user.mms.exit(process.mm)

    def mmap(self, process: Process, length: int, flags: int = PRIVATE, prot: int = RW, address: int = 0) -> int:
        """Map memory; private anonymous memory begins at a huge page."""
        if not address and not flags & mman.MAP_HUGETLB:
            found = self.user.spaces.mmap(process, Request(length + HUGE, prot, flags)).address
            self.user.spaces.munmap(process, found, length + HUGE)
            address = -(-found // HUGE) * HUGE
        flags |= mman.MAP_FIXED if address else 0
        return self.user.spaces.mmap(process, Request(length, prot, flags, address)).address

    def munmap(self, process: Process, address: int, length: int) -> None:
        """Unmap a range."""
        self.user.spaces.munmap(process, address, length)

    def advise(self, process: Process, address: int, length: int, advice: int) -> None:
        """madvise."""
        for _ in self.user.madvise.madvise(process, address, length, advice):
            pass

    def write(self, process: Process, address: int, length: int) -> None:
        """Write to every page of a range."""
        self._access(process, address, length, core.WRITE)

    def read(self, process: Process, address: int, length: int) -> None:
        """Read every page of a range."""
        self._access(process, address, length, core.READ)

    def _access(self, process: Process, address: int, length: int, op: int) -> None:
        vpns = np.arange(address >> 12, (address + length) >> 12, dtype=np.int64)
        self.user.memory.access(process, vpns, op)

    def vma(self, process: Process, address: int) -> Vma:
        """The mapping of an address."""
        found = process.mm.find(address)
        assert found is not None
        return found

    def entry(self, process: Process, address: int) -> tuple[int, int]:
        """The entry that maps an address, and its level."""
        slot, level = self.user.mmu.leaf(process.mm.id, address >> 12)
        return (int(self.user.mmu.words[slot]) if slot >= 0 else 0), level

    def pfn(self, process: Process, address: int) -> int:
        """The page that the entry for an address maps."""
        return (self.entry(process, address)[0] & ((1 << 52) - 1)) >> 12

    def rss(self, process: Process) -> int:
        """Pages of anonymous memory."""
        self.user.mmu.sync_rss(process.mm.id)
        return int(self.user.mmu.rss[process.mm.id * 4 + 1])

    def event(self, number: int) -> int:
        """How often an event happened."""
        return int(self.kernel.vmstat.events[number])

    def gauge(self, item: int) -> int:
        """A node item over all nodes."""
        return self.kernel.vmstat.node_total(item)

    @property
    def thps(self) -> int:
        """Huge pages in use as anonymous memory."""
        return self.gauge(stats.NR_ANON_THPS) // 512

    def free_pages(self) -> int:
        """Pages on free lists and per-cpu lists."""
        zones = self.kernel.zones
        return self.kernel.vmstat.zone_total(stats.NR_FREE_PAGES) + sum(zone.pcp_pages for zone in zones)

    def check(self) -> None:
        """Everything that is counted is true."""
        self.kernel.check()
