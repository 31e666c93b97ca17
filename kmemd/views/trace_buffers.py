"""What is in the trace buffers: ``trace``, ``trace_pipe``, ``trace_marker`` and ``per_cpu`` (kernel/trace/trace.c)."""

from __future__ import annotations

import errno
from typing import Any

from kmemd.core.trace import Ring
from kmemd.debug.trace_array import TraceArray
from kmemd.debug.trace_output import Printer, usecs
from kmemd.debug.trace_raw import printer_of
from kmemd.debug.trace_text import trace_text
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.steps import Steps
from kmemd.views.stream import StreamFile
from kmemd.views.tracing import (
    PER_CPU,
    READ,
    WRITE,
    array_of,
    declare,
    device_file,
    made_device,
    made_file,
    number,
    size_text,
    store_size,
)
from kmemd.views.tree import Caller, Pattern

MARKER_MODE = 0o220
SNAPSHOT_HELP = """\
# Snapshot commands:
# echo 0 > snapshot : Clears and frees snapshot buffer
# echo 1 > snapshot : Allocates snapshot buffer, if not already allocated.
#                      Takes a snapshot of the main buffer.
# echo 2 > snapshot : Clears snapshot buffer (but does not allocate or free)
#                      (Doesn't have to be '2' works with any number that
#                       is not a '0' or '1')
"""
CPU_SNAPSHOT_HELP = """\
# Snapshot commands:
# echo 0 > snapshot : Invalid for per_cpu snapshot file.
# echo 1 > snapshot : Not supported with this kernel.
#                     Must use main snapshot file to allocate.
# echo 2 > snapshot : Clears this cpu's snapshot buffer (but does not allocate)
#                      (Doesn't have to be '2' works with any number that
#                       is not a '0' or '1')
"""
"""Of a kernel that cannot exchange the buffers of one CPU (without CONFIG_RING_BUFFER_ALLOW_SWAP)."""


class TraceFile(StreamFile):
    """An open ``trace``: the records as they stood at the first read; ``>`` empties the buffers."""

    def __init__(self, kernel: Kernel, array: TraceArray, cpu: int | None = None) -> None:
        super().__init__(lambda: self._text(), lambda text: None)
        self._kernel = kernel
        self._array = array
        self._cpu = cpu

    def _text(self) -> Any:
        self._kernel.tracing.sync()
        return trace_text(self._kernel.tracing, self._array, self._cpu, len(self._kernel.online_cpus))

    def truncate(self) -> None:
        """Empty the buffers (``tracing_reset``)."""
        self._kernel.tracing.sync()
        self._array.reset(self._cpu)


class PipeFile:
    """An open ``trace_pipe``: records are gone once they were read; a read waits for the first."""

    def __init__(self, kernel: Kernel, array: TraceArray, cpu: int | None = None) -> None:
        self._kernel = kernel
        self._array = array
        self._cpus = tuple(range(array.cpus)) if cpu is None else (cpu,)
        self._rest = b""
        self._started = False
        array.references += 1

    def read(self, offset: int, size: int) -> bytes | None:
        """Lines that fit, None when there is none; the end when tracing is off and something was read."""
        self._kernel.tracing.sync()
        printer = printer_of(self._kernel.tracing, self._array)
        parts, room = [self._rest], size - len(self._rest)
        while room > 0:
            line = self._take(printer)
            if line is None:
                break
            parts.append(line)
            room -= len(line)
        data = b"".join(parts) + printer.rest().encode("utf-8", "surrogateescape")
        self._rest = data[size:]
        if data:
            self._started = True
            return data[:size]
        return b"" if self._started and not self._array.ring.on else None

    def _take(self, printer: Printer) -> bytes | None:
        ring = self._array.ring
        heads = [(head[0], cpu, head) for cpu in self._cpus if (head := ring.peek(cpu)) is not None]
        if not heads:
            return None
        _, cpu, (ns, record, lost) = min(heads, key=lambda item: item[:2])
        ring.consume(cpu)
        text = f"CPU:{cpu} [LOST {lost} EVENTS]\n" if lost else ""
        return (text + printer.line(cpu, ns, record)).encode("utf-8", "surrogateescape")

    def readable(self) -> bool:
        """Whether a read would not wait."""
        self._kernel.tracing.sync()
        return bool(self._rest) or any(self._array.ring.peek(cpu) is not None for cpu in self._cpus)

    def write(self, data: bytes) -> Steps[int]:
        """EINVAL: the file cannot be written."""
        raise KernelError(errno.EINVAL, "trace_pipe cannot be written")
        yield

    def close(self) -> None:
        """No longer in use."""
        self._array.references -= 1


class RawPipeFile:
    """An open ``per_cpu/cpuN/trace_pipe_raw``: whole pages of the ring, taken out as they are read.

    ``snapshot``: of the snapshot's ring (``snapshot_raw``).
    """

    def __init__(self, kernel: Kernel, array: TraceArray, cpu: int, *, snapshot: bool = False) -> None:
        self._kernel = kernel
        self._snapshot = snapshot
        self._array = array
        self._cpu = cpu
        self._rest = b""
        array.references += 1

    def read(self, offset: int, size: int) -> bytes | None:
        """What is left of a page, or the next one; None when there is none."""
        self._kernel.tracing.sync()
        ring = self._ring()
        if not self._rest and ring is not None:
            self._rest = ring.read_page(self._cpu) or b""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data or None

    def readable(self) -> bool:
        """Whether a read would not wait."""
        self._kernel.tracing.sync()
        ring = self._ring()
        return bool(self._rest) or (ring is not None and ring.peek(self._cpu) is not None)

    def _ring(self) -> Ring | None:
        return self._array.spare if self._snapshot else self._array.ring

    def write(self, data: bytes) -> Steps[int]:
        """EINVAL: the file cannot be written."""
        raise KernelError(errno.EINVAL, "trace_pipe_raw cannot be written")
        yield

    def close(self) -> None:
        """No longer in use."""
        self._array.references -= 1


class MarkerFile:
    """An open ``trace_marker`` or ``trace_marker_raw``: a write is a record."""

    def __init__(self, kernel: Kernel, array: TraceArray, caller: Caller, raw: bool) -> None:
        self._take = kernel.tracing.marker_raw if raw else kernel.tracing.marker
        self._array = array
        self._pid = caller.pid or kernel.context.pid

    def read(self, offset: int, size: int) -> bytes:
        """EINVAL: the file cannot be read."""
        raise KernelError(errno.EINVAL, "trace_marker cannot be read")

    def write(self, data: bytes) -> Steps[int]:
        """Make a record."""
        return self._take(self._array, data, self._pid)
        yield

    def close(self) -> None:
        """Nothing to let go."""


class SnapshotFile(StreamFile):
    """An open ``snapshot``: what the buffers held when it was taken, or how to take one."""

    def __init__(self, kernel: Kernel, array: TraceArray, cpu: int | None = None) -> None:
        super().__init__(lambda: self._text(), lambda text: self._take(text))
        self._kernel = kernel
        self._array = array
        self._cpu = cpu

    def _text(self) -> Any:
        array = self._array
        cpus = range(array.cpus) if self._cpu is None else (self._cpu,)
        if array.spare is None or not any(array.entries(cpu, array.spare) for cpu in cpus):
            state = "freed" if array.spare is None else "allocated"
            yield f"# tracer: {array.tracer}\n#\n#\n# * Snapshot is {state} *\n#\n"
            yield SNAPSHOT_HELP if self._cpu is None else CPU_SNAPSHOT_HELP
            return
        online = len(self._kernel.online_cpus)
        yield from trace_text(self._kernel.tracing, array, self._cpu, online, array.spare)

    def _take(self, text: str) -> None:
        """0 frees, 1 takes one, others empty (``tracing_snapshot_write``). EINVAL; EBUSY: a histogram takes them."""
        array = self._array
        self._kernel.tracing.sync()
        array.expand()
        value = number(text)
        if array.snapshot_note is not None:
            raise KernelError(errno.EBUSY, "a histogram takes the snapshots of these buffers")
        if value in (0, 1) and self._cpu is not None:
            raise KernelError(errno.EINVAL, "the snapshot of one CPU is neither taken nor freed by itself")
        if value == 0:
            array.free_snapshot()
        elif value == 1:
            array.allocate_snapshot()
            array.swap()
        else:
            array.reset_snapshot(self._cpu)


def _stats(kernel: Kernel, array: TraceArray, cpu: int) -> str:
    """``tracing_stats_read``."""
    state = [int(word) for word in array.ring.state[cpu]]
    rows, _ = array.ring.snapshot(cpu)
    oldest = int(rows[0, 0]) if rows.shape[1] else 0
    now = kernel.tracing.context.now
    if array.clock in ("counter", "uptime", "x86-tsc"):
        times = f"oldest event ts: {oldest}\nnow ts: {array.count if array.clock == 'counter' else now}\n"
    else:
        (old, old_us), (seconds, micros) = usecs(oldest), usecs(now)
        times = f"oldest event ts: {old:5d}.{old_us:06d}\nnow ts: {seconds:5d}.{micros:06d}\n"
    return (
        f"entries: {array.entries(cpu)}\noverrun: {state[7]}\ncommit overrun: 0\nbytes: {max(state[10], 0)}\n"
        f"{times}dropped events: {state[8]}\nread events: {state[9]}\n"
    )


device_file("trace", WRITE, lambda kernel, array, caller: TraceFile(kernel, array))
device_file("trace_pipe", READ, lambda kernel, array, caller: PipeFile(kernel, array), pollable=True)
device_file("snapshot", WRITE, lambda kernel, array, caller: SnapshotFile(kernel, array))
device_file("trace_marker", MARKER_MODE, lambda kernel, array, caller: MarkerFile(kernel, array, caller, False))
device_file("trace_marker_raw", MARKER_MODE, lambda kernel, array, caller: MarkerFile(kernel, array, caller, True))


def _cpus(kernel: Kernel, *parameters: Any) -> range:
    return range(array_of(kernel, *parameters).cpus)


_CPU = Pattern("cpu", "", "cpu", type(PER_CPU)(0o750), _cpus)
PER_CPU.patterns.append(_CPU)
declare("per_cpu", PER_CPU)
_FILES = _CPU.entry.names  # type: ignore[attr-defined]
_FILES["trace"] = made_device(WRITE, lambda kernel, array, cpu, caller: TraceFile(kernel, array, cpu))
_FILES["trace_pipe"] = made_device(READ, lambda kernel, array, cpu, caller: PipeFile(kernel, array, cpu), True)
_FILES["trace_pipe_raw"] = made_device(READ, lambda kernel, array, cpu, caller: RawPipeFile(kernel, array, cpu), True)
_FILES["snapshot"] = made_device(WRITE, lambda kernel, array, cpu, caller: SnapshotFile(kernel, array, cpu))
_FILES["snapshot_raw"] = made_device(
    READ, lambda kernel, array, cpu, caller: RawPipeFile(kernel, array, cpu, snapshot=True), True
)
_FILES["stats"] = made_file(_stats, None)
_FILES["buffer_size_kb"] = made_file(
    lambda kernel, array, cpu: size_text(array, cpu),
    lambda kernel, array, cpu, text: store_size(kernel, array, text, cpu),
    READ,
)
