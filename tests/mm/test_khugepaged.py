"""khugepaged makes huge pages of small ones, by the model's clock and within its limits."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.core import pte, stats
from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.khugepaged import KhugepagedSlots
from kmemd.mm.mm_types import Mm
from tests.mm.huge_machine import HUGE, MIB, HugeMachine, Process

PAGE = 4096
SECOND = 1_000_000_000


def small_pages(m: HugeMachine, size: int) -> tuple[Process, int]:
    """A process with ``size`` bytes of small pages, then advised to have huge ones."""
    p = m.process()
    at = m.mmap(p, size)
    m.advise(p, at, size, mman.MADV_NOHUGEPAGE)
    m.write(p, at, size)
    assert m.thps == 0
    m.advise(p, at, size, mman.MADV_HUGEPAGE)
    return p, at


def test_sixteen_mib_are_collapsed() -> None:
    m = HugeMachine()
    p, at = small_pages(m, 16 * MIB)
    tables = int(m.user.mmu.tables[p.mm.id])
    m.kernel.advance(11 * SECOND)
    assert (m.event(stats.THP_COLLAPSE_ALLOC), m.kernel.huge_memory.pages_collapsed, m.thps) == (8, 8, 8)
    assert (m.rss(p), int(m.user.mmu.tables[p.mm.id])) == (4096, tables)
    assert (m.event(stats.THP_FAULT_ALLOC), m.event(stats.THP_SPLIT_PAGE)) == (0, 0)
    assert m.entry(p, at)[0] & (pte.PSE | pte.RW | pte.DIRTY) == pte.PSE | pte.RW | pte.DIRTY
    m.check()
    m.user.mprotect.mprotect(p, at + 5 * PAGE, PAGE, mman.PROT_READ)
    assert (m.thps, m.event(stats.THP_SPLIT_PMD), m.rss(p)) == (7, 1, 4096)
    m.check()
    m.exit(p)
    m.kernel.advance(11 * SECOND)
    assert m.free_pages() == m.free_at_boot
    m.check()


def test_so_many_pages_at_a_time() -> None:
    m = HugeMachine()
    m.kernel.huge_memory.pages_to_scan = 512
    small_pages(m, 8 * MIB)
    for collapsed in (1, 2, 3, 4):
        m.kernel.advance(0 if collapsed == 1 else 10 * SECOND)
        assert m.kernel.huge_memory.pages_collapsed == collapsed
    m.kernel.advance(100 * SECOND)
    assert m.kernel.huge_memory.full_scans == 3
    m.check()


def test_a_shorter_sleep_wakes_it() -> None:
    m = HugeMachine()
    m.kernel.huge_memory.pages_to_scan = 512
    small_pages(m, 4 * MIB)
    m.kernel.advance(0)
    m.kernel.huge_memory.scan_sleep_millisecs = 1000
    m.kernel.huge_memory.wake_khugepaged()
    m.kernel.advance(0)
    assert m.kernel.huge_memory.pages_collapsed == 2


def test_never_stops_it() -> None:
    m = HugeMachine()
    settings = m.kernel.huge_memory
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.advise(p, at, 4 * MIB, mman.MADV_NOHUGEPAGE)
    m.write(p, at, 4 * MIB)
    settings.enabled = "never"
    settings.start_stop_khugepaged()
    m.advise(p, at, 4 * MIB, mman.MADV_HUGEPAGE)
    m.kernel.advance(30 * SECOND)
    assert (settings.pages_collapsed, settings.full_scans) == (0, 0)
    settings.enabled = "madvise"
    settings.start_stop_khugepaged()
    m.advise(p, at, 4 * MIB, mman.MADV_HUGEPAGE)
    m.kernel.advance(0)
    assert settings.pages_collapsed == 2


def test_empty_pages_count_against_max_ptes_none() -> None:
    m = HugeMachine()
    m.kernel.huge_memory.max_ptes_none = 100
    p = m.process()
    at = m.mmap(p, 6 * MIB)
    m.advise(p, at, 6 * MIB, mman.MADV_NOHUGEPAGE)
    m.write(p, at, 2 * MIB - 100 * PAGE)
    m.write(p, at + HUGE, 2 * MIB - 101 * PAGE)
    m.read(p, at + 2 * HUGE, 2 * MIB)
    m.advise(p, at, 6 * MIB, mman.MADV_HUGEPAGE)
    m.kernel.advance(0)
    assert (m.thps, m.event(stats.THP_SCAN_EXCEED_NONE_PTE)) == (1, 2)
    assert m.rss(p) == 512 + 411
    m.check()


def test_shared_pages_count_against_max_ptes_shared() -> None:
    m = HugeMachine()
    p, at = small_pages(m, 4 * MIB)
    child = m.fork(p)
    m.write(p, at, MIB)
    m.write(p, at + HUGE, MIB - PAGE)
    m.kernel.advance(0)
    assert (m.thps, m.event(stats.THP_SCAN_EXCEED_SHARED_PTE)) == (1, 2)  # the child is looked at, too
    assert m.entry(p, at)[1] == 1
    assert m.entry(child, at)[1] == 0
    m.check()
    m.exit(child)
    m.check()
    m.exit(p)
    m.kernel.advance(0)
    assert m.free_pages() == m.free_at_boot


def test_read_only_and_unused_ranges_are_left() -> None:
    m = HugeMachine()
    p, at = small_pages(m, 4 * MIB)
    m.user.mprotect.mprotect(p, at, HUGE, mman.PROT_READ)
    m.kernel.advance(0)
    assert m.thps == 1
    m.check()


def test_without_a_page_it_sleeps_once_and_gives_up() -> None:
    m = HugeMachine(size=640 * MIB)
    m.kernel.huge_memory.alloc_sleep_millisecs = 5000
    m.kernel.huge_memory.khugepaged_defrag = 0
    small_pages(m, 8 * MIB)
    taken = m.kernel.page_alloc.alloc_pages_bulk(m.kernel.huge_memory.collapse_gfp(), 9, 10_000)
    m.kernel.advance(0)
    assert m.event(stats.THP_COLLAPSE_ALLOC_FAILED) == 1
    m.kernel.advance(5 * SECOND)
    assert m.event(stats.THP_COLLAPSE_ALLOC_FAILED) == 2
    m.kernel.advance(9 * SECOND)
    assert m.event(stats.THP_COLLAPSE_ALLOC_FAILED) == 2
    m.kernel.page_alloc.free_pages_bulk(taken, 9)
    m.kernel.advance(30 * SECOND)
    assert m.thps == 4
    m.check()


def test_content_moves_along() -> None:
    m = HugeMachine()
    p, at = small_pages(m, 2 * MIB)
    m.user.contents.write(m.pfn(p, at + 3 * PAGE), 7, b"hello")
    m.kernel.advance(0)
    assert m.thps == 1
    assert m.user.contents.read(m.pfn(p, at) + 3, 7, 5) == b"hello"


def test_a_split_page_is_collapsed_again() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 2 * MIB)
    m.write(p, at, 2 * MIB)
    m.advise(p, at, PAGE, mman.MADV_DONTNEED)
    assert (m.thps, m.rss(p)) == (0, 511)
    m.kernel.advance(10 * SECOND)
    assert (m.thps, m.rss(p), m.user.huge_split.deferred(0)) == (1, 512, [])
    m.check()
    m.exit(p)
    m.kernel.advance(10 * SECOND)
    assert m.free_pages() == m.free_at_boot


def test_madv_collapse_works_without_the_daemon() -> None:
    m = HugeMachine(cmdline="transparent_hugepage=never")
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.write(p, at, 4 * MIB)
    m.advise(p, at, 4 * MIB, mman.MADV_COLLAPSE)
    assert (m.thps, m.event(stats.THP_COLLAPSE_ALLOC), m.kernel.huge_memory.pages_collapsed) == (2, 2, 0)
    m.advise(p, at, 4 * MIB, mman.MADV_COLLAPSE)
    m.check()
    empty = m.mmap(p, 2 * MIB)
    with pytest.raises(KernelError) as error:
        m.advise(p, empty, 2 * MIB, mman.MADV_COLLAPSE)
    assert error.value.errno == errno.EINVAL


def test_madv_collapse_without_memory() -> None:
    m = HugeMachine(size=640 * MIB, cmdline="transparent_hugepage=never")
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.write(p, at, 4 * MIB)
    m.kernel.page_alloc.alloc_pages_bulk(m.kernel.huge_memory.collapse_gfp(), 9, 10_000)
    with pytest.raises(KernelError) as error:
        m.advise(p, at, 4 * MIB, mman.MADV_COLLAPSE)
    assert (error.value.errno, m.thps) == (errno.ENOMEM, 0)
    m.check()


def test_address_spaces_take_turns() -> None:
    settings = HugeMachine().kernel.huge_memory
    slots, woken = KhugepagedSlots(settings), []
    slots.when_first(lambda: woken.append(1))
    spaces = [Mm(number) for number in range(3)]
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 2 * MIB)
    m.write(p, at, PAGE)
    for mm in (*spaces, spaces[0]):
        slots.enter(mm, m.vma(p, at))
    assert ([slot.mm for slot in slots.slots], len(woken)) == (spaces, 1)
    first = slots.next()
    slots.exit(spaces[0])
    slots.exit(spaces[1])
    assert [slot.mm for slot in slots.slots] == [spaces[0], spaces[2]]
    assert not slots.done(first)
    assert [slot.mm for slot in slots.slots] == [spaces[2]]
    assert slots.done(slots.next())
    assert slots.cursor is None


def test_pages_of_several_nodes_go_where_most_are() -> None:
    m = HugeMachine(size=512 * MIB, nodes=2)
    p = m.process()
    at = m.mmap(p, 2 * MIB)
    m.advise(p, at, 2 * MIB, mman.MADV_NOHUGEPAGE)
    m.write(p, at, 200 * PAGE)
    m.kernel.context.cpu = 1
    m.write(p, at + 200 * PAGE, 312 * PAGE)
    m.kernel.context.cpu = 0
    m.advise(p, at, 2 * MIB, mman.MADV_HUGEPAGE)
    m.kernel.advance(0)
    assert m.kernel.vmstat.node_page_state(1, stats.NR_ANON_THPS) == 512
    assert np.count_nonzero(m.kernel.vmstat.node_stat[:, stats.NR_ANON_THPS]) == 1
    m.check()
