"""What the path of an access counts, by number and name."""

(
    ACCESSES,
    L1_HITS,
    L2_HITS,
    WALKS,
    WALK_LEVELS,
    FAULTS,
    ZERO_PAGES,
    NEW_PAGES,
    COPIES,
    REUSES,
    HUGE_FAULTS,
    HUGETLB_FAULTS,
    FILE_FAULTS,
    CACHE_HITS,
    DISK_READS,
    SWAP_FAULTS,
    SWAP_CACHE_HITS,
    SWAP_READS,
    HINT_FAULTS,
    TLB_FILLS,
    FLUSH_PAGES,
    FLUSH_FULL,
    SHOOTDOWNS,
    SWITCHES,
    TABLES_MADE,
) = range(25)
STAT_NAMES = (
    *("accesses", "tlb_l1_hits", "tlb_l2_hits", "page_walks", "walk_levels", "faults", "zero_page_faults"),
    *("anon_faults", "cow_faults", "reuse_faults", "huge_faults", "hugetlb_faults", "file_faults", "page_cache_hits"),
    *("disk_reads", "swap_faults", "swap_cache_hits", "swap_reads", "numa_hint_faults", "tlb_fills"),
    *("tlb_flush_pages", "tlb_flush_full", "tlb_shootdowns", "mm_switches", "page_tables_made"),
)
"""The path of an access, in its order. What the core leaves to Python is counted by ``mm/memory.py``."""
