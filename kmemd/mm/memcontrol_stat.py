"""What memory.stat and memory.numa_stat say (mm/memcontrol.c ``memory_stat_format``, ``memory_numa_stat_show``).

Gauges are read from the pages that are charged, of all groups in one pass, which serves as long as nothing changes;
events were counted when they happened. The root's are the system's, but for kernel memory, which nobody charges to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru_lists import LRU_UNEVICTABLE, MAX_MEMCGS
from kmemd.core.memcg import ITEMS, NR_ITEMS, Gauges
from kmemd.core.pages import SECTION_SHIFT, PageMap
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import COUNTED, MemCgroup
from kmemd.mm.memcontrol_kmem import RECLAIMABLE, UNRECLAIMABLE
from kmemd.mm.mmzone import Zone
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat

Numbers = npt.NDArray[np.int64]
GAUGES = (
    *("anon", "file", "kernel", "kernel_stack", "pagetables", "sec_pagetables", "percpu", "sock", "vmalloc", "shmem"),
    *("zswap", "zswapped", "file_mapped", "file_dirty", "file_writeback", "swapcached", "anon_thp", "file_thp"),
    *("shmem_thp", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"),
    *("slab_reclaimable", "slab_unreclaimable"),
)
NUMA_GAUGES = tuple(name for name in GAUGES if name not in ("kernel", "percpu", "sock", "vmalloc", "zswap", "zswapped"))
WORKINGSET = tuple(name for name in COUNTED if name.startswith("workingset"))
EVENTS = tuple(name for name in COUNTED if not name.startswith("workingset"))
ROOT_ITEMS = {
    "anon": stats.NR_ANON_MAPPED,
    "file": stats.NR_FILE_PAGES,
    "shmem": stats.NR_SHMEM,
    "file_mapped": stats.NR_FILE_MAPPED,
    "file_dirty": stats.NR_FILE_DIRTY,
    "file_writeback": stats.NR_WRITEBACK,
    "swapcached": stats.NR_SWAPCACHE,
    "anon_thp": stats.NR_ANON_THPS,
    "file_thp": stats.NR_FILE_THPS,
    "shmem_thp": stats.NR_SHMEM_THPS,
    "inactive_anon": stats.NR_INACTIVE_ANON,
    "active_anon": stats.NR_ACTIVE_ANON,
    "inactive_file": stats.NR_INACTIVE_FILE,
    "active_file": stats.NR_ACTIVE_FILE,
    "unevictable": stats.NR_UNEVICTABLE,
}
HUGE_ITEMS = ("anon_thp", "file_thp", "shmem_thp")
ROOT_EVENTS = {name: getattr(stats, name.upper()) for name in EVENTS if hasattr(stats, name.upper())}
ROOT_WORKINGSET = {name: getattr(stats, name.upper()) for name in WORKINGSET if hasattr(stats, name.upper())}


LISTS = ("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable")
assert len(LISTS) == LRU_UNEVICTABLE + 1


class MemcgStat:
    """Reads the state of groups. ``hpage`` is the number of small pages in a huge one."""

    def __init__(
        self,
        memcg: MemControl,
        pages: PageMap,
        zones: Sequence[Zone],
        vmstat: VmStat,
        lruvecs: LruVecs,
        hpage: int,
    ) -> None:
        self._lruvecs = lruvecs
        self._memcg, self._vmstat, self._hpage = memcg, vmstat, hpage
        self._ranges = sorted((zone.start_pfn, zone.end_pfn, zone.nid) for zone in zones)
        self.nodes = max(nid for _, _, nid in self._ranges) + 1
        self._sections = pages.charged_sections
        self._pass = Gauges(pages)
        self._table: Numbers = np.zeros((self.nodes, 1, NR_ITEMS), dtype=np.int64)
        self._key: tuple[int, int, bytes] | None = None

    def lines(self, memcg: MemCgroup) -> Iterator[str]:
        """The lines of memory.stat, without newlines."""
        gauges = self.gauges(memcg)
        for name in GAUGES:
            yield f"{name} {int(gauges[name].sum())}"
        yield f"slab {int((gauges['slab_reclaimable'] + gauges['slab_unreclaimable']).sum())}"
        counts = self.counts(memcg)
        for name in WORKINGSET:
            yield f"{name} {counts[name]}"
        yield f"pgscan {counts['pgscan_kswapd'] + counts['pgscan_direct']}"
        yield f"pgsteal {counts['pgsteal_kswapd'] + counts['pgsteal_direct']}"
        for name in EVENTS:
            yield f"{name} {counts[name]}"

    def numa_lines(self, memcg: MemCgroup) -> Iterator[str]:
        """The lines of memory.numa_stat: bytes, or events, for each node."""
        gauges = self.gauges(memcg)
        for name in NUMA_GAUGES:
            yield f"{name} " + " ".join(f"N{nid}={value}" for nid, value in enumerate(gauges[name].tolist()))
        for name in WORKINGSET:
            share = [self._workingset(memcg, nid, name) for nid in range(self.nodes)]
            yield f"{name} " + " ".join(f"N{nid}={value}" for nid, value in enumerate(share))

    def _workingset(self, memcg: MemCgroup, nid: int, name: str) -> int:
        """Events of a node: the root's are the system's."""
        item = ROOT_WORKINGSET[name]
        return int(self._vmstat.node_stat[nid, item]) if memcg.is_root else self._lruvecs.counted(memcg.id, nid, item)

    def counts(self, memcg: MemCgroup) -> dict[str, int]:
        """Events in a group and all below it."""
        counts = {name: memcg.total(name) for name in COUNTED}
        if memcg.is_root:
            counts |= {name: int(self._vmstat.events[item]) for name, item in ROOT_EVENTS.items()}
            counts |= {name: self._vmstat.node_total(item) for name, item in ROOT_WORKINGSET.items()}
            return counts
        for items, sign in ((ROOT_EVENTS, -1), (ROOT_WORKINGSET, 1)):
            for name, item in items.items():
                counts[name] += sum(self._lruvecs.counted(memcg.id, nid, sign * item) for nid in range(self.nodes))
        return counts

    def gauges(self, memcg: MemCgroup) -> dict[str, Numbers]:
        """Bytes in each node, by name."""
        if not memcg.is_root:
            return self._of_pages(memcg)
        found = self._of_kernel(memcg)
        for name, item in ROOT_ITEMS.items():
            size = PAGE_SIZE * (self._hpage if name in HUGE_ITEMS else 1)
            found[name] = np.array([int(self._vmstat.node_stat[nid, item]) * size for nid in range(self.nodes)])
        found["file"] = found["file"] - found["swapcached"]
        return found

    def _of_kernel(self, memcg: MemCgroup) -> dict[str, Numbers]:
        """The gauges of kernel memory; what has no node is on node 0."""
        found = {name: np.zeros(self.nodes, dtype=np.int64) for name in GAUGES}
        below = list(memcg.descendants())
        found["kernel"][0] = sum(group.kmem for group in below) << PAGE_SHIFT
        found["vmalloc"][0] = sum(group.vmalloc for group in below) << PAGE_SHIFT
        found["percpu"][0] = sum(group.percpu for group in below)
        found["zswap"][0] = sum(group.zswap for group in below)
        found["zswapped"][0] = sum(group.zswapped for group in below) << PAGE_SHIFT
        found["kernel_stack"] = sum((group.stack_kb for group in below), np.zeros(self.nodes, dtype=np.int64)) << 10
        slab = sum((group.slab for group in below), np.zeros((2, self.nodes), dtype=np.int64))
        found["slab_unreclaimable"], found["slab_reclaimable"] = slab[UNRECLAIMABLE], slab[RECLAIMABLE]
        rows = [-number for group in below for number in group.objcgs]
        found["pagetables"] = self._read(rows)[:, ITEMS.index("pagetables")]
        return found

    def _of_pages(self, memcg: MemCgroup) -> dict[str, Numbers]:
        """The gauges of a group that is not the root."""
        found = self._of_kernel(memcg)
        numbers = [group.id for group in memcg.descendants()]
        table = self._read(numbers)
        found |= {name: table[:, column] for column, name in enumerate(ITEMS) if name != "pagetables"}
        lists = self._lruvecs
        for which, name in enumerate(LISTS):
            found[name] = np.array(
                [sum(lists.size(number, nid, which) for number in numbers) << PAGE_SHIFT for nid in range(self.nodes)]
            )
        return found

    def _read(self, numbers: list[int]) -> Numbers:
        """Bytes of each item, by node, of some numbers of ``PageMap.memcg`` together."""
        for _ in self.refresh():
            pass
        middle = self._table.shape[1] // 2
        found: Numbers = self._table[:, [middle + number for number in numbers]].sum(axis=1) << PAGE_SHIFT
        return found

    def refresh(self) -> Iterator[str]:
        """Make the table that gauges are read from anew if something changed, in parts between which nothing may: each
        gives no text."""
        key = (self._memcg.now, self._memcg.changes, self._vmstat.node_stat.tobytes())
        if key == self._key:
            return
        middle = max(len(self._memcg.groups), len(self._memcg.kernel.objcgs))
        assert middle <= MAX_MEMCGS
        table = np.zeros((self.nodes, 2 * middle + 1, NR_ITEMS), dtype=np.int64)
        for section in np.flatnonzero(self._sections).tolist():
            if not self._read_section(section, table, middle):
                self._sections[section] = False
            yield ""
        self._table, self._key = table, key

    def _read_section(self, section: int, table: Numbers, middle: int) -> int:
        """Add the pages of a section to the table; how many of them are charged."""
        first, last, charged = section << SECTION_SHIFT, section + 1 << SECTION_SHIFT, 0
        for start, end, nid in self._ranges:
            if start < last and first < end:
                self._pass.begin(table[nid], middle)
                charged += self._pass.add(max(first, start), min(last, end))
        return charged
