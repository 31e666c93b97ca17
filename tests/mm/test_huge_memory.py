"""Transparent huge pages: faults, splits, copies, the queue of split pages."""

from __future__ import annotations

import pytest

from kmemd.core import pte, stats
from kmemd.mm import gfp as g
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Vma
from tests.mm.huge_machine import HUGE, MIB, HugeMachine

PAGE = 4096


def test_a_write_gets_a_huge_page() -> None:
    m = HugeMachine()
    p = m.process()
    tables = int(m.user.mmu.tables[p.mm.id])
    at = m.mmap(p, 16 * MIB)
    m.write(p, at, 16 * MIB)
    assert (m.event(stats.THP_FAULT_ALLOC), m.event(stats.PGFAULT), m.thps, m.rss(p)) == (8, 8, 8, 4096)
    assert m.gauge(stats.NR_ANON_MAPPED) == m.gauge(stats.NR_ANON_THPS) == 4096
    entry, level = m.entry(p, at)
    assert level == 1
    assert entry & pte.PSE
    assert entry & pte.RW
    assert entry & pte.DIRTY
    assert int(m.user.mmu.tables[p.mm.id]) == tables + 2 + 8  # PUD, PMD and a table in reserve for each
    assert m.kernel.vmstat.node_total(stats.NR_INACTIVE_ANON) == 4096
    m.check()
    m.exit(p)
    assert (m.free_pages(), m.thps) == (m.free_at_boot, 0)
    m.check()


def test_never_and_madvise() -> None:
    m = HugeMachine(cmdline="transparent_hugepage=madvise")
    p = m.process()
    at = m.mmap(p, 8 * MIB)
    m.write(p, at, 2 * MIB)
    m.advise(p, at + 2 * MIB, 2 * MIB, mman.MADV_HUGEPAGE)
    m.write(p, at + 2 * MIB, 2 * MIB)
    assert (m.event(stats.THP_FAULT_ALLOC), m.thps) == (1, 1)
    m.kernel.huge_memory.enabled = "never"
    m.kernel.huge_memory.start_stop_khugepaged()
    m.advise(p, at + 4 * MIB, 2 * MIB, mman.MADV_HUGEPAGE)
    m.write(p, at + 4 * MIB, 2 * MIB)
    m.kernel.huge_memory.enabled = "always"
    m.kernel.huge_memory.start_stop_khugepaged()
    m.advise(p, at + 6 * MIB, 2 * MIB, mman.MADV_NOHUGEPAGE)
    m.write(p, at + 6 * MIB, 2 * MIB)
    assert (m.event(stats.THP_FAULT_ALLOC), m.thps) == (1, 1)
    m.check()


def test_a_read_maps_the_huge_zero_page() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.read(p, at, 4 * MIB)
    assert (m.event(stats.THP_ZERO_PAGE_ALLOC), m.event(stats.THP_FAULT_ALLOC), m.rss(p)) == (1, 0, 0)
    assert m.pfn(p, at) == m.pfn(p, at + HUGE) == m.user.thp.zero_pfn
    m.check()
    m.write(p, at, PAGE)  # splits, and one small page is made
    assert (m.event(stats.THP_SPLIT_PMD), m.rss(p), m.thps) == (1, 1, 0)
    assert m.entry(p, at + PAGE) == (m.user.mmu.zero_pfn << 12 | m.entry(p, at + PAGE)[0] & pte.FLAGS_MASK, 0)
    assert m.user.thp.shrink_zero_page() == 0
    m.exit(p)
    assert m.user.thp.shrink_zero_page() == 512
    assert m.free_pages() == m.free_at_boot
    m.check()


def test_without_the_zero_page_a_read_allocates() -> None:
    m = HugeMachine()
    m.kernel.huge_memory.use_zero_page = 0
    p = m.process()
    m.read(p, m.mmap(p, 2 * MIB), 2 * MIB)
    assert (m.event(stats.THP_FAULT_ALLOC), m.rss(p)) == (1, 512)
    m.check()


def test_without_a_block_small_pages_do() -> None:
    m = HugeMachine(size=640 * MIB)
    p = m.process()
    m.kernel.page_alloc.alloc_pages_bulk(g.GFP_TRANSHUGE_LIGHT, 9, 10_000)
    at = m.mmap(p, 2 * MIB)
    m.write(p, at, 2 * MIB)
    assert (m.event(stats.THP_FAULT_ALLOC), m.event(stats.THP_FAULT_FALLBACK), m.rss(p)) == (0, 1, 512)
    m.check()


def test_a_small_part_of_a_mapping_gets_small_pages() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 3 * MIB)
    m.write(p, at, 3 * MIB)
    assert (m.thps, m.rss(p)) == (1, 768)
    m.check()


def test_unmapping_a_small_page_splits_the_entry() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 16 * MIB)
    m.write(p, at, 16 * MIB)
    head = m.pfn(p, at + 4 * MIB)
    m.munmap(p, at + 4 * MIB + 5 * PAGE, PAGE)
    events = (stats.THP_SPLIT_PMD, stats.THP_DEFERRED_SPLIT_PAGE, stats.THP_SPLIT_PAGE)
    assert [m.event(event) for event in events] == [1, 1, 0]
    assert (m.thps, m.rss(p), m.gauge(stats.NR_ANON_MAPPED)) == (7, 4095, 4095)
    assert m.user.huge_split.deferred(0) == [head]
    assert m.pfn(p, at + 4 * MIB + 6 * PAGE) == head + 6
    m.check()
    free = m.free_pages()
    assert m.user.huge_split.split_deferred(0, 10) == 1
    assert (m.event(stats.THP_SPLIT_PAGE), m.free_pages() - free) == (1, 1)
    assert m.user.huge_split.deferred(0) == []
    m.check()
    m.exit(p)
    assert m.free_pages() == m.free_at_boot
    m.check()


def test_a_split_entry_that_goes_whole_frees_the_page() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 2 * MIB)
    m.write(p, at, 2 * MIB)
    m.user.mprotect.mprotect(p, at, PAGE, mman.PROT_READ)
    assert (m.event(stats.THP_SPLIT_PMD), m.event(stats.THP_DEFERRED_SPLIT_PAGE), m.thps) == (1, 0, 0)
    m.check()
    m.munmap(p, at, 2 * MIB)
    assert m.user.huge_split.deferred(0) == []
    m.exit(p)
    assert m.free_pages() == m.free_at_boot
    m.check()


def test_dontneed_of_a_whole_page_frees_it() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.write(p, at, 4 * MIB)
    m.advise(p, at, 2 * MIB, mman.MADV_DONTNEED)
    assert (m.thps, m.rss(p), m.event(stats.THP_SPLIT_PMD)) == (1, 512, 0)
    m.write(p, at, PAGE)
    assert (m.thps, m.rss(p)) == (2, 1024)
    m.check()


def test_fork_shares_and_a_write_splits() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.write(p, at, 4 * MIB)
    head = m.pfn(p, at)
    child = m.fork(p)
    assert m.pfn(child, at) == head
    assert m.user.huge_pages.mapcount(head) == 2
    assert (m.thps, m.rss(child), m.gauge(stats.NR_ANON_MAPPED)) == (2, 1024, 1024)
    m.check()
    m.write(child, at + PAGE, PAGE)
    assert (m.event(stats.THP_SPLIT_PMD), m.thps, m.rss(child)) == (1, 2, 1024)
    assert m.pfn(child, at + PAGE) != head + 1
    assert m.pfn(child, at) == head
    m.check()
    m.write(p, at + HUGE, PAGE)  # the other page is still shared by both: an entry is split here, too
    assert m.event(stats.THP_SPLIT_PMD) == 2
    m.exit(child)
    m.check()
    m.write(p, at, 4 * MIB)
    m.check()
    m.exit(p)
    assert m.free_pages() == m.free_at_boot
    m.check()


def test_after_the_child_is_gone_the_page_is_used_again() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 2 * MIB)
    m.write(p, at, 2 * MIB)
    head = m.pfn(p, at)
    child = m.fork(p)
    m.exit(child)
    m.write(p, at, 2 * MIB)
    assert (m.pfn(p, at), m.event(stats.THP_SPLIT_PMD), m.thps) == (head, 0, 1)
    m.check()


def test_mremap_moves_huge_pages() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    to = m.mmap(p, 8 * MIB, prot=0)
    m.write(p, at, 4 * MIB)
    head = m.pfn(p, at)
    m.user.mremap.mremap(p, at, 4 * MIB, 4 * MIB, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, to)
    assert (m.pfn(p, to), m.thps, m.event(stats.THP_SPLIT_PMD)) == (head, 2, 0)
    m.check()
    m.user.mremap.mremap(p, to, 4 * MIB, 4 * MIB, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, to + 4 * MIB + PAGE)
    assert (m.thps, m.event(stats.THP_SPLIT_PMD), m.rss(p)) == (0, 2, 1024)
    m.check()
    m.exit(p)
    assert m.free_pages() == m.free_at_boot


def test_huge_pages_come_from_the_nearest_node() -> None:
    m = HugeMachine(size=512 * MIB, nodes=2)
    p = m.process()
    at = m.mmap(p, 8 * MIB)
    m.kernel.context.cpu = 1
    m.write(p, at, 8 * MIB)
    assert m.kernel.vmstat.node_page_state(1, stats.NR_ANON_THPS) == 4 * 512
    m.check()


@pytest.mark.parametrize(
    ("defrag", "advised", "plain"),
    [
        ("always", g.GFP_TRANSHUGE, g.GFP_TRANSHUGE | g.F.NORETRY),
        ("defer", g.GFP_TRANSHUGE_LIGHT | g.F.KSWAPD_RECLAIM, g.GFP_TRANSHUGE_LIGHT | g.F.KSWAPD_RECLAIM),
        ("defer+madvise", g.GFP_TRANSHUGE, g.GFP_TRANSHUGE_LIGHT | g.F.KSWAPD_RECLAIM),
        ("madvise", g.GFP_TRANSHUGE, g.GFP_TRANSHUGE_LIGHT),
        ("never", g.GFP_TRANSHUGE_LIGHT, g.GFP_TRANSHUGE_LIGHT),
    ],
)
def test_how_hard_a_fault_tries(defrag: str, advised: int, plain: int) -> None:
    settings = HugeMachine().kernel.huge_memory
    settings.defrag = defrag
    assert settings.fault_gfp(Vma(0, HUGE, mt.VM_WRITE | mt.VM_HUGEPAGE)) == advised
    assert settings.fault_gfp(Vma(0, HUGE, mt.VM_WRITE)) == plain


def test_which_mappings_are_eligible() -> None:
    settings = HugeMachine().kernel.huge_memory
    rw = mt.VM_READ | mt.VM_WRITE
    assert settings.allowed(Vma(HUGE, 2 * HUGE, rw), smaps=True)
    assert not settings.allowed(Vma(HUGE, 2 * HUGE, rw))  # khugepaged wants an anon_vma
    assert not settings.allowed(Vma(HUGE + PAGE, 2 * HUGE, rw), smaps=True)
    assert settings.allowed(Vma(HUGE + PAGE, 2 * HUGE, rw), fault=True)
    for flag in (mt.VM_NOHUGEPAGE, mt.VM_HUGETLB, mt.VM_IO, mt.VM_DONTEXPAND, mt.VM_PFNMAP):
        assert not settings.allowed(Vma(HUGE, 2 * HUGE, rw | flag), smaps=True)
    settings.enabled = "never"
    assert not settings.allowed(Vma(HUGE, 2 * HUGE, rw | mt.VM_HUGEPAGE), smaps=True)
    assert settings.allowed(Vma(HUGE, 2 * HUGE, rw), smaps=True, enforce=False)


def test_advice_for_a_part_splits_the_page() -> None:
    m = HugeMachine()
    p = m.process()
    at = m.mmap(p, 4 * MIB)
    m.write(p, at, 4 * MIB)
    m.advise(p, at + MIB, MIB, mman.MADV_FREE)
    assert (m.event(stats.THP_SPLIT_PAGE), m.event(stats.THP_SPLIT_PMD), m.thps) == (1, 1, 1)
    assert m.event(stats.PGLAZYFREE) == 255  # of 256, for one waits in a batch
    m.user.lru.drain_all()
    assert (m.event(stats.PGLAZYFREE), m.rss(p)) == (256, 1024)
    m.check()
    m.advise(p, at + HUGE, HUGE, mman.MADV_FREE)
    assert (m.event(stats.PGLAZYFREE), m.thps) == (768, 1)
    m.check()
    m.exit(p)
    assert m.free_pages() == m.free_at_boot
