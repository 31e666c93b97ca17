"""Address spaces: ``mm_struct``, ``vm_area_struct`` and the flags of mappings (include/linux/mm_types.h, mm.h).

Addresses are bytes, counts pages. Page tables and residency counters are in the core, under ``Mm.id``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.mm.filemap import File
    from kmemd.mm.hugetlb_reserve import Reserve
    from kmemd.mm.mpol import Policy
    from kmemd.mm.rmap import AnonVma

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE = 0x10, 0x20, 0x40, 0x80
VM_GROWSDOWN, VM_UFFD_MISSING, VM_PFNMAP, VM_UFFD_WP = 0x100, 0x200, 0x400, 0x1000
VM_LOCKED, VM_IO, VM_SEQ_READ, VM_RAND_READ = 0x2000, 0x4000, 0x8000, 0x10000
VM_DONTCOPY, VM_DONTEXPAND, VM_LOCKONFAULT, VM_ACCOUNT = 0x20000, 0x40000, 0x80000, 0x100000
VM_NORESERVE, VM_HUGETLB, VM_SYNC, VM_ARCH_1 = 0x200000, 0x400000, 0x800000, 0x1000000
VM_WIPEONFORK, VM_DONTDUMP, VM_SOFTDIRTY, VM_MIXEDMAP = 0x2000000, 0x4000000, 0x8000000, 0x10000000
VM_HUGEPAGE, VM_NOHUGEPAGE, VM_MERGEABLE = 0x20000000, 0x40000000, 0x80000000
VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT

_START = attrgetter("start")

MMF_OOM_SKIP, MMF_UNSTABLE, MMF_OOM_REAP_QUEUED = 1 << 21, 1 << 22, 1 << 25

MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES = range(4)
NR_MM_COUNTERS = 4


@dataclass(slots=True, eq=False)
class Vma:
    """One mapping, ``[start, end)`` in bytes (``struct vm_area_struct``).

    ``pgoff`` is the offset of ``start`` in pages: in the file, or, for anonymous memory, the page number of the address
    where the mapping was made, which moves with it (mremap). ``name`` is what maps shows for memory without a file.
    ``file`` is None for private anonymous memory; shared anonymous memory has a shmem file. ``private`` is what a
    private mapping of huge pages knows of its reservations.

    ``chain`` are the anon_vmas that it hangs in: its own, and those whose pages it inherited by fork (mm/rmap.py).
    ``object`` and ``chain_objects`` are the addresses of the slab objects of it and of the links (mm/vma_slab.py).

    Invariants: start < end, both page aligned; ``anon_vma`` is set before the first anonymous page is mapped.
    """

    start: int
    end: int
    flags: int
    pgoff: int = 0
    file: File | None = None
    anon_vma: AnonVma | None = None
    policy: Policy | None = None
    name: str = ""
    chain: list[AnonVma] = field(default_factory=list)
    private: Reserve | None = None
    object: int = 0
    chain_objects: list[int] = field(default_factory=list)

    def copy(self, start: int, end: int, pgoff: int) -> Vma:
        """The like of it at other addresses, which hangs in no anon_vma yet (``vm_area_dup``)."""
        return replace(self, start=start, end=end, pgoff=pgoff, anon_vma=None, chain=[], object=0, chain_objects=[])

    @property
    def pages(self) -> int:
        """Pages of address space."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def vpn(self) -> int:
        """The page number of the first address."""
        return self.start >> PAGE_SHIFT

    @property
    def is_anon(self) -> bool:
        """Whether it is private anonymous memory (``vma_is_anonymous``: no vm_ops), [vvar] and [vdso] not."""
        return self.file is None and not self.flags & (VM_PFNMAP | VM_MIXEDMAP | VM_IO) and self.name != "[vdso]"

    def index_of(self, vpn: int) -> int:
        """``page.index`` of the page at page number ``vpn`` (``linear_page_index``)."""
        return self.pgoff + vpn - (self.start >> PAGE_SHIFT)


@dataclass(eq=False)
class Mm:
    """One address space (``struct mm_struct``). ``id`` names it in the core's arrays.

    Invariants: ``vmas`` are sorted by address and do not overlap; the counts in pages are sums over them.
    ``changed`` is bumped by whoever changes a VMA or the list of them: what the core holds of it is then made anew.
    ``flags`` are MMF_* bits.
    ``legacy`` layouts map upwards from ``mmap_base``, others downwards. No gap of ``full_length`` bytes or more lies
    wholly at ``full_above`` or beyond, below the base: where the search for room need not look (0: not known).
    """

    id: int
    mmap_base: int = 0
    task_size: int = 0
    legacy: bool = False
    legacy_base: int = 0
    full_above: int = 0
    full_length: int = 0
    vmas: list[Vma] = field(default_factory=list)
    changed: int = 0
    total_vm: int = 0
    locked_vm: int = 0
    pinned_vm: int = 0
    data_vm: int = 0
    exec_vm: int = 0
    stack_vm: int = 0
    hiwater_rss: int = 0
    hiwater_vm: int = 0
    def_flags: int = 0
    flags: int = 0
    start_code: int = 0
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0
    start_brk: int = 0
    brk: int = 0
    start_stack: int = 0
    arg_start: int = 0
    arg_end: int = 0
    env_start: int = 0
    env_end: int = 0
    platform: int = 0
    random: int = 0
    exe: File | None = None
    policy: Policy | None = None
    users: int = 1
    hugetlb_pages: int = 0
    deposits: list[int] = field(default_factory=list)

    def find(self, address: int) -> Vma | None:
        """The VMA that holds ``address``, or None."""
        vma = self.find_vma(address)
        return vma if vma is not None and vma.start <= address else None

    def find_vma(self, address: int) -> Vma | None:
        """The first VMA that ends above ``address`` (``find_vma``)."""
        at = self.position(address)
        return self.vmas[at] if at < len(self.vmas) else None

    def position(self, address: int) -> int:
        """The index of the first VMA that ends above ``address``."""
        at = bisect_right(self.vmas, address, key=_START)
        return at - 1 if at and self.vmas[at - 1].end > address else at

    def overlapping(self, start: int, end: int) -> Iterator[Vma]:
        """The VMAs that have a page in ``[start, end)``, as they are now."""
        at = self.position(start)
        while at < len(self.vmas) and self.vmas[at].start < end:
            yield self.vmas[at]
            at += 1
