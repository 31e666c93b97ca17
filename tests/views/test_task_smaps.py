"""smaps and smaps_rollup against a real kernel's: the same steps leave the same figures."""

import re

import pytest

from kmemd import System
from kmemd.mm import mm_types as mt
from kmemd.views.task_smaps import FIELDS, Figures, vm_flags
from tests.views.process import MIB, ONE_GIB, PAGE, TWO_NODES, Process, captured, kib

SIZE = 16 * MIB
SHARED_AT = 0x7F9233A58000
"""Where the captured process had its shared memory: faults map the pages around, by address."""


@pytest.fixture
def system():
    return System.boot("two-node", seed=1)


def test_reading_writing_and_dropping_pages(system):
    mapped, read_half, wrote_quarter, dropped = captured(TWO_NODES / "uo_anon_16")
    process = Process(system)
    address = process.mmap(SIZE)
    process.do("madvise", hex(address), SIZE, "MADV_NOHUGEPAGE")
    assert process.smaps(address) == mapped
    process.do("access", hex(address), SIZE // 2, "r")
    assert process.smaps(address) == read_half
    process.do("access", hex(address), SIZE // 4, "w")
    assert process.smaps(address) == wrote_quarter
    process.do("madvise", hex(address), SIZE // 8, "MADV_DONTNEED")
    assert process.smaps(address) == dropped


def test_a_fork_shares_what_it_does_not_write(system):
    child_first, child_wrote, parent_after = captured(TWO_NODES / "uo_fork_16")
    parent = Process(system)
    address = parent.mmap(SIZE)
    parent.do("madvise", hex(address), SIZE, "MADV_NOHUGEPAGE")
    parent.do("access", hex(address), SIZE, "w")
    child = parent.fork()
    assert child.smaps(address) == child_first
    child.do("access", hex(address), SIZE // 2, "w")
    assert child.smaps(address) == child_wrote
    child.do("exit")
    assert parent.smaps(address) == parent_after


def test_a_transparent_huge_page_counts_whole(system):
    (whole,) = captured(TWO_NODES / "uo_thp_16")
    process = Process(system)
    before = process.fields("smaps_rollup")
    address = -(-process.mmap(SIZE + 2 * MIB) // (2 * MIB)) * 2 * MIB
    process.do("munmap", hex(address - 2 * MIB), 2 * MIB)
    process.do("munmap", hex(address + SIZE), 2 * MIB)
    process.do("madvise", hex(address), SIZE, "MADV_HUGEPAGE")
    process.do("access", hex(address), SIZE, "w")
    assert process.smaps(address) == whole
    process.do("munmap", hex(address + PAGE), PAGE)
    rollup = process.fields("smaps_rollup")
    assert rollup["AnonHugePages"] == (SIZE - 2 * MIB) >> 10
    for name in ("Rss", "Pss", "Private_Dirty", "Anonymous"):
        assert rollup[name] - before[name] == (SIZE - PAGE) >> 10, name


def test_locked_memory_is_resident_and_locked(system):
    (locked,) = captured(TWO_NODES / "uo_mlock_8")
    process = Process(system)
    address = process.mmap(8 * MIB)
    process.do("madvise", hex(address), 8 * MIB, "MADV_NOHUGEPAGE")
    process.do("mlock", hex(address), 8 * MIB)
    assert process.smaps(address) == locked


def test_lazily_freed_pages_are_clean(system):
    process = Process(system)
    address = process.mmap(SIZE)
    process.do("madvise", hex(address), SIZE, "MADV_NOHUGEPAGE")
    process.do("access", hex(address), SIZE, "w")
    process.do("madvise", hex(address), SIZE // 2, "MADV_FREE")
    freed, written, cold = captured(ONE_GIB / "uo_lazyfree_16")
    assert process.smaps(address) == freed
    process.do("access", hex(address), SIZE // 4, "w")
    assert process.smaps(address) == written
    process.do("madvise", hex(address), SIZE, "MADV_COLD")
    assert process.smaps(address) == cold


def test_shared_memory_belongs_to_both(system):
    parent_wrote, child_read = captured(ONE_GIB / "uo_shared_8")
    parent = Process(system)
    address = parent.mmap(8 * MIB, f"addr={SHARED_AT:#x}", "flags=MAP_SHARED|MAP_ANONYMOUS")
    parent.do("access", hex(address), 8 * MIB, "w")
    assert parent.smaps(address) == parent_wrote
    line = next(line for line in parent.read("maps").splitlines() if line.startswith(f"{address:08x}-"))
    assert re.fullmatch(r"\S+ rw-s 00000000 00:01 \d+ +/dev/zero \(deleted\)", line)
    child = parent.fork()
    child.do("access", hex(address), 4 * MIB, "r")
    assert child.smaps(address) == child_read


def test_shared_memory_in_swap_is_counted_where_it_is_mapped(system):
    process = Process(system)
    address = process.mmap(16 * PAGE, "flags=MAP_SHARED|MAP_ANONYMOUS")
    process.do("access", hex(address), 12 * PAGE, "w")
    process.do("madvise", hex(address), 8 * PAGE, "MADV_PAGEOUT")
    system.advance(1)

    def figures(at):
        shown = kib(process.smaps(at))
        return tuple(shown[name] for name in ("Rss", "Swap", "SwapPss"))

    assert figures(address) == (16, 32, 0)
    process.do("munmap", hex(address), 4 * PAGE)
    address += 4 * PAGE
    assert figures(address) == (16, 16, 0)
    process.do("access", hex(address), 4 * PAGE, "r")
    assert figures(address) == (32, 0, 0)


def test_the_rollup_is_the_sum_of_the_mappings(system):
    for task in system.kernel.tasks.processes:
        smaps = system.read(f"/proc/{task.pid}/smaps").decode()
        rollup = kib(system.read(f"/proc/{task.pid}/smaps_rollup").decode())
        for name in FIELDS:
            parts = [int(number) for number in re.findall(rf"^{name}: +(\d+)", smaps, re.M)]
            assert 0 <= rollup[name] - sum(parts) <= (len(parts) if "Pss" in name or name == "Locked" else 0), name
        assert rollup["Pss_Anon"] + rollup["Pss_File"] + rollup["Pss_Shmem"] <= rollup["Pss"]


def test_shares_of_pages_are_rounded_at_the_end():
    figures = Figures()
    for _ in range(3):
        figures.add("Pss", (PAGE << 12) // 3)
    assert figures.kib("Pss") == 3
    figures.add("Pss", (PAGE << 12) // 3)
    assert figures.kib("Pss") == 5


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (
            mt.VM_READ | mt.VM_MAYREAD | mt.VM_MAYWRITE | mt.VM_PFNMAP | mt.VM_IO | mt.VM_DONTEXPAND,
            "rd mr mw pf io de ",
        ),
        (mt.VM_READ | mt.VM_LOCKED | mt.VM_LOCKONFAULT | mt.VM_ACCOUNT, "rd lo ?? ac "),
        (mt.VM_WRITE | mt.VM_GROWSDOWN | mt.VM_SEQ_READ | mt.VM_RAND_READ | mt.VM_DONTCOPY, "wr gd sr rr dc "),
        (mt.VM_NORESERVE | mt.VM_HUGETLB | mt.VM_SYNC | mt.VM_WIPEONFORK | mt.VM_DONTDUMP, "nr ht sf wf dd "),
        (mt.VM_MIXEDMAP | mt.VM_HUGEPAGE | mt.VM_MERGEABLE | mt.VM_SOFTDIRTY, "mm hg mg "),
        (0, ""),
    ],
)
def test_flags_are_named_in_the_order_of_their_bits(flags, shown):
    assert vm_flags(flags) == shown


def test_soft_dirty_has_a_name_where_it_is_tracked():
    assert vm_flags(mt.VM_READ | mt.VM_SOFTDIRTY | mt.VM_HUGEPAGE, soft_dirty=True) == "rd sd hg "


def test_kernel_threads_have_no_smaps(system):
    assert system.read("/proc/2/smaps") == b""
    with pytest.raises(OSError, match="ESRCH"):
        system.read("/proc/2/smaps_rollup")
