"""What caches have in common: struct kmem_cache, merging, the kmalloc tables (mm/slab_common.c, mm/slab.h).

``Slub`` in mm/slub.py owns the caches; here is what one cache is, which cache a new one may become an alias of,
and which kmalloc cache serves a size. The check of the usercopy region is in mm/usercopy.py.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.gfp import F
from kmemd.mm.slab_geometry import Geometry, GeometryRules, align_up, cpu_partial_slabs

ZERO_SIZE_PTR = 16
KMALLOC_SHIFT_LOW = 3
KMALLOC_SHIFT_HIGH = 13
KMALLOC_MAX_CACHE_SIZE = 1 << KMALLOC_SHIFT_HIGH
KMALLOC_MINALIGN = 8
DEFAULT_DEFRAG_RATIO = 1000

KMALLOC_NORMAL, KMALLOC_CGROUP, KMALLOC_RECLAIM, KMALLOC_DMA = range(4)
NR_KMALLOC_TYPES = 4
KMALLOC_PREFIX = ("kmalloc-", "kmalloc-cg-", "kmalloc-rcl-", "dma-kmalloc-")
KMALLOC_TYPE_FLAGS = (0, sf.SLAB_ACCOUNT, sf.SLAB_RECLAIM_ACCOUNT, sf.SLAB_CACHE_DMA)
_ODD_SIZES = {1: 96, 2: 192}


@dataclass(eq=False)
class KmemCache:
    """One slab cache. Sizes are bytes; ``index`` is its number in the core.

    ``object_size`` is what was asked for, ``size`` the distance of objects. ``names`` are those under which it was
    created, the first is its own; ``refcount`` counts them and is -1 for caches that are never merged. ``permanent``
    caches are the kernel's own. ``struct`` and ``node_structs`` are the objects that describe the cache itself.
    """

    index: int
    name: str
    object_size: int
    align: int
    geometry: Geometry
    ctor: str | None = None
    useroffset: int = 0
    usersize: int = 0
    refcount: int = 1
    defrag_ratio: int = DEFAULT_DEFRAG_RATIO
    permanent: bool = False
    names: list[str] = field(default_factory=list)
    directory: str = ""
    struct: int = 0
    node_structs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flags = self.geometry.flags
        self.inuse = self.geometry.inuse
        self.min_partial = self.geometry.min_partial
        self.cpu_partial = self.geometry.cpu_partial

    @property
    def size(self) -> int:
        """Bytes from one object to the next."""
        return self.geometry.size

    @property
    def objects(self) -> int:
        """Objects per slab."""
        return self.geometry.objects

    @property
    def order(self) -> int:
        """The order of a slab's page block."""
        return self.geometry.order

    @property
    def cpu_partial_slabs(self) -> int:
        """Slabs that a CPU's partial list may hold."""
        return cpu_partial_slabs(self.cpu_partial, self.geometry.objects)

    @property
    def debugged(self) -> bool:
        """Whether any debugging flag is set (``kmem_cache_debug``)."""
        return bool(self.flags & sf.DEBUG_FLAGS)

    @property
    def aliases(self) -> int:
        """How many other names share the cache."""
        return max(0, self.refcount - 1)

    def ksize(self) -> int:
        """Usable bytes of an object (``slab_ksize``)."""
        if self.flags & (sf.SLAB_RED_ZONE | sf.SLAB_POISON):
            return self.object_size
        if self.flags & (sf.SLAB_TYPESAFE_BY_RCU | sf.SLAB_STORE_USER):
            return self.inuse
        return self.size

    def info_end(self, word: int) -> int:
        """Bytes from an object's start to its tracking data (``get_info_end``)."""
        outside = self.geometry.offset >= self.inuse
        return self.inuse + word if outside else self.inuse

    def unique_id(self) -> str:
        """The directory that the aliases of a mergeable cache point to (``create_unique_id``)."""
        letters = "".join(letter for flag, letter in _ID_LETTERS if self.flags & flag)
        return f":{letters}{'-' if letters else ''}{self.size:07d}"


_ID_LETTERS = (
    (sf.SLAB_CACHE_DMA, "d"),
    (sf.SLAB_CACHE_DMA32, "D"),
    (sf.SLAB_RECLAIM_ACCOUNT, "a"),
    (sf.SLAB_CONSISTENCY_CHECKS, "F"),
    (sf.SLAB_ACCOUNT, "A"),
)


@dataclass(frozen=True)
class Merging:
    """Whether and how caches are merged. ``enabled`` is the opposite of slab_nomerge."""

    rules: GeometryRules
    debug: sf.SlubDebug
    enabled: bool

    def unmergeable(self, cache: KmemCache) -> bool:
        """``slab_unmergeable``."""
        never = not self.enabled or cache.flags & sf.NEVER_MERGE
        return bool(never or cache.ctor or cache.usersize or cache.refcount < 0)

    def keeps_own_directory(self, cache: KmemCache) -> bool:
        """Whether sysfs shows the cache under its own name (``sysfs_slab_add``)."""
        metadata = self.debug.disable_higher_order and self.debug.flags & sf.DEBUG_METADATA_FLAGS
        return self.unmergeable(cache) or bool(metadata)

    def find(
        self, caches: Iterable[KmemCache], name: str, size: int, align: int, flags: int, ctor: str | None
    ) -> KmemCache | None:
        """The cache that a new one may become an alias of; ``caches`` are the oldest first (``find_mergeable``)."""
        if not self.enabled or ctor:
            return None
        word = self.rules.word
        size = align_up(size, word)
        align = self.rules.alignment(flags, align, size)
        size = align_up(size, align)
        flags = self.debug.cache_flags(flags, name)
        if flags & sf.NEVER_MERGE:
            return None
        for cache in caches:
            if self.unmergeable(cache) or size > cache.size:
                continue
            if flags & sf.MERGE_SAME != cache.flags & sf.MERGE_SAME or cache.size & ~(align - 1) != cache.size:
                continue
            if cache.size - size < word:
                return cache
        return None


# kmalloc


def kmalloc_name(kind: int, size: int) -> str:
    """``kmalloc-cg-1k``: the name of a kmalloc cache of a type."""
    return KMALLOC_PREFIX[kind] + (f"{size >> 10}k" if size >= 1024 else str(size))


def kmalloc_indices() -> Iterator[int]:
    """The indices of one type's caches in the order in which they are made (``create_kmalloc_caches``)."""
    for index in range(KMALLOC_SHIFT_LOW, KMALLOC_SHIFT_HIGH + 1):
        yield index
        if index in (6, 7):  # 96 and 192 bytes follow 64 and 128
            yield index - 5


def kmalloc_cache_size(index: int) -> int:
    """Bytes per object of the caches with an index."""
    return _ODD_SIZES.get(index, 1 << index)


def kmalloc_index(size: int) -> int:
    """Which of a type's caches serves ``size`` bytes, 1 to KMALLOC_MAX_CACHE_SIZE."""
    if 64 < size <= 96:
        return 1
    if 128 < size <= 192:
        return 2
    return max(KMALLOC_SHIFT_LOW, (size - 1).bit_length())


def kmalloc_type(gfp: int, index: int) -> int:
    """The type of cache that serves a GFP mask: DMA goes before RECLAIMABLE, that before ACCOUNT.

    __GFP_RECLAIMABLE without __GFP_ACCOUNT: the captured kernels served only the smallest size from a reclaimable
    cache and all others from the normal ones, where ``kmalloc_type`` in include/linux/slab.h would take the
    reclaimable caches throughout. The captures decide here.
    """
    if gfp & F.DMA:
        return KMALLOC_DMA
    if gfp & F.RECLAIMABLE:
        alone = not gfp & F.ACCOUNT and index != KMALLOC_SHIFT_LOW
        return KMALLOC_NORMAL if alone else KMALLOC_RECLAIM
    return KMALLOC_CGROUP if gfp & F.ACCOUNT else KMALLOC_NORMAL


def check_geometry_request(name: str, size: int) -> None:
    """Refuse what ``kmem_cache_create`` cannot make. EINVAL."""
    if not name:
        raise KernelError(errno.EINVAL, "a slab cache needs a name")
    if not 0 < size < 1 << 32:
        raise KernelError(errno.EINVAL, f"objects of {size} bytes: the size must be between 1 and 4294967295")
