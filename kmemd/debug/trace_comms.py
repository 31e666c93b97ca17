"""Names of the tasks in the buffers (``saved_cmdlines``, kernel/trace/trace.c)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.core.context import Context

DEFAULT_SIZE = 128


class SavedComms:
    """The names of the last ``size`` tasks that had an event; a task that is not among them reads ``<...>``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.size = DEFAULT_SIZE
        self._comms: dict[int, str] = {}
        self._tgids: dict[int, int] = {}

    def learn(self, seen: dict[int, int]) -> None:
        """Take the tasks of new records: pid and number of the name."""
        for pid, comm in seen.items():
            self.save(pid, self._context.comms[comm])
        seen.clear()

    def save(self, pid: int, comm: str) -> None:
        """Keep a task's name (``trace_save_cmdline``)."""
        if pid == 0:
            return
        self._comms.pop(pid, None)
        self._comms[pid] = comm
        while len(self._comms) > self.size:
            del self._comms[next(iter(self._comms))]

    def save_tgid(self, pid: int, tgid: int) -> None:
        """Keep a thread's process."""
        self._tgids[pid] = tgid

    def find(self, pid: int) -> str:
        """A task's name."""
        if pid == 0:
            return "<idle>"
        return self._comms.get(pid, "<...>") if pid > 0 else "<XXX>"

    def tgid(self, pid: int) -> int:
        """A thread's process, 0 when it is not known."""
        return self._tgids.get(pid, 0)

    def resize(self, size: int) -> None:
        """Keep so many names."""
        self.size = size
        while len(self._comms) > size:
            del self._comms[next(iter(self._comms))]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._comms.items())

    def tgids(self) -> Iterator[tuple[int, int]]:
        """Threads and their processes."""
        return iter(self._tgids.items())
