"""Bytes of slabs: what the allocator puts there, and what kernel code wrote over it (mm/slub.c ``init_object``).

A pointer is kept for caches that look at their bytes: those with consistency checks, red zones or poison; what memset
and its like write is kept everywhere. What the allocator writes follows from an object's state and is not kept; of what
code writes, lines of 64 bytes are, until the allocator writes there again. So memory grows with what was written alone.
The bytes of struct track are not modelled and read as zero, as does what nobody wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kmemd.core.slab_lists import SlabLists
from kmemd.mm import slab_flags as sf
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.units import PAGE_SIZE

POISON_FREE, POISON_END, POISON_INUSE = 0x6B, 0xA5, 0x5A
RED_INACTIVE, RED_ACTIVE = 0xBB, 0xCC
LOOKED_AT = sf.SLAB_CONSISTENCY_CHECKS | sf.SLAB_RED_ZONE | sf.SLAB_POISON
LINE = 64


class SparseBytes:
    """Bytes at offsets, in lines of 64, each followed by 64 bytes that say which are known."""

    def __init__(self) -> None:
        self._lines: dict[int, bytearray] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        return LINE * len(self._lines)

    @staticmethod
    def _parts(start: int, size: int) -> Iterable[tuple[int, int, int, int]]:
        """``(line, offset in it, bytes, offset from start)`` of a range."""
        at = start
        while at < start + size:
            line, offset = divmod(at, LINE)
            count = min(LINE - offset, start + size - at)
            yield line, offset, count, at - start
            at += count

    def write(self, start: int, data: bytes) -> None:
        """Keep bytes."""
        for line, offset, count, done in self._parts(start, len(data)):
            found = self._lines.get(line)
            if found is None:
                found = self._lines[line] = bytearray(2 * LINE)
            found[offset : offset + count] = data[done : done + count]
            found[LINE + offset : LINE + offset + count] = b"\1" * count

    def clear(self, start: int, size: int) -> None:
        """Forget a range: something else was written there."""
        if not self._lines:
            return
        for line, offset, count, _ in self._parts(start, size):
            found = self._lines.get(line)
            if found is not None:
                found[LINE + offset : LINE + offset + count] = bytes(count)
                if not any(found[LINE:]):
                    del self._lines[line]

    def known(self, start: int, size: int) -> bool:
        """Whether any byte of a range was written."""
        return any(
            any(self._lines[line][LINE + offset : LINE + offset + count])
            for line, offset, count, _ in self._parts(start, size)
            if line in self._lines
        )

    def overlay(self, start: int, data: bytearray) -> None:
        """Put what is known over ``data``, which begins at ``start``."""
        for line, offset, count, done in self._parts(start, len(data)):
            found = self._lines.get(line)
            if found is not None:
                for index in range(count):
                    if found[LINE + offset + index]:
                        data[done + index] = found[offset + index]


class SlabBytes:
    """The bytes of one machine's slabs.

    ``suspects`` are the slabs, by number, in which something was written that is not an object in use: their
    next checks may find it. ``secret(cache)`` is what free pointers are encoded with, 0 for nothing.
    """

    def __init__(
        self,
        lists: SlabLists,
        cache: Callable[[int], KmemCache],
        word: int,
        secret: Callable[[KmemCache], int],
    ) -> None:
        self._lists = lists
        self._cache = cache
        self._word = word
        self._secret = secret
        self._written: dict[int, SparseBytes] = {}
        self._bases: dict[int, int] = {}
        self._zeroed: set[int] = set()
        self.suspects: set[int] = set()

    # -- writing -------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether anything was written anywhere."""
        return bool(self._written)

    def __len__(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, self._written.values()))

    def write(self, slab: int, address: int, data: bytes, *, keep: bool = True) -> None:
        """Code writes into a slab, not beyond it. ``keep``: also where no check looks at the bytes."""
        cache = self.cache_of(slab)
        if not cache.flags & LOOKED_AT and not keep:
            return
        start = address - self._lists.base(slab)
        if slab not in self._written:
            self._written[slab] = SparseBytes()
            self._bases[address - start] = slab
        self._written[slab].write(start, data)
        if cache.flags & LOOKED_AT and not self._in_object(cache, slab, start, len(data)):
            self.suspects.add(slab)

    def _in_object(self, cache: KmemCache, slab: int, start: int, size: int) -> bool:
        """Whether a range is in one object that is in use."""
        index, offset = divmod(start - cache.geometry.red_left_pad, cache.size)
        inside = 0 <= index < self._lists.objects(slab) and offset + size <= cache.object_size
        return inside and bool(self._lists.used_bits(slab) >> index & 1)

    def initialise(self, cache: KmemCache, slab: int, address: int, *, zero: bool = False) -> None:
        """The allocator writes an object that it gives or takes back (``init_object``, ``slab_post_alloc_hook``)."""
        if zero and cache.flags & sf.OBJECT_POISON:
            self._zeroed.add(address)
        else:
            self._zeroed.discard(address)
        found = self._written.get(slab)
        if found is None:
            return
        start = address - self._lists.base(slab)
        if cache.flags & sf.SLAB_RED_ZONE:
            pad = cache.geometry.red_left_pad
            found.clear(start - pad, pad)
            found.clear(start + cache.object_size, cache.inuse - cache.object_size)
        if zero or cache.flags & sf.OBJECT_POISON:
            found.clear(start, cache.object_size)

    def set_free_pointer(self, cache: KmemCache, slab: int, address: int) -> None:
        """The free pointer of an object was written (``set_freepointer``)."""
        found = self._written.get(slab)
        if found is not None:
            found.clear(address - self._lists.base(slab) + cache.geometry.offset, self._word)

    def restore(self, slab: int, start: int, data: bytes) -> None:
        """The allocator writes ``data`` at an address, where it once had it (``restore_bytes``)."""
        found = self._written.get(slab)
        if found is not None:
            found.clear(start - self._lists.base(slab), len(data))

    def forget(self, base: int) -> None:
        """The pages of the slab at an address went back."""
        slab = self._bases.pop(base, 0)
        self._written.pop(slab, None)
        self.suspects.discard(slab)

    def freed(self, objects: npt.NDArray[np.uint64]) -> None:
        """Objects hold poison again."""
        if self._zeroed:
            self._zeroed.difference_update(objects.tolist())

    def allocated(self, cache: KmemCache, objects: npt.NDArray[np.uint64], *, zero: bool) -> None:
        """The allocator writes objects that it gives, where the model keeps what stood there."""
        if self._written:
            for address in objects.tolist():
                self.initialise(cache, self._lists.slab_at(address), address, zero=zero)
        elif zero and cache.flags & sf.OBJECT_POISON:
            self._zeroed.update(objects.tolist())

    def written(self, slab: int) -> bool:
        """Whether anything was written in a slab."""
        return slab in self._written

    def concerns(self, addresses: npt.NDArray[np.uint64], *, suspects: bool = False) -> bool:
        """Whether anything was written in the slabs of some addresses; ``suspects``: outside of objects in use."""
        slabs = self.suspects if suspects else self._written
        return bool(slabs) and bool(np.isin(self._lists.slabs_of(addresses), list(slabs)).any())

    def cache_of(self, slab: int) -> KmemCache:
        """The cache of a slab."""
        return self._cache(self._lists.cache(slab))

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, slab: int, start: int, size: int) -> bytes:
        """Bytes from an address on."""
        base = self._lists.base(slab)
        cache = self.cache_of(slab)
        out = bytearray()
        at, end = start - base, start - base + size
        while at < end:
            index = at // cache.size
            if index < self._lists.objects(slab):
                image = self._image(cache, slab, index)
                begin = index * cache.size
            else:
                begin = self._lists.objects(slab) * cache.size
                fill = POISON_INUSE if cache.flags & sf.SLAB_POISON else 0
                image = bytes([fill]) * max((PAGE_SIZE << self._lists.order(slab)) - begin, end - begin)
            part = image[at - begin : end - begin]
            out += part
            at += len(part)
        if slab in self._written:
            self._written[slab].overlay(start - base, out)
        return bytes(out)

    def _image(self, cache: KmemCache, slab: int, index: int) -> bytes:
        """What the allocator wrote in one object's place, from its left red zone on."""
        flags, address = cache.flags, self._lists.address(slab, index)
        free = not self._lists.used_bits(slab) >> index & 1
        red = RED_INACTIVE if free else RED_ACTIVE
        poisoned = flags & sf.SLAB_POISON
        image = bytearray([POISON_INUSE if poisoned else 0]) * cache.size
        pad, size = cache.geometry.red_left_pad, cache.object_size
        if flags & sf.OBJECT_POISON:
            zeroed = address in self._zeroed and not free
            image[pad : pad + size] = bytes(size) if zeroed else bytes([POISON_FREE]) * (size - 1) + bytes([POISON_END])
        if flags & sf.SLAB_RED_ZONE:
            image[:pad] = bytes([red]) * pad
            image[pad + size : pad + cache.inuse] = bytes([red]) * (cache.inuse - size)
        outside = cache.geometry.offset >= cache.inuse
        if outside or free:
            at = pad + cache.geometry.offset
            image[at : at + self._word] = self._encode(cache, address, self._next(slab, index))
        if flags & sf.SLAB_STORE_USER:
            at = pad + cache.info_end(self._word)
            end = pad + metadata_end(cache, self._word)
            image[at:end] = bytes(end - at)
        return bytes(image)

    def _next(self, slab: int, index: int) -> int:
        """The address that an object's free pointer was last set to, 0 for NULL."""
        after = self._lists.next_of(slab, index)
        return self._lists.address(slab, after) if after < self._lists.objects(slab) else 0

    def _encode(self, cache: KmemCache, address: int, pointer: int) -> bytes:
        """A free pointer as it stands in memory (``freelist_ptr``)."""
        secret = self._secret(cache)
        if secret:
            place = (address + cache.geometry.offset).to_bytes(self._word, "little")
            pointer ^= secret & (1 << 8 * self._word) - 1 ^ int.from_bytes(place, "big")
        return pointer.to_bytes(self._word, "little")

    def free_pointer(self, cache: KmemCache, slab: int, address: int) -> int:
        """What an object's free pointer says, whatever was written over it (``get_freepointer``)."""
        raw = self.read(slab, address + cache.geometry.offset, self._word)
        place = self._encode(cache, address, 0) if self._secret(cache) else bytes(self._word)
        return int.from_bytes(raw, "little") ^ int.from_bytes(place, "little")


def metadata_end(cache: KmemCache, word: int) -> int:
    """Bytes from an object's start to the end of what debugging keeps behind it."""
    end = cache.info_end(word)
    if cache.flags & sf.SLAB_STORE_USER:
        end += 2 * (-(-(word + 12) // word) * word + word)
        if cache.flags & sf.SLAB_KMALLOC:
            end += 4
    return end
