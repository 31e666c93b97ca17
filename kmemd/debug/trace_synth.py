"""Synthetic events, which histograms make of their variables (kernel/trace/trace_events_synth.c).

``latency u64 lat; pid_t pid; char comm[16]`` makes events/synthetic/latency, which is an event as any other: it can be
recorded, filtered, and be the source of histograms. ``!latency`` takes it away.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kmemd.debug.trace_format import COMMON_SIZE, Event, Field, Layout
from kmemd.debug.trace_ftrace import head
from kmemd.debug.trace_hist_parse import Complaints
from kmemd.errors import KernelError
from kmemd.mm.gfp import format_gfp

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing

SYSTEM = "synthetic"
FIRST_ID = 543
"""The number after those of the kernel's own events."""
FIRST_NUMBER = 1 << 16
"""Beyond the numbers of the emitters' events."""
MAX_FIELDS = 64
STRING_SIZE = 256
"""STR_VAR_LEN_MAX: the room of a text of fixed size."""
STACK_DEPTH = 16
NAME = re.compile(r"[A-Za-z_]\w*")
TYPES = {
    "s64": (8, "%lld"),
    "u64": (8, "%llu"),
    "s32": (4, "%d"),
    "u32": (4, "%u"),
    "s16": (2, "%d"),
    "u16": (2, "%u"),
    "s8": (1, "%d"),
    "u8": (1, "%u"),
    "char": (1, "%d"),
    "unsigned char": (1, "%u"),
    "int": (4, "%d"),
    "unsigned int": (4, "%u"),
    "long": (0, "%ld"),
    "unsigned long": (0, "%lu"),
    "bool": (1, "%d"),
    "pid_t": (4, "%d"),
    "gfp_t": (4, "%x"),
}
"""Size (0: a machine word) and conversion of each type."""
INVALID_COMMAND = "Command must be of the form: <name> field[;field] ..."
INVALID_DYNAMIC = "Command must be of the form: s or -:[synthetic/]<name> field[;field] ..."


@dataclass
class SynthField:
    """One field; ``type`` begins with "__data_loc " when its length varies (``struct synth_field``)."""

    type: str
    name: str
    size: int
    signed: bool
    is_text: bool
    is_stack: bool

    @property
    def dynamic(self) -> bool:
        """Whether its length varies."""
        return self.type.startswith("__data_loc ")

    @property
    def shown_type(self) -> str:
        """The type as it was declared."""
        return self.type.removeprefix("__data_loc ")

    @property
    def conversion(self) -> str:
        """How it is printed (``synth_field_fmt``)."""
        return "%s" if self.is_text or self.is_stack else TYPES[self.type][1]

    @property
    def argument(self) -> str:
        """What prints it in the format file."""
        if self.is_text and self.dynamic:
            return f"__get_str({self.name})"
        return f"__get_stacktrace({self.name})" if self.is_stack else f"REC->{self.name}"

    @property
    def declaration(self) -> str:
        """As the format file has it: an array's length behind the name."""
        kind, bracket, length = self.type.partition("[")
        return f"{self.type} {self.name}" if self.dynamic else f"{kind} {self.name}{bracket}{length}"

    def value_text(self, value: int) -> str:
        """A number as the event's text shows it."""
        bits = 8 * self.size
        number = value & (1 << bits) - 1
        if self.conversion == "%x":
            return f"{number:x}"
        if self.conversion in ("%d", "%ld", "%lld") and number >> bits - 1 and bits >= 32:
            number -= 1 << bits
        return str(number)


class SynthLayout(Layout):
    """Its record: eight bytes a field, 256 for a text of fixed size, then what varies."""

    def __init__(self, event: Event, word: int, declared: list[SynthField]) -> None:
        super().__init__(event, word)
        made, offset = [], COMMON_SIZE
        for one in declared:
            fixed_text = one.is_text and not one.dynamic
            kind = "text" if fixed_text else "dynamic" if one.dynamic else "word"
            made.append(Field(one.declaration, one.name, offset, one.size, one.signed, kind))
            offset += STRING_SIZE if fixed_text else 8
        self.own = tuple(made)
        self.fields = {field.name: field for field in (*self.common, *self.own)}
        self.size = offset


@dataclass
class SynthEvent:
    """A synthetic event; ``references``: histograms on it and actions that make it."""

    name: str
    fields: list[SynthField]
    event: Event
    layout: SynthLayout
    number: int
    references: int = field(default=0)

    @property
    def line(self) -> str:
        """Its line of ``synthetic_events``."""
        return f"{self.name}\t" + "; ".join(f"{one.shown_type} {one.name}" for one in self.fields) + "\n"

    def record(self, pid: int, values: list[Any]) -> bytes:
        """The record of some values (``trace_event_raw_event_synth``)."""
        out = bytearray(self.layout.size)
        out[:COMMON_SIZE] = head(self.event.id, pid)
        for declared, place, value in zip(self.fields, self.layout.own, values, strict=True):
            if declared.dynamic:
                data = _bytes_of(value)
                out[place.offset : place.offset + 4] = (len(out) | len(data) << 16).to_bytes(4, "little")
                out += data
            elif declared.is_text:
                data = str(value).encode("utf-8", "surrogateescape")[: STRING_SIZE - 1]
                out[place.offset : place.offset + len(data)] = data
            else:
                number = value & (1 << 8 * declared.size) - 1
                out[place.offset : place.offset + declared.size] = number.to_bytes(declared.size, "little")
        return bytes(out)

    def text(self, symbol: Callable[[int], str]) -> Callable[[bytes], str]:
        """What makes the text of a record (``print_synth_event``)."""

        def made(record: bytes) -> str:
            out = ""
            for index, (declared, place) in enumerate(zip(self.fields, self.layout.own, strict=True)):
                space = "" if index == len(self.fields) - 1 else " "
                if declared.is_text:
                    out += f"{declared.name}={place.text(record)}{space}"
                elif declared.is_stack:
                    out += f"{declared.name}=STACK:\n" + "".join(f"=> {symbol(one)}\n" for one in _stack(place, record))
                else:
                    value = place.value(record)
                    out += f"{declared.name}={declared.value_text(value)}{space}"
                    out += f" ({format_gfp(value & 0xFFFFFFFF)})" if declared.type == "gfp_t" else ""
            return out

        return made


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, tuple):
        frames = value[:STACK_DEPTH] + ((0,) if len(value) < STACK_DEPTH else ())
        return b"".join(frame.to_bytes(8, "little") for frame in frames)
    return str(value).encode("utf-8", "surrogateescape") + b"\0"


def _stack(place: Field, record: bytes) -> list[int]:
    where = place.value(record) & 0xFFFFFFFF
    start, end = where & 0xFFFF, (where & 0xFFFF) + (where >> 16)
    return [frame for at in range(start, end, 8) if (frame := int.from_bytes(record[at : at + 8], "little"))]


class SyntheticEvents:
    """Those that there are, the oldest first."""

    def __init__(self, tracing: Tracing, word: int) -> None:
        self._tracing = tracing
        self._word = word
        self._events: dict[str, SynthEvent] = {}
        self._made = 0

    def __iter__(self) -> Any:
        return iter(self._events.values())

    def find(self, name: str) -> SynthEvent | None:
        """The event of a name."""
        return self._events.get(name)

    def by_id(self, number: int) -> SynthEvent | None:
        """The event whose records have a number."""
        return next((event for event in self if event.event.id == number), None)

    # -- commands ----------------------------------------------------------------------------------------

    def run(self, line: str) -> None:
        """A line of ``synthetic_events``. EINVAL, EEXIST, ENOENT, EBUSY (``create_or_delete_synth_event``)."""
        command = line.strip()
        if not command:
            return
        wrong = self._complaints(command)
        first = command.partition(";")[0]
        if not first.startswith("!") and len(first.split()) < 3:
            raise wrong.error(INVALID_COMMAND)
        name, _, declared = command.replace("\t", " ").partition(" ")
        if name.startswith("!"):
            self.delete(name[1:])
        else:
            self.create(name, declared, wrong)

    def run_dynamic(self, line: str) -> None:
        """A line of ``dynamic_events``: ``s:[synthetic/]NAME FIELDS``, ``-:[synthetic/]NAME``. EINVAL."""
        command = line.strip()
        if not command:
            return
        if command[0] in "-!":
            self._delete_dynamic(command)
            return
        name, _, declared = command.replace("\t", " ").partition(" ")
        if not name.startswith("s:"):
            raise KernelError(errno.EINVAL, f"no kind of dynamic events: {command}")
        wrong = self._complaints(command)
        group, slash, rest = name[2:].partition("/")
        if not declared:
            raise wrong.error(INVALID_COMMAND)
        if slash and group != SYSTEM:
            raise wrong.error(INVALID_DYNAMIC)
        if len(command.partition(";")[0].split()) < 3:
            raise wrong.error(INVALID_COMMAND)
        self.create(rest if slash else group, declared, wrong)

    def _delete_dynamic(self, command: str) -> None:
        word = command.split()[0]
        kind, colon, name = word.partition(":")
        if not colon or (word[0] == "-" and kind != "-"):
            raise KernelError(errno.EINVAL, f"not of the form -:[synthetic/]NAME: {word}")
        group, slash, rest = name.partition("/")
        if slash and group != SYSTEM:
            raise KernelError(errno.ENOENT, f"there is no event {name}")
        if not slash and not name:
            raise KernelError(errno.EINVAL, "an event has a name")
        self.delete(rest if slash else name)

    def clear(self) -> None:
        """Remove all. EBUSY when one is in use (``dyn_events_release_all``)."""
        for event in self:
            self._check_idle(event)
        for event in list(self):
            self.delete(event.name)

    def _complaints(self, command: str) -> Complaints:
        return Complaints(command, lambda message, at: self._tracing.complain("synthetic_events", message, command, at))

    # -- making and removing -----------------------------------------------------------------------------

    def create(self, name: str, text: str, wrong: Complaints) -> None:
        """Declare an event (``__create_synth_event``). EINVAL, EEXIST."""
        if not NAME.fullmatch(name):
            raise wrong.error("Illegal name", name)
        if name in self._events:
            raise wrong.error("Event already exists", name, errno.EEXIST)
        declared: list[SynthField] = []
        for part in text.split(";"):
            declared += self._fields(part.split(), wrong)
            if len(declared) > MAX_FIELDS:
                raise wrong.error("Too many fields")
        if not declared:
            raise wrong.error(INVALID_COMMAND)
        form = ", ".join(f"{one.name}={one.conversion}" for one in declared)
        arguments = "".join(f", {one.argument}" for one in declared)
        event = Event(SYSTEM, name, FIRST_ID + self._made, "", f'"{form}"{arguments}')
        made = SynthEvent(name, declared, event, SynthLayout(event, self._word, declared), FIRST_NUMBER + self._made)
        self._made += 1
        self._events[name] = made
        self._tracing.add_dynamic(made.event, made.layout, made.number)

    def delete(self, name: str) -> None:
        """Take an event away. ENOENT; EBUSY while it is on or histograms need it."""
        event = self._events.get(name)
        if event is None:
            raise KernelError(errno.ENOENT, f"there is no synthetic event {name}")
        self._check_idle(event)
        del self._events[name]
        self._tracing.remove_dynamic(SYSTEM, name)

    def _check_idle(self, event: SynthEvent) -> None:
        on = any(array.file(SYSTEM, event.name).wanted for array in self._tracing.arrays())
        if event.references or on:
            raise KernelError(errno.EBUSY, f"synthetic event {event.name} is in use")

    def _fields(self, words: list[str], wrong: Complaints) -> list[SynthField]:
        made = []
        while words:
            prefix = ""
            if words[0] == "unsigned":
                if len(words) < 3:
                    raise wrong.error("Incomplete type", words[0])
                prefix, words = "unsigned ", words[1:]
            if len(words) < 2:
                raise wrong.error("Invalid field", words[0])
            made.append(self._field(prefix, words[0], words[1], wrong))
            words = words[2:]
        return made

    def _field(self, prefix: str, kind: str, word: str, wrong: Complaints) -> SynthField:
        """``parse_synth_field``. EINVAL."""
        name, bracket, length = word.partition("[")
        if not NAME.fullmatch(name):
            raise wrong.error("Illegal name", word)
        kind_text = prefix + kind + bracket + length
        text, stack = "char[" in kind_text, "long[" in kind_text
        size = _text_size(kind_text) if text else 0 if stack else self._size(kind_text)
        if size is None:
            raise wrong.error("Invalid array specification" if bracket else "Invalid type", word if bracket else kind)
        if size == 0 and not (text or stack):
            raise wrong.error("Invalid type", kind)
        if size == 0:
            kind_text, size = f"__data_loc {kind_text}", 8
        signed = not kind_text.startswith("u") and kind_text != "gfp_t"
        return SynthField(kind_text, name, size, signed, text, stack and not text)

    def _size(self, kind: str) -> int:
        size, _ = TYPES.get(kind, (-1, ""))
        return self._word if size == 0 else max(size, 0)


def _text_size(kind: str) -> int | None:
    """The length of ``char[16]``, 0 for ``char[]``, None for what is neither (``synth_field_string_size``)."""
    found = re.search(r"char\[([^\]]*)\]$", kind)
    if found is None or len(found[1]) > 3:
        return None
    if not found[1]:
        return 0
    try:
        size = int(found[1], 0)
    except ValueError:
        return None
    return size if 0 <= size <= STRING_SIZE else None
