"""The error log of a trace array: what was wrong with a command, with a caret below the place (``tracing_log_err``)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MOST = 8


@dataclass(frozen=True)
class TraceError:
    """One refused command: ``where`` is "event filter parse error" or "hist:kmem:kfree", ``column`` counts from 0."""

    ns: int
    where: str
    message: str
    command: str
    column: int

    def text(self) -> str:
        """Its entry in ``error_log``."""
        seconds, rest = divmod(self.ns, 1_000_000_000)
        head = f"[{seconds:5d}.{rest // 1000:06d}] {self.where}: error: {self.message}\n"
        return f"{head}  Command: {self.command}\n" + " " * (len("  Command: ") + self.column) + "^\n"


class ErrorLog:
    """The last errors."""

    def __init__(self) -> None:
        self._errors: deque[TraceError] = deque(maxlen=MOST)

    def add(self, error: TraceError) -> None:
        """Keep an error; the oldest goes when there are too many."""
        self._errors.append(error)

    def clear(self) -> None:
        """Forget all."""
        self._errors.clear()

    def text(self) -> str:
        """The file."""
        return "".join(error.text() for error in self._errors)
