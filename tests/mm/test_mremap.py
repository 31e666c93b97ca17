"""mremap: errors, growing in place, moving with all that belongs to a mapping."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kmemd.errors import KernelError
from kmemd.mm import rlimit as r
from kmemd.mm.mm_types import VM_ACCOUNT, VM_DONTEXPAND, VM_HUGETLB, VM_LOCKED
from kmemd.mm.mman import (
    MAP_FIXED,
    MAP_LOCKED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from tests.mm.vma_fake import ANON, RW, FakeFile, Space

PAGE = 4096
BASE = 0x10000000
FIXED = ANON | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
KEEP = MREMAP_MAYMOVE | MREMAP_DONTUNMAP


def mapped(pages: int = 4, prot: int = RW, **rest: Any) -> Space:
    space = Space()
    space.mmap(pages * PAGE, prot, rest.pop("flags", FIXED), BASE, **rest)
    return space


def refused(space: Space, *args: int) -> int:
    with pytest.raises(KernelError) as caught:
        space.mremap(*args)
    return caught.value.errno


@pytest.mark.parametrize(
    ("args", "number"),
    [
        ((BASE, PAGE, 0), errno.EINVAL),
        ((BASE + 1, PAGE, 2 * PAGE), errno.EINVAL),
        ((0x10000, PAGE, 2 * PAGE), errno.EFAULT),
        ((BASE, PAGE, 2 * PAGE, 8), errno.EINVAL),
        ((BASE, PAGE, PAGE, MREMAP_FIXED, BASE + 64 * PAGE), errno.EINVAL),
        ((BASE, PAGE, 2 * PAGE, KEEP), errno.EINVAL),
        ((BASE, PAGE, PAGE, MOVE, BASE + 64 * PAGE + 1), errno.EINVAL),
        ((BASE, 4 * PAGE, 4 * PAGE, MOVE, BASE + PAGE), errno.EINVAL),
        ((BASE, PAGE, PAGE, MOVE, 1 << 47), errno.EINVAL),
        ((BASE, 5 * PAGE, 6 * PAGE, MREMAP_MAYMOVE), errno.EFAULT),
        ((BASE, 0, PAGE, MREMAP_MAYMOVE), errno.EINVAL),
        ((BASE, PAGE, 2 * PAGE), errno.ENOMEM),
    ],
)
def test_errors(args: tuple[int, ...], number: int) -> None:
    space = mapped()
    assert refused(space, *args) == number
    assert space.ranges() == [(BASE, BASE + 4 * PAGE)]
    space.check()


def test_limits() -> None:
    space = mapped(flags=FIXED | MAP_LOCKED)
    space.task.rlimits[r.RLIMIT_MEMLOCK] = (4 * PAGE, 4 * PAGE)
    assert refused(space, BASE, 4 * PAGE, 5 * PAGE) == errno.EAGAIN
    space.task.uid = 0
    space.task.rlimits[r.RLIMIT_AS] = (4 * PAGE, 4 * PAGE)
    assert refused(space, BASE, 4 * PAGE, 5 * PAGE) == errno.ENOMEM
    space.task.rlimits.clear()
    space.settings.max_map_count = 4
    assert refused(space, BASE, PAGE, PAGE, MOVE, BASE + 64 * PAGE) == errno.ENOMEM
    space.mm.vmas[0].flags |= VM_DONTEXPAND
    assert refused(space, BASE, 4 * PAGE, 5 * PAGE) == errno.EFAULT


def test_grow_in_place_and_shrink() -> None:
    space = mapped()
    assert space.mremap(BASE, 4 * PAGE, 8 * PAGE).address == BASE
    assert space.ranges() == [(BASE, BASE + 8 * PAGE)]
    space.check()
    space.fault(BASE + 6 * PAGE)
    assert space.mremap(BASE, 8 * PAGE, 2 * PAGE).address == BASE
    assert (space.ranges(), space.memory.pages) == ([(BASE, BASE + 2 * PAGE)], {})
    space.check()


def test_growth_joins_the_next_mapping() -> None:
    space = mapped(2)
    space.mmap(2 * PAGE, RW, FIXED, BASE + 4 * PAGE)
    space.mremap(BASE, 2 * PAGE, 4 * PAGE)
    assert space.ranges() == [(BASE, BASE + 6 * PAGE)]


def test_a_locked_mapping_grows_locked() -> None:
    space = mapped(flags=FIXED | MAP_LOCKED)
    grown = space.mremap(BASE, 4 * PAGE, 6 * PAGE)
    assert (grown.populate, space.mm.locked_vm) == (2 * PAGE, 6)
    space.mmap(PAGE, PROT_READ, FIXED, BASE + 6 * PAGE)
    moved = space.mremap(BASE, 6 * PAGE, 8 * PAGE, MREMAP_MAYMOVE)
    assert moved.address != BASE
    assert moved.populate == 2 * PAGE
    space.check()


def test_a_move_takes_pages_offset_and_owner_along() -> None:
    space = mapped()
    space.fault(BASE + PAGE, "page")
    anon, pgoff = space.mm.vmas[0].anon_vma, space.mm.vmas[0].pgoff
    to = BASE + 64 * PAGE
    space.mremap(BASE, 4 * PAGE, 4 * PAGE, MOVE, to)
    moved = space.mm.vmas[0]
    assert (moved.start, moved.pgoff, moved.anon_vma) == (to, pgoff, anon)
    assert space.memory.pages == {(to >> 12) + 1: "page"}
    assert moved.flags & VM_ACCOUNT
    space.check()


def test_memory_without_pages_is_numbered_anew() -> None:
    space = mapped()
    to = BASE + 64 * PAGE
    space.mremap(BASE, 4 * PAGE, 4 * PAGE, MOVE, to)
    assert space.mm.vmas[0].pgoff == to >> 12


@pytest.mark.parametrize(("first", "pages"), [(0, 2), (1, 2), (2, 2)])
def test_a_part_moves_and_the_rest_stays_accounted(first: int, pages: int) -> None:
    space = mapped()
    space.fault(BASE)
    space.mremap(BASE + first * PAGE, pages * PAGE, (pages + 1) * PAGE, MOVE, BASE + 64 * PAGE)
    assert all(vma.flags & VM_ACCOUNT for vma in space.mm.vmas)
    assert space.settings.committed == 5
    space.check()


def test_dontunmap_leaves_an_empty_mapping() -> None:
    space = mapped()
    space.fault(BASE, "page")
    space.locks.mlock(space.task, BASE, 4 * PAGE)
    to = BASE + 64 * PAGE
    assert space.mremap(BASE, 4 * PAGE, 4 * PAGE, KEEP | MREMAP_FIXED, to).address == to
    old, new = space.mm.vmas
    assert (old.flags & VM_LOCKED, old.anon_vma, old.pgoff) == (0, None, BASE >> 12)
    assert new.flags & VM_LOCKED
    assert space.memory.pages == {to >> 12: "page"}
    assert space.settings.committed == 8
    space.check()


def test_shared_memory_is_duplicated_by_an_old_length_of_0() -> None:
    space, file = Space(), FakeFile()
    space.mmap(4 * PAGE, RW, MAP_SHARED | MAP_FIXED, BASE, file=file, pgoff=3)
    copy = space.mremap(BASE + PAGE, 0, 2 * PAGE, MREMAP_MAYMOVE)
    vma = space.mm.find(copy.address)
    assert vma is not None
    assert (vma.file, vma.pgoff, vma.pages) == (file, 4, 2)
    assert file.maps == set(space.mm.vmas)


def test_without_tables_nothing_moves() -> None:
    space = mapped()
    space.fault(BASE, "page")
    space.memory.tables_left = 0
    assert refused(space, BASE, 4 * PAGE, 6 * PAGE, MOVE, BASE + 64 * PAGE) == errno.ENOMEM
    assert (space.ranges(), space.memory.pages) == ([(BASE, BASE + 4 * PAGE)], {BASE >> 12: "page"})
    assert space.settings.committed == 4
    space.check()


def test_huge_pages_move_whole_and_do_not_become_more() -> None:
    space, file = Space(), FakeFile()
    file.is_hugetlb, file.huge_page_size = True, 2 << 20
    space.mmap(4 << 20, RW, MAP_SHARED | MAP_FIXED, BASE, file=file)
    space.mm.vmas[0].flags |= VM_HUGETLB
    assert refused(space, BASE, 4 << 20, 6 << 20, MREMAP_MAYMOVE) == errno.EINVAL
    assert refused(space, BASE + PAGE, PAGE, PAGE, MREMAP_MAYMOVE) == errno.EINVAL
    space.mremap(BASE, 4 << 20, PAGE)
    assert space.ranges() == [(BASE, BASE + (2 << 20))]
    space.mremap(BASE, 2 << 20, 2 << 20, MOVE, BASE + (8 << 20))
    assert ("clear_reserves", BASE) in space.memory.calls
