"""What faults and unmapping hand to other subsystems: huge pages, swap, NUMA balancing, the page cache."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.mm.mm_types import Mm, Vma

Rows = npt.NDArray[np.int64]


class HugePages(Protocol):
    """Transparent huge pages (mm/huge_memory.c). ``generation`` changes when other mappings become eligible."""

    @property
    def generation(self) -> int: ...
    def eligible(self, mm: Mm, vma: Vma) -> bool: ...
    def fault(self, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> bool: ...
    def wp_fault(self, task: Any, mm: Mm, vma: Vma, vpn: int) -> bool: ...
    def split_range(self, mm: Mm, start_vpn: int, end_vpn: int) -> None: ...
    def zap(self, mm: Mm, vma: Vma, vpn: int, slot: int) -> None: ...
    def copy(self, child: Mm, new: Vma, parent: Mm, vma: Vma, vpn: int, slot: int) -> None: ...
    def unmapped_parts(self, heads: Rows) -> None: ...


class HugetlbPages(Protocol):
    """Pages of a pool (mm/hugetlb.c)."""

    def fault(self, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> None: ...
    def unmap(self, mm: Mm, vma: Vma, start_vpn: int, end_vpn: int) -> None: ...
    def copy(self, child: Mm, parent: Mm, new: Vma, vma: Vma) -> None: ...


class SwapSpace(Protocol):
    """Swap entries (mm/swapfile.c, mm/swap_state.c)."""

    def do_swap_page(self, memory: Any, task: Any, mm: Mm, vma: Vma, vpn: int, entry: int, write: bool) -> None: ...
    def free_entries(self, entries: npt.NDArray[np.uint64]) -> None: ...
    def free_cached(self, pfns: Rows) -> None: ...
    def free_swap(self, pfns: Rows) -> npt.NDArray[np.bool_]: ...
    def duplicate(self, entries: npt.NDArray[np.uint64]) -> None: ...


class Balancing(Protocol):
    """NUMA hint faults (kernel/sched/fair.c)."""

    def numa_fault(self, task: Any, mm: Mm, vma: Vma, vpn: int) -> None: ...
    def ran(self, task: Any, ns: int) -> None: ...


class FileCache(Protocol):
    """The page cache."""

    def dirty_pages(self, pfns: Rows) -> None: ...
    def pin(self, pfns: list[int]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Parts:
    """What faults are handed to."""

    huge: HugePages
    hugetlb: HugetlbPages
    swap: SwapSpace
    numa: Balancing
    files: FileCache


class Task(Protocol):
    """The process that accesses memory."""

    killed: int
    utime_ns: int
    stime_ns: int

    @property
    def pid(self) -> int: ...
    @property
    def mm(self) -> Mm | None: ...


class Stacks(Protocol):
    """Mappings that grow (mm/mmap.c ``expand_stack``)."""

    def expand_stack(self, task: Any, address: int) -> Vma: ...
