"""Tracing as a whole: the arrays, which events are on, and where each goes (kernel/trace/trace.c, trace_events.c).

Emitters append to ``Context.trace``; what only the top array wants goes from there into its ring in compiled code.
All else comes to ``_slow`` one event after the other: instances, filters, triggers, stacks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from kmemd.core import trace_ids
from kmemd.core.context import Context
from kmemd.core.trace import (
    CALLER,
    COMM,
    CPU,
    DATA_LOC,
    EVENT,
    MEMMAP,
    OFF,
    PID,
    PLAIN,
    SITE,
    SLOW,
    STACK,
    STRUCT_PAGE,
    TEXT,
    TIME,
    WORD,
)
from kmemd.core.trace_pages import signed
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.trace_array import MARKER, EventFile, TraceArray
from kmemd.debug.trace_comms import SavedComms
from kmemd.debug.trace_errors import TraceError
from kmemd.debug.trace_events import EVENTS
from kmemd.debug.trace_filter import Sample
from kmemd.debug.trace_format import Event, Layout
from kmemd.debug.trace_ftrace import EVENTS as FTRACE_EVENTS
from kmemd.debug.trace_ftrace import print_record, raw_record, stack_record
from kmemd.debug.trace_function import FunctionTracer
from kmemd.debug.trace_printfmt import Machine, compile_print_fmt
from kmemd.debug.trace_synth import FIRST_NUMBER, SyntheticEvents, SynthEvent
from kmemd.debug.trace_trigger import SWITCHES, Triggers
from kmemd.errors import KernelError
from kmemd.mm.layout import Layout as AddressSpace
from kmemd.mm.stackdepot import StackDepot

if TYPE_CHECKING:
    from kmemd.core.trace import Ring
    from kmemd.debug.trace_hist_actions import SnapshotNote

MAX_FIELDS = 17
_PHASE = attrgetter("phase")
IRQS_OFF = 1
NS_PER_JIFFY = 4_000_000
THROTTLE = ("WRITEBACK", "ISOLATED", "NOPROGRESS", "CONGESTED")
IRQS_OFF_EVENTS = frozenset(
    {
        "page_fault_user",
        "page_fault_kernel",
        "mm_page_alloc_zone_locked",
        "mm_page_pcpu_drain",
        "mm_page_alloc_extfrag",
    }
)
"""Events in code that runs with interrupts off."""
MARKER_MAX = 4096 - 16 - 4
MARKER_SYMBOL = "tracing_mark_write"
SNAPSHOT_SYMBOL = "tracing_snapshot_instance_cond"
TRACE_BYTES = 1 << 20


class Tracing:
    """The trace arrays of one machine. ``tgid_of(pid)`` is the process of a thread that is known, or None."""

    def __init__(
        self, context: Context, depot: StackDepot, kallsyms: Kallsyms, space: AddressSpace, cpus: int, tsc_mhz: int
    ) -> None:
        self.context = context
        self.cpus = cpus
        self.log = context.trace
        self.log.control[MEMMAP] = signed(space.page_struct(0))
        self.log.control[STRUCT_PAGE] = space.struct_page_size
        self._depot = depot
        self._kallsyms = kallsyms
        self._tsc_mhz = tsc_mhz
        self.word = word = space.pointer_size
        self.machine = Machine(
            kallsyms.symbolize,
            self.function_name,
            kallsyms.p,
            {"vmemmap_base": space.page_struct(0), **{f"VMSCAN_THROTTLE_{name}": i for i, name in enumerate(THROTTLE)}},
            lambda: context.now // NS_PER_JIFFY,
            {"page": space.struct_page_size},
        )
        self.plain = replace(self.machine, pointer=space.format_address)
        self.layouts = [event.layout(word) for event in EVENTS]
        self.ftrace = [event.layout(word) for event in FTRACE_EVENTS]
        self._numbers = {name: number for number, name in enumerate(trace_ids.NAMES)}
        self.comms = SavedComms(context)
        self._texts: dict[bool, dict[int, tuple[str, Callable[[bytes], str]]]] = {}
        self._heads, self._fields = self._tables()
        self.triggers = Triggers(self)
        self.synthetic = SyntheticEvents(self, word)
        self.functions = FunctionTracer(self, self._function_address)
        self._wanting: dict[int, list[tuple[TraceArray, EventFile]]] = {}
        self.top = self._make_array("")
        self.instances: dict[str, TraceArray] = {}
        self._attach()

    def _attach(self) -> None:
        self.log.attach(self.top.ring, self._slow, self._call_site, self._function_address)

    # -- arrays ------------------------------------------------------------------------------------------

    def arrays(self) -> Iterator[TraceArray]:
        """The top array, then the instances."""
        yield self.top
        yield from self.instances.values()

    def _make_array(self, name: str) -> TraceArray:
        files = (EventFile(layout.event, layout, self._numbers[layout.event.name]) for layout in self.layouts)
        tables = self._heads, self._fields
        array = TraceArray(name, self.cpus, files, self.update, bool(name), tables, self.ftrace_layout(MARKER.name))
        for made in self.synthetic:
            array.files[made.event.system, made.name] = EventFile(made.event, made.layout, made.number)
        return array

    def add_dynamic(self, event: Event, layout: Layout, number: int) -> None:
        """An event was made at run time: every array has it, before its other ones (``trace_create_new_event``)."""
        for array in self.arrays():
            array.files = {(event.system, event.name): EventFile(event, layout, number), **array.files}

    def remove_dynamic(self, system: str, name: str) -> None:
        """An event that was made at run time goes. Preconditions: it is off in all arrays."""
        for array in self.arrays():
            del array.files[system, name]
        self.update()

    def mkdir(self, name: str) -> None:
        """Make an instance (``instance_mkdir``). EEXIST."""
        if name in self.instances:
            raise KernelError(errno.EEXIST, f"there is an instance {name}")
        self.instances[name] = self._make_array(name)

    def rmdir(self, name: str) -> None:
        """Remove an instance. ENOENT, EBUSY while something reads from it or triggers point to it."""
        array = self.instances.get(name)
        if array is None:
            raise KernelError(errno.ENOENT, f"there is no instance {name}")
        if array.references:
            raise KernelError(errno.EBUSY, f"instance {name} is in use")
        self.sync()
        self.triggers.clear(array)
        self.functions.forget(array)
        del self.instances[name]
        self.update()

    # -- records -----------------------------------------------------------------------------------------

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Layouts for the compiled code."""
        heads = np.zeros((len(trace_ids.NAMES), 4), dtype=np.int64)
        fields = np.zeros((len(trace_ids.NAMES), MAX_FIELDS, 3), dtype=np.int64)
        kinds = {"word": WORD, "text": TEXT, "dynamic": DATA_LOC}
        for layout in self.layouts:
            number = self._numbers[layout.event.name]
            flags = IRQS_OFF if layout.event.name in IRQS_OFF_EVENTS else 0
            heads[number] = layout.event.id, flags, layout.size, len(layout.own)
            for place, field in enumerate(layout.own):
                kind = CALLER if field.name == "call_site" else kinds[field.kind]
                fields[number, place] = field.offset, field.size, kind
        return heads, fields

    def _call_site(self, handle: int) -> int:
        frames = self._depot.frames(handle)
        return self._kallsyms.frame(frames[0], "kmalloc")[0] if frames else 0

    def _function_address(self, name: str) -> int:
        return self._kallsyms.symbol(name).address

    def text_functions(self, array: TraceArray) -> dict[int, tuple[str, Callable[[bytes], str]]]:
        """Name and text of each kind of record, by its number; ``hash-ptr`` says how pointers are shown."""
        hashed = "hash-ptr" in array.options
        if hashed not in self._texts:
            machine = self.machine if hashed else self.plain
            self._texts[hashed] = LazyTexts(self.layouts, machine, self.synthetic)
        return self._texts[hashed]

    def function_name(self, address: int) -> str:
        """``%ps``."""
        text = self._kallsyms.symbolize(address)
        name, _, rest = text.partition("+")
        module = rest.partition(" ")[2]
        return f"{name} {module}" if module else name

    def symbol(self, address: int) -> str:
        """``%pS``."""
        return self._kallsyms.symbolize(address)

    def tgid_column(self, pid: int) -> str:
        """The process of a thread, as recorded with ``record-tgid``."""
        tgid = self.comms.tgid(pid)
        return f"({tgid:7d}) " if tgid else "(-------) "

    def clock_value(self, array: TraceArray, ns: int) -> int:
        """What an array's clock says at a time."""
        if array.clock == "counter":
            array.count += 1
            return array.count
        if array.clock == "uptime":
            return ns // NS_PER_JIFFY
        return ns * self._tsc_mhz // 1000 if array.clock == "x86-tsc" else ns

    # -- delivering --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring what was emitted to the buffers."""
        self.log.drain()
        self.comms.learn(self.log.comm_of)

    def update(self) -> None:
        """What is on has changed: tell the emitters (and deliver what came before)."""
        self.sync()
        self._attach()
        self._wanting.clear()
        plain_clock = self.top.clock_in_ns
        for key, top in self.top.files.items():
            wanting = [(array, array.files[key]) for array in self.arrays() if array.files[key].wanted]
            self._wanting[top.number] = wanting
            if top.number >= FIRST_NUMBER:
                continue
            alone = len(wanting) == 1 and wanting[0][0] is self.top and self.top.records_all
            plain = alone and top.plain and plain_clock
            self.log.set_mode(top.number, (PLAIN if plain else SLOW) if wanting else OFF)

    def _slow(self, index: int) -> None:
        row = self.log.rows[index]
        cpu, pid = int(row[CPU]), int(row[PID])
        sample: Sample | None = None
        for array, file in list(self._wanting[int(row[EVENT])]):
            if not array.takes(cpu, pid):
                continue
            if sample is None and (file.filter is not None or file.triggers):
                sample = self._sample(index)
            self._deliver(array, file, index, sample)

    def _sample(self, index: int) -> Sample:
        row = [int(word) for word in self.log.rows[index, :7]]
        comm = self.context.comms[row[COMM]]
        return Sample(self.log.payload(index), row[CPU], row[PID], comm, row[TIME], row[STACK] or row[SITE])

    def _deliver(self, array: TraceArray, file: EventFile, index: int, sample: Sample | None) -> None:
        """One event for one array: triggers, filter, record (``trace_event_buffer_reserve``, ``…_commit``).

        ``index`` is its row of the log, -1 when the sample is all there is. Triggers that do not look at the record run
        before there is one; else those that make records run behind it, in the ring that it was made in.
        """
        if sample is None or not file.conditional:
            for trigger in file.triggers:
                trigger.run(_known(sample))
            if file.recording and array.ring.on and (file.filter is None or file.filter.matches(_known(sample))):
                self._record(array, array.ring, index, sample)
            return
        ring, room = array.ring, array.ring.on
        hit = [trigger for trigger in file.triggers if trigger.matches(sample)]
        for trigger in hit:
            if trigger.phase == SWITCHES:
                trigger.run(sample)
        if room and file.recording and (file.filter is None or file.filter.matches(sample)):
            self._record(array, ring, index, sample)
        for trigger in sorted(hit, key=_PHASE) if len(hit) > 1 else hit:
            if trigger.phase != SWITCHES:
                trigger.run(sample)

    def _record(self, array: TraceArray, ring: Ring, index: int, sample: Sample | None) -> None:
        was, ring.on = ring.on, True
        if index < 0:
            found = _known(sample)
            ring.write(found.cpu, self.clock_value(array, found.ns), found.record)
            self.comms.save(found.pid, found.comm)
            place = found.cpu, found.ns, found.pid, found.stack
        else:
            row = self.log.rows[index]
            ns = int(row[TIME])
            row[TIME] = self.clock_value(array, ns)
            self.log.record(ring, index)
            row[TIME] = ns
            place = int(row[CPU]), ns, int(row[PID]), int(row[STACK]) or int(row[SITE])
        ring.on = was
        if "stacktrace" in array.options:
            self.write_stack(array, *place)

    def emit_synthetic(self, event: SynthEvent, values: list[Any], source: Sample) -> None:
        """A synthetic event, made of variables while ``source`` is handled (``trace_synth``)."""
        wanting = [one for one in self._wanting.get(event.number, ()) if one[0].takes(source.cpu, source.pid)]
        if wanting:
            sample = replace(source, record=event.record(source.pid, values))
            for array, file in wanting:
                self._deliver(array, file, -1, sample)

    # -- snapshots ---------------------------------------------------------------------------------------

    def snapshot(self, array: TraceArray, accept: Callable[[SnapshotNote], bool] | None = None) -> None:
        """Exchange an array's buffers from within an event (``tracing_snapshot_instance_cond``).

        Without a second buffer, tracing ends there. Where a histogram takes the snapshots, only it does: ``accept``
        says whether it wants this one.
        """
        if array.spare is None:
            for text in ("*** SNAPSHOT NOT ALLOCATED ***\n", "*** stopping trace here!   ***\n"):
                self._say(array, text)
            array.ring.on = False
        elif array.snapshot_note is None or (accept is not None and accept(array.snapshot_note)):
            array.swap()

    def _say(self, array: TraceArray, text: str) -> None:
        """A message of the kernel's own (``trace_array_puts``)."""
        if "trace_printk" in array.options:
            ip = self._kallsyms.frame(SNAPSHOT_SYMBOL)[0]
            self._write_own(array, print_record(self.context.pid, ip, text.encode(), self.word))

    def stack(self, handle: int) -> tuple[int, ...]:
        """The addresses of a call stack, innermost first."""
        return self._kallsyms.addresses(handle)

    def write_stack(self, array: TraceArray, cpu: int, ns: int, pid: int, handle: int) -> None:
        """Record a call stack."""
        array.ring.write(cpu, self.clock_value(array, ns), stack_record(pid, self.stack(handle)))

    # -- messages ----------------------------------------------------------------------------------------

    def marker(self, array: TraceArray, data: bytes, caller_pid: int) -> int:
        """``trace_marker``: a message from user space. EINVAL when markers are off. The bytes taken."""
        if "markers" not in array.options:
            raise KernelError(errno.EINVAL, "the option markers is off")
        self.sync()
        taken = data[: MARKER_MAX - 2]
        text = taken if taken.endswith(b"\n") else taken + b"\n"
        ip = self._kallsyms.frame(MARKER_SYMBOL)[0]
        self._write_own(array, print_record(caller_pid, ip, text, self.word))
        if array.marker.triggers:
            context = self.context
            seen = print_record(caller_pid, ip, taken, self.word)
            self._trigger_marker(array, Sample(seen, context.cpu, caller_pid, context.comm, context.now))
        return len(data) if len(taken) == len(data) else len(taken)

    @staticmethod
    def _trigger_marker(array: TraceArray, sample: Sample) -> None:
        """Run the triggers of ftrace:print: they see the message without the newline that it was given."""
        hit = [trigger for trigger in array.marker.triggers if trigger.matches(sample)]
        for trigger in sorted(hit, key=_PHASE):
            trigger.run(sample)

    def marker_raw(self, array: TraceArray, data: bytes, caller_pid: int) -> int:
        """``trace_marker_raw``: a number and bytes. EINVAL for less than a number or when markers are off."""
        if "markers" not in array.options or len(data) < 4 or len(data) > MARKER_MAX:
            raise KernelError(errno.EINVAL, "trace_marker_raw takes a number of 4 bytes and up to 4072 more")
        self.sync()
        self._write_own(array, raw_record(caller_pid, data))
        return len(data)

    def _write_own(self, array: TraceArray, record: bytes) -> None:
        array.expand()
        array.ring.write(self.context.cpu, self.clock_value(array, self.context.now), record)

    def complain(self, where: str, message: str, command: str, at: int, array: TraceArray | None = None) -> None:
        """Note what was wrong with a command in the error log of an array, the top one's by default."""
        (array or self.top).errors.add(TraceError(self.context.now, where, message, command, at))

    def event(self, system: str, name: str) -> Event:
        """A declared event. ENOENT."""
        return self.top.file(system, name).event

    def ftrace_layout(self, name: str) -> Layout:
        """One of ftrace's own events."""
        return next(layout for layout in self.ftrace if layout.event.name == name)


class LazyTexts(dict[int, tuple[str, Callable[[bytes], str]]]):
    """Functions that make texts, each compiled when a record needs it."""

    def __init__(self, layouts: list[Layout], machine: Machine, synthetic: SyntheticEvents) -> None:
        super().__init__()
        self._layouts = {layout.event.id: layout for layout in layouts}
        self.machine = machine
        self._synthetic = synthetic

    def __missing__(self, number: int) -> tuple[str, Callable[[bytes], str]]:
        layout = self._layouts.get(number)
        if layout is not None:
            self[number] = made = f"{layout.event.name}: ", compile_print_fmt(layout, self.machine)
            return made
        found = self._synthetic.by_id(number)
        if found is None:
            return "", lambda record: f"Unknown type {number}"
        return f"{found.name}: ", found.text(self.machine.symbol)


def _known(sample: Sample | None) -> Sample:
    assert sample is not None
    return sample
