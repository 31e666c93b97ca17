"""Trace events whose fields take some work: made when the event is on (include/trace/events).

Each function is one emission point. Fields that the model has no number for are 0.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING, Any

import numpy as np

from kmemd.core import trace_ids as ev
from kmemd.mm.clock import HZ, NSEC_PER_SEC, NSEC_PER_USEC
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.core.trace import TraceLog
    from kmemd.mm.filemap import File
    from kmemd.mm.mm_types import Mm
    from kmemd.mm.mmzone import Zone

THROTTLE_WRITEBACK, THROTTLE_ISOLATED, THROTTLE_NOPROGRESS, THROTTLE_CONGESTED = range(4)
"""``enum vmscan_throttle_state``."""
WITHDRAWN = (1, 2, 7, 6)
"""Results of compaction that was not tried to its end (``compaction_withdrawn``); COMPLETE is failure."""
COMPLETE = 5
RECLAIM_WB_ANON, RECLAIM_WB_FILE, RECLAIM_WB_ASYNC = 0x01, 0x02, 0x08
MINORBITS = 20
SCAN_FUNCTIONS = {
    "sb-": "super_cache_scan",
    "mm-shadow": "scan_shadow_nodes",
    "thp-deferred_split": "deferred_split_scan",
    "thp-zero": "shrink_huge_zero_page_scan",
    "mm-zspool": "zs_shrinker_scan",
}
"""Beginnings of shrinkers' names, and what they call."""
JIFFY_NS = NSEC_PER_SEC // HZ


def dev(device: str) -> int:
    """A device number from "major:minor" in hexadecimal, as maps shows it."""
    major, _, minor = device.partition(":")
    try:
        return int(major, 16) << MINORBITS | int(minor or "0", 16)
    except ValueError:
        return 0


def bdi_name(wb: Any) -> str:
    """A disk's number, as write-back knows it (``bdi_dev_name``)."""
    return str(wb.disk.number) if wb is not None else "(unknown)"


def lru_isolate(trace: TraceLog, sc: Any, which: int, wanted: int, scanned: int, skipped: int, taken: int) -> None:
    """Pages were taken off an LRU list (mm_vmscan_lru_isolate)."""
    mode = 0 if sc.may_unmap else 2
    trace.emit(
        ev.MM_VMSCAN_LRU_ISOLATE, sc.reclaim_idx, sc.order, wanted, scanned + skipped, skipped, taken, mode, which
    )


def reclaim_flags(file: bool) -> int:
    """``trace_reclaim_flags``."""
    return (RECLAIM_WB_FILE if file else RECLAIM_WB_ANON) | RECLAIM_WB_ASYNC


def shrink_inactive(
    trace: TraceLog, nid: int, sc: Any, scanned: int, freed: int, before: Any, active: list[int], file: bool
) -> None:
    """A scan of an inactive list is over (mm_vmscan_lru_shrink_inactive); ``before`` are the counts at its start,
    ``active`` the pages that became active, anonymous and files'.
    """
    now = sc.nr
    trace.emit(
        ev.MM_VMSCAN_LRU_SHRINK_INACTIVE,
        nid,
        scanned,
        freed,
        now.dirty - before.dirty,
        now.writeback - before.writeback,
        now.congested - before.congested,
        now.immediate - before.immediate,
        *active,
        now.ref_keep - before.ref_keep,
        0,
        sc.priority,
        reclaim_flags(file),
    )


def scan_function(name: str) -> str:
    """The function behind a shrinker (``shrinker->scan_objects``)."""
    kind = next((kind for kind in SCAN_FUNCTIONS if name.startswith(kind)), "")
    return SCAN_FUNCTIONS.get(kind, name)


def shrink_slab_start(
    trace: TraceLog, name: str, nid: int, waiting: int, freeable: int, delta: int, total: int, priority: int
) -> None:
    """A shrinker begins (mm_shrink_slab_start)."""
    if trace.on(ev.MM_SHRINK_SLAB_START):
        where = trace.function(scan_function(name))
        trace.emit(ev.MM_SHRINK_SLAB_START, 0, where, nid, waiting, GFP_KERNEL, freeable, delta, total, priority)


def shrink_slab_end(trace: TraceLog, name: str, nid: int, freed: int, unused: int, left: int, total: int) -> None:
    """A shrinker has done its part (mm_shrink_slab_end)."""
    if trace.on(ev.MM_SHRINK_SLAB_END):
        trace.emit(ev.MM_SHRINK_SLAB_END, 0, nid, trace.function(scan_function(name)), unused, left, freed, total)


def compaction_zone(trace: TraceLog, event: int, zone: Zone, *rest: int) -> None:
    """An event of a zone: its node, its type, and what follows."""
    trace.emit(event, zone.nid, zone.index % 4, *rest)


def compaction_run(trace: TraceLog, event: int, zone: Zone, cc: Any, *status: int) -> None:
    """A run over a zone begins, or is over (mm_compaction_begin, mm_compaction_end)."""
    sync = cc.mode != 0
    trace.emit(event, zone.start_pfn, cc.migrate_pfn, cc.free_pfn, zone.end_pfn, sync, *status)


def page_cache(trace: TraceLog, event: int, file: File, indices: Any, pfns: Any) -> None:
    """Pages come into a file's cache, or go (mm_filemap_add_to_page_cache, …_delete_from_page_cache)."""
    if trace.on(event):
        device = dev(file.device)
        for index, pfn in zip(np.asarray(indices).tolist(), np.asarray(pfns).tolist(), strict=True):
            trace.emit(event, pfn, file.ino, index, device, 0)


def dirty_folios(trace: TraceLog, file: File, indices: Any) -> None:
    """Pages of a file became dirty (writeback_dirty_folio)."""
    if trace.on(ev.WRITEBACK_DIRTY_FOLIO):
        for index in np.asarray(indices).tolist():
            trace.emit(ev.WRITEBACK_DIRTY_FOLIO, bdi_name(file.wb), file.ino, index)


def mark_victim(trace: TraceLog, victim: Any, counters: Any, mm: Mm) -> None:
    """The OOM killer has chosen (mark_victim)."""
    if trace.on(ev.MARK_VICTIM):
        kb = PAGE_SIZE // 1024
        rss = [counters.counter(mm, kind) * kb for kind in (1, 0, 3)]
        trace.emit(
            ev.MARK_VICTIM,
            victim.pid,
            victim.comm,
            mm.total_vm * kb,
            *rss,
            getattr(victim, "uid", 0),
            counters.pgtables_bytes(mm) >> 10,
            victim.oom_score_adj,
        )


def unmapped_area(
    trace: TraceLog, found: int, mm: Mm, top_down: bool, length: int, low: int, high: int, align: int, offset: int
) -> None:
    """A place for a mapping was looked for (vm_unmapped_area); ``found`` is 0 where there is none."""
    if trace.on(ev.VM_UNMAPPED_AREA):
        mask = align - 1 if align else 0
        address = found or -ENOMEM
        trace.emit(ev.VM_UNMAPPED_AREA, address, mm.total_vm, int(top_down), length, low, high, mask, offset)


def throttled(trace: TraceLog, nid: int, timeout_ns: int, waited_ns: int, reason: int) -> None:
    """Reclaim has waited for devices (mm_vmscan_throttled); times in jiffies' worth of us."""
    if trace.on(ev.MM_VMSCAN_THROTTLED):
        waited_us = min(waited_ns, timeout_ns) // JIFFY_NS * (JIFFY_NS // NSEC_PER_USEC)
        trace.emit(ev.MM_VMSCAN_THROTTLED, nid, timeout_ns // NSEC_PER_USEC, waited_us, 1 << reason)


def reclaim_retry(trace: TraceLog, zone: Zone, order: int, reclaimable: int, mark: int, loops: int, met: bool) -> None:
    """A request asks whether reclaiming everything could help (reclaim_retry_zone)."""
    if trace.on(ev.RECLAIM_RETRY_ZONE):
        available = reclaimable + zone.free_pages
        trace.emit(ev.RECLAIM_RETRY_ZONE, zone.nid, zone.kind, order, reclaimable, available, mark, loops, int(met))


def compact_retry(
    trace: TraceLog, order: int, priority: int, result: int, retries: int, most: int, again: bool
) -> None:
    """A request asks whether to compact once more (compact_retry)."""
    if trace.on(ev.COMPACT_RETRY):
        feedback = 1 if result == COMPLETE else 2 if result in WITHDRAWN else 3
        trace.emit(ev.COMPACT_RETRY, order, priority, feedback, retries, most, int(again))


def migration_entry(trace: TraceLog, vpn: int, entry: int, order: int, *, set_: bool, pmd: bool) -> None:
    """An entry stands for a page under migration, or does so no longer ({set,remove}_migration_{pte,pmd})."""
    if pmd:
        trace.emit(ev.SET_MIGRATION_PMD if set_ else ev.REMOVE_MIGRATION_PMD, vpn << PAGE_SHIFT, entry)
    else:
        trace.emit(ev.SET_MIGRATION_PTE if set_ else ev.REMOVE_MIGRATION_PTE, vpn << PAGE_SHIFT, entry, order)


def wb_err(trace: TraceLog, file: File, number: int) -> None:
    """Write-back of a file failed (filemap_set_wb_err)."""
    trace.emit(ev.FILEMAP_SET_WB_ERR, file.ino, dev(file.device), number)


def told_wb_err(trace: TraceLog, file: File, opener: int, old: int, new: int) -> None:
    """Who has a file open is told of an error (file_check_and_advance_wb_err)."""
    trace.emit(ev.FILE_CHECK_AND_ADVANCE_WB_ERR, opener, file.ino, dev(file.device), old, new)
