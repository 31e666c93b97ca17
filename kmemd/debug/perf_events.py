"""Sampling by events, with the path of calls that led there (kernel/events/core.c ``perf_event_overflow``).

A watch counts an event of ``perf_counters`` from the moment it is opened; whenever the count has passed another
``period`` of them, a sample is taken: when, which task on which CPU, and the stack. The stack has two parts: the
kernel's, from the entry to the caller of the memory manager (``Context.site``), and inside it the functions of
the model which were running, by the interpreter's own frames. Counts are looked at whenever a function of the model
is called or returns, so that what is done in one stretch of the compiled core is one sample with the whole period.

Nothing is hooked, and nothing costs anything, unless a watch is open. What happens to the model does not depend
on it. Idle time is no event.
Left out: sampling of user space's own code, which is not modelled; a ring that readers overrun: the buffer is of
``SAMPLES_MAX`` and further samples are lost, and counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from kmemd.core.context import COMM, Context
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.perf_counters import CLOCKS, Counters, Read
from kmemd.mm.clock import NSEC_PER_SEC, NSEC_PER_USEC
from kmemd.mm.stackdepot import StackDepot

SAMPLES_MAX = 1 << 20
STACK_MAX = 127
"""PERF_MAX_STACK_DEPTH, of the model's functions."""
PIECE = 256
CLOCK_PERIOD_NS = 10_000
"""Of the clocks, when no period is asked for."""

PACKAGE = __name__.rpartition(".debug")[0]
OUTSIDE = ("control", "system", "daemon", "fs", "cli", "perf", "kernel", "conformance")
"""The parts of the package that call the model. Their frames, and those outside of them, are no part of a stack."""
UNSEEN = ("core.context", "debug.perf_events", "debug.perf_counters", "steps", "mm.stackdepot")
"""Modules whose functions are below notice."""
SAMPLE_TYPE = "IP|TID|TIME|CALLCHAIN|CPU|PERIOD|IDENTIFIER"
"""What a sample holds, as ``perf script --header`` says it."""
KERNEL = "[kernel.kallsyms]"
MODEL_TEXT = 0x400000
FUNCTION_BYTES = 0x100

Stack = tuple[int, tuple[CodeType, ...]]
"""The handle of the kernel's part, and the model's functions, innermost first."""


@dataclass(slots=True)
class Watch:
    """One event that is counted. ``next`` is the count at which a sample is due."""

    name: str
    read: Read
    period: int
    next: int
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. ``period``: how many events it stands for."""

    event: str
    when_ns: int
    cpu: int
    tid: int
    comm: int
    period: int
    stack: Stack


class PerfEvents:
    """The watches of one kernel, and the samples they left.

    Invariants: while a watch is open the interpreter reports calls here, and otherwise not.
    """

    def __init__(self, counters: Counters, context: Context, depot: StackDepot, kallsyms: Kallsyms) -> None:
        self.counters = counters
        self._context = context
        self._depot = depot
        self._kallsyms = kallsyms
        self.watches: list[Watch] = []
        self.open = False
        self._pid = 0
        self.samples: list[Sample] = []
        self.lost = 0
        self._symbols: dict[CodeType, tuple[str, str] | None] = {}
        self._addresses: dict[CodeType, int] = {}
        self._stacks: dict[Stack, Stack] = {}
        self._texts: dict[Stack, str] = {}

    # -- recording -----------------------------------------------------------------------------------------

    def start(self, names: Sequence[str], period: int = 0, pid: int = 0) -> None:
        """Watch events, of all tasks or of one; samples there were are dropped. ENOENT, EINVAL.

        ``period`` 0: each event, and of a clock every 10 µs.
        """
        watches = [self._watch(name, period) for name in names]
        self.stop()
        self._pid, self.lost = pid, 0
        self.samples = []
        self.watches = watches
        self.open = True
        sys.setprofile(self._profile)

    def _watch(self, name: str, period: int) -> Watch:
        read = self.counters.reader(name)
        period = period or (CLOCK_PERIOD_NS if name in CLOCKS else 1)
        return Watch(name, read, period, read() + period)

    def stop(self) -> None:
        """Close the watches. The samples stay."""
        if self.open:
            sys.setprofile(None)
            self.open = False
            self._look(sys._getframe(1))

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "return":
            at: FrameType | None = frame
        elif event == "call":
            at = frame.f_back
        else:
            return
        for watch in self.watches:
            if watch.read() >= watch.next:
                self._look(at)
                return

    def _look(self, frame: FrameType | None) -> None:
        """Take samples of what was counted since the last look, which ``frame`` did."""
        for watch in self.watches:
            over = watch.read() - watch.next
            if over >= 0:
                events = (over // watch.period + 1) * watch.period
                watch.next += events
                self._sample(watch, events, frame)

    def _sample(self, watch: Watch, events: int, frame: FrameType | None) -> None:
        context = self._context
        if self._pid and context.tgid != self._pid:
            return
        watch.counted += events
        if len(self.samples) == SAMPLES_MAX:
            self.lost += 1
            return
        stack: Stack = (context.site, self._functions(frame))
        stack = self._stacks.setdefault(stack, stack)
        words = context.words
        self.samples.append(Sample(watch.name, context.now, context.cpu, context.pid, int(words[COMM]), events, stack))

    def _functions(self, frame: FrameType | None) -> tuple[CodeType, ...]:
        """The model's functions that are running, innermost first."""
        found: list[CodeType] = []
        while frame is not None and len(found) < STACK_MAX:
            code = frame.f_code
            symbol = self._symbols[code] if code in self._symbols else self._name(frame)
            if symbol is not None and symbol[1] == "":
                break
            if symbol is not None:
                found.append(code)
            frame = frame.f_back
        return tuple(found)

    def _name(self, frame: FrameType) -> tuple[str, str] | None:
        """A function's name and module; None for one that is not shown, and without a module for one outside."""
        code = frame.f_code
        package, _, module = str(frame.f_globals.get("__name__", "")).partition(".")
        symbol: tuple[str, str] | None = None
        if package == PACKAGE and module.partition(".")[0] in OUTSIDE:
            symbol = (code.co_name, "")
        elif package == PACKAGE and module not in UNSEEN and not code.co_name.startswith("<"):
            symbol = (code.co_qualname.replace(".<locals>", ""), module)
        self._symbols[code] = symbol
        return symbol

    # -- what perf script prints -----------------------------------------------------------------------------

    def script(self) -> Iterator[str]:
        """The samples as ``perf script`` prints those of all CPUs with call chains, in pieces."""
        for start in range(0, len(self.samples), PIECE):
            yield "".join(map(self._text, self.samples[start : start + PIECE]))

    def _text(self, sample: Sample) -> str:
        comm = self._context.comms[sample.comm]
        head = event_line(comm, sample.tid, sample.cpu, sample.when_ns, sample.period, sample.event)
        text = self._texts.get(sample.stack)
        if text is None:
            text = self._texts[sample.stack] = "".join(self._frames(sample.stack)) + "\n"
        return head + text

    def _frames(self, stack: Stack) -> Iterator[str]:
        handle, functions = stack
        for code in functions:
            symbol = self._symbols[code]
            assert symbol is not None
            name, module = symbol
            yield frame_line(self._address(code), f"{name}+0x0", f"[{PACKAGE}.{module}]")
        frames = self._kallsyms.stack(handle)
        for address, frame in zip(self._kallsyms.addresses(handle), frames, strict=True):
            where, _, module = frame.partition(" ")
            yield frame_line(address, where.partition("/")[0], module or KERNEL)

    def _address(self, code: CodeType) -> int:
        """Functions of the model have no address; they get one in the order in which they are shown."""
        return self._addresses.setdefault(code, MODEL_TEXT + FUNCTION_BYTES * len(self._addresses))


def event_line(comm: str, tid: int, cpu: int, when_ns: int, period: int, event: str) -> str:
    """The line of ``perf script`` that a sample begins with."""
    seconds, ns = divmod(when_ns, NSEC_PER_SEC)
    when = f"{seconds:5d}.{ns // NSEC_PER_USEC:06d}"
    return f"{comm} {tid:5d} [{cpu:03d}] {when:>12}: {period:10d} {event}: \n"


def frame_line(address: int, where: str, owner: str) -> str:
    """The line of one function of its stack: where in it, and whose it is."""
    return f"\t{address:16x} {where} ({owner})\n"


def described(event: str, period: int) -> str:
    """What the header says of an event."""
    return f"event : name = {event}, , sample_period = {period}, sample_type = {SAMPLE_TYPE}"
