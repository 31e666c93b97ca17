"""madvise, mlock, msync: errors, flags, and which pages are acted on."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm import rlimit as r
from kmemd.mm.madvise import slices
from kmemd.mm.mm_types import (
    VM_DONTCOPY,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
)
from kmemd.mm.mman import MAP_FIXED, MAP_LOCKED, MAP_SHARED, PROT_READ
from kmemd.mm.msync import Msync
from tests.mm.vma_fake import ANON, RW, FakeFile, Space

PAGE = 4096
BASE = 0x10000000
FIXED = ANON | MAP_FIXED


def mapped(pages: int = 4, prot: int = RW, flags: int = FIXED, **rest: Any) -> Space:
    space = Space()
    space.mmap(pages * PAGE, prot, flags, BASE, **rest)
    space.memory.calls.clear()
    return space


def refused(call: Any, *args: Any) -> int:
    with pytest.raises(KernelError) as caught:
        call(*args)
    return caught.value.errno


# -- madvise ---------------------------------------------------------------------------------------------


def test_errors_of_madvise() -> None:
    space = mapped()
    assert refused(space.madvise, BASE + 1, PAGE, mman.MADV_DONTNEED) == errno.EINVAL
    assert refused(space.madvise, BASE, PAGE, 9999) == errno.EINVAL
    assert refused(space.madvise, BASE, (1 << 64) - 1, mman.MADV_DONTNEED) == errno.EINVAL
    assert refused(space.madvise, 0x10000, PAGE, mman.MADV_DONTNEED) == errno.ENOMEM
    space.madvise(0x10000, 0, mman.MADV_DONTNEED)
    assert refused(space.madvise, BASE, PAGE, mman.MADV_REMOVE) == errno.EINVAL
    assert refused(space.madvise, BASE, PAGE, mman.MADV_HUGEPAGE + 86) == errno.EINVAL, "no memory failure"


def test_a_hole_is_told_after_the_rest_was_done() -> None:
    space = mapped(2)
    space.mmap(PAGE, RW, FIXED, BASE + 3 * PAGE)
    for page in (0, 3):
        space.fault(BASE + page * PAGE)
    assert refused(space.madvise, BASE, 4 * PAGE, mman.MADV_DONTNEED) == errno.ENOMEM
    assert space.memory.pages == {}


def test_advice_that_is_a_flag_splits_and_merges() -> None:
    space = mapped()
    space.madvise(BASE + PAGE, PAGE, mman.MADV_NOHUGEPAGE)
    assert [vma.flags & VM_NOHUGEPAGE != 0 for vma in space.mm.vmas] == [False, True, False]
    space.madvise(BASE, 4 * PAGE, mman.MADV_HUGEPAGE)
    assert [vma.flags & (VM_NOHUGEPAGE | VM_HUGEPAGE) for vma in space.mm.vmas] == [VM_HUGEPAGE]
    assert [call[0] for call in space.memory.calls if call[0] == "enter_huge"] == ["enter_huge"] * 3
    space.madvise(BASE, PAGE, mman.MADV_DONTFORK)
    assert space.mm.vmas[0].flags & VM_DONTCOPY
    space.settings.max_map_count = 2
    assert refused(space.madvise, BASE + 2 * PAGE, PAGE, mman.MADV_WIPEONFORK) == errno.EAGAIN
    space.check()


def test_what_a_kind_of_mapping_does_not_take() -> None:
    space = mapped(flags=MAP_SHARED | MAP_FIXED, file=FakeFile())
    vma = space.mm.vmas[0]
    assert refused(space.madvise, BASE, PAGE, mman.MADV_WIPEONFORK) == errno.EINVAL
    assert refused(space.madvise, BASE, PAGE, mman.MADV_FREE) == errno.EINVAL
    space.madvise(BASE, 4 * PAGE, mman.MADV_MERGEABLE)
    assert not vma.flags & VM_MERGEABLE, "ignored"
    space.madvise(BASE, 4 * PAGE, mman.MADV_REMOVE)
    vma.flags |= VM_LOCKED
    for advice in (mman.MADV_DONTNEED, mman.MADV_COLD, mman.MADV_PAGEOUT, mman.MADV_REMOVE):
        assert refused(space.madvise, BASE, PAGE, advice) == errno.EINVAL
    space.madvise(BASE, PAGE, mman.MADV_DONTNEED_LOCKED)
    vma.flags ^= VM_LOCKED | VM_PFNMAP
    assert refused(space.madvise, BASE, PAGE, mman.MADV_DONTNEED) == errno.EINVAL
    private = mapped(flags=mman.MAP_PRIVATE | MAP_FIXED, file=FakeFile())
    assert refused(private.madvise, BASE, PAGE, mman.MADV_REMOVE) == errno.EACCES


def test_populate_asks_for_the_right() -> None:
    space = mapped(prot=PROT_READ)
    space.madvise(BASE, PAGE, mman.MADV_POPULATE_READ)
    assert space.memory.calls == [("populate_access", BASE, BASE + PAGE, False)]
    assert refused(space.madvise, BASE, PAGE, mman.MADV_POPULATE_WRITE) == errno.EINVAL


def test_huge_pages_are_dropped_whole() -> None:
    space, file = Space(), FakeFile()
    file.is_hugetlb, file.huge_page_size = True, 2 << 20
    space.mmap(4 << 20, RW, MAP_SHARED | MAP_FIXED, BASE, file=file)
    space.mm.vmas[0].flags |= VM_HUGETLB
    space.fault(BASE + (2 << 20))
    space.madvise(BASE, (4 << 20) - PAGE, mman.MADV_DONTNEED)
    assert space.memory.pages, "the last page is not wholly in the range"
    assert refused(space.madvise, BASE + PAGE, 2 << 20, mman.MADV_DONTNEED) == errno.EINVAL
    assert refused(space.madvise, BASE, 2 << 20, mman.MADV_FREE) == errno.EINVAL


def test_long_advice_is_given_by_tables() -> None:
    parts = list(slices(BASE + PAGE, BASE + (5 << 20)))
    assert parts[0] == (BASE + PAGE, BASE + (2 << 20))
    assert parts[-1] == (BASE + (4 << 20), BASE + (5 << 20))
    assert len(parts) == 3


# -- mlock -----------------------------------------------------------------------------------------------


def test_errors_of_mlock() -> None:
    space = mapped()
    lock, unlock, task = space.locks.mlock, space.locks.munlock, space.task
    assert refused(lock, task, 0x10000, PAGE) == errno.ENOMEM
    assert refused(lock, task, BASE, 1 << 46) == errno.ENOMEM, "more than RLIMIT_MEMLOCK"
    assert refused(space.locks.mlock2, task, BASE, PAGE, 2) == errno.EINVAL
    unlock(task, BASE, PAGE)
    task.rlimits[r.RLIMIT_MEMLOCK] = (2 * PAGE, 2 * PAGE)
    lock(task, BASE, 2 * PAGE)
    assert refused(lock, task, BASE + 2 * PAGE, PAGE) == errno.ENOMEM
    lock(task, BASE, 2 * PAGE)  # what is locked already does not count again
    task.rlimits[r.RLIMIT_MEMLOCK] = (0, 0)
    assert refused(lock, task, BASE, PAGE) == errno.EPERM
    task.uid = 0
    lock(task, BASE, 4 * PAGE)
    space.check()


def test_mlock_takes_whole_pages_and_locks_what_is_there() -> None:
    space = mapped()
    locked = space.locks.mlock(space.task, BASE + PAGE + 5, PAGE)
    assert (locked.address, locked.populate, space.mm.locked_vm) == (BASE + PAGE, 2 * PAGE, 2)
    assert space.memory.calls[-1] == ("lock", BASE + PAGE, BASE + 3 * PAGE)
    space.locks.munlock(space.task, BASE + PAGE, PAGE)
    assert space.memory.calls[-1] == ("unlock", BASE + PAGE, BASE + 2 * PAGE)
    assert space.mm.locked_vm == 1
    space.check()


def test_lock_on_fault_changes_only_flags_of_locked_memory() -> None:
    space = mapped(flags=FIXED | MAP_LOCKED)
    space.locks.mlock2(space.task, BASE, 4 * PAGE, mman.MLOCK_ONFAULT)
    assert space.mm.vmas[0].flags & VM_LOCKONFAULT
    assert not any(call[0] == "lock" for call in space.memory.calls)


def test_mlockall() -> None:
    space = mapped()
    locks, task = space.locks, space.task
    for flags in (0, mman.MCL_ONFAULT, 8):
        assert refused(locks.mlockall, task, flags) == errno.EINVAL
    assert locks.mlockall(task, mman.MCL_FUTURE).populate == 0
    assert space.mm.locked_vm == 0
    assert space.mapped(PAGE, PROT_READ).populate == PAGE
    assert locks.mlockall(task, mman.MCL_CURRENT | mman.MCL_ONFAULT).populate == space.mm.task_size
    assert space.mm.locked_vm == 5
    assert (space.mm.def_flags, space.mm.vmas[0].flags & VM_LOCKONFAULT) == (0, VM_LOCKONFAULT)
    locks.munlockall(task)
    assert space.mm.locked_vm == 0
    task.rlimits[r.RLIMIT_MEMLOCK] = (4 * PAGE, 4 * PAGE)
    assert refused(locks.mlockall, task, mman.MCL_CURRENT) == errno.ENOMEM
    space.check()


# -- msync -----------------------------------------------------------------------------------------------


def test_msync() -> None:
    file, written = FakeFile(), []
    space = mapped(2)
    space.mmap(4 * PAGE, RW, MAP_SHARED | MAP_FIXED, BASE + 2 * PAGE, file=file, pgoff=10)
    sync = Msync(lambda file, first, last: written.append((file, first, last)), 1 << 64).msync
    task = space.task
    assert refused(sync, task, BASE + 1, PAGE, mman.MS_SYNC) == errno.EINVAL
    assert refused(sync, task, BASE, PAGE, mman.MS_SYNC | mman.MS_ASYNC) == errno.EINVAL
    assert refused(sync, task, BASE, PAGE, 8) == errno.EINVAL
    assert refused(sync, task, 0x10000, PAGE, mman.MS_SYNC) == errno.ENOMEM
    sync(task, BASE, 4 * PAGE, mman.MS_ASYNC)
    assert written == []
    sync(task, BASE, 4 * PAGE, mman.MS_SYNC)
    assert written == [(file, 10, 12)]
    assert refused(sync, task, BASE - 2 * PAGE, 5 * PAGE, mman.MS_SYNC) == errno.ENOMEM
    assert written[1:] == [(file, 10, 11)], "a hole before it does not keep it from being written"
    space.locks.mlock(task, BASE + 3 * PAGE, PAGE)
    assert refused(sync, task, BASE, 8 * PAGE, mman.MS_INVALIDATE) == errno.EBUSY
