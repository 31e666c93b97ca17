"""Placing free blocks: aligned, apart, in memory, in page blocks of their type."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kmemd.mm.free_placement import TOP_ORDER, place_free_blocks, split_aligned

ORDERS = TOP_ORDER + 1
TYPES = 6


def counts(**lists):
    """Free counts by type number: ``t1={10: 3, 0: 1}``."""
    free = [[0] * ORDERS for _ in range(TYPES)]
    for name, orders in lists.items():
        for order, count in orders.items():
            free[int(name[1:])][order] = count
    return free


def blocks_of(placement):
    tops = [(TOP_ORDER, mt, pfn) for mt, low, high in placement.runs for pfn in range(low, high, 1 << TOP_ORDER)]
    return placement.blocks + tops


def check(placement, available, free):
    """Every block is where it may be, and all of memory is accounted for."""
    blocks = blocks_of(placement)
    placed = [[0] * ORDERS for _ in range(TYPES)]
    heads = {(order, pfn) for order, _, pfn in blocks}
    pages = set()
    for order, mt, pfn in blocks:
        placed[mt][order] += 1
        assert pfn % (1 << order) == 0
        assert order == TOP_ORDER or (order, pfn ^ (1 << order)) not in heads
        own = set(range(pfn, pfn + (1 << order)))
        assert not own & pages
        pages |= own
    memory = {pfn for low, high in available for pfn in range(low, high)}
    rest = {pfn for low, high in placement.rest for pfn in range(low, high)}
    assert pages <= memory
    assert rest == memory - pages
    for mt in range(TYPES):
        for order in range(ORDERS):
            assert placed[mt][order] + placement.missing.get((order, mt), 0) == free[mt][order]


def test_the_dma_zone_of_a_pc_has_one_arrangement():
    free = counts(t0={8: 1}, t1={9: 1, 10: 3})
    available = [(1, 159), (256, 4096)]
    placement = place_free_blocks(available, free, [1, 7, 0, 0, 0, 0], 9, range(8), {})
    assert not placement.missing
    assert sorted(blocks_of(placement)) == [(8, 0, 256), (9, 1, 512), (10, 1, 1024), (10, 1, 2048), (10, 1, 3072)]
    assert placement.types == {0: 0, **dict.fromkeys(range(1, 8), 1)}
    assert placement.rest == [(1, 159)]


def test_many_small_blocks_are_kept_apart():
    free = counts(t0={0: 200, 1: 100}, t1={0: 300, 3: 20, 8: 2, 10: 1}, t2={2: 30})
    available = [(0, 8192)]
    placement = place_free_blocks(available, free, [4, 10, 2, 0, 0, 0], 9, range(16), {})
    assert not placement.missing
    check(placement, available, free)
    assert all(placement.types[pfn >> 9] == mt for _, mt, pfn in placement.blocks)


def test_a_shared_block_keeps_its_type():
    placement = place_free_blocks([(600, 2048)], counts(t1={0: 1}), [1, 2, 0, 0, 0, 0], 9, range(1, 4), {1: 0})
    assert placement.types == {1: 0, 2: 1, 3: 1}


def test_what_finds_no_place_is_said():
    placement = place_free_blocks([(0, 1024)], counts(t1={10: 2, 0: 1}), [0, 2, 0, 0, 0, 0], 9, range(2), {})
    assert placement.missing == {(10, 1): 1, (0, 1): 1}


def test_split_aligned():
    assert list(split_aligned(1, 1 << 11)) == [(order, 1 << order) for order in range(11)]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 3000)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, TOP_ORDER), st.integers(1, 20)), max_size=12),
    st.sampled_from([9, 10]),
)
def test_any_demand_is_placed_apart_or_reported(pieces, wanted, pageblock_order):
    available, end = [], 0
    for gap, pages in pieces:
        available.append((end + gap + 1, end + gap + 1 + pages))
        end += gap + 1 + pages
    free = [[0] * ORDERS for _ in range(TYPES)]
    for mt, order, count in wanted:
        free[mt][order] += count
    counted = range(available[0][0] >> pageblock_order, (end >> pageblock_order) + 1)
    check(place_free_blocks(available, free, [3, 3, 3, 0, 0, 0], pageblock_order, counted, {}), available, free)
