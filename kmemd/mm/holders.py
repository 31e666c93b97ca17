"""Who refers to a page by its frame, beside page tables: what migration has to tell (``folio_migrate_mapping``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PG_SWAPCACHE, PageMap
from kmemd.mm.contents import Contents
from kmemd.mm.filemap import PageCache
from kmemd.mm.huge_pmd import TransparentHuge
from kmemd.mm.huge_split import HugeSplit
from kmemd.mm.swap_state import SwapState

PFNS = npt.NDArray[np.int64]


class Holders:
    """Page cache, swap cache, known bytes and huge page state, as migration sees them."""

    def __init__(
        self,
        pages: PageMap,
        cache: PageCache,
        swap: SwapState,
        contents: Contents,
        split: HugeSplit,
        thp: TransparentHuge,
    ) -> None:
        self._pages = pages
        self._cache = cache
        self._swap = swap
        self._contents = contents
        self._split = split
        self._thp = thp

    def replace_cached(self, src: int, dst: int) -> None:
        """The page cache or the swap cache that holds ``src`` holds ``dst`` from now on."""
        if int(self._pages.flags[src]) >> PG_SWAPCACHE & 1:
            self._swap.replace_page(src, dst)
            return
        file = self._cache.owner(src)
        if file is not None:
            self._cache.replace(file, int(self._pages.index[src]), dst)

    def replace_cached_bulk(self, srcs: PFNS, dsts: PFNS) -> None:
        """``replace_cached`` of pages of files that are not in the swap cache."""
        owners = self._pages.mapping[srcs]
        for number in set(owners.tolist()):
            mine = owners == number
            file = self._cache.owner(int(srcs[mine][0]))
            assert file is not None, f"pfn {int(srcs[mine][0])} names a file that is not there"
            self._cache.replace_bulk(file, srcs[mine], dsts[mine])

    def pinned(self, pfns: PFNS) -> npt.NDArray[np.bool_] | None:
        """Which pages somebody works with right now; None when there is no such page."""
        return self._cache.pinned_of(pfns)

    def mark_dirty(self, pfn: int) -> None:
        """A page of a file was written to through a mapping."""
        self._cache.dirty_pages(np.array([pfn], dtype=np.int64))

    def move_content(self, src: int, dst: int) -> None:
        """The bytes of ``src`` are those of ``dst`` from now on."""
        self._contents.copy(src, dst)

    def split_huge(self, pfn: int) -> bool:
        """Make small pages of an isolated huge one: whether it worked."""
        return self._split.split(pfn)

    def free_huge(self, pfn: int) -> None:
        """Nobody maps a huge page any more."""
        self._split.free(pfn)

    def map_huge(self, pfn: int) -> None:
        """One more huge entry maps a huge page."""
        self._thp.count_map(pfn)

    def unmap_huge(self, pfn: int) -> None:
        """One huge entry less maps it."""
        self._thp.count_unmap(pfn)
