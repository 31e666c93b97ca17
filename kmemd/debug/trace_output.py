"""Records as text: the header of ``trace``, the columns before an event, the event (kernel/trace/trace_output.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kmemd.debug.trace_ftrace import FUNCTION, GRAPH_ENTRY, GRAPH_EXIT, PRINT, RAW_DATA, STACK
from kmemd.debug.trace_graph import GraphText

if TYPE_CHECKING:
    from kmemd.core.trace import Ring
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray

IRQS_OFF, NEED_RESCHED, HARDIRQ, SOFTIRQ = 0x01, 0x04, 0x08, 0x10


def usecs(ns: int) -> tuple[int, int]:
    """Seconds and microseconds, rounded as the kernel does (``ns2usecs``)."""
    return divmod((ns + 500) // 1000, 1_000_000)


def irq_columns(flags: int, preempt: int) -> str:
    """The five columns of state (``trace_print_lat_fmt``)."""
    context = {0: ".", HARDIRQ: "h", SOFTIRQ: "s", HARDIRQ | SOFTIRQ: "H"}[flags & (HARDIRQ | SOFTIRQ)]
    depth, migrate = (f"{count:x}" if count else "." for count in (preempt & 15, preempt >> 4))
    return f"{'d' if flags & IRQS_OFF else '.'}{'n' if flags & NEED_RESCHED else '.'}{context}{depth}{migrate}"


IRQ_COLUMNS = {flags << 8 | preempt: irq_columns(flags, preempt) for flags in range(32) for preempt in range(256)}


def header(array: TraceArray, online: int, ring: Ring | None = None) -> str:
    """What stands above the records of an array, or of its snapshot's ``ring`` (``trace_default_header``)."""
    if "context-info" not in array.options:
        return ""
    entries, written = array.counts(ring)
    if array.tracer == "function_graph":
        return GraphText.header(array.graph_options)
    if "latency-format" in array.options:
        return _latency_header(array, entries, written, online)
    head = f"# tracer: {array.tracer}\n#\n"
    info = f"# entries-in-buffer/entries-written: {entries}/{written}   #P:{online}\n#\n"
    tgid = "record-tgid" in array.options
    if "irq-info" not in array.options:
        names = f"#           TASK-PID    {'TGID     ' if tgid else ''} CPU#     TIMESTAMP  FUNCTION\n"
        rule = f"#              | |      {'  |      ' if tgid else ''}   |         |         |\n"
        return head + info + names + rule
    room = " " * (12 if tgid else 2)
    rows = (
        f"#                            {room}  _-----=> irqs-off/BH-disabled\n",
        f"#                            {room} / _----=> need-resched\n",
        f"#                            {room}| / _---=> hardirq/softirq\n",
        f"#                            {room}|| / _--=> preempt-depth\n",
        f"#                            {room}||| / _-=> migrate-disable\n",
        f"#                            {room}|||| /     delay\n",
        f"#           TASK-PID  {'     TGID   '[: len(room)]} CPU#  |||||  TIMESTAMP  FUNCTION\n",
        f"#              | |    {'       |    '[: len(room)]}   |   |||||     |         |\n",
    )
    return head + info + "".join(rows)


def _latency_header(array: TraceArray, entries: int, written: int, online: int) -> str:
    rule = "#    -----------------\n"
    return (
        f"# tracer: {array.tracer}\n#\n# {array.tracer} latency trace v1.1.5 on 6.1.0\n"
        "# --------------------------------------------------------------------\n"
        f"# latency: 0 us, #{entries}/{written}, CPU#0 | (M:server VP:0, KP:0, SP:0 HP:0 #P:{online})\n"
        f"{rule}#    | task: -0 (uid:0 nice:0 policy:0 rt_prio:0)\n{rule}#\n"
        "#                    _------=> CPU#            \n"
        "#                   / _-----=> irqs-off/BH-disabled\n"
        "#                  | / _----=> need-resched    \n"
        "#                  || / _---=> hardirq/softirq \n"
        "#                  ||| / _--=> preempt-depth   \n"
        "#                  |||| / _-=> migrate-disable \n"
        "#                  ||||| /     delay           \n"
        "#  cmd     pid     |||||| time  |   caller     \n"
        "#     \\   /        ||||||  \\    |    /       \n"
    )


class Printer:
    """Makes the lines of one array's records; keeps what function_graph needs from line to line.

    ``annotates``: whether a line says where a CPU's buffer begins.
    """

    annotates = True

    def __init__(self, tracing: Tracing, array: TraceArray) -> None:
        self._tracing = tracing
        self._array = array
        self._graph = GraphText(tracing, array)
        options = array.options
        self._context = "context-info" in options
        self._irq = "irq-info" in options
        self._tgid = "record-tgid" in options
        self._latency = "latency-format" in options
        self._comms = tracing.comms
        self._in_ns = array.clock not in ("counter", "x86-tsc", "uptime")
        self._prefixes: dict[tuple[int, bytes], str] = {}
        self._makers: dict[bytes, tuple[str, Callable[[bytes], str]]] = {}
        self._events = tracing.text_functions(array)
        self._first: int | None = None
        self._last_second = -1
        self._second = ""

    def line(self, cpu: int, ns: int, record: bytes) -> str:
        """A record's line, with its newline."""
        maker = self._makers.get(record[:2])
        if maker is None:
            number = record[0] | record[1] << 8
            if number in (GRAPH_ENTRY, GRAPH_EXIT):
                return self._graph.line(cpu, ns, number, record)
            special = _SPECIAL.get(number)
            if special is not None:
                return (self._columns_of(cpu, ns, record) if self._context else "") + special(self, record)
            maker = self._makers[record[:2]] = self._events[number]
        columns = self._columns_of(cpu, ns, record) if self._context else ""
        return f"{columns}{maker[0]}{maker[1](record)}\n"

    def rest(self) -> str:
        """What was held back until the next record."""
        return self._graph.rest()

    def _columns_of(self, cpu: int, ns: int, record: bytes) -> str:
        key = cpu, record[2:8]
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = self._prefix(cpu, record)
        if not self._in_ns:
            return f"{prefix} {ns:>12d}: "
        if self._latency:
            self._first = ns if self._first is None else self._first
            return f"{prefix} {(ns - self._first + 500) // 1000:4d}us : "
        micros = (ns + 500) // 1000
        seconds = micros // 1_000_000
        if seconds != self._last_second:
            self._last_second, self._second = seconds, f" {seconds:5d}."
        return f"{prefix}{self._second}{micros % 1_000_000:06d}: "

    def _prefix(self, cpu: int, record: bytes) -> str:
        """The columns before the time, the same for all records of a task on a CPU."""
        pid = int.from_bytes(record[4:8], "little", signed=True)
        comm, state = self._comms.find(pid), IRQ_COLUMNS[record[2] << 8 | record[3]]
        if self._latency:
            return f"{comm[:8]:>8}-{pid:<7d} {cpu:3d}{state}"
        tgid = self._tracing.tgid_column(pid) if self._tgid else ""
        return f"{comm:>16}-{pid:<7d} {tgid}[{cpu:03d}] {state if self._irq else ''}"

    # what is not an event of its own

    def _message(self, record: bytes) -> tuple[int, str]:
        """Who says a message, and what."""
        end = 8 + self._tracing.word
        text = record[end:].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        return int.from_bytes(record[8:end], "little"), text

    def _print(self, record: bytes) -> str:
        where, text = self._message(record)
        return f"{self._tracing.function_name(where)}: {text}"

    def _raw(self, record: bytes) -> str:
        number = int.from_bytes(record[8:12], "little")
        return f"# {number:x} buf:" + "".join(f" {byte:02x}" for byte in record[12:]) + "\n"

    def _function(self, record: bytes) -> str:
        ip, parent = (int.from_bytes(record[at : at + 8], "little") for at in (8, 16))
        symbol = self._tracing.symbol if "sym-offset" in self._array.options else self._tracing.function_name
        text = symbol(ip)
        if "print-parent" in self._array.options:
            text += f" <-{symbol(parent)}"
        return text + "\n"

    def _stack(self, record: bytes) -> str:
        count = int.from_bytes(record[8:12], "little")
        frames = (int.from_bytes(record[16 + 8 * i : 24 + 8 * i], "little") for i in range(count))
        symbol = self._tracing.symbol if "sym-offset" in self._array.options else self._tracing.function_name
        return "<stack trace>\n" + "".join(f" => {symbol(frame)}\n" for frame in frames)


_SPECIAL: dict[int, Callable[[Printer, bytes], str]] = {
    PRINT: Printer._print,
    RAW_DATA: Printer._raw,
    FUNCTION: Printer._function,
    STACK: Printer._stack,
}
