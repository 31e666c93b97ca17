"""One memory cgroup: its counters, what it holds and what happened to it (struct mem_cgroup)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.mm.cgroup import Cgroup
from kmemd.mm.page_counter import PAGE_COUNTER_MAX, PageCounter

LOW, HIGH, MAX, OOM, OOM_KILL, OOM_GROUP_KILL, SWAP_HIGH, SWAP_MAX, SWAP_FAIL = range(9)
EVENTS = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
SWAP_EVENTS = ("high", "max", "fail")
COUNTED = (
    *("pgscan_kswapd", "pgscan_direct", "pgsteal_kswapd", "pgsteal_direct", "pgfault", "pgmajfault", "pgrefill"),
    *("pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed", "zswpin", "zswpout"),
    *("thp_fault_alloc", "thp_collapse_alloc"),
    *("workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon", "workingset_activate_file"),
    *("workingset_restore_anon", "workingset_restore_file", "workingset_nodereclaim"),
)
"""What is counted for each group as it happens, by its name in memory.stat."""


class MemCgroup:
    """One memory cgroup. ``cgroup`` is its directory, even when that is gone; ``pages`` are charged to it alone."""

    def __init__(self, number: int, cgroup: Cgroup, parent: MemCgroup | None) -> None:
        self.id, self.cgroup, self.parent = number, cgroup, parent
        above = parent if parent is not None and parent.id else None
        self.memory: PageCounter = PageCounter(above.memory if above is not None else None)
        self.swap: PageCounter = PageCounter(above.swap if above is not None else None)
        self.children: list[MemCgroup] = []
        self.pages = self.kmem = self.swapped = 0
        self.stack_kb = 0
        self.events = [0] * 9
        self.events_local = [0] * 9
        self.counts = dict.fromkeys(COUNTED, 0)
        self.oom_group = False
        self.zswap_max = PAGE_COUNTER_MAX
        self.online = True
        self.events_version = self.swap_events_version = 0
        self.emin = self.elow = 0

    @property
    def is_root(self) -> bool:
        """Whether this is the root, which is charged nothing."""
        return self.id == 0

    def upwards(self) -> Iterator[MemCgroup]:
        """This group and those above it, but for the root."""
        group: MemCgroup | None = self
        while group is not None and group.id:
            yield group
            group = group.parent

    def descendants(self) -> Iterator[MemCgroup]:
        """This group and those below it, parents first."""
        yield self
        for child in self.children:
            yield from child.descendants()

    @property
    def limit(self) -> int:
        """The lowest limit here and above."""
        return min(group.memory.max for group in self.upwards())

    def event(self, kind: int) -> None:
        """Count an event here and above (``memcg_memory_event``)."""
        self.events_local[kind] += 1
        for group in self.upwards():
            group.events[kind] += 1
            if kind >= SWAP_HIGH:
                group.swap_events_version += 1
            else:
                group.events_version += 1

    def total(self, name: str) -> int:
        """A count of this group and all below it."""
        return sum(group.counts[name] for group in self.descendants())
