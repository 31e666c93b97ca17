"""The lines of the function_graph tracer (kernel/trace/trace_functions_graph.c)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kmemd.debug.trace_ftrace import GRAPH_ENTRY

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray

INDENT = 2
OVERHEAD = (
    (1_000_000_000, "$"),
    (100_000_000, "@"),
    (10_000_000, "*"),
    (1_000_000, "#"),
    (100_000, "!"),
    (10_000, "+"),
)
"""Durations in ns above which a sign is printed."""


def mark(ns: int) -> str:
    """The sign for a long duration (``trace_find_mark``)."""
    return next((sign for least, sign in OVERHEAD if ns > least), " ")


def duration(ns: int) -> str:
    """A duration in the seven digits of its column (``trace_print_graph_duration``)."""
    micros, rest = divmod(ns, 1000)
    text = str(micros)
    if len(text) < 7:
        text += "." + f"{rest:03d}"[: min(4, 8 - len(text)) - 1]
    return f"{text} us " + " " * (8 - len(text))


@dataclass
class _Cpu:
    pid: int = -1
    entered: dict[int, int] = field(default_factory=dict)


class GraphText:
    """Lines of one array. An exit's record says when the function was entered, so a leaf is known at its entry:

    its exit is the next record of its CPU. ``follows`` is what comes next, told by ``expect``.
    """

    def __init__(self, tracing: Tracing, array: TraceArray) -> None:
        self._tracing = tracing
        self._options = array.graph_options
        self._cpus: dict[int, _Cpu] = {}
        self._open: dict[int, tuple[int, int]] = {}

    @staticmethod
    def header(options: set[str]) -> str:
        """The two lines above."""
        columns = (
            ("funcgraph-abstime", "     TIME       ", "      |         "),
            ("funcgraph-cpu", " CPU", " |  "),
            ("funcgraph-proc", "  TASK/PID       ", "   |    |        "),
            ("funcgraph-duration", "  DURATION   ", "   |   |      "),
        )
        chosen = [(upper, lower) for name, upper, lower in columns if name in options]
        first = "#" + "".join(upper for upper, _ in chosen) + "               FUNCTION CALLS\n"
        second = "#" + "".join(lower for _, lower in chosen) + "               |   |   |   |\n"
        return f"# tracer: function_graph\n#\n{first}{second}"

    def line(self, cpu: int, ns: int, number: int, record: bytes) -> str:
        """One record: the entry of a function that calls others, or an exit; a leaf is one line, at its exit."""
        pid = int.from_bytes(record[4:8], "little", signed=True)
        function, depth = int.from_bytes(record[8:16], "little"), int.from_bytes(record[16:20], "little")
        text = self._flush(cpu) if number == GRAPH_ENTRY else ""
        text += self._switch(cpu, pid)
        if number == GRAPH_ENTRY:
            self._open[cpu] = (function, depth)
            self._pending_head = self._head(cpu, ns, pid)
            self._cpus[cpu].entered[depth] = function
            return text
        start, end = (int.from_bytes(record[at : at + 8], "little") for at in (24, 32))
        return text + self._exit(cpu, ns, pid, function, depth, end - start)

    def _exit(self, cpu: int, ns: int, pid: int, function: int, depth: int, took: int) -> str:
        room = " " * (depth * INDENT)
        column = self._duration(took)
        name = self._tracing.function_name(function)
        opened = self._open.pop(cpu, None)
        entered = self._cpus[cpu].entered.pop(depth, None)
        if opened == (function, depth):
            return f"{self._pending_head}{column}{room}{name}();\n"
        known = entered == function and "funcgraph-tail" not in self._options
        return f"{self._head(cpu, ns, pid)}{column}{room}" + ("}\n" if known else f"}} /* {name} */\n")

    def _flush(self, cpu: int) -> str:
        """The entry that waits for what follows: something was called from it."""
        opened = self._open.pop(cpu, None)
        if opened is None:
            return ""
        function, depth = opened
        filler = "              |  " if "funcgraph-duration" in self._options else ""
        return f"{self._pending_head}{filler}{' ' * (depth * INDENT)}{self._tracing.function_name(function)}() {{\n"

    def _duration(self, took: int) -> str:
        if "funcgraph-duration" not in self._options:
            return ""
        sign = mark(took) if "funcgraph-overhead" in self._options else " "
        return f"{sign} {duration(took)}|  "

    def _head(self, cpu: int, ns: int, pid: int) -> str:
        text = ""
        if "funcgraph-abstime" in self._options:
            seconds, rest = divmod(ns // 1000, 1_000_000)
            text += f"{seconds:5d}.{rest:06d} |  "
        if "funcgraph-cpu" in self._options:
            text += f" {cpu:{len(str(self._tracing.cpus - 1))}d}) "
        if "funcgraph-proc" in self._options:
            text += f"{self._process(pid)} | "
        return text

    def _process(self, pid: int) -> str:
        """A task in the middle of 14 columns (``print_graph_proc``)."""
        text = f"{self._tracing.comms.find(pid)[:7]}-{pid}"
        spaces = max(14 - len(text), 0)
        return " " * (spaces // 2) + text + " " * (spaces - spaces // 2)

    def _switch(self, cpu: int, pid: int) -> str:
        """Another task than before on this CPU."""
        state = self._cpus.setdefault(cpu, _Cpu())
        before, state.pid = state.pid, pid
        if before in (-1, pid):
            return ""
        rule = " ------------------------------------------\n"
        width = len(str(self._tracing.cpus - 1))
        return f"{rule} {cpu:{width}d}) {self._process(before)} => {self._process(pid)}\n{rule}\n"

    def rest(self) -> str:
        """Entries that are still open at the end."""
        return "".join(self._flush(cpu) for cpu in list(self._open))
