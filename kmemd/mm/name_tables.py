"""Tables of millions of names: dictionaries in parts, so that none grows for long (fs/dcache.c has a hash table).

A Python dictionary is copied when it grows: 100 ms at a million entries, in the midst of a slice. The parts here have
thousands of entries, and grow at different times. Where an entry is depends on its name alone, so that two runs of the
model have the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar
from zlib import crc32

PARTS = 256
CHUNK = 1 << 12
"""Entries that a part of a queue gets."""

Value = TypeVar("Value")
Item = TypeVar("Item", bound=Hashable)


class NameTable(Generic[Value]):
    """What belongs to names. Invariants: a name is in the part that its checksum says."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Value]] = [{} for _ in range(PARTS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        return name in self._parts[crc32(name.encode()) % PARTS]

    def __getitem__(self, name: str) -> Value:
        return self._parts[crc32(name.encode()) % PARTS][name]

    def __setitem__(self, name: str, value: Value) -> None:
        part = self._parts[crc32(name.encode()) % PARTS]
        before = len(part)
        part[name] = value
        self._count += len(part) - before

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part

    def get(self, name: str) -> Value | None:
        """What belongs to a name, None for nothing."""
        return self._parts[crc32(name.encode()) % PARTS].get(name)

    def pop(self, name: str) -> Value | None:
        """Take a name out. What belonged to it, None for nothing."""
        value = self._parts[crc32(name.encode()) % PARTS].pop(name, None)
        self._count -= value is not None
        return value

    def popitem(self) -> tuple[str, Value]:
        """Take any name out. KeyError when there is none."""
        for part in self._parts:
            if part:
                self._count -= 1
                return part.popitem()
        raise KeyError

    def values(self) -> Iterator[Value]:
        """What belongs to all names."""
        for part in self._parts:
            yield from part.values()

    def items(self) -> Iterator[tuple[str, Value]]:
        """All names with what belongs to them."""
        for part in self._parts:
            yield from part.items()


class Queue(Generic[Item]):
    """Different things in the order in which they came.

    Invariants: ``_where`` has the number of each one's chunk; chunks are in the order of their numbers, and none is
    empty.
    """

    def __init__(self) -> None:
        self._where: list[dict[Item, int]] = [{} for _ in range(PARTS)]
        self._chunks: OrderedDict[int, OrderedDict[Item, None]] = OrderedDict()
        self._last = 0
        self._room = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item: Item) -> bool:
        return item in self._where[hash(item) % PARTS]

    def append(self, item: Item) -> None:
        """The last one from now on. Preconditions: it is not there."""
        if not self._room:
            self._last, self._room = self._last + 1, CHUNK
        self._room -= 1
        self._where[hash(item) % PARTS][item] = self._last
        self._chunks.setdefault(self._last, OrderedDict())[item] = None
        self._count += 1

    def remove(self, item: Item) -> bool:
        """Take one out; whether it was there."""
        number = self._where[hash(item) % PARTS].pop(item, None)
        if number is None:
            return False
        chunk = self._chunks[number]
        del chunk[item]
        if not chunk:
            del self._chunks[number]
        self._count -= 1
        return True

    def popleft(self) -> Item:
        """Take the first one out. KeyError when there is none."""
        number, chunk = next(iter(self._chunks.items()), (0, None))
        if chunk is None:
            raise KeyError
        item, _ = chunk.popitem(last=False)
        del self._where[hash(item) % PARTS][item]
        if not chunk:
            del self._chunks[number]
        self._count -= 1
        return item
