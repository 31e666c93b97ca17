"""The boot memory allocator."""

from hypothesis import given
from hypothesis import strategies as st

from kmemd.mm.memblock import Memblock

MIB = 1 << 20


def two_nodes():
    memblock = Memblock()
    memblock.add(MIB, 16 * MIB, 0)
    memblock.add(32 * MIB, 64 * MIB, 1)
    return memblock


def test_allocates_from_the_top_and_prefers_the_node():
    memblock = two_nodes()
    assert memblock.alloc(MIB, "a") == 63 * MIB
    assert memblock.alloc(MIB, "b", nid=0) == 15 * MIB
    assert memblock.alloc(20 * MIB, "c", nid=0) == 43 * MIB
    assert memblock.alloc(MIB, "d", limit=16 * MIB) == 14 * MIB
    assert memblock.alloc(1 << 40, "e") == -1


def test_alignment_leaves_the_rest_free():
    memblock = two_nodes()
    assert memblock.alloc(4096, "a") == 64 * MIB - 4096
    assert memblock.alloc(MIB, "b", align=2 * MIB) == 62 * MIB
    assert list(memblock.free_ranges(1)) == [(32 * MIB, 62 * MIB), (63 * MIB, 64 * MIB - 4096)]


def test_release_cuts_reservations():
    memblock = two_nodes()
    memblock.reserve(2 * MIB, 6 * MIB, "image")
    memblock.release(3 * MIB, 4 * MIB)
    assert [(r.start // MIB, r.end // MIB, r.owner) for r in memblock.reserved] == [(2, 3, "image"), (4, 6, "image")]


def test_online_sections_are_rounded_out_and_cut_to_the_zone():
    memblock = two_nodes()
    assert memblock.online_pfns(0, 1 << 20, 1, 1 << 13) == ((8192, 16384),)
    assert memblock.online_pfns(300, 9000, 0, 1 << 13) == ((300, 8192),)
    assert memblock.headless_blocks(512) == [0]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 200)), max_size=12))
def test_free_and_reserved_make_up_memory(reservations):
    memblock = Memblock()
    memblock.add(100 << 12, 500 << 12, 0)
    memblock.add(600 << 12, 900 << 12, 0)
    taken = set()
    for start, pages in reservations:
        memblock.reserve(start << 12, (start + pages) << 12, "")
        taken |= set(range(start, start + pages))
    memory = set(range(100, 500)) | set(range(600, 900))
    free = [pfn for low, high in memblock.free_pfns(0, 2000, 0) for pfn in range(low, high)]
    assert free == sorted(memory - taken)
