"""move_pages(2) as it goes from address to address (mm/migrate.c ``do_pages_move``).

Models which pages are moved together, the status of each, and what the call returns when some stay.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kmemd.errors import KernelError
from kmemd.mm.mm_types import Mm
from kmemd.mm.mpol import MPOL_MF_MOVE_ALL
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.mm.mbind import Mbind


class PagesMove:
    """One move_pages(2) that moves (do_pages_move): pages for the same node in a row are moved together."""

    def __init__(self, calls: Mbind, mm: Mm, addresses: Sequence[int], nodes: Sequence[int], flags: int) -> None:
        self._calls = calls
        self._mm = mm
        self._pairs = list(zip(addresses, nodes, strict=True))
        self._every = bool(flags & MPOL_MF_MOVE_ALL)
        self._status = [0] * len(self._pairs)
        self._pages: list[int] = []
        self._start = 0

    def run(self) -> Steps[tuple[int, list[int]]]:
        """The result and the status of each page. ENODEV."""
        current = -1
        for i, (address, nid) in enumerate(self._pairs):
            if not self._calls.has_memory(nid):
                yield from self._flush(current, i)
                raise KernelError(errno.ENODEV, f"node {nid} has no memory")
            if nid != current:
                failed = yield from self._flush(current, i)
                if failed:
                    return self._result(failed, i)
                self._start, current = i, nid
            error, page = self._calls.isolate_at(self._mm, address, nid, every=self._every)
            if error > 0:
                self._pages.append(page)
                continue
            self._status[i] = error or nid
            failed = yield from self._flush(current, i)
            if failed:
                return self._result(failed - (failed > 0), i)
            current = -1
        failed = yield from self._flush(current, len(self._pairs))
        return self._result(failed, len(self._pairs))

    def _result(self, failed: int, at: int) -> tuple[int, list[int]]:
        """The number of pages that stayed, with those that were not tried; an errno is raised."""
        if failed < 0:
            raise KernelError(-failed, "no page left on the node")
        return failed + (len(self._pairs) - at if failed else 0), self._status

    def _flush(self, nid: int, end: int) -> Steps[int]:
        """Move what was collected and note its node."""
        if not self._pages:
            return 0
        failed = yield from self._calls.move_to(self._pages, nid)
        self._pages = []
        if not failed:
            self._status[self._start : end] = [nid] * (end - self._start)
        return failed
