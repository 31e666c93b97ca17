"""Numbers of the memory manager's counters: which slot of the int64 arrays counts what.

The order is Linux 6.1's (include/linux/mmzone.h ``zone_stat_item``, ``numa_stat_item``, ``node_stat_item``;
include/linux/vm_event_item.h ``vm_event_item``) with NUMA, NUMA balancing, migration, compaction, THP, CMA,
KSM and zswap built in. A machine without one of these keeps the slot and does not show it.

Counters that exist once per zone type take four slots: ``PGALLOC + position``, where the position is the
zone's place within its node (x86_64: DMA, DMA32, Normal, Movable; i386: DMA, Normal, HighMem, Movable).
Left out: CONFIG_ZONE_DEVICE, balloon, TLB flush debugging, shadow call stacks, zsmalloc.
"""

ZONES_PER_NODE = 4

# enum zone_stat_item
(
    NR_FREE_PAGES,
    NR_ZONE_INACTIVE_ANON,
    NR_ZONE_ACTIVE_ANON,
    NR_ZONE_INACTIVE_FILE,
    NR_ZONE_ACTIVE_FILE,
    NR_ZONE_UNEVICTABLE,
    NR_ZONE_WRITE_PENDING,
    NR_MLOCK,
    NR_BOUNCE,
    NR_FREE_CMA_PAGES,
) = range(10)
NR_VM_ZONE_STAT_ITEMS = 10

# enum numa_stat_item
NUMA_HIT, NUMA_MISS, NUMA_FOREIGN, NUMA_INTERLEAVE_HIT, NUMA_LOCAL, NUMA_OTHER = range(6)
NR_VM_NUMA_EVENT_ITEMS = 6

# enum node_stat_item
(
    NR_INACTIVE_ANON,
    NR_ACTIVE_ANON,
    NR_INACTIVE_FILE,
    NR_ACTIVE_FILE,
    NR_UNEVICTABLE,
    NR_SLAB_RECLAIMABLE_B,
    NR_SLAB_UNRECLAIMABLE_B,
    NR_ISOLATED_ANON,
    NR_ISOLATED_FILE,
    WORKINGSET_NODES,
    WORKINGSET_REFAULT_ANON,
    WORKINGSET_REFAULT_FILE,
    WORKINGSET_ACTIVATE_ANON,
    WORKINGSET_ACTIVATE_FILE,
    WORKINGSET_RESTORE_ANON,
    WORKINGSET_RESTORE_FILE,
    WORKINGSET_NODERECLAIM,
    NR_ANON_MAPPED,
    NR_FILE_MAPPED,
    NR_FILE_PAGES,
    NR_FILE_DIRTY,
    NR_WRITEBACK,
    NR_WRITEBACK_TEMP,
    NR_SHMEM,
    NR_SHMEM_THPS,
    NR_SHMEM_PMDMAPPED,
    NR_FILE_THPS,
    NR_FILE_PMDMAPPED,
    NR_ANON_THPS,
    NR_VMSCAN_WRITE,
    NR_VMSCAN_IMMEDIATE,
    NR_DIRTIED,
    NR_WRITTEN,
    NR_THROTTLED_WRITTEN,
    NR_KERNEL_MISC_RECLAIMABLE,
    NR_FOLL_PIN_ACQUIRED,
    NR_FOLL_PIN_RELEASED,
    NR_KERNEL_STACK_KB,
    NR_PAGETABLE,
    NR_SECONDARY_PAGETABLE,
    NR_SWAPCACHE,
    PGPROMOTE_SUCCESS,
    PGPROMOTE_CANDIDATE,
) = range(43)
NR_VM_NODE_STAT_ITEMS = 43

# enum vm_event_item
PGPGIN, PGPGOUT, PSWPIN, PSWPOUT = range(4)
PGALLOC = 4  # + the zone's position within its node
ALLOCSTALL = 8
PGSCAN_SKIP = 12
(
    PGFREE,
    PGACTIVATE,
    PGDEACTIVATE,
    PGLAZYFREE,
    PGFAULT,
    PGMAJFAULT,
    PGLAZYFREED,
    PGREFILL,
    PGREUSE,
    PGSTEAL_KSWAPD,
    PGSTEAL_DIRECT,
    PGDEMOTE_KSWAPD,
    PGDEMOTE_DIRECT,
    PGSCAN_KSWAPD,
    PGSCAN_DIRECT,
    PGSCAN_DIRECT_THROTTLE,
    PGSCAN_ANON,
    PGSCAN_FILE,
    PGSTEAL_ANON,
    PGSTEAL_FILE,
    PGSCAN_ZONE_RECLAIM_FAILED,
    PGINODESTEAL,
    SLABS_SCANNED,
    KSWAPD_INODESTEAL,
    KSWAPD_LOW_WMARK_HIT_QUICKLY,
    KSWAPD_HIGH_WMARK_HIT_QUICKLY,
    PAGEOUTRUN,
    PGROTATED,
    DROP_PAGECACHE,
    DROP_SLAB,
    OOM_KILL,
    NUMA_PTE_UPDATES,
    NUMA_HUGE_PTE_UPDATES,
    NUMA_HINT_FAULTS,
    NUMA_HINT_FAULTS_LOCAL,
    NUMA_PAGE_MIGRATE,
    PGMIGRATE_SUCCESS,
    PGMIGRATE_FAIL,
    THP_MIGRATION_SUCCESS,
    THP_MIGRATION_FAIL,
    THP_MIGRATION_SPLIT,
    COMPACTMIGRATE_SCANNED,
    COMPACTFREE_SCANNED,
    COMPACTISOLATED,
    COMPACTSTALL,
    COMPACTFAIL,
    COMPACTSUCCESS,
    KCOMPACTD_WAKE,
    KCOMPACTD_MIGRATE_SCANNED,
    KCOMPACTD_FREE_SCANNED,
    HTLB_BUDDY_PGALLOC,
    HTLB_BUDDY_PGALLOC_FAIL,
    CMA_ALLOC_SUCCESS,
    CMA_ALLOC_FAIL,
    UNEVICTABLE_PGCULLED,
    UNEVICTABLE_PGSCANNED,
    UNEVICTABLE_PGRESCUED,
    UNEVICTABLE_PGMLOCKED,
    UNEVICTABLE_PGMUNLOCKED,
    UNEVICTABLE_PGCLEARED,
    UNEVICTABLE_PGSTRANDED,
    THP_FAULT_ALLOC,
    THP_FAULT_FALLBACK,
    THP_FAULT_FALLBACK_CHARGE,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
    THP_FILE_ALLOC,
    THP_FILE_FALLBACK,
    THP_FILE_FALLBACK_CHARGE,
    THP_FILE_MAPPED,
    THP_SPLIT_PAGE,
    THP_SPLIT_PAGE_FAILED,
    THP_DEFERRED_SPLIT_PAGE,
    THP_SPLIT_PMD,
    THP_SCAN_EXCEED_NONE_PTE,
    THP_SCAN_EXCEED_SWAP_PTE,
    THP_SCAN_EXCEED_SHARED_PTE,
    THP_SPLIT_PUD,
    THP_ZERO_PAGE_ALLOC,
    THP_ZERO_PAGE_ALLOC_FAILED,
    THP_SWPOUT,
    THP_SWPOUT_FALLBACK,
    SWAP_RA,
    SWAP_RA_HIT,
    KSM_SWPIN_COPY,
    COW_KSM,
    ZSWPIN,
    ZSWPOUT,
    DIRECT_MAP_LEVEL2_SPLIT,
    DIRECT_MAP_LEVEL3_SPLIT,
) = range(16, 106)
NR_VM_EVENT_ITEMS = 106


def _words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# The names that /proc/vmstat and zoneinfo show (mm/vmstat.c ``vmstat_text``).
ZONE_STAT_NAMES = _words(
    "nr_free_pages nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file nr_zone_active_file "
    "nr_zone_unevictable nr_zone_write_pending nr_mlock nr_bounce nr_free_cma"
)
NUMA_STAT_NAMES = _words("numa_hit numa_miss numa_foreign numa_interleave numa_local numa_other")
NODE_STAT_NAMES = _words(
    "nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable "
    "nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon "
    "workingset_refault_file workingset_activate_anon workingset_activate_file workingset_restore_anon "
    "workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty "
    "nr_writeback nr_writeback_temp nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages "
    "nr_file_pmdmapped nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied "
    "nr_written nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired nr_foll_pin_released "
    "nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages nr_swapcached pgpromote_success "
    "pgpromote_candidate"
)
ZONED_EVENT_NAMES = ("pgalloc", "allocstall", "pgskip")
EVENT_NAMES_BEFORE_ZONED = ("pgpgin", "pgpgout", "pswpin", "pswpout")
EVENT_NAMES_AFTER_ZONED = _words(
    "pgfree pgactivate pgdeactivate pglazyfree pgfault pgmajfault pglazyfreed pgrefill pgreuse "
    "pgsteal_kswapd pgsteal_direct pgdemote_kswapd pgdemote_direct pgscan_kswapd pgscan_direct "
    "pgscan_direct_throttle pgscan_anon pgscan_file pgsteal_anon pgsteal_file zone_reclaim_failed "
    "pginodesteal slabs_scanned kswapd_inodesteal kswapd_low_wmark_hit_quickly "
    "kswapd_high_wmark_hit_quickly pageoutrun pgrotated drop_pagecache drop_slab oom_kill "
    "numa_pte_updates numa_huge_pte_updates numa_hint_faults numa_hint_faults_local numa_pages_migrated "
    "pgmigrate_success pgmigrate_fail thp_migration_success thp_migration_fail thp_migration_split "
    "compact_migrate_scanned compact_free_scanned compact_isolated compact_stall compact_fail "
    "compact_success compact_daemon_wake compact_daemon_migrate_scanned compact_daemon_free_scanned "
    "htlb_buddy_alloc_success htlb_buddy_alloc_fail cma_alloc_success cma_alloc_fail "
    "unevictable_pgs_culled unevictable_pgs_scanned unevictable_pgs_rescued unevictable_pgs_mlocked "
    "unevictable_pgs_munlocked unevictable_pgs_cleared unevictable_pgs_stranded thp_fault_alloc "
    "thp_fault_fallback thp_fault_fallback_charge thp_collapse_alloc thp_collapse_alloc_failed "
    "thp_file_alloc thp_file_fallback thp_file_fallback_charge thp_file_mapped thp_split_page "
    "thp_split_page_failed thp_deferred_split_page thp_split_pmd thp_scan_exceed_none_pte "
    "thp_scan_exceed_swap_pte thp_scan_exceed_share_pte thp_split_pud thp_zero_page_alloc "
    "thp_zero_page_alloc_failed thp_swpout thp_swpout_fallback swap_ra swap_ra_hit ksm_swpin_copy cow_ksm "
    "zswpin zswpout direct_map_level2_splits direct_map_level3_splits"
)
