"""Compaction and migration (include/trace/events/compaction.h, migrate.h, page_isolation.h)."""

from kmemd.debug.trace_format import Event

EVENTS = (
    Event(
        "compaction",
        "mm_compaction_kcompactd_wake",
        245,
        "int nid; int order; enum zone_type highest_zoneidx",
        '"nid=%d order=%d classzone_idx=%-8s", REC->nid, REC->order, __print_symbolic(REC->highest_zoneidx, '
        "$ZONE_TYPES)",
    ),
    Event(
        "compaction",
        "mm_compaction_wakeup_kcompactd",
        246,
        "int nid; int order; enum zone_type highest_zoneidx",
        '"nid=%d order=%d classzone_idx=%-8s", REC->nid, REC->order, __print_symbolic(REC->highest_zoneidx, '
        "$ZONE_TYPES)",
    ),
    Event(
        "compaction",
        "mm_compaction_kcompactd_sleep",
        247,
        "int nid",
        '"nid=%d", REC->nid',
    ),
    Event(
        "compaction",
        "mm_compaction_defer_reset",
        248,
        "int nid; enum zone_type idx; int order; unsigned int considered; unsigned int defer_shift; int order_failed",
        '"node=%d zone=%-8s order=%d order_failed=%d consider=%u limit=%lu", REC->nid, __print_symbolic(REC->idx, '
        "$ZONE_TYPES), REC->order, REC->order_failed, REC->considered, 1UL << REC->defer_shift",
    ),
    Event(
        "compaction",
        "mm_compaction_defer_compaction",
        249,
        "int nid; enum zone_type idx; int order; unsigned int considered; unsigned int defer_shift; int order_failed",
        '"node=%d zone=%-8s order=%d order_failed=%d consider=%u limit=%lu", REC->nid, __print_symbolic(REC->idx, '
        "$ZONE_TYPES), REC->order, REC->order_failed, REC->considered, 1UL << REC->defer_shift",
    ),
    Event(
        "compaction",
        "mm_compaction_deferred",
        250,
        "int nid; enum zone_type idx; int order; unsigned int considered; unsigned int defer_shift; int order_failed",
        '"node=%d zone=%-8s order=%d order_failed=%d consider=%u limit=%lu", REC->nid, __print_symbolic(REC->idx, '
        "$ZONE_TYPES), REC->order, REC->order_failed, REC->considered, 1UL << REC->defer_shift",
    ),
    Event(
        "compaction",
        "mm_compaction_suitable",
        251,
        "int nid; enum zone_type idx; int order; int ret",
        '"node=%d zone=%-8s order=%d ret=%s", REC->nid, __print_symbolic(REC->idx, $ZONE_TYPES), REC->order, '
        "__print_symbolic(REC->ret, $COMPACT_RESULTS)",
    ),
    Event(
        "compaction",
        "mm_compaction_finished",
        252,
        "int nid; enum zone_type idx; int order; int ret",
        '"node=%d zone=%-8s order=%d ret=%s", REC->nid, __print_symbolic(REC->idx, $ZONE_TYPES), REC->order, '
        "__print_symbolic(REC->ret, $COMPACT_RESULTS)",
    ),
    Event(
        "compaction",
        "mm_compaction_try_to_compact_pages",
        253,
        "int order; unsigned long gfp_mask; int prio",
        '"order=%d gfp_mask=%s priority=%d", REC->order, (REC->gfp_mask) ? __print_flags(REC->gfp_mask, "|", '
        '$GFP_FLAGS ) : "none", REC->prio',
    ),
    Event(
        "compaction",
        "mm_compaction_end",
        254,
        "unsigned long zone_start; unsigned long migrate_pfn; unsigned long free_pfn; unsigned long zone_end; "
        "bool sync; int status",
        '"zone_start=0x%lx migrate_pfn=0x%lx free_pfn=0x%lx zone_end=0x%lx, mode=%s status=%s", REC->zone_start, '
        'REC->migrate_pfn, REC->free_pfn, REC->zone_end, REC->sync ? "sync" : "async", '
        "__print_symbolic(REC->status, $COMPACT_RESULTS)",
    ),
    Event(
        "compaction",
        "mm_compaction_begin",
        255,
        "unsigned long zone_start; unsigned long migrate_pfn; unsigned long free_pfn; unsigned long zone_end; "
        "bool sync",
        '"zone_start=0x%lx migrate_pfn=0x%lx free_pfn=0x%lx zone_end=0x%lx, mode=%s", REC->zone_start, '
        'REC->migrate_pfn, REC->free_pfn, REC->zone_end, REC->sync ? "sync" : "async"',
    ),
    Event(
        "compaction",
        "mm_compaction_migratepages",
        256,
        "unsigned long nr_migrated; unsigned long nr_failed",
        '"nr_migrated=%lu nr_failed=%lu", REC->nr_migrated, REC->nr_failed',
    ),
    Event(
        "compaction",
        "mm_compaction_isolate_freepages",
        257,
        "unsigned long start_pfn; unsigned long end_pfn; unsigned long nr_scanned; unsigned long nr_taken",
        '"range=(0x%lx ~ 0x%lx) nr_scanned=%lu nr_taken=%lu", REC->start_pfn, REC->end_pfn, REC->nr_scanned, '
        "REC->nr_taken",
    ),
    Event(
        "compaction",
        "mm_compaction_isolate_migratepages",
        258,
        "unsigned long start_pfn; unsigned long end_pfn; unsigned long nr_scanned; unsigned long nr_taken",
        '"range=(0x%lx ~ 0x%lx) nr_scanned=%lu nr_taken=%lu", REC->start_pfn, REC->end_pfn, REC->nr_scanned, '
        "REC->nr_taken",
    ),
    Event(
        "migrate",
        "remove_migration_pte",
        266,
        "unsigned long addr; unsigned long pte; int order",
        '"addr=%lx, pte=%lx order=%d", REC->addr, REC->pte, REC->order',
    ),
    Event(
        "migrate",
        "set_migration_pte",
        267,
        "unsigned long addr; unsigned long pte; int order",
        '"addr=%lx, pte=%lx order=%d", REC->addr, REC->pte, REC->order',
    ),
    Event(
        "migrate",
        "mm_migrate_pages_start",
        268,
        "enum migrate_mode mode; int reason",
        '"mode=%s reason=%s", __print_symbolic(REC->mode, $MIGRATE_MODES), __print_symbolic(REC->reason, '
        "$MIGRATE_REASONS)",
    ),
    Event(
        "migrate",
        "mm_migrate_pages",
        269,
        "unsigned long succeeded; unsigned long failed; unsigned long thp_succeeded; unsigned long thp_failed; "
        "unsigned long thp_split; enum migrate_mode mode; int reason",
        '"nr_succeeded=%lu nr_failed=%lu nr_thp_succeeded=%lu nr_thp_failed=%lu nr_thp_split=%lu mode=%s '
        'reason=%s", REC->succeeded, REC->failed, REC->thp_succeeded, REC->thp_failed, REC->thp_split, '
        "__print_symbolic(REC->mode, $MIGRATE_MODES), __print_symbolic(REC->reason, $MIGRATE_REASONS)",
    ),
    Event(
        "page_isolation",
        "test_pages_isolated",
        280,
        "unsigned long start_pfn; unsigned long end_pfn; unsigned long fin_pfn",
        '"start_pfn=0x%lx end_pfn=0x%lx fin_pfn=0x%lx ret=%s", REC->start_pfn, REC->end_pfn, REC->fin_pfn, '
        'REC->end_pfn <= REC->fin_pfn ? "success" : "fail"',
    ),
)
