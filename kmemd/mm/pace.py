"""How much of a long piece of work to do at once, so that others get in: decided by the model, never by the wall clock.

There is no Linux counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmemd.core.pages import lazy_zeros
from kmemd.steps import Steps

FEW = 16
"""A piece that would go through the slow path is so many times smaller."""


class Pace:
    """How many blocks to ask the page allocator for at once: ``most``, and few while its fast path gives none.

    ``slow_paths()`` counts how often the allocator went into its slow path, each time for one block.
    """

    def __init__(self, slow_paths: Callable[[], int], most: int) -> None:
        self._slow_paths = slow_paths
        self._most = self._size = max(most, 1)
        self._seen = slow_paths()
        self._asked = 0

    def next(self, left: int) -> int:
        """How many of ``left`` blocks to take next."""
        slow = self._slow_paths() - self._seen
        self._seen += slow
        if slow > self._asked // FEW:
            self._size = max(self._most // FEW, 1)
        elif not slow:
            self._size = min(2 * self._size, self._most)
        self._asked = min(left, self._size)
        return self._asked


def pieces(items: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Views of ``items``, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def squeeze(items: NDArray[Any], gone: int, size: int) -> Steps[NDArray[Any]]:
    """``items`` without those that are ``gone``, moved together in place, ``size`` at a time.

    Between two pieces the items are in order, with none of them there twice.
    """
    kept = 0
    for start in range(0, len(items), size):
        part = items[start : start + size]
        left = part[part != gone]
        part[:] = gone
        items[kept : kept + len(left)] = left
        kept += len(left)
        if start + size < len(items):
            yield
    return items[:kept]


def room(count: int, dtype: type[np.generic]) -> NDArray[Any]:
    """An array for ``count`` items whose memory appears as it is written, small page by small page."""
    return lazy_zeros(count, np.dtype(dtype).name)
