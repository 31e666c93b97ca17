"""A page supplier and a small machine for tests of SLUB: pages go out in order of their numbers."""

import errno
from dataclasses import dataclass, field

import numpy as np

from kmemd.core.context import Context
from kmemd.core.pages import PageMap
from kmemd.core.stats import NR_VM_NODE_STAT_ITEMS
from kmemd.errors import KernelError
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import Printk
from kmemd.mm.slub import Slub
from kmemd.mm.slub_machine import SlubMachine
from kmemd.mm.slub_report import ReportTools
from kmemd.mm.stackdepot import StackDepot

PAGE_OFFSET = 0xFFFF888000000000
NODE_PAGES = 1 << 15


class FakePages:
    """Bump allocation per node, last freed first reused; ``limit`` blocks at most."""

    def __init__(self, nodes: int) -> None:
        self.next = [64 + nid * NODE_PAGES for nid in range(nodes)]
        self.end = [(nid + 1) * NODE_PAGES for nid in range(nodes)]
        self.spare: dict[tuple[int, int], list[int]] = {}
        self.out: dict[int, int] = {}
        self.limit: int | None = None
        self.max_order = 10
        self.requests: list[tuple[int, int, int]] = []

    def _one(self, order: int, nid: int) -> int | None:
        if (self.limit is not None and len(self.out) >= self.limit) or order > self.max_order:
            return None
        spare = self.spare.get((nid, order))
        if spare:
            return spare.pop()
        pfn = -(-self.next[nid] >> order << order)
        pfn = (self.next[nid] + (1 << order) - 1) >> order << order
        if pfn + (1 << order) > self.end[nid]:
            return None
        self.next[nid] = pfn + (1 << order)
        return pfn

    def alloc_pages_bulk(self, gfp: int, order: int, n: int, nid: int = -1) -> np.ndarray:
        self.requests.append((gfp, order, nid))
        got = []
        while len(got) < n:
            pfn = self._one(order, max(nid, 0))
            if pfn is None:
                break
            self.out[pfn] = order
            got.append(pfn)
        return np.array(got, dtype=np.int64)

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = -1) -> int:
        got = self.alloc_pages_bulk(gfp, order, 1, nid)
        if not len(got):
            raise KernelError(errno.ENOMEM, "out of memory")
        return int(got[0])

    def free_pages_bulk(self, pfns: np.ndarray, order: int = 0) -> None:
        for pfn in pfns.tolist():
            assert self.out.pop(pfn) == order
            self.spare.setdefault((pfn // NODE_PAGES, order), []).append(pfn)


@dataclass
class FakeZone:
    """A zone that holds all of its node."""

    kind: int
    start_pfn: int
    spanned: int
    managed: int


@dataclass
class FakeNode:
    """A node with one zone Normal."""

    nid: int
    zones: list[FakeZone]


@dataclass
class World:
    """A ``Slub`` and what it runs on."""

    slub: Slub
    pages: FakePages
    context: Context
    printk: Printk
    depot: StackDepot
    notes: list[object] = field(default_factory=list)

    def log(self) -> list[str]:
        return [record.text for record in self.printk.since(0)]


def make(cpus: int = 1, nodes: int = 1, cmdline: str = "", observer: object = None, **options: object) -> World:
    """Boot a slab allocator."""
    context, depot = Context(), StackDepot()
    printk = Printk(context)
    dump = DumpStack(context, depot, printk, lambda frame: f"{frame}+0x1/0x2", "6.1.192 #3")
    tools = ReportTools(
        dump,
        lambda frame: f"{frame}+0x1/0x2",
        lambda pfn: "0x200(slab)",
        lambda pfn: 0xFFFFEA0000000000 + pfn * 64,
        lambda address, frames: not PAGE_OFFSET <= address < PAGE_OFFSET + nodes * NODE_PAGES * 4096,
    )
    machine = SlubMachine(
        cpu_nodes=[cpu * nodes // cpus for cpu in range(cpus)],
        nodes=[FakeNode(nid, [FakeZone(2, nid * NODE_PAGES, NODE_PAGES, NODE_PAGES)]) for nid in range(nodes)],
        zonelists=[[nid, *(other for other in range(nodes) if other != nid)] for nid in range(nodes)],
        zone_names=("DMA", "DMA32", "Normal", "Movable"),
        page_offset=PAGE_OFFSET,
        **options,
    )
    pages = FakePages(nodes)
    slub = Slub(
        pages,
        PageMap(nodes * NODE_PAGES),
        np.zeros((nodes, NR_VM_NODE_STAT_ITEMS), dtype=np.int64),
        context,
        depot,
        printk,
        tools,
        machine,
        CommandLine(cmdline),
        observer,
    )
    return World(slub, pages, context, printk, depot)
