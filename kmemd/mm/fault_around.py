"""How much of a file's cache a read fault maps (mm/memory.c ``fault_around_bytes``)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from kmemd.mm.debugfs_handlers import DEBUGFS, SimpleAttr, show_number
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

DEFAULT_BYTES = 16 * PAGE_SIZE


class FaultAround(Tuned):
    """The setting. ``table_pages``: the pages that one page table maps, which bound it."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable(f"{DEBUGFS}/fault_around_bytes", "bytes", show_number, SimpleAttr(), on_change="_round"),
    )

    def __init__(self, table_pages: int) -> None:
        self._table_bytes = table_pages << PAGE_SHIFT
        self.bytes = DEFAULT_BYTES

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row, bounded by a page table."""
        row = super().knob(tunable)
        return replace(row, max=self._table_bytes) if row is not None else None

    def _round(self) -> None:
        """A power of two, and a page at least."""
        self.bytes = max(1 << self.bytes.bit_length() >> 1, PAGE_SIZE)

    @property
    def pages(self) -> int:
        """The size in pages; with one, faults map nothing but their own page."""
        return self.bytes >> PAGE_SHIFT
