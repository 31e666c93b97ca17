"""Reclaim and the OOM killer (include/trace/events/vmscan.h, oom.h)."""

from kmemd.debug.trace_format import Event

EVENTS = (
    Event(
        "vmscan",
        "mm_vmscan_throttled",
        211,
        "int nid; int usec_timeout; int usec_delayed; int reason",
        '"nid=%d usec_timeout=%d usect_delayed=%d reason=%s", REC->nid, REC->usec_timeout, REC->usec_delayed, '
        '(REC->reason) ? __print_flags(REC->reason, "|", {(1 << VMSCAN_THROTTLE_WRITEBACK), '
        '"VMSCAN_THROTTLE_WRITEBACK"}, {(1 << VMSCAN_THROTTLE_ISOLATED), "VMSCAN_THROTTLE_ISOLATED"}, {(1 << '
        'VMSCAN_THROTTLE_NOPROGRESS), "VMSCAN_THROTTLE_NOPROGRESS"}, {(1 << VMSCAN_THROTTLE_CONGESTED), '
        '"VMSCAN_THROTTLE_CONGESTED"} ) : "VMSCAN_THROTTLE_NONE"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_node_reclaim_end",
        212,
        "unsigned long nr_reclaimed",
        '"nr_reclaimed=%lu", REC->nr_reclaimed',
    ),
    Event(
        "vmscan",
        "mm_vmscan_node_reclaim_begin",
        213,
        "int nid; int order; unsigned long gfp_flags",
        '"nid=%d order=%d gfp_flags=%s", REC->nid, REC->order, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, '
        '"|", $GFP_FLAGS ) : "none"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_lru_shrink_active",
        214,
        "int nid; unsigned long nr_taken; unsigned long nr_active; unsigned long nr_deactivated; unsigned long "
        "nr_referenced; int priority; int reclaim_flags",
        '"nid=%d nr_taken=%ld nr_active=%ld nr_deactivated=%ld nr_referenced=%ld priority=%d flags=%s", REC->nid, '
        "REC->nr_taken, REC->nr_active, REC->nr_deactivated, REC->nr_referenced, REC->priority, "
        '(REC->reclaim_flags) ? __print_flags(REC->reclaim_flags, "|", $RECLAIM_FLAGS ) : "RECLAIM_WB_NONE"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_lru_shrink_inactive",
        215,
        "int nid; unsigned long nr_scanned; unsigned long nr_reclaimed; unsigned long nr_dirty; unsigned long "
        "nr_writeback; unsigned long nr_congested; unsigned long nr_immediate; unsigned int nr_activate0; "
        "unsigned int nr_activate1; unsigned long nr_ref_keep; unsigned long nr_unmap_fail; int priority; int "
        "reclaim_flags",
        '"nid=%d nr_scanned=%ld nr_reclaimed=%ld nr_dirty=%ld nr_writeback=%ld nr_congested=%ld nr_immediate=%ld '
        'nr_activate_anon=%d nr_activate_file=%d nr_ref_keep=%ld nr_unmap_fail=%ld priority=%d flags=%s", '
        "REC->nid, REC->nr_scanned, REC->nr_reclaimed, REC->nr_dirty, REC->nr_writeback, REC->nr_congested, "
        "REC->nr_immediate, REC->nr_activate0, REC->nr_activate1, REC->nr_ref_keep, REC->nr_unmap_fail, "
        'REC->priority, (REC->reclaim_flags) ? __print_flags(REC->reclaim_flags, "|", $RECLAIM_FLAGS ) : '
        '"RECLAIM_WB_NONE"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_write_folio",
        216,
        "unsigned long pfn; int reclaim_flags",
        '"page=%p pfn=0x%lx flags=%s", (((struct page *)vmemmap_base) + (REC->pfn)), REC->pfn, '
        '(REC->reclaim_flags) ? __print_flags(REC->reclaim_flags, "|", $RECLAIM_FLAGS ) : "RECLAIM_WB_NONE"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_lru_isolate",
        217,
        "int highest_zoneidx; int order; unsigned long nr_requested; unsigned long nr_scanned; unsigned long "
        "nr_skipped; unsigned long nr_taken; unsigned int isolate_mode; int lru",
        '"isolate_mode=%d classzone=%d order=%d nr_requested=%lu nr_scanned=%lu nr_skipped=%lu nr_taken=%lu '
        'lru=%s", REC->isolate_mode, REC->highest_zoneidx, REC->order, REC->nr_requested, REC->nr_scanned, '
        'REC->nr_skipped, REC->nr_taken, __print_symbolic(REC->lru, {0, "inactive_anon"}, {1, "active_anon"}, {2, '
        '"inactive_file"}, {3, "active_file"}, {4, "unevictable"})',
    ),
    Event(
        "vmscan",
        "mm_shrink_slab_end",
        218,
        "struct shrinker * shr; int nid; void * shrink; long unused_scan; long new_scan; int retval; long total_scan",
        '"%pS %p: nid: %d unused scan count %ld new scan count %ld total_scan %ld last shrinker return val %d", '
        "REC->shrink, REC->shr, REC->nid, REC->unused_scan, REC->new_scan, REC->total_scan, REC->retval",
    ),
    Event(
        "vmscan",
        "mm_shrink_slab_start",
        219,
        "struct shrinker * shr; void * shrink; int nid; long nr_objects_to_shrink; unsigned long gfp_flags; "
        "unsigned long cache_items; unsigned long long delta; unsigned long total_scan; int priority",
        '"%pS %p: nid: %d objects to shrink %ld gfp_flags %s cache items %ld delta %lld total_scan %ld priority '
        '%d", REC->shrink, REC->shr, REC->nid, REC->nr_objects_to_shrink, (REC->gfp_flags) ? '
        '__print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) : "none", REC->cache_items, REC->delta, REC->total_scan, '
        "REC->priority",
    ),
    Event(
        "vmscan",
        "mm_vmscan_memcg_softlimit_reclaim_end",
        220,
        "unsigned long nr_reclaimed",
        '"nr_reclaimed=%lu", REC->nr_reclaimed',
    ),
    Event(
        "vmscan",
        "mm_vmscan_memcg_reclaim_end",
        221,
        "unsigned long nr_reclaimed",
        '"nr_reclaimed=%lu", REC->nr_reclaimed',
    ),
    Event(
        "vmscan",
        "mm_vmscan_direct_reclaim_end",
        222,
        "unsigned long nr_reclaimed",
        '"nr_reclaimed=%lu", REC->nr_reclaimed',
    ),
    Event(
        "vmscan",
        "mm_vmscan_memcg_softlimit_reclaim_begin",
        223,
        "int order; unsigned long gfp_flags",
        '"order=%d gfp_flags=%s", REC->order, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) '
        ': "none"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_memcg_reclaim_begin",
        224,
        "int order; unsigned long gfp_flags",
        '"order=%d gfp_flags=%s", REC->order, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) '
        ': "none"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_direct_reclaim_begin",
        225,
        "int order; unsigned long gfp_flags",
        '"order=%d gfp_flags=%s", REC->order, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) '
        ': "none"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_wakeup_kswapd",
        226,
        "int nid; int zid; int order; unsigned long gfp_flags",
        '"nid=%d order=%d gfp_flags=%s", REC->nid, REC->order, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, '
        '"|", $GFP_FLAGS ) : "none"',
    ),
    Event(
        "vmscan",
        "mm_vmscan_kswapd_wake",
        227,
        "int nid; int zid; int order",
        '"nid=%d order=%d", REC->nid, REC->order',
    ),
    Event(
        "vmscan",
        "mm_vmscan_kswapd_sleep",
        228,
        "int nid",
        '"nid=%d", REC->nid',
    ),
    Event(
        "oom",
        "compact_retry",
        201,
        "int order; int priority; int result; int retries; int max_retries; bool ret",
        '"order=%d priority=%s compaction_result=%s retries=%d max_retries=%d should_retry=%d", REC->order, '
        '__print_symbolic(REC->priority, {0, "COMPACT_PRIO_SYNC_FULL"}, {1, "COMPACT_PRIO_SYNC_LIGHT"}, {2, '
        '"COMPACT_PRIO_ASYNC"}), __print_symbolic(REC->result, {1, "failed"}, {2, "withdrawn"}, {3, "progress"}), '
        "REC->retries, REC->max_retries, REC->ret",
    ),
    Event(
        "oom",
        "skip_task_reaping",
        202,
        "int pid",
        '"pid=%d", REC->pid',
    ),
    Event(
        "oom",
        "finish_task_reaping",
        203,
        "int pid",
        '"pid=%d", REC->pid',
    ),
    Event(
        "oom",
        "start_task_reaping",
        204,
        "int pid",
        '"pid=%d", REC->pid',
    ),
    Event(
        "oom",
        "wake_reaper",
        205,
        "int pid",
        '"pid=%d", REC->pid',
    ),
    Event(
        "oom",
        "mark_victim",
        206,
        "int pid; __data_loc char[] comm; unsigned long total_vm; unsigned long anon_rss; unsigned long file_rss; "
        "unsigned long shmem_rss; uid_t uid; unsigned long pgtables; short oom_score_adj",
        '"pid=%d comm=%s total-vm=%lukB anon-rss=%lukB file-rss:%lukB shmem-rss:%lukB uid=%u pgtables=%lukB '
        'oom_score_adj=%hd", REC->pid, __get_str(comm), REC->total_vm, REC->anon_rss, REC->file_rss, '
        "REC->shmem_rss, REC->uid, REC->pgtables, REC->oom_score_adj",
    ),
    Event(
        "oom",
        "reclaim_retry_zone",
        207,
        "int node; int zone_idx; int order; unsigned long reclaimable; unsigned long available; unsigned long "
        "min_wmark; int no_progress_loops; bool wmark_check",
        '"node=%d zone=%-8s order=%d reclaimable=%lu available=%lu min_wmark=%lu no_progress_loops=%d '
        'wmark_check=%d", REC->node, __print_symbolic(REC->zone_idx, $ZONE_TYPES), REC->order, REC->reclaimable, '
        "REC->available, REC->min_wmark, REC->no_progress_loops, REC->wmark_check",
    ),
    Event(
        "oom",
        "oom_score_adj_update",
        208,
        "pid_t pid; char comm[16]; short oom_score_adj",
        '"pid=%d comm=%s oom_score_adj=%hd", REC->pid, REC->comm, REC->oom_score_adj',
    ),
)
