"""Proof that SLUB's lists and counters are what its slabs say. There is no Linux counterpart but ``validate_slab``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from kmemd.core.slab_layout import NR_OBJECTS, NR_PARTIAL, NR_SLABS
from kmemd.core.stats import NR_SLAB_RECLAIMABLE_B, NR_SLAB_UNRECLAIMABLE_B
from kmemd.mm import slab_flags as sf

if TYPE_CHECKING:
    from kmemd.mm.slab_common import KmemCache
    from kmemd.mm.slub import Slub


def check_slub(slub: Slub, caches: Iterable[KmemCache]) -> None:
    """Check the caches, and when they are all, the pages in slabs too. AssertionError on a difference."""
    chosen = list(caches)
    slabs: dict[int, list[int]] = {}
    for slab in slub.lists.live():
        slabs.setdefault(slub.lists.cache(slab), []).append(slab)
    for cache in chosen:
        _check_cache(slub, cache, slabs.get(cache.index, []))
    if len(chosen) == len(slub.caches):
        assert set(slabs) <= {cache.index for cache in chosen}, "a slab belongs to no cache"
        _check_pages(slub, slabs)


def _check_cache(slub: Slub, cache: KmemCache, slabs: list[int]) -> None:
    """Every slab is in one place, its counts fit its lists, and the node counters fit the slabs."""
    lists = slub.lists
    frozen = _check_cpus(slub, cache)
    listed: Counter[int] = Counter(frozen)
    for nid in slub.slab_nodes:
        partial, full = lists.partial(cache.index, nid), lists.full(cache.index, nid)
        listed.update([*partial, *full])
        here = [slab for slab in slabs if lists.nid(slab) == nid]
        counts = {NR_PARTIAL: len(partial), NR_SLABS: len(here), NR_OBJECTS: sum(map(lists.objects, here))}
        for column, count in counts.items():
            got = slub.node_count(cache, nid, column)
            assert got == count, f"{cache.name} node {nid}: column {column} is {got}, should be {count}"
        for slab in partial:
            assert lists.freelist(slab), f"{cache.name}: full slab {slab} is on the partial list"
            assert not lists.frozen(slab), f"{cache.name}: frozen slab {slab} is on the partial list"
            assert lists.nid(slab) == nid, f"{cache.name}: slab {slab} is on the list of another node"
        assert bool(full) <= bool(cache.flags & sf.SLAB_STORE_USER), f"{cache.name} keeps a full list"
    assert all(count == 1 for count in listed.values()), f"{cache.name}: a slab is in two places"
    assert set(listed) <= set(slabs), f"{cache.name}: a list holds another cache's slab"
    cpu_free = {
        lists.cpu_slab(cache.index, cpu): lists.cpu_freelist(cache.index, cpu) for cpu in range(slub.core.ncpus)
    }
    for slab in slabs:
        _check_slab(slub, cache, slab, cpu_free.get(slab, []), slab in frozen)
        if slab not in listed:
            assert lists.inuse(slab) == lists.objects(slab), f"{cache.name}: slab {slab} is lost"


def _check_cpus(slub: Slub, cache: KmemCache) -> list[int]:
    """The slabs that belong to CPUs; their partial lists carry the right lengths."""
    frozen = []
    for cpu in range(slub.core.ncpus):
        slab = slub.lists.cpu_slab(cache.index, cpu)
        partial = slub.lists.cpu_partial(cache.index, cpu)
        for left, member in zip(range(len(partial), 0, -1), partial, strict=True):
            assert slub.lists.slabs_from(member) == left, f"{cache.name} cpu {cpu}: wrong partial length"
        frozen += [slab, *partial] if slab else partial
    assert not (cache.debugged and frozen), f"{cache.name} is debugged and has slabs on CPUs"
    return frozen


def _check_slab(slub: Slub, cache: KmemCache, slab: int, cpu_free: list[int], frozen: bool) -> None:
    """No object is free twice; what is not free is allocated; ``inuse`` says so."""
    lists = slub.lists
    where = f"{cache.name} slab {slab}"
    free = lists.freelist(slab)
    objects = lists.objects(slab)
    assert lists.inuse(slab) == objects - len(free), f"{where}: inuse is {lists.inuse(slab)}"
    every = [*free, *cpu_free]
    unused = sum(1 << index for index in set(every))
    assert unused.bit_count() == len(every), f"{where}: an object is free twice"
    assert unused ^ lists.used_bits(slab) == (1 << objects) - 1, f"{where}: an object is lost"
    disabled = slab in slub.debugging.disabled
    assert lists.frozen(slab) == (frozen or disabled), f"{where}: frozen is wrong"


def _check_pages(slub: Slub, slabs: dict[int, list[int]]) -> None:
    """NR_SLAB_* are the pages of slabs and of large kmallocs, and every page knows its slab."""
    lists = slub.lists
    want = np.zeros((slub.core.nnodes, 2), dtype=np.int64)
    flags = {cache.index: cache.flags for cache in slub.caches}
    for index, members in slabs.items():
        column = 0 if flags[index] & sf.SLAB_RECLAIM_ACCOUNT else 1
        for slab in members:
            start, pages = lists.pfn(slab), 1 << lists.order(slab)
            assert (lists.slabs_at(start, start + pages) == slab).all(), f"a page of slab {slab} is not its own"
            want[lists.nid(slab), column] += pages
    for pfn, order in slub.large.items():
        want[slub.core.nid_of(pfn), 1] += 1 << order
    got = slub.node_stat[:, [NR_SLAB_RECLAIMABLE_B, NR_SLAB_UNRECLAIMABLE_B]]
    assert (got == want).all(), f"NR_SLAB_* are {got.tolist()}, should be {want.tolist()}"
