"""Pages that are to move to other nodes, as walks of page tables collect them (mm/mempolicy.c ``queue_pages_range``).

Models which pages of a mapping may move, and isolating the small pages of a table at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PG_HEAD, PageMap
from kmemd.mm.compound import distinct
from kmemd.mm.migrate import Migrate
from kmemd.mm.mm_types import VM_IO, VM_PFNMAP, Vma
from kmemd.mm.mpol import MPOL_MF_MOVE_ALL, MPOL_MF_STRICT

PFNS = npt.NDArray[np.int64]


@dataclass
class Queue:
    """What a walk looks for and what it found (struct queue_pages): isolated pages, with the page numbers where they
    are mapped in ``places``; ``vpns`` are those of the batch that is being moved.
    """

    nodes: int
    flags: int
    invert: bool = False
    discontiguous: bool = False
    pages: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    vpns: dict[int, int] = field(default_factory=dict)
    unmovable: bool = False

    def add(self, pages: list[int], places: list[int]) -> None:
        """Pages that were isolated."""
        self.pages.extend(pages)
        self.places.extend(places)

    def begin(self) -> None:
        """From now on batches are taken, in the order in which their pages were collected."""
        self.pages.reverse()
        self.places.reverse()

    def take(self, most: int) -> list[int]:
        """The next batch."""
        batch, places = self.pages[-most:], self.places[-most:]
        del self.pages[-most:], self.places[-most:]
        self.vpns = dict(zip(batch, places, strict=False))
        return batch[::-1]


def vma_migratable(vma: Vma) -> bool:
    """Whether pages of a mapping may be moved: not those of devices."""
    return not vma.flags & (VM_IO | VM_PFNMAP)


def queue_small(queue: Queue, vma: Vma, pfns: PFNS, vpns: PFNS, pages: PageMap, migrate: Migrate) -> bool:
    """Isolate the small pages of a table that only this process maps, or any (migrate_folio_add); False, and nothing
    done, where they are not all small and different. ``vpns``: where each is mapped.
    """
    huge = pages.flags[pfns] >> np.uint32(PG_HEAD) & np.uint32(1) == 1
    if huge.any() or (migrate.heads(pfns) != pfns).any() or len(distinct(pfns)) != len(pfns):
        return False
    queue.unmovable |= bool(len(pfns)) and not vma_migratable(vma)
    if not queue.flags & MPOL_MF_MOVE_ALL:
        alone = pages.mapcount[pfns] == 1
        pfns, vpns = pfns[alone], vpns[alone]
    taken = migrate.isolate_bulk(pfns)
    queue.unmovable |= bool(queue.flags & MPOL_MF_STRICT) and not bool(taken.all())
    found = pfns[taken].tolist()
    queue.add(found, vpns[taken].tolist())
    return True
