"""Events made at run time: ``synthetic_events``, ``dynamic_events`` (trace_events_synth.c, trace_dynevent.c).

``>`` takes all away first; a line declares an event or removes one. What follows ``#`` is a comment.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.debug.trace_synth import SYSTEM
from kmemd.kernel import Kernel
from kmemd.views.tracing import TOP, WRITE, CommandFile
from kmemd.views.tree import Caller, Device


def _lines(text: str, run: Callable[[str], None]) -> None:
    """Run each line; the first that is refused ends it (``trace_parse_run_command``)."""
    for line in text.split("\n"):
        run(line.partition("#")[0])


def _open_synthetic(kernel: Kernel, caller: Caller) -> CommandFile:
    events = kernel.tracing.synthetic
    return CommandFile(
        lambda: "".join(event.line for event in events), lambda text: _lines(text, events.run), events.clear
    )


def _open_dynamic(kernel: Kernel, caller: Caller) -> CommandFile:
    events = kernel.tracing.synthetic
    return CommandFile(
        lambda: "".join(f"s:{SYSTEM}/{event.line}" for event in events),
        lambda text: _lines(text, events.run_dynamic),
        events.clear,
    )


TOP.names["synthetic_events"] = Device(WRITE, 0, _open_synthetic)
TOP.names["dynamic_events"] = Device(WRITE, 0, _open_dynamic)
