"""The tracers ``function`` and ``function_graph`` over the model's own calls (kernel/trace/trace_functions*.c).

A call counts when it enters a method that stands for functions of the kernel (``trace_names``): so a trace shows which
subsystem called which, with the model's durations. Loops of the compiled core are part of whoever calls them. While no
tracer is on, nothing is hooked; while one is, the interpreter tells of each call.

A method that works in slices leaves the stack between two of them, so that what others do meanwhile is not its own.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dis import opmap
from fnmatch import fnmatchcase
from inspect import CO_GENERATOR
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any

from kmemd.debug.trace_ftrace import FUNCTION, GRAPH_ENTRY, GRAPH_EXIT, head
from kmemd.debug.trace_names import CHOSEN, ENTRIES, NAMES, TRACED, begun, functions_of, name_of
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray

TRACERS = ("function_graph", "function", "nop")
OUTSIDE = "do_syscall_64"
"""Who calls what no traced function calls."""
YIELD, RESUME = opmap["YIELD_VALUE"], opmap["RESUME"]
FROM_START = 3
"""Bits of what RESUME says that are 0 where a function begins."""


def functions() -> list[str]:
    """What can be traced: functions that methods of the loaded modules stand for."""
    names = {name for found in (*NAMES.values(), *ENTRIES.values()) for name in found}
    for module in [name for name in sys.modules if name.startswith(TRACED)]:
        for thing in list(vars(sys.modules[module]).values()):
            if getattr(thing, "__module__", "") == module:
                names.update(name for method in _methods(thing) for name in functions_of(module, method.__qualname__))
    return sorted(names)


def _methods(thing: Any) -> Iterator[FunctionType]:
    for member in vars(thing).values() if isinstance(thing, type) else (thing,):
        found = getattr(member, "__func__", member)
        if isinstance(found, FunctionType):
            yield found


@dataclass(frozen=True)
class Code:
    """What is known of a method: its functions, unless its arguments say which, and whether it works in slices."""

    names: tuple[str, ...]
    choose: Callable[[FrameType], tuple[str, ...]] | None
    steps: bytes
    """The instructions of a generator."""

    def begins(self, at: int) -> bool:
        """Whether a call that came to instruction ``at`` is the first of its frame."""
        return not self.steps or (self.steps[at] == RESUME and not self.steps[at + 1] & FROM_START)


@dataclass(frozen=True)
class Call:
    """A method that is executed, and the functions that began with it at ``start``, the first of them at ``depth``."""

    frame: FrameType
    names: tuple[str, ...]
    start: int
    depth: int


class FunctionTracer:
    """Watches calls for the arrays that want them."""

    def __init__(self, tracing: Tracing, address_of: Callable[[str], int]) -> None:
        self._tracing = tracing
        self._address_of = address_of
        self._codes: dict[CodeType, Code | None] = {}
        self._arrays: list[TraceArray] = []
        self._stack: list[Call] = []
        self._open: list[str] = []
        self._resting: dict[FrameType, Call] = {}
        self.max_depth = 0

    def choose(self, array: TraceArray, name: str) -> None:
        """Make ``name`` an array's tracer. EINVAL for what there is not."""
        if name not in TRACERS or (name == "function_graph" and not array.is_top):
            raise KernelError(errno.EINVAL, f"no tracer {name}: {' '.join(TRACERS)}")
        self._tracing.sync()
        array.expand()
        if name != array.tracer:
            array.reset()
        array.tracer = name
        self._arrays = [other for other in self._tracing.arrays() if other.tracer != "nop"]
        self._stack.clear()
        self._open.clear()
        self._resting.clear()
        sys.setprofile(self._called if self._arrays else None)

    def forget(self, array: TraceArray) -> None:
        """An array goes."""
        if array.tracer != "nop":
            self.choose(array, "nop")

    # -- calls -------------------------------------------------------------------------------------------

    def _called(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = self._look_up(frame)
        known = self._codes[code]
        if known is None:
            return
        if event == "return":
            if self._stack and self._stack[-1].frame is frame:
                self._returned(frame, known)
        elif known.begins(frame.f_lasti):
            self._enter(frame, known)
        elif frame in self._resting:
            self._go_on(self._resting.pop(frame))

    @staticmethod
    def _look_up(frame: FrameType) -> Code | None:
        module, code = str(frame.f_globals.get("__name__", "")), frame.f_code
        choose = CHOSEN.get(name_of(module, code.co_qualname)) if module.startswith(TRACED) else None
        names = functions_of(module, code.co_qualname) if choose is None else ()
        if not names and choose is None:
            return None
        return Code(names, choose, code.co_code if code.co_flags & CO_GENERATOR else b"")

    def _enter(self, frame: FrameType, known: Code) -> None:
        names = begun(known.names if known.choose is None else known.choose(frame), self._open)
        if names:
            call = Call(frame, names, self._tracing.context.now, len(self._open))
            self._tracing.sync()
            for place, name in enumerate(names):
                self._write_entry(name, self._open[-1] if self._open else OUTSIDE, call.depth + place)
                self._open.append(name)
            self._stack.append(call)

    def _go_on(self, call: Call) -> None:
        """A method works again that has rested."""
        self._stack.append(call)
        self._open.extend(call.names)

    def _returned(self, frame: FrameType, known: Code) -> None:
        """A method is over, or rests."""
        call = self._stack.pop()
        if known.steps and known.steps[frame.f_lasti] == YIELD:
            del self._open[-len(call.names) :]
            self._resting[frame] = call
            return
        self._tracing.sync()
        for place in reversed(range(len(call.names))):
            self._write_exit(call.names[place], call.depth + place, call.start)
            self._open.pop()

    def _write_entry(self, name: str, parent: str, depth: int) -> None:
        for array in self._arrays:
            if not self._wanted(array, name):
                continue
            if array.tracer == "function":
                record = struct.pack("<QQ", self._address_of(name), self._address_of(parent))
                self._write(array, FUNCTION, record)
            elif not self.max_depth or depth < self.max_depth:
                self._write(array, GRAPH_ENTRY, struct.pack("<Qi", self._address_of(name), depth))

    def _write_exit(self, name: str, depth: int, start: int) -> None:
        for array in self._arrays:
            shown = not self.max_depth or depth < self.max_depth
            if array.tracer == "function_graph" and shown and self._wanted(array, name):
                times = (0, start, self._tracing.context.now)
                self._write(array, GRAPH_EXIT, struct.pack("<QiIQQ", self._address_of(name), depth, *times))

    def _wanted(self, array: TraceArray, name: str) -> bool:
        """Whether the filters let a function pass."""
        if array.not_functions and _matches(name, array.not_functions):
            return False
        if array.graph_functions and array.tracer == "function_graph":
            return any(_matches(entry, array.graph_functions) for entry in (*self._open, name))
        return not array.functions or _matches(name, array.functions)

    def _write(self, array: TraceArray, number: int, body: bytes) -> None:
        context = self._tracing.context
        self._tracing.comms.save(context.pid, context.comm)
        if array.takes(context.cpu, context.pid):
            now = self._tracing.clock_value(array, context.now)
            array.ring.write(context.cpu, now, head(number, context.pid) + body)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
