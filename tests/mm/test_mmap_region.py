"""mmap, munmap, brk and stacks: errors in Linux' order, sums, limits, and what may be promised."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm import rlimit as r
from kmemd.mm.mm_types import VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED, VM_NORESERVE, VM_SHARED
from kmemd.mm.mman import MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_LOCKED, MAP_NORESERVE, MAP_SHARED, PROT_EXEC, PROT_READ
from kmemd.mm.mmap import Mmap
from kmemd.mm.unmapped_area import STACK_GUARD_GAP
from tests.mm.vma_fake import ANON, RW, TOTALRAM, FakeFile, Space

PAGE = 4096
BASE = 0x10000000
UNLIMITED = (1 << 64) - 1


def refused(call: Any, *args: Any, **keys: Any) -> int:
    with pytest.raises(KernelError) as caught:
        call(*args, **keys)
    return caught.value.errno


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ({"length": 0}, errno.EINVAL),
        ({"length": PAGE, "flags": 0}, errno.EBADF),
        ({"length": PAGE, "flags": mman.MAP_PRIVATE}, errno.EBADF),
        ({"length": PAGE, "flags": ANON | MAP_FIXED, "address": 4097}, errno.EINVAL),
        ({"length": 1 << 47}, errno.ENOMEM),
        ({"length": (1 << 64) - 1}, errno.ENOMEM),
        ({"length": PAGE, "flags": mman.MAP_ANONYMOUS}, errno.EINVAL),
        ({"length": PAGE, "flags": mman.MAP_ANONYMOUS | mman.MAP_SHARED_VALIDATE}, errno.EINVAL),
        ({"length": PAGE, "flags": mman.MAP_ANONYMOUS | MAP_SHARED | mman.MAP_GROWSDOWN}, errno.EINVAL),
        ({"length": PAGE, "flags": ANON | MAP_FIXED, "address": 1 << 47}, errno.ENOMEM),
        ({"length": PAGE, "flags": ANON | MAP_FIXED, "address": 0}, errno.EPERM),
        ({"length": PAGE, "flags": mman.MAP_PRIVATE | mman.MAP_GROWSDOWN, "file": FakeFile()}, errno.EINVAL),
        ({"length": PAGE, "flags": mman.MAP_PRIVATE | mman.MAP_HUGETLB, "file": FakeFile()}, errno.EINVAL),
        ({"length": PAGE, "flags": MAP_SHARED, "file": FakeFile(), "writable": False}, errno.EACCES),
        ({"length": PAGE, "flags": mman.MAP_SHARED_VALIDATE | mman.MAP_SYNC, "file": FakeFile()}, errno.EOPNOTSUPP),
    ],
)
def test_errors_of_mmap(request_: dict[str, Any], number: int) -> None:
    space = Space()
    assert refused(space.mmap, **request_) == number
    assert not space.mm.vmas
    space.check()


def test_root_may_map_page_0() -> None:
    assert Space(uid=0).mmap(PAGE, RW, ANON | MAP_FIXED, 0) == 0


def test_a_read_only_file_is_shared_but_never_writable() -> None:
    space = Space()
    space.mmap(PAGE, PROT_READ, MAP_SHARED, file=FakeFile(), writable=False)
    assert not space.mm.vmas[0].flags & VM_SHARED
    assert refused(space.mprotect, space.mm.vmas[0].start, PAGE, RW) == errno.EACCES


def test_fixed_replaces_and_noreplace_does_not() -> None:
    space = Space()
    space.mmap(4 * PAGE, RW, ANON | MAP_FIXED, BASE)
    assert refused(space.mmap, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, BASE + 3 * PAGE) == errno.EEXIST
    space.mmap(PAGE, RW, ANON | MAP_FIXED_NOREPLACE, BASE + 4 * PAGE)
    space.fault(BASE + PAGE)
    space.mmap(PAGE, PROT_READ, ANON | MAP_FIXED, BASE + PAGE)
    assert space.memory.pages == {}
    assert len(space.mm.vmas) == 3
    space.check()


def test_errors_of_munmap() -> None:
    space = Space()
    address = space.mmap(4 * PAGE)
    assert refused(space.munmap, address + 1, PAGE) == errno.EINVAL
    assert refused(space.munmap, address, 0) == errno.EINVAL
    assert refused(space.munmap, 1 << 47, PAGE) == errno.EINVAL
    space.munmap(0x10000, PAGE)
    assert space.ranges() == [(address, address + 4 * PAGE)]


def test_munmap_says_which_tables_may_go() -> None:
    space = Space()
    for n in (0, 4, 8):
        space.mmap(2 * PAGE, RW, ANON | MAP_FIXED, BASE + n * PAGE)
    space.memory.calls.clear()
    space.munmap(BASE + 3 * PAGE, 4 * PAGE)
    at = [BASE + n * PAGE for n in (4, 6, 2, 8)]
    assert space.memory.calls == [("unmap", *at)]


def test_a_large_munmap_goes_in_slices() -> None:
    space = Space()
    address = space.mmap(40 << 20)
    space.fault(address + (39 << 20))
    steps = list(space.spaces.munmap_steps(space.task, address, 40 << 20))
    assert len(steps) == 3
    assert (space.memory.pages, space.mm.vmas) == ({}, [])
    space.check()


# -- sums and limits -------------------------------------------------------------------------------------


def test_sums_by_kind() -> None:
    space = Space()
    space.mmap(PAGE, RW)
    space.mmap(2 * PAGE, PROT_READ | PROT_EXEC)
    space.mmap(4 * PAGE, RW, ANON | mman.MAP_GROWSDOWN)
    space.mmap(8 * PAGE, PROT_READ)
    space.mmap(16 * PAGE, RW, MAP_SHARED | mman.MAP_ANONYMOUS)
    mm = space.mm
    assert (mm.data_vm, mm.exec_vm, mm.stack_vm, mm.total_vm) == (1, 2, 4, 31)
    for vma in list(mm.vmas):
        space.munmap(vma.start, vma.end - vma.start)
    assert (mm.data_vm, mm.exec_vm, mm.stack_vm, mm.total_vm, mm.hiwater_vm) == (0, 0, 0, 0, 31)


def test_rlimit_as_lets_a_fixed_mapping_replace() -> None:
    space = Space()
    space.task.rlimits[r.RLIMIT_AS] = (4 * PAGE, UNLIMITED)
    space.mmap(4 * PAGE, RW, ANON | MAP_FIXED, BASE)
    assert refused(space.mmap, PAGE) == errno.ENOMEM
    space.mmap(2 * PAGE, PROT_READ, ANON | MAP_FIXED, BASE)
    assert space.mm.total_vm == 4


def test_rlimit_data_counts_private_writable_memory_and_warns_once() -> None:
    space = Space()
    space.task.rlimits[r.RLIMIT_DATA] = (2 * PAGE, UNLIMITED)
    space.mmap(2 * PAGE)
    space.mmap(2 * PAGE, PROT_READ)
    assert refused(space.mmap, PAGE) == errno.ENOMEM
    assert refused(space.mprotect, space.mm.vmas[0].start, PAGE, RW) == errno.ENOMEM
    lines = [record.text for record in space.printk.since(0)]
    text = "mmap: test (7): VmData 12288 exceed data ulimit 8192. Update limits or use boot option ignore_rlimit_data."
    assert lines == [text]


def test_locked_memory_is_limited_but_not_root() -> None:
    space = Space()
    space.task.rlimits[r.RLIMIT_MEMLOCK] = (2 * PAGE, 2 * PAGE)
    mapped = space.mapped(2 * PAGE, RW, ANON | MAP_LOCKED)
    assert (mapped.populate, space.mm.locked_vm) == (2 * PAGE, 2)
    assert refused(space.mmap, PAGE, RW, ANON | MAP_LOCKED) == errno.EAGAIN
    space.task.rlimits[r.RLIMIT_MEMLOCK] = (0, 0)
    assert refused(space.mmap, PAGE, RW, ANON | MAP_LOCKED) == errno.EPERM
    space.task.uid = 0
    space.mmap(PAGE, RW, ANON | MAP_LOCKED)
    space.check()


def test_max_map_count_counts_what_the_process_has_already() -> None:
    space = Space()
    space.settings.max_map_count = 10
    for made in range(11):
        space.mmap(PAGE, PROT_READ if made % 2 else RW)
    assert refused(space.mmap, PAGE) == errno.ENOMEM, "one more than the limit is there, as in Linux"
    assert len(space.mm.vmas) == 11
    space.munmap(space.mm.vmas[0].start, PAGE)


def test_a_hole_in_the_midst_needs_room_for_two() -> None:
    space = Space()
    address = space.mmap(4 * PAGE)
    space.settings.max_map_count = 1
    assert refused(space.munmap, address + PAGE, PAGE) == errno.ENOMEM
    assert refused(space.mprotect, address, PAGE, PROT_READ) == errno.ENOMEM
    space.munmap(address, PAGE)
    assert len(space.mm.vmas) == 1


# -- what may be promised --------------------------------------------------------------------------------


def test_which_mappings_are_accounted() -> None:
    space = Space()
    space.mmap(PAGE)
    assert space.mm.vmas[0].flags & VM_ACCOUNT
    space.mmap(PAGE, PROT_READ)
    space.mmap(PAGE, RW, ANON | MAP_NORESERVE)
    space.mmap(PAGE, RW, MAP_SHARED | mman.MAP_ANONYMOUS)
    assert space.settings.committed == 1
    assert sum(vma.flags & VM_NORESERVE != 0 for vma in space.mm.vmas) == 1
    space.settings.overcommit_memory = 2
    space.settings.overcommit_kbytes = 1 << 20
    space.mmap(PAGE, RW, ANON | MAP_NORESERVE)
    assert space.settings.committed == 2, "strict overcommit does not honour MAP_NORESERVE"


def promise(mode: int, pages: int, committed: int = 0, total_vm: int = 0, root: bool = True) -> bool:
    settings = Mmap(1 << 30, lambda: TOTALRAM, lambda: 0, lambda: 1000)
    settings.overcommit_memory, settings.committed = mode, committed
    taken = settings.enough_memory(pages, total_vm, root=root)
    assert settings.committed == committed + (pages if taken else 0)
    return taken


def test_the_three_modes() -> None:
    assert promise(0, TOTALRAM + 1000)
    assert promise(0, TOTALRAM, committed=1 << 40), "the guess looks at one request alone"
    assert not promise(0, TOTALRAM + 1001)
    assert promise(1, 1 << 40)
    limit = TOTALRAM // 2 + 1000
    assert promise(2, limit - 1)
    assert not promise(2, limit)
    assert not promise(2, limit - 10, total_vm=10 * 32 + 31), "a 32nd of what it has is kept for the user to recover"
    assert not promise(2, limit - 2048, root=False), "8 MiB are kept for root"
    assert promise(2, limit - 2049, root=False)


def test_a_refusal_is_in_the_log_ten_times() -> None:
    space = Space()
    for _ in range(12):
        assert refused(space.mmap, (TOTALRAM + 1) * PAGE) == errno.ENOMEM
    lines = [record.text for record in space.printk.since(0)]
    assert lines == ["__vm_enough_memory: pid: 7, comm: test, no enough memory for the allocation"] * 10
    assert space.settings.committed == 0


# -- brk and stacks --------------------------------------------------------------------------------------


def heap() -> Space:
    space = Space()
    space.mm.start_brk = space.mm.brk = BASE
    return space


def test_brk_grows_one_mapping_and_shrinks_it() -> None:
    space = heap()
    space.spaces.brk(space.task, BASE + 100)
    space.spaces.brk(space.task, BASE + 5 * PAGE)
    assert (space.ranges(), space.mm.brk) == ([(BASE, BASE + 5 * PAGE)], BASE + 5 * PAGE)
    space.check()
    space.spaces.brk(space.task, BASE + 2 * PAGE)
    assert space.ranges() == [(BASE, BASE + 2 * PAGE)]
    space.spaces.brk(space.task, BASE)
    assert (space.ranges(), space.mm.data_vm) == ([], 0)
    space.check()


def test_errors_of_brk() -> None:
    space = heap()
    assert refused(space.spaces.brk, space.task, BASE - 1) == errno.ENOMEM
    assert refused(space.spaces.brk, space.task, (1 << 64) - 1) == errno.ENOMEM
    space.mmap(PAGE, RW, ANON | MAP_FIXED, BASE + 4 * PAGE)
    assert refused(space.spaces.brk, space.task, BASE + 4 * PAGE) == errno.ENOMEM, "a page stays free"
    space.spaces.brk(space.task, BASE + 3 * PAGE)
    space.task.rlimits[r.RLIMIT_DATA] = (PAGE, UNLIMITED)
    assert refused(space.spaces.brk, space.task, BASE + 2 * PAGE) == errno.ENOMEM
    space.check()


def stack(pages: int = 4) -> tuple[Space, int]:
    space = Space()
    start = BASE + (8 << 20)
    space.mmap(pages * PAGE, RW, ANON | MAP_FIXED | mman.MAP_GROWSDOWN, start)
    assert space.mm.vmas[-1].flags & VM_GROWSDOWN
    return space, start


def test_a_stack_grows_to_what_is_touched() -> None:
    space, start = stack()
    grown = space.spaces.expand_stack(space.task, start - 5 * PAGE + 8)
    assert (grown.start, grown.pgoff, grown.pages) == (start - 5 * PAGE, start // PAGE - 5, 9)
    assert space.mm.stack_vm == 9
    assert grown.anon_vma is not None
    space.check()


def test_what_keeps_a_stack_from_growing() -> None:
    space, start = stack()
    space.task.rlimits[r.RLIMIT_STACK] = (6 * PAGE, UNLIMITED)
    assert refused(space.spaces.expand_stack, space.task, start - 3 * PAGE) == errno.ENOMEM
    space.spaces.expand_stack(space.task, start - 2 * PAGE)
    space.task.rlimits.clear()
    below = start - STACK_GUARD_GAP - 10 * PAGE
    space.mmap(PAGE, PROT_READ, ANON | MAP_FIXED, below)
    assert refused(space.spaces.expand_stack, space.task, below + STACK_GUARD_GAP) == errno.ENOMEM
    space.spaces.expand_stack(space.task, below + PAGE + STACK_GUARD_GAP)
    assert refused(space.spaces.expand_stack, space.task, below - PAGE) == errno.EFAULT
    space.check()


def test_a_mapping_without_access_is_no_neighbour_of_a_stack() -> None:
    space, start = stack()
    space.mmap(PAGE, 0, ANON | MAP_FIXED, start - 3 * PAGE)
    assert space.spaces.expand_stack(space.task, start - 2 * PAGE).start == start - 2 * PAGE


def test_locked_by_default_is_populated() -> None:
    space = heap()
    space.mm.def_flags = VM_LOCKED
    mapped = space.spaces.brk(space.task, BASE + 3 * PAGE)
    assert (mapped.address, mapped.populate, space.mm.locked_vm) == (BASE, 3 * PAGE, 3)
    assert space.mapped(PAGE).populate == PAGE
