"""zsmalloc: compressed pages packed by size class into groups of up to four pages (mm/zsmalloc.c).

Models: the size classes and their merging, zspages on lists by fullness, the slabs for handles and groups, compaction,
the figures of CONFIG_ZSMALLOC_STAT. Its pages are movable by kind; the model does not migrate them one by one.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kmemd.errors import KernelError
from kmemd.mm.gfp import F
from kmemd.mm.units import PAGE_SIZE
from kmemd.mm.zpool import Handle, Pages, head, push

ZS_MAX_PAGES_PER_ZSPAGE = 4
OBJ_INDEX_BITS = {64: 23, 32: 7}
"""What a page frame number of the largest machine and a tag leave of a long."""
ZS_SIZE_CLASS_DELTA = PAGE_SIZE >> 8
FULLNESS_THRESHOLD_FRAC = 4
EMPTY, ALMOST_EMPTY, ALMOST_FULL, FULL = range(4)
NO_HIGHMEM = ~(F.HIGHMEM | F.MOVABLE)
"""Slab objects are neither highmem nor movable."""


@dataclass(eq=False, slots=True)
class Zspage:
    """Pages that hold objects of one class, and which."""

    kind: SizeClass
    pfns: list[int]
    address: int
    objects: dict[int, Handle] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    fullness: int = EMPTY


@dataclass(eq=False)
class SizeClass:
    """Objects of one size. ``index`` is that of the smallest class that was merged into it."""

    index: int
    size: int
    pages: int
    lists: list[OrderedDict[Zspage, None]] = field(default_factory=lambda: [OrderedDict() for _ in range(4)])
    used: int = 0

    @property
    def objects(self) -> int:
        """Objects of a zspage."""
        return self.pages * PAGE_SIZE // self.size

    @property
    def zspages(self) -> int:
        """Zspages of the class."""
        return sum(len(items) for items in self.lists)

    @property
    def allocated(self) -> int:
        """Objects that there is room for."""
        return self.zspages * self.objects

    @property
    def freeable(self) -> int:
        """Pages that compaction could free (``zs_can_compact``)."""
        return (self.allocated - self.used) // self.objects * self.pages

    def fullness_of(self, zspage: Zspage) -> int:
        """The list that a zspage belongs on (``get_fullness_group``)."""
        inuse = len(zspage.objects)
        if not inuse:
            return EMPTY
        if inuse == self.objects:
            return FULL
        return ALMOST_EMPTY if inuse <= 3 * self.objects // FULLNESS_THRESHOLD_FRAC else ALMOST_FULL

    def insert(self, zspage: Zspage) -> None:
        """At the head of its list, behind the head when that one is fuller (``insert_zspage``)."""
        zspage.fullness = self.fullness_of(zspage)
        items = self.lists[zspage.fullness]
        first = head(items)
        push(items, zspage)
        if first is not None and len(zspage.objects) < len(first.objects):
            items.move_to_end(first, last=False)

    def remove(self, zspage: Zspage) -> None:
        """Take it off its list."""
        del self.lists[zspage.fullness][zspage]

    def fix(self, zspage: Zspage) -> int:
        """Move a zspage to the list that it belongs on now (``fix_fullness_group``); which that is."""
        found = self.fullness_of(zspage)
        if found != zspage.fullness:
            self.remove(zspage)
            self.insert(zspage)
        return found

    def first(self, *groups: int) -> Zspage | None:
        """The first zspage of the first list that has one."""
        return next((zspage for group in groups for zspage in self.lists[group]), None)


def min_size(long_bits: int) -> int:
    """The smallest object (ZS_MIN_ALLOC_SIZE)."""
    return max(32, ZS_MAX_PAGES_PER_ZSPAGE * PAGE_SIZE >> OBJ_INDEX_BITS[long_bits])


def pages_per_zspage(size: int) -> int:
    """How many pages waste least (``get_pages_per_zspage``)."""
    used = [(pages * PAGE_SIZE - pages * PAGE_SIZE % size) * 100 // (pages * PAGE_SIZE) for pages in range(1, 5)]
    return used.index(max(used)) + 1


def size_classes(long_bits: int) -> list[SizeClass]:
    """The class of each index; neighbours with the same pages and objects are one (``zs_create_pool``)."""
    least = min_size(long_bits)
    count = -(-(PAGE_SIZE - least) // ZS_SIZE_CLASS_DELTA) + 1
    found: list[SizeClass] = []
    for index in reversed(range(count)):
        size = min(least + index * ZS_SIZE_CLASS_DELTA, PAGE_SIZE)
        pages = pages_per_zspage(size)
        last = found[-1] if found else None
        if last is not None and (last.pages, last.objects) == (pages, pages * PAGE_SIZE // size):
            found.append(last)
        else:
            found.append(SizeClass(index, size, pages))
    return found[::-1]


def huge_class_size(long_bits: int) -> int:
    """From this size on an object has a page for itself (``zs_huge_class_size``)."""
    for kind in reversed(size_classes(long_bits)):
        if kind.pages != 1 and kind.objects != 1:
            return kind.size - (long_bits // 8 - 1)
    return PAGE_SIZE


class ZsSlabs:
    """Where a pool's handles and group descriptors live: ``alloc(name, gfp)`` and ``free(name, address)``."""

    def __init__(self, alloc: Callable[[str, int], int], free: Callable[[str, int], None]) -> None:
        self.alloc, self.free = alloc, free


class Zsmalloc:
    """One pool.

    Invariants: a zspage has an object and is on the list of its fullness; ``used`` of a class counts its objects.
    """

    type = "zsmalloc"
    evictable = False
    movable = True

    def __init__(self, name: str, supply: Pages, slabs: ZsSlabs, long_bits: int = 64) -> None:
        self.name = name
        self._supply, self._slabs = supply, slabs
        self._handle_size = long_bits // 8
        self._least = min_size(long_bits)
        self.by_index = size_classes(long_bits)
        self.classes = list(dict.fromkeys(self.by_index))
        self.pages = 0
        self.pages_compacted = 0
        self._handles: dict[Handle, int] = {}

    def malloc(self, size: int, gfp: int, owner: int) -> Handle:
        """An object, in the fullest zspage of its class that has room (``zs_malloc``). EINVAL, ENOMEM."""
        if not 0 < size <= PAGE_SIZE:
            raise KernelError(errno.EINVAL, f"zsmalloc has no objects of {size} bytes")
        address = self._slabs.alloc("zs_handle", gfp & NO_HIGHMEM)
        kind = self._class_of(size + self._handle_size)
        zspage = kind.first(ALMOST_FULL, ALMOST_EMPTY)
        if zspage is None:
            try:
                zspage = self._new_zspage(kind, gfp)
            except KernelError:
                self._slabs.free("zs_handle", address)
                raise
        handle = Handle(zspage, zspage.free.pop(), size, owner)
        zspage.objects[handle.part] = handle
        kind.used += 1
        kind.fix(zspage)
        self._handles[handle] = address
        return handle

    def _class_of(self, size: int) -> SizeClass:
        index = -(-(size - self._least) // ZS_SIZE_CLASS_DELTA) if size > self._least else 0
        return self.by_index[min(index, len(self.by_index) - 1)]

    def _new_zspage(self, kind: SizeClass, gfp: int) -> Zspage:
        """Pages for one more group (``alloc_zspage``). ENOMEM."""
        address = self._slabs.alloc("zspage", gfp & NO_HIGHMEM)
        pfns: list[int] = []
        try:
            while len(pfns) < kind.pages:
                pfns.append(self._supply.alloc_pages(gfp))
        except KernelError:
            for pfn in pfns:
                self._supply.free_pages(pfn)
            self._slabs.free("zspage", address)
            raise
        zspage = Zspage(kind, pfns, address, free=list(range(kind.objects))[::-1])
        kind.insert(zspage)
        self.pages += kind.pages
        return zspage

    def free(self, handle: Handle) -> None:
        """An object is gone, and its zspage with the last one (``zs_free``)."""
        zspage: Zspage = handle.page
        del zspage.objects[handle.part]
        zspage.free.append(handle.part)
        zspage.kind.used -= 1
        if zspage.kind.fix(zspage) == EMPTY:
            self._free_zspage(zspage)
        self._slabs.free("zs_handle", self._handles.pop(handle))

    def _free_zspage(self, zspage: Zspage) -> None:
        zspage.kind.remove(zspage)
        for pfn in zspage.pfns:
            self._supply.free_pages(pfn)
        self._slabs.free("zspage", zspage.address)
        self.pages -= zspage.kind.pages

    def shrink(self) -> None:
        """It cannot evict. EINVAL."""
        raise KernelError(errno.EINVAL, "zsmalloc cannot evict")

    # -- compaction --------------------------------------------------------------------------------------

    @property
    def freeable(self) -> int:
        """Pages that compaction could free (``zs_shrinker_count``)."""
        return sum(kind.freeable for kind in self.classes)

    def compact(self) -> int:
        """Move objects together, class by class from the largest; the pages freed (``zs_compact``)."""
        freed = sum(self._compact_class(kind) for kind in reversed(self.classes))
        self.pages_compacted += freed
        return freed

    def _compact_class(self, kind: SizeClass) -> int:
        freed = 0
        while kind.freeable:
            source = kind.first(ALMOST_EMPTY, ALMOST_FULL)
            if source is None:
                break
            kind.remove(source)
            while source.objects:
                target = kind.first(ALMOST_FULL, ALMOST_EMPTY)
                if target is None:
                    break
                while source.objects and target.free:
                    part, handle = source.objects.popitem()
                    source.free.append(part)
                    handle.page, handle.part = target, target.free.pop()
                    target.objects[handle.part] = handle
                kind.fix(target)
            kind.insert(source)
            if source.objects:
                break
            self._free_zspage(source)
            freed += kind.pages
        return freed

    # -- what is shown -----------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[int, int, int, int, int, int, int, int, int]]:
        """Class, size, almost full, almost empty, room, objects, pages, pages of a zspage, pages to be freed."""
        for kind in self.classes:
            full, empty = len(kind.lists[ALMOST_FULL]), len(kind.lists[ALMOST_EMPTY])
            used = kind.zspages * kind.pages
            yield (kind.index, kind.size, full, empty, kind.allocated, kind.used, used, kind.pages, kind.freeable)

    def pfns(self) -> list[int]:
        """The page frames of the pool."""
        zspages = (zspage for kind in self.classes for items in kind.lists for zspage in items)
        return [pfn for zspage in zspages for pfn in zspage.pfns]

    def check(self) -> None:
        """Zspages are on the lists that they belong on, and counted. AssertionError."""
        for kind in self.classes:
            for fullness, items in enumerate(kind.lists):
                for zspage in items:
                    assert fullness == kind.fullness_of(zspage) != EMPTY, f"{self.name}: a zspage is on a wrong list"
                    assert len(zspage.free) + len(zspage.objects) == kind.objects, f"{self.name}: a place is lost"
            used = sum(len(zspage.objects) for items in kind.lists for zspage in items)
            assert used == kind.used, f"{self.name}: {used} objects of {kind.size}, {kind.used} are counted"
        assert len(self.pfns()) == self.pages, f"{self.name}: {self.pages} pages are counted"
