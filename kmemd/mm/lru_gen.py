"""The multi-generational LRU: generations, the controller, aging (mm/vmscan.c ``lru_gen_*``, include/linux/mmzone.h).

Models: sequence numbers and births of the generations of each lruvec, the feedback loop that says which type and which
tiers to evict (``read_ctrl_pos``, ``get_type_to_scan``), when a new generation is due (``should_run_aging``), making
one (``try_to_inc_max_seq``), kswapd's aging of all cgroups with ``min_ttl_ms``, evictions and refaults by tier. The
lists are core/lru_gen_lists.py's, page tables mm/lru_gen_walk.py's, evicting is mm/lru_gen_evict.py. Left out: several
walkers at once, and histories of generations (CONFIG_LRU_GEN_STATS).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.lru_gen import LruGen
from kmemd.core.lru_gen_lists import AVG_REFAULTED, AVG_TOTAL, CTRL_ROW, EVICTED, MIN_LRU_BATCH, PROTECTED, REFAULTED
from kmemd.core.lru_lists import FIRST_SEQ, MAX_NR_GENS, MAX_NR_TIERS, MGLRU, MIN_NR_GENS, POLICY, SEQS
from kmemd.mm.lru_gen_walk import PageTableWalk
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.mmzone import Node
from kmemd.mm.vmscan_balance import DEF_PRIORITY, Balance, ScanControl
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.vmscan_reclaim import Pauses

PFNs = npt.NDArray[np.int64]
ANON, FILE = 0, 1
LRU_GEN_CORE, LRU_GEN_MM_WALK, LRU_GEN_NONLEAF_YOUNG = 1, 2, 4
NR_MM_STATS = 6


class CtrlPos(NamedTuple):
    """Where a tier stands (``struct ctrl_pos``)."""

    refaulted: int
    total: int
    gain: int


@dataclass(slots=True)
class GenState:
    """What of a lruvec is not in the core: births of its generations in jiffies, and ``struct lru_gen_mm_state``.

    ``filters`` are the tables worth a walk by parity of the sequence number, None before the first; ``known`` the
    address spaces that were there at the last walk.
    """

    births: list[int] = field(default_factory=lambda: [0] * MAX_NR_GENS)
    mm_seq: int = MIN_NR_GENS
    stats: np.ndarray = field(default_factory=lambda: np.zeros(NR_MM_STATS, dtype=np.int64))
    filters: list[set[int] | None] = field(default_factory=lambda: [None, None])


class Generations:
    """Generations of all lruvecs. ``jiffies()`` is the clock; ``caps()`` the bits of ``enabled``, ``min_ttl()`` jiffies
    for which a workingset is protected; ``out_of_memory()`` what happens when it cannot be."""

    def __init__(
        self,
        core: LruGen,
        lru: Lru,
        lruvecs: LruVecs,
        balance: Balance,
        vmstat: VmStat,
        walk: PageTableWalk,
        jiffies: Callable[[], int],
        caps: Callable[[], int],
        min_ttl: Callable[[], int],
        swappiness: Callable[[], int],
        out_of_memory: Callable[[int], object],
    ) -> None:
        self.core, self._lru, self.lruvecs, self._balance = core, lru, lruvecs, balance
        self._vmstat, self._walk, self._jiffies = vmstat, walk, jiffies
        self._caps, self._min_ttl, self._swappiness, self._out_of_memory = caps, min_ttl, swappiness, out_of_memory
        self._nodes = len(vmstat.node_stat)
        self._states: dict[int, GenState] = {}

    @property
    def enabled(self) -> bool:
        """Whether pages are in generations (``lru_gen_enabled``)."""
        return bool(self._lru.words[POLICY] == MGLRU)

    # -- generations -------------------------------------------------------------------------------------

    def state(self, lruvec: int) -> GenState:
        """What belongs to a lruvec besides its lists."""
        found = self._states.get(lruvec)
        if found is None:
            found = self._states[lruvec] = GenState()
            if lruvec >= self._nodes:  # the root's were born with the kernel
                found.births = [self._jiffies()] * MAX_NR_GENS
        return found

    def forget(self, memcg: int) -> None:
        """A cgroup is gone for good (``lru_gen_exit_memcg``): whoever gets its number starts anew."""
        for lruvec in range(memcg * self._nodes, (memcg + 1) * self._nodes):
            self._states.pop(lruvec, None)
            self._lru.seqs[lruvec * SEQS : (lruvec + 1) * SEQS] = 0
            self.core.ctrl[lruvec * CTRL_ROW : (lruvec + 1) * CTRL_ROW] = 0

    def max_seq(self, lruvec: int) -> int:
        """The youngest generation."""
        return int(self._lru.seqs[lruvec * SEQS]) + FIRST_SEQ

    def min_seq(self, lruvec: int) -> tuple[int, int]:
        """The oldest generations, of anonymous and of file pages."""
        at = lruvec * SEQS
        return int(self._lru.seqs[at + 1]), int(self._lru.seqs[at + 2])

    def nr_gens(self, lruvec: int, file: int) -> int:
        """How many generations a type has."""
        return self.max_seq(lruvec) - self.min_seq(lruvec)[file] + 1

    def age_ms(self, lruvec: int, seq: int) -> int:
        """Milliseconds since a generation was born."""
        return self._walk.to_ms(self._jiffies() - self.state(lruvec).births[seq % MAX_NR_GENS])

    def swappiness(self, memcg: int) -> int:
        """The knob, 0 where there is next to nowhere to swap to (``get_swappiness``)."""
        return 0 if self._balance.swap_left(memcg) < MIN_LRU_BATCH else self._swappiness()

    # -- the controller ----------------------------------------------------------------------------------

    def ctrl(self, lruvec: int, kind: int, file: int, tier: int) -> int:
        """A number of the controller, by what it counts."""
        return int(self.core.ctrl[lruvec * CTRL_ROW + (kind * 2 + file) * MAX_NR_TIERS + tier])

    def _position(self, lruvec: int, file: int, tier: int, gain: int) -> CtrlPos:
        refaulted = self.ctrl(lruvec, AVG_REFAULTED, file, tier) + self.ctrl(lruvec, REFAULTED, file, tier)
        total = self.ctrl(lruvec, AVG_TOTAL, file, tier) + self.ctrl(lruvec, EVICTED, file, tier)
        if tier:
            total += self.ctrl(lruvec, PROTECTED, file, tier)
        return CtrlPos(refaulted, total, gain)

    def _last_tier(self, lruvec: int, file: int, setpoint: CtrlPos, gain: int) -> int:
        """The last tier whose pages are not missed more than the setpoint's."""
        for tier in range(1, MAX_NR_TIERS):
            if not positive_ctrl_err(setpoint, self._position(lruvec, file, tier, gain)):
                return tier - 1
        return MAX_NR_TIERS - 1

    def tier_to_scan(self, lruvec: int, file: int) -> int:
        """The highest tier of a type that is evicted: higher ones are protected (``get_tier_idx``)."""
        return self._last_tier(lruvec, file, self._position(lruvec, file, 0, 1), 2)

    def type_to_scan(self, lruvec: int, swappiness: int) -> tuple[int, int]:
        """Which type is missed less, as swappiness weighs it, and the highest tier of it to evict
        (``get_type_to_scan``)."""
        gain = (swappiness, 200 - swappiness)
        anon, file = (self._position(lruvec, kind, 0, gain[kind]) for kind in (ANON, FILE))
        chosen = int(positive_ctrl_err(anon, file))
        other = self._position(lruvec, 1 - chosen, 0, gain[1 - chosen])
        return chosen, self._last_tier(lruvec, chosen, other, gain[chosen])

    # -- aging -------------------------------------------------------------------------------------------

    def should_run_aging(self, memcg: int, lruvec: int, priority: int, can_swap: bool) -> tuple[bool, int]:
        """Whether a new generation is due, and how many pages to scan (``should_run_aging``)."""
        newest, oldest = self.max_seq(lruvec), self.min_seq(lruvec)
        old = young = total = 0
        for file in (ANON, FILE) if can_swap else (FILE,):
            for seq in range(oldest[file], newest + 1):
                size = self.core.pages(lruvec, seq, file)
                total += size
                young += size if seq == newest else 0
                old += size if seq + MIN_NR_GENS == newest else 0
        scan = total >> priority if self.lruvecs.memcgs.online(memcg) else total
        if oldest[not can_swap] + MIN_NR_GENS != newest:
            return oldest[not can_swap] + MIN_NR_GENS > newest, scan
        return young * MIN_NR_GENS > total or old * (MIN_NR_GENS + 2) < total, scan

    def try_to_inc_max_seq(
        self, memcg: int, nid: int, newest: int, *, can_swap: bool, force_scan: bool = False
    ) -> Pauses[None]:
        """Look at page tables, then begin a new generation, unless somebody else did meanwhile: ``newest`` is the
        youngest one that the caller knows."""
        lruvec = self.lruvecs.number(memcg, nid)
        state = self.state(lruvec)
        if newest <= state.mm_seq:
            return
        state.mm_seq = newest
        if force_scan or self._caps() & LRU_GEN_MM_WALK:
            yield from self._walk.walk_mms(memcg, nid, lruvec, state, newest, can_swap=can_swap, force_scan=force_scan)
        for file in (FILE, ANON):
            while self.nr_gens(lruvec, file) == MAX_NR_GENS and not self.core.inc_min_seq(lruvec, file, can_swap):
                pass
        self.core.inc_max_seq(lruvec, nid)
        state.births[(newest + 1) % MAX_NR_GENS] = self._jiffies()

    def age_node(self, node: Node, sc: ScanControl) -> Pauses[None]:
        """What kswapd does before it evicts (``lru_gen_age_node``). Where every workingset is younger than min_ttl,
        something is killed instead of thrashing."""
        sc.last_reclaimed = sc.nr_reclaimed
        if not sc.memcgs_need_aging:
            sc.memcgs_need_aging = True
            return
        min_ttl = self._min_ttl()
        success = False
        for memcg in list(self.lruvecs.memcgs.subtree(0)):
            success |= yield from self._age(memcg, node.nid, sc, min_ttl)
        if min_ttl and not success and not sc.order:
            self._out_of_memory(sc.gfp)

    def _age(self, memcg: int, nid: int, sc: ScanControl, min_ttl: int) -> Pauses[bool]:
        """Begin a new generation if it is due (``age_lruvec``); whether there is something that may be evicted."""
        least, _, usage = self.lruvecs.memcgs.protection(0, memcg)
        if least and usage <= least:
            return False
        lruvec = self.lruvecs.number(memcg, nid)
        can_swap = bool(self.swappiness(memcg))
        due, scan = self.should_run_aging(memcg, lruvec, sc.priority, can_swap)
        if min_ttl:
            birth = self.state(lruvec).births[self.min_seq(lruvec)[FILE] % MAX_NR_GENS]
            if self._jiffies() < birth + min_ttl or (not scan and sc.priority != DEF_PRIORITY):
                return False
        if due:
            yield from self.try_to_inc_max_seq(memcg, nid, self.max_seq(lruvec), can_swap=can_swap)
        return True

    # -- evictions and refaults --------------------------------------------------------------------------

    def evicted(self, memcgs: PFNs, nids: PFNs, pfns: PFNs, tokens: PFNs, worked: PFNs) -> None:
        """Pages go: ``tokens`` and ``worked`` get what their shadows remember (``lru_gen_eviction``)."""
        self.core.evicted_bulk(memcgs * self._nodes + nids, pfns, tokens, worked)

    def refaulted(self, pfn: int, mine: int, nid: int, token: int, bits: int, *, worked: bool) -> None:
        """A page comes back that remembers its generation (``lru_gen_refault``). ``bits``: the width of the token."""
        file = int(self._walk.is_file(pfn))
        lruvec = self.lruvecs.number(mine, nid)
        mask = (1 << bits - 2) - 1
        found = self.core.refaulted(lruvec, pfn, token, mask, worked, bool(self._lru.words[1]))
        if found:
            self._count(mine, nid, stats.WORKINGSET_REFAULT_ANON + file)
        if found == 2:
            self._count(mine, nid, stats.WORKINGSET_RESTORE_ANON + file)

    def protected(self, memcg: int, nid: int, file: int, pages: int) -> None:
        """Pages were not evicted for their tier."""
        self._count(memcg, nid, stats.WORKINGSET_ACTIVATE_ANON + file, pages)

    def _count(self, memcg: int, nid: int, item: int, pages: int = 1) -> None:
        self._vmstat.node_stat[nid, item] += pages
        self.lruvecs.count(memcg, nid, item, pages)

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The lists of all generations. AssertionError."""
        self.core.check(self._lru.lruvecs())

    # -- for the page tables' neighbours -------------------------------------------------------------------

    def noted(self, lruvec: int) -> tuple[GenState, int]:
        """Where tables that are worth a walk are noted, and for which generation."""
        return self.state(lruvec), self.max_seq(lruvec)


def positive_ctrl_err(setpoint: CtrlPos, value: CtrlPos) -> bool:
    """Whether a tier has few refaults, or fewer for what went than the setpoint."""
    wanted = value.refaulted * (setpoint.total + MIN_LRU_BATCH) * setpoint.gain
    return value.refaulted < MIN_LRU_BATCH or wanted <= (setpoint.refaulted + 1) * value.total * value.gain
