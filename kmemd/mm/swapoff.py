"""Bringing everything back from a swap area that goes off (mm/swapfile.c ``try_to_unuse``).

Models the walk over tmpfs files, address spaces and what is left in the swap cache, pages that their device cannot read
(whoever touches them gets SIGBUS), and giving up when memory runs out or a signal ends the task.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PG_UPTODATE, PG_WRITEBACK, PageMap
from kmemd.core.pte import (
    ACCESSED,
    PRESENT,
    PROTNONE,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    SWP_OFFSET_BITS,
    SWP_SOFT_DIRTY,
    SWP_SWAPIN_ERROR,
    swap_entry,
)
from kmemd.errors import KernelError
from kmemd.mm.filemap import flag
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, NR_MM_COUNTERS, VM_LOCKED, Mm, Vma
from kmemd.mm.shmem import Shmem
from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swap_state import SwapState
from kmemd.mm.swapfile import slots_of
from kmemd.mm.vma_rows import prot_bits
from kmemd.steps import Steps

CHUNK = 24
"""Pages that are brought back before others may run."""
WINDOW = 1 << 18
"""Slots, and entries, that are looked at before others may run."""
ROUNDS = 3
"""How often the whole walk may find nothing to bring back before it counts as over."""
Numbers = npt.NDArray[np.int64]


class SwapOff:
    """Turns areas off. ``mms()`` are all address spaces; ``enough(pages)`` asks whether memory could take them in;
    ``interrupted()`` whether a signal ends the executing task."""

    def __init__(
        self,
        pages: PageMap,
        swap: SwapState,
        shmem: Shmem,
        memory: Callable[[], Memory],
        mms: Callable[[], Iterable[Mm]],
        enough: Callable[[int], bool],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pages, self._swap, self._shmem = pages, swap, shmem
        self._memory, self._mms, self._enough = memory, mms, enough
        self._interrupted = interrupted

    def swapoff(self, path: str) -> Steps[int]:
        """Bring all pages back and turn the area off, in slices; how many pages came. EINVAL, ENOMEM, EINTR."""
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
        """Walk until nothing is left. ENOMEM when pages cannot be had, EINTR."""
        done = idle = 0
        while area.inuse_pages:
            before = area.inuse_pages
            done += yield from self._shmem.unuse(area.number, SWP_OFFSET_BITS)
            for mm in list(self._mms()):
                for vma in list(mm.vmas) if area.inuse_pages else ():
                    if vma.anon_vma is not None and _alive(mm, vma):
                        done += yield from self._unuse_vma(area, mm, vma)
            yield from self._unuse_cached(area)
            self._swap.files.slots.drain()
            self._check_signal()
            idle = 0 if area.inuse_pages < before else idle + 1
            if idle == ROUNDS:
                raise KernelError(errno.EBUSY, f"{area.inuse_pages} slots of {area.path} stay in use")
            yield
        return done

    def _check_signal(self) -> None:
        if self._interrupted():
            raise KernelError(errno.EINTR, "a signal ended it")

    def _unuse_cached(self, area: SwapArea) -> Steps[None]:
        """Pages that the swap cache alone still has there lose their slots."""
        for start in range(0, area.max if area.inuse_pages else 0, WINDOW):
            offsets = np.flatnonzero(area.cache[start : start + WINDOW] > 0) + start
            for at in range(0, len(offsets), 32 * CHUNK):
                self._swap.io.wait()
                part = area.cache[offsets[at : at + 32 * CHUNK]].astype(np.int64) - 1
                part = part[part >= 0]
                gone = part[self._swap.free_swap(part)]
                self._swap.release(gone[self._pages.mapcount[gone] == 0])
                yield
            yield

    def _unuse_vma(self, area: SwapArea, mm: Mm, vma: Vma) -> Steps[int]:
        """Pages instead of a mapping's entries that name the area (``unuse_pte_range``)."""
        memory, done = self._memory(), 0
        rows = memory.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
        seen = 0
        for vpn, count, slot, level in rows.tolist():
            if level:
                continue
            seen += count
            named = self._named(memory, area, slot, count) + vpn
            at = 0
            while at < len(named):
                part = named[at : at + CHUNK - done % CHUNK]
                self._unuse_ptes(memory, mm, vma, part, area)
                at += len(part)
                done += len(part)
                if done % CHUNK == 0:
                    yield
                    self._check_signal()
                    if not _alive(mm, vma):
                        return done
            if seen >= WINDOW:
                seen = 0
                yield
        return done

    @staticmethod
    def _named(memory: Memory, area: SwapArea, slot: int, count: int) -> Numbers:
        """Which entries of a row name slots of the area."""
        words = memory.mmu.words[slot : slot + count]
        found = np.flatnonzero((words != 0) & (words & np.uint64(PRESENT | PROTNONE) == 0))
        named: Numbers = found[slots_of(words[found]) >> SWP_OFFSET_BITS == area.number]
        return named

    def _unuse_ptes(self, memory: Memory, mm: Mm, vma: Vma, vpns: Numbers, area: SwapArea) -> None:
        """Some entries, in order: those with a page in the cache in the core, others, which read it, one by one."""
        while len(vpns):
            done = 0 if vma.flags & VM_LOCKED else self._unuse_cached_ptes(memory, mm, vma, vpns, area)
            if done < len(vpns):
                self._unuse_pte(memory, mm, vma, int(vpns[done]), area)
                done += 1
            vpns = vpns[done:]

    def _unuse_cached_ptes(self, memory: Memory, mm: Mm, vma: Vma, vpns: Numbers, area: SwapArea) -> int:
        """Entries at the beginning of ``vpns`` whose pages need not be read. How many."""
        first = int(vpns[0])
        slot, anon = memory.mmu.slot(mm.id, first), vma.anon_vma
        if slot < 0 or anon is None:
            return 0
        root = anon
        while root.parent is not None:
            root = root.parent
        freed = np.empty(len(vpns), dtype=np.int64)
        done, mapped, lost = self._swap.faults.unuse(
            vpns,
            (area.number, slot - first, memory.mmu.bits),
            (vma.vpn, vma.vpn + vma.pages),
            self._swap.window_row(mm, vma),
            (anon.id, root.id, vma.index_of(0)),
            prot_bits(vma.flags, cow=True) & ~ACCESSED,
            freed,
        )
        memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_SWAPENTS] -= mapped
        memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_ANONPAGES] += mapped
        if lost:
            self._swap.lost_pages(area, freed[:lost])
        return int(done)

    def _unuse_pte(self, memory: Memory, mm: Mm, vma: Vma, vpn: int, area: SwapArea) -> None:
        """One page: read it, map it old and read-only, and free its slot when that was the last user. ENOMEM."""
        at = memory.mmu.slot(mm.id, vpn)
        entry = int(memory.mmu.words[at]) if at >= 0 else 0
        if not entry or entry & (PRESENT | PROTNONE) or not vma.vpn <= vpn < vma.vpn + vma.pages:
            return
        swap_slot = int(slots_of(np.array([entry], dtype=np.uint64))[0])
        if swap_slot >> SWP_OFFSET_BITS != area.number:
            return
        pfn = self._swap.lookup(swap_slot, mm, vma, vpn)
        if pfn < 0:
            pfn = self._swap.readahead(swap_slot, None, mm, vma, vpn, memory)
        if pfn < 0:
            raise KernelError(errno.ENOMEM, "no page to read swap into")
        if self._pages.flags[pfn] & flag(PG_WRITEBACK):
            self._swap.io.wait()
        memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_SWAPENTS] -= 1
        if self._pages.flags[pfn] & flag(PG_UPTODATE):
            bits = prot_bits(vma.flags, cow=True) & ~ACCESSED | (SOFT_DIRTY if entry & SWP_SOFT_DIRTY else 0)
            self._swap.map_page(memory, mm, vma, vpn, pfn, bits, exclusive=bool(entry & SWP_EXCLUSIVE))
            memory.mmu.rss[mm.id * NR_MM_COUNTERS + MM_ANONPAGES] += 1
        else:
            memory.mmu.words[at] = np.uint64(swap_entry(SWP_SWAPIN_ERROR, pfn))
        self._swap.files.free_one(swap_slot)
        self._swap.free_swap(np.array([pfn], dtype=np.int64))


def _alive(mm: Mm, vma: Vma) -> bool:
    """Whether a mapping is still there, after others ran."""
    return mm.users > 0 and mm.find(vma.start) is vma
