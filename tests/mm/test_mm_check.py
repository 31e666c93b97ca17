"""A corrupted state of user memory is found: entries, page counts, RSS counters, free lists."""

from __future__ import annotations

import numpy as np
import pytest

from kmemd.core.buddy_state import BuddyState
from kmemd.core.mmu import Mmu
from kmemd.core.pte import PRESENT
from kmemd.mm.compound import distinct
from kmemd.mm.mm_types import MM_ANONPAGES, NR_MM_COUNTERS, Mm
from kmemd.system import System


@pytest.fixture
def system() -> System:
    system = System.boot(machine="default", cmdline="transparent_hugepage=never")
    system.run(["p = spawn a", "m = mmap p 64K", "access p m 64K w", "n = mmap p 4K", "q = fork p"])
    system.check()
    return system


def parts(system: System) -> tuple[Mm, Mmu, int, int]:
    """A process' memory: its mm, the page tables, the page number of the mapping and the place of its entry."""
    mm = next(task.mm for task in system.kernel.tasks if task.comm == "a")
    vma = next(vma for vma in mm.vmas if vma.is_anon and vma.pages in (16, 17))
    return mm, system.kernel.mmu, vma.vpn, system.kernel.mmu.leaf(mm.id, vma.vpn + 1)[0]


def noticed(system: System, words: np.ndarray, at: int, value: int, match: str) -> None:
    """A number that is wrong is told of, and right again all is well."""
    before = words[at]
    words[at] = value
    with pytest.raises(AssertionError, match=match):
        system.check()
    words[at] = before
    system.check()


def test_an_entry_outside_of_mappings_is_found(system: System) -> None:
    mm, mmu, vpn, slot = parts(system)
    end = max(vma.end >> 12 for vma in mm.vmas if mmu.leaf(mm.id, vma.vpn)[0] >> mmu.bits == slot >> mmu.bits)
    outside = slot - (vpn + 1) + end
    assert outside >> mmu.bits == slot >> mmu.bits
    noticed(system, mmu.words, outside, int(mmu.words[slot]), f"outside of mappings at page {end:#x}")
    assert mm.find(vpn - 1 << 12) is None
    noticed(system, mmu.words, slot - 2, int(mmu.words[slot]), f"outside of mappings at page {vpn - 1:#x}")


def test_an_entry_that_vanished_is_found(system: System) -> None:
    _, mmu, _, slot = parts(system)
    noticed(system, mmu.words, slot, 0, "RSS counters")
    noticed(system, mmu.words, slot, int(mmu.words[slot]) & ~PRESENT, "RSS counters")


def test_a_wrong_mapcount_is_found(system: System) -> None:
    _, mmu, _, slot = parts(system)
    pfn = (int(mmu.words[slot]) >> 12) & ((1 << 40) - 1)
    noticed(system, system.kernel.pages.mapcount, pfn, 3, f"mapcount of pfn {pfn} is 3")


def test_a_wrong_rss_counter_is_found(system: System) -> None:
    mm, mmu, _, _ = parts(system)
    at = mm.id * NR_MM_COUNTERS + MM_ANONPAGES
    noticed(system, mmu.rss, at, int(mmu.rss[at]) + 1, "RSS counters")


def test_a_page_on_two_lists_is_found(system: System) -> None:
    kernel = system.kernel
    kernel.page_alloc.drain_all_pages()
    zone = next(zone for zone in kernel.zones if sum(zone.nr_free[:3]) > 1)
    order = next(order for order in range(3) if zone.nr_free[order])
    mt = next(mt for mt in range(4) if zone.nr_free_type(mt)[order])
    head = BuddyState(kernel.buddy).free_list(zone.index, order, mt)[0]
    before = kernel.pages.meta[head]
    kernel.pages.meta[head] = (int(before) & ~0xFF00) | (order + 1) << 8
    with pytest.raises(AssertionError):
        system.check()
    kernel.pages.meta[head] = before
    system.check()


def test_each_number_once() -> None:
    numbers = np.array([5, 3, 5, 5, 9, 3], dtype=np.int64)
    assert distinct(numbers).tolist() == [3, 5, 9]
    assert distinct(numbers[:0]).tolist() == []
