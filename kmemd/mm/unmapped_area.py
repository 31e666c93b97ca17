"""Where a new mapping goes (mm/mmap.c ``vm_unmapped_area``, arch/x86/kernel/sys_x86_64.c, arch/x86/mm/mmap.c).

Models the search downwards from ``mmap_base`` with its fallback upwards, the upward search of the legacy layout and of
MAP_32BIT, hints, alignment, and the guard gap below stacks. Left out: 32-bit programs on 64-bit kernels, the
address bits that AMD's family 15h keeps alike, personalities.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from kmemd.core.context import Context
from kmemd.core.trace import TraceLog
from kmemd.errors import KernelError
from kmemd.mm.layout import PAGE_OFFSET_32, X86_64
from kmemd.mm.mm_types import VM_GROWSDOWN, Mm, Vma
from kmemd.mm.trace_points import unmapped_area
from kmemd.mm.units import MIB, PAGE_MASK, PAGE_SIZE

MAP_32BIT = 0x40
STACK_GUARD_GAP = 256 * PAGE_SIZE
LOW_2G = (0x40000000, 0x80000000)
"""Where MAP_32BIT searches."""
STEPS_KEPT = 64
"""As many mappings may be looked at twice before what is known to be full is written down anew."""

_START = attrgetter("start")


@dataclass(frozen=True)
class UserLayout:
    """The bounds of user addresses: ``task_size`` is where they end; without a hint above it, ``window``."""

    arch: str
    task_size: int
    window: int

    @classmethod
    def of(cls, arch: str, *, la57: bool = False) -> UserLayout:
        """The layout of an architecture; ``la57`` for five levels of tables."""
        if arch != X86_64:
            return cls(arch, PAGE_OFFSET_32, PAGE_OFFSET_32)
        window = (1 << 47) - PAGE_SIZE
        return cls(arch, (1 << 56) - PAGE_SIZE if la57 else window, window)

    @property
    def addresses(self) -> int:
        """How many there are, the kernel's too: where a sum of an address and a length wraps around."""
        return 1 << (64 if self.arch == X86_64 else 32)

    @property
    def max_file_size(self) -> int:
        """The largest offset in a file (MAX_LFS_FILESIZE)."""
        return (1 << 63) - 1 if self.arch == X86_64 else ((1 << 32) - 1) * PAGE_SIZE

    @property
    def unmapped_base(self) -> int:
        """Where the legacy layout begins (TASK_UNMAPPED_BASE): a third of the space."""
        return page_align(self.window // 3)

    def mmap_base(self, stack_limit: int, random: int = 0, random_stack: int = 0) -> int:
        """The top of mappings: below the stack and what it may grow to. ``random`` and ``random_stack`` are bytes."""
        gap = stack_limit + random_stack + STACK_GUARD_GAP
        gap = min(max(gap, 128 * MIB), self.window // 6 * 5)
        return page_align(self.window - gap - random)


def page_align(value: int) -> int:
    """The next page boundary."""
    return value + PAGE_SIZE - 1 & PAGE_MASK


def start_gap(vma: Vma) -> int:
    """Where nothing else may end: a stack keeps pages free below it (``vm_start_gap``)."""
    return max(vma.start - STACK_GUARD_GAP, 0) if vma.flags & VM_GROWSDOWN else vma.start


class UnmappedArea:
    """Finds room. ``layout`` is the machine's."""

    def __init__(self, layout: UserLayout, trace: TraceLog | None = None) -> None:
        self.layout = layout
        self._trace = trace if trace is not None else Context().trace

    def find(self, mm: Mm, hint: int, length: int, flags: int, align: int = 0, offset: int = 0) -> int:
        """An address for ``length`` bytes (``arch_get_unmapped_area_topdown``); ``hint`` is page aligned. ENOMEM.

        ``align`` is a power of two: the result equals ``offset`` modulo it.
        """
        layout = self.layout
        if length > layout.task_size:
            raise KernelError(errno.ENOMEM, f"{length} bytes are more than there are addresses")
        low_2g = flags & MAP_32BIT and layout.arch == X86_64
        if not mm.legacy and not low_2g:
            if hint and self._hint_is_valid(hint, length) and self._is_free(mm, hint, length):
                return hint
            high = mm.mmap_base
            if hint > layout.window:
                high += layout.task_size - layout.window
            found = self._topdown(mm, length, PAGE_SIZE, high, align, offset)
            unmapped_area(self._trace, found, mm, True, length, PAGE_SIZE, high, align, offset)
            if found:
                return found
        return self._upwards(mm, hint, length, low_2g != 0, align, offset)

    def _upwards(self, mm: Mm, hint: int, length: int, low_2g: bool, align: int, offset: int) -> int:
        """The legacy search, and what remains when there is no room below the base. ENOMEM."""
        layout = self.layout
        end = layout.task_size if hint > layout.window else layout.window
        begin, end = LOW_2G if low_2g else (mm.legacy_base or layout.unmapped_base, end)
        if length <= end:
            if hint and end - length >= hint and self._is_free(mm, hint, length):
                return hint
            found = self._bottomup(mm, length, begin, end, align, offset)
            if found:
                return found
        raise KernelError(errno.ENOMEM, f"no room for {length} bytes of addresses")

    def _hint_is_valid(self, hint: int, length: int) -> bool:
        """``mmap_address_hint_valid``: within the space, and not across the end of the usual window."""
        window = self.layout.window
        inside = hint <= self.layout.task_size - length
        return inside and (hint > window) == (hint + length > window)

    @staticmethod
    def _is_free(mm: Mm, start: int, length: int) -> bool:
        following = mm.find_vma(start)
        return following is None or start + length <= start_gap(following)

    def _topdown(self, mm: Mm, length: int, low: int, high: int, align: int, offset: int) -> int:
        """The highest room below ``high``, 0 when there is none. What is full is remembered in the mm."""
        length += max(align - PAGE_SIZE, 0)
        known = high == mm.mmap_base and mm.full_above and length >= mm.full_length
        at_known = mm.find(mm.full_above) if known and mm.full_above < high else None
        top = at_known.start if at_known is not None else high
        for steps, (begin, end) in enumerate(_gaps_down(mm, top)):
            begin = max(begin, low)
            if end - begin >= length:
                if high == mm.mmap_base and (at_known is None or steps > STEPS_KEPT or length == mm.full_length):
                    mm.full_above, mm.full_length = end - length, length
                found = end - length + max(align - PAGE_SIZE, 0)
                return found - (found - offset) % align if align else found
            if end <= low + length:
                break
        return 0

    @staticmethod
    def _bottomup(mm: Mm, length: int, low: int, high: int, align: int, offset: int) -> int:
        """The lowest room from ``low`` on, 0 when there is none."""
        at = mm.position(low)
        begin = low
        while begin < high:
            following = mm.vmas[at] if at < len(mm.vmas) else None
            end = high if following is None else min(start_gap(following), high)
            if end - begin >= length + max(align - PAGE_SIZE, 0):
                return begin + (offset - begin) % align if align else begin
            if following is None:
                break
            begin = max(following.end, begin)
            at += 1
        return 0


def _gaps_down(mm: Mm, high: int) -> Iterator[tuple[int, int]]:
    """The room between mappings below ``high``, from the top; the gap below a stack is not room."""
    at = bisect_left(mm.vmas, high, key=_START)
    above = mm.vmas[at] if at < len(mm.vmas) else None
    end = high if above is None else min(high, start_gap(above))
    for index in range(at - 1, -1, -1):
        vma = mm.vmas[index]
        yield vma.end, end
        end = min(start_gap(vma), end)
    yield 0, end
