"""Work in slices: a generator that yields where others may run."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Each ``yield`` is a point where others may run; the value is what the work gives."""


def finish(steps: Steps[T]) -> T:
    """Run sliced work to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: T = stop.value
            return found
