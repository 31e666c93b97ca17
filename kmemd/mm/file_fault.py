"""Faults of mappings of files (mm/memory.c ``do_fault``, mm/filemap.c ``filemap_fault``, ``filemap_map_pages``).

Models: read faults that map what the cache has around them, private copies at a write, shared writes that make pages
dirty, SIGBUS behind the end. Where a page comes from is the file's: the disk (mm/file_io.py), or memory and swap
(mm/shmem.py). Left out: huge pages of files, DAX.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kmemd.core.lru import MLOCK_PAGE
from kmemd.core.pages import PG_UPTODATE, PageMap
from kmemd.core.pte import ACCESSED, DIRTY, PFN_SHIFT, RW, SOFT_DIRTY
from kmemd.mm.filemap import READAHEAD, File, PageCache, PFNs, flag
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import (
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    VM_LOCKED,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vma_rows import prot_bits

_UPTODATE, _AHEAD = flag(PG_UPTODATE), flag(READAHEAD)


class Backing(Protocol):
    """What is behind files of one kind."""

    def fault_page(self, file: File, index: int, task: Any, vma: Vma, vpn: int) -> tuple[int, bool]:
        """The page at an offset before the end, and whether something had to be read for it. ENOMEM."""

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A shared mapping is about to write to a page."""

    def unused(self, file: File) -> None:
        """The last mapping went of a file that has no name."""

    def remove(self, file: File, start: int, end: int) -> int:
        """Drop the pages ``[start, end)``. How many there were."""


class FileFaults:
    """Faults of files with one kind of backing. ``tracks_writes``: pages are mapped read-only until somebody writes."""

    def __init__(self, cache: PageCache, pages: PageMap, backing: Backing, *, tracks_writes: bool) -> None:
        self._cache, self._pages, self._backing = cache, pages, backing
        self._tracks_writes = tracks_writes

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """A shared mapping is about to write to a page."""
        self._backing.page_mkwrite(file, pfn)

    def unused(self, file: File) -> None:
        """The last mapping went of a file that has no name any more."""
        self._backing.unused(file)

    def remove(self, file: File, start: int, end: int) -> int:
        """Drop the pages ``[start, end)`` (MADV_REMOVE). How many there were."""
        return self._backing.remove(file, start, end)

    def fault(self, file: File, memory: Memory, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> None:
        """A page without an entry (``do_fault``). ENOMEM, ``Signal``."""
        index = vma.index_of(vpn)
        if not write:
            if self._map_around(file, memory, mm, vma, vpn):
                return
            pfn = self._page(file, index, task, vma, vpn)
            with self._cache.pin([pfn]):
                self._map(memory, mm, vma, vpn, pfn, write=False)
            return
        if not vma.flags & VM_SHARED:
            self._copy(file, index, memory, task, mm, vma, vpn)
            return
        pfn = self._page(file, index, task, vma, vpn)
        with self._cache.pin([pfn]):
            self._backing.page_mkwrite(file, pfn)
            self._map(memory, mm, vma, vpn, pfn, write=True)

    def _page(self, file: File, index: int, task: Any, vma: Vma, vpn: int) -> int:
        """The page that the fault is for. SIGBUS behind the end."""
        if index >= file.pages:
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT)
        pfn, major = self._backing.fault_page(file, index, task, vma, vpn)
        if major and task is not None:
            task.maj_flt += 1
        return pfn

    def _copy(self, file: File, index: int, memory: Memory, task: Any, mm: Mm, vma: Vma, vpn: int) -> None:
        """The first write to a private mapping: a page of its own with the file's content (``do_cow_fault``)."""
        memory.rmap.prepare(mm, vma)
        new = memory.new_page(task, vma, vpn)
        try:
            old = self._page(file, index, task, vma, vpn)
        except BaseException:
            memory.page_alloc.free_pages(new)
            raise
        memory.contents.copy(old, new)
        memory.map_anon(mm, vma, vpn, new)

    def _protection(self, memory: Memory, vma: Vma, *, write: bool) -> int:
        """Entry bits of a page of the file (``vm_page_prot``, ``vma_wants_writenotify``)."""
        read_only = not vma.flags & VM_SHARED or self._tracks_writes or not vma.flags & VM_SOFTDIRTY
        bits = prot_bits(vma.flags, cow=read_only) | ACCESSED
        return bits | RW | DIRTY | SOFT_DIRTY if write and vma.flags & VM_WRITE else bits

    def _map(self, memory: Memory, mm: Mm, vma: Vma, vpn: int, pfn: int, *, write: bool) -> None:
        """Map one page of the cache (``finish_fault``, ``do_set_pte``)."""
        slot = memory.tables.ensure(mm.id, vpn)
        memory.mmu.words[slot] = np.uint64(pfn << PFN_SHIFT | self._protection(memory, vma, write=write))
        memory.mmu.rss_task[mm.id * 4 + self._counter(vma)] += 1
        memory.rmap.add_file(pfn)
        self._mlock(memory, vma, np.array([pfn], dtype=np.int64))

    @staticmethod
    def _mlock(memory: Memory, vma: Vma, pfns: PFNs) -> None:
        """A locked mapping keeps what it maps (``mlock_vma_page``)."""
        if vma.flags & VM_LOCKED and not vma.flags & VM_SPECIAL:
            memory.lru.mlock(np.ascontiguousarray(pfns), MLOCK_PAGE)

    @staticmethod
    def _counter(vma: Vma) -> int:
        return MM_SHMEMPAGES if vma.file is not None and vma.file.is_shmem else MM_FILEPAGES

    def _map_around(self, file: File, memory: Memory, mm: Mm, vma: Vma, vpn: int) -> bool:
        """Map pages of the cache around a read fault; whether the page itself was one (``do_fault_around``).

        The window is fault_around_bytes from an aligned address on, within the mapping, the page table and the file.
        """
        table, around = 1 << memory.mmu.bits, memory.fault_around.pages
        if around == 1:
            return False
        first = max(vpn & -around, vma.vpn)
        end = min(first + around, (vpn & -table) + table, vma.end >> PAGE_SHIFT)
        start = vma.index_of(first)
        indices, pfns = self._cache.find_get_pages(file, start, min(start + end - first, file.pages))
        if not len(pfns):
            return False
        flags = self._pages.flags[pfns]
        ready = flags & (_UPTODATE | _AHEAD) == _UPTODATE
        with self._cache.pin(pfns):
            base = memory.tables.ensure(mm.id, vpn) - vpn
        words = memory.mmu.words
        slots = indices - start + first + base
        ready &= words[slots] == 0
        pfns, slots = pfns[ready], slots[ready]
        bits = np.uint64(self._protection(memory, vma, write=False))
        words[slots] = pfns.astype(np.uint64) << np.uint64(PFN_SHIFT) | bits
        memory.mmu.rss_task[mm.id * 4 + self._counter(vma)] += len(pfns)
        self._cache.mapped(pfns)
        self._mlock(memory, vma, pfns)
        file.ra.mmap_miss = max(0, file.ra.mmap_miss - len(pfns))
        return bool(words[base + vpn])
