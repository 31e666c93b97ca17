"""Page reclaim: its knobs and state (mm/vmscan.c, fs/dcache.c ``vfs_cache_pressure``, mm/filemap.c).

Models: swappiness, zone_reclaim_mode, vfs_cache_pressure, page_lock_unfairness, the switches of the
multi-generational LRU, and the door to reclaim for cgroups and nodes. Reclaim itself is mm/vmscan_reclaim.py with its
parts: vmscan_balance.py how much of what, vmscan_folio.py which pages, vmscan_kswapd.py the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from kmemd.mm import kstrtox
from kmemd.mm.clock import HZ
from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.mm.sysfs_handlers import uint_of_base
from kmemd.mm.vmscan_reclaim import Reclaim
from kmemd.steps import Steps
from kmemd.tunable import Tunable, Tuned

LRU_GEN_CORE, LRU_GEN_MM_WALK, LRU_GEN_NONLEAF_YOUNG = 1, 2, 4
LRU_GEN_CAPS = LRU_GEN_CORE | LRU_GEN_MM_WALK | LRU_GEN_NONLEAF_YOUNG
MAX_JIFFY_OFFSET = (1 << 62) - 2
MSEC_PER_SEC = 1000
MSEC_PER_JIFFY = MSEC_PER_SEC // HZ


def msecs_to_jiffies(msecs: int) -> int:
    """Jiffies that cover ``msecs``; a value that is negative as an int means for ever."""
    if msecs > kstrtox.INT_MAX:
        return MAX_JIFFY_OFFSET
    return -(-msecs // MSEC_PER_JIFFY)


def _show_min_ttl(jiffies: int) -> str:
    return f"{jiffies * MSEC_PER_JIFFY & kstrtox.UINT_MAX}\n"


def _parse_min_ttl(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    msecs, taken = uint_of_base(0)(text, current, tunable)
    return msecs_to_jiffies(msecs), taken


def _show_caps(caps: int) -> str:
    return f"{caps:#06x}\n"


def _parse_caps(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    data = kstrtox.to_bytes(text)
    first = data[:1].lower()
    if first in (b"n", b"y"):
        return (LRU_GEN_CAPS if first == b"y" else 0), len(data)
    caps, taken = uint_of_base(0)(text, current, tunable)
    return caps & LRU_GEN_CAPS, taken


class Vmscan(Tuned):
    """Reclaim's settings. ``numa``: built for NUMA; ``lru_gen``: built with the multi-generational LRU."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("swappiness", min=0, max=200),
        vm_knob("zone_reclaim_mode", min=0, when="numa"),
        vm_knob("vfs_cache_pressure", min=0),
        vm_knob("page_lock_unfairness", min=0),
        Tunable(
            "sys/kernel/mm/lru_gen/enabled",
            "lru_gen_caps",
            _show_caps,
            _parse_caps,
            on_change="lru_gen_changed",
            when="lru_gen",
            steps="set_lru_gen",
        ),
        Tunable("sys/kernel/mm/lru_gen/min_ttl_ms", "lru_gen_min_ttl", _show_min_ttl, _parse_min_ttl, when="lru_gen"),
    )

    def __init__(self, *, numa: bool, lru_gen: bool, long_bits: int = 64) -> None:
        self.numa = numa
        self.lru_gen = lru_gen
        self.long_bits = long_bits
        self.swappiness = 60
        self.zone_reclaim_mode = 0
        self.vfs_cache_pressure = 100
        self.page_lock_unfairness = 5
        self.reclaim: Reclaim | None = None
        self.lru_gen_caps = 0
        self.lru_gen_min_ttl = 0
        self.change_state: Callable[[bool], Iterable[None]] = lambda enabled: ()

    def set_lru_gen(self, caps: int) -> Steps[None]:
        """Pages go into generations, or out of them, in slices (``store_enabled``, ``lru_gen_change_state``)."""
        self.lru_gen_caps = caps
        yield from self.change_state(bool(caps & LRU_GEN_CORE))

    def lru_gen_changed(self) -> None:
        """The same at once, where that was not done yet."""
        for _ in self.change_state(bool(self.lru_gen_caps & LRU_GEN_CORE)):
            pass

    def try_to_free_mem_cgroup_pages(
        self, memcg: int, nr_pages: int, gfp: int, may_swap: bool, *, proactive: bool = False
    ) -> int:
        """Reclaim from a cgroup and those below it for its limit, or because somebody asks. Pages reclaimed."""
        if self.reclaim is None:
            return 0
        return self.reclaim.of_cgroup(memcg, nr_pages, gfp, may_swap=may_swap, proactive=proactive)
