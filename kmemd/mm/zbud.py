"""zbud: at most two compressed pages to a page (mm/zbud.c).

A page has a header and room for one object at each end, in chunks of 64 bytes. Pages with one object are found by how
many chunks are free, best fit first; the page that was last allocated from is the last to be evicted.
"""

from __future__ import annotations

import errno
from collections import OrderedDict

from kmemd.errors import KernelError
from kmemd.mm.gfp import F
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.zpool import Evict, Handle, Pages, head, push, tail

NCHUNKS_ORDER = 6
CHUNK_SHIFT = PAGE_SHIFT - NCHUNKS_ORDER
CHUNK_SIZE = 1 << CHUNK_SHIFT
HEADER = CHUNK_SIZE
NCHUNKS = (PAGE_SIZE - HEADER) >> CHUNK_SHIFT
RETRIES = 8
"""Pages that are tried before eviction is given up."""


class BuddiedPage:
    """A page of the pool: the objects in its places, None where there is none, and the list that it is on."""

    __slots__ = ("chunks", "free_chunks", "parts", "pfn", "reclaimed", "start")

    def __init__(self, pfn: int, places: int) -> None:
        self.pfn = pfn
        self.parts: list[Handle | None] = [None] * places
        self.chunks = [0] * places
        self.free_chunks: int | None = None
        self.reclaimed = False
        self.start = 0


class Zbud:
    """One pool.

    Invariants: a page is on ``lru`` and has an object, but while it is reclaimed; ``free_chunks`` of a page that has a
    place left names the list of ``unbuddied`` that it is on; ``_used`` has a bit for each such list that is not empty.
    """

    type = "zbud"
    places = 2
    evictable = True
    movable = False

    def __init__(self, name: str, supply: Pages, evict: Evict) -> None:
        self.name = name
        self._supply, self._evict = supply, evict
        self.lru: OrderedDict[BuddiedPage, None] = OrderedDict()
        self.unbuddied: list[OrderedDict[BuddiedPage, None]] = [OrderedDict() for _ in range(NCHUNKS + 1)]
        self._used = 0
        self.pages = 0

    def malloc(self, size: int, gfp: int, owner: int) -> Handle:
        """An object in the fullest page that has room for it (``zbud_alloc``). EINVAL, ENOSPC, ENOMEM."""
        if not size or gfp & F.HIGHMEM:
            raise KernelError(errno.EINVAL, f"{self.type} has no objects of {size} bytes there")
        self._check_size(size)
        chunks = size + CHUNK_SIZE - 1 >> CHUNK_SHIFT
        page = self._fitting(chunks)
        if page is None:
            page = BuddiedPage(self._supply.alloc_pages(gfp), self.places)
            self.pages += 1
        part = self._place(page, chunks)
        handle = Handle(page, part, size, owner)
        page.parts[part], page.chunks[part] = handle, chunks
        self._list(page)
        self.lru.pop(page, None)
        push(self.lru, page)
        return handle

    def _check_size(self, size: int) -> None:
        if size > PAGE_SIZE - HEADER - CHUNK_SIZE:
            raise KernelError(errno.ENOSPC, f"{size} bytes are more than {self.type} stores")

    def _fitting(self, chunks: int) -> BuddiedPage | None:
        """The page with the least room that is enough, off its list."""
        used = self._used >> chunks
        if not used:
            return None
        page = head(self.unbuddied[chunks + (used & -used).bit_length() - 1])
        assert page is not None, "the list is in use"
        self._unlist(page)
        return page

    def _place(self, page: BuddiedPage, chunks: int) -> int:
        return 1 if page.parts[0] is not None else 0

    def _room(self, page: BuddiedPage) -> int | None:
        """Chunks that another object could have; None when all places are taken (``num_free_chunks``)."""
        return None if all(page.parts) else NCHUNKS - sum(page.chunks)

    def _list(self, page: BuddiedPage) -> None:
        page.free_chunks = self._room(page)
        if page.free_chunks is not None:
            push(self.unbuddied[page.free_chunks], page)
            self._used |= 1 << page.free_chunks

    def _unlist(self, page: BuddiedPage) -> None:
        if page.free_chunks is not None:
            items = self.unbuddied[page.free_chunks]
            items.pop(page, None)
            if not items:
                self._used &= ~(1 << page.free_chunks)
            page.free_chunks = None

    def free(self, handle: Handle) -> None:
        """An object is gone, and its page when that was the last one (``zbud_free``)."""
        page: BuddiedPage = handle.page
        part = page.parts.index(handle)
        page.parts[part], page.chunks[part] = None, 0
        if page.reclaimed:
            return
        self._unlist(page)
        if any(page.parts):
            self._freed(page)
            self._list(page)
        else:
            self.lru.pop(page)
            self._release(page)

    def _freed(self, page: BuddiedPage) -> None:
        """What is left in a page may be moved together."""

    def _release(self, page: BuddiedPage) -> None:
        self._supply.free_pages(page.pfn)
        self.pages -= 1

    def shrink(self) -> None:
        """Evict the oldest pages until one is free (``zbud_reclaim_page``). EINVAL, EAGAIN."""
        if not self.lru:
            raise KernelError(errno.EINVAL, "the pool is empty")
        for _ in range(RETRIES):
            page = tail(self.lru)
            del self.lru[page]
            self._unlist(page)
            page.reclaimed = True
            for handle in [part for part in page.parts if part is not None]:
                if not self._evict(handle):
                    break
            page.reclaimed = False
            if not any(page.parts):
                self._release(page)
                return
            self._list(page)
            push(self.lru, page)
        raise KernelError(errno.EAGAIN, f"none of {RETRIES} pages could be evicted")

    def pfns(self) -> list[int]:
        """The page frames of the pool."""
        return [page.pfn for page in self.lru]

    def check(self) -> None:
        """Pages hold what they say. AssertionError."""
        used = sum(1 << at for at, items in enumerate(self.unbuddied) if items)
        assert used == self._used, f"{self.name}: other lists are in use than is noted"
        assert len(self.lru) == self.pages, f"{self.name}: {len(self.lru)} pages, {self.pages} are counted"
        for page in self.lru:
            assert any(page.parts), f"{self.name}: page {page.pfn} is empty"
            assert page.free_chunks == self._room(page), f"{self.name}: page {page.pfn} is on a wrong list"
