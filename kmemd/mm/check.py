"""Proof that the buddy system's counts agree with its lists: what ``System.check`` asks of the page allocator."""

from __future__ import annotations

import numpy as np

from kmemd.core.buddy import Buddy
from kmemd.core.buddy_state import BuddyState
from kmemd.core.mmzone import MAX_ORDER, NR_MIGRATETYPES, NR_PCP_LISTS
from kmemd.core.pages import IN_BUDDY, IN_PCP
from kmemd.mm.compound import distinct
from kmemd.mm.mmzone import Zone


def check_buddy(buddy: Buddy, zones: list[Zone], orders: int = MAX_ORDER) -> None:
    """Walk every list of every zone. AssertionError where a count, kind, order or zone does not agree.

    Preconditions: between two operations. The never touched frontier is checked as ranges, not block by block.
    """
    seen: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for zone in zones:
        pages = 0
        for order in range(orders):
            for mt in range(NR_MIGRATETYPES):
                pages += _check_list(buddy, zone, order, mt, seen)
        assert pages == zone.free_pages, f"{zone.name}: lists hold {pages} pages, NR_FREE_PAGES is {zone.free_pages}"
        _check_pcp(buddy, zone, seen)
    blocks = np.concatenate(seen) if seen else np.zeros(0, dtype=np.int64)
    assert len(distinct(blocks)) == len(blocks), "a block is on two lists"


def _check_list(buddy: Buddy, zone: Zone, order: int, mt: int, seen: list[np.ndarray]) -> int:
    """One free list: the pages on it."""
    heads = np.array(BuddyState(buddy).free_list(zone.index, order, mt, False), dtype=np.int64)
    _check_heads(buddy, zone, heads, IN_BUDDY, order)
    untouched = 0
    if order == MAX_ORDER - 1 and mt == 1:
        untouched = sum((high - low) >> order for low, high in buddy.frontier(zone.index))
    count = zone.nr_free_type(mt)[order]
    where = f"node {zone.nid} {zone.name} order {order} type {mt}"
    assert count == len(heads) + untouched, f"{where}: {len(heads) + untouched} blocks, counted {count}"
    assert (buddy.pages.migratetype[heads] == mt).all(), f"{where}: a block carries another type"
    seen.append(heads)
    return count << order


def _check_pcp(buddy: Buddy, zone: Zone, seen: list[np.ndarray]) -> None:
    for cpu in range(buddy.ncpus):
        pages = 0
        if not zone.pageset(cpu)[0]:
            continue
        for pindex in range(NR_PCP_LISTS):
            heads = np.array(BuddyState(buddy).pcp_list(zone.index, cpu, pindex), dtype=np.int64)
            order = buddy.pageblock_order if pindex >= 12 else pindex // 3
            _check_heads(buddy, zone, heads, IN_PCP, order)
            pages += len(heads) << order
            seen.append(heads)
        count = zone.pageset(cpu)[0]
        assert pages == count, f"{zone.name} cpu {cpu}: {pages} pages on per-cpu lists, counted {count}"


def _check_heads(buddy: Buddy, zone: Zone, heads: np.ndarray, kind: int, order: int) -> None:
    where = f"node {zone.nid} {zone.name} order {order}"
    assert (buddy.pages.kind[heads] == kind).all(), f"{where}: a listed block is not marked free"
    assert (buddy.pages.order[heads] == order).all(), f"{where}: a listed block has another order"
    assert ((heads >= zone.start_pfn) & (heads < zone.end_pfn)).all(), f"{where}: a block of another zone"
    assert not (heads & ((1 << order) - 1)).any(), f"{where}: a block is not aligned"
