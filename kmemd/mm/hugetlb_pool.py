"""One pool of huge pages: counts, free lists and the nodes' turns (mm/hugetlb.c ``struct hstate``).

Models: nodes taking turns at growing and shrinking, free lists that are stacks, pages in use with what their release
must undo. Left out: the list of pages in use in Linux's order, which nothing shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kmemd.mm.units import PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.mm.hugetlb_reserve import Subpool

MAX_ORDER = 11


class Pool:
    """Huge pages of one size. Counts are in huge pages, one list entry per node.

    ``active`` holds the pages in use, by PFN, with the subpool that their mount counts them in. ``restore`` are those
    whose allocation used up a reservation, which comes back if they are freed before they are mapped.

    Invariants: a node's pages are its free ones and its active ones; persistent pages are those that are not surplus;
    ``resv`` of the free pages are promised.
    """

    def __init__(self, order: int, nr_nodes: int) -> None:
        self.order = order
        self.nr_node = [0] * nr_nodes
        self.surplus_node = [0] * nr_nodes
        self.free_lists: list[list[int]] = [[] for _ in range(nr_nodes)]
        self.active: dict[int, Subpool | None] = {}
        self.restore: set[int] = set()
        self.resv = 0
        self.overcommit = 0
        self.max_huge_pages = 0
        self.next_nid_to_alloc = 0
        self.next_nid_to_free = 0
        self.demote_order = 0

    @property
    def size(self) -> int:
        """Bytes of a page."""
        return PAGE_SIZE << self.order

    @property
    def pages(self) -> int:
        """Base pages of a page."""
        return 1 << self.order

    @property
    def level(self) -> int:
        """The level of the page-table entry that maps one: 1 for a PMD, 2 for a PUD."""
        return 2 if self.gigantic else 1

    @property
    def gigantic(self) -> bool:
        """Whether the page allocator cannot have such a block (``hstate_is_gigantic``)."""
        return self.order >= MAX_ORDER

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"hugepages-{self.size // 1024}kB"

    @property
    def nr(self) -> int:
        """All pages of the pool."""
        return sum(self.nr_node)

    @property
    def free(self) -> int:
        """Pages that no mapping uses."""
        return sum(len(pages) for pages in self.free_lists)

    @property
    def available(self) -> int:
        """Free pages that are not promised to anybody."""
        return self.free - self.resv

    @property
    def surplus(self) -> int:
        """Pages above the pool's persistent size."""
        return sum(self.surplus_node)

    @property
    def persistent(self) -> int:
        """Pages that stay when they become free."""
        return self.nr - self.surplus

    def free_node(self, nid: int) -> int:
        """Free pages of a node."""
        return len(self.free_lists[nid])

    def add(self, nid: int, pfns: list[int]) -> None:
        """New pages go to the head of the node's free list."""
        self.nr_node[nid] += len(pfns)
        self.free_lists[nid] += pfns

    def dequeue(self, nodes: Sequence[int]) -> int | None:
        """Take the page that became free last, of the first of ``nodes`` that has one."""
        for nid in nodes:
            if self.free_lists[nid]:
                pfn = self.free_lists[nid].pop()
                self.active[pfn] = None
                return pfn
        return None

    def next_to_alloc(self, nodes: Sequence[int]) -> int:
        """The node whose turn it is to take a page (``hstate_next_node_to_alloc``)."""
        nid = turn(self.next_nid_to_alloc, nodes)
        self.next_nid_to_alloc = turn(nid + 1, nodes)
        return nid

    def next_to_free(self, nodes: Sequence[int]) -> int:
        """The node whose turn it is to give a page back (``hstate_next_node_to_free``)."""
        nid = turn(self.next_nid_to_free, nodes)
        self.next_nid_to_free = turn(nid + 1, nodes)
        return nid

    def remove_one(self, nodes: Sequence[int], *, surplus: bool = False) -> int | None:
        """Take a free page out of the pool, of the next node that has one (and that has ``surplus`` pages)."""
        for _ in nodes:
            nid = self.next_to_free(nodes)
            if self.free_lists[nid] and (not surplus or self.surplus_node[nid]):
                self.nr_node[nid] -= 1
                self.surplus_node[nid] -= surplus
                return self.free_lists[nid].pop()
        return None

    def adjust_surplus(self, nodes: Sequence[int], delta: int) -> bool:
        """Turn one surplus page into a persistent one (-1) or back (1); whether there was one."""
        for _ in nodes:
            if delta < 0:
                nid = self.next_to_alloc(nodes)
                found = self.surplus_node[nid] > 0
            else:
                nid = self.next_to_free(nodes)
                found = self.surplus_node[nid] < self.nr_node[nid]
            if found:
                self.surplus_node[nid] += delta
                return True
        return False

    def check(self, node_of: Sequence[range]) -> None:
        """Every page is aligned, of its node, in one place, and counted. ``node_of``: each node's PFNs."""
        free = [pfn for pages in self.free_lists for pfn in pages]
        every = free + list(self.active)
        assert len(set(every)) == len(every), f"{self.name}: a page is twice in the pool"
        assert all(pfn % self.pages == 0 for pfn in every), f"{self.name}: a page is not aligned"
        assert self.restore <= self.active.keys(), f"{self.name}: a free page holds a reservation"
        assert 0 <= self.resv <= self.free, f"{self.name}: {self.resv} pages promised of {self.free} free ones"
        for nid, pages in enumerate(self.free_lists):
            held = len(pages) + sum(pfn in node_of[nid] for pfn in self.active)
            assert held == self.nr_node[nid], f"{self.name}: node {nid} counts {self.nr_node[nid]} pages and has {held}"
            assert 0 <= self.surplus_node[nid] <= self.nr_node[nid], f"{self.name}: surplus of node {nid}"


def turn(nid: int, nodes: Sequence[int]) -> int:
    """The node at or after ``nid``, round robin (``get_valid_node_allowed``)."""
    return next((node for node in nodes if node >= nid), nodes[0])
