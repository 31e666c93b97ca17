"""How large an object becomes and how many fit a slab (mm/slub.c ``calculate_sizes``, ``calculate_order``,
``set_cpu_partial``; mm/slab_common.c ``calculate_alignment``).

Left out: KASAN's additions, CONFIG_SLUB_TINY.
"""

from __future__ import annotations

from dataclasses import dataclass

from kmemd.core.mmzone import MAX_ORDER
from kmemd.mm import slab_flags as sf
from kmemd.mm.gfp import F
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

MAX_OBJS_PER_PAGE = 32767
MIN_PARTIAL = 5
MAX_PARTIAL = 10
SLAB_MINALIGN = 8


def align_up(value: int, alignment: int) -> int:
    """``ALIGN``: ``value`` raised to a multiple of a power of two."""
    return (value + alignment - 1) & ~(alignment - 1)


def get_order(size: int) -> int:
    """The order of the smallest block that holds ``size`` bytes."""
    return max(0, (size - 1).bit_length() - PAGE_SHIFT) if size > 0 else 0


def order_objects(order: int, size: int) -> int:
    """Objects of ``size`` bytes in a block."""
    return (PAGE_SIZE << order) // size


@dataclass(frozen=True)
class GeometryRules:
    """What the geometry depends on besides the cache itself.

    ``cpus`` is the number of present CPUs, or of possible ones when one or none is present. ``word`` and
    ``cache_line`` are in bytes; the ``slub_*`` are the parameters of those names.
    """

    cpus: int
    word: int = 8
    cache_line: int = 64
    slub_min_order: int = 0
    slub_max_order: int = PAGE_ALLOC_COSTLY_ORDER
    slub_min_objects: int = 0

    @property
    def track_size(self) -> int:
        """Bytes of struct track with a stack depot handle: address, handle, CPU, PID, jiffies."""
        return align_up(self.word + 3 * 4, self.word) + self.word

    def alignment(self, flags: int, align: int, size: int) -> int:
        """The alignment that a cache gets (``calculate_alignment``), in bytes."""
        if flags & sf.SLAB_HWCACHE_ALIGN:
            ralign = self.cache_line
            while size <= ralign // 2:
                ralign //= 2
            align = max(align, ralign)
        return align_up(max(align, SLAB_MINALIGN), self.word)

    def order_for(self, size: int) -> int:
        """The order of a cache's slabs (``calculate_order``), or -1 when no block holds an object."""
        min_objects = self.slub_min_objects or 4 * (self.cpus.bit_length() + 1)
        min_objects = min(min_objects, order_objects(self.slub_max_order, size))
        while min_objects > 1:
            for fraction in (16, 8, 4):
                order = self._slab_order(size, min_objects, self.slub_max_order, fraction)
                if order <= self.slub_max_order:
                    return order
            min_objects -= 1
        order = self._slab_order(size, 1, self.slub_max_order, 1)
        if order <= self.slub_max_order:
            return order
        order = self._slab_order(size, 1, MAX_ORDER, 1)
        return order if order < MAX_ORDER else -1

    def _slab_order(self, size: int, min_objects: int, max_order: int, fraction: int) -> int:
        """The lowest order that wastes at most one ``fraction``-th (``calc_slab_order``); above max: none."""
        if order_objects(self.slub_min_order, size) > MAX_OBJS_PER_PAGE:
            return get_order(size * MAX_OBJS_PER_PAGE) - 1
        order = max(self.slub_min_order, get_order(min_objects * size))
        while order <= max_order:
            slab_size = PAGE_SIZE << order
            if slab_size % size <= slab_size // fraction:
                break
            order += 1
        return order


@dataclass(frozen=True)
class Geometry:
    """The layout of a cache. Sizes, offsets and pads are bytes; ``min_*`` is the fallback order."""

    flags: int
    size: int
    inuse: int
    offset: int
    red_left_pad: int
    order: int
    objects: int
    min_order: int
    min_objects: int
    allocflags: int
    min_partial: int
    cpu_partial: int

    @property
    def cpu_partial_slabs(self) -> int:
        """Slabs that a CPU's partial list may hold."""
        return cpu_partial_slabs(self.cpu_partial, self.objects)


def cpu_partial_slabs(cpu_partial: int, objects: int) -> int:
    """The limit in slabs for one in objects: they are taken to be half full (``slub_set_cpu_partial``)."""
    return -(-cpu_partial * 2 // objects)


def calculate_sizes(rules: GeometryRules, object_size: int, align: int, flags: int, ctor: bool) -> Geometry | None:
    """The layout of objects of ``object_size`` bytes; None when no slab can hold one."""
    size, flags, inuse, offset, red_left_pad = _layout(rules, object_size, align, flags, ctor)
    order = rules.order_for(size)
    if order < 0:
        return None
    allocflags = F.COMP if order else 0
    if flags & sf.SLAB_CACHE_DMA:
        allocflags |= F.DMA
    if flags & sf.SLAB_CACHE_DMA32:
        allocflags |= F.DMA32
    if flags & sf.SLAB_RECLAIM_ACCOUNT:
        allocflags |= F.RECLAIMABLE
    if not flags & sf.NO_CMPXCHG:
        flags |= sf.CMPXCHG_DOUBLE
    min_order = get_order(size)
    return Geometry(
        flags=flags,
        size=size,
        inuse=inuse,
        offset=offset,
        red_left_pad=red_left_pad,
        order=order,
        objects=order_objects(order, size),
        min_order=min_order,
        min_objects=order_objects(min_order, size),
        allocflags=allocflags,
        min_partial=max(MIN_PARTIAL, min(MAX_PARTIAL, (size.bit_length() - 1) // 2)),
        cpu_partial=_cpu_partial(size, flags),
    )


def _layout(
    rules: GeometryRules, object_size: int, align: int, flags: int, ctor: bool
) -> tuple[int, int, int, int, int]:
    """``(size, flags, inuse, offset, red_left_pad)``: the object and what debugging puts around it."""
    word = rules.word
    size = align_up(object_size, word)
    rcu_or_ctor = flags & sf.SLAB_TYPESAFE_BY_RCU or ctor
    flags &= ~sf.OBJECT_POISON
    if flags & sf.SLAB_POISON and not rcu_or_ctor:
        flags |= sf.OBJECT_POISON
    if flags & sf.SLAB_RED_ZONE and size == object_size:
        size += word
    inuse = size
    if rcu_or_ctor or flags & sf.SLAB_POISON or (flags & sf.SLAB_RED_ZONE and object_size < word):
        offset = size  # the object's own bytes must stay as they are: the free pointer goes behind them
        size += word
    else:
        offset = object_size // 2 & ~(word - 1)
    if flags & sf.SLAB_STORE_USER:
        size += 2 * rules.track_size
        if flags & sf.SLAB_KMALLOC:
            size += 4  # the size that was asked for
    red_left_pad = 0
    if flags & sf.SLAB_RED_ZONE:
        red_left_pad = align_up(word, align)
        size += word + red_left_pad
    return align_up(size, align), flags, inuse, offset, red_left_pad


def _cpu_partial(size: int, flags: int) -> int:
    """Objects that a CPU's partial list may hold (``set_cpu_partial``)."""
    if flags & sf.DEBUG_FLAGS:
        return 0
    if size >= PAGE_SIZE:
        return 6
    if size >= 1024:
        return 24
    return 52 if size >= 256 else 120
