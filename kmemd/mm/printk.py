"""The kernel log (kernel/printk/printk.c): records with level, sequence number and model time.

``next_seq`` counts all records ever made; ``syslog_seq`` is where the readers of /proc/kmsg, who share one
position, go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from kmemd.core.context import Context

KERN_EMERG, KERN_ALERT, KERN_CRIT, KERN_ERR, KERN_WARNING, KERN_NOTICE, KERN_INFO, KERN_DEBUG = range(8)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log. ``ts_ns`` is model time since boot; ``facility`` 0 is the kernel, 1 a user."""

    seq: int
    level: int
    ts_ns: int
    text: str
    facility: int = 0


class Printk:
    """A bounded ring of records; the oldest are overwritten, as with CONFIG_LOG_BUF_SHIFT."""

    CAPACITY = 16384
    """Records."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._records: deque[Record] = deque(maxlen=self.CAPACITY)
        self.next_seq = 0
        self.syslog_seq = 0
        self._once: set[str] = set()

    def log(self, level: int, text: str) -> None:
        """Append ``text``, one record per line."""
        for line in text.splitlines() or [""]:
            self.emit(level, line)

    def log_all(self, lines: Iterable[tuple[int, str]]) -> None:
        """Append lines, each with its level."""
        for level, line in lines:
            self.emit(level, line)

    def emit(self, level: int, text: str, facility: int = 0) -> None:
        """Append one record, whatever ``text`` holds (``devkmsg_emit``)."""
        self._records.append(Record(self.next_seq, level, self._context.now, text, facility))
        self.next_seq += 1

    def once(self, place: str) -> bool:
        """Whether a place that speaks a single time has not spoken yet (``DO_ONCE_LITE``)."""
        first = place not in self._once
        self._once.add(place)
        return first

    def clear_once(self) -> None:
        """All of them may speak again (``clear_warn_once_set``)."""
        self._once.clear()

    @property
    def first_seq(self) -> int:
        """Sequence number of the oldest record still kept."""
        return self.next_seq - len(self._records)

    def since(self, seq: int) -> list[Record]:
        """The records from sequence number ``seq`` on."""
        return list(islice(self._records, max(seq - self.first_seq, 0), None))

    def find(self, seq: int) -> Record | None:
        """The record with sequence number ``seq``; None when it was overwritten, or is not made yet."""
        if not self.first_seq <= seq < self.next_seq:
            return None
        return self._records[seq - self.first_seq]
