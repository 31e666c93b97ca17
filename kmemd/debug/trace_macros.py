"""Values and their names in ``__print_flags`` and ``__print_symbolic``, as the format files spell them."""

MACROS = {
    "GFP_FLAGS": (
        "{( unsigned long)(((((((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u) | (( "
        "gfp_t)0x100000u)) | (( gfp_t)0x02u)) | (( gfp_t)0x08u) | (( gfp_t)0) | (( gfp_t)0)) | (( "
        "gfp_t)0x40000u) | (( gfp_t)0x80000u) | (( gfp_t)0x2000u)) & ~(( gfp_t)(0x400u|0x800u))) | (( "
        'gfp_t)0x400u)), "GFP_TRANSHUGE"}, {( unsigned long)((((((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) '
        "| (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)) | (( gfp_t)0x08u) | (( gfp_t)0) | (( "
        "gfp_t)0)) | (( gfp_t)0x40000u) | (( gfp_t)0x80000u) | (( gfp_t)0x2000u)) & ~(( "
        'gfp_t)(0x400u|0x800u))), "GFP_TRANSHUGE_LIGHT"}, {( unsigned long)((((( gfp_t)(0x400u|0x800u)) | (( '
        "gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)) | (( gfp_t)0x08u) | (( "
        'gfp_t)0) | (( gfp_t)0)), "GFP_HIGHUSER_MOVABLE"}, {( unsigned long)(((( gfp_t)(0x400u|0x800u)) | (( '
        'gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)), "GFP_HIGHUSER"}, {( '
        "unsigned long)((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)), "
        '"GFP_USER"}, {( unsigned long)(((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u)) | (( '
        'gfp_t)0x400000u)), "GFP_KERNEL_ACCOUNT"}, {( unsigned long)((( gfp_t)(0x400u|0x800u)) | (( '
        'gfp_t)0x40u) | (( gfp_t)0x80u)), "GFP_KERNEL"}, {( unsigned long)((( gfp_t)(0x400u|0x800u)) | (( '
        'gfp_t)0x40u)), "GFP_NOFS"}, {( unsigned long)((( gfp_t)0x20u)|(( gfp_t)0x200u)|(( gfp_t)0x800u)), '
        '"GFP_ATOMIC"}, {( unsigned long)((( gfp_t)(0x400u|0x800u))), "GFP_NOIO"}, {( unsigned long)((( '
        'gfp_t)0x800u)), "GFP_NOWAIT"}, {( unsigned long)(( gfp_t)0x01u), "GFP_DMA"}, {( unsigned long)(( '
        'gfp_t)0x02u), "__GFP_HIGHMEM"}, {( unsigned long)(( gfp_t)0x04u), "GFP_DMA32"}, {( unsigned long)(( '
        'gfp_t)0x20u), "__GFP_HIGH"}, {( unsigned long)(( gfp_t)0x200u), "__GFP_ATOMIC"}, {( unsigned long)(( '
        'gfp_t)0x40u), "__GFP_IO"}, {( unsigned long)(( gfp_t)0x80u), "__GFP_FS"}, {( unsigned long)(( '
        'gfp_t)0x2000u), "__GFP_NOWARN"}, {( unsigned long)(( gfp_t)0x4000u), "__GFP_RETRY_MAYFAIL"}, {( '
        'unsigned long)(( gfp_t)0x8000u), "__GFP_NOFAIL"}, {( unsigned long)(( gfp_t)0x10000u), '
        '"__GFP_NORETRY"}, {( unsigned long)(( gfp_t)0x40000u), "__GFP_COMP"}, {( unsigned long)(( '
        'gfp_t)0x100u), "__GFP_ZERO"}, {( unsigned long)(( gfp_t)0x80000u), "__GFP_NOMEMALLOC"}, {( unsigned '
        'long)(( gfp_t)0x20000u), "__GFP_MEMALLOC"}, {( unsigned long)(( gfp_t)0x100000u), "__GFP_HARDWALL"}, '
        '{( unsigned long)(( gfp_t)0x200000u), "__GFP_THISNODE"}, {( unsigned long)(( gfp_t)0x10u), '
        '"__GFP_RECLAIMABLE"}, {( unsigned long)(( gfp_t)0x08u), "__GFP_MOVABLE"}, {( unsigned long)(( '
        'gfp_t)0x400000u), "__GFP_ACCOUNT"}, {( unsigned long)(( gfp_t)0x1000u), "__GFP_WRITE"}, {( unsigned '
        'long)(( gfp_t)(0x400u|0x800u)), "__GFP_RECLAIM"}, {( unsigned long)(( gfp_t)0x400u), '
        '"__GFP_DIRECT_RECLAIM"}, {( unsigned long)(( gfp_t)0x800u), "__GFP_KSWAPD_RECLAIM"}, {( unsigned '
        'long)(( gfp_t)0x800000u), "__GFP_ZEROTAGS"}'
    ),
    "INODE_STATES": (
        '{(1 << 0), "I_DIRTY_SYNC"}, {(1 << 1), "I_DIRTY_DATASYNC"}, {(1 << 2), "I_DIRTY_PAGES"}, {(1 << 3), '
        '"I_NEW"}, {(1 << 4), "I_WILL_FREE"}, {(1 << 5), "I_FREEING"}, {(1 << 6), "I_CLEAR"}, {(1 << 7), '
        '"I_SYNC"}, {(1 << 11), "I_DIRTY_TIME"}, {(1 << 8), "I_REFERENCED"}'
    ),
    "ZONE_TYPES": ('{0, "DMA"}, {1, "DMA32"}, {2, "Normal"}, {3, "Movable"}'),
    "WB_REASONS": (
        '{ 0, "background" }, { 1, "vmscan" }, { 2, "sync" }, { 3, "periodic" }, { 4, "laptop_timer" }, { 5, '
        '"fs_free_space" }, { 6, "forker_thread" }, { 7, "foreign_flush" }'
    ),
    "SCAN_STATUS": (
        '{0, "failed"}, {1, "succeeded"}, {2, "pmd_null"}, {3, "pmd_none"}, {4, "page_pmd_mapped"}, {5, '
        '"exceed_none_pte"}, {6, "exceed_swap_pte"}, {7, "exceed_shared_pte"}, {8, "pte_non_present"}, {9, '
        '"pte_uffd_wp"}, {10, "pte_mapped_hugepage"}, {11, "no_writable_page"}, {12, "lack_referenced_page"}, '
        '{13, "page_null"}, {14, "scan_aborted"}, {15, "not_suitable_page_count"}, {16, "page_not_in_lru"}, '
        '{17, "page_locked"}, {18, "page_not_anon"}, {19, "page_compound"}, {20, "no_process_for_page"}, {21, '
        '"vma_null"}, {22, "vma_check_failed"}, {23, "not_suitable_address_range"}, {24, '
        '"could_not_delete_page_from_lru"}, {25, "alloc_huge_page_failed"}, {26, "ccgroup_charge_failed"}, '
        '{27, "truncated"}, {28, "page_has_private"}, {29, "store_failed"}'
    ),
    "COMPACT_RESULTS": (
        '{1, "skipped"}, {2, "deferred"}, {4, "continue"}, {8, "success"}, {6, "partial_skipped"}, {5, '
        '"complete"}, {3, "no_suitable_page"}, {0, "not_suitable_zone"}, {7, "contended"}'
    ),
    "RECLAIM_FLAGS": (
        '{0x0001u, "RECLAIM_WB_ANON"}, {0x0002u, "RECLAIM_WB_FILE"}, {0x0010u, "RECLAIM_WB_MIXED"}, {0x0004u, '
        '"RECLAIM_WB_SYNC"}, {0x0008u, "RECLAIM_WB_ASYNC"}'
    ),
    "MIGRATE_MODES": ('{0, "MIGRATE_ASYNC"}, {1, "MIGRATE_SYNC_LIGHT"}, {2, "MIGRATE_SYNC"}'),
    "MIGRATE_REASONS": (
        '{0, "compaction"}, {1, "memory_failure"}, {2, "memory_hotplug"}, {3, "syscall_or_cpuset"}, {4, '
        '"mempolicy_mbind"}, {5, "numa_misplaced"}, {6, "contig_range"}, {7, "longterm_pin"}, {8, "demotion"}'
    ),
}
