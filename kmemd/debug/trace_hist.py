"""Histograms of events: how often, and how much, by keys (kernel/trace/trace_events_hist.c, tracing_map.c).

``hist:keys=call_site.sym,order:vals=bytes_req:sort=bytes_req.descending:size=1024``. Variables keep a value for each
key, which other events of the same keys can use; actions are in ``trace_hist_actions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kmemd.debug import trace_hist_fields as fields
from kmemd.debug.trace_filter import Sample
from kmemd.debug.trace_hist_actions import Action, ActionMaker, FieldVariable, parse_action
from kmemd.debug.trace_hist_fields import HistField, Hit
from kmemd.debug.trace_hist_parse import (
    MAX_KEYS,
    MAX_VALUES,
    MAX_VARS,
    Complaints,
    FieldParser,
    HistAttributes,
    HistError,
    variables_of,
)

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import EventFile, TraceArray

WORD = fields.WORD
STACK_DEPTH = 16
MAX_SORT = 2
BAR = 20
NOT_UNIQUE = "Variable name not unique, need to use fully qualified name (subsys.event.var) for variable"


@dataclass
class Element:
    """What belongs to one tuple of keys: sums, variables, and the name of the task that came first."""

    keys: tuple[Any, ...]
    sums: list[int]
    comm: str
    values: dict[str, Any] = field(default_factory=dict)
    unset: set[str] = field(default_factory=set)

    def set(self, name: str, value: Any) -> None:
        """Give a variable a value."""
        self.values[name] = value
        self.unset.discard(name)


@dataclass
class HistMap:
    """The elements (``struct tracing_map``): at most 2 to the power of ``bits``."""

    bits: int
    elements: dict[tuple[Any, ...], Element] = field(default_factory=dict)
    hits: int = 0
    drops: int = 0

    def insert(self, keys: tuple[Any, ...], values: int, comm: str) -> Element | None:
        """The element of these keys, a new one if need be; None when the table is full (``tracing_map_insert``)."""
        found = self.elements.get(keys)
        if found is None:
            if len(self.elements) >= 1 << self.bits:
                self.drops += 1
                return None
            found = self.elements[keys] = Element(keys, [0] * (1 + values), comm)
        self.hits += 1
        return found

    def clear(self) -> None:
        """Begin anew."""
        self.elements.clear()
        self.hits = self.drops = 0


class Histogram:
    """The histogram of one trigger of ``file`` (``struct hist_trigger_data``); ``removing``: to find one that is there.

    Invariants: a reference's ``place`` is its index in ``references``; ``map`` is shared by histograms of one name.
    """

    def __init__(
        self,
        tracing: Tracing,
        array: TraceArray,
        file: EventFile,
        attributes: HistAttributes,
        wrong: Complaints,
        *,
        removing: bool = False,
    ) -> None:
        self.tracing = tracing
        self.array = array
        self.file = file
        self.attributes = attributes
        self.condition = ""
        self._wrong = wrong
        self.references: list[HistField] = []
        self.saved: list[FieldVariable] = []
        self.field_variables: list[FieldVariable] = []
        self.helpers: list[tuple[EventFile, str]] = []
        self.actions: list[Action] = [parse_action(text, array, wrong) for text in attributes.actions]
        variables = variables_of(attributes.assignments, wrong)
        self.parser = FieldParser(file, variables, wrong, self._refer_to, self.references)
        self.values = self._values(wrong)
        self.variables: list[HistField] = []
        for name, text in variables:
            if not removing and self.duplicate(name):
                raise wrong.error("Variable already defined", name)
            self.variables.append(self.parser.variable(name, text))
        self.keys = self._keys()
        self._key_getters = [key.get for key in self.keys]
        self.sort = SortKeys(self, wrong).parse(attributes.sort)
        self.map = HistMap(attributes.bits)

    def _values(self, wrong: Complaints) -> list[HistField]:
        words = self.attributes.vals.split(",") if self.attributes.vals else []
        chosen = [word for word in words if word != "hitcount"]
        if len(chosen) > MAX_VALUES:
            raise HistError(f"a histogram sums {MAX_VALUES} values at most")
        return [self.parser.value(word) for word in chosen]

    def _keys(self) -> list[HistField]:
        words = self.attributes.keys.split(",")
        keys = [self.parser.key(word, self._frames) for word in words[:MAX_KEYS]]
        if len(words) > MAX_KEYS:
            raise HistError(f"a histogram has {MAX_KEYS} keys at most")
        return keys

    def _frames(self, sample: Sample) -> tuple[int, ...]:
        return self.tracing.stack(sample.stack)[:STACK_DEPTH]

    def create(self, wrong: Complaints) -> None:
        """Make the actions ready. HistError."""
        maker = ActionMaker(self, wrong)
        for action in self.actions:
            maker.create(action)

    def release(self) -> None:
        """The trigger is gone: let go of what the actions held, and of the histograms that were made for them."""
        for action in self.actions:
            action.release(self.array, self)
        for file, command in self.helpers:
            self.tracing.triggers.remove_hist(self.array, file, command)
        self.helpers.clear()

    # -- variables ---------------------------------------------------------------------------------------

    def variable(self, name: str) -> HistField | None:
        """A variable that this histogram sets (``find_var_field``)."""
        return next((variable for variable in self.variables if variable.var == name), None)

    def is_of(self, system: str | None, event: str | None) -> bool:
        """Whether a name that may be qualified means this histogram's event."""
        return system is None or (system, event) == (self.file.event.system, self.file.event.name)

    def duplicate(self, name: str) -> bool:
        """Whether a histogram of this event has such a variable (``find_var``)."""
        others = (other for other in self.array.histograms() if other.file is self.file)
        return any(histogram.variable(name) is not None for histogram in (self, *others))

    def find_variable(self, system: str | None, event: str | None, name: str) -> tuple[Histogram, HistField] | None:
        """The variable that a reference means, and whose it is; None for none or several (``find_event_var``)."""
        places = [(system, event)]
        if system is None:
            places = [action.match for action in self.actions if action.match[0]] + places
        for of, called in places:
            found = self._in_files(of, called, name)
            if found is not None:
                return found
        return None

    def _in_files(self, system: str | None, event: str | None, name: str) -> tuple[Histogram, HistField] | None:
        found: dict[int, tuple[Histogram, HistField]] = {}
        for histogram in self.array.histograms():
            variable = histogram.variable(name)
            if variable is None or id(histogram.file) in found:
                continue
            if system is None or histogram.is_of(system, event):
                found[id(histogram.file)] = histogram, variable
        if len(found) > 1:
            self._wrong.note(NOT_UNIQUE, name)
            return None
        return next(iter(found.values()), None)

    def _refer_to(self, system: str | None, event: str | None, name: str) -> HistField | None:
        found = self.find_variable(system, event, name)
        if found is None:
            return None
        return self.refer(*found, f"{system}.{event}." if system else "")

    def refer(self, owner: Histogram, variable: HistField, qualified: str) -> HistField:
        """The reference to a variable, made when there is none (``create_var_ref``). HistError: ENOMEM for too many."""
        for known in self.references:
            if known.owner is owner and known.name == variable.var:
                return known
        if len(self.references) >= MAX_VARS:
            raise HistError(f"a histogram refers to {MAX_VARS} variables at most")
        made = fields.reference(owner, variable, len(self.references), qualified)
        self.references.append(made)
        return made

    def compatible(self, file: EventFile) -> Histogram | None:
        """A histogram of an event whose keys are of the same types (``find_compatible_hist``)."""
        mine = [(key.type, key.size, key.signed) for key in self.keys]
        for histogram in self.array.histograms():
            if histogram.file is file and [(key.type, key.size, key.signed) for key in histogram.keys] == mine:
                return histogram
        return None

    # -- identity ----------------------------------------------------------------------------------------

    def same(self, other: Histogram, *, ignore_filter: bool = False) -> bool:
        """Whether two commands mean one histogram (``hist_trigger_match``)."""
        if not ignore_filter and self.condition != other.condition:
            return False
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        listed = (self.values, self.variables, self.keys)
        chosen = tuple(tuple(made.identity for made in group) for group in listed)
        return chosen, tuple(self.sort), tuple(action.identity for action in self.actions)

    def referred_to(self) -> bool:
        """Whether another histogram uses one of its variables (``check_var_refs``)."""
        others = (other for other in self.array.histograms() if other is not self)
        return any(
            ref.owner is self and self.variable(ref.name) is not None for other in others for ref in other.references
        )

    # -- counting ----------------------------------------------------------------------------------------

    def add(self, sample: Sample) -> None:
        """Count an event and act on it (``event_hist_trigger``)."""
        time = self.tracing.clock_value(self.array, sample.ns) if self.parser.timestamps else 0
        if self.parser.usecs and self.array.clock_in_ns:
            time = (time + 500) // 1000
        hit = Hit(sample, time, len(self.references))
        keys = tuple([get(hit) for get in self._key_getters])
        if self.references and not self._resolve(hit, keys, own=False):
            return
        element = self.map.insert(keys, len(self.values), sample.comm)
        if element is None:
            return
        hit.comm = element.comm
        self._update(element, hit)
        if not self.actions or not self._resolve(hit, keys, own=True):
            return
        for action in self.actions:
            action.run(self, element, hit)

    def _update(self, element: Element, hit: Hit) -> None:
        sums = element.sums
        sums[0] += 1
        for place, value in enumerate(self.values, 1):
            sums[place] = sums[place] + value.get(hit) & WORD
        for variable in self.variables:
            found = variable.get(hit)
            element.set(variable.var, found[: min(variable.size, fields.STRING_SIZE) - 1] if variable.text else found)
        for made in self.field_variables:
            made.keep(element, hit)

    def _resolve(self, hit: Hit, keys: tuple[Any, ...], *, own: bool) -> bool:
        """Read the variables of this histogram, or of others; whether all are set (``resolve_var_refs``)."""
        for ref in self.references:
            owner = ref.owner
            if owner is None or (owner is self) is not own:
                continue
            element = owner.map.elements.get(keys)
            if element is None or ref.name not in element.values or ref.name in element.unset:
                return False
            hit.refs[ref.place] = element.values[ref.name]
            if ref.once and not own:
                element.unset.add(ref.name)
        return True

    # -- text --------------------------------------------------------------------------------------------

    def describe(self, state: str) -> str:
        """Its line of the trigger file, which the histogram repeats (``event_hist_trigger_print``)."""
        attributes = self.attributes
        name = f"{attributes.name}:" if attributes.name else ""
        keys = ",".join(key.spec for key in self.keys)
        values = ",".join(["hitcount", *(value.spec for value in self.values)])
        variables = ":" + ",".join(variable.spec for variable in self.variables) if self.variables else ""
        sorted_by = ["hitcount", *(made.spec for made in (*self.values, *self.keys))]
        sort = ",".join(sorted_by[place] + (".descending" if down else "") for place, down in self.sort)
        clock = f":clock={attributes.clock}" if self.parser.timestamps else ""
        actions = "".join(action.spec for action in self.actions)
        condition = f" if {self.condition}" if self.condition else ""
        return (
            f"hist:{name}keys={keys}:vals={values}{variables}:sort={sort}:size={1 << self.map.bits}"
            f"{clock}{actions}{condition} [{state}]\n"
        )

    def text(self, state: str) -> Iterator[str]:
        """The ``hist`` file."""
        yield f"# event histogram\n#\n# trigger info: {self.describe(state)}#\n\n"
        elements = list(self.map.elements.values())
        totals = [sum(element.sums[place] for element in elements) for place in range(1 + len(self.values))]
        most = [max((element.sums[place] for element in elements), default=0) for place in range(len(totals))]
        for element in self._sorted(elements):
            yield self.keys_text(element.keys, element.comm) + f" hitcount: {element.sums[0]:10d}"
            for place, value in enumerate(self.values, 1):
                if value.kind != fields.EXPR:
                    yield "  " + _value_text(value, element.sums[place], totals[place], most[place])
            yield "".join(action.text(self, element) for action in self.actions) + "\n"
        note = self.array.snapshot_note
        if note is not None and note.histogram is self:
            yield note.text()
        counts = self.map
        yield f"\nTotals:\n    Hits: {counts.hits}\n    Entries: {len(elements)}\n    Dropped: {counts.drops}\n"

    def _sorted(self, elements: list[Element]) -> list[Element]:
        for place, down in reversed(self.sort):
            elements.sort(key=self._order(place), reverse=down)
        return elements

    def _order(self, place: int) -> Callable[[Element], Any]:
        index = place - 1 - len(self.values)
        if index < 0:
            return lambda element: element.sums[place]
        key = self.keys[index]
        return lambda element: key.order(element.keys[index])

    def keys_text(self, keys: tuple[Any, ...], comm: str) -> str:
        """An entry's keys in braces (``hist_trigger_print_key``)."""
        parts = [self._key_text(key, value, comm) for key, value in zip(self.keys, keys, strict=True)]
        end = "" if any(key.kind == fields.STACKTRACE for key in self.keys) else " "
        return "{ " + ", ".join(parts) + end + "}"

    def _key_text(self, key: HistField, value: Any, comm: str) -> str:
        if key.kind == fields.STACKTRACE:
            return "stacktrace:\n" + "".join(f"         {self.tracing.symbol(frame)}\n" for frame in value)
        if key.modifier == "execname":
            return f"{key.full_name}: {comm:<16}[{value:10d}]"
        if key.modifier in _KEY_TEXTS and not key.text:
            return f"{key.full_name}: " + _KEY_TEXTS[key.modifier](self.tracing, key, value)
        return f"{key.full_name}: {value:<50}" if key.text else f"{key.full_name}: {value:10d}"


class SortKeys:
    """``sort=…`` (``create_sort_keys``): places in (hit count, values…, keys…), and whether they descend."""

    def __init__(self, histogram: Histogram, wrong: Complaints) -> None:
        self._names = [made.full_name for made in (*histogram.values, *histogram.keys)]
        self._wrong = wrong

    def parse(self, text: str) -> list[tuple[int, bool]]:
        """HistError."""
        if not text:
            return [(0, False)]
        words = text.split(",")
        chosen = []
        for place, word in enumerate(words[:MAX_SORT]):
            name, dot, order = word.partition(".")
            if word and place == MAX_SORT - 1 and len(words) > MAX_SORT:
                raise self._wrong.error("Too many sort fields (Max = 2)", "sort=")
            if not name:
                raise self._wrong.error("Empty sort field", "sort=")
            if name != "hitcount" and name not in self._names:
                raise self._wrong.error("Sort field must be a key or a val", name)
            if dot and order not in ("ascending", "descending"):
                raise self._wrong.error("Invalid sort modifier", order)
            index = 0 if name == "hitcount" else 1 + self._names.index(name)
            chosen.append((index, order == "descending"))
        return chosen


_KEY_TEXTS: dict[str, Callable[[Tracing, HistField, Any], str]] = {
    "hex": lambda tracing, key, value: f"{value:x}",
    "sym": lambda tracing, key, value: f"[{value:x}] {tracing.function_name(value):<45}",
    "sym-offset": lambda tracing, key, value: f"[{value:x}] {tracing.symbol(value):<55}",
    "syscall": lambda tracing, key, value: f"{'unknown_syscall':<30}[{value:3d}]",
    "log2": lambda tracing, key, value: f"~ 2^{value:<2d}",
    "buckets": lambda tracing, key, value: f"~ {value}-{value + key.buckets - 1}",
}


def _value_text(value: HistField, number: int, total: int, most: int) -> str:
    name = value.full_name
    if value.modifier == "hex":
        return f"{name}: {number:10x}"
    if value.modifier == "percent":
        share = number * 10000 // total if total else 0
        return f"{name} (%): {share // 100:3d}.{share % 100:02d}"
    if value.modifier == "graph":
        length = (number * 10000 // most if most else 0) * BAR // 10000
        return f"{name}: {'#' * length:<{BAR}}"
    return f"{name}: {number:10d}"
