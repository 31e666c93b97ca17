"""Small objects that describe what the kernel itself keeps track of: they come from kmalloc, and nobody leaks them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from kmemd.core.context import Context
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import NUMA_NO_NODE


class SlabAllocator(Protocol):
    """Where they come from."""

    def kmalloc(self, size: int, gfp: int, nid: int) -> int:
        """The address of an object. ENOMEM."""

    def kfree(self, address: int) -> None:
        """Give it back."""


class Descriptors:
    """Allocates descriptors. ``kernel_data()`` marks what is made inside as held by the kernel's own structures."""

    def __init__(
        self,
        slab: SlabAllocator,
        kernel_data: Callable[[], AbstractContextManager[None]],
        context: Context,
        depot: StackDepot,
    ) -> None:
        self._slab = slab
        self._kernel_data = kernel_data
        self._context = context
        self._depot = depot

    def alloc(self, size: int, function: str, gfp: int = GFP_KERNEL) -> int:
        """The address of a descriptor that ``function`` makes. ENOMEM."""
        self._context.stack = self._depot.extend(self._context.site, (function,))
        with self._kernel_data():
            return self._slab.kmalloc(size, gfp, NUMA_NO_NODE)

    def free(self, address: int) -> None:
        """Give a descriptor back; 0 for none, of what boot made."""
        if address:
            self._slab.kfree(address)
