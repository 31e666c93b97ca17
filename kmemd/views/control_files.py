"""What Linux does not have: the command file and the state of the model itself, below ``kmemd/``.

The formats are kmemd's own (docs/commands.md).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kmemd.command_state import FailedLine
from kmemd.control.interpreter import Interpreter
from kmemd.control.session import Session
from kmemd.control.verbs import listing
from kmemd.errors import KernelError
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.handles import Handle, Kind
from kmemd.views.tree import Caller, kmemd

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

SHOWN_COLUMNS = 160
"""Columns of a failed line that error_log shows, around the word that is wrong."""


@kmemd.device("ctl", 0o600)
def ctl(kernel: Kernel, caller: Caller) -> Session:
    """Commands in, replies out."""
    return Session(Interpreter(kernel), kernel.commands, listing)


@kmemd.file("error_log", mode=0o400)
def error_log(kernel: Kernel) -> Iterator[str]:
    """The last lines that failed: when, why, and a caret under the word that is wrong."""
    for failed in kernel.commands.failures():
        yield from _failed_line(failed)


def _failed_line(failed: FailedLine) -> Iterator[str]:
    seconds, ns = divmod(failed.ts_ns, NSEC_PER_SEC)
    yield f"[{seconds:5d}.{ns // 1000:06d}] {failed.error}\n"
    column = failed.error.column
    first = max(0, (column or 0) - SHOWN_COLUMNS // 2)
    shown = failed.line[first : first + SHOWN_COLUMNS]
    yield "    " + "".join(char if char.isprintable() else "?" for char in shown) + "\n"
    if column is not None:
        yield "    " + " " * (column - first) + "^\n"


@kmemd.file("handles", mode=0o400)
def handles(kernel: Kernel) -> Iterator[str]:
    """The handles, a line each, oldest first."""
    for name, handle in kernel.handles.items():
        yield f"{name} " + " ".join(f"{key}={value}" for key, value in _words(kernel, handle)) + "\n"


def _words(kernel: Kernel, handle: Handle) -> Iterator[tuple[str, int | str]]:
    yield "kind", str(handle.kind)
    if handle.kind is Kind.TASK:
        yield "pid", handle.pid
    if handle.cache:
        yield "cache", handle.cache
    if handle.kind in (Kind.TASK, Kind.CACHE):
        return
    if handle.kind is Kind.PAGES:
        yield "pfn", handle.pfn
        yield "order", handle.order
    first = kernel.layout.page_address(handle.pfn) if handle.kind is Kind.PAGES else handle.address
    yield "addr", f"{first:#x}"
    yield "size", handle.size
    yield "n", len(handle)


@kmemd.file("clock", mode=0o444)
def clock(kernel: Kernel) -> Iterator[str]:
    """Model time: ns since boot, the kernel's tick counter, and the wall clock time (s since 1970) of boot."""
    yield f"ns={kernel.clock.now} jiffies={kernel.clock.jiffies} boot_time={kernel.clock.boot_time_s}\n"


@kmemd.file("seed", mode=0o444)
def seed(kernel: Kernel) -> str:
    """What all randomness of this model comes from."""
    return f"{kernel.seed}\n"


@kmemd.file("machine", mode=0o444)
def machine(kernel: Kernel) -> Iterator[str]:
    """The machine that booted: its name, architecture, CPUs, memory per node, and where a twin is not its original."""
    booted = kernel.machine
    yield f"name={booted.name} arch={booted.arch} cpus={booted.cpus} memory={booted.memory_bytes}\n"
    for node in booted.nodes:
        size = sum(end - start for start, end in node.ranges)
        cpus = ",".join(map(str, node.cpus)) or "none"
        yield f"node={node.nid} memory={size} cpus={cpus}\n"
    for note in booted.capture.notes if booted.capture is not None else booted.notes:
        yield f"note={note}\n"


@kmemd.file("cpu", mode=0o444)
def cpu(kernel: Kernel) -> str:
    """The CPU, pid and name of the task that lines run as."""
    context = kernel.context
    return f"cpu={context.cpu} pid={context.pid} comm={context.comm}\n"


@kmemd.file("check", mode=0o400)
def check(kernel: Kernel) -> str:
    """Recompute every cached number from the truth: ``ok``, or EIO when one differs (the kernel log says which)."""
    try:
        kernel.check()
    except AssertionError as difference:
        raise KernelError(errno.EIO, f"the model contradicts itself: {difference}") from difference
    return "ok\n"
