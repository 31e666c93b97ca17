"""What the loop of faults in core/swap_fault.py leaves to Python: reading pages, and giving slots back.

A part of ``do_swap_page`` (mm/memory.c): the loop maps pages of the swap cache, and comes here for others. What it does
not map either goes the way of mm/swap_state.py, with the same result.
"""

from __future__ import annotations

from kmemd.core import access_stats
from kmemd.core.swap_fault import SwapFaults
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import Vma
from kmemd.mm.swap_state import SwapState

READS_A_STEP = 4
"""So many reads of readahead take as long as one fault of another kind."""


class SwapAccess:
    """Connects the loop with the swap cache and with the address space that executes."""

    def __init__(self, memory: Memory, swap: SwapState, faults: SwapFaults) -> None:
        self._memory, self._swap = memory, swap
        self._reads = 0
        faults.mapping, faults.read, faults.freed = self._mapping, self._read, swap.lost_page
        memory.mmu.swap = faults

    def _mapping(self, row: int) -> tuple[int, int]:
        """The row of readahead's windows for a mapping, and the root of its anon_vmas."""
        mm, vma = self._memory.executing(row)
        return self._swap.window_row(mm, vma), self._root(vma)

    @staticmethod
    def _root(vma: Vma) -> int:
        anon = vma.anon_vma
        assert anon is not None, "a mapping with swap entries had pages"
        while anon.parent is not None:
            anon = anon.parent
        return anon.id

    def _read(self, row: int, vpn: int, slot: int, write: bool) -> int:
        """A major fault: the page that was read, or -1 to leave all of it to the caller. ENOMEM, ``Signal``."""
        memory = self._memory
        if not memory.go_on(vpn, tired=self._reads % READS_A_STEP == 0):
            return -1
        self._reads += 1
        mm, vma = memory.executing(row)
        with memory.lru_fault(vma):
            memory.count_step(mm, access_stats.SWAP_FAULTS)
            pfn = self._swap.read_for_fault(memory, memory.task, mm, vma, vpn, slot, write=write)
        memory.mmu.stats[access_stats.SWAP_READS] += 1
        return pfn
