"""What the command language keeps between lines: the lines that failed, and whose turn it is.

It belongs to a kernel, so that all who write to one model share it. No Linux counterpart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kmemd.errors import KernelError


@dataclass(frozen=True)
class FailedLine:
    """A command line that failed: when (model time, ns), what it said, and why."""

    ts_ns: int
    line: str
    error: KernelError


class CommandState:
    """The last failed lines, and the writers that wait.

    Invariants: ``_waiting[0]`` is the writer whose lines run; the others queue behind it.
    """

    FAILED_KEPT = 8

    def __init__(self) -> None:
        self._failed: deque[FailedLine] = deque(maxlen=self.FAILED_KEPT)
        self._waiting: deque[object] = deque()

    def failed(self, ts_ns: int, line: str, error: KernelError) -> None:
        """Keep a failed line; the oldest goes."""
        self._failed.append(FailedLine(ts_ns, line, error))

    def failures(self) -> list[FailedLine]:
        """The failed lines, oldest first."""
        return list(self._failed)

    @property
    def busy(self) -> bool:
        """Whether a line is under way."""
        return bool(self._waiting)

    def queue(self, writer: object) -> None:
        """Take a place behind the writers that are there."""
        self._waiting.append(writer)

    def may_run(self, writer: object) -> bool:
        """Whether it is this writer's turn."""
        return self._waiting[0] is writer

    def leave(self, writer: object) -> None:
        """Let the next writer in."""
        self._waiting.remove(writer)
