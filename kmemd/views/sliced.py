"""Text that takes long to make, for views that others should not have to wait for. There is no Linux counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sliced:
    """Text that takes long to make: after each part others may read, while the model stands still."""

    parts: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self.parts
