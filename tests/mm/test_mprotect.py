"""mprotect: errors, what it charges, and when locked memory is copied at once."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.mm_types import VM_ACCOUNT, VM_MAYWRITE
from kmemd.mm.mman import MAP_FIXED, MAP_LOCKED, PROT_EXEC, PROT_READ
from tests.mm.vma_fake import ANON, RW, Space

PAGE = 4096
BASE = 0x10000000
FIXED = ANON | MAP_FIXED


def space_of(*prots: int) -> Space:
    space = Space()
    for n, prot in enumerate(prots):
        space.mmap(PAGE, prot, FIXED, BASE + n * PAGE)
    return space


def refused(space: Space, address: int, length: int, prot: int) -> int:
    with pytest.raises(KernelError) as caught:
        space.mprotect(address, length, prot)
    return caught.value.errno


def test_errors() -> None:
    space = space_of(RW)
    assert refused(space, BASE + 1, PAGE, PROT_READ) == errno.EINVAL
    assert refused(space, BASE, PAGE, 0x10) == errno.EINVAL
    assert refused(space, 0x10000, PAGE, PROT_READ) == errno.ENOMEM
    assert refused(space, BASE, (1 << 64) - PAGE, PROT_READ) == errno.ENOMEM
    assert refused(space, BASE, PAGE, mman.PROT_GROWSDOWN | mman.PROT_GROWSUP) == errno.EINVAL
    assert refused(space, BASE, PAGE, mman.PROT_GROWSDOWN) == errno.EINVAL, "not a stack"
    space.mprotect(BASE + 17 * PAGE, 0, PROT_READ)
    space.mm.vmas[0].flags &= ~(VM_MAYWRITE | 2)
    assert refused(space, BASE, PAGE, RW) == errno.EACCES


def test_a_hole_ends_it_after_what_comes_before() -> None:
    space = space_of(RW)
    assert refused(space, BASE, 2 * PAGE, PROT_READ) == errno.ENOMEM
    assert space.mm.vmas[0].flags & 7 == PROT_READ


def test_the_whole_stack_with_growsdown() -> None:
    space = Space()
    space.mmap(8 * PAGE, RW, FIXED | mman.MAP_GROWSDOWN, BASE)
    space.mprotect(BASE + 6 * PAGE, PAGE, RW | PROT_EXEC | mman.PROT_GROWSDOWN)
    assert [(vma.pages, vma.flags & 7) for vma in space.mm.vmas] == [(7, 7), (1, 3)]
    space.check()


def test_entries_are_changed_once_per_mapping() -> None:
    space = space_of(RW, PROT_READ, RW)
    space.memory.calls.clear()
    space.mprotect(BASE, 3 * PAGE, PROT_READ)
    changes = [call for call in space.memory.calls if call[0] == "protect"]
    assert changes == [
        ("protect", BASE, BASE + PAGE, PROT_READ),
        ("protect", BASE + 2 * PAGE, BASE + 3 * PAGE, PROT_READ),
    ], "what has the protection already is left alone"


def test_memory_made_writable_is_charged_and_stays_so() -> None:
    space = space_of(PROT_READ)
    space.mprotect(BASE, PAGE, RW)
    assert space.settings.committed == 1
    space.mprotect(BASE, PAGE, PROT_READ)
    assert space.mm.vmas[0].flags & VM_ACCOUNT
    space.mprotect(BASE, PAGE, RW)
    assert space.settings.committed == 1
    space.check()


def test_what_may_not_be_promised_is_not_made_writable() -> None:
    space = space_of(PROT_READ)
    space.settings.overcommit_memory, space.settings.overcommit_kbytes = 2, 4
    assert refused(space, BASE, PAGE, RW) == errno.ENOMEM
    assert (space.settings.committed, space.mm.vmas[0].flags & 7) == (0, PROT_READ)


def test_a_split_that_fails_gives_the_charge_back() -> None:
    space = Space()
    space.mmap(4 * PAGE, PROT_READ, FIXED, BASE)
    space.settings.max_map_count = 1
    assert refused(space, BASE, PAGE, RW) == errno.ENOMEM
    assert space.settings.committed == 0


def test_locked_memory_is_copied_when_it_becomes_writable() -> None:
    space = Space()
    space.mmap(2 * PAGE, PROT_READ, FIXED | MAP_LOCKED, BASE)
    space.mprotect(BASE, PAGE, RW)
    space.mprotect(BASE, PAGE, PROT_READ)
    assert space.populated == [(BASE, BASE + PAGE)]


def test_boundaries_of_huge_pages_are_cut() -> None:
    space = Space()
    space.mmap(8 * PAGE, RW, FIXED, BASE)
    space.memory.calls.clear()
    space.mprotect(BASE + 2 * PAGE, 2 * PAGE, PROT_READ)
    space.mprotect(BASE + 4 * PAGE, PAGE, PROT_READ)
    cuts = [call[1] for call in space.memory.calls if call[0] == "split"]
    assert cuts == [BASE + 2 * PAGE, BASE + 4 * PAGE, BASE + 5 * PAGE], "the last by moving a border"
