"""One comparison of the model with a captured fact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What was compared and how it went.

    ``kind`` is the class of the capture: "exact", "format" or "shape". ``detail`` says what differed, the
    captured value first; ``absent`` names a path that the model does not have, which is not a failure of a rule.
    """

    name: str
    passed: bool
    detail: str = ""
    kind: str = "exact"
    absent: bool = False


def guarded(name: str, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, and a failing one where a capture cannot be compared to its end: others must not suffer from it."""
    try:
        yield from cases
    except Exception as error:
        yield Case(name, False, f"cannot be compared: {type(error).__name__}: {error}")
