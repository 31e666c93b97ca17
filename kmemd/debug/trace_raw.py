"""Records without their text: the options ``raw``, ``hex`` and ``bin`` (kernel/trace/trace.c ``print_raw_fmt`` …).

Who is the task, which CPU and when, as decimal numbers, hexadecimal ones or bytes; then what its kind has to say
in that form. That is little: events are shown by their number alone, functions by addresses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from kmemd.debug.trace_ftrace import FUNCTION, GRAPH_ENTRY, GRAPH_EXIT, PRINT, RAW_DATA
from kmemd.debug.trace_output import Printer

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray

FORMS = ("bin", "hex", "raw")
"""The first of these that is on decides."""


def printer_of(tracing: Tracing, array: TraceArray) -> Printer:
    """What makes the lines of an array's records by its options."""
    form = next((form for form in FORMS if form in array.options), None)
    return Printer(tracing, array) if form is None else RawPrinter(tracing, array, form)


def _hex(value: int, size: int) -> str:
    return f"{value & (1 << 8 * size) - 1:0{2 * size}x} "


class RawPrinter(Printer):
    """Makes the lines, or bytes, of one array's records; function_graph keeps its own."""

    annotates = False

    def __init__(self, tracing: Tracing, array: TraceArray, form: str) -> None:
        super().__init__(tracing, array)
        self._form = form
        head, body, end = _FORMS[form]
        self._head, self._body, self._end = head, body, end

    def line(self, cpu: int, ns: int, record: bytes) -> str:
        """A record in the form chosen; bytes that are no text are surrogates."""
        number = int.from_bytes(record[:2], "little")
        if number in (GRAPH_ENTRY, GRAPH_EXIT):
            return super().line(cpu, ns, record)
        pid = int.from_bytes(record[4:8], "little", signed=True)
        head = self._head(pid, cpu, ns) if self._context else ""
        return head + self._body(self, number, record) + self._end

    def raw_body(self, number: int, record: bytes) -> str:
        """``funcs->raw``."""
        if number == FUNCTION:
            return "{:x} {:x}\n".format(*self._addresses(record))
        if number == PRINT:
            where, text = self._message(record)
            return f"# {where:x} {text}"
        return self._raw(record) if number == RAW_DATA else f"type: {number}\n"

    def hex_body(self, number: int, record: bytes) -> str:
        """``funcs->hex``."""
        if number == FUNCTION:
            return "".join(_hex(address, 8) for address in self._addresses(record))
        return f"type: {number}\n"

    def bin_body(self, number: int, record: bytes) -> str:
        """``funcs->binary``."""
        if number == FUNCTION:
            return record[8:24].decode("utf-8", "surrogateescape")
        return f"type: {number}\n"

    @staticmethod
    def _addresses(record: bytes) -> tuple[int, int]:
        return int.from_bytes(record[8:16], "little"), int.from_bytes(record[16:24], "little")


def _raw_head(pid: int, cpu: int, ns: int) -> str:
    return f"{pid} {cpu} {ns} "


def _hex_head(pid: int, cpu: int, ns: int) -> str:
    return _hex(pid, 4) + _hex(cpu, 4) + _hex(ns, 8)


def _bin_head(pid: int, cpu: int, ns: int) -> str:
    return struct.pack("<iiQ", pid, cpu, ns).decode("utf-8", "surrogateescape")


_FORMS: dict[str, tuple[Callable[[int, int, int], str], Callable[[RawPrinter, int, bytes], str], str]] = {
    "raw": (_raw_head, RawPrinter.raw_body, ""),
    "hex": (_hex_head, RawPrinter.hex_body, "\n"),
    "bin": (_bin_head, RawPrinter.bin_body, ""),
}
