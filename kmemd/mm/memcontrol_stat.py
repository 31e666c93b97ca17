"""What memory.stat and memory.numa_stat say (mm/memcontrol.c ``memory_stat_format``, ``memory_numa_stat_show``).

Gauges are read from the pages that are charged; events were counted when they happened. The root's are the system's,
but for kernel memory, which nobody charges to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_HEAD,
    PG_LRU,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_TABLE,
    PG_UNEVICTABLE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import COUNTED, MemCgroup
from kmemd.mm.mmzone import Zone
from kmemd.mm.units import PAGE_SIZE
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


def _bit(*numbers: int) -> np.uint32:
    return np.uint32(sum(1 << number for number in numbers))


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
        self._memcg, self._pages, self._vmstat, self._hpage = memcg, pages, vmstat, hpage
        spans = sorted((zone.start_pfn, zone.end_pfn, zone.nid) for zone in zones)
        self._starts = np.array([start for start, _, _ in spans], dtype=np.int64)
        self._nids = np.array([nid for _, _, nid in spans], dtype=np.int64)
        self.nodes = int(self._nids.max()) + 1

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
        gauges, counts = self.gauges(memcg), self.counts(memcg)
        for name in NUMA_GAUGES:
            yield f"{name} " + " ".join(f"N{nid}={value}" for nid, value in enumerate(gauges[name].tolist()))
        for name in WORKINGSET:
            share = [counts[name]] + [0] * (self.nodes - 1)
            if memcg.is_root and name in ROOT_WORKINGSET:
                share = [int(self._vmstat.node_stat[nid, ROOT_WORKINGSET[name]]) for nid in range(self.nodes)]
            yield f"{name} " + " ".join(f"N{nid}={value}" for nid, value in enumerate(share))

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

    def _charged(self, memcg: MemCgroup) -> Numbers:
        """The heads of blocks that are charged to a group and those below it."""
        members = np.zeros(1 << 15, dtype=bool)
        members[[group.id for group in memcg.descendants() if group.id]] = True
        pfns = self._memcg.charged_pages()
        pfns = pfns[members[np.abs(self._pages.memcg[pfns])]]
        found: Numbers = pfns[self._pages.kind[pfns] != 0]
        return found

    def _empty(self) -> dict[str, Numbers]:
        return {name: np.zeros(self.nodes, dtype=np.int64) for name in GAUGES}

    def _add(self, found: dict[str, Numbers], name: str, pfns: Numbers, size: Numbers) -> None:
        """Bytes of blocks to the nodes that they are on."""
        nids = self._nids[np.searchsorted(self._starts, pfns, side="right") - 1]
        found[name] = np.bincount(nids, weights=size * PAGE_SIZE, minlength=self.nodes).astype(np.int64)

    def _of_kernel(self, memcg: MemCgroup, charged: Numbers | None = None) -> dict[str, Numbers]:
        """The gauges of kernel memory."""
        found = self._empty()
        heads = self._charged(memcg) if charged is None else charged
        heads = heads[self._pages.memcg[heads] < 0]
        size = np.int64(1) << self._pages.order[heads].astype(np.int64)
        self._add(found, "kernel", heads, size)
        tables = self._pages.flags[heads] & _bit(PG_TABLE) != 0
        self._add(found, "pagetables", heads[tables], size[tables])
        found["kernel_stack"][0] = sum(group.stack_kb for group in memcg.descendants()) << 10
        return found

    def _of_pages(self, memcg: MemCgroup) -> dict[str, Numbers]:
        """The gauges of a group that is not the root."""
        heads = self._charged(memcg)
        found = self._of_kernel(memcg, heads)
        pages, pfns = self._pages, heads[self._pages.memcg[heads] > 0]
        flags, mapping = pages.flags[pfns], pages.mapping[pfns]
        size = np.int64(1) << pages.order[pfns].astype(np.int64)
        mapped = self._mapped(pfns, size)
        cached = flags & _bit(PG_SWAPCACHE, PG_SWAPBACKED) == _bit(PG_SWAPCACHE, PG_SWAPBACKED)
        file, backed = mapping < 0, flags & _bit(PG_SWAPBACKED) != 0
        self._add(found, "anon", pfns[mapping > 0], mapped[mapping > 0])
        huge = (mapping > 0) & (flags & _bit(PG_HEAD) != 0)
        huge[huge] = pages.mapping[pfns[huge] + 1] > 0
        masks = (
            ("file", file & ~cached),
            ("shmem", file & backed & ~cached),
            ("file_dirty", file & ~backed & (flags & _bit(PG_DIRTY) != 0)),
            ("file_writeback", flags & _bit(PG_WRITEBACK) != 0),
            ("swapcached", cached),
            ("anon_thp", huge),
        )
        for name, mask in masks:
            self._add(found, name, pfns[mask], size[mask])
        self._add(found, "file_mapped", pfns[file], mapped[file])
        self._add_lists(found, pfns, size)
        return found

    def _add_lists(self, found: dict[str, Numbers], pfns: Numbers, size: Numbers) -> None:
        """The lengths of the LRU lists."""
        flags = self._pages.flags[pfns]
        listed, locked = flags & _bit(PG_LRU) != 0, flags & _bit(PG_UNEVICTABLE) != 0
        self._add(found, "unevictable", pfns[listed & locked], size[listed & locked])
        for kind, backed in (("anon", True), ("file", False)):
            for age, active in (("inactive", False), ("active", True)):
                mask = listed & ~locked & ((flags & _bit(PG_SWAPBACKED) != 0) == backed)
                mask &= (flags & _bit(PG_ACTIVE) != 0) == active
                self._add(found, f"{age}_{kind}", pfns[mask], size[mask])

    def _mapped(self, pfns: Numbers, size: Numbers) -> Numbers:
        """How many small pages of each block are mapped."""
        pages = self._pages
        mapped = (pages.mapcount[pfns] > 0).astype(np.int64)
        for at in np.flatnonzero(size > 1).tolist():
            head, count = int(pfns[at]), int(size[at])
            whole = int(pages.mapping[head + 1]) > 0
            mapped[at] = count if whole else int((pages.mapcount[head : head + count] > 0).sum())
        return mapped
