"""SLUB's lists: the order in which objects and slabs go out, in the three builds of the core."""

import random

import numpy as np
import pytest

from kmemd.core import slab, slab_layout
from kmemd.core.pages import PG_SLAB, PageMap
from kmemd.core.slab_lists import SlabLists
from kmemd.core.stats import NR_SLAB_UNRECLAIMABLE_B, NR_VM_NODE_STAT_ITEMS
from tests.core import builds

BASE = 0xFFFF888000000000
NODE_PAGES = 4096
ANY = -1
NORMAL = 2
STAT = {name: item for item, name in enumerate(slab_layout.STAT_NAMES)}


class Driver:
    """One core with caches, and pages that go out in order of their numbers."""

    def __init__(self, module, cpus=1, nodes=1):
        self.pages = PageMap(nodes * NODE_PAGES)
        self.node_stat = np.zeros((nodes, NR_VM_NODE_STAT_ITEMS), dtype=np.int64)
        self.words = np.zeros(16, dtype=np.int64)
        near = [[nid, *(other for other in range(nodes) if other != nid)] for nid in range(nodes)]
        spans = [(nid * NODE_PAGES, (nid + 1) * NODE_PAGES, nid) for nid in range(nodes)]
        cpu_node = [cpu * nodes // cpus for cpu in range(cpus)]
        self.core = module.SlabCore(
            self.pages, self.node_stat, self.words, BASE, cpu_node, list(range(nodes)), [near] * 4, spans
        )
        self.lists = SlabLists(self.core, self.pages, BASE)
        self.next = [nid * NODE_PAGES + 16 for nid in range(nodes)]
        self.orders = {}

    def cache(self, size=512, order=0, cpu_partial_slabs=4, min_partial=5, start=0, debug=False, defrag=1000):
        index = self.core.add_cache()
        self.core.configure(
            index, size, start, cpu_partial_slabs, min_partial, debug, debug, NR_SLAB_UNRECLAIMABLE_B, defrag
        )
        self.orders[index] = order
        return index

    def alloc(self, cache, n, cpu=0, node=ANY):
        out = np.zeros(n, dtype=np.uint64)
        done = self.core.alloc(cache, cpu, node, NORMAL, out, 0, n)
        order = self.orders[cache]
        while done < n:
            nid = max(node, 0)
            pfn = (self.next[nid] + (1 << order) - 1) >> order << order
            self.next[nid] = pfn + (1 << order)
            done = self.core.feed(cache, cpu, node, NORMAL, out, done, n, pfn, order, False)
        return out

    def free(self, addresses, cpu=0, cache=ANY):
        array = np.array(addresses, dtype=np.uint64)
        return self.core.free(cpu, array, 0, len(array), cache)

    def stat(self, cache, name, cpu=0):
        return int(self.core.arrays["stats"][(cache * self.core.ncpus + cpu) * 26 + STAT[name]])

    def discarded(self):
        blocks = list(self.core.discarded)
        self.core.discarded.clear()
        return [(block >> 4, block & 15) for block in blocks]

    def pfns(self, slabs):
        return [self.lists.pfn(number) for number in slabs]

    def state(self):
        """Everything that the core remembers."""
        arrays = {name: array.tolist() for name, array in self.core.arrays.items()}
        return arrays, list(self.core.discarded), self.node_stat.tolist(), self.pages.mapping.tolist()


@pytest.fixture(scope="module", params=["built", "uncompiled", "checked"])
def module(request):
    if request.param == "built":
        return slab
    return builds.uncompiled("slab") if request.param == "uncompiled" else builds.checked("slab")


def offsets(addresses):
    return [int(address) - BASE for address in addresses]


def test_fresh_slab_gives_objects_in_order(module):
    driver = Driver(module)
    cache = driver.cache(size=512)
    page = 16 * 4096
    assert offsets(driver.alloc(cache, 9)) == [*range(page, page + 4096, 512), page + 4096]
    assert driver.stat(cache, "alloc_slab") == 2
    assert driver.stat(cache, "alloc_slowpath") == 2
    assert driver.stat(cache, "alloc_fastpath") == 7
    assert driver.stat(cache, "deactivate_bypass") == 1
    assert driver.node_stat[0, NR_SLAB_UNRECLAIMABLE_B] == 2
    assert driver.pages.flags[16] >> PG_SLAB & 1


def test_red_zone_moves_the_first_object(module):
    driver = Driver(module)
    cache = driver.cache(size=512, start=64)
    assert offsets(driver.alloc(cache, 2)) == [16 * 4096 + 64, 16 * 4096 + 576]


def test_cpu_slab_is_last_in_first_out(module):
    driver = Driver(module)
    cache = driver.cache(size=512)
    first = driver.alloc(cache, 4)
    assert driver.free(first[[1, 3, 0]]) == 3
    assert driver.stat(cache, "free_fastpath") == 3
    assert list(driver.alloc(cache, 4)) == [first[0], first[3], first[1], first[3] + 512]


def test_objects_freed_by_another_cpu_come_back_after_the_own_list(module):
    driver = Driver(module, cpus=2)
    cache = driver.cache(size=512)
    objects = driver.alloc(cache, 6)
    driver.free(objects[[2, 4]], cpu=1)
    assert driver.stat(cache, "free_frozen", cpu=1) == 2
    again = driver.alloc(cache, 4)
    assert list(again) == [objects[0] + 6 * 512, objects[0] + 7 * 512, objects[4], objects[2]]
    assert driver.stat(cache, "alloc_refill") == 1


def test_freeing_in_a_full_slab_puts_it_on_the_cpu_partial_list(module):
    driver = Driver(module)
    cache = driver.cache(size=512, cpu_partial_slabs=3)
    objects = driver.alloc(cache, 8 * 5).reshape(5, 8)
    driver.free(objects[:3, 0])
    index = cache
    assert driver.pfns(driver.lists.cpu_partial(index, 0)) == [18, 17, 16]
    assert [driver.lists.slabs_from(s) for s in driver.lists.cpu_partial(index, 0)] == [3, 2, 1]
    # the fourth slab finds the list full: the three go to the node, the newest first, each at the tail
    driver.free(objects[3, :1])
    assert driver.pfns(driver.lists.cpu_partial(index, 0)) == [19]
    assert driver.pfns(driver.lists.partial(index, 0)) == [18, 17, 16]
    assert driver.stat(cache, "cpu_partial_drain") == 1
    assert driver.stat(cache, "free_add_partial") == 3
    assert driver.stat(cache, "cpu_partial_free") == 4


def test_taking_from_the_node_fills_half_the_cpu_partial_list(module):
    driver = Driver(module)
    cache = driver.cache(size=512, cpu_partial_slabs=4, min_partial=100)
    objects = driver.alloc(cache, 8 * 10).reshape(10, 8)
    driver.free(objects[:8, 0])
    driver.core.flush(cache, 0)
    assert driver.pfns(driver.lists.partial(cache, 0)) == [19, 18, 17, 16, 23, 22, 21, 20]
    got = driver.alloc(cache, 1)
    assert got[0] == objects[3, 0]
    # cpu_partial_slabs / 2 + 1 more slabs came along
    assert driver.pfns(driver.lists.cpu_partial(cache, 0)) == [16, 17, 18]
    assert driver.stat(cache, "alloc_from_partial") == 1
    assert driver.stat(cache, "cpu_partial_node") == 3
    assert list(driver.alloc(cache, 2)) == [objects[0, 0], objects[1, 0]]
    assert driver.stat(cache, "cpu_partial_alloc") == 2


def test_empty_slab_goes_when_the_node_has_enough(module):
    driver = Driver(module)
    cache = driver.cache(size=512, cpu_partial_slabs=0, min_partial=1)
    objects = driver.alloc(cache, 8 * 4).reshape(4, 8)
    driver.free(objects[0])
    driver.free(objects[1])
    driver.core.flush(cache, 0)
    assert driver.pfns(driver.lists.partial(cache, 0)) == [16]
    assert driver.discarded() == [(17, 0)]
    assert driver.stat(cache, "free_slab") == 1
    assert driver.pages.mapping[17] == 0
    driver.free(objects[2])
    driver.core.flush(cache, 0)
    assert driver.discarded() == [(18, 0)]


def test_partial_slab_that_becomes_empty_leaves_the_list(module):
    driver = Driver(module)
    cache = driver.cache(size=2048, cpu_partial_slabs=0, min_partial=0)
    objects = driver.alloc(cache, 6).reshape(3, 2)
    driver.free(objects[0, :1])
    driver.core.flush(cache, 0)
    assert driver.pfns(driver.lists.partial(cache, 0)) == [16]
    driver.free(objects[0, 1:])
    assert driver.discarded() == [(16, 0)]
    assert driver.stat(cache, "free_remove_partial") == 1


def test_flush_joins_the_cpu_list_before_the_slabs_own(module):
    driver = Driver(module, cpus=2)
    cache = driver.cache(size=512)
    objects = driver.alloc(cache, 5)
    driver.free(objects[[0, 1]])
    driver.free(objects[[3]], cpu=1)
    driver.core.flush(cache, 0)
    (number,) = driver.lists.partial(cache, 0)
    assert driver.lists.freelist(number) == [1, 0, 5, 6, 7, 3]
    assert driver.stat(cache, "deactivate_remote_frees") == 1
    assert driver.stat(cache, "deactivate_to_tail") == 1
    assert driver.stat(cache, "cpuslab_flush") == 1


def test_shrink_puts_the_fullest_slabs_first(module):
    driver = Driver(module)
    cache = driver.cache(size=64, cpu_partial_slabs=0, min_partial=100)
    objects = driver.alloc(cache, 64 * 7).reshape(7, 64)
    for row, free in enumerate((40, 2, 1, 64, 2, 64)):
        driver.free(objects[row, :free])
    driver.core.flush(cache, 0)
    driver.lists.shrink(cache, 0)
    # one free; two free, the later one first; then the one with too many free to be promoted
    assert driver.pfns(driver.lists.partial(cache, 0)) == [18, 20, 17, 16]
    assert driver.discarded() == [(21, 0), (19, 0)]


def test_node_constraint_puts_the_wrong_slab_back(module):
    driver = Driver(module, cpus=2, nodes=2)
    cache = driver.cache(size=512)
    driver.alloc(cache, 1, cpu=0)
    got = driver.alloc(cache, 1, cpu=0, node=1)
    assert int(got[0]) - BASE == (NODE_PAGES + 16) * 4096
    assert driver.stat(cache, "alloc_node_mismatch") == 1
    assert driver.stat(cache, "deactivate_to_head") == 1
    assert driver.pfns(driver.lists.partial(cache, 0)) == [16]


def test_other_nodes_help_when_they_have_more_than_enough(module):
    driver = Driver(module, cpus=2, nodes=2)
    cache = driver.cache(size=2048, cpu_partial_slabs=0, min_partial=1)
    objects = driver.alloc(cache, 6, cpu=1, node=1).reshape(3, 2)
    driver.free(objects[:2, 0], cpu=1)
    driver.core.flush(cache, 1)
    assert len(driver.lists.partial(cache, 1)) == 2
    out = np.zeros(1, dtype=np.uint64)
    driver.words[0] = 1001  # a cycle count above the ratio of 1000: this request stays local
    assert driver.core.alloc(cache, 0, ANY, NORMAL, out, 0, 1) == 0
    driver.words[0] = 1000
    assert driver.core.alloc(cache, 0, ANY, NORMAL, out, 0, 1) == 1
    assert out[0] == objects[0, 0]


def test_debugged_cache_has_no_cpu_slabs(module):
    driver = Driver(module)
    cache = driver.cache(size=512, debug=True)
    objects = driver.alloc(cache, 17)
    assert driver.stat(cache, "alloc_fastpath") == 0
    assert driver.stat(cache, "alloc_slowpath") == 17
    assert driver.pfns(driver.lists.full(cache, 0)) == [17, 16]
    assert driver.pfns(driver.lists.partial(cache, 0)) == [18]
    driver.free(objects[:1])
    assert driver.pfns(driver.lists.partial(cache, 0)) == [18, 16]
    assert driver.pfns(driver.lists.full(cache, 0)) == [17]


def test_addresses_that_are_no_objects_stop_free(module):
    driver = Driver(module)
    cache, other = driver.cache(size=512), driver.cache(size=256)
    good = driver.alloc(cache, 3)
    foreign = driver.alloc(other, 1)
    for bad in (0, 16, BASE - 4096, BASE, int(good[0]) + 8, BASE + NODE_PAGES * 4096, (1 << 64) - 1):
        assert driver.free([bad]) == 0
    assert driver.free([good[0], good[0]]) == 1
    assert driver.free(foreign, cache=cache) == 0
    assert driver.lists.locate(int(good[0]))[0] == slab_layout.FREE_OBJECT
    assert driver.lists.locate(int(good[1]))[0] == slab_layout.OBJECT
    assert driver.lists.locate(int(good[1]) + 1)[0] == slab_layout.MISALIGNED
    assert driver.lists.locate(BASE)[0] == slab_layout.NO_SLAB


def test_a_slab_number_is_used_again_with_a_fresh_list(module):
    driver = Driver(module)
    cache = driver.cache(size=1024, cpu_partial_slabs=0, min_partial=0)
    first = driver.alloc(cache, 8)
    driver.free(first[[2, 0, 1, 3]])
    driver.core.flush(cache, 0)
    assert driver.discarded() == [(16, 0)]
    assert offsets(driver.alloc(cache, 4)) == [18 * 4096 + step for step in range(0, 4096, 1024)]


def churn(driver, seed, operations):
    """Random work on three caches and two CPUs."""
    rng = random.Random(seed)
    caches = [
        driver.cache(size=96, cpu_partial_slabs=2, min_partial=2),
        driver.cache(size=1024, order=1, cpu_partial_slabs=1, min_partial=1),
        driver.cache(size=384, start=32, debug=True, min_partial=1),
    ]
    held = {cache: [] for cache in caches}
    trace = []
    for _ in range(operations):
        cache, cpu = rng.choice(caches), rng.randrange(2)
        driver.words[0] += rng.randrange(700)
        what = rng.random()
        if what < 0.5:
            got = driver.alloc(cache, rng.randrange(1, 40), cpu, rng.choice((ANY, ANY, 0, 1)))
            held[cache] += got.tolist()
            trace.append(got.tolist())
        elif what < 0.95:
            rng.shuffle(held[cache])
            gone, held[cache] = held[cache][:50], held[cache][50:]
            assert driver.free(gone, cpu) == len(gone)
        elif what < 0.98:
            driver.core.flush(cache, cpu)
        else:
            driver.lists.shrink(cache, rng.randrange(2))
    live = sum(map(len, held.values()))
    assert sum(len(driver.lists.used(number)) for number in driver.lists.live()) == live
    return trace


def test_the_builds_agree():
    states = []
    for built in (slab, builds.uncompiled("slab"), builds.checked("slab")):
        driver = Driver(built, cpus=2, nodes=2)
        trace = churn(driver, 7, 400)
        states.append((trace, driver.state()))
    assert states[0] == states[1]
    assert states[0] == states[2]


def test_arenas_grow_without_losing_links(module):
    driver = Driver(module)
    cache = driver.cache(size=8, cpu_partial_slabs=1)
    objects = driver.alloc(cache, 512 * 200).reshape(200, 512)
    driver.free(objects[0, [5, 3, 9]])
    driver.core.flush(cache, 0)
    (number,) = driver.lists.partial(cache, 0)
    assert driver.lists.freelist(number) == [9, 3, 5]
    assert len(driver.core.arrays["link"]) >= 512 * 200
