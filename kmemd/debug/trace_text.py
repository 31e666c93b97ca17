"""The ``trace`` file: what the buffers hold, merged by time, as text (kernel/trace/trace.c ``s_show``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kmemd.debug.trace_output import header
from kmemd.debug.trace_raw import printer_of

if TYPE_CHECKING:
    from kmemd.core.trace import Ring
    from kmemd.debug.trace import Tracing
    from kmemd.debug.trace_array import TraceArray


def merged(ring: Ring, cpus: range | tuple[int, ...]) -> Iterator[tuple[int, int, bytes]]:
    """CPU, time and record of what the buffers hold at this moment, in the order of time."""
    shots = [ring.snapshot(cpu) for cpu in cpus]
    sizes = [rows.shape[1] for rows, _ in shots]
    times = np.concatenate([rows[0] for rows, _ in shots])
    owners = np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(times, kind="stable")
    datas = [data.tobytes() for _, data in shots]
    rows = np.concatenate([rows for rows, _ in shots], axis=1)
    for begin in range(0, len(order), 4096):
        part = order[begin : begin + 4096]
        columns = rows[:, part]
        for owner, ns, at, length in zip(owners[part].tolist(), *columns.tolist(), strict=True):
            yield cpus[owner], ns, datas[owner][at : at + length]


def trace_text(
    tracing: Tracing, array: TraceArray, cpu: int | None, online: int, ring: Ring | None = None
) -> Iterator[str]:
    """The ``trace`` file: a header, then everything in the buffers, or in the snapshot's ``ring``."""
    cpus: tuple[int, ...] = tuple(range(array.cpus)) if cpu is None else (cpu,)
    yield header(array, online, ring)
    ring = ring or array.ring
    printer = printer_of(tracing, array)
    annotate = printer.annotates and "annotate" in array.options and any(int(ring.state[number, 7]) for number in cpus)
    started: set[int] = set()
    lines: list[str] = []
    for index, (number, ns, record) in enumerate(merged(ring, cpus)):
        if annotate and number not in started:
            started.add(number)
            if index > 0:
                lines.append(f"##### CPU {number} buffer started ####\n")
        lines.append(printer.line(number, ns, record))
        if len(lines) >= 256:
            yield "".join(lines)
            lines.clear()
    yield "".join(lines) + printer.rest()
