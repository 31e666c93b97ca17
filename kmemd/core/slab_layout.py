"""How ``core/slab`` lays out its arrays: the columns of each row, and the numbers of SLUB's statistics.

``cache`` has one int64 row per cache, ``cpu`` one int32 row per (cache, CPU), ``node`` one int64 row per
(cache, node), ``slab`` one int32 row per slab, ``stats`` one uint32 row per (cache, CPU).
"""

STAT_NAMES = (
    *("alloc_fastpath", "alloc_slowpath", "free_fastpath", "free_slowpath", "free_frozen", "free_add_partial"),
    *("free_remove_partial", "alloc_from_partial", "alloc_slab", "alloc_refill", "alloc_node_mismatch", "free_slab"),
    *("cpuslab_flush", "deactivate_full", "deactivate_empty", "deactivate_to_head", "deactivate_to_tail"),
    *("deactivate_remote_frees", "deactivate_bypass", "order_fallback", "cmpxchg_double_cpu_fail"),
    *("cmpxchg_double_fail", "cpu_partial_alloc", "cpu_partial_free", "cpu_partial_node", "cpu_partial_drain"),
)
"""Names of the statistics in the order of ``enum stat_item``."""

# cache: what SlabCore.configure sets
CACHE_COLUMNS = 8
SIZE = 0  # bytes from one object to the next
START = 1  # bytes before the first object (left red zone)
CPU_PARTIAL_SLABS = 2
MIN_PARTIAL = 3
DEBUG = 4  # any SLAB_DEBUG_FLAGS: no slabs on CPUs
STORE_USER = 5
STAT_ITEM = 6  # the node statistic that counts the pages
DEFRAG_RATIO = 7

# cpu
CPU_COLUMNS = 4
SLAB = 0
FREE = 1  # first object of the CPU's free list; that slab's ``objects`` when it is empty
PARTIAL = 2  # first slab of the partial list

# node
NODE_COLUMNS = 8
HEAD = 0  # first slab of the partial list; the last one is in the next column
FULL = 2  # the same of the full list
NR_PARTIAL = 4
NR_SLABS = 5
NR_OBJECTS = 6

# slab
SLAB_COLUMNS = 10
PFN = 0
CACHE = 1
NEXT = 2
PREV = 3
SLABS = 4  # slabs on a CPU's partial list from this one on
ARENA = 5  # place in the arenas, in units of eight objects
FREELIST = 6
INUSE = 7
OBJECTS = 8
META = 9  # node << 16 | order << 8 | flags

FROZEN = 1  # flag: belongs to a CPU
LINKED = 2  # flag: the arena of links was written

# What SlabLists.locate says about an address
OBJECT, FREE_OBJECT, MISALIGNED, NO_SLAB = range(4)
