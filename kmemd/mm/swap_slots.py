"""Swap slots kept at hand by each CPU, taken and given back in batches (mm/swap_slots.c).

A CPU's slots are taken from the areas though no page is in them: /proc/swaps counts them as used.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

SWAP_SLOTS_CACHE_SIZE = 64
THRESHOLD_ACTIVATE = 5 * SWAP_SLOTS_CACHE_SIZE
THRESHOLD_DEACTIVATE = 2 * SWAP_SLOTS_CACHE_SIZE


class SwapSlots:
    """The CPUs' slots. ``get(n)`` takes up to n from the areas, ``free(slots)`` gives them back.

    Invariants: a CPU holds at most 64 slots to hand out and 64 that came back.
    """

    def __init__(
        self,
        cpus: int,
        nr_swap_pages: Callable[[], int],
        get: Callable[[int], list[int]],
        free: Callable[[list[int]], None],
    ) -> None:
        self._cpus = cpus
        self._nr_swap_pages = nr_swap_pages
        self._get, self._free = get, free
        self.enabled = self.active = False
        self.slots: list[list[int]] = [[] for _ in range(cpus)]
        self.returned: list[list[int]] = [[] for _ in range(cpus)]

    def alloc(self, cpu: int, n: int) -> list[int]:
        """``n`` slots, one after the other (folio_alloc_swap of each); fewer when swap is full."""
        found: list[int] = []
        while len(found) < n:
            if self._check_active():
                mine = self.slots[cpu]
                if not mine:
                    mine.extend(reversed(self._get(SWAP_SLOTS_CACHE_SIZE)))
                if mine:
                    found.extend(mine.pop() for _ in range(min(len(mine), n - len(found))))
                    continue
            one = self._get(1)
            if not one:
                break
            found.extend(one)
        return found

    def _check_active(self) -> bool:
        """Whether there is enough swap left to hoard some of it (check_cache_active)."""
        if not self.enabled:
            return False
        left = self._nr_swap_pages()
        if not self.active:
            self.active = left > self._cpus * THRESHOLD_ACTIVATE
        elif left < self._cpus * THRESHOLD_DEACTIVATE:
            self.active = False
            self.drain()
        return self.active

    def give_back(self, cpu: int, slots: list[int]) -> None:
        """Slots that nothing refers to any more (free_swap_slot of each)."""
        if not (self.enabled and self.active):
            self._free(slots)
            return
        mine = self.returned[cpu]
        mine.extend(slots)
        surplus = (len(mine) - 1) // SWAP_SLOTS_CACHE_SIZE * SWAP_SLOTS_CACHE_SIZE
        if surplus > 0:
            self._free(list(islice(mine, surplus)))
            del mine[:surplus]

    def give_one(self, cpu: int, slot: int) -> None:
        """``give_back`` of one slot."""
        mine = self.returned[cpu]
        if self.enabled and self.active and len(mine) < SWAP_SLOTS_CACHE_SIZE:
            mine.append(slot)
        else:
            self.give_back(cpu, [slot])

    def held(self) -> int:
        """How many slots all CPUs keep."""
        return sum(len(mine) for mine in (*self.slots, *self.returned))

    def drain(self) -> None:
        """All CPUs give back what they hold (__drain_swap_slots_cache)."""
        for mine, returned in zip(self.slots, self.returned, strict=True):
            for held in (list(reversed(mine)), list(returned)):
                if held:
                    self._free(held)
            mine.clear()
            returned.clear()

    def disable(self) -> None:
        """Before an area goes off (disable_swap_slots_cache_lock)."""
        self.enabled = False
        self.drain()
