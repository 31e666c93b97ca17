"""Heads and mapping counts of many pages at once (include/linux/page-flags.h ``compound_head``, ``__page_mapcount``).

Of compound pages only those of the size of a huge page are looked for: no other is ever mapped by small entries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import ALLOCATED, NOT_HEAD, PG_HEAD, PageMap

PFNs = npt.NDArray[np.int64]


def compound_heads(pages: PageMap, pfns: PFNs, hpage_pmd_nr: int) -> PFNs:
    """The head of the huge page that each page is part of; the page itself where it is part of none."""
    first = pfns & ~(hpage_pmd_nr - 1)
    inside = (pages.kind[pfns] == NOT_HEAD) & (pages.kind[first] == ALLOCATED)
    inside &= pages.flags[first] >> PG_HEAD & 1 == 1
    return np.where(inside & (1 << pages.order[first].astype(np.int64) > pfns - first), first, pfns)


def distinct(pfns: PFNs) -> PFNs:
    """Each page once, ascending; sorting is several times as fast as the hash table of ``np.unique``."""
    ordered = np.sort(pfns)
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    found: PFNs = ordered[first]
    return found


def mapcounts(pages: PageMap, pfns: PFNs, heads: PFNs) -> PFNs:
    """How often each page is mapped: by entries of its own, and with the compound page it belongs to."""
    compound = (pages.order[heads] > 0) & (pages.kind[heads] == ALLOCATED)
    first_tail = np.minimum(heads + 1, len(pages.mapping) - 1)
    return pages.mapcount[pfns].astype(np.int64) + np.where(compound, pages.mapping[first_tail], 0)
