"""What a histogram does when events match or a variable reaches a new value: ``onmatch``, ``onmax``, ``onchange``.

``onmatch(system.event).synthetic(…)`` makes a synthetic event; ``onmax($x)`` and ``onchange($x)`` save fields of the
event, take a snapshot of the buffers, or make a synthetic event (kernel/trace/trace_events_hist.c).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kmemd.debug.trace_hist_fields import STACKTRACE, STRING_SIZE, HistField
from kmemd.debug.trace_hist_parse import Complaints, HistError
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace_array import TraceArray
    from kmemd.debug.trace_hist import Element, Histogram
    from kmemd.debug.trace_hist_fields import Hit
    from kmemd.debug.trace_synth import SynthEvent, SynthField

MAX_PARAMETERS = 64
ONMATCH, ONMAX, ONCHANGE = "onmatch", "onmax", "onchange"
TRACE, SAVE, SNAPSHOT = "trace", "save", "snapshot"
LABELS = {ONMAX: "max", ONCHANGE: "changed"}


@dataclass
class FieldVariable:
    """A variable that was made for a field named in an action; what is saved of a field is kept apart (``saved``)."""

    name: str
    value: HistField
    saved: bool = False

    @property
    def key(self) -> str:
        """What its value is kept under."""
        return f"{self.name} saved" if self.saved else self.name

    def keep(self, element: Element, hit: Hit) -> None:
        """Set it from an event."""
        found = self.value.get(hit)
        element.set(self.key, found[: min(self.value.size, STRING_SIZE) - 1] if self.value.text else found)

    def text(self, element: Element) -> str:
        """As it stands behind the maximum."""
        found = element.values.get(self.key, "" if self.value.text else 0)
        return f"  {self.name}: {found:<32}" if self.value.text else f"  {self.name}: {found:10d}"


@dataclass
class SnapshotNote:
    """What the last snapshot of an ``onmax($x).snapshot()`` was taken for (``struct track_data``)."""

    histogram: Histogram
    action: Action
    value: int = 0
    keys: tuple[Any, ...] = ()
    comm: str = ""
    taken: bool = False

    def take(self, element: Element) -> bool:
        """Whether this element is beyond what the last snapshot was taken for; then it is noted."""
        now = int(element.values[self.action.tracked])
        if not self.action.beyond(now, self.value):
            return False
        self.value, self.keys, self.comm, self.taken = now, element.keys, element.comm, True
        return True

    def text(self) -> str:
        """The lines below a histogram's entries (``track_data_snapshot_print``)."""
        if not self.taken:
            return ""
        what = f"{self.action.handler}({self.action.variable})"
        keys = self.histogram.keys_text(self.keys, self.comm)
        return (
            "\nSnapshot taken (see tracing/snapshot).  Details:\n"
            f"\ttriggering value {{ {what} }}: {self.value:10d}\ttriggered by event with key: {keys}\n"
        )


@dataclass
class Action:
    """One action: ``handler(…).name(parameters)``; ``synthetic`` is set for those that make a synthetic event.

    ``tracked`` names the variable that remembers what ``onmax`` or ``onchange`` have acted on: one for each action.
    """

    handler: str
    does: str
    name: str
    parameters: list[str] = field(default_factory=list)
    keyword: bool = False
    synthetic_name: str = ""
    match: tuple[str, str] = ("", "")
    variable: str = ""
    tracked: str = ""
    synthetic: SynthEvent | None = None
    arguments: list[HistField] = field(default_factory=list)
    watched: HistField | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What the kernel compares (``actions_match``)."""
        name = self.synthetic_name if self.keyword else self.name
        return self.handler, self.does, tuple(self.parameters), name, self.match, self.variable

    @property
    def spec(self) -> str:
        """As the trigger file shows it."""
        where = ".".join(self.match) if self.handler == ONMATCH else self.variable
        words = [self.synthetic_name] if self.keyword else []
        words += [] if self.does == SNAPSHOT else self.parameters
        return f":{self.handler}({where}).{self.name}({','.join(words)})"

    def beyond(self, value: int, before: int) -> bool:
        """Whether a value is one to act on."""
        return value > before if self.handler == ONMAX else value != before

    def run(self, histogram: Histogram, element: Element, hit: Hit) -> None:
        """Act on an event (``hist_trigger_actions``)."""
        if self.handler != ONMATCH:
            assert self.watched is not None
            value = hit.refs[self.watched.place]
            if not self.beyond(value, element.values.get(self.tracked, 0)):
                return
            element.set(self.tracked, value)
        if self.does == TRACE:
            assert self.synthetic is not None
            histogram.tracing.emit_synthetic(
                self.synthetic, [hit.refs[ref.place] for ref in self.arguments], hit.sample
            )
        elif self.does == SAVE:
            for saved in histogram.saved:
                saved.keep(element, hit)
        else:
            histogram.tracing.snapshot(histogram.array, lambda note: note.take(element))

    def text(self, histogram: Histogram, element: Element) -> str:
        """Its line below an entry (``track_data_print``)."""
        if self.does == SNAPSHOT or self.handler == ONMATCH:
            return ""
        head = f"\n\t{LABELS[self.handler]}: {element.values.get(self.tracked, 0):10d}"
        return head + "".join(saved.text(element) for saved in histogram.saved)

    def release(self, array: TraceArray, histogram: Histogram) -> None:
        """The histogram goes."""
        if self.synthetic is not None:
            self.synthetic.references -= 1
        note = array.snapshot_note
        if self.does == SNAPSHOT and note is not None and note.histogram is histogram:
            array.snapshot_note = None


# -- parsing -----------------------------------------------------------------------------------------------


def parse_action(text: str, array: TraceArray, wrong: Complaints) -> Action:
    """An action's text (``parse_actions``). HistError."""
    handler, _, rest = text.partition("(")
    where, closed, rest = rest.partition(")")
    if handler != ONMATCH:
        if not closed:
            raise HistError(f"no closing parenthesis: {text}")
        made = _parse_call(handler, rest, wrong)
        made.variable = where
        made.tracked = f"__{LABELS[handler]}_{made.name}"
        return made
    if not closed:
        raise wrong.error("No closing paren found", where)
    system, dot, event = where.partition(".")
    if not dot:
        raise wrong.error("Missing subsystem", system)
    if array.find(system, event) is None:
        raise wrong.error("Invalid subsystem or event name", event)
    made = _parse_call(handler, rest, wrong)
    made.match = system, event
    return made


def _parse_call(handler: str, text: str, wrong: Complaints) -> Action:
    """``.save(…)``, ``.snapshot()``, ``.trace(…)`` or ``.synthetic(…)`` (``action_parse``)."""
    _, dot, call = text.partition(".")
    name, opened, rest = call.partition("(")
    if not dot or not opened:
        raise wrong.error("No action found")
    inside, closed, _ = rest.partition(")")
    made = Action(handler, TRACE, name)
    if name.startswith("save"):
        made.does = SAVE
        made.parameters = _parameters(inside, wrong)
    elif name.startswith("snapshot"):
        made.does = SNAPSHOT
        if not closed:
            raise wrong.error("No closing paren found", inside)
    else:
        made.keyword = name.startswith("trace")
        made.parameters = _parameters(inside, wrong)
        if made.keyword:
            made.synthetic_name = made.parameters.pop(0)
    if made.does != TRACE and handler == ONMATCH:
        raise wrong.error("Handler doesn't support action", name)
    return made


def _parameters(text: str, wrong: Complaints) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        if len(found) >= MAX_PARAMETERS:
            raise wrong.error("Too many action params")
        word = part.strip()
        if len(word) < 2:
            raise wrong.error("Invalid action param", word)
        found.append(word)
    return found


# -- making ------------------------------------------------------------------------------------------------


class ActionMaker:
    """Gives the actions of a histogram what they need: variables, references, synthetic events (``create_actions``)."""

    def __init__(self, histogram: Histogram, wrong: Complaints) -> None:
        self._histogram = histogram
        self._wrong = wrong

    def create(self, action: Action) -> None:
        """Make an action ready to run. HistError."""
        if action.handler != ONMATCH:
            self._watch(action)
        if action.does == TRACE:
            self._trace(action)
        elif action.does == SAVE:
            self._save(action)
        else:
            self._snapshot(action)

    def _watch(self, action: Action) -> None:
        histogram, name = self._histogram, action.variable
        if not name.startswith("$"):
            raise self._wrong.error("For onmax(x) or onchange(x), x must be a variable", name)
        found = histogram.variable(name[1:])
        if found is None:
            raise self._wrong.error("Couldn't find onmax or onchange variable", name[1:])
        action.watched = histogram.refer(histogram, found, "")

    def _snapshot(self, action: Action) -> None:
        array = self._histogram.array
        array.allocate_snapshot()
        if array.snapshot_note is not None:
            raise HistError("another histogram takes the snapshots of these buffers", errno.EBUSY)
        array.snapshot_note = SnapshotNote(self._histogram, action)

    def _save(self, action: Action) -> None:
        histogram = self._histogram
        if histogram.saved:
            raise self._wrong.error("Can't have more than one save() action per hist", number=errno.EEXIST)
        for name in action.parameters:
            try:
                histogram.saved.append(self._field_variable(name, saved=True))
            except HistError:
                self._wrong.note("Couldn't create field variable", name)
                raise

    def _field_variable(self, name: str, *, saved: bool = False) -> FieldVariable:
        """A variable for a field of the histogram's own event (``create_field_var``)."""
        histogram = self._histogram
        if len(histogram.field_variables) >= MAX_PARAMETERS:
            raise self._wrong.error("Too many field variables defined", name)
        try:
            value = histogram.parser.atom(name, role="variable")
        except HistError:
            self._wrong.note("Couldn't parse field variable", name)
            raise
        if histogram.duplicate(name):
            raise self._wrong.error("Couldn't create or find variable", name)
        return FieldVariable(name, value, saved)

    # synthetic events

    def _trace(self, action: Action) -> None:
        name = action.synthetic_name if action.keyword else action.name
        event = self._histogram.tracing.synthetic.find(name)
        if event is None:
            raise self._wrong.error("Couldn't find synthetic event", name)
        for place, parameter in enumerate(action.parameters):
            action.arguments.append(self._argument(action, event, place, parameter))
        if len(action.parameters) != len(event.fields):
            raise self._wrong.error("Param count doesn't match synthetic event field count", event.name)
        event.references += 1
        action.synthetic = event

    def _argument(self, action: Action, event: SynthEvent, place: int, text: str) -> HistField:
        parts = text.split(".", 2)
        if len(parts) == 2:
            raise HistError(f"a name, or system.event.name: {text}")
        system, name = (parts[0], parts[1]) if len(parts) == 3 else (None, None)
        word = parts[-1]
        if word.startswith("$"):
            owner, variable = self._variable(action, system, name, word[1:])
        else:
            owner, variable = self._field_of_event(action, system, name, word)
        if place >= len(event.fields) or not fits(event.fields[place], variable):
            raise self._wrong.error("Param type doesn't match synthetic event field type", word)
        return self._histogram.refer(owner, variable, f"{system}.{name}." if system else "")

    def _variable(
        self, action: Action, system: str | None, event: str | None, name: str
    ) -> tuple[Histogram, HistField]:
        """``trace_action_find_var``."""
        histogram = self._histogram
        own = histogram.variable(name) if histogram.is_of(system, event) else None
        if own is not None:
            return histogram, own
        if system is None and action.handler == ONMATCH:
            system, event = action.match
        found = histogram.find_variable(system, event, name)
        if found is None:
            raise self._wrong.error("Couldn't find param", name)
        return found

    def _field_of_event(
        self, action: Action, system: str | None, event: str | None, name: str
    ) -> tuple[Histogram, HistField]:
        """``trace_action_create_field_var``: of this event, or of the one that was matched."""
        histogram = self._histogram
        if histogram.is_of(system, event):
            try:
                made = self._field_variable(name)
            except HistError:
                if system is not None:
                    raise
            else:
                histogram.field_variables.append(made)
                return histogram, _as_variable(made)
        if system is None and action.handler == ONMATCH:
            system, event = action.match
        if system is None or event is None:
            raise HistError(f"there is no field {name}")
        return self._matched_field(system, event, name)

    def _matched_field(self, system: str, event: str, name: str) -> tuple[Histogram, HistField]:
        """A variable of another event, in a histogram made for it with the same keys (``create_field_var_hist``)."""
        histogram, variable = self._histogram, f"synthetic_{name}"
        file = histogram.array.find(system, event)
        if file is None:
            raise self._wrong.error("Event file not found", name)
        like = histogram.compatible(file)
        if like is None:
            raise self._wrong.error("Matching event histogram not found", name)
        found = histogram.find_variable(system, event, variable)
        if found is not None:
            return found
        keys = ",".join(key.name for key in like.keys)
        condition = f" if {like.condition}" if like.condition else ""
        command = f"keys={keys}:{variable}={name}{condition}"
        try:
            histogram.tracing.triggers.add_hist(histogram.array, file, command, self._wrong)
        except KernelError:
            self._wrong.note("Couldn't create histogram for field", name)
            raise
        histogram.helpers.append((file, command))
        found = histogram.find_variable(system, event, variable)
        if found is None:
            raise self._wrong.error("Couldn't find synthetic variable", name)
        return found


def _as_variable(made: FieldVariable) -> HistField:
    value = made.value
    variable = HistField(value.kind, made.name, value.get, "", value.type, value.size, value.signed, value.text)
    variable.var = made.name
    return variable


def fits(wanted: SynthField, given: HistField) -> bool:
    """Whether a synthetic field can take a value (``check_synth_field``)."""
    if "char[" in given.type and wanted.is_text and wanted.dynamic:
        return True
    if (given.kind == STACKTRACE) != wanted.is_stack:
        return False
    if wanted.is_stack or wanted.type == given.type:
        return True
    return wanted.size == given.size and (wanted.is_text or wanted.signed == given.signed)
