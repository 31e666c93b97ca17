"""Which pages go first: the replacement policy, and how well it does.

Models: Linux's two, the active and inactive lists (``two-list``) and generations (``mglru``, the same switch as
``/sys/kernel/mm/lru_gen/enabled``), and three of the textbook for comparison. These keep a list for anonymous and one
for file pages of each lruvec, and reclaim from their old ends as much as swappiness and costs say:

- ``fifo``: what came first goes first, used or not;
- ``clock``: a page that was used since the hand came by stays, once;
- ``lru``: a page that is used becomes the youngest. Exact for system calls; of an access through a mapping only the
  accessed bit tells, when the page is met at the old end.

A policy is what new pages and used pages do, which is core/lru_lists.py's and core/lru.py's, and ``evict``. Switching
moves all pages to the lists of the new policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.lru_lists import (
    CLOCK,
    FIFO,
    HITS,
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    MGLRU,
    MISSES,
    NR_LRU_LISTS,
    POLICY,
    TRUE_LRU,
    TWO_LIST,
)
from kmemd.core.pages import PG_REFERENCED, PageMap
from kmemd.mm.filemap import PageCache, PFNs, flag
from kmemd.mm.lru_gen import Generations
from kmemd.mm.lru_gen_evict import GenEviction
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.mmzone import Node
from kmemd.mm.vmscan_balance import SWAP_CLUSTER_MAX, Balance, ScanControl
from kmemd.mm.vmscan_folio import ListScan
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.vmscan_reclaim import Pauses

Marks = npt.NDArray[np.bool_]
NAMES = {"two-list": TWO_LIST, "mglru": MGLRU, "fifo": FIFO, "clock": CLOCK, "lru": TRUE_LRU}
COUNTED = (
    ("refault_file", stats.WORKINGSET_REFAULT_FILE),
    ("refault_anon", stats.WORKINGSET_REFAULT_ANON),
)
EVENTS = (("pgmajfault", stats.PGMAJFAULT), ("pswpin", stats.PSWPIN), ("pgsteal_file", stats.PGSTEAL_FILE))
MOVED_AT_ONCE = 1 << 14
STRIDE = 512
_REFERENCED = flag(PG_REFERENCED)


class OneList:
    """The policies with one list: ``shrink_lruvec`` as reclaim wants it, ``spared`` what each policy says."""

    def __init__(
        self, pages: PageMap, lru: Lru, lists: ListScan, balance: Balance, vmstat: VmStat, wait: Callable[[int], int]
    ) -> None:
        self._pages, self._lru, self._lists, self._balance = pages, lru, lists, balance
        self._vmstat, self._wait = vmstat, wait

    def shrink_lruvec(self, memcg: int, nid: int, sc: ScanControl) -> Pauses[None]:
        """Evict from the old ends of the two lists, in proportion to the balance."""
        nr = self._balance.scan_count(memcg, nid, sc)
        goal = sc.nr_reclaimed + sc.nr_to_reclaim
        while (nr[LRU_INACTIVE_ANON] or nr[LRU_INACTIVE_FILE]) and sc.nr_reclaimed < goal:
            alone = not nr[LRU_INACTIVE_ANON] or not nr[LRU_INACTIVE_FILE]
            for which in (LRU_INACTIVE_ANON, LRU_INACTIVE_FILE):
                part = min(nr[which], max(SWAP_CLUSTER_MAX, min(goal - sc.nr_reclaimed, STRIDE if alone else 0)))
                nr[which] -= part
                if part:
                    self._wait(0)
                    self._evict(memcg, nid, which, part, sc)
            yield 0

    def _evict(self, memcg: int, nid: int, which: int, count: int, sc: ScanControl) -> None:
        """The oldest pages of a list go, or get what the policy gives them."""
        pfns, scanned, taken = self._lists.isolate(memcg, nid, which, count, sc)
        spared = self.spared(pfns)
        self._lists.putback(pfns[spared])
        freed, kept = self._lists.shrink_folio_list(pfns[~spared], nid, sc, references=False)
        self._lists.putback(kept)
        self._lists.count_scan(memcg, nid, which, scanned, freed, sc)
        self._vmstat.node_stat[nid, stats.NR_ISOLATED_ANON + (which >= LRU_INACTIVE_FILE)] -= taken
        sc.nr_reclaimed += freed

    def spared(self, pfns: PFNs) -> Marks:
        """Which of the oldest pages are not evicted, because they were used."""
        policy = int(self._lru.words[POLICY])
        if policy == FIFO:
            return np.zeros(len(pfns), dtype=bool)
        counts, _ = self._lists.referenced(pfns)
        used: Marks = counts > 0
        if policy == CLOCK:
            used |= self._pages.flags[pfns] & _REFERENCED != 0
            self._pages.flags[pfns] &= ~_REFERENCED
        return used


class Replacement:
    """The policy in force. ``changed(core)`` is told whether generations are on."""

    def __init__(
        self,
        lru: Lru,
        lruvecs: LruVecs,
        vmstat: VmStat,
        cache: PageCache,
        generations: Generations,
        gens: GenEviction,
        one_list: OneList,
        changed: Callable[[bool], None],
    ) -> None:
        self._lru, self._lruvecs, self._vmstat, self._cache = lru, lruvecs, vmstat, cache
        self.generations, self.gens, self._one_list, self._changed = generations, gens, one_list, changed
        self._start: dict[str, int] = {}
        self._begin()

    @property
    def name(self) -> str:
        """The policy's name."""
        return next(name for name, number in NAMES.items() if number == self._lru.words[POLICY])

    # -- reclaim -----------------------------------------------------------------------------------------

    @property
    def two_list(self) -> bool:
        """Whether reclaim's own way is in force."""
        return not self._lru.words[POLICY]

    def shrink_lruvec(self, memcg: int, nid: int, sc: ScanControl) -> Pauses[None]:
        """Evict pages of a lruvec."""
        if self._lru.words[POLICY] == MGLRU:
            return self.gens.shrink_lruvec(memcg, nid, sc)
        return self._one_list.shrink_lruvec(memcg, nid, sc)

    def age_node(self, node: Node, sc: ScanControl) -> Pauses[None]:
        """What kswapd does before it evicts: the one-list policies need nothing."""
        if self._lru.words[POLICY] == MGLRU:
            yield from self.generations.age_node(node, sc)

    # -- switching ---------------------------------------------------------------------------------------

    def select(self, name: str) -> Iterator[None]:
        """Another policy from now on; all pages move to its lists, some between two yields."""
        number = NAMES[name]
        if number == self._lru.words[POLICY]:
            return
        self._lru.words[POLICY] = number
        self._begin()
        self._changed(number == MGLRU)
        for key in self._foreign(number):
            while self._lru.refile(key, MOVED_AT_ONCE) == MOVED_AT_ONCE:
                yield

    def _foreign(self, number: int) -> Iterator[int]:
        """Lists that a policy has no use for, in Linux's order (``lru_gen_change_state``)."""
        for lruvec in range(self._lru.lruvecs()):
            if number == MGLRU:
                yield from range(lruvec * NR_LRU_LISTS, lruvec * NR_LRU_LISTS + NR_LRU_LISTS - 1)
                continue
            yield from self._lru.gen_keys(lruvec)
            if number:
                yield from (lruvec * NR_LRU_LISTS + which for which in (LRU_ACTIVE_ANON, LRU_ACTIVE_FILE))

    # -- how well ----------------------------------------------------------------------------------------

    def _numbers(self) -> dict[str, int]:
        found = {"hits": int(self._lru.words[HITS]), "misses": int(self._lru.words[MISSES])}
        found |= {name: self._vmstat.node_total(item) for name, item in COUNTED}
        return found | {name: int(self._vmstat.events[event]) for name, event in EVENTS}

    def _begin(self) -> None:
        self._start = self._numbers()

    def counts(self) -> dict[str, int]:
        """Since the last switch: pages that read(2) found and did not find, and pages that were missed again after
        they had been evicted, major faults, pages swapped in, file pages reclaimed."""
        return {name: value - self._start[name] for name, value in self._numbers().items()}
