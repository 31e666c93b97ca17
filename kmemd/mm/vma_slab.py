"""The slab objects of mappings: ``vm_area_struct``, ``anon_vma``, ``anon_vma_chain`` (kernel/fork.c ``vm_area_alloc``,
mm/rmap.c ``anon_vma_alloc``, ``anon_vma_chain_alloc``).

They are what slabinfo shows of address spaces. What boot's own processes have stands in the slabs that boot made, so
objects are taken from ``boot_finished`` on; one of boot has the address 0. Left out: ``maple_node``, whose number
follows from the shape of a tree that the model does not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from enum import IntEnum

import numpy as np

from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.slub import Slub


class Kind(IntEnum):
    """What an object is."""

    VMA = 0
    ANON_VMA = 1
    CHAIN = 2


CACHES = ("vm_area_struct", "anon_vma", "anon_vma_chain")


class VmaObjects:
    """Gives and takes back the objects. ``kernel_data()`` marks them as held by structures that kmemleak cannot see.

    ``reserve`` comes before a change that needs objects, so that it is what fails, with nothing changed yet. Fork
    reserves for all mappings at once, and others may run before it takes the last.
    """

    def __init__(self, slub: Slub, kernel_data: Callable[[], AbstractContextManager[None]]) -> None:
        self._slub = slub
        self._kernel_data = kernel_data
        self._live = False
        self._spare: tuple[list[int], list[int], list[int]] = ([], [], [])

    def boot_finished(self) -> None:
        """Objects are taken from now on. A twin of a machine whose slabs were not captured has no caches for them."""
        self._live = all(name in self._slub.names for name in CACHES)

    def reserve(self, vmas: int = 0, anon_vmas: int = 0, chains: int = 0) -> None:
        """Have as many objects of each kind ready. ENOMEM."""
        if not self._live:
            return
        for kind, count in zip(Kind, (vmas, anon_vmas, chains), strict=True):
            missing = count - len(self._spare[kind])
            while missing > 0:
                with self._kernel_data():
                    cache = self._slub.cache(CACHES[kind])
                    got = self._slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, missing).tolist()
                self._spare[kind].extend(got)
                missing -= len(got)

    def take(self, kind: Kind) -> int:
        """The address of an object, one that was reserved if there is; 0 while the machine boots. ENOMEM."""
        if not self._live:
            return 0
        if not self._spare[kind]:
            self.reserve(*(int(other is kind) for other in Kind))
        return self._spare[kind].pop()

    def free(self, kind: Kind, addresses: Iterable[int]) -> None:
        """Give objects back. What somebody freed already is the allocator's report and nothing more."""
        objects = np.array([address for address in addresses if address], dtype=np.uint64)
        if len(objects):
            with suppress(KernelError):
                self._slub.kmem_cache_free_bulk(self._slub.cache(CACHES[kind]), objects)

    def give_back_spare(self) -> None:
        """Free what was reserved and not needed."""
        for kind in Kind:
            self.free(kind, self._spare[kind])
            self._spare[kind].clear()
