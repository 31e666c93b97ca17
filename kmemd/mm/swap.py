"""Swap areas and their knobs (mm/swapfile.c, mm/swap_state.c, mm/swap.c ``page_cluster``).

Models: the knobs, and the areas that boot turns on. The areas themselves are mm/swapfile.py's, pages in swap
mm/swap_state.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swapfile import SwapFiles
from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.mm.sysfs_handlers import show_word, store_bool
from kmemd.tunable import Tunable, Tuned

SMALL_MEMORY_PAGES = 16 << 8
"""Below 16 MiB, swap readahead takes 2**2 pages, not 2**3."""


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


class Swap(Tuned):
    """The swap areas of a machine; ``totalram_pages()`` decides readahead at boot."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("page-cluster", attr="page_cluster", min=0),
        Tunable("sys/kernel/mm/swap/vma_ra_enabled", "vma_ra_enabled", show_word, store_bool),
    )

    def __init__(
        self,
        devices: Sequence[Device],
        files: SwapFiles,
        totalram_pages: Callable[[], int],
        *,
        long_bits: int = 64,
    ) -> None:
        """``files`` gets the areas of the devices that are active at boot."""
        self.long_bits = long_bits
        self.page_cluster = 2 if totalram_pages() < SMALL_MEMORY_PAGES else 3
        self.vma_ra_enabled = True
        self.files = files
        self.devices = {device.path: device for device in devices}
        for device in devices:
            if device.active:
                priority = device.priority if device.priority >= 0 else -1
                files.swapon(device.path, device.kind, device.size, priority, log=False)

    @property
    def areas(self) -> list[SwapArea]:
        """The areas that are on, in the order of /proc/swaps."""
        return self.files.areas

    @property
    def total_pages(self) -> int:
        """Pages of all areas that are on, as /proc/meminfo has them (``si_swapinfo``)."""
        return self.files.total_pages

    @property
    def free_pages(self) -> int:
        """Pages not in use, as /proc/meminfo has them."""
        return self.files.free_pages

    @property
    def total_swap_pages(self) -> int:
        """Pages that may be swapped to: nothing of an area that goes off."""
        return self.files.total_swap_pages

    @property
    def nr_swap_pages(self) -> int:
        """What is left of them, below zero while an area goes off that holds more than is free in others."""
        return self.files.nr_swap_pages
