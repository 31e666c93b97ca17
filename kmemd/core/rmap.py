"""Entries that map pages known by number: whether they were used, and moving them (mm/rmap.c, mm/migrate.c)."""

import cython

from kmemd.core.tlb import Tlb

_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_PROTNONE = cython.declare(cython.ulonglong, 1 << 8)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_EXCLUSIVE = cython.declare(cython.uint, 1 << 17)
_PG_DIRTY = cython.declare(cython.uint, 1 << 3)
_MOVED_FLAGS = cython.declare(cython.uint, 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x100 | 0xE0000 | 0x30000000)
_NOT_SIMPLE = cython.declare(cython.uint, 0x10 | 0x400 | 0x8000 | 0x10000 | 0x100000 | 0x200000 | 0xC0000000)
_MOVED_BITS = cython.declare(cython.ulonglong, 2 | 1 << 5 | 1 << 6 | 1 << 11)  # RW, accessed, dirty, soft-dirty


@cython.final
@cython.cclass
class MappedPages:
    """Works on the entries of pages that the reverse map found, in the tables of an ``Mmu``."""

    def __init__(self, mmu: Tlb) -> None:
        self._mmu = mmu

    def young(
        self, mm: cython.int, vpns: cython.longlong[::1], pfns: cython.longlong[::1], out: cython.uchar[::1]
    ) -> None:
        """Which pages are mapped where the reverse map expects them (1), and were accessed since they were asked
        last (2 more): their accessed bits are cleared (folio_referenced_one).

        The TLB keeps what it knows, as on x86.
        """
        m: Tlb = self._mmu
        i: cython.Py_ssize_t
        slot: cython.longlong
        entry: cython.ulonglong
        inside: cython.longlong
        for i in range(vpns.shape[0]):
            out[i] = 0
            slot = m._leaf(mm, vpns[i])
            if slot < 0:
                continue
            entry = m._words[slot]
            inside = vpns[i] & ((cython.cast(cython.longlong, 1) << m.bits * m._level) - 1)
            if not entry & (_PRESENT | _PROTNONE) or ((entry & _PFN_MASK) >> 12) + inside != pfns[i]:
                continue
            out[i] = 3 if entry & _ACCESSED else 1
            m._words[slot] = entry & ~_ACCESSED

    def move_pages(
        self,
        mm: cython.int,
        span: tuple,
        prot: cython.ulonglong,
        anon: cython.int,
        srcs: cython.longlong[::1],
        dsts: cython.longlong[::1],
        done: cython.uchar[::1],
    ) -> int:
        """Let anonymous pages that one entry of a mapping maps go on in other page frames, contents apart.

        ``span`` is the mapping's ``(first page number, one past its last, pgoff)``, ``prot`` its entries' protection,
        ``anon`` the anon_vma that the pages name. What migration does page by page (try_to_migrate,
        folio_migrate_flags, remove_migration_ptes) comes to this for a page without other users. ``done`` says which
        were moved, by this call or before; how many this call moved.
        """
        m: Tlb = self._mmu
        i: cython.Py_ssize_t
        moved: cython.Py_ssize_t = 0
        vpn: cython.longlong
        first: cython.longlong = span[0]
        end: cython.longlong = span[1]
        pgoff: cython.longlong = span[2]
        slot: cython.longlong
        src: cython.longlong
        dst: cython.longlong
        entry: cython.ulonglong
        for i in range(srcs.shape[0]):
            src = srcs[i]
            if done[i] or m._mapping[src] != anon or m._mapcount[src] != 1 or m._flags[src] & _NOT_SIMPLE:
                continue
            vpn = first + m._index[src] - pgoff
            if vpn < first or vpn >= end:
                continue
            slot = m._leaf(mm, vpn)
            if slot < 0 or m._level:
                continue
            entry = m._words[slot]
            if not entry & (_PRESENT | _PROTNONE) or cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12) != src:
                continue
            dst = dsts[i]
            m._flush_pages(mm, vpn, vpn + 1)
            m._words[slot] = (
                cython.cast(cython.ulonglong, dst) << 12
                | prot
                | (entry & _MOVED_BITS)
                | (_SOFT_DIRTY if entry & _DIRTY else 0)
            )
            m._flags[dst] |= m._flags[src] & _MOVED_FLAGS
            if entry & _DIRTY:
                m._flags[dst] |= _PG_DIRTY
            if entry & _RW:
                m._flags[dst] |= _EXCLUSIVE
            m._mapping[dst] = anon
            m._index[dst] = m._index[src]
            m._mapcount[dst] = 1
            m._mapcount[src] = 0
            m._mapping[src] = 0
            m._flags[src] = 0
            done[i] = 1
            moved += 1
        return moved
