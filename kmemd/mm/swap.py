"""Swap areas and their knobs (mm/swapfile.c, mm/swap_state.c, mm/swap.c ``page_cluster``).

Models: the areas that are on, their size and use. Left out: swapping; an area that boot turns on is unused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.mm.sysfs_handlers import show_word, store_bool
from kmemd.mm.units import PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

SMALL_MEMORY_PAGES = 16 << 8
"""Below 16 MiB, swap readahead takes 2**2 pages, not 2**3."""
HEADER_PAGES = 1


class Device(Protocol):
    """A swap device as a machine describes it; ``size`` in bytes."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def active(self) -> bool: ...


@dataclass
class SwapArea:
    """An area that is on. ``pages`` counts usable pages; the first of the device is its header."""

    path: str
    kind: str
    pages: int
    priority: int
    inuse_pages: int = 0


class Swap(Tuned):
    """The swap areas of a machine; ``totalram_pages()`` decides readahead at boot."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("page-cluster", attr="page_cluster", min=0),
        Tunable("sys/kernel/mm/swap/vma_ra_enabled", "vma_ra_enabled", show_word, store_bool),
    )

    def __init__(self, devices: Sequence[Device], totalram_pages: Callable[[], int], *, long_bits: int = 64) -> None:
        self.long_bits = long_bits
        self.page_cluster = 2 if totalram_pages() < SMALL_MEMORY_PAGES else 3
        self.vma_ra_enabled = True
        self.areas = [
            SwapArea(device.path, device.kind, device.size // PAGE_SIZE - HEADER_PAGES, device.priority)
            for device in devices
            if device.active
        ]

    @property
    def total_pages(self) -> int:
        """Pages of all areas that are on."""
        return sum(area.pages for area in self.areas)

    @property
    def free_pages(self) -> int:
        """Pages not in use."""
        return sum(area.pages - area.inuse_pages for area in self.areas)
