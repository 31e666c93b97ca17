"""The buddy system's lists as Python lists, and lists as a capture of a real kernel has them.

Only inspection and loading: nothing here merges, steals or looks at watermarks.
"""

import cython

from kmemd.core.buddy import Buddy

_ORDERS = cython.declare(cython.int, 11)
_TOP = cython.declare(cython.int, 10)
_LISTS = cython.declare(cython.int, 7)  # lists per order: six migratetypes, and AFTER
_AFTER = cython.declare(cython.int, 6)
_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_PCP_LISTS = cython.declare(cython.int, 14)
_PCP_LOW = cython.declare(cython.int, 12)  # lists of orders 0..3; then THP unmovable, THP movable
_IN_PCP = cython.declare(cython.int, 2)


@cython.final
@cython.cclass
class BuddyState:
    """Reads and loads the lists of a ``Buddy``."""

    def __init__(self, buddy: Buddy) -> None:
        self._buddy = buddy

    def free_list(self, zi: cython.int, order: cython.int, mt: cython.int, frontier: bool = True) -> list:
        """The PFNs of a free list in list order; without the never touched blocks if ``frontier`` is false."""
        b: Buddy = self._buddy
        out: list = self._chain(b._list(zi, order, mt))
        if order == _TOP and mt == _MOVABLE:
            if frontier:
                for low, high in b.frontier(zi):
                    out.extend(range(low, high, 1 << _TOP))
            out.extend(self._chain(b._list(zi, order, _AFTER)))
        return out

    def pcp_list(self, zi: cython.int, cpu: cython.int, pindex: cython.int) -> list:
        """The PFNs of a per-cpu list in list order."""
        b: Buddy = self._buddy
        return self._chain(b._pcp_base + (zi * b.ncpus + cpu) * _PCP_LISTS + pindex)

    def _chain(self, li: cython.int) -> list:
        b: Buddy = self._buddy
        out: list = []
        at: cython.int = b._head_next[li]
        while at > 0:
            out.append(at - 1)
            at = b._next[at - 1]
        return out

    def load_free_block(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> None:
        """Append a free block to a list's tail, without merging: for a captured state."""
        b: Buddy = self._buddy
        b._free_list_add_tail(zi, order, mt, pfn)
        b._count_free(zi, mt, 1 << order)

    def load_pcp(self, zi: cython.int, cpu: cython.int, pindex: cython.int, pfn: cython.longlong) -> None:
        """Append a block to the tail of a per-cpu list: for a captured state."""
        b: Buddy = self._buddy
        pi: cython.int = zi * b.ncpus + cpu
        order: cython.int = b.pageblock_order if pindex >= _PCP_LOW else pindex // _PCPTYPES
        b._add_tail(b._pcp_base + pi * _PCP_LISTS + pindex, pfn)
        mt: cython.int = pindex % _PCPTYPES if pindex < _PCP_LOW else pindex - _PCP_LOW
        b._meta[pfn] = _IN_PCP | order << 8 | mt << 16
        b._pcp_count[pi] += 1 << order

    def empty_zone(self, zi: cython.int) -> list:
        """Take every block off a zone's free lists, before a captured state is loaded: their PFN ranges, unsorted.

        Preconditions: nothing is on the zone's per-cpu lists.
        """
        b: Buddy = self._buddy
        ranges: list = b.frontier(zi)
        blocks: cython.longlong = 0
        order: cython.int
        mt: cython.int
        for order in range(_ORDERS):
            for mt in range(_LISTS - 1):
                for pfn in self.free_list(zi, order, mt, False):
                    b._free_list_del(zi, order, pfn)
                    b._count_free(zi, mt, -(1 << order))
                    ranges.append((pfn, pfn + (1 << order)))
        blocks = b._front_blocks[zi]
        b._front_n[zi] = 0
        b._front_blocks[zi] = 0
        b._nr_list[b._list(zi, _TOP, _MOVABLE)] -= blocks
        b._count_free(zi, _MOVABLE, -(blocks << _TOP))
        return ranges
