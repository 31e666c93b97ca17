"""Writing dirty pages to a disk, and what becomes of them there (fs/mpage.c, mm/filemap.c ``folio_end_writeback``).

Models: bios of neighbouring pages, PG_writeback until the disk is done with the request, errors: the page is clean
then, its content is not on the disk, and the file's error sequence says so. Left out: direct I/O, stable pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kmemd.core import stats
from kmemd.core.pages import PG_CONTENT, PG_DIRTY, PG_ERROR, PG_WRITEBACK, PageMap
from kmemd.mm import trace_points, trace_writeback
from kmemd.mm.blk_mq import BIO_MAX_VECS, REQ_SYNC, SECTORS_PER_PAGE, Bio
from kmemd.mm.contents import Contents
from kmemd.mm.errseq import errseq_set
from kmemd.mm.filemap import File, Indices, PageCache, PFNs, flag
from kmemd.mm.io_clock import IoClock
from kmemd.mm.trace_writeback import LONG_MAX, Control
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps, finish

WINDOW = 1 << 15
"""Pages of a file that are looked at together."""
EFFORT, WRITTEN = 64, 4
"""So many parts of a file are looked at before others may run; one of which something is written counts so often."""
_DIRTY, _WRITEBACK, _ERROR = flag(PG_DIRTY), flag(PG_WRITEBACK), flag(PG_ERROR)


@dataclass(eq=False, slots=True)
class UnderWay:
    """Pages of one bio, with their content where it is known."""

    first: int
    last: int
    pfns: PFNs
    data: dict[int, bytes]


class FileWriter:
    """Sends pages to disks. ``clean(file, pfns)`` makes their entries read-only and clean (page_mkclean);
    ``arrived(file, pfns)`` hears of pages that are not under write-back any more; ``lost(file, indices)`` of those
    that a disk could not take."""

    def __init__(
        self,
        cache: PageCache,
        pages: PageMap,
        vmstat: VmStat,
        contents: Contents,
        io: IoClock,
        clean: Callable[[File, PFNs], None],
        arrived: Callable[[File, PFNs], None],
        lost: Callable[[File, range], None],
    ) -> None:
        self._cache, self._pages, self._vmstat, self._contents, self._io = cache, pages, vmstat, contents, io
        self._clean, self._arrived, self._lost = clean, arrived, lost

    def write_range(
        self,
        file: File,
        start: int,
        end: int,
        *,
        limit: int = LONG_MAX,
        flags: int = REQ_SYNC,
        control: Control | None = None,
    ) -> int:
        """Send up to ``limit`` dirty pages of ``[start, end)`` to the disk. How many.

        ``control`` is what a flusher goes by; without it the range itself was asked for. With REQ_SYNC pages that are
        under way are waited for first, and then written again; without it they are left.
        """
        return finish(self.write_steps(file, start, end, limit=limit, flags=flags, control=control))

    def write_steps(
        self, file: File, start: int, end: int, *, limit: int, flags: int, control: Control | None = None
    ) -> Steps[int]:
        """``write_range`` in slices."""
        done, step = 0, WINDOW if flags & REQ_SYNC or limit > WINDOW else max(limit, BIO_MAX_VECS)
        control = control or Control(start, end)
        end, effort = min(end, file.slots.end), 0
        while start < end and file.nr_dirty and done < limit:
            wrote = self._write_window(file, start, min(start + step, end), limit - done, flags, control)
            done += wrote
            start += step
            effort += WRITTEN if wrote else 1
            if effort >= EFFORT:
                effort = 0
                yield
        return done

    def _write_window(self, file: File, start: int, end: int, limit: int, flags: int, control: Control) -> int:
        """Send the dirty pages of a part of a file."""
        indices, pfns = self._cache.find_get_pages(file, start, end)
        state = self._pages.flags[pfns]
        dirty = state & _DIRTY != 0
        busy = dirty & (state & _WRITEBACK != 0)
        if flags & REQ_SYNC and busy.any():
            self.wait(file, int(indices[busy][0]), int(indices[busy][-1]) + 1)
        elif busy.any():
            dirty &= ~busy
        indices, pfns = indices[dirty][:limit], pfns[dirty][:limit]
        if not len(pfns):
            return 0
        trace_writeback.pages_to_write(self._vmstat.trace, file, control, len(pfns), limit, bool(flags & REQ_SYNC))
        mapped = self._pages.mapcount[pfns] > 0
        if mapped.any():
            self._clean(file, pfns[mapped])
        self._cache.clear_dirty(file, pfns, written=True)
        self._pages.flags[pfns] &= ~_ERROR
        for first, last, sector in runs(file, indices):
            self._submit(file, indices[first:last], pfns[first:last], sector, flags)
        return len(pfns)

    def _submit(self, file: File, indices: Indices, pfns: PFNs, sector: int, flags: int) -> None:
        """One bio."""
        known = self._pages.flags[pfns] & flag(PG_CONTENT) != 0
        data = {
            index: self._contents.read(pfn)
            for index, pfn in zip(indices[known].tolist(), pfns[known].tolist(), strict=True)
        }
        part = UnderWay(int(indices[0]), int(indices[-1]) + 1, pfns, data)
        file.in_flight.append(part)
        self._vmstat.count(stats.PGPGOUT, SECTORS_PER_PAGE * len(pfns))
        done = Bio(sector, len(pfns), segments(pfns), flags, lambda error: self._end(file, part, error))
        file.wb.disk.submit(done)

    def _end(self, file: File, part: UnderWay, error: int) -> None:
        """A bio is done (``mpage_end_io``): its pages are not under write-back any more."""
        file.in_flight.remove(part)
        if error:
            self._pages.flags[part.pfns] |= _ERROR
            file.wb_err = errseq_set(file.wb_err, error)
            trace_points.wb_err(self._vmstat.trace, file, file.wb_err)
            self._lost(file, range(part.first, part.last))
        else:
            file.data.update(part.data)
        self._cache.end_writeback(file, part.pfns)
        self._arrived(file, part.pfns)

    def wait(self, file: File, start: int = 0, end: int = 1 << 62) -> None:
        """Sleep until nothing of ``[start, end)`` is under write-back (``filemap_fdatawait_range``)."""
        while waiting := [part.first for part in file.in_flight if part.first < end and part.last > start]:
            trace_writeback.wait_for_page(self._vmstat.trace, file, max(min(waiting), start))
            self._io.sleep_until(file.wb.disk.drained_by())

    def wait_steps(self, file: File, start: int = 0, end: int = 1 << 62) -> Steps[None]:
        """``wait`` in slices."""
        while waiting := [part.first for part in file.in_flight if part.first < end and part.last > start]:
            trace_writeback.wait_for_page(self._vmstat.trace, file, max(min(waiting), start))
            yield from self._io.sleep_steps(file.wb.disk.drained_by())


def runs(file: File, indices: Indices) -> Iterator[tuple[int, int, int]]:
    """Runs of pages that are neighbours on the disk, as bios take them: first, behind the last, sector."""
    blocks = indices if file.blocks_at is None else file.blocks_at(indices)
    edges = np.flatnonzero((np.diff(blocks) != 1) | (np.diff(indices) != 1)) + 1
    bounds = [0, *edges.tolist(), len(indices)]
    for low, high in pairwise(bounds):
        for first in range(low, high, BIO_MAX_VECS):
            yield first, min(first + BIO_MAX_VECS, high), int(blocks[first]) * SECTORS_PER_PAGE


def segments(pfns: Any) -> int:
    """Runs of pages that are neighbours in memory."""
    return 1 + int((np.diff(pfns) != 1).sum())
