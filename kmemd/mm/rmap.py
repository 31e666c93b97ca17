"""Reverse mapping: who maps a page (mm/rmap.c).

An anonymous page names the anon_vma that it was made for; every VMA that may map it hangs in that anon_vma, also those
of children, which inherited the page by fork. A page of a file names the file, in which the VMAs that map it hang.
Counts of mappings are in ``PageMap.mapcount``. Left out: the interval trees, whose place lists take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from kmemd.core import stats
from kmemd.core.mmu import Mmu
from kmemd.core.pages import ALLOCATED, PG_ANON_EXCLUSIVE, PG_SWAPBACKED, PG_UPTODATE, PageMap
from kmemd.core.pte import PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE
from kmemd.mm.mm_types import VM_ACCESS_FLAGS, VM_SOFTDIRTY, Mm, Vma
from kmemd.mm.mmzone import Zone
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vma_slab import Kind, VmaObjects
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.filemap import File

ANON_FLAGS = 1 << PG_UPTODATE | 1 << PG_SWAPBACKED


class AnonVma:
    """What anonymous pages name as their owner. ``vmas`` maps the VMAs that hang in it to their address spaces.

    ``children`` counts the anon_vmas whose parent it is, ``owners`` the VMAs whose own it is; ``object`` is its
    address.
    """

    __slots__ = ("children", "id", "object", "owners", "parent", "vmas")

    def __init__(self, number: int, address: int, parent: AnonVma | None = None) -> None:
        self.id = number
        self.object = address
        self.parent = parent
        self.vmas: dict[Vma, Mm] = {}
        self.owners = 0
        self.children = 0


class Rmap:
    """All anon_vmas, by number, and the bookkeeping of mapped pages.

    ``owner(pfn)`` is the file whose page cache a page is in, or None; the VMAs that map a file hang in the file.

    Invariants: an anon_vma exists as long as a VMA hangs in it; ``vma.anon_vma`` is the first of ``vma.chain``.
    """

    def __init__(
        self,
        mmu: Mmu,
        pages: PageMap,
        zones: list[Zone],
        vmstat: VmStat,
        owner: Callable[[int], File | None],
        objects: VmaObjects,
    ) -> None:
        self._owner = owner
        self._objects = objects
        self._mmu = mmu
        self._pages = pages
        self._zones = zones
        self._vmstat = vmstat
        self._anon: dict[int, AnonVma] = {}
        self._next = 1

    # -- anon_vmas ---------------------------------------------------------------------------------------

    def prepare(self, mm: Mm, vma: Vma) -> AnonVma:
        """The anon_vma of a VMA: its own, a neighbour's that it could be merged with, or a new one
        (anon_vma_prepare). ENOMEM.
        """
        if vma.anon_vma is None:
            shared = self._mergeable(mm, vma)
            self._objects.reserve(anon_vmas=int(shared is None), chains=1)
            anon = shared or self._new(None)
            anon.owners += 1
            vma.anon_vma = anon
            self._join(mm, vma, anon)
            mm.changed += 1
        return vma.anon_vma

    def reserve_fork(self, parents: list[Vma]) -> None:
        """Have the objects ready that copies of VMAs in a child need. ENOMEM."""
        own = [vma for vma in parents if vma.anon_vma is not None]
        chains = sum(len(vma.chain) + 1 for vma in own)
        self._objects.reserve(vmas=len(parents), anon_vmas=len(own), chains=chains)

    def forked(self) -> None:
        """What was reserved for a child and not needed goes."""
        self._objects.give_back_spare()

    def fork(self, child_mm: Mm, child: Vma, parent: Vma) -> None:
        """A child's VMA hangs in all that its parent's does, and gets an anon_vma of its own (anon_vma_fork).

        Preconditions: ``reserve_fork``.
        """
        if parent.anon_vma is None:
            return
        child.anon_vma, child.chain = None, []
        for anon in parent.chain:
            self._join(child_mm, child, anon)
            if child.anon_vma is None and anon.children < 2 and not anon.owners and anon.parent is not None:
                child.anon_vma = anon
        if child.anon_vma is None:
            child.anon_vma = self._new(parent.anon_vma)
            self._join(child_mm, child, child.anon_vma)
        child.anon_vma.owners += 1

    def reserve(self, source: Vma | None = None) -> None:
        """Have the objects ready for one more VMA, and one that shares the anon_vmas of ``source``. ENOMEM."""
        self._objects.reserve(vmas=1, chains=len(source.chain) if source is not None else 0)

    def clone(self, mm: Mm, vma: Vma, source: Vma) -> None:
        """A VMA that is split off, moved or merged shares its source's anon_vmas (anon_vma_clone)."""
        if source.anon_vma is None or vma.anon_vma is source.anon_vma:
            return
        for anon in source.chain:
            self._join(mm, vma, anon)
        if vma.anon_vma is None:
            vma.anon_vma = source.anon_vma
            vma.anon_vma.owners += 1

    def link(self, mm: Mm, vma: Vma) -> None:
        """A VMA is there: its file and its anon_vmas know it from now on (vma_link).

        Preconditions: ``reserve``, or ``reserve_fork``.
        """
        vma.object = self._objects.take(Kind.VMA)
        if vma.file is not None:
            vma.file.link(mm, vma)
        for anon in vma.chain:
            anon.vmas[vma] = mm

    def singular(self, vma: Vma) -> bool:
        """Whether a VMA's pages can be of one anon_vma only: none was inherited by fork (list_is_singular)."""
        return len(vma.chain) <= 1

    def unlink(self, vmas: Iterable[Vma]) -> None:
        """VMAs that go leave their files and their anon_vmas; of these, those without any other end."""
        gone: list[int] = []
        for vma in vmas:
            if vma.file is not None:
                vma.file.unlink(vma)
            gone.append(vma.object)
        self.unlink_anon(vmas)
        self._objects.free(Kind.VMA, gone)

    def unlink_anon(self, vmas: Iterable[Vma]) -> None:
        """VMAs leave their anon_vmas (unlink_anon_vmas)."""
        chains: list[int] = []
        ended: list[int] = []
        for vma in vmas:
            if vma.anon_vma is not None:
                vma.anon_vma.owners -= 1
            chains += vma.chain_objects
            ended += [anon.object for anon in vma.chain if self._leave(vma, anon)]
            vma.anon_vma, vma.chain, vma.chain_objects = None, [], []
        self._objects.free(Kind.CHAIN, chains)
        self._objects.free(Kind.ANON_VMA, ended)

    def _leave(self, vma: Vma, anon: AnonVma) -> bool:
        """Take a VMA out of an anon_vma. Whether that was the last."""
        del anon.vmas[vma]
        if anon.vmas:
            return False
        del self._anon[anon.id]
        if anon.parent is not None:
            anon.parent.children -= 1
        return True

    def anon_vma(self, number: int) -> AnonVma | None:
        """The anon_vma that a page names, None when it ended."""
        return self._anon.get(number)

    def _new(self, parent: AnonVma | None) -> AnonVma:
        anon = AnonVma(self._next, self._objects.take(Kind.ANON_VMA), parent)
        if parent is not None:
            parent.children += 1
        self._anon[self._next] = anon
        self._next += 1
        return anon

    def _join(self, mm: Mm, vma: Vma, anon: AnonVma) -> None:
        if anon not in vma.chain:
            vma.chain.append(anon)
            vma.chain_objects.append(self._objects.take(Kind.CHAIN))
        anon.vmas[vma] = mm

    def _mergeable(self, mm: Mm, vma: Vma) -> AnonVma | None:
        """find_mergeable_anon_vma: the next VMA's, then the previous one's."""
        at = mm.position(vma.start)
        neighbours = [mm.vmas[k] for k in (at + 1, at - 1) if 0 <= k < len(mm.vmas)]
        for other in neighbours:
            first, second = (vma, other) if other.start > vma.start else (other, vma)
            if other.anon_vma is not None and len(other.chain) == 1 and _compatible(first, second):
                return other.anon_vma
        return None

    # -- pages -------------------------------------------------------------------------------------------

    def add_anon(self, pfn: int, vma: Vma, vpn: int, *, exclusive: bool = True) -> None:
        """A new anonymous page, about to be mapped once (page_add_new_anon_rmap)."""
        assert vma.anon_vma is not None, "anon_vma_prepare comes first"
        pages = self._pages
        flags = int(pages.flags[pfn]) | ANON_FLAGS | (1 << PG_ANON_EXCLUSIVE if exclusive else 0)
        pages.flags[pfn] = flags
        pages.mapping[pfn] = vma.anon_vma.id
        pages.index[pfn] = vma.index_of(vpn)
        self.map_again(pfn)

    def map_again(self, pfn: int) -> None:
        """One more entry maps a page that names its owner already (page_add_anon_rmap, page_add_file_rmap)."""
        self._pages.mapcount[pfn] += 1
        if self._pages.mapcount[pfn] == 1 and not self._whole(pfn):
            self._count(pfn, 1)

    def add_file(self, pfn: int) -> None:
        """``map_again``, of a file's page."""
        self.map_again(pfn)

    def remove(self, pfn: int) -> None:
        """One entry less maps a page (page_remove_rmap)."""
        self._pages.mapcount[pfn] -= 1
        if self._pages.mapcount[pfn] == 0 and not self._whole(pfn):
            self._count(pfn, -1)

    def _whole(self, pfn: int) -> int:
        """How many huge entries map the huge page that a page is in; 0 for a small page."""
        head = self.head(pfn)
        return int(self._pages.mapping[head + 1]) if self._pages.order[head] else 0

    def _count(self, pfn: int, sign: int) -> None:
        item = stats.NR_ANON_MAPPED if self._pages.mapping[self.head(pfn)] > 0 else stats.NR_FILE_MAPPED
        self._vmstat.mod_node(self.nid(pfn), item, sign)

    def head(self, pfn: int) -> int:
        """The head of the block that a page is in (compound_head); pages of the kernel's image are in none."""
        if self._pages.kind[pfn]:
            return pfn
        head = pfn & -self._vmstat.hpage_pmd_nr
        huge = self._pages.kind[head] == ALLOCATED and 1 << int(self._pages.order[head]) == self._vmstat.hpage_pmd_nr
        return head if huge else pfn

    def file_of(self, pfn: int) -> File | None:
        """The file whose page cache a page is in."""
        return self._owner(pfn)

    def nid(self, pfn: int) -> int:
        """The node of a page."""
        return next(zone.nid for zone in self._zones if zone.start_pfn <= pfn < zone.end_pfn)

    # -- walking -----------------------------------------------------------------------------------------

    def candidates(self, pfn: int) -> Iterator[tuple[Mm, Vma, int]]:
        """Every VMA that may map a page, with the page number of the address where it would (rmap_walk)."""
        head = self.head(pfn)
        index = int(self._pages.index[head]) + pfn - head
        for mm, vma in self.mappings_of(head):
            vpn = vma.vpn + index - vma.pgoff
            if vma.vpn <= vpn < vma.end >> PAGE_SHIFT:
                yield mm, vma, vpn

    def mappings_of(self, head: int) -> list[tuple[Mm, Vma]]:
        """Every VMA that may map some page of the owner of a page, which is no part of a huge one."""
        owner = int(self._pages.mapping[head])
        if owner > 0:
            anon = self._anon.get(owner)
            return [(mm, vma) for vma, mm in anon.vmas.items()] if anon is not None else []
        file = self._owner(head)
        return list(file.mappings()) if file is not None else []

    def walk(self, pfn: int) -> list[tuple[Mm, Vma, int]]:
        """Who maps a page by an entry of its own or by a huge one: address space, VMA, page number."""
        return [(mm, vma, vpn) for mm, vma, vpn in self.candidates(pfn) if self._maps(mm, vpn, pfn)]

    def _maps(self, mm: Mm, vpn: int, pfn: int) -> bool:
        slot, level = self._mmu.leaf(mm.id, vpn)
        if slot < 0:
            return False
        entry = int(self._mmu.words[slot])
        first = (entry & PFN_MASK) >> PFN_SHIFT
        inside = vpn & ((1 << self._mmu.bits * level) - 1)
        return bool(entry & (PRESENT | PROTNONE)) and first + inside == pfn

    def check(self) -> None:
        """VMAs and anon_vmas name each other."""
        for anon in self._anon.values():
            for vma in anon.vmas:
                assert anon in vma.chain, f"anon_vma {anon.id}: a VMA does not know that it hangs in it"
            assert anon.vmas, f"anon_vma {anon.id}: nothing hangs in it"


def _compatible(first: Vma, second: Vma) -> bool:
    """anon_vma_compatible: adjacent, alike but for protection, and contiguous."""
    ignored = VM_ACCESS_FLAGS | VM_SOFTDIRTY
    return (
        first.end == second.start
        and first.policy == second.policy
        and first.file is second.file
        and not (first.flags ^ second.flags) & ~ignored
        and second.pgoff == first.pgoff + first.pages
    )
