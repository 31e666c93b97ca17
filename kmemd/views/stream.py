"""Files whose text is made while it is read: each open has a generator of its own, and a window on its text."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterator

from kmemd.errors import KernelError
from kmemd.steps import Steps

KEPT = 1 << 20


class StreamFile:
    """An open file over ``make()``, which gives the text from its start.

    The last ``KEPT`` bytes stay readable; a read before them, or at 0, starts anew, as seq_file does.
    ``write`` takes what is written, as text; it may be a generator that yields between slices.
    """

    def __init__(self, make: Callable[[], Iterator[str]], write: Callable[[str], object] | None = None) -> None:
        self._make = make
        self._store = write
        self._pieces: Iterator[str] | None = None
        self._window = bytearray()
        self._start = 0

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at ``offset``; fewer only at the end of the text."""
        if self._pieces is None or offset < self._start or offset == 0:
            self._pieces, self._start = self._make(), 0
            self._window.clear()
        while self._start + len(self._window) < offset + size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._window += piece.encode("utf-8", "surrogateescape")
            self._trim(offset)
        at = offset - self._start
        return bytes(self._window[at : at + size])

    def _trim(self, offset: int) -> None:
        """Drop what is far behind the reader."""
        drop = min(offset - KEPT - self._start, len(self._window))
        if drop > KEPT:
            del self._window[:drop]
            self._start += drop

    def write(self, data: bytes) -> Steps[int]:
        """Hand ``data`` to the file's store. EINVAL where there is none."""
        if self._store is None:
            raise KernelError(errno.EINVAL, "the file cannot be written")
        steps = self._store(data.decode("utf-8", "surrogateescape"))
        if inspect.isgenerator(steps):
            yield from steps
        return len(data)

    def close(self) -> None:
        """Nothing is kept."""
        self._pieces = None
        self._window.clear()
