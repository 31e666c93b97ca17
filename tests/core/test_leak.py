"""The leak table: lookup, stored pointers, marking; all three builds against a plain model."""

import random
from collections import deque

import numpy as np
import pytest

from kmemd.core import leak
from kmemd.debug import leak_sweep
from tests.core import builds

BASE = 0xFFFF888000000000


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def table(request):
    build = leak if request.param == "installed" else getattr(builds, request.param)("leak")
    return build.LeakTable()


def addresses(*values):
    return np.array(values, dtype=np.uint64)


def insert(table, *values, size=64, min_count=1, fill=0):
    return table.insert_bulk(addresses(*values), size, min_count, 0, 0, 0, fill)


def test_find_by_start_and_by_interior_address(table):
    assert insert(table, BASE, BASE + 64, BASE + 256) == -1
    assert table.find(BASE + 64) == 1
    assert table.find(BASE + 65) == -1
    assert table.find_containing(BASE + 127) == 1
    assert table.find_containing(BASE + 128) == -1
    assert table.find_containing(BASE - 1) == -1
    table.remove_bulk(addresses(BASE + 64))
    assert table.find_containing(BASE + 100) == -1
    leak_sweep.check(table)


def test_an_address_twice_is_refused_at_its_index(table):
    assert insert(table, BASE, BASE + 64) == -1
    assert insert(table, BASE + 128, BASE, BASE + 192) == 1
    assert table.live == 3
    leak_sweep.check(table)


def test_store_keeps_one_value_per_offset(table):
    insert(table, BASE, BASE + 64)
    for offset, value in ((8, 1), (24, 2), (16, 3), (24, 4), (0, 5)):
        table.store(0, offset, value)
    assert table.pointers_in(0) == [(24, 4), (16, 3), (8, 1), (0, 5)]
    assert table.store_bulk(addresses(BASE + 8, BASE + 72, BASE + 4104), addresses(7, 8, 9)) == 2
    assert table.pointers_in(1) == [(8, 8)]
    table.set_fill(0, 0x6B)
    assert table.pointers_in(0) == []
    leak_sweep.check(table)


def scan(table, roots):
    table.whiten()
    table.mark(addresses(*roots))
    table.drain()
    white = (table.count < table.min_count) & (table.flags & leak.OBJECT_ALLOCATED > 0)
    return {int(pointer) for pointer in table.pointer[white]}


def test_marking_follows_pointers_and_interior_pointers_but_not_itself(table):
    a, b, c, d = (BASE + 64 * i for i in range(4))
    insert(table, a, b, c, d)
    table.store(0, 8, b + 17)
    table.store(2, 0, c)
    table.store(3, 8, a)
    assert scan(table, [a]) == {c, d}
    assert scan(table, [d + 63]) == {c}
    assert scan(table, [d + 64]) == {a, b, c, d}


def test_words_that_are_not_aligned_or_not_whole_are_not_pointers(table):
    insert(table, BASE, size=20)
    insert(table, BASE + 64, BASE + 128, BASE + 192)
    for offset, value in ((4, BASE + 64), (8, BASE + 192)):
        table.store(0, offset, value)
    assert table.store_bulk(addresses(BASE + 16), addresses(BASE + 128)) == 0
    assert scan(table, [BASE]) == {BASE + 64, BASE + 128}


def test_no_scan_areas_grey_and_black(table):
    insert(table, BASE, BASE + 64, BASE + 128, BASE + 192, BASE + 256)
    table.store(0, 0, BASE + 128)
    table.store(1, 0, BASE + 192)
    table.store(1, 32, BASE + 256)
    table.flags[0] |= leak.OBJECT_NO_SCAN
    leak_sweep.paint(table, 1, leak.GREY)
    table.add_area(1, 32, 8)
    assert scan(table, [BASE]) == {BASE + 128, BASE + 192}
    leak_sweep.paint(table, 2, leak.BLACK)
    assert scan(table, [BASE]) == {BASE + 192}
    table.remove_bulk(addresses(BASE + 64))
    assert table.areas == {}


def test_surplus_references_pass_to_the_excess_object(table):
    insert(table, BASE, BASE + 64)
    insert(table, 0xFFFFC90000000000, size=4096, min_count=2)
    table.set_excess(1, 0xFFFFC90000000000)
    table.store(1, 8, 0xFFFFC90000000000)
    assert scan(table, [BASE + 64]) == {BASE, 0xFFFFC90000000000}
    assert scan(table, [BASE + 64, BASE + 64]) == {BASE}
    assert scan(table, [BASE + 64, 0xFFFFC90000000000]) == {BASE}


def reference_scan(objects, edges, roots):
    """Plain reachability with counts over dictionaries."""
    count = dict.fromkeys(objects, 0)
    todo = [(root, None) for root in roots]
    while todo:
        value, source = todo.pop()
        hit = next((start for start, (size, _) in objects.items() if start <= value < start + size), None)
        if hit is None or hit == source or count[hit] >= objects[hit][1]:
            continue
        count[hit] += 1
        if count[hit] >= objects[hit][1]:
            todo += [(word, hit) for (start, _), word in edges.items() if start == hit]
    return {start for start, (_, need) in objects.items() if count[start] < need}


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_against_a_plain_model(table, seed):
    rng = random.Random(seed)
    objects, edges = {}, {}
    for _ in range(600):
        start = BASE + rng.randrange(200) * 128
        if start not in objects and rng.random() < 0.6:
            size, need = rng.choice([(64, 1), (128, 1), (128, 2)])
            insert(table, start, size=size, min_count=need)
            objects[start] = (size, need)
        elif start in objects and rng.random() < 0.5:
            table.remove_bulk(addresses(start))
            del objects[start]
            edges = {key: value for key, value in edges.items() if key[0] != start}
        elif start in objects:
            offset, value = rng.randrange(8) * 8, BASE + rng.randrange(200 * 128)
            table.store(table.find(start), offset, value)
            edges[start, offset] = value
    leak_sweep.check(table)
    assert table.live == len(objects)
    roots = [BASE + rng.randrange(200 * 128) for _ in range(10)]
    assert scan(table, roots) == reference_scan(objects, edges, roots)


def test_creation_order_survives_the_use_of_freed_rows(table):
    starts = [BASE + i * 64 for i in range(6000)]
    insert(table, *starts[:3000])
    table.remove_bulk(addresses(*starts[:2500]))
    insert(table, *starts[3000:])
    table.whiten()
    leak_sweep.report(table, 0)
    assert table.pointer[leak_sweep.shown(table, 0)].tolist() == starts[2500:]
    assert table.rows == 3500
    leak_sweep.check(table)


def test_any_overlap_is_refused_and_leaves_nothing_behind(table):
    insert(table, BASE + 0x1800, size=0x3000)
    assert insert(table, BASE, size=0x1801) == 0
    assert insert(table, BASE + 0x47FF, BASE, size=8) == 0
    assert insert(table, BASE + 0x2000, size=8) == 0
    assert insert(table, BASE - 0x100000, size=1 << 25) == 0
    assert insert(table, BASE, size=0x1800) == -1
    assert insert(table, BASE + 0x4800, size=1) == -1
    assert table.live == 3
    leak_sweep.check(table)


def test_granules_become_as_fine_as_the_objects_of_a_page_need(table):
    for start, size in ((BASE, 200), (BASE + 200, 200), (BASE + 403, 5), (BASE + 400, 3), (BASE + 408, 1000)):
        assert insert(table, start, size=size) == -1
    assert table.find_containing(BASE + 402) == 3
    assert table.find_containing(BASE + 403) == 2
    assert insert(table, BASE + 407, size=1) == 0
    leak_sweep.check(table)
    table.remove_bulk(addresses(BASE, BASE + 200, BASE + 400, BASE + 403, BASE + 408))
    assert insert(table, BASE, size=4096) == -1
    leak_sweep.check(table)


def test_objects_of_many_sizes_cover_their_bytes_and_no_others(table):
    rng = random.Random(7)
    sizes = (8, 24, 96, 200, 4096, 5000, 12288, 1 << 21, (1 << 24) + 4096, 3 << 24)
    objects, at = {}, BASE + 0x3000
    for _ in range(120):
        at += rng.choice((0, 0, 8, 4096, 1 << 22))
        size = rng.choice(sizes)
        assert insert(table, at, size=size) == -1
        objects[at] = size
        at += size
    for start in rng.sample(sorted(objects), 40):
        table.remove_bulk(addresses(start))
        del objects[start]
    leak_sweep.check(table)
    for start, size in objects.items():
        inside = {start, start + size - 1, start + size // 2}
        assert {int(table.pointer[table.find_containing(address)]) for address in inside} == {start}
        assert start + size in objects or table.find_containing(start + size) == -1


def test_regions_and_rows_beyond_the_room_reserved(table):
    far = [BASE + (i << 24) for i in range(1500)]
    assert insert(table, *far) == -1
    assert insert(table, *(BASE + 4096 + 64 * i for i in range(20000))) == -1
    assert table.find(far[1499]) == 1499
    for row in range(18000):
        table.store(row, 0, BASE)
    leak_sweep.check(table)


def test_a_scan_in_pieces_finds_what_one_in_a_go_does(table):
    count = 3000
    insert(table, *(BASE + 64 * i for i in range(count)))
    for i in range(count - 1):
        table.store(i, 8, BASE + 64 * (i + 1) + i % 3)
    insert(table, BASE - 64, min_count=0)
    table.store(count, 0, BASE)
    for part in leak_sweep.pieces(table):
        table.whiten(part.start, part.stop)
    pauses = 0
    while table.drain(300):
        pauses += 1
    assert pauses > 5
    assert leak_sweep.white(table).tolist() == []


def test_recheck_uses_the_contents_and_reports_once(table):
    insert(table, BASE, BASE + 64)
    insert(table, BASE + 128, fill=0x6B)
    table.store(1, 8, 1)

    def once():
        table.whiten()
        deque(leak_sweep.recheck(table, lambda row: 77, lambda size, fill: 5 if fill else 0))
        return len(leak_sweep.report(table, 0))

    assert once() == 1
    assert once() == 2
    assert once() == 0
    assert leak_sweep.shown(table, 0).tolist() == [0, 1, 2]
    assert leak_sweep.shown(table, -1).tolist() == []
    leak_sweep.clear(table, 0)
    assert leak_sweep.shown(table, 0).tolist() == []


def test_pieces_of_a_report_skip_what_was_freed_between_them(table):
    insert(table, *(BASE + 64 * i for i in range(3000)))
    table.whiten()
    leak_sweep.report(table, 0)
    pieces = leak_sweep.shown_pieces(table, lambda: 0, 1000)
    assert next(pieces) == list(range(1000))
    table.remove_bulk(addresses(*(BASE + 64 * i for i in range(1500, 3000))))
    assert next(pieces) == list(range(1000, 1500))
    assert next(pieces) == []
    assert list(pieces) == []
