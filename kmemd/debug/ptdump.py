"""The page tables of the kernel as debugfs shows them (mm/ptdump.c, arch/x86/mm/dump_pagetables.c).

Entries of one level with the same bits, side by side, are one line; parts of the address space begin with a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kmemd.core.pte import GLOBAL, NX, PRESENT, PSE, RW, USER
from kmemd.mm import init_mm as i
from kmemd.mm.init_mm import InitMm, Leaf
from kmemd.mm.layout import CPU_ENTRY_AREA_BASE, PKMAP_BASE_32, START_KERNEL_MAP
from kmemd.mm.units import GIB, KIB, MIB, PAGE_SIZE

LEVELS_64 = ((512 * GIB, "pgd"), (GIB, "pud"), (2 * MIB, "pmd"), (PAGE_SIZE, "pte"))
LEVELS_32 = ((4 * MIB, "pgd"), (PAGE_SIZE, "pte"))
LARGE_NAME = {2 * MIB: "pmd", 4 * MIB: "pmd", GIB: "pud", PAGE_SIZE: "pte"}
GUARD_HOLE_END = 0xFFFF_8800_0000_0000
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
            (i.MODULES_END, "End Modules"),
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


def dump(mm: InitMm, user: Iterable[Run] = ()) -> Iterator[str]:
    """The lines of a dump; ``user`` is what the lower half maps, in order."""
    pending = marks(mm)
    yield f"---[ {pending.pop(0)[1]} ]---\n"
    starts = [start for start, _ in pending]
    for run in _joined(_cut(_runs(mm, list(user)), starts), starts):
        while pending and run.start >= pending[0][0]:
            yield f"---[ {pending.pop(0)[1]} ]---\n"
        yield _line(run, 16 if mm.long else 8)


def insecure(mm: InitMm) -> tuple[int, int]:
    """How many pages can be written and executed, and the first address (``note_wx``)."""
    found = [leaf for leaf in mm.leaves() if leaf.flags & RW and not leaf.flags & NX]
    pages = sum(leaf.end - leaf.start for leaf in found) // PAGE_SIZE
    return pages, found[0].start if found else 0


def _runs(mm: InitMm, user: list[Run]) -> Iterator[Run]:
    """Everything, with the entries that are empty."""
    end = 1 << (64 if mm.long else 32)
    levels = LEVELS_64 if mm.long else LEVELS_32
    tables = [mm.regions(size) for size, _ in levels[:-1]]
    low = GUARD_HOLE_END if mm.long else mm.layout.page_offset
    if not user:
        yield Run(0, low, levels[0][0], "pgd", 0)
    yield from user
    at = low
    for leaf in mm.leaves():
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
