"""Flags of slab caches, and the ``slub_debug=`` parameter that sets some of them.

include/linux/slab.h and mm/slab.h of Linux 6.1 with SLUB_DEBUG, FAILSLAB and MEMCG_KMEM, without KASAN, KFENCE and
DEBUG_OBJECTS; mm/slub.c ``setup_slub_debug``, ``parse_slub_debug_flags``, ``kmem_cache_flags``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SLAB_CONSISTENCY_CHECKS = 0x00000100
SLAB_RED_ZONE = 0x00000400
SLAB_POISON = 0x00000800
SLAB_KMALLOC = 0x00001000
SLAB_HWCACHE_ALIGN = 0x00002000
SLAB_CACHE_DMA = 0x00004000
SLAB_CACHE_DMA32 = 0x00008000
SLAB_STORE_USER = 0x00010000
SLAB_RECLAIM_ACCOUNT = 0x00020000
SLAB_PANIC = 0x00040000
SLAB_TYPESAFE_BY_RCU = 0x00080000
SLAB_MEM_SPREAD = 0x00100000
SLAB_TRACE = 0x00200000
SLAB_NOLEAKTRACE = 0x00800000
SLAB_FAILSLAB = 0x02000000
SLAB_ACCOUNT = 0x04000000
SLAB_NO_USER_FLAGS = 0x10000000
CMPXCHG_DOUBLE = 0x40000000
OBJECT_POISON = 0x80000000

DEBUG_FLAGS = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_TRACE | SLAB_CONSISTENCY_CHECKS
DEBUG_DEFAULT_FLAGS = SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
DEBUG_METADATA_FLAGS = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
NO_CMPXCHG = SLAB_CONSISTENCY_CHECKS | SLAB_STORE_USER | SLAB_TRACE
NEVER_MERGE = (
    SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_TRACE | SLAB_TYPESAFE_BY_RCU | SLAB_NOLEAKTRACE | SLAB_FAILSLAB
)
MERGE_SAME = SLAB_RECLAIM_ACCOUNT | SLAB_CACHE_DMA | SLAB_CACHE_DMA32 | SLAB_ACCOUNT
CORE_FLAGS = SLAB_HWCACHE_ALIGN | SLAB_CACHE_DMA | SLAB_CACHE_DMA32 | SLAB_PANIC | SLAB_TYPESAFE_BY_RCU
CACHE_FLAGS = SLAB_NOLEAKTRACE | SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT | SLAB_NO_USER_FLAGS
CREATE_MASK = CORE_FLAGS | DEBUG_FLAGS | CACHE_FLAGS
FLAGS_PERMITTED = CREATE_MASK | SLAB_MEM_SPREAD

FLAG_NAMES: dict[str, int] = {
    "SLAB_CONSISTENCY_CHECKS": SLAB_CONSISTENCY_CHECKS,
    "SLAB_RED_ZONE": SLAB_RED_ZONE,
    "SLAB_POISON": SLAB_POISON,
    "SLAB_HWCACHE_ALIGN": SLAB_HWCACHE_ALIGN,
    "SLAB_CACHE_DMA": SLAB_CACHE_DMA,
    "SLAB_CACHE_DMA32": SLAB_CACHE_DMA32,
    "SLAB_STORE_USER": SLAB_STORE_USER,
    "SLAB_RECLAIM_ACCOUNT": SLAB_RECLAIM_ACCOUNT,
    "SLAB_TEMPORARY": SLAB_RECLAIM_ACCOUNT,
    "SLAB_PANIC": SLAB_PANIC,
    "SLAB_TYPESAFE_BY_RCU": SLAB_TYPESAFE_BY_RCU,
    "SLAB_MEM_SPREAD": SLAB_MEM_SPREAD,
    "SLAB_TRACE": SLAB_TRACE,
    "SLAB_NOLEAKTRACE": SLAB_NOLEAKTRACE,
    "SLAB_ACCOUNT": SLAB_ACCOUNT,
    "SLAB_NO_USER_FLAGS": SLAB_NO_USER_FLAGS,
}
"""The flags that kmem_cache_create takes."""

_LETTERS = {
    "f": SLAB_CONSISTENCY_CHECKS,
    "z": SLAB_RED_ZONE,
    "p": SLAB_POISON,
    "u": SLAB_STORE_USER,
    "t": SLAB_TRACE,
    "a": SLAB_FAILSLAB,
}


@dataclass(frozen=True)
class _Block:
    """One block of ``slub_debug=``: flags, and the caches they are for (None: all)."""

    flags: int
    names: tuple[str, ...] | None


class SlubDebug:
    """What ``slub_debug`` on the command line asks for; ``value`` is None without the parameter.

    ``say`` takes the complaint about an unknown letter.
    """

    def __init__(self, value: str | None, say: Callable[[str], None]) -> None:
        self.disable_higher_order = False
        self._blocks: list[_Block] = []
        self.flags = 0
        if value is None:
            return
        if not value:
            self.flags = DEBUG_DEFAULT_FLAGS
            return
        blocks = [self._parse(block, say) for block in value.split(";") if block]
        plain = [block.flags for block in blocks if block.names is None]
        listed = any(block.names is not None for block in blocks)
        # Flags for some caches leave the others alone, unless a block without a list says otherwise.
        self.flags = plain[-1] if plain else 0 if listed else DEBUG_DEFAULT_FLAGS
        self._blocks = blocks if listed else []

    @property
    def enabled(self) -> bool:
        """Whether the parameter switches debugging on for any cache."""
        return bool(self.flags or self._blocks)

    def _parse(self, block: str, say: Callable[[str], None]) -> _Block:
        letters, comma, names = block.partition(",")
        flags = 0
        for letter in letters:
            if letter == "-":
                flags = 0
            elif letter.lower() == "o":
                self.disable_higher_order = True
            elif letter.lower() in _LETTERS:
                flags |= _LETTERS[letter.lower()]
            else:
                say(f"slub_debug option '{letter}' unknown. skipped")
        if comma and not letters:
            flags = DEBUG_DEFAULT_FLAGS
        return _Block(flags, tuple(names.split(",")) if comma else None)

    def cache_flags(self, flags: int, name: str) -> int:
        """A new cache's flags with those of the command line (``kmem_cache_flags``)."""
        if flags & SLAB_NO_USER_FLAGS:
            return flags
        for block in self._blocks:
            if block.names is not None and any(_matches(name, pattern) for pattern in block.names):
                return flags | block.flags
        added = self.flags
        if flags & SLAB_NOLEAKTRACE:
            added &= ~SLAB_STORE_USER
        return flags | added


def _matches(name: str, pattern: str) -> bool:
    """Whether a cache is meant: the whole name, or a prefix that ``*`` ends."""
    prefix, star, _ = pattern.partition("*")
    return name.startswith(prefix) if star else name == pattern
