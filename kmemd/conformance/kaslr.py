"""Randomised address spaces: where captured kernels and programs lay, against where the model may put them.

A folder ``bootN`` is one boot with KASLR: ``syms`` are the section marks, ``vm`` the first areas of vmalloc, ``tr``
trace lines with addresses of page structures and of slab objects, ``mapsN`` and ``vaR.*`` the mappings of a program,
the latter with randomize_va_space at R and with the program's own: 1 MiB, of which it protects some pages and unmaps
one. Its builds differ by a page: what its file has is compared by permissions, the rest by size. Each base must lie
in the range, and at the alignment, that the model draws it from; the model's own, over many seeds, must stay in there
and differ; sections and, where nothing is random, all mappings are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

from kmemd.conformance.case import Case
from kmemd.mm.layout import (
    CPU_ENTRY_AREA_BASE,
    KERNEL_IMAGE_SIZE_KASLR,
    PAGE_OFFSET_BASE,
    PHYSICAL_ALIGN,
    PHYSICAL_START,
    PUD_SIZE,
    START_KERNEL_MAP,
    VMALLOC_SIZE,
    X86_64,
    Layout,
)
from kmemd.mm.units import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, TIB
from kmemd.system import System

MACHINE_BYTES = 2 * GIB
STRUCT_PAGE = 64
SEEDS = 64
STACK_TOP = 0x7FFF_FFFF_F000
STACK_ROOM, MMAP_BITS, HEAP_ROOM = 16 * GIB, 28, GIB
"""How far the stack's end, the base of mappings (in pages) and the heap may be moved (STACK_RND_MASK, mmap_rnd_bits,
``arch_randomize_brk``)."""
GAP_LEAST = 128 * MIB
PROGRAM = "uo2"
_MAP = re.compile(r"([0-9a-f]{8,16})-([0-9a-f]{8,16}) (\S{4}) (\S+) (\S+) (\d+) *(.*)")


@dataclass(frozen=True)
class Bases:
    """Where a kernel lies."""

    text: int
    page_offset: int
    vmalloc: int
    vmemmap: int

    @classmethod
    def of(cls, layout: Layout) -> Bases:
        """The model's."""
        return cls(layout.text_base, layout.page_offset, layout.vmalloc_start, layout.vmemmap_start)


def run(folder: Path) -> Iterator[Case]:
    """The cases of a folder of boots."""
    for boot in sorted(path for path in folder.iterdir() if (path / "syms").is_file()):
        yield from _kernel(boot)
        for file in sorted(boot.glob("va[012].*")):
            yield from _program(file, int(file.name[2]))
        for file in sorted(boot.glob("maps*")):
            yield from _program(file, 2)
    yield from _spread()


# -- the kernel --------------------------------------------------------------------------------------------


def _kernel(boot: Path) -> Iterator[Case]:
    sections = dict(_symbols((boot / "syms").read_text()))
    found = _captured(boot, sections["_text"])
    for name, passed, detail in ranges(found):
        yield Case(f"{boot.name} {name}", passed, detail)
    system = System.boot(machine="default", seed=int(boot.name.lstrip("bot") or 0))
    shown = dict(_symbols(system.read("/proc/kallsyms").decode()))
    for name, address in sections.items():
        want, have = address - sections["_text"], shown.get(name, 0) - shown["_text"]
        yield Case(f"{boot.name} {name}", want == have, f"captured _text+{want:#x}, model _text+{have:#x}")
    order = [name for name, _ in sorted(sections.items(), key=lambda item: item[1])]
    ours = [name for name, _ in sorted(((name, shown[name]) for name in order), key=lambda item: item[1])]
    yield Case(f"{boot.name} order of sections", order == ours, f"{order} but {ours}")


def _symbols(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        address, _, name = line.split()[:3]
        yield name, int(address, 16)


def _captured(boot: Path, text: int) -> Bases:
    """The bases of a boot: addresses of page structures and of objects lead to them."""
    trace = (boot / "tr").read_text()
    page = re.search(r"page=([0-9a-f]{16}) pfn=0x([0-9a-f]+)", trace)
    pointer = re.search(r"ptr=([0-9a-f]{16})", trace)
    area = re.search(r"0x([0-9a-f]{16})-", (boot / "vm").read_text())
    if page is None or pointer is None or area is None:
        raise ValueError(f"{boot.name}: no page, no pointer or no area")
    vmemmap = int(page[1], 16) - int(page[2], 16) * STRUCT_PAGE
    return Bases(text, int(pointer[1], 16) & -PUD_SIZE, int(area[1], 16), vmemmap)


def ranges(bases: Bases) -> Iterator[tuple[str, bool, str]]:
    """Whether each base is where Linux may put it, with what it is (``choose_random_location``,
    ``kernel_randomize_memory``).
    """
    first, last = START_KERNEL_MAP + PHYSICAL_START, START_KERNEL_MAP + KERNEL_IMAGE_SIZE_KASLR
    inside = first <= bases.text < last and bases.text % PHYSICAL_ALIGN == 0
    yield "text", inside, f"{bases.text:#x}"
    regions = (("direct map", bases.page_offset, TIB), ("vmalloc", bases.vmalloc, VMALLOC_SIZE))
    below = PAGE_OFFSET_BASE
    for name, base, size in (*regions, ("vmemmap", bases.vmemmap, TIB)):
        inside = below <= base <= CPU_ENTRY_AREA_BASE - size and base % PUD_SIZE == 0
        yield name, inside, f"{base:#x}, which is below {below:#x}, beyond the end, or not aligned"
        below = base + size


def _spread() -> Iterator[Case]:
    """The model's bases over many seeds: all in range, and hardly two alike."""
    found = [Bases.of(Layout(X86_64, MACHINE_BYTES >> PAGE_SHIFT, Random(seed))) for seed in range(SEEDS)]
    wrong = [detail for bases in found for _, passed, detail in ranges(bases) if not passed]
    yield Case("model's bases", not wrong, "; ".join(wrong[:3]))
    for name in ("text", "page_offset", "vmalloc", "vmemmap"):
        values = {getattr(bases, name) for bases in found}
        yield Case(f"spread of {name}", len(values) > SEEDS // 2, f"{len(values)} of {SEEDS} seeds differ")
    plain = Bases.of(Layout(X86_64, MACHINE_BYTES >> PAGE_SHIFT))
    yield Case("nokaslr", plain.page_offset == PAGE_OFFSET_BASE and plain.text == START_KERNEL_MAP + PHYSICAL_START)


# -- programs ----------------------------------------------------------------------------------------------


def _program(file: Path, randomize: int) -> Iterator[Case]:
    captured = _mappings(file.read_text())
    name = f"{file.parent.name}/{file.name}"
    for seed in range(2):
        model = _mappings(_replay(randomize, seed))
        forms = [_form(captured), _form(model)]
        if file.name.startswith("maps"):  # such a capture ends behind the heap
            forms[1] = forms[1][: len(forms[0])]
        yield Case(f"{name} forms, seed {seed}", forms[0] == forms[1], f"{forms[0]} but {forms[1]}")
        for who, found in (("captured", captured), ("model", model)):
            wrong = list(_misplaced(found, randomize))
            yield Case(f"{name} {who} {seed}", not wrong, "; ".join(wrong))
        if randomize == 0:
            want, have = _addresses(captured), _addresses(model)
            yield Case(f"{name} addresses", want == have, f"{want} but {have}")


@cache
def _replay(randomize: int, seed: int) -> str:
    """What the program did, and its maps."""
    system = System.boot(machine="default", seed=seed)
    system.write("/proc/sys/kernel/randomize_va_space", f"{randomize}\n")
    pid = _word(system.command(f"spawn uo image={PROGRAM}"), "pid")
    start = int(_word(system.command(f"mmap {pid} 1M"), "addr"), 0)
    for page, length, protection in ((1, 1, "r"), (4, 2, "rx")):
        system.command(f"mprotect {pid} {start + page * PAGE_SIZE:#x} {length * PAGE_SIZE} {protection}")
    system.command(f"munmap {pid} {start + 16 * PAGE_SIZE:#x} {PAGE_SIZE}")
    return system.read(f"/proc/{pid}/maps").decode()


def _word(reply: str, key: str) -> str:
    return next(word.partition("=")[2] for word in reply.split() if word.startswith(f"{key}="))


def _mappings(text: str) -> list[tuple[int, int, str, str]]:
    found = (_MAP.fullmatch(line) for line in text.splitlines())
    return [(int(m[1], 16), int(m[2], 16), f"{m[3]} {m[4]} {m[5]}", m[7]) for m in found if m]


def _form(mappings: list[tuple[int, int, str, str]]) -> list[tuple[int, str, str]]:
    """Sizes, permissions and names, in order; of the program's file the permissions."""
    return [
        (0, kind[:4], "file") if name.startswith("/") else (end - start, kind, name)
        for start, end, kind, name in mappings
    ]


def _addresses(mappings: list[tuple[int, int, str, str]]) -> list[str]:
    """Where mappings are, those of program and heap from where the file ends."""
    end = max(end for _, end, _, name in mappings if name.startswith("/"))
    return [
        f"{start - end if name == '[heap]' else start:x} {name}"
        for start, _, _, name in mappings
        if not name.startswith("/")
    ]


def _misplaced(mappings: list[tuple[int, int, str, str]], randomize: int) -> Iterator[str]:
    """Mappings that are where chance cannot have put them (``randomize_stack_top``, ``mmap_base``)."""
    stack = next((end for _, end, _, name in mappings if name == "[stack]"), STACK_TOP)
    room = STACK_ROOM if randomize else 0
    if not STACK_TOP - room <= stack <= STACK_TOP:
        yield f"[stack] ends at {stack:#x}"
    bss = next((one[1] for one, above in pairwise(mappings) if not one[3] and above[3] == "[heap]"), 0)
    heap = next((start for start, _, _, name in mappings if name == "[heap]"), 0)
    if randomize == 2 and not bss <= heap < bss + HEAP_ROOM:
        yield f"[heap] begins at {heap:#x}, and bss ends at {bss:#x}"
    anonymous = [end for start, end, _, name in mappings if not name and start > STACK_TOP >> 1]
    span = (1 << MMAP_BITS) * PAGE_SIZE if randomize else 0
    top = STACK_TOP + PAGE_SIZE - GAP_LEAST - room
    if randomize and anonymous and not top - span - STACK_ROOM <= anonymous[-1] <= STACK_TOP:
        yield f"mappings end at {anonymous[-1]:#x}"
