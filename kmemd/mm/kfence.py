"""KFENCE: now and then an object is served from a page of its own, between guard pages (mm/kfence/core.c, report.c).

``kfence.sample_interval=`` on the command line, in milliseconds of model time, turns it on; the captured kernels lack
it, so that without the parameter there is neither pool nor file. Bytes around an object are canaries, which are looked
at when it is freed; a page that may not be touched is reported on the first access, and may be from then on. Left out:
the allocator's own objects, which Linux samples too, RCU's delay of frees, stress faults, the check on panic. The pool
comes from the page allocator, as when KFENCE is enabled late.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.gfp import F
from kmemd.mm.panic import TAINT_BAD_PAGE
from kmemd.mm.printk import KERN_ERR, KERN_INFO, Printk
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slub_bytes import SparseBytes
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

NUM_OBJECTS = 255
POOL_ORDER = 9
POOL_SIZE = (NUM_OBJECTS + 1) * 2 * PAGE_SIZE
NS_PER_MS = 1_000_000
SHOWN = 16
"""Bytes that a report of corrupted memory shows."""
RULE = "=" * 66
ZONEMASK = F.DMA | F.HIGHMEM | F.DMA32 | F.MOVABLE
UNUSED, ALLOCATED, FREED = range(3)
COUNTERS = (
    *("currently allocated", "total allocations", "total frees", "zombie allocations", "total bugs"),
    *("skipped allocations (incompatible)", "skipped allocations (capacity)", "skipped allocations (covered)"),
)
IN_USE, ALLOCS, FREES, ZOMBIES, BUGS, INCOMPATIBLE, CAPACITY, COVERED = range(8)


@dataclass(frozen=True, slots=True)
class KfenceTrack:
    """Who allocated or freed an object, when (ns) and from where (a stack depot handle)."""

    pid: int
    cpu: int
    when_ns: int
    stack: int


@dataclass
class Guarded:
    """One object of the pool and its page (``struct kfence_metadata``)."""

    number: int
    page: int
    state: int = UNUSED
    address: int = 0
    size: int = 0
    cache: KmemCache | None = None
    allocated: KfenceTrack | None = None
    freed: KfenceTrack | None = None
    unprotected: int = -1
    written: SparseBytes = field(default_factory=SparseBytes)


class Kfence:
    """The pool of guarded objects. ``pool`` is its address, 0 without one.

    ``show_pointer`` is ``%p``, ``symbolize`` ``%pS``; ``plain``: bytes are shown, as with no_hash_pointers.
    ``next_ns`` is when the next allocation is served from the pool.
    """

    def __init__(
        self,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        rng: Random,
        symbolize: Callable[[str], str],
        show_pointer: Callable[[int], str],
        nodes: int,
        interval_ms: int,
        *,
        plain: bool = False,
    ) -> None:
        self._context, self._depot, self._printk, self._dump_stack = context, depot, printk, dump_stack
        self._rng, self._symbolize, self._p = rng, symbolize, show_pointer
        self._nodes, self._plain = nodes, plain
        self.interval_ms = interval_ms
        self.enabled = False
        self.skip_covered_thresh = 75
        self.pool = 0
        self.next_ns = 0
        self.counters = [0] * len(COUNTERS)
        self.objects: list[Guarded] = []
        self._free: list[Guarded] = []
        self._protected: set[int] = set()
        self._covered: Counter[int] = Counter()

    def start(self, pool: int) -> None:
        """Take a block of POOL_SIZE bytes for the pool (``kfence_init_pool``)."""
        self.pool = pool
        self.objects = [Guarded(number, pool + (number + 1) * 2 * PAGE_SIZE) for number in range(NUM_OBJECTS)]
        self._free = self._rng.sample(self.objects, NUM_OBJECTS)
        self._protected = {0, *range(1, POOL_SIZE // PAGE_SIZE, 2)}
        self._enable()
        span = f"0x{self._p(pool)}-0x{self._p(pool + POOL_SIZE)}"
        self._printk.log(
            KERN_INFO, f"kfence: initialized - using {POOL_SIZE} bytes for {NUM_OBJECTS} objects at {span}"
        )

    def _enable(self) -> None:
        self.enabled = True
        self.next_ns = self._context.now

    def set_interval(self, interval_ms: int) -> None:
        """``sample_interval``: 0 turns KFENCE off."""
        if not interval_ms and self.enabled:
            self.enabled = False
            self._printk.log(KERN_INFO, "kfence: disabled")
        self.interval_ms = interval_ms
        if interval_ms and not self.enabled:
            self._enable()
            self._printk.log(KERN_INFO, "kfence: re-enabled")

    # -- objects -------------------------------------------------------------------------------------------

    def covers(self, address: int) -> bool:
        """Whether an address lies in the pool (``is_kfence_address``)."""
        return bool(self.pool) and self.pool <= address < self.pool + POOL_SIZE

    @property
    def due(self) -> bool:
        """Whether the next allocation is to be served from the pool."""
        return self.enabled and self._context.now >= self.next_ns

    def alloc(self, cache: KmemCache, size: int, gfp: int) -> int:
        """A guarded object of ``size`` bytes, 0: the slab allocator is to serve it (``__kfence_alloc``)."""
        unfit = gfp & ZONEMASK or (gfp & F.THISNODE and self._nodes > 1)
        if size > PAGE_SIZE or unfit or cache.flags & (sf.SLAB_CACHE_DMA | sf.SLAB_CACHE_DMA32):
            self.counters[INCOMPATIBLE] += 1
            return 0
        self.next_ns = self._context.now + self.interval_ms * NS_PER_MS
        stack = self._context.site
        if self.counters[IN_USE] > NUM_OBJECTS * self.skip_covered_thresh // 100 and self._covered[stack]:
            self.counters[COVERED] += 1
            return 0
        if not self._free:
            self.counters[CAPACITY] += 1
            return 0
        return self._guarded_alloc(cache, size, stack)

    def _guarded_alloc(self, cache: KmemCache, size: int, stack: int) -> int:
        meta = self._free.pop(0)
        self._protected.discard(self._index(meta.page))
        right = self._rng.randrange(2)
        meta.address = (meta.page + PAGE_SIZE - size) // cache.align * cache.align if right else meta.page
        meta.state, meta.cache, meta.size = ALLOCATED, cache, size
        meta.allocated, meta.written = self._track(), SparseBytes()
        self._covered[stack] += 1
        self.counters[IN_USE] += 1
        self.counters[ALLOCS] += 1
        return meta.address

    def free(self, address: int, *, zombie: bool = False) -> None:
        """Give an object back (``kfence_guarded_free``). EINVAL and a report for what is none in use."""
        meta = self.object_at(address)
        if meta is None or meta.state != ALLOCATED or meta.address != address:
            self.counters[BUGS] += 1
            number = "" if meta is None else f" (in kfence-#{meta.number})"
            self._report("invalid free", f"Invalid free of 0x{self._p(address)}{number}:", meta)
            raise KernelError(errno.EINVAL, f"{address:#x} is not the start of a guarded object in use")
        if meta.unprotected >= 0:
            self._protected.add(meta.unprotected)
            meta.unprotected = -1
        meta.state, meta.freed = FREED, self._track()
        assert meta.allocated is not None
        self._covered[meta.allocated.stack] -= 1
        self._check_canaries(meta)
        self._protected.add(self._index(meta.page))
        if zombie:
            self.counters[ZOMBIES] += 1
            return
        self._free.append(meta)
        self.counters[IN_USE] -= 1
        self.counters[FREES] += 1

    def shutdown_cache(self, cache: KmemCache) -> None:
        """A cache is destroyed; its objects that are still in use become zombies (``kfence_shutdown_cache``)."""
        for meta in self.objects:
            if meta.cache is cache:
                if meta.state == ALLOCATED:
                    self.free(meta.address, zombie=True)
                meta.cache = None

    def _track(self) -> KfenceTrack:
        at = self._context
        return KfenceTrack(at.pid, at.cpu, at.now, at.site)

    def _index(self, address: int) -> int:
        return address - self.pool >> PAGE_SHIFT

    def object_at(self, address: int) -> Guarded | None:
        """The object whose page an address lies in, or is the guard behind (``addr_to_metadata``)."""
        number = self._index(address) // 2 - 1
        return self.objects[number] if self.covers(address) and 0 <= number < NUM_OBJECTS else None

    # -- bytes ---------------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """What stands in the pool, within one page."""
        meta = self.object_at(address)
        data = bytearray(canary(at) for at in range(address, address + size))
        if meta is None or self._index(address) % 2:
            return bytes(size)
        for at in range(max(address, meta.address), min(address + size, meta.address + meta.size)):
            data[at - address] = 0
        meta.written.overlay(address - meta.page, data)
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Code writes into the pool, within one page. What goes into a guard is lost."""
        meta = self.object_at(address)
        if meta is not None and not self._index(address) % 2:
            meta.written.write(address - meta.page, data)

    def _check_canaries(self, meta: Guarded) -> None:
        """The first byte on either side of an object that is no canary (``for_each_canary``)."""
        end = meta.address + meta.size
        for start, stop in ((meta.page, meta.address), (end, meta.page + PAGE_SIZE)):
            if not meta.written.known(start - meta.page, stop - start):
                continue
            data = self.read(start, stop - start)
            bad = next((at for at in range(start, stop) if data[at - start] != canary(at)), None)
            if bad is not None:
                self.counters[BUGS] += 1
                until = min(bad + SHOWN, stop)
                shown = "".join(self._shown(data[at - start], canary(at)) for at in range(bad, until))
                text = f"Corrupted memory at 0x{self._p(bad)} [{shown} ] (in kfence-#{meta.number}):"
                self._report("memory corruption", text, meta)

    def _shown(self, byte: int, expected: int) -> str:
        return " ." if byte == expected else f" 0x{byte:02x}" if self._plain else " !"

    # -- faults --------------------------------------------------------------------------------------------

    def fault(self, address: int, *, write: bool) -> bool:
        """A byte of the pool is accessed; whether that was a fault (``kfence_handle_page_fault``)."""
        index = self._index(address)
        if not self.covers(address) or index not in self._protected:
            return False
        self._protected.discard(index)
        if not self.enabled:
            return True
        self.counters[BUGS] += 1
        what, place = "write" if write else "read", f"0x{self._p(address)}"
        meta = self._neighbour(address) if index % 2 else self.object_at(address)
        if meta is None:
            self._report(f"invalid {what}", f"Invalid {what} at {place}:", None)
        elif index % 2:
            meta.unprotected = index
            left = address < meta.address
            distance = f"{abs(address - meta.address)}B {'left' if left else 'right'}"
            self._report(
                f"out-of-bounds {what}", f"Out-of-bounds {what} at {place} ({distance} of kfence-#{meta.number}):", meta
            )
        else:
            self._report(
                f"use-after-free {what}", f"Use-after-free {what} at {place} (in kfence-#{meta.number}):", meta
            )
        return True

    def _neighbour(self, address: int) -> Guarded | None:
        """The object in use that an access to a guard page was meant for."""
        left, right = self.object_at(address - PAGE_SIZE), self.object_at(address + PAGE_SIZE)
        found, distance = None, 0
        if left is not None and left.state == ALLOCATED:
            found, distance = left, address - left.address - left.size
        nearer = right is not None and right.state == ALLOCATED and (not found or distance > right.address - address)
        return right if nearer else found

    # -- reports -------------------------------------------------------------------------------------------

    def _report(self, title: str, detail: str, meta: Guarded | None) -> None:
        """``kfence_report_error``."""
        frames = [self._symbolize(frame) for frame in self._depot.frames(self._context.site)]
        say = self._say
        say(RULE)
        say(f"BUG: KFENCE: {title} in {frames[0] if frames else '0x0'}")
        say("")
        say(detail)
        for frame in frames:
            say(f" {frame}")
        if meta is not None:
            say("")
            for line in self.describe(meta):
                say(line)
        say("")
        say(self._dump_stack.who)
        say(RULE)
        self._dump_stack.check_panic_on_warn("KFENCE")
        self._dump_stack.taint.add(TAINT_BAD_PAGE)

    def _say(self, text: str) -> None:
        self._printk.log(KERN_ERR, text)

    def describe(self, meta: Guarded) -> Iterator[str]:
        """An object as reports and debugfs show it (``kfence_print_object``)."""
        if meta.state == UNUSED:
            yield f"kfence-#{meta.number} unused"
            return
        span = f"0x{self._p(meta.address)}-0x{self._p(meta.address + meta.size - 1)}"
        name = meta.cache.name if meta.cache is not None else "<destroyed>"
        yield f"kfence-#{meta.number}: {span}, size={meta.size}, cache={name}"
        yield ""
        yield from self._history("allocated", meta.allocated)
        if meta.state == FREED:
            yield ""
            yield from self._history("freed", meta.freed)

    def _history(self, what: str, track: KfenceTrack | None) -> Iterator[str]:
        assert track is not None
        seconds, rest = divmod(track.when_ns, NSEC_PER_SEC)
        yield f"{what} by task {track.pid} on cpu {track.cpu} at {seconds}.{rest // 1000:06d}s:"
        for frame in self._depot.frames(track.stack):
            yield f" {self._symbolize(frame)}"

    def check(self) -> None:
        """Recompute the counters from the objects. AssertionError on a difference."""
        in_use = sum(meta.state == ALLOCATED for meta in self.objects)
        assert self.counters[IN_USE] == in_use + self.counters[ZOMBIES], "kfence: objects in use"
        assert self.counters[ALLOCS] == self.counters[FREES] + self.counters[ZOMBIES] + in_use, "kfence: allocations"
        assert len(self._free) == len(self.objects) - in_use - self.counters[ZOMBIES], "kfence: free objects"


def canary(address: int) -> int:
    """The byte that stands at an address around an object (KFENCE_CANARY_PATTERN)."""
    return 0xAA ^ address & 7
