"""SLUB's checks of objects and slabs: ``check_object``, ``check_slab``, ``on_freelist``, ``alloc_debug_processing``,
``free_debug_processing``, ``validate_slab`` (mm/slub.c).

Checks can only find what code wrote where it should not have. So they run for slabs in which that happened
(``SlabBytes.suspects``), and allocations of other slabs go on in bulk. A slab that failed a check on allocation is
taken out of use: all its objects count as used, for good. Left out: checks of struct page, which nothing in the model
can overwrite.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kmemd.core.slab import SlabCore
from kmemd.core.slab_layout import FREE_OBJECT, NODE_COLUMNS, NR_PARTIAL, NR_SLABS, OBJECT
from kmemd.core.slab_lists import SlabLists
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slub_bytes import (
    POISON_END,
    POISON_FREE,
    POISON_INUSE,
    RED_ACTIVE,
    RED_INACTIVE,
    SlabBytes,
    metadata_end,
)
from kmemd.mm.slub_report import SlubReports
from kmemd.mm.units import PAGE_SIZE

Frames = tuple[str, ...]
ALLOC = ("alloc_debug_processing", "get_partial_node", "___slab_alloc")
FREE = ("free_to_partial_list", "__slab_free")
VALIDATE = ("validate_slab_cache", "validate_store", "slab_attr_store")


class SlubDebugging:
    """The checks of one kernel's caches. ``disabled`` are the slabs, by number, that were taken out of use."""

    def __init__(
        self,
        core: SlabCore,
        lists: SlabLists,
        stored: SlabBytes,
        reports: SlubReports,
        word: int,
        *,
        init_on_free: bool = False,
    ) -> None:
        self._core = core
        self._lists = lists
        self._bytes = stored
        self._reports = reports
        self._word = word
        self._init_on_free = init_on_free
        self.disabled: set[int] = set()

    def suspects(self, cache: KmemCache) -> bool:
        """Whether a check of some slab of a cache may find something."""
        return any(self._lists.cache(slab) == cache.index for slab in self._bytes.suspects)

    # -- allocation ----------------------------------------------------------------------------------------

    def before_alloc(self, cache: KmemCache, cpu: int, node: int, zone: int, frames: Frames) -> None:
        """Check the object that comes next; slabs that fail are taken out of use (``alloc_debug_processing``)."""
        while cache.flags & sf.SLAB_CONSISTENCY_CHECKS:
            slab = self._core.next_debug(cache.index, cpu, node, zone)
            if slab not in self._bytes.suspects:
                return
            address = self._lists.address(slab, self._lists.freelist(slab)[0])
            stack = (*ALLOC, *frames)
            self._reports.taking = slab
            good = self._check_slab(cache, slab, stack) and self._check_object(cache, slab, address, True, stack)
            self._reports.taking = 0
            if good:
                return
            self._reports.fix(cache, "Marking all objects used")
            self._core.cut(slab, [])
            self.disabled.add(slab)

    # -- freeing -------------------------------------------------------------------------------------------

    def before_free(self, address: int, index: int, frames: Frames) -> KernelError | None:
        """Look at an address before it is freed, and note what the allocator writes there; the reason not to free it.

        ``index`` is the cache it is freed to, -1 for any; what is no object of it is left to others to refuse.
        """
        kind, slab, _ = self._lists.locate(address)
        cache = self._bytes.cache_of(slab) if slab else None
        if cache is None or (index >= 0 and cache.index != index) or kind not in (OBJECT, FREE_OBJECT):
            return None
        if not self._may_be_freed(cache, slab, address, kind == OBJECT, (*FREE, *frames)):
            self._reports.fix(cache, f"Object at {self._reports.pointer(address)} not freed")
            return KernelError(errno.EINVAL, f"{address:#x} of {cache.name} failed the checks of slub_debug=F")
        if kind != OBJECT:
            return None
        if cache.flags & sf.SLAB_TRACE:
            self._reports.trace(cache, slab, address, "free", (*FREE, *frames))
        self._write_free(cache, slab, address)
        if self._is_last(cache, slab):
            self.before_discard(cache, slab, address, frames)
        return None

    def _write_free(self, cache: KmemCache, slab: int, address: int) -> None:
        """What the allocator writes into an object that comes back."""
        wipe = self._init_on_free and not cache.ctor and not cache.flags & (sf.SLAB_TYPESAFE_BY_RCU | sf.SLAB_POISON)
        self._bytes.initialise(cache, slab, address, zero=wipe)
        self._bytes.set_free_pointer(cache, slab, address)

    def objects_freed(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Objects come back of slabs in which nothing was written but objects in use."""
        slabs = self._lists.slabs_of(addresses).tolist()
        for address, slab in zip(addresses.tolist(), slabs, strict=True):
            if self._bytes.written(slab) and self._lists.locate(address)[0] == OBJECT:
                self._write_free(self._bytes.cache_of(slab), slab, address)

    def _may_be_freed(self, cache: KmemCache, slab: int, address: int, used: bool, frames: Frames) -> bool:
        """The checks of a slab and of an object in use (``free_debug_processing``)."""
        if not cache.flags & sf.SLAB_CONSISTENCY_CHECKS or slab not in self._bytes.suspects:
            return True
        if not self._check_slab(cache, slab, frames):
            return False
        self._on_freelist(cache, slab, frames)
        return not used or self._check_object(cache, slab, address, False, frames)

    def check_empty(self, cache: KmemCache, frames: Frames) -> None:
        """Look at the slabs of a cache that hold nothing: their pages go back soon."""
        for slab in [slab for slab in self._bytes.suspects if self._lists.cache(slab) == cache.index]:
            if not self._lists.inuse(slab):
                self.before_discard(cache, slab, 0, frames)

    def before_discard(self, cache: KmemCache, slab: int, given_back: int, frames: Frames) -> None:
        """Check the free objects of a slab whose pages go back (``__free_slab``)."""
        if not cache.flags & sf.SLAB_CONSISTENCY_CHECKS or slab not in self._bytes.suspects:
            return
        stack = ("__free_slab", *frames)
        self._pad_check(cache, slab, stack)
        for index in range(self._lists.objects(slab)):
            address = self._lists.address(slab, index)
            if address != given_back:
                self._check_object(cache, slab, address, True, stack)

    def _is_last(self, cache: KmemCache, slab: int) -> bool:
        """Whether the slab's pages go back with the next object that is freed."""
        node = (cache.index * self._core.nnodes + self._lists.nid(slab)) * NODE_COLUMNS
        partial = int(self._core.arrays["node"][node + NR_PARTIAL])
        return self._lists.inuse(slab) == 1 and partial >= cache.min_partial

    # -- validate ------------------------------------------------------------------------------------------

    def validate(self, cache: KmemCache, nid: int) -> int:
        """Check a node's slabs that are on lists (``validate_slab_node``); how many."""
        slabs = self._lists.partial(cache.index, nid)
        if cache.flags & sf.SLAB_STORE_USER:
            slabs += self._lists.full(cache.index, nid)
        for slab in slabs:
            if slab in self._bytes.suspects:
                self._validate_slab(cache, slab)
        counter = int(self._core.arrays["node"][(cache.index * self._core.nnodes + nid) * NODE_COLUMNS + NR_SLABS])
        if cache.flags & sf.SLAB_STORE_USER and len(slabs) != counter:
            self._reports.say(f"SLUB: {cache.name} {len(slabs)} slabs counted but counter={counter}")
        return len(slabs)

    def _validate_slab(self, cache: KmemCache, slab: int) -> None:
        if not self._check_slab(cache, slab, VALIDATE) or not self._on_freelist(cache, slab, VALIDATE):
            return
        free = set(self._lists.freelist(slab))
        for index in range(self._lists.objects(slab)):
            if not self._check_object(cache, slab, self._lists.address(slab, index), index in free, VALIDATE):
                break

    # -- the checks ----------------------------------------------------------------------------------------

    def _check_slab(self, cache: KmemCache, slab: int, frames: Frames) -> bool:
        if slab in self.disabled:
            text = "Slab disabled since SLUB metadata consistency check failed"
            self._reports.slab_err(cache, slab, text, ("slab_err", "check_slab", *frames))
            return False
        self._pad_check(cache, slab, ("check_slab", *frames))
        return True

    def _pad_check(self, cache: KmemCache, slab: int, frames: Frames) -> None:
        """The bytes behind a slab's last object (``slab_pad_check``)."""
        used = self._lists.objects(slab) * cache.size
        rest = (PAGE_SIZE << self._lists.order(slab)) - used
        if not rest or not cache.flags & sf.SLAB_POISON:
            return
        pad = self._lists.base(slab) + used
        data = self._bytes.read(slab, pad, rest)
        bad = differing(data, POISON_INUSE)
        if bad is None:
            return
        first, end = pad + bad[0], pad + bad[1]
        span = f"{self._reports.pointer(first)}-{self._reports.pointer(end - 1)}"
        text = f"Padding overwritten. {span} @offset={first - self._lists.base(slab)}"
        self._reports.slab_err(cache, slab, text, ("slab_err", "slab_pad_check", *frames))
        self._reports.dump("Padding ", pad, data)
        self._restore(cache, slab, "slab padding", POISON_INUSE, first, end)

    def _check_object(self, cache: KmemCache, slab: int, address: int, free: bool, frames: Frames) -> bool:
        stack = ("check_object", *frames)
        for what, start, value, size, stops in self._parts(cache, address, free):
            good = self._check_bytes(cache, slab, address, what, start, value, size, stack)
            if not good and stops:
                return False
        if cache.geometry.offset < cache.inuse and not free:
            return True
        if self._valid(cache, slab, self._bytes.free_pointer(cache, slab, address)):
            return True
        self._reports.object_err(cache, slab, address, "Freepointer corrupt", stack)
        self._bytes.set_free_pointer(cache, slab, address)
        return False

    def _parts(self, cache: KmemCache, address: int, free: bool) -> Iterable[tuple[str, int, int, int, bool]]:
        """``(name, address, expected byte, bytes, whether a difference ends the check)``."""
        flags, size, pad = cache.flags, cache.object_size, cache.geometry.red_left_pad
        red = RED_INACTIVE if free else RED_ACTIVE
        if flags & sf.SLAB_RED_ZONE:
            yield "Left Redzone", address - pad, red, pad, True
            yield "Right Redzone", address + size, red, cache.inuse - size, True
        elif flags & sf.SLAB_POISON and size < cache.inuse:
            yield "Alignment padding", address + size, POISON_INUSE, cache.inuse - size, False
        if flags & sf.OBJECT_POISON and free:
            yield "Poison", address, POISON_FREE, size - 1, True
            yield "End Poison", address + size - 1, POISON_END, 1, True
        end = metadata_end(cache, self._word)
        if flags & sf.SLAB_POISON and end < cache.size - pad:
            yield "Object padding", address + end, POISON_INUSE, cache.size - pad - end, False

    def _check_bytes(
        self,
        cache: KmemCache,
        slab: int,
        address: int,
        what: str,
        start: int,
        value: int,
        size: int,
        frames: Frames,
    ) -> bool:
        """``check_bytes_and_report``: whether a range holds one byte throughout; it does afterwards."""
        data = self._bytes.read(slab, start, size)
        bad = differing(data, value)
        if bad is None:
            return True
        first, end = start + bad[0], start + bad[1]
        span = f"{self._reports.pointer(first)}-{self._reports.pointer(end - 1)}"
        offset = first - self._lists.base(slab)
        detail = f"{span} @offset={offset}. First byte {data[bad[0]]:#x} instead of {value:#x}"
        stack = ("print_trailer", "check_bytes_and_report", *frames)
        self._reports.object_report(cache, slab, address, f"{what} overwritten", stack, detail)
        self._restore(cache, slab, what, value, first, end)
        return False

    def _restore(self, cache: KmemCache, slab: int, what: str, value: int, first: int, end: int) -> None:
        """``restore_bytes``."""
        span = f"{self._reports.pointer(first)}-{self._reports.pointer(end - 1)}"
        self._reports.fix(cache, f"Restoring {what} {span}={value:#x}")
        self._bytes.restore(slab, first, bytes([value]) * (end - first))

    def _valid(self, cache: KmemCache, slab: int, pointer: int) -> bool:
        """``check_valid_pointer``: NULL, or the start of an object of the slab."""
        offset = pointer - self._lists.base(slab) - cache.geometry.red_left_pad
        return not pointer or (0 <= offset < self._lists.objects(slab) * cache.size and not offset % cache.size)

    def _on_freelist(self, cache: KmemCache, slab: int, frames: Frames) -> bool:
        """Follow the free pointers of a slab; those behind a bad one are lost (``on_freelist``)."""
        chain = self._lists.freelist(slab)
        stack = ("on_freelist", *frames)
        for at, index in enumerate(chain):
            address = self._lists.address(slab, index)
            found = self._bytes.free_pointer(cache, slab, address)
            expected = self._lists.address(slab, chain[at + 1]) if at + 1 < len(chain) else 0
            if found == expected:
                continue
            kept = chain[: at + 1]
            if not self._valid(cache, slab, found):
                self._reports.object_err(cache, slab, address, "Freechain corrupt", stack)
            self._lose(cache, slab, kept, stack)
            self._bytes.set_free_pointer(cache, slab, address)
            break
        return True

    def _lose(self, cache: KmemCache, slab: int, kept: list[int], frames: Frames) -> None:
        """The free objects behind a bad pointer are nobody's any more."""
        counted, counter = self._lists.objects(slab) - len(kept), self._lists.inuse(slab)
        if counted != counter:
            text = f"Wrong object count. Counter is {counter} but counted were {counted}"
            self._reports.slab_err(cache, slab, text, ("slab_err", *frames))
            self._core.cut(slab, kept)
            self._reports.fix(cache, "Object count adjusted")


def differing(data: bytes, value: int) -> tuple[int, int] | None:
    """From the first byte that is not ``value`` to behind the last one; None where all are."""
    left = len(data) - len(data.lstrip(bytes([value])))
    return (left, len(data.rstrip(bytes([value])))) if left < len(data) else None
