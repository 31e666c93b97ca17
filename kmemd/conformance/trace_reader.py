"""A reader of trace records that knows nothing but format files: offsets, sizes and the text's expression.

It stands for programs such as trace-cmd: what it makes of a record comes from the captured file, not from the model's
declarations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kmemd.debug.trace_format import Event, Field, Layout
from kmemd.debug.trace_printfmt import Machine, compile_print_fmt

PAGE = 4096
HEADER = 16
TIME_EXTEND = 30
_FIELD = re.compile(r"\tfield:(?P<what>.*?);\toffset:(?P<offset>\d+);\tsize:(?P<size>\d+);\tsigned:(?P<signed>\d);")


class _Captured(Layout):
    """A layout as a format file gives it."""

    def __init__(self, event: Event, fields: list[Field]) -> None:
        super().__init__(event, 8)
        self.common, self.own = tuple(fields[:4]), tuple(fields[4:])
        self.fields = {found.name: found for found in fields}
        self.size = max(found.offset + found.size for found in fields)


@dataclass
class FormatFile:
    """One parsed format file."""

    name: str
    id: int
    layout: Layout
    _texts: dict[int, Callable[[bytes], str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> FormatFile:
        """Read a format file. ValueError when something is missing."""
        name, number = re.search(r"^name: (\w+)$", text, re.M), re.search(r"^ID: (\d+)$", text, re.M)
        if name is None or number is None or "print fmt: " not in text:
            raise ValueError("not a format file")
        fields = [_field(match) for match in _FIELD.finditer(text)]
        form = text.split("print fmt: ", 1)[1].removesuffix("\n")
        return cls(name[1], int(number[1]), _Captured(Event("", name[1], int(number[1]), "", form), fields))

    def text(self, record: bytes, machine: Machine) -> str:
        """A record in words."""
        made = self._texts.get(id(machine))
        if made is None:
            made = self._texts[id(machine)] = compile_print_fmt(self.layout, machine)
        return made(record)


def _field(match: re.Match[str]) -> Field:
    what = match["what"]
    array = re.search(r"(\w+)\[\d*\]$", what)
    kind = "dynamic" if what.startswith("__data_loc") else "text" if array is not None else "word"
    name = array[1] if array is not None else what.split()[-1]
    return Field(what, name, int(match["offset"]), int(match["size"]), match["signed"] == "1", kind)


def events_of_page(page: bytes) -> Iterator[bytes]:
    """The records of a page of the ring, by ``header_page`` and ``header_event``."""
    at, end = HEADER, HEADER + (int.from_bytes(page[8:16], "little") & 0xFFFFF)
    while at < end:
        word = int.from_bytes(page[at : at + 4], "little")
        kind = word & 31
        if kind == TIME_EXTEND:
            at += 8
            continue
        start, length = at + 4, kind * 4
        if not kind:
            start, length = at + 8, int.from_bytes(page[at + 4 : at + 8], "little") - 4
        yield page[start : start + length]
        at = start + length
