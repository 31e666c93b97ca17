"""What an event can set off: switching tracing, stacks, other events, histograms (kernel/trace/trace_events_trigger.c).

A trigger is written as ``COMMAND[:PARAMETERS][:COUNT] [if FILTER]``, and taken away with ``!`` before it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmemd.debug.trace_errors import TraceError
from kmemd.debug.trace_filter import Filter, FilterError, Sample, make_filter
from kmemd.debug.trace_hist import HistError, Histogram, parse_hist
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import EventFile, TraceArray

UNLIMITED = -1
COMMANDS = (
    "traceon",
    "traceoff",
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

    ``after``: it runs after the record was written. ``target``: the event that it holds in soft mode.
    """

    command: str
    text: str
    action: Callable[[Sample], None]
    filter: Filter | None = None
    left: int = UNLIMITED
    after: bool = False
    target: EventFile | None = None
    histogram: Histogram | None = None

    def matches(self, sample: Sample) -> bool:
        """Whether it acts on a record."""
        return self.filter is None or self.filter.matches(sample)

    def run(self, sample: Sample | None) -> None:
        """Act, as long as its count lasts."""
        assert sample is not None
        if self.left == 0:
            return
        if self.left > 0:
            self.left -= 1
        self.action(sample)

    def line(self) -> str:
        """Its line of the ``trigger`` file."""
        condition = f" if {self.filter.text}" if self.filter is not None else ""
        if self.histogram is not None:
            return self.histogram.describe(condition)
        count = "unlimited" if self.left == UNLIMITED else f"count={self.left}"
        return f"{self.text}:{count}{condition}\n"


class Triggers:
    """Sets and removes triggers of events."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def text(self, file: EventFile) -> str:
        """The ``trigger`` file of an event."""
        return "".join(trigger.line() for trigger in file.triggers) or AVAILABLE

    def write(self, array: TraceArray, file: EventFile, text: str) -> None:
        """Take a command. EINVAL; EEXIST when the event has such a trigger, ENOENT when it has none to remove."""
        self._tracing.sync()
        text = text.strip()
        command, _, _ = text.partition(" ")[0].lstrip("!").partition(":")
        if command not in COMMANDS:
            raise KernelError(errno.EINVAL, f"no trigger {command}: {' '.join(COMMANDS)}")
        if command == "hist":
            self._write_hist(array, file, text)
        else:
            self._write_simple(array, file, text, command)
        self._tracing.update()

    def clear_hists(self, array: TraceArray, file: EventFile) -> None:
        """What opening with ``>`` does: histograms go (``hist_unreg_all``)."""
        for trigger in [trigger for trigger in file.triggers if trigger.histogram is not None]:
            self._remove(array, file, trigger)
        self._tracing.update()

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
        self._add(array, file, trigger)

    def _make(self, array: TraceArray, command: str, parts: list[str]) -> Trigger:
        text = ":".join(parts)
        ring = array.ring
        if command in ("traceon", "traceoff"):
            wanted = command == "traceon"

            def switch(sample: Sample) -> None:
                ring.on = wanted

            return Trigger(command, text, switch)
        if command == "stacktrace":
            return Trigger(command, text, lambda sample: self._stack(array, sample), after=True)
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
        definition, condition = _split(text.lstrip("!"))
        try:
            spec = parse_hist(definition, file.layout)
            filter_ = self._condition(array, file, condition)
        except HistError as error:
            where = f"hist:{file.event.system}:{file.event.name}"
            place = max(definition.find(error.at), 0) if error.at else 0
            array.errors.add(TraceError(self._tracing.context.now, where, error.message, definition, place))
            raise
        same = [trigger for trigger in file.triggers if trigger.histogram and trigger.histogram.same(spec)]
        if text.startswith("!"):
            if same:
                self._remove(array, file, same[0])
            return
        if same and spec.command:
            same[0].histogram.obey(spec.command)
            return
        if same or spec.command in ("cont", "clear"):
            number = errno.EEXIST if same else errno.ENOENT
            raise KernelError(
                number, "Hist trigger already exists" if same else "Can't clear or continue a nonexistent"
            )
        histogram = Histogram(spec, self._tracing)
        self._add(array, file, Trigger("hist", definition, histogram.add, filter_, after=True, histogram=histogram))

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

    @staticmethod
    def _remove(array: TraceArray, file: EventFile, trigger: Trigger) -> None:
        file.triggers.remove(trigger)
        file.release()
        if trigger.target is not None:
            trigger.target.release()


def _pause(target: EventFile, paused: bool) -> None:
    for trigger in target.triggers:
        if trigger.histogram is not None:
            trigger.histogram.paused = paused


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
