"""Bringing everything back from a swap area that goes off (mm/swapfile.c ``try_to_unuse``).

Models the walk over tmpfs files, address spaces and what is left in the swap cache, and giving up when memory runs
out. Left out: signals in its midst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

import numpy as np

from kmemd.core.pages import PG_WRITEBACK, PageMap
from kmemd.core.pte import ACCESSED, SOFT_DIRTY, SWP_EXCLUSIVE, SWP_OFFSET_BITS, SWP_SOFT_DIRTY
from kmemd.errors import KernelError
from kmemd.mm.filemap import flag
from kmemd.mm.memory import Memory, prot_bits
from kmemd.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, NR_MM_COUNTERS, Mm, Vma
from kmemd.mm.shmem import Shmem
from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swap_state import SwapState
from kmemd.mm.swapfile import slots_of
from kmemd.steps import Steps

CHUNK = 64
"""Pages that are brought back before others may run."""


class SwapOff:
    """Turns areas off. ``mms()`` are all address spaces; ``enough(pages)`` asks whether memory could take them in."""

    def __init__(
        self,
        pages: PageMap,
        swap: SwapState,
        shmem: Shmem,
        memory: Callable[[], Memory],
        mms: Callable[[], Iterable[Mm]],
        enough: Callable[[int], bool],
    ) -> None:
        self._pages, self._swap, self._shmem = pages, swap, shmem
        self._memory, self._mms, self._enough = memory, mms, enough

    def swapoff(self, path: str) -> Steps[int]:
        """Bring all pages back and turn the area off, in slices; how many pages came. EINVAL, ENOMEM."""
        files = self._swap.files
        area = files.find(path)
        if area is None:
            raise KernelError(errno.EINVAL, f"{path} is no swap area that is on")
        if not self._enough(area.pages):
            raise KernelError(errno.ENOMEM, f"{path} holds more than memory could take back")
        files.begin_swapoff(area)
        try:
            done = yield from self._try_to_unuse(area)
        except BaseException:
            files.abort_swapoff(area)
            raise
        files.end_swapoff(area)
        return done

    def _try_to_unuse(self, area: SwapArea) -> Steps[int]:
        """ENOMEM when pages cannot be had."""
        done = self._shmem.unuse(area.number, SWP_OFFSET_BITS)
        yield
        for mm in list(self._mms()):
            for vma in list(mm.vmas) if area.inuse_pages else ():
                if vma.anon_vma is not None:
                    done += yield from self._unuse_vma(area, mm, vma)
        while area.inuse_pages:
            offsets = np.flatnonzero(area.cache > 0)
            if not len(offsets):
                break
            pfns = area.cache[offsets].astype(np.int64) - 1
            self._swap.io.wait()
            gone = pfns[self._swap.free_swap(pfns)]
            self._swap.release(gone[self._pages.mapcount[gone] == 0])
            if not len(gone):
                break
            yield
        return done

    def _unuse_vma(self, area: SwapArea, mm: Mm, vma: Vma) -> Steps[int]:
        """Pages instead of a mapping's entries that name the area (``unuse_pte_range``)."""
        memory, done = self._memory(), 0
        rows = memory.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
        for vpn, count, slot, level in rows.tolist():
            if level:
                continue
            words = memory.mmu.words[slot : slot + count]
            found = np.flatnonzero((words != 0) & (words & np.uint64(1 | 1 << 8) == 0))
            slots = slots_of(words[found])
            mine = slots >> SWP_OFFSET_BITS == area.number
            for at, swap_slot in zip(found[mine].tolist(), slots[mine].tolist(), strict=True):
                self._unuse_pte(memory, mm, vma, vpn + at, slot + at, swap_slot)
                done += 1
                if done % CHUNK == 0:
                    yield
        return done

    def _unuse_pte(self, memory: Memory, mm: Mm, vma: Vma, vpn: int, slot: int, swap_slot: int) -> None:
        """One page: read it, map it old and read-only, and free its slot when that was the last user. ENOMEM."""
        entry = int(memory.mmu.words[slot])
        if int(slots_of(np.array([entry], dtype=np.uint64))[0]) != swap_slot:
            return
        pfn = self._swap.lookup(swap_slot, mm, vma, vpn)
        if pfn < 0:
            pfn = self._swap.readahead(swap_slot, None, mm, vma, vpn, memory)
        if pfn < 0:
            raise KernelError(errno.ENOMEM, "no page to read swap into")
        if self._pages.flags[pfn] & flag(PG_WRITEBACK):
            self._swap.io.wait()
        bits = prot_bits(vma.flags, cow=True) & ~ACCESSED | (SOFT_DIRTY if entry & SWP_SOFT_DIRTY else 0)
        self._swap.map_page(memory, mm, vma, vpn, pfn, bits, exclusive=bool(entry & SWP_EXCLUSIVE))
        memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_ANONPAGES] += 1
        memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_SWAPENTS] -= 1
        self._swap.files.free(np.array([swap_slot], dtype=np.int64))
        self._swap.free_swap(np.array([pfn], dtype=np.int64))
