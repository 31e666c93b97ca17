"""Repetition: ``n=`` in chunks that do not depend on the wall clock, and freeing items of a handle.

A chunk is work for the compiled core; between chunks timers run and, now and then, other readers. There is no
Linux counterpart.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmemd.control.words import Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Handles

CHUNK = 1024
"""Operations per chunk: at most 3 ms with page_owner and kmemleak on."""


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
    """``n`` items in chunks. The machine can hold no more than ``most``; ``reason`` says that it is full."""

    n: int
    most: int
    reason: str
    chunk: int = CHUNK


def gather(batch: Batch, dtype: type[np.generic], allocate: Callable[[int], Any]) -> Generator[None, None, Gathered]:
    """Call ``allocate(count)`` until there are ``batch.n`` items.

    It returns fewer, or raises ENOMEM, when memory ran out.
    """
    found = np.empty(min(batch.n, batch.most), dtype=dtype)  # untouched memory costs nothing
    got = 0
    for size in chunks(batch.n, batch.chunk):
        try:
            items = allocate(size)
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            return Gathered(found[:got], error)
        found[got : got + len(items)] = items
        got += len(items)
        if len(items) < size:
            return Gathered(found[:got], KernelError(errno.ENOMEM, batch.reason))
        yield
    return Gathered(found[:got], None)


def release(
    handles: Handles,
    what: Reference,
    positions: range,
    free: Callable[[NDArray[np.int64]], None],
    chunk_size: int = CHUNK,
) -> Generator[None, None, int]:
    """Free items of a handle, ``free(positions)`` for each chunk; the handle lets go of them.

    A handle without items is gone. Returns how many were freed. An item that the kernel refuses does not keep it from
    freeing the others: the first error is raised at the end.
    """
    handle = what.handle
    assert handle is not None
    done, refused = 0, None
    everything = len(positions) == len(handle)
    try:
        for size in chunks(len(positions), chunk_size):
            part = positions[done : done + size]
            chunk = np.arange(part.start, part.stop, part.step, dtype=np.int64)
            try:
                free(chunk)
            except KernelError as error:
                refused = refused or error
            handle.clear(chunk)
            done += size
            yield
    finally:
        handle.compact(everything and done == len(positions))
        if len(handle) == 0 and what.name in handles:
            handles.forget(what.name)
    if refused is not None:
        raise refused
    return done
