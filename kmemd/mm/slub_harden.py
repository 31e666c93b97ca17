"""Hardening of SLUB's free lists and of fresh memory (mm/slub.c, mm/slab_common.c ``cache_random_seq_create``).

``slab_freelist_random`` and ``slab_freelist_hardened`` on the command line stand for the configuration options of these
names, which the captured kernels lack: objects of a fresh slab come in an order of their cache's, from a place of
the slab's on; free pointers are kept XORed with a number of the cache's and the bytes of their own address in
reverse, and an object that is freed twice in a row is a BUG. ``init_on_alloc=`` clears objects when they are allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from kmemd.mm import slab_flags as sf
from kmemd.mm.gfp import F
from kmemd.mm.params import CommandLine

if TYPE_CHECKING:
    from kmemd.mm.slab_common import KmemCache

BUG_LINE = "mm/slub.c:419"
"""``BUG_ON(object == fp)`` in ``set_freepointer``."""


class Hardening:
    """What the command line asks for. ``rng`` is drawn from only when something is random.

    ``bug(where, frames)`` reports a BUG and ends the task; ``shuffle`` is what the core asks for the order of a
    fresh slab's objects.
    """

    def __init__(
        self,
        cmdline: CommandLine | None = None,
        rng: Random | None = None,
        bug: Callable[[str, tuple[str, ...]], None] | None = None,
        *,
        init_on_alloc: bool = False,
        init_on_free: bool = False,
    ) -> None:
        self.random = cmdline is not None and cmdline.has("slab_freelist_random")
        self.hardened = cmdline is not None and cmdline.has("slab_freelist_hardened")
        self.init_on_alloc, self.init_on_free = init_on_alloc, init_on_free
        self.bug = bug or (lambda where, frames: None)
        self._rng = rng or Random(0)
        self._secrets: dict[int, int] = {}
        self._orders: dict[int, list[int]] = {}
        self.shuffle: Callable[[int, int], list[int]] | None = self._shuffle if self.random else None

    def clears(self, cache: KmemCache, gfp: int) -> bool:
        """Whether an object is cleared when it is allocated (``slab_want_init_on_alloc``)."""
        if not self.init_on_alloc or cache.ctor or cache.flags & (sf.SLAB_TYPESAFE_BY_RCU | sf.SLAB_POISON):
            return bool(gfp & F.ZERO)
        return True

    def secret(self, cache: KmemCache) -> int:
        """The number that a cache's free pointers are kept with, 0 for none."""
        if not self.hardened:
            return 0
        if cache.index not in self._secrets:
            self._secrets[cache.index] = self._rng.getrandbits(64) | 1
        return self._secrets[cache.index]

    def _shuffle(self, cache: int, objects: int) -> list[int]:
        """The order of a fresh slab's objects (``shuffle_freelist``); a slab of fewer leaves the others out."""
        order = self._orders.get(cache)
        if order is None or len(order) < objects:
            order = self._orders[cache] = self._rng.sample(range(objects), objects)
        first = self._rng.randrange(len(order))
        return [index for index in order[first:] + order[:first] if index < objects]

    def forget(self, cache: KmemCache) -> None:
        """A cache is gone, and its number will be another's."""
        self._secrets.pop(cache.index, None)
        self._orders.pop(cache.index, None)
