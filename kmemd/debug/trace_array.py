"""A trace array: a ring of its own, and which events go into it (``struct trace_array``, ``struct trace_event_file``).

The top array is ``/sys/kernel/tracing`` itself, others are directories in ``instances``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kmemd.core.trace import Ring
from kmemd.core.trace_pages import PAGE_DATA
from kmemd.debug.trace_errors import ErrorLog
from kmemd.debug.trace_filter import Filter
from kmemd.debug.trace_format import Event, Layout
from kmemd.debug.trace_ftrace import EVENTS as FTRACE_EVENTS
from kmemd.debug.trace_ftrace import PRINT
from kmemd.debug.trace_options import DEFAULT_OPTIONS, GRAPH_DEFAULTS
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace_hist import Histogram
    from kmemd.debug.trace_hist_actions import SnapshotNote
    from kmemd.debug.trace_trigger import Trigger

BUFFER_SIZE = 1441792
"""TRACE_BUF_SIZE_DEFAULT, in bytes per CPU, once the ring is expanded."""
MIN_PAGES = 2
CLOCKS_OF_OTHER_UNITS = ("counter", "uptime", "x86-tsc")
MARKER = next(event for event in FTRACE_EVENTS if event.id == PRINT)
"""What ``trace_marker`` makes: an event that triggers can be set on."""
CLOCKS = ("local", "global", "counter", "uptime", "perf", "mono", "mono_raw", "boot", "tai", "x86-tsc")


def pages_for(size: int) -> int:
    """Pages of a CPU's buffer of ``size`` bytes."""
    return max(-(-size // PAGE_DATA), MIN_PAGES)


@dataclass
class EventFile:
    """An event in one array: whether it is recorded, and what happens besides.

    ``conditional``: its triggers look at the record, so that they run when there is one.
    ``soft``: how many triggers keep the event on, of its own or of others; ``soft_disabled``: on for them alone.
    """

    event: Event
    layout: Layout
    number: int
    enabled: bool = False
    soft: int = 0
    soft_disabled: bool = False
    filter: Filter | None = None
    triggers: list[Trigger] = field(default_factory=list)
    conditional: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anything is to happen when the event does."""
        return self.enabled or self.soft > 0

    @property
    def recording(self) -> bool:
        """Whether its records are to be kept."""
        return self.wanted and not self.soft_disabled

    def update_conditional(self) -> None:
        """The triggers are others: say whether they look at the record (``update_cond_flag``)."""
        self.conditional = any(trigger.filter is not None or trigger.needs_record for trigger in self.triggers)

    @property
    def plain(self) -> bool:
        """Whether every record is kept, and nothing else happens."""
        return self.recording and not self.soft and self.filter is None and not self.triggers

    def enable(self, on: bool) -> None:
        """Record the event, or no longer; triggers may keep it on."""
        self.enabled = on
        self.soft_disabled = not on and self.soft > 0

    def hold(self) -> None:
        """A trigger needs the event (``trace_event_trigger_enable_disable``)."""
        self.soft_disabled = self.soft_disabled if self.wanted else True
        self.soft += 1

    def release(self) -> None:
        """A trigger no longer needs the event."""
        self.soft -= 1
        if self.soft == 0:
            self.enabled = self.enabled or not self.soft_disabled
            self.enabled, self.soft_disabled = self.enabled and not self.soft_disabled, False

    def state(self) -> str:
        """What its ``enable`` file reads."""
        return ("1" if self.recording else "0") + ("*" if self.soft else "")


class TraceArray:
    """One set of buffers. ``changed()`` is called when what is on has changed, or which ring is written to.

    ``tables`` are the layouts of records; ``spare`` is the snapshot's ring while there is one (``max_buffer``), and
    ``snapshot_note`` the histogram that alone may take snapshots then.
    """

    def __init__(
        self,
        name: str,
        cpus: int,
        files: Iterator[EventFile],
        changed: Callable[[], None],
        expanded: bool,
        tables: tuple[Any, Any],
        marker: Layout,
    ) -> None:
        self.name = name
        self.cpus = cpus
        self.expanded = expanded
        self._tables = tables
        self.ring = self._make_ring([pages_for(BUFFER_SIZE) if expanded else MIN_PAGES] * cpus)
        self.spare: Ring | None = None
        self.snapshot_note: SnapshotNote | None = None
        self.marker = EventFile(MARKER, marker, -1)
        self.files = {(file.event.system, file.event.name): file for file in files}
        self.options = set(DEFAULT_OPTIONS)
        self.clock = "global"
        self.tracer = "nop"
        self.cpumask = (1 << cpus) - 1
        self.errors = ErrorLog()
        self.pids: set[int] | None = None
        self.no_pids: set[int] | None = None
        self.start_ns = 0
        self.buffer_percent = 50
        self.references = 0
        self.count = 0
        self.system_filters: dict[str, str] = {}
        self.graph_options = set(GRAPH_DEFAULTS)
        self.functions: list[str] = []
        self.not_functions: list[str] = []
        self.graph_functions: list[str] = []
        self._changed = changed

    @property
    def is_top(self) -> bool:
        """Whether this is the one that every machine has."""
        return not self.name

    def systems(self) -> list[str]:
        """The systems that have events, in the order of their numbers."""
        return list(dict.fromkeys(system for system, _ in self.files))

    def of_system(self, system: str) -> list[EventFile]:
        """The events of a system."""
        return [file for (owner, _), file in self.files.items() if owner == system]

    def find(self, system: str, name: str) -> EventFile | None:
        """An event, or what ``trace_marker`` makes (``ftrace:print``); None for others."""
        if (system, name) == (MARKER.system, MARKER.name):
            return self.marker
        return self.files.get((system, name))

    def histograms(self) -> Iterator[Histogram]:
        """The histograms of all its events."""
        for file in (*self.files.values(), self.marker):
            for trigger in file.triggers:
                if trigger.histogram is not None:
                    yield trigger.histogram

    def file(self, system: str, name: str) -> EventFile:
        """An event. ENOENT."""
        found = self.files.get((system, name))
        if found is None:
            raise KernelError(errno.ENOENT, f"there is no event {system}:{name}")
        return found

    # -- switching ---------------------------------------------------------------------------------------

    def expand(self) -> None:
        """Give the ring its full size when it is used for the first time (``tracing_update_buffers``)."""
        if not self.expanded:
            self.expanded = True
            self.ring.resize([pages_for(BUFFER_SIZE)] * self.cpus)

    def enable(self, files: list[EventFile], on: bool) -> None:
        """Record these events, or no longer."""
        if on:
            self.expand()
        for file in files:
            file.enable(on)
        self._changed()

    def state_of(self, files: list[EventFile]) -> str:
        """What the ``enable`` file above these events reads: 0, 1, X for some, ? for none there."""
        states = {file.wanted for file in files}
        return "X" if len(states) == 2 else "1" if True in states else "0" if states else "?"

    def matching(self, match: str | None, system: str | None, name: str | None) -> list[EventFile]:
        """The events that a word of ``set_event`` names; ``match`` is a system or an event."""
        return [
            file
            for (of, called), file in self.files.items()
            if (match is None or match in (of, called))
            and (system is None or system == of)
            and (name is None or name == called)
        ]

    def set_event(self, word: str) -> None:
        """``system:event``, ``system:*``, ``event`` or ``*:*``; ``!`` is off. EINVAL (``ftrace_set_clr_event``)."""
        on = not word.startswith("!")
        first, colon, rest = word.lstrip("!").partition(":")
        pattern = [None if part in ("", "*") else part for part in (first, rest)]
        found = self.matching(None, *pattern) if colon else self.matching(None if first == "*" else first, None, None)
        if not found:
            raise KernelError(errno.EINVAL, f"there is no event {word}")
        self.enable(found, on)

    def enabled_events(self) -> list[EventFile]:
        """What is recorded."""
        return [file for file in self.files.values() if file.recording]

    def changed(self) -> None:
        """What is on has changed in some other way."""
        self._changed()

    @property
    def records_all(self) -> bool:
        """Whether nothing but the event decides what is kept."""
        whole = self.cpumask == (1 << self.cpus) - 1
        return whole and self.pids is None and self.no_pids is None and "stacktrace" not in self.options

    def takes(self, cpu: int, pid: int) -> bool:
        """Whether events of this CPU and task are kept."""
        if not self.cpumask >> cpu & 1:
            return False
        if self.no_pids is not None and pid in self.no_pids:
            return False
        return self.pids is None or pid in self.pids

    # -- size --------------------------------------------------------------------------------------------

    def size_kb(self, cpu: int) -> int:
        """A CPU's buffer, KiB of events that fit."""
        return int(self.ring.sizes()[cpu]) * PAGE_DATA >> 10

    def resize(self, size: int, cpu: int | None = None) -> None:
        """Make the buffer of a CPU, or of all, large enough for ``size`` bytes."""
        self.expanded = True
        sizes = self.ring.sizes()
        chosen = range(self.cpus) if cpu is None else (cpu,)
        for number in chosen:
            sizes[number] = pages_for(size)
        self.ring.resize(sizes)
        if self.spare is not None:
            self.spare.resize(sizes)

    def reset(self, cpu: int | None = None) -> None:
        """Forget the records of a CPU, or of all."""
        for number in range(self.cpus) if cpu is None else (cpu,):
            self.ring.reset(number)

    def set_clock(self, name: str) -> None:
        """Choose the clock and empty the buffers: times of two clocks do not mix. EINVAL (``tracing_set_clock``)."""
        if name not in CLOCKS:
            raise KernelError(errno.EINVAL, f"no clock {name}: {' '.join(CLOCKS)}")
        self.clock = name
        self.reset()
        self.reset_snapshot()
        self._changed()

    @property
    def clock_in_ns(self) -> bool:
        """Whether the clock counts nanoseconds."""
        return self.clock not in CLOCKS_OF_OTHER_UNITS

    def counts(self, ring: Ring | None = None) -> tuple[int, int]:
        """Entries in the buffers, and entries written; of the snapshot's ring when it is given."""
        cpus = range(self.cpus)
        return sum(self.entries(cpu, ring) for cpu in cpus), sum(self.written(cpu, ring) for cpu in cpus)

    def entries(self, cpu: int, ring: Ring | None = None) -> int:
        """Entries of a CPU that can be read."""
        written, overrun, _, read = (int(word) for word in (ring or self.ring).state[cpu, 6:10])
        return written - overrun - read

    def written(self, cpu: int, ring: Ring | None = None) -> int:
        """Entries of a CPU ever written, as the trace's header counts them: those read are not."""
        return self.entries(cpu, ring) + int((ring or self.ring).state[cpu, 7])

    # -- snapshots ---------------------------------------------------------------------------------------

    def _make_ring(self, sizes: list[int]) -> Ring:
        ring = Ring(sizes)
        ring.lay_out(*self._tables)
        return ring

    def allocate_snapshot(self) -> None:
        """Have a second ring, of the first one's size (``tracing_alloc_snapshot_instance``)."""
        if self.spare is None:
            self.spare = self._make_ring(self.ring.sizes())

    def free_snapshot(self) -> None:
        """Give the second ring back (``free_snapshot``)."""
        self.spare = None

    def reset_snapshot(self, cpu: int | None = None) -> None:
        """Forget the snapshot's records of a CPU, or of all."""
        if self.spare is not None:
            for number in range(self.cpus) if cpu is None else (cpu,):
                self.spare.reset(number)

    def swap(self) -> None:
        """Exchange the rings: what was recorded is the snapshot (``update_max_tr``). Preconditions: there are two."""
        assert self.spare is not None
        self.spare.on, self.spare.overwrite = self.ring.on, self.ring.overwrite
        self.ring, self.spare = self.spare, self.ring
        self._changed()
