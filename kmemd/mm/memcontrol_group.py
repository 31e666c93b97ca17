"""One memory cgroup: its counters, what it holds and what happened to it (struct mem_cgroup)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

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
    """One memory cgroup. ``cgroup`` is its directory, even when that is gone.

    ``pages`` of users and ``kmem`` pages of the kernel are charged to it alone. What the kernel's are: ``stack_kb`` (by
    node), ``slab`` (bytes that cannot and that can be reclaimed, by node), ``vmalloc`` (pages), ``percpu`` (bytes),
    ``zswap`` (bytes, of ``zswapped`` pages).
    ``objcgs`` are the object groups that belong to it, by number; ``percpu_of`` is the one that pays for its counters.
    """

    def __init__(self, number: int, cgroup: Cgroup, parent: MemCgroup | None, nodes: int = 1) -> None:
        self.id, self.cgroup, self.parent = number, cgroup, parent
        above = parent if parent is not None and parent.id else None
        self.memory: PageCounter = PageCounter(above.memory if above is not None else None)
        self.swap: PageCounter = PageCounter(above.swap if above is not None else None)
        self.children: dict[int, MemCgroup] = {}
        self.pages = self.kmem = self.swapped = 0
        self.stack_kb: npt.NDArray[np.int64] = np.zeros(nodes, dtype=np.int64)
        self.slab: npt.NDArray[np.int64] = np.zeros((2, nodes), dtype=np.int64)
        self.vmalloc = self.percpu = self.zswap = self.zswapped = 0
        self.objcgs: dict[int, ObjCgroup] = {}
        self.percpu_of: ObjCgroup | None = None
        self.events = [0] * 9
        self.events_local = [0] * 9
        self.counts = dict.fromkeys(COUNTED, 0)
        self.oom_group = False
        self.zswap_max = PAGE_COUNTER_MAX
        self.online = True
        self.events_version = self.swap_events_version = self.local_version = 0
        self.only_local: bool = parent is not None and parent.only_local
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
        """This group and those below it, parents first, in the order of their making."""
        todo = [self]
        while todo:
            group = todo.pop()
            yield group
            todo.extend(reversed(group.children.values()))

    def is_below(self, root: MemCgroup) -> bool:
        """Whether this is ``root`` or below it (``mem_cgroup_is_descendant``)."""
        group: MemCgroup | None = self
        while group is not None:
            if group is root:
                return True
            group = group.parent
        return False

    @property
    def swap_is_high(self) -> bool:
        """Whether more is in swap than memory.swap.high says, here or above."""
        counter: PageCounter | None = self.swap
        while counter is not None:
            if counter.usage > counter.high:
                return True
            counter = counter.parent
        return False

    @property
    def limit(self) -> int:
        """The lowest limit here and above."""
        return min(group.memory.max for group in self.upwards())

    def event(self, kind: int) -> None:
        """Count an event here and, unless the mount option memory_localevents is on, above (``memcg_memory_event``)."""
        self.events_local[kind] += 1
        self.local_version += kind < SWAP_HIGH
        for group in self.upwards():
            group.events[kind] += 1
            if kind >= SWAP_HIGH:
                group.swap_events_version += 1
            else:
                group.events_version += 1
            if self.only_local:
                break

    def total(self, name: str) -> int:
        """A count of this group and all below it."""
        return sum(group.counts[name] for group in self.descendants())


class ObjCgroup:
    """Whose kernel memory it is (struct obj_cgroup): a group until that is removed, then the one above it.

    ``refs`` are the objects and blocks that name it; ``objects`` the bytes of its objects, with their bookkeeping;
    ``pages`` are charged for them; ``left`` the bytes of these that neither an object nor a CPU's stock has. ``others``
    are the bytes of objects that are in no slab: per-CPU data, compressed pages.

    Invariants: ``pages`` hold ``objects``, ``left`` and what CPUs have in stock.
    """

    __slots__ = ("id", "left", "memcg", "objects", "others", "pages", "refs")

    def __init__(self, memcg: MemCgroup) -> None:
        self.id, self.memcg = memcg.id, memcg
        self.refs = self.objects = self.pages = self.left = self.others = 0
        memcg.objcgs[self.id] = self

    def account(self, pages: int) -> None:
        """So many more pages, or fewer, are charged for objects (``memcg_account_kmem``)."""
        self.pages += pages
        self.memcg.kmem += pages
