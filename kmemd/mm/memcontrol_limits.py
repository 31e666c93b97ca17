"""Writing memory.max, memory.high and memory.reclaim: what is charged already has to go (mm/memcontrol.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.memcontrol import MAX_RECLAIM_RETRIES, MemControl
from kmemd.mm.memcontrol_group import OOM, MemCgroup
from kmemd.mm.page_counter import page_counter_memparse
from kmemd.steps import Steps


class MemLimits:
    """The knobs that reclaim, with points where others may run. ``drain_lru()`` empties the LRU batches."""

    def __init__(self, memcg: MemControl, drain_lru: Callable[[], None]) -> None:
        self._memcg, self._drain_lru = memcg, drain_lru

    def write_max(self, memcg: MemCgroup, text: str) -> Steps[None]:
        """memory.max: what is above it is reclaimed, or the OOM killer makes room. EINVAL."""
        limit = memcg.memory.max = page_counter_memparse(text, "max")
        retries, drained = MAX_RECLAIM_RETRIES, False
        while memcg.memory.usage > limit:
            if not drained:
                self._memcg.stock.drain(memcg)
                drained = True
            elif retries:
                retries -= not (yield from self._free(memcg, memcg.memory.usage - limit))
            elif self._memcg.is_dying() or not memcg.online:
                return
            else:
                memcg.event(OOM)
                if not self._memcg.out_of_memory(memcg, g.GFP_KERNEL):
                    return

    def _free(self, memcg: MemCgroup, pages: int) -> Steps[int]:
        return (yield from self._memcg.try_to_free_steps(memcg, pages, g.GFP_KERNEL))

    def write_high(self, memcg: MemCgroup, text: str) -> Steps[None]:
        """memory.high: what is above it is reclaimed, as far as that goes. EINVAL."""
        high = memcg.memory.high = page_counter_memparse(text, "max")
        retries, drained = MAX_RECLAIM_RETRIES, False
        while memcg.memory.usage > high:
            if not drained:
                self._memcg.stock.drain(memcg)
                drained = True
            elif not (yield from self._free(memcg, memcg.memory.usage - high)):
                retries -= 1
                if retries < 0:
                    return

    def write_reclaim(self, memcg: MemCgroup, text: str) -> Steps[None]:
        """memory.reclaim: free so many bytes. EINVAL; EAGAIN when it could not be done."""
        wanted, done, retries = page_counter_memparse(text, ""), 0, MAX_RECLAIM_RETRIES
        while done < wanted:
            if not retries:
                self._drain_lru()
            freed = yield from self._free(memcg, wanted - done)
            if not freed:
                retries -= 1
                if retries < 0:
                    raise KernelError(errno.EAGAIN, f"{done} of {wanted} pages could be reclaimed")
            done += freed
