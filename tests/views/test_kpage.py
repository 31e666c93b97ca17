"""kpageflags, kpagecount, kpagecgroup: what they say of page frames adds up to what the counters say."""

import random
import re

import numpy as np
import pytest

from kmemd import System
from kmemd.core import stats
from kmemd.core.pages import PG_TABLE
from kmemd.views.kpage import (
    KPF_BUDDY,
    KPF_COMPOUND_HEAD,
    KPF_COMPOUND_TAIL,
    KPF_HUGE,
    KPF_NOPAGE,
    KPF_PGTABLE,
    KPF_RESERVED,
    KPF_SLAB,
    KPF_THP,
    KPF_ZERO_PAGE,
)
from kmemd.views.tree import Caller

FILES = ("kpageflags", "kpagecount", "kpagecgroup")
CHUNK = 1 << 16


@pytest.fixture
def system():
    return System.boot("two-node", seed=3)


def words(system, name="kpageflags", low=0, count=None):
    """Entries of one of the files, read in pieces of odd sizes."""
    file = system.tree.open(system.tree.lookup(f"/proc/{name}"), Caller())
    if count is not None:
        return np.frombuffer(file.read(low * 8, count * 8), dtype="<u8")
    return np.frombuffer(system.read(f"/proc/{name}"), dtype="<u8")


def having(flags, bit):
    return (flags >> np.uint64(bit) & np.uint64(1)).astype(bool)


def total(system, item):
    return sum(zone.stat(item) for zone in system.kernel.zones)


def test_free_pages_are_those_of_the_buddy_system(system):
    flags = words(system)
    assert having(flags, KPF_BUDDY).sum() == total(system, stats.NR_FREE_PAGES)
    system.command("pages = alloc_pages order=0 n=3000")
    system.command("blocks = alloc_pages order=10 n=3")
    flags = words(system)
    assert having(flags, KPF_BUDDY).sum() == total(system, stats.NR_FREE_PAGES)
    system.command("free_pages blocks")
    assert having(words(system), KPF_BUDDY).sum() == total(system, stats.NR_FREE_PAGES)


def test_slab_pages_and_reserved_pages_are_all_there(system):
    flags = words(system)
    nodes = system.kernel.nodes
    in_slabs = sum(node.stat(stats.NR_SLAB_RECLAIMABLE_B) + node.stat(stats.NR_SLAB_UNRECLAIMABLE_B) for node in nodes)
    assert having(flags, KPF_SLAB).sum() == in_slabs
    online = len(flags) - having(flags, KPF_NOPAGE).sum()
    assert having(flags, KPF_RESERVED).sum() == online - system.kernel.totalram_pages()
    assert not (having(flags, KPF_RESERVED) & having(flags, KPF_BUDDY)).any()


def test_tables_of_address_spaces_are_marked(system):
    flags = words(system)
    marked = (system.kernel.pages.flags[: len(flags)] >> PG_TABLE & 1).sum()
    assert having(flags, KPF_PGTABLE).sum() == marked
    assert marked == sum(node.stat(stats.NR_PAGETABLE) for node in system.kernel.nodes)


def test_a_compound_page_has_a_head_and_tails(system):
    pfn = int(re.search(r"pfn=(\d+)", system.command("p = alloc_pages order=3 gfp=GFP_KERNEL|__GFP_COMP"))[1])
    assert words(system, low=pfn, count=8).tolist() == [1 << KPF_COMPOUND_HEAD, *[1 << KPF_COMPOUND_TAIL] * 7]
    assert words(system, low=pfn + 5, count=2).tolist() == [1 << KPF_COMPOUND_TAIL] * 2
    plain = int(re.search(r"pfn=(\d+)", system.command("q = alloc_pages order=3 gfp=GFP_KERNEL"))[1])
    assert words(system, low=plain, count=8).tolist() == [0] * 8
    system.command("free_pages q")
    system.command("free_pages p")
    assert not having(words(system, low=pfn, count=8), KPF_COMPOUND_TAIL).any()


def test_huge_pages_of_a_pool_are_huge_and_not_transparent(system):
    system.write("/proc/sys/vm/nr_hugepages", "5\n")
    flags = words(system)
    huge = having(flags, KPF_HUGE)
    assert huge.sum() == 5 * 512
    assert (huge & having(flags, KPF_COMPOUND_HEAD)).sum() == 5
    assert not (huge & having(flags, KPF_THP)).any()


def test_the_zero_page_is_reserved_and_mapped_by_none(system):
    pfn = system.kernel.mmu.zero_pfn
    assert words(system, low=pfn, count=1).tolist() == [1 << KPF_ZERO_PAGE | 1 << KPF_RESERVED]
    assert words(system, "kpagecount", low=pfn, count=1).tolist() == [0]


def test_holes_between_sections_have_no_page(system):
    flags = words(system)
    holes = np.flatnonzero(having(flags, KPF_NOPAGE))
    assert (holes[0] % 32768, len(holes) % 32768) == (0, 0)
    assert set(flags[holes].tolist()) == {1 << KPF_NOPAGE}
    assert not words(system, "kpagecount")[holes].any()


def test_i386_has_a_flat_map_that_ends_with_memory():
    system = System.boot("highmem", seed=3)
    flags = words(system)
    assert len(flags) == system.kernel.layout.max_pfn
    assert not having(flags, KPF_NOPAGE).any()


@pytest.mark.parametrize("name", FILES)
def test_any_aligned_range_is_a_part_of_the_whole(system, name):
    system.command("pages = alloc_pages order=2 n=500")
    whole, rng = words(system, name), random.Random(5)
    for _ in range(60):
        low, count = rng.randrange(len(whole)), rng.randrange(1, 3000)
        assert words(system, name, low, count).tolist() == whole[low : low + count].tolist(), (low, count)


@pytest.mark.parametrize("name", FILES)
def test_only_whole_entries_are_read_and_none_behind_the_end(system, name):
    file = system.tree.open(system.tree.lookup(f"/proc/{name}"), Caller())
    for offset, size in ((1, 8), (0, 7), (4, 16)):
        with pytest.raises(Exception, match="EINVAL"):
            file.read(offset, size)
    end = len(words(system, name)) * 8
    assert len(file.read(end - 8, 4096)) == 8
    assert file.read(end, 8) == file.read(1 << 50, 8) == b""
    assert system.tree.lookup(f"/proc/{name}").entry.mode == 0o400
    with pytest.raises(OSError, match="EIO"):
        system.write(f"/proc/{name}", b"x")


def test_user_memory_is_charged_to_the_root_group(system):
    charged = words(system, "kpagecgroup")
    nodes = system.kernel.nodes
    lru = sum(
        node.stat(item)
        for node in nodes
        for item in (stats.NR_INACTIVE_ANON, stats.NR_ACTIVE_ANON, stats.NR_INACTIVE_FILE, stats.NR_ACTIVE_FILE)
    )
    assert set(charged.tolist()) == {0, 1}
    assert charged.sum() >= lru
    plain = System.boot("two-node", seed=3, cmdline="cgroup_disable=memory")
    assert not words(plain, "kpagecgroup").any()
