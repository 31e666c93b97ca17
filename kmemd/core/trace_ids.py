"""Numbers of the trace events, which the emitting code and ``debug/trace_events`` share.

The first are those of the hot core, whose mask is one word (``TraceLog.control[MASK]``). The arguments of an event are
its fields in the order of its format file.
"""

NAMES = (
    "mm_page_alloc",
    "mm_page_free",
    "mm_page_free_batched",
    "mm_page_alloc_zone_locked",
    "mm_page_pcpu_drain",
    "mm_page_alloc_extfrag",
    "kmalloc",
    "kmem_cache_alloc",
    "kfree",
    "kmem_cache_free",
    "page_fault_kernel",
    "page_fault_user",
    "file_check_and_advance_wb_err",
    "filemap_set_wb_err",
    "mm_filemap_add_to_page_cache",
    "mm_filemap_delete_from_page_cache",
    "compact_retry",
    "skip_task_reaping",
    "finish_task_reaping",
    "start_task_reaping",
    "wake_reaper",
    "mark_victim",
    "reclaim_retry_zone",
    "oom_score_adj_update",
    "mm_lru_activate",
    "mm_lru_insertion",
    "mm_vmscan_throttled",
    "mm_vmscan_node_reclaim_end",
    "mm_vmscan_node_reclaim_begin",
    "mm_vmscan_lru_shrink_active",
    "mm_vmscan_lru_shrink_inactive",
    "mm_vmscan_write_folio",
    "mm_vmscan_lru_isolate",
    "mm_shrink_slab_end",
    "mm_shrink_slab_start",
    "mm_vmscan_memcg_softlimit_reclaim_end",
    "mm_vmscan_memcg_reclaim_end",
    "mm_vmscan_direct_reclaim_end",
    "mm_vmscan_memcg_softlimit_reclaim_begin",
    "mm_vmscan_memcg_reclaim_begin",
    "mm_vmscan_direct_reclaim_begin",
    "mm_vmscan_wakeup_kswapd",
    "mm_vmscan_kswapd_wake",
    "mm_vmscan_kswapd_sleep",
    "rss_stat",
    "mm_compaction_kcompactd_wake",
    "mm_compaction_wakeup_kcompactd",
    "mm_compaction_kcompactd_sleep",
    "mm_compaction_defer_reset",
    "mm_compaction_defer_compaction",
    "mm_compaction_deferred",
    "mm_compaction_suitable",
    "mm_compaction_finished",
    "mm_compaction_try_to_compact_pages",
    "mm_compaction_end",
    "mm_compaction_begin",
    "mm_compaction_migratepages",
    "mm_compaction_isolate_freepages",
    "mm_compaction_isolate_migratepages",
    "exit_mmap",
    "vma_store",
    "vma_mas_szero",
    "vm_unmapped_area",
    "remove_migration_pte",
    "set_migration_pte",
    "mm_migrate_pages_start",
    "mm_migrate_pages",
    "remove_migration_pmd",
    "set_migration_pmd",
    "hugepage_update",
    "hugepage_set_pmd",
    "mm_khugepaged_scan_file",
    "mm_collapse_huge_page_swapin",
    "mm_collapse_huge_page_isolate",
    "mm_collapse_huge_page",
    "mm_khugepaged_scan_pmd",
    "test_pages_isolated",
    "sb_clear_inode_writeback",
    "sb_mark_inode_writeback",
    "writeback_dirty_inode_enqueue",
    "writeback_lazytime_iput",
    "writeback_lazytime",
    "writeback_single_inode",
    "writeback_single_inode_start",
    "writeback_sb_inodes_requeue",
    "balance_dirty_pages",
    "bdi_dirty_ratelimit",
    "global_dirty_state",
    "writeback_queue_io",
    "wbc_writepage",
    "writeback_bdi_register",
    "writeback_wake_background",
    "writeback_pages_written",
    "writeback_wait",
    "writeback_written",
    "writeback_start",
    "writeback_exec",
    "writeback_queue",
    "writeback_write_inode",
    "writeback_write_inode_start",
    "writeback_dirty_inode",
    "writeback_dirty_inode_start",
    "writeback_mark_inode_dirty",
    "folio_wait_writeback",
    "writeback_dirty_folio",
)

MM_PAGE_ALLOC = 0
MM_PAGE_FREE = 1
MM_PAGE_FREE_BATCHED = 2
MM_PAGE_ALLOC_ZONE_LOCKED = 3
MM_PAGE_PCPU_DRAIN = 4
MM_PAGE_ALLOC_EXTFRAG = 5
KMALLOC = 6
KMEM_CACHE_ALLOC = 7
KFREE = 8
KMEM_CACHE_FREE = 9
PAGE_FAULT_KERNEL = 10
PAGE_FAULT_USER = 11
FILE_CHECK_AND_ADVANCE_WB_ERR = 12
FILEMAP_SET_WB_ERR = 13
MM_FILEMAP_ADD_TO_PAGE_CACHE = 14
MM_FILEMAP_DELETE_FROM_PAGE_CACHE = 15
COMPACT_RETRY = 16
SKIP_TASK_REAPING = 17
FINISH_TASK_REAPING = 18
START_TASK_REAPING = 19
WAKE_REAPER = 20
MARK_VICTIM = 21
RECLAIM_RETRY_ZONE = 22
OOM_SCORE_ADJ_UPDATE = 23
MM_LRU_ACTIVATE = 24
MM_LRU_INSERTION = 25
MM_VMSCAN_THROTTLED = 26
MM_VMSCAN_NODE_RECLAIM_END = 27
MM_VMSCAN_NODE_RECLAIM_BEGIN = 28
MM_VMSCAN_LRU_SHRINK_ACTIVE = 29
MM_VMSCAN_LRU_SHRINK_INACTIVE = 30
MM_VMSCAN_WRITE_FOLIO = 31
MM_VMSCAN_LRU_ISOLATE = 32
MM_SHRINK_SLAB_END = 33
MM_SHRINK_SLAB_START = 34
MM_VMSCAN_MEMCG_SOFTLIMIT_RECLAIM_END = 35
MM_VMSCAN_MEMCG_RECLAIM_END = 36
MM_VMSCAN_DIRECT_RECLAIM_END = 37
MM_VMSCAN_MEMCG_SOFTLIMIT_RECLAIM_BEGIN = 38
MM_VMSCAN_MEMCG_RECLAIM_BEGIN = 39
MM_VMSCAN_DIRECT_RECLAIM_BEGIN = 40
MM_VMSCAN_WAKEUP_KSWAPD = 41
MM_VMSCAN_KSWAPD_WAKE = 42
MM_VMSCAN_KSWAPD_SLEEP = 43
RSS_STAT = 44
MM_COMPACTION_KCOMPACTD_WAKE = 45
MM_COMPACTION_WAKEUP_KCOMPACTD = 46
MM_COMPACTION_KCOMPACTD_SLEEP = 47
MM_COMPACTION_DEFER_RESET = 48
MM_COMPACTION_DEFER_COMPACTION = 49
MM_COMPACTION_DEFERRED = 50
MM_COMPACTION_SUITABLE = 51
MM_COMPACTION_FINISHED = 52
MM_COMPACTION_TRY_TO_COMPACT_PAGES = 53
MM_COMPACTION_END = 54
MM_COMPACTION_BEGIN = 55
MM_COMPACTION_MIGRATEPAGES = 56
MM_COMPACTION_ISOLATE_FREEPAGES = 57
MM_COMPACTION_ISOLATE_MIGRATEPAGES = 58
EXIT_MMAP = 59
VMA_STORE = 60
VMA_MAS_SZERO = 61
VM_UNMAPPED_AREA = 62
REMOVE_MIGRATION_PTE = 63
SET_MIGRATION_PTE = 64
MM_MIGRATE_PAGES_START = 65
MM_MIGRATE_PAGES = 66
REMOVE_MIGRATION_PMD = 67
SET_MIGRATION_PMD = 68
HUGEPAGE_UPDATE = 69
HUGEPAGE_SET_PMD = 70
MM_KHUGEPAGED_SCAN_FILE = 71
MM_COLLAPSE_HUGE_PAGE_SWAPIN = 72
MM_COLLAPSE_HUGE_PAGE_ISOLATE = 73
MM_COLLAPSE_HUGE_PAGE = 74
MM_KHUGEPAGED_SCAN_PMD = 75
TEST_PAGES_ISOLATED = 76
SB_CLEAR_INODE_WRITEBACK = 77
SB_MARK_INODE_WRITEBACK = 78
WRITEBACK_DIRTY_INODE_ENQUEUE = 79
WRITEBACK_LAZYTIME_IPUT = 80
WRITEBACK_LAZYTIME = 81
WRITEBACK_SINGLE_INODE = 82
WRITEBACK_SINGLE_INODE_START = 83
WRITEBACK_SB_INODES_REQUEUE = 84
BALANCE_DIRTY_PAGES = 85
BDI_DIRTY_RATELIMIT = 86
GLOBAL_DIRTY_STATE = 87
WRITEBACK_QUEUE_IO = 88
WBC_WRITEPAGE = 89
WRITEBACK_BDI_REGISTER = 90
WRITEBACK_WAKE_BACKGROUND = 91
WRITEBACK_PAGES_WRITTEN = 92
WRITEBACK_WAIT = 93
WRITEBACK_WRITTEN = 94
WRITEBACK_START = 95
WRITEBACK_EXEC = 96
WRITEBACK_QUEUE = 97
WRITEBACK_WRITE_INODE = 98
WRITEBACK_WRITE_INODE_START = 99
WRITEBACK_DIRTY_INODE = 100
WRITEBACK_DIRTY_INODE_START = 101
WRITEBACK_MARK_INODE_DIRTY = 102
FOLIO_WAIT_WRITEBACK = 103
WRITEBACK_DIRTY_FOLIO = 104
