"""When mappings become one and when two, and where new ones go."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.mm_types import VM_HUGETLB, Mm, Vma
from kmemd.mm.mman import MAP_FIXED, PROT_EXEC, PROT_READ
from kmemd.mm.unmapped_area import STACK_GUARD_GAP, UnmappedArea, UserLayout
from tests.mm.vma_fake import ANON, RW, FakeFile, Space

PAGE = 4096
BASE = 0x10000000
FIXED = ANON | MAP_FIXED


def at(page: int) -> int:
    return BASE + page * PAGE


def fixed(space: Space, page: int, pages: int, prot: int = RW, **rest: object) -> int:
    return space.mmap(pages * PAGE, prot, FIXED, at(page), **rest)


def pages_of(space: Space) -> list[tuple[int, int]]:
    return [((start - BASE) // PAGE, (end - BASE) // PAGE) for start, end in space.ranges()]


def test_mmap_grows_the_neighbours() -> None:
    space = Space()
    fixed(space, 0, 2)
    fixed(space, 2, 2)
    assert pages_of(space) == [(0, 4)]
    fixed(space, 6, 2)
    assert pages_of(space) == [(0, 4), (6, 8)]
    fixed(space, 4, 2)
    assert pages_of(space) == [(0, 8)]
    space.check()


def test_flags_keep_mappings_apart() -> None:
    space = Space()
    fixed(space, 0, 2)
    fixed(space, 2, 2, PROT_READ)
    assert pages_of(space) == [(0, 2), (2, 4)]


def test_a_file_is_one_mapping_where_its_offsets_go_on() -> None:
    space, file = Space(), FakeFile()
    space.mmap(2 * PAGE, PROT_READ, mman.MAP_PRIVATE | MAP_FIXED, at(0), file=file, pgoff=5)
    space.mmap(2 * PAGE, PROT_READ, mman.MAP_PRIVATE | MAP_FIXED, at(2), file=file, pgoff=7)
    assert pages_of(space) == [(0, 4)]
    space.mmap(2 * PAGE, PROT_READ, mman.MAP_PRIVATE | MAP_FIXED, at(4), file=file, pgoff=8)
    assert pages_of(space) == [(0, 4), (4, 6)]
    space.mmap(2 * PAGE, PROT_READ, mman.MAP_PRIVATE | MAP_FIXED, at(6), file=FakeFile(), pgoff=10)
    assert len(space.mm.vmas) == 3
    assert file.maps == set(space.mm.vmas[:2])


def test_memory_without_pages_joins_memory_with_pages() -> None:
    space = Space()
    fixed(space, 0, 2)
    space.fault(at(0))
    fixed(space, 2, 2)
    assert pages_of(space) == [(0, 4)]
    fixed(space, 8, 2)
    space.fault(at(8))
    fixed(space, 4, 4)
    assert pages_of(space) == [(0, 4), (4, 10)], "two anon_vmas stay apart; the one above is asked first"
    space.check()


def test_what_a_fork_shared_does_not_grow() -> None:
    space = Space()
    fixed(space, 0, 2)
    space.fault(at(0))
    vma = space.mm.vmas[0]
    child = Mm(2, vmas=[Vma(vma.start, vma.end, vma.flags, vma.pgoff)])
    space.rmap.fork(child, child.vmas[0], vma)
    space.task.mm = child
    space.mmap(2 * PAGE, RW, FIXED, at(2))
    assert len(child.vmas) == 2, "the child's mapping hangs in two anon_vmas"
    space.task.mm = space.mm
    fixed(space, 2, 2)
    assert pages_of(space) == [(0, 4)], "the parent's hangs in one"


def test_mprotect_does_not_give_pages_to_a_mapping_that_never_had_any() -> None:
    space = Space()
    fixed(space, 0, 2, PROT_READ | PROT_EXEC)
    fixed(space, 2, 2)
    space.fault(at(2))
    space.mprotect(at(2), 2 * PAGE, PROT_READ | PROT_EXEC)
    assert pages_of(space) == [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        # case numbers of Linux' vma_merge: P is what the range becomes, N is another protection
        ("PPNNNN", (2, 4), [(0, 4), (4, 6)]),  # 5: prev takes the beginning
        ("NNNNPP", (2, 4), [(0, 2), (2, 6)]),  # 4: next takes the end
        ("PPNNPP", (2, 4), [(0, 6)]),  # 6: both, and the whole of the middle
        ("PPNN..", (2, 4), [(0, 4)]),  # 7: prev takes the whole
        ("..NNPP", (2, 4), [(2, 6)]),  # 8: next takes the whole
        ("NNNNNN", (2, 4), [(0, 2), (2, 4), (4, 6)]),  # none: split in three
        ("PNPNPN", (0, 6), [(0, 6)]),  # one after the other
    ],
)
def test_cases_of_mprotect(before: str, change: tuple[int, int], after: list[tuple[int, int]]) -> None:
    space = Space()
    for page, kind in enumerate(before):
        if kind != ".":
            # what was made writable is accounted for ever: begin so, that the kinds are alike
            fixed(space, page, 1)
    for page, kind in enumerate(before):
        if kind == "P":
            space.mprotect(at(page), PAGE, PROT_READ)
    space.mprotect(at(change[0]), (change[1] - change[0]) * PAGE, PROT_READ)
    assert pages_of(space) == after
    space.check()


def test_a_split_keeps_offsets_and_owners() -> None:
    space, file = Space(), FakeFile()
    space.mmap(6 * PAGE, RW, mman.MAP_PRIVATE | MAP_FIXED, at(0), file=file, pgoff=10)
    space.fault(at(3))
    space.munmap(at(2), PAGE)
    assert [(vma.pgoff, vma.pages) for vma in space.mm.vmas] == [(10, 2), (13, 3)]
    assert space.mm.vmas[0].anon_vma is space.mm.vmas[1].anon_vma is not None
    assert file.maps == set(space.mm.vmas)
    space.check()


def test_huge_pages_are_not_cut() -> None:
    space = Space()
    address = space.mmap(4 << 20, RW, ANON | mman.MAP_HUGETLB)
    assert address % (2 << 20) == 0
    space.mm.vmas[0].flags |= VM_HUGETLB
    with pytest.raises(KernelError) as caught:
        space.munmap(address + PAGE, PAGE)
    assert caught.value.errno == errno.EINVAL
    space.munmap(address, 2 << 20)
    assert space.ranges() == [(address + (2 << 20), address + (4 << 20))]


def test_every_change_is_announced() -> None:
    space = Space()
    seen = [space.mm.changed]

    def changed() -> bool:
        seen.append(space.mm.changed)
        return seen[-1] > seen[-2]

    fixed(space, 0, 8)
    assert changed()
    fixed(space, 8, 2)
    assert changed()
    space.mprotect(at(2), PAGE, PROT_READ)
    assert changed()
    space.mprotect(at(2), PAGE, RW)
    assert changed()
    space.madvise(at(4), PAGE, mman.MADV_DONTFORK)
    assert changed()
    space.locks.mlock(space.task, at(0), PAGE)
    assert changed()
    space.mremap(at(8), 2 * PAGE, 4 * PAGE)
    assert changed()
    space.munmap(at(0), PAGE)
    assert changed()


# -- where mappings go -----------------------------------------------------------------------------------


def test_mappings_go_down_from_the_base() -> None:
    space = Space()
    base = space.mm.mmap_base
    assert space.mmap(PAGE, PROT_READ) == base - PAGE
    assert space.mmap(3 * PAGE) == base - 4 * PAGE
    space.munmap(base - PAGE, PAGE)
    assert space.mmap(2 * PAGE, PROT_EXEC) == base - 6 * PAGE, "the hole is too small"
    assert space.mmap(PAGE, PROT_EXEC) == base - PAGE, "the highest hole that is large enough"


def test_what_is_known_to_be_full_is_forgotten_when_it_is_not() -> None:
    space = Space()
    got = [space.mmap(2 * PAGE, PROT_READ if n % 2 else RW) for n in range(200)]
    assert got == [space.mm.mmap_base - 2 * PAGE * (n + 1) for n in range(200)]
    assert space.mm.full_above == got[-1]
    for n in (150, 20, 90):
        space.munmap(got[n], 2 * PAGE)
        assert space.mmap(2 * PAGE, PROT_EXEC) == got[n]
        assert space.mmap(2 * PAGE, PROT_EXEC) == got[-1] - 2 * PAGE
        space.munmap(got[-1] - 2 * PAGE, 2 * PAGE)


def test_what_goes_far_below_does_not_draw_mappings_there() -> None:
    space = Space()
    fixed(space, 0, 4)
    fixed(space, 8, 4)
    space.munmap(at(0), 4 * PAGE)
    assert space.mmap(PAGE) == space.mm.mmap_base - PAGE


def test_a_hint_is_taken_when_it_is_free() -> None:
    space = Space()
    assert space.mmap(PAGE, address=at(3) + 17) == at(3)
    assert space.mmap(PAGE, PROT_READ, address=at(3)) == space.mm.mmap_base - PAGE
    space.settings.mmap_min_addr = 1 << 16
    assert space.mmap(PAGE, PROT_EXEC, address=PAGE) == 1 << 16, "raised to mmap_min_addr"


def test_the_legacy_layout_goes_up_from_a_third() -> None:
    space = Space()
    space.mm.legacy = True
    first = space.mmap(PAGE)
    assert first == UserLayout.of("x86_64").unmapped_base == ((1 << 47) - PAGE) // 3 + PAGE - 1 & ~(PAGE - 1)
    assert space.mmap(PAGE, PROT_READ) == first + PAGE


def test_below_a_full_space_the_search_goes_up() -> None:
    space = Space()
    space.mm.mmap_base = at(4)
    fixed(space, -0xFFF0, 0xFFF0)
    assert space.mmap(BASE, PROT_READ) == UserLayout.of("x86_64").unmapped_base


def test_map_32bit_stays_below_2_gib() -> None:
    assert Space().mmap(PAGE, RW, ANON | mman.MAP_32BIT) == 0x40000000


def test_a_stack_keeps_its_gap_free() -> None:
    space = Space()
    top = space.mm.mmap_base
    stack = space.mmap(PAGE, RW, ANON | mman.MAP_GROWSDOWN)
    assert stack == top - PAGE
    assert space.mmap(PAGE) == stack - STACK_GUARD_GAP - PAGE


def test_la57_is_for_those_who_ask() -> None:
    space = Space(la57=True)
    high = 1 << 50
    assert space.mmap(PAGE) < 1 << 47
    assert space.mmap(PAGE, RW, ANON, high) == high
    assert space.mmap(PAGE, PROT_READ, ANON, high) > 1 << 47, "the whole space is searched"
    assert Space().mmap(PAGE, RW, ANON, high) < 1 << 47, "without la57 such a hint is ignored"


def test_i386_has_3_gib() -> None:
    space = Space(arch="i386")
    assert space.mmap(PAGE) < 0xC0000000
    with pytest.raises(KernelError) as caught:
        space.mmap(0xC0000000)
    assert caught.value.errno == errno.ENOMEM


def test_alignment() -> None:
    area, mm = UnmappedArea(UserLayout.of("x86_64")), Mm(1, mmap_base=0x7F0000123000)
    found = area.find(mm, 0, 4 << 20, 0, 2 << 20)
    assert found == 0x7EFFFFC00000
    mm.legacy, mm.legacy_base = True, 0x1234000
    assert area.find(mm, 0, 4 << 20, 0, 2 << 20) == 0x1400000


def test_shared_memory_with_huge_pages_is_aligned() -> None:
    space, huge = Space(), 2 << 20
    space.align = huge
    flags = mman.MAP_SHARED | mman.MAP_ANONYMOUS
    space.mmap(PAGE, PROT_READ)
    assert space.mmap(huge, RW, flags) % huge == 0
    assert space.mmap(huge - PAGE, RW, flags) % huge, "too small for a huge page"
    assert space.mmap(huge) % huge, "private memory is not aligned by Linux 6.1"
    assert space.mmap(2 * huge, RW, mman.MAP_SHARED, file=FakeFile(), pgoff=3) % huge == 3 * PAGE
    assert space.mmap(huge, RW, flags, 0x10001000) == 0x10001000, "a hint is taken as it is"
