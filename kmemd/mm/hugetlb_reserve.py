"""Promises of huge pages: which pages of a file or mapping have one (mm/hugetlb.c ``resv_map``, ``hugepage_subpool``).

Models: region maps with ``region_chg``, ``region_add``, ``region_del``, ``region_count``, and subpools with a maximum
and a minimum size. Left out: the cache of region descriptors, whose allocation never fails here, and cgroup charges.

A map of a shared file lists the pages that *have* a reservation or a page. A map of a private mapping has the opposite
sense: it lists the pages whose reservation was *used*, and the whole mapping was reserved when it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kmemd.mm.mm_types import Mm

NO_LIMIT = -1


class ResvMap:
    """Disjoint ranges ``[from, to)`` of huge page numbers, ascending, none touching the next (``struct resv_map``)."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int]] = []

    def count(self, start: int, end: int) -> int:
        """Pages of the map within a range (``region_count``)."""
        return sum(max(0, min(high, end) - max(low, start)) for low, high in self.regions)

    def missing(self, start: int, end: int) -> int:
        """Pages of a range that are not in the map (``region_chg``)."""
        return end - start - self.count(start, end)

    def add(self, start: int, end: int) -> int:
        """Put a range in; the number of pages that were not there (``region_add``)."""
        added = self.missing(start, end)
        if added:
            low, high, kept = start, end, []
            for region in self.regions:
                if region[1] < low or region[0] > high:
                    kept.append(region)
                else:
                    low, high = min(low, region[0]), max(high, region[1])
            self.regions = sorted([*kept, (low, high)])
        return added

    def delete(self, start: int, end: int) -> int:
        """Take a range out; the number of pages that were there (``region_del``)."""
        gone = self.count(start, end)
        if gone:
            parts = [part for low, high in self.regions for part in ((low, min(high, start)), (max(low, end), high))]
            self.regions = [(low, high) for low, high in parts if low < high]
        return gone


@dataclass(frozen=True)
class Reserve:
    """What a private mapping knows of its promises (``vm_private_data``).

    ``mm`` is the address space that made the mapping and owns the promises that ``resv`` keeps account of; copies of
    it in children have none. ``unmapped``: the owner took a page away from this copy, so that a later fault here must
    fail rather than show zeros.
    """

    mm: Mm
    resv: ResvMap | None = None
    unmapped: bool = False


class Subpool:
    """The part of a pool that one mount of hugetlbfs may use (``struct hugepage_subpool``).

    ``account(delta)`` reserves pages of the pool, or gives reservations back; it raises ENOMEM when there are too few.

    Invariants: ``used <= max_hpages``; ``reserved <= min_hpages``: pages reserved in the pool, not yet asked for.
    """

    def __init__(self, account: Callable[[int], None], max_hpages: int = NO_LIMIT, min_hpages: int = NO_LIMIT) -> None:
        self._account = account
        self.max_hpages = max_hpages
        self.min_hpages = min_hpages
        self.used = 0
        self.reserved = max(min_hpages, 0)
        self.mounted = True
        if min_hpages > 0:
            account(min_hpages)

    def get_pages(self, delta: int) -> int | None:
        """Ask for pages: how many the pool must reserve for it, None when it would exceed the maximum size."""
        if self.max_hpages != NO_LIMIT:
            if self.used + delta > self.max_hpages:
                return None
            self.used += delta
        if self.min_hpages == NO_LIMIT or not self.reserved:
            return delta
        taken = min(delta, self.reserved)
        self.reserved -= taken
        return delta - taken

    def put_pages(self, delta: int) -> int:
        """Give pages back: how many reservations the pool may drop; a minimum size keeps some."""
        dropped = delta
        if self.max_hpages != NO_LIMIT:
            self.used -= delta
        if self.min_hpages != NO_LIMIT and self.used < self.min_hpages:
            dropped = max(self.reserved + delta - self.min_hpages, 0)
            self.reserved = min(self.reserved + delta, self.min_hpages)
        self._release_if_free()
        return dropped

    def unmount(self) -> None:
        """The mount is gone: what is reserved for it goes back once no page of it is in use."""
        self.mounted = False
        self._release_if_free()

    def _release_if_free(self) -> None:
        in_use = self.used if self.max_hpages != NO_LIMIT else self.min_hpages - self.reserved
        if not self.mounted and not in_use and self.reserved > 0:
            self.reserved = 0
            self._account(-self.min_hpages)
