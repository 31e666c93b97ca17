"""Proof that pages, slots and counters of control groups name each other: ``System.check`` asks here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import ALLOCATED, PageMap
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import MemCgroup


class MemcgCheck:
    """Recomputes what the counters claim."""

    def __init__(self, memcg: MemControl, pages: PageMap) -> None:
        self._control, self._pages = memcg, pages
        self._memcg = pages.memcg

    def __call__(self, slots: list[npt.NDArray[np.int16]]) -> None:
        """Pages and counters name each other. ``slots``: the groups of each swap area's slots. AssertionError."""
        if not self._control.active:
            return
        heads = np.flatnonzero(self._memcg)
        heads = heads[self._pages.kind[heads] == ALLOCATED]
        numbers, sizes = self._memcg[heads].astype(np.int64), np.int64(1) << self._pages.order[heads].astype(np.int64)
        length = len(self._control.groups)
        pages = np.bincount(np.maximum(numbers, 0), weights=sizes, minlength=length).astype(np.int64)
        kernel = self._kernel_pages(np.bincount(np.maximum(-numbers, 0), weights=sizes, minlength=length))
        swapped = sum((np.bincount(each[each > 0], minlength=length) for each in slots), np.zeros(length, np.int64))
        for group in filter(None, self._control.groups):
            name, own = f"memory cgroup {group.id} {group.cgroup.path}", (pages, swapped)[0][group.id]
            if not group.id:
                continue
            assert own == group.pages, f"{name}: {own} pages are charged, it counts {group.pages}"
            assert kernel[group.id] == group.kmem, f"{name}: {kernel[group.id]} kernel pages, it counts {group.kmem}"
            assert swapped[group.id] == group.swapped, f"{name}: {swapped[group.id]} slots, it counts {group.swapped}"
            self._check_sums(group, name)
        self._control.kernel.check()

    def _kernel_pages(self, blocks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Pages of the kernel's by group: ``blocks`` is the size of the blocks that name each object group."""
        found = np.zeros(len(blocks), dtype=np.int64)
        for objcg in filter(None, self._control.kernel.objcgs):
            found[objcg.memcg.id] += int(blocks[objcg.id]) + objcg.pages
        return found

    def _check_sums(self, group: MemCgroup, name: str) -> None:
        below = list(group.descendants())
        stock = sum(n for memcg, n in self._control.stock.pages if memcg in below)
        pages, slots = sum(each.pages + each.kmem for each in below), sum(each.swapped for each in below)
        usage = group.memory.usage
        assert usage == pages + stock, f"{name}: {pages} pages below and {stock} in stock, the counter says {usage}"
        assert slots == group.swap.usage, f"{name}: {slots} slots below, the counter says {group.swap.usage}"
