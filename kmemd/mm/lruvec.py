"""What reclaim remembers of a memory cgroup's pages on a node (include/linux/mmzone.h ``struct lruvec``).

Models: the costs of scanning anonymous and file pages, the age of what was evicted, refaults at the last reclaim, and
which cgroups there are. The lists themselves are core/lru_lists.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.lru_lists import NR_LRU_LISTS
from kmemd.mm.vmstat import VmStat

ALL_ZONES = 1 << 10
ROOT_MEMCG = 0


@dataclass(slots=True)
class LruVec:
    """State of one lruvec. ``stat`` holds node counters that a cgroup has of its own, by item; those of the root
    are the node's."""

    memcg: int
    nid: int
    anon_cost: int = 0
    file_cost: int = 0
    nonresident_age: int = 0
    refaults: list[int] = field(default_factory=lambda: [0, 0])
    congested: bool = False
    stat: dict[int, int] = field(default_factory=dict)


class Memcgs(Protocol):
    """The tree of memory cgroups; number 0 is the root."""

    def subtree(self, memcg: int) -> Iterable[int]:
        """A cgroup and all below it, in the order in which reclaim visits them."""

    def parents(self, memcg: int) -> Iterable[int]:
        """The cgroups above one, up to the root."""

    def protection(self, target: int, memcg: int) -> tuple[int, int, int]:
        """``memory.min`` and ``memory.low`` as they are in force for reclaim of ``target``, and the size, in pages."""

    def low_event(self, memcg: int) -> None:
        """The group was reclaimed below its ``memory.low``."""

    def swap_left(self, memcg: int) -> int:
        """Swap slots that the group may still take, if the machine has them."""

    def online(self, memcg: int) -> bool:
        """Whether the group was not removed."""


class RootOnly:
    """A machine without cgroups but the root."""

    def subtree(self, memcg: int) -> Iterable[int]:
        """The root alone."""
        return (memcg,)

    def parents(self, memcg: int) -> Iterable[int]:
        """None."""
        return ()

    def protection(self, target: int, memcg: int) -> tuple[int, int, int]:
        """None."""
        return 0, 0, 0

    def low_event(self, memcg: int) -> None:
        """Never."""

    def swap_left(self, memcg: int) -> int:
        """No limit."""
        return 1 << 62

    def online(self, memcg: int) -> bool:
        """Always."""
        return True


class LruVecs:
    """All lruvecs, made when asked for. ``memcgs`` may be replaced when there are cgroups."""

    def __init__(self, lru: Lru, vmstat: VmStat) -> None:
        self.lru, self._vmstat = lru, vmstat
        self._nodes = len(vmstat.node_stat)
        self._all: dict[int, LruVec] = {}
        self.memcgs: Memcgs = RootOnly()

    def get(self, memcg: int, nid: int) -> LruVec:
        """The lruvec of a cgroup on a node."""
        number = self.number(memcg, nid)
        found = self._all.get(number)
        if found is None:
            found = self._all[number] = LruVec(memcg, nid)
        return found

    def number(self, memcg: int, nid: int) -> int:
        """Its number in core/lru_lists.py."""
        return memcg * self._nodes + nid

    def forget(self, memcg: int) -> None:
        """A cgroup is gone for good: its number may be used again."""
        for nid in range(self._nodes):
            self._all.pop(self.number(memcg, nid), None)

    def size(self, memcg: int, nid: int, which: int, highest: int = ALL_ZONES) -> int:
        """Pages on one list of one lruvec, in zones up to ``highest``."""
        return self.lru.size(self.number(memcg, nid), which, highest)

    def pages(self, memcg: int, nid: int, which: int) -> int:
        """Pages on a list of a cgroup and all below it (``lruvec_page_state``)."""
        if memcg == ROOT_MEMCG:
            return int(self._vmstat.node_stat[nid, stats.NR_INACTIVE_ANON + which])
        return sum(self.size(below, nid, which) for below in self.memcgs.subtree(memcg))

    def evictable(self, memcg: int, nid: int) -> int:
        """Pages on the four lists that reclaim scans."""
        return sum(self.pages(memcg, nid, which) for which in range(NR_LRU_LISTS - 1))

    def count(self, memcg: int, nid: int, item: int, pages: int = 1) -> None:
        """A node counter that cgroups have too; the node's own is counted by the caller."""
        while memcg != ROOT_MEMCG:
            stat = self.get(memcg, nid).stat
            stat[item] = stat.get(item, 0) + pages
            memcg = next(iter(self.memcgs.parents(memcg)), ROOT_MEMCG)

    def counted(self, memcg: int, nid: int, item: int) -> int:
        """What ``count`` counted for a cgroup and those below it."""
        if memcg == ROOT_MEMCG:
            return int(self._vmstat.node_stat[nid, item])
        return self.get(memcg, nid).stat.get(item, 0)

    def age(self, memcg: int, nid: int, pages: int) -> None:
        """Pages were evicted or activated: all that was evicted before is older (``workingset_age_nonresident``)."""
        for above in (memcg, *self.memcgs.parents(memcg)):
            self.get(above, nid).nonresident_age += pages

    def note_cost(self, memcg: int, nid: int, pages: int, *, file: bool) -> None:
        """Reclaim cost reads or writes (``lru_note_cost``); what was long ago counts less."""
        for above in (memcg, *self.memcgs.parents(memcg)):
            lruvec = self.get(above, nid)
            if file:
                lruvec.file_cost += pages
            else:
                lruvec.anon_cost += pages
            if lruvec.file_cost + lruvec.anon_cost > self.evictable(above, nid) // 4:
                lruvec.file_cost //= 2
                lruvec.anon_cost //= 2
