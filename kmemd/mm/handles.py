"""Named references to what commands allocated: the variables of the program that a user plays.

``p = alloc_pages order=3 n=100`` makes one ``Handle`` with a hundred pointers. A handle is to the model what
a static pointer of a kernel module is to Linux: kmemleak takes the pointers in it as roots, and dropping
the handle (``forget``) drops the pointers and not the memory. There is no Linux counterpart; nothing
in ``mm`` depends on a handle but kmemleak's roots.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kmemd.errors import KernelError
from kmemd.mm.pace import squeeze
from kmemd.steps import Steps

Pointers = NDArray[np.uint64]

PIECE = 1 << 13
SQUEEZED = 1 << 16
"""Items that are looked at for gaps before others may get in."""


class Kind(StrEnum):
    """What a handle's pointers point to, which decides the verb that frees them."""

    PAGES = "pages"
    SLAB = "slab"
    VMALLOC = "vmalloc"
    IOREMAP = "ioremap"
    BPF = "bpf"
    KMAP = "kmap"
    DMA = "dma"
    DMA_POOL = "dma_pool"
    CACHE = "cache"
    TASK = "task"
    MAPPING = "mapping"


def no_pointers() -> Pointers:
    """An empty array of pointers."""
    return np.zeros(0, dtype=np.uint64)


@dataclass
class Handle:
    """One named reference, or many of one kind.

    ``addresses`` are kernel virtual addresses of objects and areas; page blocks have ``pfns`` instead, for they are
    known by their struct page, and one of high memory has no address. An address of 0, or a PFN of -1, is an
    item that was given back while a long command still runs. ``size`` is what was asked for, in bytes, per item;
    ``order`` counts for pages.

    Invariants: a handle has ``pfns`` (PAGES), or ``addresses`` (all others), or no items: a CACHE has
    ``cache``, a TASK has ``pid``.
    """

    kind: Kind
    addresses: Pointers = field(default_factory=no_pointers)
    pfns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    order: int = 0
    size: int = 0
    cache: str = ""
    pid: int = 0

    def __len__(self) -> int:
        return len(self.pfns) if self.kind is Kind.PAGES else len(self.addresses)

    @property
    def address(self) -> int:
        """The first pointer, 0 when there is none."""
        return int(self.addresses[0]) if len(self.addresses) else 0

    @property
    def pfn(self) -> int:
        """The first page block, -1 when there is none."""
        return int(self.pfns[0]) if len(self.pfns) else -1

    def pointers(self) -> Pointers:
        """The kernel addresses this handle holds: roots for kmemleak, which knows nothing of pages."""
        if self.kind is Kind.MAPPING:
            return no_pointers()  # a user address, of the address space of ``pid``
        live: Pointers = self.addresses[self.addresses != 0]
        return live

    def pieces(self) -> Iterator[Pointers]:
        """``pointers``, ``PIECE`` items at a time."""
        addresses = self.pointers() if self.kind is Kind.MAPPING else self.addresses
        for start in range(0, len(addresses), PIECE):
            piece = addresses[start : start + PIECE]
            yield piece[piece != 0]

    def clear(self, positions: NDArray[np.int64]) -> None:
        """Forget the items at ``positions``, without moving the others. ``compact`` ends it."""
        if self.kind is Kind.PAGES:
            self.pfns[positions] = -1
        else:
            self.addresses[positions] = 0

    def compact_steps(self) -> Steps[None]:
        """``compact`` in slices."""
        if self.kind is Kind.PAGES:
            self.pfns = yield from squeeze(self.pfns, -1, SQUEEZED)
        else:
            self.addresses = yield from squeeze(self.addresses, 0, SQUEEZED)

    def compact(self, emptied: bool = False) -> None:
        """Close the gaps that ``clear`` left; ``emptied`` says that it cleared all items."""
        if emptied:
            self.pfns, self.addresses = self.pfns[:0], self.addresses[:0]
        elif self.kind is Kind.PAGES:
            self.pfns = self.pfns[self.pfns >= 0]
        else:
            self.addresses = self.addresses[self.addresses != 0]


class Handles:
    """The handles by name, in the order in which they were made."""

    def __init__(self) -> None:
        self._handles: dict[str, Handle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, name: object) -> bool:
        return name in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __getitem__(self, name: str) -> Handle:
        """The handle ``name``. ENOENT."""
        handle = self._handles.get(name)
        if handle is None:
            raise KernelError(errno.ENOENT, f"no handle {name}")
        return handle

    def get(self, name: str) -> Handle | None:
        """The handle ``name`` or None."""
        return self._handles.get(name)

    def items(self) -> list[tuple[str, Handle]]:
        """Names and handles."""
        return list(self._handles.items())

    def values(self) -> list[Handle]:
        """The handles."""
        return list(self._handles.values())

    def bind(self, name: str, handle: Handle) -> None:
        """Let ``name`` stand for ``handle``; what it stood for before is dropped, not freed."""
        self._handles[name] = handle

    def forget(self, name: str) -> Handle:
        """Drop the name. ENOENT."""
        handle = self[name]
        del self._handles[name]
        return handle

    def name_of(self, handle: Handle) -> str | None:
        """The name a handle is bound to."""
        return next((name for name, held in self._handles.items() if held is handle), None)

    def pointers(self) -> Pointers:
        """All the pointers that handles hold: what kmemleak scans as module data."""
        arrays = [handle.pointers() for handle in self._handles.values()]
        return np.concatenate(arrays) if arrays else no_pointers()

    def pieces(self) -> Iterator[Pointers]:
        """``pointers``, some at a time; a handle that is bound or forgotten meanwhile may be missed."""
        for handle in self.values():
            yield from handle.pieces()
