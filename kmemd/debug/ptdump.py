"""Page tables as debugfs shows them (mm/ptdump.c, arch/x86/mm/dump_pagetables.c).

Entries of one level with the same bits, side by side, are one line; parts of the address space begin with a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from kmemd.core.mmu import Mmu
from kmemd.core.pte import FLAGS_MASK, GLOBAL, NX, PFN_MASK, PFN_SHIFT, PRESENT, PSE, RW, USER
from kmemd.mm import init_mm as i
from kmemd.mm.init_mm import InitMm, Leaf, Mappings
from kmemd.mm.layout import CPU_ENTRY_AREA_BASE, MODULES_END, PKMAP_BASE_32, START_KERNEL_MAP
from kmemd.mm.units import GIB, KIB, MIB, PAGE_SIZE

LEVELS_64 = ((512 * GIB, "pgd"), (GIB, "pud"), (2 * MIB, "pmd"), (PAGE_SIZE, "pte"))
LEVELS_32 = ((4 * MIB, "pgd"), (PAGE_SIZE, "pte"))
LARGE_NAME = {2 * MIB: "pmd", 4 * MIB: "pmd", GIB: "pud", PAGE_SIZE: "pte"}
GUARD_HOLE_END = 0xFFFF_8800_0000_0000
USER_END_64 = 1 << 47
UNITS = "BKMGTPE"
COLUMNS = ((RW, "RW ", "ro "), (i.PWT, "PWT ", "    "), (i.PCD, "PCD ", "    "), (PSE, "PSE ", "    "))
"""What a present entry shows, set and clear; PAT, which no mapping uses, GLB and NX follow."""
NOT_PRESENT = " " * 30


class Run(NamedTuple):
    """Entries of ``size`` bytes each with the same bits, 0 for none."""

    start: int
    end: int
    size: int
    level: str
    flags: int


def marks(mm: InitMm) -> list[tuple[int, str]]:
    """Where parts of the address space begin."""
    layout = mm.layout
    if mm.long:
        return [
            (0, "User Space"),
            (GUARD_HOLE_END, "Kernel Space"),
            (layout.page_offset, "Low Kernel Mapping"),
            (layout.vmalloc_start, "vmalloc() Area"),
            (layout.vmemmap_start, "Vmemmap"),
            (CPU_ENTRY_AREA_BASE, "CPU entry Area"),
            (START_KERNEL_MAP, "High Kernel Mapping"),
            (START_KERNEL_MAP + GIB, "Modules"),
            (MODULES_END, "End Modules"),
            (i.FIXADDR_START, "Fixmap Area"),
        ]
    return [
        (0, "User Space"),
        (layout.page_offset, "Kernel Mapping"),
        (layout.vmalloc_start, "vmalloc() Area"),
        (layout.vmalloc_end, "vmalloc() End"),
        (PKMAP_BASE_32, "Persistent kmap() Area"),
        (i.CPU_ENTRY_BASE_32, "CPU entry area"),
        (i.FIXADDR_START_32, "Fixmap area"),
    ]


def dump(mm: InitMm, user: Iterable[Run] = (), kernel: Mappings | None = None) -> Iterator[str]:
    """The lines of a dump; ``user`` is what the lower half maps, in order, with its holes; ``kernel`` the upper one."""
    pending = marks(mm)
    yield f"---[ {pending.pop(0)[1]} ]---\n"
    starts = [start for start, _ in pending]
    for run in _joined(_cut(_runs(mm, user, kernel or mm.mappings), starts), starts):
        while pending and run.start >= pending[0][0]:
            yield f"---[ {pending.pop(0)[1]} ]---\n"
        yield _line(run, 16 if mm.long else 8)


def user_half(mm: InitMm, mmu: Mmu, space: int) -> Iterator[Run]:
    """What an address space maps below the kernel: its tables as they are, a table at a time.

    It ends where the address space does.
    """
    names = [name for _, name in reversed(LEVELS_64 if mm.long else LEVELS_32)]
    pgd = mmu.pgd(space)
    top = len(names) - 1

    def table(pfn: int, level: int, base: int) -> Iterator[Run]:
        size = PAGE_SIZE << mmu.bits * level
        count = min(1 << mmu.bits, (USER_END_64 if mm.long else mm.layout.page_offset) - base >> size.bit_length() - 1)
        words = mmu.words[pfn << mmu.bits : (pfn << mmu.bits) + count].copy()
        flags = words & np.uint64(FLAGS_MASK if mm.long else FLAGS_MASK & 0xFFFF_FFFF)
        below = (words & np.uint64(PRESENT | PSE)) == PRESENT if level else np.zeros(count, dtype=bool)
        cuts = np.flatnonzero((flags[1:] != flags[:-1]) | below[1:] | below[:-1]) + 1
        for first, last in pairwise([0, *cuts.tolist(), count]):
            start = base + first * size
            if below[first]:
                if mmu.pgd(space) == pgd:
                    yield from table((int(words[first]) & PFN_MASK) >> PFN_SHIFT, level - 1, start)
                continue
            shown = int(flags[first])
            name = LARGE_NAME[size] if shown & PSE else names[level]
            yield Run(start, base + last * size, size, name, shown)

    if pgd:
        yield from table(pgd, top, 0)


def _runs(mm: InitMm, user: Iterable[Run], kernel: Mappings) -> Iterator[Run]:
    """Everything, with the entries that are empty."""
    end = 1 << (64 if mm.long else 32)
    levels = LEVELS_64 if mm.long else LEVELS_32
    tables = [kernel.regions(size) for size, _ in levels[:-1]]
    low = GUARD_HOLE_END if mm.long else mm.layout.page_offset
    last = Run(0, low, levels[0][0], "pgd", 0)
    for number, run in enumerate(user):
        if number:
            yield last
        last = run
    yield last._replace(end=low)  # no entry is between: a line ends where the next one begins
    at = low
    for leaf in kernel.leaves:
        yield from _empty(at, leaf.start, levels, tables)
        yield _present(leaf)
        at = leaf.end
    yield from _empty(at, end, levels, tables)


def _present(leaf: Leaf) -> Run:
    return Run(leaf.start, leaf.end, leaf.size, LARGE_NAME[leaf.size], leaf.flags)


def _empty(
    start: int, end: int, levels: tuple[tuple[int, str], ...], tables: list[list[tuple[int, int]]]
) -> Iterator[Run]:
    """A hole: its entries are at the level of the last table that is there."""
    if start >= end:
        return
    size, name = levels[0]
    if len(levels) == 1:
        yield Run(start, end, size, name, 0)
        return
    at = start
    for low, high in tables[0]:
        if high <= at or low >= end:
            continue
        if low > at:
            yield Run(at, low, size, name, 0)
            at = low
        yield from _empty(at, min(high, end), levels[1:], tables[1:])
        at = min(high, end)
    if at < end:
        yield Run(at, end, size, name, 0)


def _cut(runs: Iterable[Run], starts: list[int]) -> Iterator[Run]:
    """A mark ends a run at the next entry."""
    for run in runs:
        at = run.start
        for start in starts:
            place = start + run.size - 1 & -run.size
            if at < place < run.end and run.start < start:
                yield run._replace(start=at, end=place)
                at = place
        yield run._replace(start=at)


def _joined(runs: Iterable[Run], starts: list[int]) -> Iterator[Run]:
    """Runs side by side that are alike, unless a mark is between them."""
    last: Run | None = None
    for run in runs:
        alike = last is not None and (last.end, last.level, last.flags) == (run.start, run.level, run.flags)
        if last is not None and alike and not any(last.start < start <= run.start for start in starts):
            last = last._replace(end=run.end)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _line(run: Run, width: int) -> str:
    delta, unit = run.end - run.start, 0
    while not delta & KIB - 1 and unit < len(UNITS) - 1:
        delta, unit = delta >> 10, unit + 1
    end = run.end & (1 << 4 * width) - 1
    return f"0x{run.start:0{width}x}-0x{end:0{width}x}   {delta:9d}{UNITS[unit]} {_bits(run)}{run.level}\n"


def _bits(run: Run) -> str:
    flags = run.flags
    if not flags & PRESENT:
        return NOT_PRESENT
    text = "USR " if flags & USER else "    "
    for bit, on, off in COLUMNS:
        shown = flags & bit and (bit != PSE or run.size > PAGE_SIZE)
        text += on if shown else off
    return text + "    " + ("GLB " if flags & GLOBAL else "    ") + ("NX " if flags & NX else "x  ")
