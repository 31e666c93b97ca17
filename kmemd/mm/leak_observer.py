"""What allocators tell the leak detector (include/linux/kmemleak.h); ``debug/kmemleak`` listens.

``mm`` does not know who listens: an allocator takes a ``LeakObserver`` by constructor, ``NullObserver`` when
nobody does.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint64]

FILL_ZERO = 0
"""What an allocation holds that was zeroed, or never written: fresh memory reads as zero."""
FILL_POISON = 0x16B
"""What an allocation holds that slub_debug=P poisoned: 6b 6b … a5."""


class LeakObserver(Protocol):
    """Hears of every allocation. ``enabled`` false: nothing needs to be told."""

    enabled: bool

    def alloc(
        self, address: int, size: int, stack: int | None = None, *, min_count: int = 1, fill: int = FILL_ZERO
    ) -> None:
        """An object was made. ``min_count`` references keep it from being a leak; 0 makes it
        grey (never reported), -1 black (never scanned either). ``stack`` is a stack depot handle, by default
        the context's; ``fill`` is what the object holds: the byte, and FILL_POISON's mark."""

    def alloc_bulk(
        self,
        addresses: Addresses,
        size: int,
        stack: int | None = None,
        *,
        min_count: int = 1,
        fill: int = FILL_ZERO,
    ) -> None:
        """Many objects of one size were made."""

    def vmalloc(self, address: int, size: int, area: int, stack: int | None = None) -> None:
        """A vmalloc area was made: two references needed, and those to its ``vm_struct`` at ``area`` count."""

    def free(self, address: int) -> None:
        """The object at ``address`` is gone; an address that is no object's start is ignored."""

    def free_bulk(self, addresses: Addresses) -> None:
        """Many objects are gone."""

    def store(self, address: int, value: int) -> bool:
        """A pointer was written to memory. Whether it lies in an object."""


class NullObserver:
    """Nobody listens: what an allocator says is dropped."""

    enabled = False

    def alloc(
        self, address: int, size: int, stack: int | None = None, *, min_count: int = 1, fill: int = FILL_ZERO
    ) -> None:
        """Nothing."""

    def alloc_bulk(
        self,
        addresses: Addresses,
        size: int,
        stack: int | None = None,
        *,
        min_count: int = 1,
        fill: int = FILL_ZERO,
    ) -> None:
        """Nothing."""

    def vmalloc(self, address: int, size: int, area: int, stack: int | None = None) -> None:
        """Nothing."""

    def free(self, address: int) -> None:
        """Nothing."""

    def free_bulk(self, addresses: Addresses) -> None:
        """Nothing."""

    def store(self, address: int, value: int) -> bool:
        """Nothing is known of any object."""
        return False
