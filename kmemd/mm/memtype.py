"""Memory types of device memory: which ranges are mapped how, so that no two mappings disagree (arch/x86/mm/pat/).

A mapping's range is reserved with the type that its caller asked for; where one stands already, the new one gets the
type of the old one, if it can live with it. ``/sys/kernel/debug/x86/pat_memtype_list`` shows the ranges. A request for
write-back memory gets what the MTRRs say: SeaBIOS makes the last GiB below 4 GiB and the video memory uncached.
Without PAT, as on the i386 machine, nothing is tracked. Left out: types of single RAM pages, other MTRRs.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.gfp import GFP_KERNEL, F
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.units import GIB

WB, WC, UC_MINUS, UC, WT, WP = range(6)
NAMES = ("write-back", "write-combining", "uncached-minus", "uncached", "write-through", "write-protected")
ISA_START, ISA_END = 0xA0000, 0x100000
VIDEO_END = 0xC0000
DESCRIPTOR_SIZE = 56
"""sizeof(struct memtype)."""
MTRR_UNCACHED = (3 * GIB, 4 * GIB)
REFUSED = {(UC_MINUS, WB), (WC, WB), (WT, WB), (WT, WC)}
"""What a caller who asked for the first cannot use the second instead of (``is_new_memtype_allowed``)."""


@dataclass(eq=False)
class Memtype:
    """One reserved range, ``[start, end)`` in bytes."""

    start: int
    end: int
    type: int
    descriptor: int = 0


class Memtypes:
    """The reserved ranges, sorted by start.

    Invariants: ranges that overlap have the same type.
    """

    def __init__(
        self,
        context: Context,
        printk: Printk,
        *,
        enabled: bool,
        descriptors: Descriptors,
        mapped: Callable[[], Iterable[tuple[int, int]]] = tuple,
    ) -> None:
        """``mapped()``: the ranges that address spaces map; their types follow from the MTRRs and the others."""
        self._context = context
        self._printk = printk
        self.enabled = enabled
        self._descriptors = descriptors
        self._mapped = mapped
        self.ranges: list[Memtype] = []

    def tracks(self, start: int, end: int) -> bool:
        """Whether a range is tracked: the ISA region is always mapped write-back."""
        return self.enabled and not (start >= ISA_START and end <= ISA_END)

    def allowed(self, start: int, end: int, wanted: int, got: int) -> bool:
        """Whether a caller can use what it got instead of what it wanted."""
        return (start >= ISA_START and end <= ISA_END) or (wanted, got) not in REFUSED

    def reserve(self, start: int, end: int, wanted: int, *, boot: bool = False) -> int:
        """Reserve a range; the type that it has now (``memtype_reserve``). EBUSY where types meet that differ.

        What ``boot`` reserved has its descriptor among boot's objects.
        """
        if not self.tracks(start, end):
            return wanted if not self.enabled else WB
        track = kind = _mtrr(start, end) if wanted == WB else wanted
        for index, held in enumerate(self._overlapping(start, end)):
            if index == 0:
                kind = held.type
            elif held.type != kind:
                self._conflict(start, end, (kind, held.type), f"track {NAMES[track]}, req {NAMES[wanted]}")
        descriptor = 0 if boot else self._descriptors.alloc(DESCRIPTOR_SIZE, "memtype_reserve", GFP_KERNEL | F.ZERO)
        insort(self.ranges, Memtype(start, end, kind, descriptor), key=lambda held: held.start)
        return kind

    def _conflict(self, start: int, end: int, types: tuple[int, int], asked: str) -> NoReturn:
        at = self._context
        between = f"{NAMES[types[0]]}<->{NAMES[types[1]]}"
        text = f"x86/PAT: {at.comm}:{at.pid} conflicting memory types {start:x}-{end:x} {between}"
        self._printk.log(KERN_INFO, text)
        text = f"x86/PAT: memtype_reserve failed [mem {start:#010x}-{end - 1:#010x}], {asked}"
        self._printk.log(KERN_INFO, text)
        raise KernelError(errno.EBUSY, f"{start:#x}-{end - 1:#x} is mapped with several memory types")

    def _overlapping(self, start: int, end: int) -> list[Memtype]:
        return [held for held in self.listed() if held.start < end and start < held.end]

    def listed(self) -> list[Memtype]:
        """All ranges, those that address spaces map among them, sorted by start."""
        found = list(self.ranges)
        for start, end in self._mapped():
            if self.tracks(start, end):
                kinds = [held.type for held in self.ranges if held.start < end and start < held.end]
                found.append(Memtype(start, end, kinds[0] if kinds else _mtrr(start, end)))
        return sorted(found, key=lambda held: held.start)

    def lookup(self, phys: int) -> int:
        """The type of the page at a physical address: uncached-minus where nothing is reserved (``lookup_memtype``)."""
        if ISA_START <= phys < ISA_END:
            return WB
        held = self._overlapping(phys, phys + 1)
        return held[0].type if held else UC_MINUS

    def free(self, start: int, end: int) -> None:
        """Give a range back: the one of just these bytes, else the end of one (``memtype_free``). EINVAL: none."""
        if not self.tracks(start, end):
            return
        exact = next((held for held in self.ranges if (held.start, held.end) == (start, end)), None)
        if exact is not None:
            self.ranges.remove(exact)
            self._descriptors.free(exact.descriptor)
            return
        longer = next((held for held in self.ranges if held.start < start and held.end == end), None)
        if longer is not None:
            longer.end = start
            return
        text = f"freeing invalid memtype [mem {start:#010x}-{end - 1:#010x}]"
        self._printk.log(KERN_INFO, f"x86/PAT: {self._context.comm}:{self._context.pid} {text}")
        raise KernelError(errno.EINVAL, f"no memory type is reserved for {start:#x}-{end - 1:#x}")

    def check(self) -> None:
        """Sorted, and overlapping ranges have one type."""
        for index, held in enumerate(self.ranges):
            assert index == 0 or self.ranges[index - 1].start <= held.start
            assert all(other.type == held.type for other in self._overlapping(held.start, held.end))


def _mtrr(start: int, end: int) -> int:
    """What a request for write-back memory gets (``pat_x_mtrr_type``)."""
    video = start < VIDEO_END and end > ISA_START
    return UC_MINUS if video or (start < MTRR_UNCACHED[1] and end > MTRR_UNCACHED[0]) else WB
