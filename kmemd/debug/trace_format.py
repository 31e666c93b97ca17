"""Trace events as they are declared, and the format files that follow from it (kernel/trace/trace_events.c).

An event is its name, its number, its fields as in C, and the text of its ``print fmt``; offsets and sizes follow from
the rules of C for structures. ``$NAME`` in a text stands for a table of ``trace_macros``.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cached_property

from kmemd.debug.trace_macros import MACROS

COMMON = "unsigned short common_type; unsigned char common_flags; unsigned char common_preempt_count; int common_pid"
COMMON_SIZE = 8

# size on 64 bits (0: a machine word) and whether it is signed
TYPES = {
    "char": (1, True),
    "bool": (1, False),
    "unsigned char": (1, False),
    "short": (2, True),
    "unsigned short": (2, False),
    "__u16": (2, False),
    "int": (4, True),
    "pid_t": (4, True),
    "unsigned int": (4, False),
    "uid_t": (4, False),
    "dev_t": (4, False),
    "errseq_t": (4, False),
    "long": (0, True),
    "unsigned long": (0, False),
    "size_t": (0, False),
    "ino_t": (0, False),
    "unsigned long long": (8, False),
}
_DECLARATION = re.compile(r"(?P<type>.*?)\s*(?P<name>\w+)(?:\[(?P<length>\d*)\])?$")
_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


@dataclass(frozen=True)
class Field:
    """One field of a record; ``kind``: "word", "text" (a char array), "dynamic" (__data_loc) or "rest" (``buf[]``)."""

    declaration: str
    name: str
    offset: int
    size: int
    signed: bool
    kind: str = "word"

    @property
    def line(self) -> str:
        """Its line of a format file."""
        end = f"offset:{self.offset};\tsize:{self.size};\tsigned:{int(self.signed)};"
        return f"\tfield:{self.declaration};\t{end}\n"

    def value(self, record: bytes) -> int:
        """What a record holds in it, as a number."""
        return int.from_bytes(record[self.offset : self.offset + self.size], "little", signed=self.signed)

    def text(self, record: bytes) -> str:
        """What a record holds in it, as a text."""
        start, length = self.offset, self.size
        if self.kind == "dynamic":
            where = self.value(record) & 0xFFFFFFFF
            start, length = where & 0xFFFF, where >> 16
        elif self.kind == "rest":
            length = len(record) - start
        return record[start : start + length].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    @property
    def is_text(self) -> bool:
        """Whether filters and histograms take it for a text."""
        return self.kind != "word"


def parse_fields(declarations: str, offset: int, word: int) -> tuple[Field, ...]:
    """Fields from ``offset`` on, laid out as C does; ``word`` is the size of a pointer."""
    fields = []
    for declaration in filter(None, (part.strip() for part in declarations.split(";"))):
        found = _DECLARATION.match(declaration)
        assert found is not None, declaration
        kind, size, signed, align = "word", *_type(found["type"], word)
        if declaration.startswith("__data_loc"):
            kind, size, signed, align = "dynamic", 4, True, 4
        elif found["length"] is not None:
            kind, align = ("text" if found["length"] else "rest"), size
            size *= int(found["length"] or 0)
        offset += -offset % align
        fields.append(Field(declaration, found["name"], offset, size, signed, kind))
        offset += size
    return tuple(fields)


def _type(name: str, word: int) -> tuple[int, bool, int]:
    if name.endswith("*"):
        return word, False, word
    if name.startswith("enum "):
        return 4, False, 4
    size, signed = TYPES.get(name, (4, True))
    size = size or word
    return size, signed, min(size, word)


@dataclass(frozen=True)
class Event:
    """A declared event."""

    system: str
    name: str
    id: int
    declarations: str
    template: str

    @cached_property
    def print_fmt(self) -> str:
        """The ``print fmt`` with all tables written out."""
        return re.sub(r"\$([A-Z_]+)", lambda match: MACROS[match[1]], self.template)

    def layout(self, word: int) -> Layout:
        """The record of the event on a machine with words of ``word`` bytes."""
        return Layout(self, word)


class Layout:
    """How records of an event look."""

    def __init__(self, event: Event, word: int) -> None:
        self.event = event
        self.word = word
        self.common = parse_fields(COMMON, 0, word)
        self.own = parse_fields(event.declarations, COMMON_SIZE, word)
        self.fields = {field.name: field for field in (*self.common, *self.own)}
        last = self.own[-1] if self.own else self.common[-1]
        self.size = last.offset + last.size

    def format(self) -> str:
        """The event's ``format`` file."""
        head = f"name: {self.event.name}\nID: {self.event.id}\nformat:\n"
        common, own = ("".join(field.line for field in group) for group in (self.common, self.own))
        return f"{head}{common}\n{own}\nprint fmt: {self.event.print_fmt}\n"

    def unpacker(self) -> struct.Struct:
        """Takes a record's words and char arrays apart, in the order of the fields."""
        text, at = "<HBBi", COMMON_SIZE
        for field in self.own:
            if field.kind == "rest":
                continue
            code = f"{field.size}s" if field.kind == "text" else _CODES[field.size]
            code = code if field.signed and field.kind != "dynamic" else code.upper() if len(code) == 1 else code
            text += "x" * (field.offset - at) + code
            at = field.offset + field.size
        return struct.Struct(text)
