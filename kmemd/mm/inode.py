"""Inodes in memory, and their shrinking (fs/inode.c).

Models: a slab object for each inode of a file system that somebody looked up, the list of those that nobody uses, on
which an inode with pages in the page cache is not, a second chance for those that were used again, and eviction
with its pages. Left out: inodes that are being made or freed, reference counts other than dentries and mappings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kmemd.core.names import Inode
from kmemd.mm.filemap import File
from kmemd.mm.name_tables import Queue


class InodeLru:
    """The unused inodes of one file system by node (``s_inode_lru``). ``evict(inode)`` frees one;
    ``invalidate(file)`` drops its clean pages and says how many; ``file_of(path)`` is the page cache of an inode, once
    somebody opened it. ``shrinkable``: pages do not keep an inode from going, since its object is in low memory and
    they may be in high memory."""

    def __init__(
        self,
        evict: Callable[[Inode], None],
        invalidate: Callable[[File], int],
        file_of: Callable[[str], File | None],
        *,
        shrinkable: bool = False,
    ) -> None:
        self._shrinkable = shrinkable
        self._evict, self._invalidate, self._file_of = evict, invalidate, file_of
        self._by_node: dict[int, Queue[Inode]] = {}
        self.with_pages: OrderedDict[Inode, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(lru) for lru in self._by_node.values())

    def __contains__(self, inode: Inode) -> bool:
        return any(inode in lru for lru in self._by_node.values())

    def _busy(self, inode: Inode) -> bool:
        """Whether it is in use, or dirty: it cannot go."""
        file = self._file_of(inode.path)
        return file is not None and bool(file.maps or file.users or file.inode_dirty or file.nr_dirty or file.in_flight)

    def _cached(self, inode: Inode) -> bool:
        """Whether it has pages, which keep it off the list (``mapping_shrinkable``)."""
        file = self._file_of(inode.path)
        return not self._shrinkable and file is not None and file.nrpages > 0

    def count(self, nid: int) -> int:
        """Unused inodes of a node."""
        self.look_for_empty()
        return len(self._by_node.get(nid, ()))

    def look_for_empty(self) -> None:
        """Inodes whose last page went are on the list from then on (``inode_add_lru``)."""
        for inode in [inode for inode in self.with_pages if not self._cached(inode)]:
            del self.with_pages[inode]
            self.add(inode)

    def add(self, inode: Inode) -> None:
        """Nobody uses an inode any more (``iput``): to the list, unless pages keep it."""
        if self._cached(inode):
            self.with_pages[inode] = None
            return
        lru = self._by_node.get(inode.nid)
        if lru is None:
            lru = self._by_node[inode.nid] = Queue()
        if inode in lru:
            inode.referenced = True
        else:
            lru.append(inode)

    def remove(self, inode: Inode) -> None:
        """It is in use again, or goes."""
        self.with_pages.pop(inode, None)
        lru = self._by_node.get(inode.nid)
        if lru is not None:
            lru.remove(inode)

    def prune(self, nid: int, scan: int) -> int:
        """Look at ``scan`` inodes, the oldest first; those that can go, go (``prune_icache_sb``). How many."""
        self.look_for_empty()
        lru, freed = self._by_node.get(nid, Queue[Inode]()), 0
        for _ in range(min(scan, len(lru))):
            inode = lru.popleft()
            if inode.count or inode.referenced or self._busy(inode):
                inode.referenced = False
                if not inode.count:
                    lru.append(inode)
                continue
            file = self._file_of(inode.path)
            if file is not None and file.nrpages and self._invalidate(file) and file.nrpages:
                lru.append(inode)
                continue
            self._evict(inode)
            freed += 1
        return freed
