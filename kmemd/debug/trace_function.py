"""The tracers ``function`` and ``function_graph`` over the model's own calls (kernel/trace/trace_functions*.c).

A call counts when it enters a method of ``kmemd.mm`` that is named as a function of the kernel: so a trace shows which
subsystem called which, with the model's durations. Loops of the compiled core are part of whoever
calls them. While no tracer is on, nothing is hooked; while one is, the interpreter tells of each call.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from kmemd.debug.symbols import TEXT
from kmemd.debug.trace_ftrace import FUNCTION, GRAPH_ENTRY, GRAPH_EXIT, head
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray

TRACED = "kmemd.mm."
TRACERS = ("function_graph", "function", "nop")
KERNEL = frozenset(word.lstrip("-") for word in TEXT.split())
NAMES = {
    "alloc_pages_bulk": "__alloc_pages",
    "free_pages_bulk": "free_unref_page_list",
    "kmalloc_bulk": "__kmalloc",
    "kfree_bulk": "kfree",
    "_allocate": "___slab_alloc",
    "_new_pages": "allocate_slab",
    "shrink_inactive": "shrink_inactive_list",
    "shrink_active": "shrink_active_list",
    "_shrink_folios": "shrink_folio_list",
    "_balance_pgdat": "balance_pgdat",
    "_do_shrink_slab": "do_shrink_slab",
    "try_to_free": "do_try_to_free_pages",
    "move_bulk": "migrate_pages",
    "_kill": "__oom_kill_process",
    "zap_range": "zap_page_range",
    "access": "exc_page_fault",
}
"""Methods that do a function's work under another name."""


def kernel_name(name: str) -> str | None:
    """The kernel's function that a method stands for; a word alone may mean anything."""
    if name in NAMES:
        return NAMES[name]
    return name if "_" in name.strip("_") and name in KERNEL else None


def functions() -> list[str]:
    """What can be traced: methods of the loaded modules that are named as functions of the kernel."""
    names: set[str] = set()
    for module in [name for name in sys.modules if name.startswith(TRACED)]:
        for thing in vars(sys.modules[module]).values():
            members: Iterable[str] = vars(thing) if isinstance(thing, type) else [getattr(thing, "__name__", "")]
            names.update(found for member in members if (found := kernel_name(member)) is not None)
    return sorted(names)


class FunctionTracer:
    """Watches calls for the arrays that want them."""

    def __init__(self, tracing: Tracing, address_of: Callable[[str], int]) -> None:
        self._tracing = tracing
        self._address_of = address_of
        self._codes: dict[CodeType, str | None] = {}
        self._arrays: list[TraceArray] = []
        self._stack: list[tuple[str, int, CodeType | None]] = []
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
        name = self._codes.get(code, "")
        if name == "":
            name = self._codes[code] = self._name_of(frame)
        if name is None:
            return
        if event == "call":
            self._enter(name, code)
        elif self._stack and self._stack[-1][2] is code:
            self._leave()

    @staticmethod
    def _name_of(frame: FrameType) -> str | None:
        module = str(frame.f_globals.get("__name__", ""))
        return kernel_name(frame.f_code.co_name) if module.startswith(TRACED) else None

    def _enter(self, name: str, code: CodeType | None) -> None:
        context = self._tracing.context
        parent = self._stack[-1][0] if self._stack else "do_syscall_64"
        depth = len(self._stack)
        self._stack.append((name, context.now, code))
        self._tracing.sync()
        for array in self._arrays:
            if not self._wanted(array, name):
                continue
            if array.tracer == "function":
                record = struct.pack("<QQ", self._address_of(name), self._address_of(parent))
                self._write(array, FUNCTION, record)
            elif not self.max_depth or depth < self.max_depth:
                self._write(array, GRAPH_ENTRY, struct.pack("<Qi", self._address_of(name), depth))

    def _leave(self) -> None:
        name, start, _ = self._stack.pop()
        depth = len(self._stack)
        self._tracing.sync()
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
            return any(_matches(entry[0], array.graph_functions) for entry in [*self._stack, (name, 0, None)])
        return not array.functions or _matches(name, array.functions)

    def _write(self, array: TraceArray, number: int, body: bytes) -> None:
        context = self._tracing.context
        self._tracing.comms.save(context.pid, context.comm)
        if array.takes(context.cpu, context.pid):
            now = self._tracing.clock_value(array, context.now)
            array.ring.write(context.cpu, now, head(number, context.pid) + body)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
