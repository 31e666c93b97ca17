"""Repetition: ``n=`` in chunks that do not depend on the wall clock, and freeing items of a handle.

A chunk is work for the compiled core, of two or three milliseconds at most: smaller when items are large, when they
are watched, or when memory is short. Between chunks timers run and, now and then, other readers. There is no
Linux counterpart.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmemd.control.words import Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Handles
from kmemd.mm.pace import Pace, room
from kmemd.steps import Steps

CHUNK = 512
"""Operations per chunk, of up to 8 us each."""


def chunks(n: int, size: int = CHUNK) -> Iterator[int]:
    """The sizes of the chunks that make up ``n``."""
    for start in range(0, n, size):
        yield min(size, n - start)


@dataclass
class Gathered:
    """What a repeated allocation got. ``short`` is why it is less than was asked for."""

    items: NDArray[Any]
    short: KernelError | None

    def partial(self, n: int) -> str:
        """How much of ``n`` was got, nothing when all. The error itself when nothing was got."""
        if self.short is None:
            return ""
        if len(self.items) == 0:
            raise self.short
        return f"{self.short.reason}; got {len(self.items)} of {n}"


@dataclass(frozen=True)
class Batch:
    """``n`` items in chunks. The machine can hold no more than ``most``; ``reason`` says that it is full.

    ``slow_paths()`` counts how often the page allocator could not simply take a block; ``again()`` says whether the
    last call of ``allocate`` got less because reclaim takes longer than a slice.
    """

    n: int
    most: int
    reason: str
    chunk: int = CHUNK
    slow_paths: Callable[[], int] = field(default=lambda: 0)
    again: Callable[[], bool] = field(default=lambda: False)


def gather(batch: Batch, dtype: type[np.generic], allocate: Callable[[int], Any]) -> Steps[Gathered]:
    """Call ``allocate(count)`` until there are ``batch.n`` items.

    It returns fewer, or raises ENOMEM, when memory ran out. It may be a generator of slices.
    """
    found = room(min(batch.n, batch.most), dtype)
    pace = Pace(batch.slow_paths, batch.chunk)
    got = 0
    while got < batch.n:
        size = pace.next(batch.n - got)
        try:
            items = allocate(size)
            if inspect.isgenerator(items):
                items = yield from items
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            return Gathered(found[:got], error)
        found[got : got + len(items)] = items
        got += len(items)
        if len(items) < size and not batch.again():
            return Gathered(found[:got], KernelError(errno.ENOMEM, batch.reason))
        yield
    return Gathered(found[:got], None)


def release(
    handles: Handles,
    what: Reference,
    positions: range,
    free: Callable[[NDArray[np.int64]], Any],
    chunk_size: int = CHUNK,
) -> Steps[int]:
    """Free items of a handle, ``free(positions)`` for each chunk, which may be a generator of slices; the handle
    lets go of them.

    A handle without items is gone. Returns how many were freed. An item that the kernel refuses does not keep it from
    freeing the others: the first error is raised at the end.
    """
    handle = what.handle
    assert handle is not None
    done, refused, compact = 0, None, False
    everything = len(positions) == len(handle)
    try:
        for size in chunks(len(positions), chunk_size):
            part = positions[done : done + size]
            chunk = np.arange(part.start, part.stop, part.step, dtype=np.int64)
            try:
                steps = free(chunk)
                if inspect.isgenerator(steps):
                    yield from steps
            except KernelError as error:
                refused = refused or error
            handle.clear(chunk)
            done += size
            yield
        if not everything:
            yield from handle.compact_steps()
            compact = True
    finally:
        if not compact:
            handle.compact(everything and done == len(positions))
        if len(handle) == 0 and what.name in handles:
            handles.forget(what.name)
    if refused is not None:
        raise refused
    return done
