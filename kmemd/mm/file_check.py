"""Proof that the gauges of page cache and swap are what pages, files and entries say; ``System.check`` asks here.

There is no Linux counterpart but CONFIG_DEBUG_VM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_DIRTY, PG_WRITEBACK, PageMap
from kmemd.core.pte import MAX_SWAPFILES, SWP_OFFSET_BITS, SWP_TYPE_SHIFT
from kmemd.core.ptes import PteRanges
from kmemd.mm.filemap import PFNs, ZoneCounts, flag
from kmemd.mm.files import Files
from kmemd.mm.mm_types import Mm
from kmemd.mm.swapfile import slots_of
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vmstat import VmStat

Numbers = npt.NDArray[np.int64]
GAUGES = (stats.NR_FILE_PAGES, stats.NR_SHMEM, stats.NR_SWAPCACHE, stats.NR_FILE_DIRTY, stats.NR_WRITEBACK)


class FileCheck:
    """Recomputes the gauges by node, and who refers to each slot of swap. ``mms()`` are all address spaces."""

    def __init__(
        self,
        files: Files,
        pages: PageMap,
        counts: ZoneCounts,
        vmstat: VmStat,
        mmu: Mmu,
        ptes: PteRanges,
        mms: Callable[[], Iterable[Mm]],
    ) -> None:
        self._files, self._pages, self._counts, self._vmstat = files, pages, counts, vmstat
        self._mmu, self._ptes, self._mms = mmu, ptes, mms
        self._owed: Numbers | None = None

    def boot_finished(self) -> None:
        """What a twin took from its capture as mere numbers has no pages: these differences stay as they are."""
        self._owed = self._differences()

    def check(self) -> None:
        """AssertionError where a gauge or a count is off."""
        self._files.check()
        now = self._differences()
        off = now - (self._owed if self._owed is not None else 0)
        names = [stats.NODE_STAT_NAMES[item] for item in GAUGES]
        assert not off.any(), f"gauges of {names} by node are off by {off.tolist()}"
        self._check_swap_counts()

    def _differences(self) -> Numbers:
        """Gauges less pages, a row for each node."""
        node_stat = self._vmstat.node_stat
        found = node_stat[:, GAUGES].copy()
        files = [file for file in self._files.cache.files.values() if file.nrpages]
        cached = {file.id: self._files.cache.find_get_pages(file)[1] for file in files}
        shmem = [cached[file.id] for file in files if file.is_shmem]
        disk = [cached[file.id] for file in files if not file.is_shmem]
        swap = [area.cache[area.cache > 0].astype(np.int64) - 1 for area in self._files.swap_state.files.areas]
        every = _joined([*shmem, *disk, *swap])
        flags = self._pages.flags
        columns = (
            every,
            _joined(shmem),
            _joined(swap),
            (dirty := _joined(disk))[flags[dirty] & flag(PG_DIRTY) != 0],
            every[flags[every] & flag(PG_WRITEBACK) != 0],
        )
        for column, pfns in enumerate(columns):
            for zi, count in self._counts.by_zone(pfns) if len(pfns) else ():
                found[zi // stats.ZONES_PER_NODE, column] -= count
        return found

    def _check_swap_counts(self) -> None:
        """Each slot is referred to as often as its count says: by page tables, and by tmpfs files."""
        parts: list[Numbers] = []
        for mm in self._mms():
            for vma in mm.vmas:
                rows = self._mmu.extents(mm.id, vma.vpn, vma.end >> PAGE_SHIFT)
                entries = self._ptes.swap_entries(rows)
                parts.append(slots_of(entries[entries >> np.uint64(SWP_TYPE_SHIFT) < np.uint64(MAX_SWAPFILES)]))
        for file in self._files.cache.files.values():
            if file.swapped:
                window = -file.slots.window(0, file.slots.end)
                parts.append(window[window > 0])
        slots, counts = np.unique(_joined(parts), return_counts=True)
        for area in self._files.swap_state.files.areas:
            used = np.flatnonzero(area.count)
            mine = slots >> SWP_OFFSET_BITS == area.number
            named = slots[mine] & ((1 << SWP_OFFSET_BITS) - 1)
            assert used.tolist() == named.tolist(), f"{area.path}: other slots are in use than entries name"
            assert (area.count[used] == counts[mine]).all(), f"{area.path}: a slot's count is not that of its entries"


def _joined(parts: list[PFNs]) -> PFNs:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
