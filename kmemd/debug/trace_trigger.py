"""What an event can set off: switching tracing, stacks, other events, histograms (kernel/trace/trace_events_trigger.c).

A trigger is written as ``COMMAND[:PARAMETERS][:COUNT] [if FILTER]``, and taken away with ``!`` before it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmemd.debug.trace_errors import TraceError
from kmemd.debug.trace_filter import Filter, FilterError, Sample, make_filter
from kmemd.debug.trace_hist import Histogram
from kmemd.debug.trace_hist_parse import Complaints, HistError, parse_attributes
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import EventFile, TraceArray

UNLIMITED = -1
SWITCHES, WRITES, POST = range(3)
NAMED_MISMATCH = "Named hist trigger doesn't match existing named trigger (includes variables)"
SILENT = Complaints("", lambda message, at: None)
_END = re.compile(r"[: \t]")
"""What ends a command's name."""
COMMANDS = (
    "traceon",
    "traceoff",
    "snapshot",
    "stacktrace",
    "enable_event",
    "disable_event",
    "enable_hist",
    "disable_hist",
    "hist",
)
AVAILABLE = "# Available triggers:\n# " + " ".join(COMMANDS) + "\n"


@dataclass
class Trigger:
    """One trigger. ``text`` is its command and parameters, ``left`` how often it may still act.

    ``phase``: it switches things before the record is there, WRITES: it adds records or exchanges buffers behind it, or
    POST: it runs when the event is done. ``target``: the event that it holds in soft mode.
    """

    command: str
    text: str
    action: Callable[[Sample], None]
    filter: Filter | None = None
    left: int = UNLIMITED
    phase: int = SWITCHES
    target: EventFile | None = None
    histogram: Histogram | None = None
    paused: bool = False

    @property
    def needs_record(self) -> bool:
        """Whether it can run when there is a record only (EVENT_CMD_FL_NEEDS_REC, EVENT_CMD_FL_POST_TRIGGER)."""
        return self.phase == POST or self.histogram is not None

    def matches(self, sample: Sample) -> bool:
        """Whether it acts on a record."""
        return not self.paused and (self.filter is None or self.filter.matches(sample))

    def run(self, sample: Sample) -> None:
        """Act, as long as its count lasts."""
        if self.left == 0:
            return
        if self.left > 0:
            self.left -= 1
        self.action(sample)

    @property
    def state(self) -> str:
        """Of a histogram: whether it counts."""
        return "paused" if self.paused else "active"

    def line(self) -> str:
        """Its line of the ``trigger`` file."""
        condition = f" if {self.filter.text}" if self.filter is not None else ""
        if self.histogram is not None:
            return self.histogram.describe(self.state)
        count = "unlimited" if self.left == UNLIMITED else f"count={self.left}"
        return f"{self.text}:{count}{condition}\n"


class Triggers:
    """Sets and removes triggers of events."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._named: dict[tuple[str, str], Histogram] = {}

    def text(self, file: EventFile) -> str:
        """The ``trigger`` file of an event."""
        return "".join(trigger.line() for trigger in file.triggers) or AVAILABLE

    def write(self, array: TraceArray, file: EventFile, text: str) -> None:
        """Take a command. EINVAL; EEXIST when the event has such a trigger, ENOENT when it has none to remove."""
        self._tracing.sync()
        text = text.strip()
        command = _END.split(text, maxsplit=1)[0].removeprefix("!")
        if command not in COMMANDS:
            raise KernelError(errno.EINVAL, f"no trigger {command}: {' '.join(COMMANDS)}")
        if command == "hist":
            self._write_hist(array, file, text)
        else:
            self._write_simple(array, file, text, command)
        self._tracing.update()

    def clear_hists(self, array: TraceArray, file: EventFile) -> None:
        """What opening with ``>`` does: histograms go, unless one's variables are in use (``hist_unreg_all``)."""
        if any(histogram.referred_to() for histogram in array.histograms() if histogram.file is file):
            return
        for trigger in [trigger for trigger in file.triggers if trigger.histogram is not None]:
            if trigger in file.triggers:
                self._remove_hist(array, file, trigger)
        self._tracing.update()

    def clear(self, array: TraceArray) -> None:
        """An array goes, and with it all triggers of its events (``clear_event_triggers``)."""
        for file in (*array.files.values(), array.marker):
            for trigger in list(file.triggers):
                if trigger.histogram is None:
                    self._remove(array, file, trigger)
                elif trigger in file.triggers:
                    self._remove_hist(array, file, trigger)

    # -- switching, stacks, other events -----------------------------------------------------------------

    def _write_simple(self, array: TraceArray, file: EventFile, text: str, command: str) -> None:
        removing = text.startswith("!")
        definition, condition = _split(text.lstrip("!"))
        parts = definition.split(":")
        names = 3 if command.endswith(("_event", "_hist")) else 1
        if len(parts) < names or len(parts) > names + 1:
            raise KernelError(errno.EINVAL, f"{command} takes {names - 1} names and a count")
        trigger = self._make(array, command, parts[:names])
        same = [other for other in file.triggers if other.text == trigger.text]
        if removing:
            if same:
                self._remove(array, file, same[0])
            return
        if any(other.command == command and (names == 1 or other.text == trigger.text) for other in file.triggers):
            raise KernelError(errno.EEXIST, f"{file.event.name} has a {command}")
        if len(parts) > names:
            trigger.left = _count(parts[names])
        trigger.filter = self._condition(array, file, condition)
        if command == "snapshot":
            array.allocate_snapshot()
        self._add(array, file, trigger)

    def _make(self, array: TraceArray, command: str, parts: list[str]) -> Trigger:
        text = ":".join(parts)
        if command in ("traceon", "traceoff"):
            wanted = command == "traceon"

            def switch(sample: Sample) -> None:
                array.ring.on = wanted

            return Trigger(command, text, switch)
        if command == "stacktrace":
            return Trigger(command, text, lambda sample: self._stack(array, sample), phase=POST)
        if command == "snapshot":
            return Trigger(command, text, lambda sample: self._tracing.snapshot(array), phase=WRITES)
        target = self._target(array, parts[1], parts[2])
        if command.endswith("_event"):
            disabled = command.startswith("disable")
            return Trigger(command, text, lambda sample: self._switch(target, disabled), target=target)
        paused = command.startswith("disable")
        return Trigger(command, text, lambda sample: _pause(target, paused))

    def _target(self, array: TraceArray, system: str, name: str) -> EventFile:
        try:
            return array.file(system, name)
        except KernelError:
            raise KernelError(errno.EINVAL, f"there is no event {system}:{name}") from None

    def _stack(self, array: TraceArray, sample: Sample) -> None:
        self._tracing.write_stack(array, sample.cpu, sample.ns, sample.pid, sample.stack)

    @staticmethod
    def _switch(target: EventFile, disabled: bool) -> None:
        target.soft_disabled = disabled

    # -- histograms --------------------------------------------------------------------------------------

    def _write_hist(self, array: TraceArray, file: EventFile, text: str) -> None:
        """``hist:…`` or ``!hist:…``. EINVAL, EEXIST, ENOENT, EBUSY (``event_hist_trigger_parse``)."""
        rest = _END.split(text, maxsplit=1)[1:]
        parameters = rest[0].strip() if rest else ""
        where = f"hist:{file.event.system}:{file.event.name}"
        command = f"hist:{parameters}"
        wrong = Complaints(command, lambda message, at: self._tracing.complain(where, message, command, at, array))
        if not parameters:
            raise HistError("a histogram has keys")
        if text.startswith("!"):
            self.remove_hist(array, file, parameters, wrong)
        else:
            self.add_hist(array, file, parameters, wrong)

    def _parse_hist(
        self, array: TraceArray, file: EventFile, text: str, wrong: Complaints, *, removing: bool = False
    ) -> Trigger:
        definition, condition = _split_hist(text)
        attributes = parse_attributes(definition.replace(".sym-offset", ".symXoffset"), wrong)
        histogram = Histogram(self._tracing, array, file, attributes, wrong, removing=removing)
        filter_ = self._condition(array, file, condition)
        histogram.condition = condition
        return Trigger("hist", definition, histogram.add, filter_, phase=WRITES, histogram=histogram)

    def add_hist(self, array: TraceArray, file: EventFile, text: str, wrong: Complaints) -> None:
        """Set a histogram, or pause, continue or clear one. KernelError."""
        trigger = self._parse_hist(array, file, text, wrong)
        histogram = trigger.histogram
        assert histogram is not None
        attributes = histogram.attributes
        named = self._named.get((array.name, attributes.name))
        if named is not None and not named.same(histogram, ignore_filter=True):
            raise wrong.error(NAMED_MISMATCH, attributes.name)
        same = self._matching(file, histogram)
        if same is not None and attributes.command:
            self._obey(same, attributes.command)
            return
        if same is not None:
            raise wrong.error("Hist trigger already exists", number=errno.EEXIST)
        if attributes.command in ("cont", "clear"):
            raise wrong.error("Can't clear or continue a nonexistent hist trigger", number=errno.ENOENT)
        self._register(array, file, trigger, wrong, named)

    def _register(
        self, array: TraceArray, file: EventFile, trigger: Trigger, wrong: Complaints, named: Histogram | None
    ) -> None:
        histogram = trigger.histogram
        assert histogram is not None
        attributes = histogram.attributes
        try:
            histogram.create(wrong)
            if histogram.parser.timestamps:
                self._set_clock(array, attributes.clock, wrong)
        except KernelError:
            histogram.release()
            raise
        trigger.paused = attributes.command == "pause"
        if attributes.name:
            histogram.map = named.map if named is not None else histogram.map
            self._named.setdefault((array.name, attributes.name), histogram)
        self._hold_synthetic(file, 1)
        self._add(array, file, trigger)

    @staticmethod
    def _set_clock(array: TraceArray, clock: str, wrong: Complaints) -> None:
        try:
            array.set_clock(clock)
        except KernelError:
            wrong.note("Couldn't set trace_clock", clock)
            raise

    @staticmethod
    def _obey(trigger: Trigger, command: str) -> None:
        assert trigger.histogram is not None
        if command == "clear":
            trigger.histogram.map.clear()
        else:
            trigger.paused = command == "pause"

    @staticmethod
    def _matching(file: EventFile, histogram: Histogram) -> Trigger | None:
        for trigger in file.triggers:
            other = trigger.histogram
            if other is not None and other.attributes.name == histogram.attributes.name and other.same(histogram):
                return trigger
        return None

    def remove_hist(self, array: TraceArray, file: EventFile, text: str, wrong: Complaints | None = None) -> None:
        """Take a histogram away. EBUSY while another one uses its variables."""
        wanted = self._parse_hist(array, file, text, wrong or SILENT, removing=True).histogram
        assert wanted is not None
        trigger = self._matching(file, wanted)
        if trigger is None or trigger.histogram is None:
            return
        if trigger.histogram.referred_to():
            raise KernelError(errno.EBUSY, "another histogram uses a variable of this one")
        self._remove_hist(array, file, trigger)

    def _remove_hist(self, array: TraceArray, file: EventFile, trigger: Trigger) -> None:
        histogram = trigger.histogram
        assert histogram is not None
        self._remove(array, file, trigger)
        self._hold_synthetic(file, -1)
        name = histogram.attributes.name
        if name and not any(other.attributes.name == name for other in array.histograms()):
            self._named.pop((array.name, name), None)
        histogram.release()

    def _hold_synthetic(self, file: EventFile, count: int) -> None:
        event = self._tracing.synthetic.find(file.event.name)
        if event is not None and event.event is file.event:
            event.references += count

    # -- common ------------------------------------------------------------------------------------------

    def _condition(self, array: TraceArray, file: EventFile, condition: str) -> Filter | None:
        if not condition:
            return None
        try:
            return make_filter(condition, file.layout)
        except FilterError as error:
            where = "event filter parse error"
            array.errors.add(TraceError(self._tracing.context.now, where, error.message, condition, error.position))
            raise

    def _add(self, array: TraceArray, file: EventFile, trigger: Trigger) -> None:
        array.expand()
        file.hold()
        if trigger.target is not None:
            trigger.target.hold()
        file.triggers.append(trigger)
        file.update_conditional()

    @staticmethod
    def _remove(array: TraceArray, file: EventFile, trigger: Trigger) -> None:
        file.triggers.remove(trigger)
        file.update_conditional()
        file.release()
        if trigger.target is not None:
            trigger.target.release()


def _pause(target: EventFile, paused: bool) -> None:
    for trigger in target.triggers:
        if trigger.histogram is not None:
            trigger.paused = paused


def _split_hist(text: str) -> tuple[str, str]:
    """A histogram's definition and its filter; blanks may stand in the definition. EINVAL for an ``if`` without one."""
    found = re.search(r"[ \t]if[ \t]", text)
    if found is None:
        if re.search(r"(^|[ \t])if$", text):
            raise HistError("if needs a filter")
        return text, ""
    return text[: found.start()].strip(), text[found.end() :].strip()


def _split(text: str) -> tuple[str, str]:
    """A trigger's definition and its filter. EINVAL for an ``if`` without one."""
    definition, found, condition = text.partition(" if ")
    if text.endswith(" if") or (found and not condition.strip()):
        raise KernelError(errno.EINVAL, "if needs a filter")
    if not found and " " in definition.strip():
        raise KernelError(errno.EINVAL, f"surplus words: {definition}")
    return definition.strip(), condition.strip()


def _count(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise KernelError(errno.EINVAL, f"not a count: {text}") from None
