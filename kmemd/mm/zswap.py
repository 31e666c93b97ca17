"""zswap: pages on their way to swap are compressed and kept in memory instead (mm/zswap.c, mm/frontswap.c).

Models: storing, loading and forgetting by slot, same-filled pages, the limit of the pool and the threshold above which
nothing is accepted after it was hit, writing entries of the oldest pool page to their device, changing compressor and
pool type while older pools still hold pages, the counters of debugfs. What a page would be compressed to is
mm/compress.py's, memory of the pool mm/zbud.py's, z3fold.py's and zsmalloc.py's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.compress import ALGORITHMS, SAME_FILLED, Compression
from kmemd.mm.module_params import param_bool, param_charp, param_uint, show_param, show_param_bool
from kmemd.mm.printk import KERN_ERR, Printk
from kmemd.mm.vmstat import VmStat
from kmemd.mm.zpool import Evict, Handle, Zpool
from kmemd.steps import Steps
from kmemd.tunable import Tunable, Tuned

Slots = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]

GFP_POOL = g.F.NORETRY | g.F.NOWARN | g.F.KSWAPD_RECLAIM
PARAMETERS = "sys/module/zswap/parameters/"
COMPRESSOR_DEFAULT, ZPOOL_DEFAULT = "lzo", "zbud"
POOL_TYPES = ("zbud", "z3fold", "zsmalloc")
HEADER_BYTES = 8
"""An entry that can be evicted begins with its slot (``struct zswap_header``)."""


class Entries(Protocol):
    """The slab cache of entries."""

    def alloc(self, n: int) -> Addresses: ...
    def free(self, addresses: Addresses) -> None: ...


class Groups(Protocol):
    """The memory controller, as zswap sees it. A group is a number, 0 for the root."""

    def may_zswap(self, group: int) -> bool: ...
    def charge_zswap(self, group: int, size: int) -> None: ...
    def uncharge_zswap(self, group: int, size: int) -> None: ...
    def count_zswap(self, group: int, event: int) -> None: ...


class Pool:
    """A pool and its compressor. It lives while it is the current one or holds entries (``refs``)."""

    def __init__(self, zpool: Zpool, compressor: str) -> None:
        self.zpool, self.compressor = zpool, compressor
        self.refs = 0
        self.shrinking = False


@dataclass(eq=False, slots=True)
class Entry:
    """One page. ``length`` 0 is a same-filled one, which has no pool."""

    slot: int
    length: int
    address: int
    group: int
    pool: Pool | None = None
    handle: Handle | None = None


class Counters:
    """The files of debugfs ``zswap`` and ``frontswap`` that only grow."""

    def __init__(self) -> None:
        self.pool_limit_hit = 0
        self.reject_reclaim_fail = self.reject_alloc_fail = 0
        self.reject_kmemcache_fail = self.reject_compress_poor = 0
        self.written_back_pages = self.duplicate_entry = 0
        self.loads = self.succ_stores = self.failed_stores = self.invalidates = 0


class Zswap(Tuned):
    """The compressed pages of a machine, by slot.

    Invariants: ``pools[0]`` is the current pool; a pool's ``refs`` counts its entries; ``same_filled`` counts those
    without one.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable(PARAMETERS + "enabled", "enabled", show_param_bool, param_bool),
        Tunable(PARAMETERS + "compressor", "compressor", show_param, param_charp, steps="set_compressor"),
        Tunable(PARAMETERS + "zpool", "zpool_type", show_param, param_charp, steps="set_zpool"),
        Tunable(PARAMETERS + "max_pool_percent", "max_pool_percent", show_param, param_uint),
        Tunable(PARAMETERS + "accept_threshold_percent", "accept_percent", show_param, param_uint),
        Tunable(PARAMETERS + "same_filled_pages_enabled", "same_enabled", show_param_bool, param_bool),
        Tunable(PARAMETERS + "non_same_filled_pages_enabled", "non_same_enabled", show_param_bool, param_bool),
    )

    def __init__(
        self,
        make_zpool: Callable[[str, str, Evict], Zpool],
        compression: Compression,
        entries: Entries,
        vmstat: VmStat,
        printk: Printk,
        totalram_pages: Callable[[], int],
        charge: Callable[[int], None],
        groups_of: Callable[[Slots], list[int]],
        later: Callable[[Callable[[], None]], None],
        write_back: Callable[[int], bool],
        long_bits: int = 64,
    ) -> None:
        """``make_zpool(type, name, evict)`` makes a pool; ``charge(ns)`` passes time; ``groups_of(pfns)`` says whose
        pages are; ``later(work)`` runs work of a kernel thread; ``write_back(slot)`` brings a page into the swap cache
        and has its device write it: whether that could be."""
        self.long_bits = long_bits
        self._make_zpool, self._compression, self._entries = make_zpool, compression, entries
        self._vmstat, self._printk, self._totalram = vmstat, printk, totalram_pages
        self._charge, self._groups_of, self._later, self._write_back = charge, groups_of, later, write_back
        self.groups: Groups | None = None
        self.enabled = False
        self.compressor, self.zpool_type = COMPRESSOR_DEFAULT, ZPOOL_DEFAULT
        self.max_pool_percent, self.accept_percent = 20, 90
        self.same_enabled = self.non_same_enabled = True
        self.entries: dict[int, Entry] = {}
        self.pools: list[Pool] = []
        self.counters = Counters()
        self.same_filled = 0
        self._reached_full = False
        self._pools_made = 0

    # -- settings ----------------------------------------------------------------------------------------

    def init(self, option: Callable[[str], str | None]) -> None:
        """The first pool, by the options of boot (``init_zswap``); what is unknown falls back to the default."""
        for row in self.TUNABLES:
            text = option(row.path.rpartition("/")[2])
            if text is not None and row.steps is None:
                try:
                    setattr(self, row.attr, row.parse(text or "1", getattr(self, row.attr), row)[0])
                except KernelError:
                    continue
        compressor, kind = option("compressor") or COMPRESSOR_DEFAULT, option("zpool") or ZPOOL_DEFAULT
        if compressor not in ALGORITHMS:
            self._say(f"compressor {compressor} not available, using default {COMPRESSOR_DEFAULT}")
            compressor = COMPRESSOR_DEFAULT
        if kind not in POOL_TYPES:
            self._say(f"zpool {kind} not available, using default {ZPOOL_DEFAULT}")
            kind = ZPOOL_DEFAULT
        self.compressor, self.zpool_type = compressor, kind
        self.pools.append(self._create(kind, compressor))

    def _say(self, text: str) -> None:
        self._printk.log(KERN_ERR, f"zswap: {text}")

    def _create(self, kind: str, compressor: str) -> Pool:
        self._pools_made += 1
        return Pool(self._make_zpool(kind, f"zswap{self._pools_made:x}", self._evict), compressor)

    def set_compressor(self, value: str) -> Steps[None]:
        """Compress by another algorithm from now on. ENOENT."""
        if value != self.compressor and value not in ALGORITHMS:
            self._say(f"compressor {value} not available")
            raise KernelError(errno.ENOENT, f"no compressor {value}; there are {', '.join(ALGORITHMS)}")
        self._use(self.zpool_type, value)
        self.compressor = value
        return
        yield

    def set_zpool(self, value: str) -> Steps[None]:
        """Take memory from another kind of pool from now on. ENOENT."""
        if value != self.zpool_type and value not in POOL_TYPES:
            self._say(f"zpool {value} not available")
            raise KernelError(errno.ENOENT, f"no pool {value}; there are {', '.join(POOL_TYPES)}")
        self._use(value, self.compressor)
        self.zpool_type = value
        return
        yield

    def _use(self, kind: str, compressor: str) -> None:
        """Make a pool the current one, an older one of the same kind if there is; the last current one goes when it is
        empty (``__zswap_param_set``)."""
        if (kind, compressor) == (self.zpool_type, self.compressor):
            return
        found = next((p for p in self.pools if (p.zpool.type, p.compressor) == (kind, compressor)), None)
        if found is not None:
            self.pools.remove(found)
        last = self.pools[0] if self.pools else None
        self.pools.insert(0, found or self._create(kind, compressor))
        if last is not None:
            self._drop_empty(last)

    def _drop_empty(self, pool: Pool) -> None:
        if not pool.refs and pool is not self.pools[0] and pool in self.pools:
            self.pools.remove(pool)

    # -- gauges ------------------------------------------------------------------------------------------

    @property
    def pool_pages(self) -> int:
        """Pages of all pools."""
        return sum(pool.zpool.pages for pool in self.pools)

    @property
    def stored_pages(self) -> int:
        """Pages that are stored, same-filled ones too."""
        return len(self.entries)

    @property
    def is_full(self) -> bool:
        """Whether the pools are above their share of memory (``zswap_is_full``)."""
        return self._limits()[0] < self.pool_pages

    def _limits(self) -> tuple[int, int]:
        """Pages above which the pools are full, and below which they take pages again (``zswap_can_accept``)."""
        total, most = self._totalram(), self.max_pool_percent
        return total * most // 100, total * self.accept_percent // 100 * most // 100

    # -- storing -----------------------------------------------------------------------------------------

    def store(self, pfns: Slots, slots: Slots) -> npt.NDArray[np.bool_]:
        """Compress pages that are to be written to slots (``frontswap_store`` of each). Which ones are stored."""
        done = np.zeros(len(pfns), dtype=bool)
        self._forget(slots)
        if self.enabled and len(pfns):
            pool = self.pools[0]
            sizes = self._compression.sizes(pfns, pool.compressor).tolist()
            groups = self._groups_of(pfns) if self.groups is not None else None
            spare = self._entries.alloc(len(pfns)).tolist()
            limits = self._limits()
            for at, (slot, size) in enumerate(zip(slots.tolist(), sizes, strict=True)):
                group = groups[at] if groups is not None else 0
                done[at] = self._may_store(group, *limits) and self._store(pool, slot, size, group, spare)
            self._entries.free(np.array(spare, dtype=np.uint64))
        stored = int(done.sum())
        self._vmstat.count(stats.ZSWPOUT, stored)
        self.counters.succ_stores += stored
        self.counters.failed_stores += len(pfns) - stored
        return done

    def refuse_huge(self) -> None:
        """A huge page is not stored: who reads a part of it back could not tell."""
        self.counters.failed_stores += 1

    def _may_store(self, group: int, limit: int, accepting: int) -> bool:
        """Whether the group and the pool's limit allow another page; a full pool is shrunk."""
        if group and self.groups is not None and not self.groups.may_zswap(group):
            return False
        pages = self.pool_pages
        if limit < pages:
            self.counters.pool_limit_hit += 1
            self._reached_full = True
            self._queue_shrink(self.pools[-1])
            return False
        if self._reached_full:
            if accepting <= pages:
                return False
            self._reached_full = False
        return True

    def _store(self, pool: Pool, slot: int, size: int, group: int, spare: list[int]) -> bool:
        """One page; whether it is stored (``zswap_frontswap_store``)."""
        if not spare:
            self.counters.reject_kmemcache_fail += 1
            return False
        if size == SAME_FILLED and self.same_enabled:
            entry = Entry(slot, 0, spare.pop(), group)
            self.same_filled += 1
        else:
            handle = self._compressed(pool, slot, size) if self.non_same_enabled else None
            if handle is None:
                return False
            entry = Entry(slot, handle.size, spare.pop(), group, pool, handle)
            pool.refs += 1
        self.entries[slot] = entry
        if group and self.groups is not None:
            self.groups.charge_zswap(group, entry.length)
            self.groups.count_zswap(group, stats.ZSWPOUT)
        return True

    def _compressed(self, pool: Pool, slot: int, size: int) -> Handle | None:
        """Memory for a compressed page, None when there is none for it."""
        self._charge(ALGORITHMS[pool.compressor].compress_ns)
        size = size or HEADER_BYTES * 4
        header = HEADER_BYTES if pool.zpool.evictable else 0
        gfp = GFP_POOL | (g.F.HIGHMEM | g.F.MOVABLE if pool.zpool.movable else 0)
        try:
            handle = pool.zpool.malloc(header + size, gfp, slot)
        except KernelError as error:
            if error.errno == errno.ENOSPC:
                self.counters.reject_compress_poor += 1
            else:
                self.counters.reject_alloc_fail += 1
            return None
        handle.size = size
        return handle

    # -- loading and forgetting --------------------------------------------------------------------------

    def load(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Decompress what is to be read from slots (``frontswap_load`` of each). Which ones were here."""
        found = np.zeros(len(slots), dtype=bool)
        if not self.entries:
            return found
        for at, slot in enumerate(slots.tolist()):
            entry = self.entries.get(slot)
            if entry is None:
                continue
            found[at] = True
            if entry.pool is not None:
                self._charge(ALGORITHMS[entry.pool.compressor].decompress_ns)
            if entry.group and self.groups is not None:
                self.groups.count_zswap(entry.group, stats.ZSWPIN)
        loaded = int(found.sum())
        self._vmstat.count(stats.ZSWPIN, loaded)
        self.counters.loads += loaded
        return found

    def invalidate(self, slots: Slots) -> None:
        """Slots hold nothing any more (``frontswap_invalidate_page`` of each)."""
        self.counters.invalidates += self._forget(slots)

    def _forget(self, slots: Slots) -> int:
        """Free the entries of slots; how many there were."""
        if not self.entries:
            return 0
        gone = [entry for slot in slots.tolist() if (entry := self.entries.pop(slot, None)) is not None]
        for entry in gone:
            self._free(entry)
        self._entries.free(np.array([entry.address for entry in gone], dtype=np.uint64))
        return len(gone)

    def _free(self, entry: Entry) -> None:
        """Give an entry's memory back (``zswap_free_entry``), but for its slab object."""
        if entry.group and self.groups is not None:
            self.groups.uncharge_zswap(entry.group, entry.length)
        if entry.pool is None or entry.handle is None:
            self.same_filled -= 1
            return
        entry.pool.zpool.free(entry.handle)
        entry.pool.refs -= 1
        self._drop_empty(entry.pool)

    # -- writing back ------------------------------------------------------------------------------------

    def _queue_shrink(self, pool: Pool) -> None:
        """Have the kernel thread evict a page of a pool (``queue_work``); once, if it has not yet come to it."""
        if not pool.shrinking:
            pool.shrinking = True
            self._later(lambda: self._shrink(pool))

    def _shrink(self, pool: Pool) -> None:
        """shrink_worker."""
        pool.shrinking = False
        try:
            pool.zpool.shrink()
        except KernelError:
            self.counters.reject_reclaim_fail += 1
        self._drop_empty(pool)

    def _evict(self, handle: Handle) -> bool:
        """Write an entry to its device and free it (``zswap_writeback_entry``); whether it is gone."""
        entry = self.entries.get(handle.owner)
        if entry is None or entry.handle is not handle:
            return True
        if not self._write_back(entry.slot):
            return False
        self.counters.written_back_pages += 1
        del self.entries[entry.slot]
        self._free(entry)
        self._entries.free(np.array([entry.address], dtype=np.uint64))
        return True

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Entries, pools and counts agree. AssertionError."""
        same = 0
        refs = dict.fromkeys(self.pools, 0)
        for slot, entry in self.entries.items():
            assert slot == entry.slot, f"zswap: slot {slot} has the entry of {entry.slot}"
            if entry.pool is None:
                same += 1
            else:
                refs[entry.pool] += 1
                assert entry.handle is not None, "zswap: a handle has another owner"
                assert entry.handle.owner == slot, "zswap: a handle has another owner"
        assert same == self.same_filled, f"zswap: {same} same-filled pages, {self.same_filled} are counted"
        for pool, count in refs.items():
            assert pool.refs == count, f"zswap: a pool has {count} entries, {pool.refs} are counted"
            pool.zpool.check()  # type: ignore[attr-defined]


__all__ = ["POOL_TYPES", "Entry", "Zswap"]
