"""The kernel's own page tables: what is mapped where, with which protection and in pages of which size (``init_mm``).

The tables themselves are not kept: boot's mappings follow from the machine, vmalloc's from its areas, and what
``set_memory_*`` changed is kept page by page (arch/x86/mm/init.c, init_64.c ``mark_rodata_ro``,
arch/x86/mm/cpu_entry_area.c, arch/x86/realmode/init.c ``set_real_mode_permissions``, arch/x86/mm/pat/set_memory.c).
A leaf is a run of entries of one size with the same bits (``core/pte.py``, with PWT and PCD). Left out: the aliases
that change_page_attr changes besides, 5-level tables. With page table isolation (mm/pti.py) nothing is global but what
the tables of programs share: the CPUs' entry area, and the large page of entry code.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kmemd.core.pte import ACCESSED, DIRTY, GLOBAL, NX, PRESENT, PROTNONE, PSE, RW
from kmemd.mm import memtype
from kmemd.mm.direct_map import ISA_END, LARGE_PAGE
from kmemd.mm.layout import (
    CPU_ENTRY_AREA_BASE,
    PHYSICAL_START,
    PKMAP_BASE_32,
    X86_64,
    Layout,
)
from kmemd.mm.params import CommandLine
from kmemd.mm.units import GIB, KIB, MIB, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TIB
from kmemd.mm.vmalloc import PERCPU_CALLER, PMD_ORDER, VM_IOREMAP, VmStruct

PWT, PCD = 1 << 3, 1 << 4
KERNEL = PRESENT | RW | ACCESSED | DIRTY | GLOBAL | NX
"""_PAGE_KERNEL."""
RO, X = RW, NX
"""What a protection takes away from KERNEL."""
CACHE_BITS = {memtype.WB: 0, memtype.WC: PWT, memtype.UC_MINUS: PCD, memtype.UC: PWT | PCD}
SECTION_BYTES = 128 * MIB

REAL_MODE_PAGES = {X86_64: 6, "i386": 4}
REAL_MODE_RO = {X86_64: ((0, RO), (1, RO | X)), "i386": ((0, RO), (1, RO))}
"""Pages of the trampoline for other CPUs that are read-only, from its start, and its code."""
IMAGE = {
    X86_64: ((0, 0x60_2000, RO | X), (0x80_0000, 0x9B_2000, RO), (0xBF_7000, 0xBF_8000, RO)),
    "i386": ((0, 0x3F_2000, RO), (0x51_5000, 0x51_6000, RO)),
}
"""Protected parts of the captured kernels, from _text: code, constants, and the IDT, which ``rodata=off`` leaves."""
IMAGE_END = 0x101_C000
ENTRY_TEXT = (0x40_0000, 0x60_0000)
"""The large page with the code of system calls and exceptions, from _text (``ALIGN_ENTRY_TEXT_BEGIN``)."""

CPU_ENTRY_BASE_32 = 0xFF80_0000
CPU_STACKS = tuple((first, first + 2, KERNEL) for first in (9, 12, 15, 18))
CPU_ENTRY = {
    X86_64: (CPU_ENTRY_AREA_BASE, 59, ((1, 2, KERNEL & ~RO), (2, 3, KERNEL), (3, 8, KERNEL & ~RO), *CPU_STACKS)),
    "i386": (CPU_ENTRY_BASE_32, 43, ((1, 2, KERNEL), (3, 4, KERNEL), (5, 12, KERNEL), (12, 44, PROTNONE))),
}
"""The entry area: where it is, how many pages it has for a CPU, and which of them are there: GDT, entry stack, TSS,
exception stacks with guards between them. Page 0 of all is the IDT. On i386 there is room behind the stacks for the
debug store, which is not mapped (PAGE_NONE)."""
FIXADDR_START, FIXMAP_TABLES = 0xFFFF_FFFF_FF77_C000, (0xFFFF_FFFF_FF40_0000, 0xFFFF_FFFF_FF80_0000)
FIXADDR_START_32, FIXED_TABLES_32 = (
    0xFFF3_A000,
    [(PKMAP_BASE_32, PKMAP_BASE_32 + 4 * MIB), (CPU_ENTRY_BASE_32, 1 << 32)],
)
APIC_PAGES, APIC_PAGES_32 = (0xFFFF_FFFF_FF7F_C000, 0xFFFF_FFFF_FF7F_E000), (0xFFFF_B000, 0xFFFF_D000)
"""The local APIC and the IO-APIC, uncached."""


class Leaf(NamedTuple):
    """Entries of one size, side by side, with the same bits. ``phys`` is where the first one leads, -1: to pages here
    and there."""

    start: int
    end: int
    size: int
    flags: int
    phys: int = -1

    def without(self, bits: int) -> Leaf:
        """The same with some bits clear."""
        return self._replace(flags=self.flags & ~bits)

    def part(self, start: int, end: int, *, small: bool = False) -> Leaf:
        """A part of it, in small pages where its large one was split."""
        phys = self.phys + start - self.start if self.phys >= 0 else -1
        if small:
            return Leaf(start, end, PAGE_SIZE, self.flags & ~PSE, phys)
        return Leaf(start, end, self.size, self.flags, phys)


class Mappings:
    """What is mapped at one moment: all leaves by address, and what was found out about them."""

    def __init__(self, leaves: list[Leaf], tables: Callable[[int], list[tuple[int, int]]] = lambda size: []) -> None:
        """``tables(size)``: regions of a size that have a table whatever is in them."""
        self.leaves = leaves
        self._tables = tables
        self._regions: dict[int, list[tuple[int, int]]] = {}

    def regions(self, size: int) -> list[tuple[int, int]]:
        """The regions of ``size`` that have a table of their own: there are smaller leaves in them, or were."""
        if size not in self._regions:
            ranges = [(leaf.start & -size, leaf.end + size - 1 & -size) for leaf in self.leaves if leaf.size < size]
            self._regions[size] = merged([*ranges, *self._tables(size)])
        return self._regions[size]

    def lookup(self, address: int) -> Leaf | None:
        """What maps an address."""
        at = bisect_right(self.leaves, (address, 1 << 64)) - 1
        found = self.leaves[at] if at >= 0 else None
        return found if found is not None and found.end > address and found.flags & PRESENT else None

    def within(self, start: int, end: int) -> Iterator[Leaf]:
        """What maps a range, cut to it."""
        at = max(bisect_right(self.leaves, (start, 1 << 64)) - 1, 0)
        while at < len(self.leaves) and self.leaves[at].start < end:
            leaf = self.leaves[at]
            low = max(leaf.start, start)
            if low < leaf.end and leaf.flags & PRESENT:
                yield leaf.part(low, min(leaf.end, end))
            at += 1

    @cached_property
    def writable(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Where ranges that may be written begin and end."""
        found = merged((leaf.start, leaf.end) for leaf in self.leaves if leaf.flags & RW and leaf.flags & PRESENT)
        starts, ends = np.array(found, dtype=np.uint64).T
        return starts, ends


class InitMm:
    """The kernel's mappings.

    ``memory`` are the ranges of memory in bytes, ``areas()`` those of vmalloc, ``version()`` differs after
    they changed, ``tables`` the 2 MiB regions (4 MiB on i386) of vmalloc that ever had a page, ``changed`` the bits of
    small pages that were changed, ``split(size)`` hears of large ones that were split, ``cached(area)`` the memory type
    of an area of ioremap, ``percpu`` the bytes of a unit of per-CPU areas, the pages at its start that are there, and
    how many CPUs each area is for; ``windows()`` the pages of high memory that have an address,
    ``module_text()`` the code of modules that nobody loaded (debug/kallsyms.py).

    Invariants: one list of leaves is kept, which is made anew when an area, a window or a protection has changed.
    """

    def __init__(
        self,
        layout: Layout,
        memory: Iterable[tuple[int, int]],
        areas: Callable[[], Iterator[VmStruct]],
        version: Callable[[], Hashable],
        tables: set[int],
        changed: dict[int, int],
        split: Callable[[int], None],
        cached: Callable[[VmStruct], int],
        windows: Callable[[], Iterable[int]],
        module_text: Callable[[], Iterable[tuple[int, int]]],
        *,
        cpus: int,
        percpu: tuple[int, int, tuple[int, ...]],
        gbpages: bool = False,
        pti: bool = False,
        rodata: bool = True,
    ) -> None:
        """``pti``: programs have tables of their own (mm/pti.py); ``rodata``: boot protects the kernel's image."""
        self.layout = layout
        self.long = layout.arch == X86_64
        self.large = LARGE_PAGE[layout.arch]
        self._memory = sorted(memory)
        self._areas, self._version, self._tables = areas, version, tables
        self._cached, self._windows = cached, windows
        self._module_text = module_text
        self._cpus, self._percpu = cpus, percpu
        self._gbpages = gbpages and self.long
        self.isolated = pti
        self._image_flags = KERNEL if rodata else KERNEL & ~NX
        self._image_parts = IMAGE[layout.arch] if rodata else IMAGE[layout.arch][-1:]
        self._off = (0 if self.long else NX) | (GLOBAL if pti else 0)
        entry = [layout.text_base + at for at in ENTRY_TEXT]
        area = (CPU_ENTRY_AREA_BASE, CPU_ENTRY_AREA_BASE + TIB // 2)
        self._shared = [area, (entry[0], entry[1])] if pti else []
        self._changed, self._split = changed, split
        self._changes = 0
        self._kept: tuple[Hashable, Mappings] = (None, Mappings([]))

    # -- the whole -----------------------------------------------------------------------------------------

    @property
    def mappings(self) -> Mappings:
        """What is mapped now."""
        windows = () if self.long else tuple(self._windows())
        key = (self._version(), self._changes, windows)
        if self._kept[0] != key:
            self._kept = key, Mappings(self._made(windows), self._kept_tables)
        return self._kept[1]

    def leaves(self) -> list[Leaf]:
        """Everything that is mapped, by address."""
        return self.mappings.leaves

    def lookup(self, address: int) -> Leaf | None:
        """What maps an address."""
        return self.mappings.lookup(address)

    def regions(self, size: int) -> list[tuple[int, int]]:
        """The regions of ``size`` that have a table of their own."""
        return self.mappings.regions(size)

    @property
    def shared(self) -> Mappings:
        """What isolated programs have of the kernel in their tables."""
        return Mappings([leaf for leaf in self.leaves() if any(a <= leaf.start < b for a, b in self._shared)])

    def first_unwritable(self, addresses: npt.NDArray[np.uint64]) -> int | None:
        """The first of some addresses that a store faults at."""
        starts, ends = self.mappings.writable
        place = np.searchsorted(starts, addresses, side="right")
        faults = (place == 0) | (addresses >= ends[np.maximum(place, 1) - 1])
        return int(addresses[faults][0]) if faults.any() else None

    def _made(self, windows: Iterable[int]) -> list[Leaf]:
        mapped = [*self._vmalloc(), *(Leaf(at, at + PAGE_SIZE, PAGE_SIZE, KERNEL) for at in windows)]
        found = sorted([*self._boot_leaves, *(leaf.without(self._off) for leaf in mapped)])
        return list(self._with_changes(found)) if self._changed else found

    @cached_property
    def _boot_leaves(self) -> list[Leaf]:
        """What boot mapped for good."""
        found = [*self._direct_map(), *self._fixed(), *self._entry_area()]
        if self.long:
            found += [*self._vmemmap(), *self._image()]
        return sorted(part for leaf in found for part in self._allowed(leaf))

    def _allowed(self, leaf: Leaf) -> Iterator[Leaf]:
        """A leaf with the bits that this kernel uses: with isolation, what is shared stays global
        (``pti_set_kernel_image_nonglobal``, ``pti_clone_pgtable``).
        """
        at = leaf.start
        for low, high in self._shared:
            low, high = max(low, at), min(high, leaf.end)
            if low < high:
                if at < low:
                    yield leaf.part(at, low).without(self._off)
                yield leaf.part(low, high).without(self._off & ~GLOBAL)
                at = high
        if at < leaf.end:
            yield leaf.part(at, leaf.end).without(self._off)

    def _kept_tables(self, size: int) -> list[tuple[int, int]]:
        """Regions with tables that stay: all top ones of vmalloc, and those that areas that are gone had."""
        found: list[tuple[int, int]] = []
        if self.long and size == TIB // 2:
            found.append((self.layout.vmalloc_start & -size, self.layout.vmalloc_end + size - 1 & -size))
        if size in (self.large, GIB) and (self.long or size == self.large):
            places = sorted({index * self.large & -size for index in self._tables})
            found += [(place, place + size) for place in places]
        if size == self.large:
            found += [FIXMAP_TABLES] if self.long else FIXED_TABLES_32
        return found

    # -- parts -----------------------------------------------------------------------------------------------

    def _direct_map(self) -> Iterator[Leaf]:
        limit = self.layout.max_low_pfn << PAGE_SHIFT
        marks = self._protected()
        runs = merged([(0, ISA_END), *((max(a, ISA_END), min(b, limit)) for a, b in self._memory)])
        for start, end in runs:
            if start < end:
                yield from self._mapped(start, end, marks, self.layout.page_offset)

    def _protected(self) -> list[tuple[int, int, int]]:
        """Physical ranges that are not plain data. The direct map executes the trampoline, and not the kernel."""
        arch = self.layout.arch
        low = next((end for start, end in self._memory if start < ISA_END), 640 * KIB)
        base = (low & PAGE_MASK) - REAL_MODE_PAGES[arch] * PAGE_SIZE
        marks = [(base + page * PAGE_SIZE, base + (page + 1) * PAGE_SIZE, off) for page, off in REAL_MODE_RO[arch]]
        return marks + [(PHYSICAL_START + a, PHYSICAL_START + b, off & ~X) for a, b, off in self._image_parts]

    def _mapped(
        self, start: int, end: int, marks: list[tuple[int, int, int]], base: int, flags: int = KERNEL
    ) -> Iterator[Leaf]:
        """A physical range at ``base``, in pages as large as its protections allow."""
        at = start
        for low, high, off in [mark for mark in marks if mark[1] > start and mark[0] < end] + [(end, end, 0)]:
            yield from self._pages(at, max(low, at), flags, base)
            yield from self._pages(max(low, at), min(high, end), flags & ~off, base)
            at = max(high, at)

    def _pages(self, start: int, end: int, flags: int, base: int) -> Iterator[Leaf]:
        """One protection: small pages up to the first whole large one, and behind the last."""
        sizes = (self.large, GIB) if self._gbpages and base == self.layout.page_offset else (self.large,)
        yield from _sized(start, end, PAGE_SIZE, sizes, flags, base)

    def _vmalloc(self) -> Iterator[Leaf]:
        for start, end in self._module_text():
            yield Leaf(start, end, PAGE_SIZE, KERNEL & ~RO & ~X)
        unit, populated, groups = self._percpu
        cpus = iter(groups)
        for area in self._areas():
            if area.flags & VM_IOREMAP:
                bits = CACHE_BITS.get(self._cached(area), 0)
                phys = -1 if area.phys is None else area.phys & PAGE_MASK
                yield Leaf(area.address, area.end - PAGE_SIZE, PAGE_SIZE, KERNEL | bits, phys)
            elif area.caller[0].startswith(PERCPU_CALLER):
                for number in range(next(cpus, 0)):
                    start = area.address + number * unit
                    yield Leaf(start, start + populated * PAGE_SIZE, PAGE_SIZE, KERNEL)
            elif area.order == PMD_ORDER:
                yield Leaf(area.address, area.address + area.nr_pages * PAGE_SIZE, self.large, KERNEL | PSE)
            else:
                yield Leaf(area.address, area.end - PAGE_SIZE, PAGE_SIZE, KERNEL)

    def _vmemmap(self) -> Iterator[Leaf]:
        """Page structures of every section with memory, in large pages (``vmemmap_populate_hugepages``)."""
        per_page, base = self.layout.struct_page_size, self.layout.vmemmap_start
        sections = [(start & -SECTION_BYTES, end + SECTION_BYTES - 1 & -SECTION_BYTES) for start, end in self._memory]
        for start, end in merged(sections):
            low, high = ((at >> PAGE_SHIFT) * per_page for at in (start, end))
            yield Leaf(base + low & -self.large, base + high + self.large - 1 & -self.large, self.large, KERNEL | PSE)

    def _image(self) -> Iterator[Leaf]:
        """Text and data where the kernel was linked to be (``cleanup_highmap``)."""
        base = self.layout.text_base - PHYSICAL_START
        end = PHYSICAL_START + (IMAGE_END + self.large - 1 & -self.large)
        marks = [(PHYSICAL_START + a, PHYSICAL_START + b, off) for a, b, off in self._image_parts]
        yield from self._mapped(PHYSICAL_START, end, marks, base, self._image_flags)

    def _entry_area(self) -> Iterator[Leaf]:
        area, pages, parts = CPU_ENTRY[self.layout.arch]
        yield Leaf(area, area + PAGE_SIZE, PAGE_SIZE, KERNEL & ~RW)
        for cpu in range(self._cpus):
            base = area + cpu * pages * PAGE_SIZE
            for first, last, flags in parts:
                yield Leaf(base + first * PAGE_SIZE, base + last * PAGE_SIZE, PAGE_SIZE, flags)

    def _fixed(self) -> Iterator[Leaf]:
        start, end = APIC_PAGES if self.long else APIC_PAGES_32
        yield Leaf(start, end, PAGE_SIZE, KERNEL | PWT | PCD)

    # -- changes ---------------------------------------------------------------------------------------------

    def change(self, start: int, end: int, off: int, on: int) -> None:
        """Clear and set bits of the small pages of a range that are mapped; large ones are split
        (``change_page_attr_set_clr``).
        """
        for leaf in list(self.mappings.within(start, end)):
            if leaf.size > PAGE_SIZE and not self.layout.is_vmalloc_addr(leaf.start):
                for _ in range(leaf.start & -leaf.size, leaf.end, leaf.size):
                    self._split(leaf.size)
            pages = range(leaf.start, leaf.end, PAGE_SIZE)
            self._changed.update(dict.fromkeys(pages, leaf.flags & ~off & ~PSE | on))
        self._changes += 1

    def _with_changes(self, leaves: list[Leaf]) -> Iterator[Leaf]:
        pages = sorted(self._changed)
        for leaf in leaves:
            mine = pages[bisect_left(pages, leaf.start) : bisect_left(pages, leaf.end)]
            at = leaf.start
            for page in mine:
                large = max(page & -leaf.size, at)
                if large > at:
                    yield leaf.part(at, large)
                    at = large
                if page > at:
                    yield leaf.part(at, page, small=True)
                yield leaf.part(page, page + PAGE_SIZE, small=True)._replace(flags=self._changed[page])
                at = page + PAGE_SIZE
            if mine and at < (rest := min(at + leaf.size - 1 & -leaf.size, leaf.end)):
                yield leaf.part(at, rest, small=True)
                at = rest
            if at < leaf.end:
                yield leaf.part(at, leaf.end)


def rodata_enabled(cmdline: CommandLine) -> bool:
    """Whether boot protects the kernel's code and constants (init/main.c ``set_debug_rodata``)."""
    wanted = [word for word in cmdline.all("rodata") if word in ("on", "off")]
    return wanted[-1:] != ["off"]


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges by address, those that touch made into one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _sized(start: int, end: int, size: int, larger: tuple[int, ...], flags: int, base: int) -> Iterator[Leaf]:
    """A range in pages of ``size``, with larger ones where they fit whole."""
    if start >= end:
        return
    bits = flags | (PSE if size > PAGE_SIZE else 0)
    if larger:
        first, last = start + larger[0] - 1 & -larger[0], end & -larger[0]
        if first < last:
            yield from _sized(start, first, size, (), flags, base)
            yield from _sized(first, last, larger[0], larger[1:], flags, base)
            yield from _sized(last, end, size, (), flags, base)
            return
    yield Leaf(base + start, base + end, size, bits, start)
