"""Histograms of events: how often, and how much, by keys (kernel/trace/trace_events_hist.c, tracing_map.c).

``hist:keys=call_site.sym,order:vals=bytes_req:sort=bytes_req.descending:size=1024``. Left out: variables, expressions,
actions (onmatch, onmax), named histograms.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kmemd.debug.trace_filter import Sample
from kmemd.debug.trace_format import Layout
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing

WORD = 0xFFFFFFFFFFFFFFFF
DEFAULT_BITS = 11
MIN_BITS, MAX_BITS = 7, 17
STACK_DEPTH = 16
MAX_KEYS = 3
MODIFIERS = ("hex", "sym", "sym-offset", "execname", "log2", "percent", "graph", "buckets")
VALUE_MODIFIERS = ("hex", "percent", "graph")
COMMANDS = {"pause": "pause", "cont": "cont", "continue": "cont", "clear": "clear"}


class HistError(KernelError):
    """EINVAL; ``at`` is the part of the command that was wrong."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(errno.EINVAL, message)
        self.message = message
        self.at = at


@dataclass(frozen=True)
class HistField:
    """A key or a value: its name, how it is shown, how it is read."""

    name: str
    modifier: str
    get: Callable[[Sample], Any]
    text: bool = False
    buckets: int = 0

    @property
    def spec(self) -> str:
        """As the trigger file shows it."""
        size = f"={self.buckets}" if self.buckets else ""
        return f"{self.name}.{self.modifier}{size}" if self.modifier else self.name


@dataclass
class HistSpec:
    """What a command asks for; ``command`` is pause, cont or clear."""

    keys: list[HistField]
    values: list[HistField]
    sort: list[tuple[int, bool]] = field(default_factory=list)
    bits: int = DEFAULT_BITS
    command: str = ""

    @property
    def identity(self) -> tuple[object, ...]:
        """What two histograms have in common that count the same."""
        return tuple(key.spec for key in self.keys), tuple(value.spec for value in self.values), tuple(self.sort)


def parse_hist(text: str, layout: Layout) -> HistSpec:
    """A definition, "hist:keys=…". HistError."""
    options: dict[str, str] = {}
    command = ""
    for part in text.split(":")[1:]:
        name, equals, value = part.partition("=")
        if not equals and part in COMMANDS:
            command = COMMANDS[part]
        elif equals and name in _NAMES:
            options[_NAMES[name]] = value
        else:
            raise HistError("Couldn't find field", part)
    if not options.get("keys"):
        raise HistError("Couldn't create histogram for field", "")
    keys = [_field(word, layout, MODIFIERS) for word in options["keys"].split(",")]
    if len(keys) > MAX_KEYS:
        raise HistError("Too many subexpressions (3 max)", options["keys"])
    names = [word for word in options.get("vals", "").split(",") if word not in ("", "hitcount")]
    spec = HistSpec(keys, [_value(word, layout) for word in names], command=command)
    spec.sort = _sort(options.get("sort", ""), spec)
    spec.bits = _bits(options.get("size", ""))
    return spec


_NAMES = {
    "keys": "keys",
    "key": "keys",
    "vals": "vals",
    "val": "vals",
    "values": "vals",
    "sort": "sort",
    "size": "size",
}


def _bits(text: str) -> int:
    if not text:
        return DEFAULT_BITS
    if not text.isdigit() or not MIN_BITS <= max(int(text) - 1, 0).bit_length() <= MAX_BITS:
        raise HistError("Couldn't create histogram for field", text)
    return (int(text) - 1).bit_length()


def _value(word: str, layout: Layout) -> HistField:
    made = _field(word, layout, VALUE_MODIFIERS)
    if made.text:
        raise HistError("String type can not be an operand in expression", word)
    return made


def _field(word: str, layout: Layout, modifiers: tuple[str, ...]) -> HistField:
    if word in ("stacktrace", "common_stacktrace"):
        return HistField("stacktrace", "", lambda sample: sample.stack)
    name, dot, modifier = word.partition(".")
    modifier, _, size = modifier.partition("=")
    if dot and (modifier not in modifiers or (modifier == "buckets" and not size.isdigit())):
        raise HistError("Invalid field modifier", word.partition(".")[2])
    get, text = _getter(name, layout)
    buckets = int(size) if modifier == "buckets" else 0
    if modifier == "execname":
        if name != "common_pid":
            raise HistError("Invalid field modifier", modifier)
        return HistField(name, modifier, lambda sample: (get(sample), sample.comm))
    if modifier == "log2":
        return HistField(name, modifier, lambda sample: max(get(sample) - 1, 0).bit_length())
    if buckets:
        return HistField(name, modifier, lambda sample: get(sample) // buckets * buckets, buckets=buckets)
    return HistField(name, modifier, get, text)


def _getter(name: str, layout: Layout) -> tuple[Callable[[Sample], Any], bool]:
    if name in ("common_cpu", "cpu"):
        return (lambda sample: sample.cpu), False
    if name == "common_timestamp":
        return (lambda sample: sample.ns), False
    found = layout.fields.get(name)
    if found is None:
        raise HistError("Couldn't find field", name)
    declared = found
    if declared.is_text:
        return (lambda sample: declared.text(sample.record)), True
    return (lambda sample: declared.value(sample.record) & WORD), False


def _sort(text: str, spec: HistSpec) -> list[tuple[int, bool]]:
    """Sort keys as places in (hitcount, values…, keys…) and whether they descend."""
    if not text:
        return [(0, False)]
    words = text.split(",")
    if len(words) > 2:
        raise HistError("Too many sort fields (Max = 2)", text)
    names = ["hitcount", *(value.name for value in spec.values), *(key.name for key in spec.keys)]
    chosen = []
    for word in words:
        name, _, order = word.partition(".")
        if not name:
            raise HistError("Empty sort field", text)
        if order not in ("", "ascending", "descending"):
            raise HistError("Invalid sort modifier", order)
        if name not in names:
            raise HistError("Sort field must be a key or a val", name)
        chosen.append((names.index(name), order == "descending"))
    return chosen


class Histogram:
    """The counts of one trigger: for each tuple of keys, how often it was seen and the sums of the values."""

    def __init__(self, spec: HistSpec, tracing: Tracing) -> None:
        self.spec = spec
        self.paused = spec.command == "pause"
        self._tracing = tracing
        self._counts: dict[tuple[Any, ...], list[int]] = {}
        self._hits = 0
        self._drops = 0

    def same(self, spec: HistSpec) -> bool:
        """Whether a command means this one."""
        return self.spec.identity == spec.identity

    def obey(self, command: str) -> None:
        """Pause, go on or begin anew."""
        if command == "clear":
            self._counts.clear()
            self._hits = self._drops = 0
        else:
            self.paused = command == "pause"

    def add(self, sample: Sample) -> None:
        """Count a record; a new key is dropped when the table is full (``tracing_map_insert``)."""
        if self.paused:
            return
        keys = tuple(key.get(sample) for key in self.spec.keys)
        sums = self._counts.get(keys)
        if sums is None:
            if len(self._counts) >= 1 << self.spec.bits:
                self._drops += 1
                return
            sums = self._counts[keys] = [0] * (1 + len(self.spec.values))
        self._hits += 1
        sums[0] += 1
        for place, value in enumerate(self.spec.values, 1):
            sums[place] = (sums[place] + value.get(sample)) & WORD

    # -- text --------------------------------------------------------------------------------------------

    def describe(self, condition: str) -> str:
        """Its line of the trigger file, which the histogram repeats."""
        spec = self.spec
        fields = ["hitcount", *(value.spec for value in spec.values), *(key.spec for key in spec.keys)]
        sort = ",".join(fields[place] + (".descending" if down else "") for place, down in spec.sort)
        keys, values = ",".join(key.spec for key in spec.keys), ",".join(fields[: 1 + len(spec.values)])
        state = "paused" if self.paused else "active"
        return f"hist:keys={keys}:vals={values}:sort={sort}:size={1 << spec.bits}{condition} [{state}]\n"

    def text(self, condition: str) -> Iterator[str]:
        """The ``hist`` file."""
        yield f"# event histogram\n#\n# trigger info: {self.describe(condition)}#\n\n"
        totals = [sum(sums[place] for sums in self._counts.values()) for place in range(1 + len(self.spec.values))]
        most = [max((sums[place] for sums in self._counts.values()), default=0) for place in range(len(totals))]
        for keys, sums in self._sorted():
            yield self._keys_text(keys) + f" hitcount: {sums[0]:10d}"
            for place, value in enumerate(self.spec.values, 1):
                yield "  " + _value_text(value, sums[place], totals[place], most[place])
            yield "\n"
        yield f"\nTotals:\n    Hits: {self._hits}\n    Entries: {len(self._counts)}\n    Dropped: {self._drops}\n"

    def _sorted(self) -> list[tuple[tuple[Any, ...], list[int]]]:
        rows = list(self._counts.items())
        for place, down in reversed(self.spec.sort):
            rows.sort(key=lambda row, place=place: _sort_key(row, place), reverse=down)  # type: ignore[misc]
        return rows

    def _keys_text(self, keys: tuple[Any, ...]) -> str:
        parts = [self._key_text(key, value) for key, value in zip(self.spec.keys, keys, strict=True)]
        end = "" if any(key.name == "stacktrace" for key in self.spec.keys) else " "
        return "{ " + ", ".join(parts) + end + "}"

    def _key_text(self, key: HistField, value: Any) -> str:
        if key.name == "stacktrace":
            frames = self._tracing.stack(value)[:STACK_DEPTH]
            return "stacktrace:\n" + "".join(f"         {self._tracing.symbol(frame)}\n" for frame in frames)
        if key.text:
            return f"{key.name}: {value:<50}"
        if key.modifier == "execname":
            return f"{key.name}: {value[1]:<16}[{value[0]:10d}]"
        if key.modifier in _KEY_TEXTS:
            return f"{key.name}: " + _KEY_TEXTS[key.modifier](self._tracing, key, value)
        return f"{key.name}: {value:10d}"


def _sort_key(row: tuple[tuple[Any, ...], list[int]], place: int) -> Any:
    keys, sums = row
    return sums[place] if place < len(sums) else keys[place - len(sums)]


_KEY_TEXTS: dict[str, Callable[[Tracing, HistField, Any], str]] = {
    "hex": lambda tracing, key, value: f"{value:x}",
    "sym": lambda tracing, key, value: f"[{value:x}] {tracing.function_name(value):<45}",
    "sym-offset": lambda tracing, key, value: f"[{value:x}] {tracing.symbol(value):<55}",
    "log2": lambda tracing, key, value: f"~ 2^{value:<2d}",
    "buckets": lambda tracing, key, value: f"~ {value}-{value + key.buckets - 1}",
}


def _value_text(value: HistField, number: int, total: int, most: int) -> str:
    if value.modifier == "hex":
        return f"{value.name}: {number:10x}"
    if value.modifier == "percent":
        share = number * 10000 // total if total else 0
        return f"{value.name} (%): {share // 100:3d}.{share % 100:02d}"
    if value.modifier == "graph":
        return f"{value.name}: {'#' * (number * 20 // most if most else 0):<20}"
    return f"{value.name}: {number:10d}"
