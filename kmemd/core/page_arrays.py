"""What loops over pages look at: the page map's arrays, counters of nodes and events, and which zone a page is in.

Loops derive from ``PageArrays``, so that they reach all of it without a step in between. ``_zone_of`` remembers the
zone of the page before: neighbours mostly are in the same.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view


@cython.cclass
class PageArrays:
    """Views of a ``PageMap`` and of ``vmstat``. ``zones`` rows are ``(nid, start_pfn, end_pfn)``, numbered as the rows
    of the zones' counters.
    """

    def __init__(self, pages: Any, zones: Any, vmstat: Any) -> None:
        self._flags, self._meta, self._mapping = view(pages.flags), view(pages.meta), view(pages.mapping)
        self._index, self._mapcount = view(pages.index), view(pages.mapcount)
        self._memcg, self._private = view(pages.memcg), view(pages.private)
        self._events, self._node_stat = view(vmstat.events), view(vmstat.node_stat)
        rows = np.array(zones, dtype=np.int64).reshape(-1, 3)
        self._zone_nid, self._zone_start, self._zone_end = (view(rows[:, k].copy()) for k in range(3))
        self._zone = 0

    # compiled, these are the inline functions of the .pxd
    if not cython.compiled:

        def _zone_of(self, pfn: int) -> int:
            """The number of the zone that a page is in, 0 without (page_zone)."""
            zi = self._zone
            if pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]:
                zi = 0
                while zi < len(self._zone_start) and (pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]):
                    zi += 1
                if zi == len(self._zone_start):
                    return 0
                self._zone = zi
            return zi

        def _nid_of(self, pfn: int) -> Any:
            """The node that a page is in."""
            return self._zone_nid[self._zone_of(pfn)]
