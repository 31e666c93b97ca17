"""Verbs of sampling: ``perf_record`` and ``perf_stop`` (perf_event_open(2) with PERF_SAMPLE_CALLCHAIN)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated, Any

from kmemd.control.language import Reply, WordType, invalid, quoted, verb
from kmemd.control.words import Count, Pid
from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def _events(text: str, kernel: Any) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        try:
            kernel.perf.counters.reader(name)
        except KernelError as error:
            if error.errno == errno.EINVAL:
                invalid(f"{quoted(name)} is no event; kmemd/perf/counters lists them", text.index(name))
            raise
    return names


Events = Annotated[tuple[str, ...], WordType("EVENTS", "events of kmemd/perf/counters, joined by commas", _events)]


@verb
def perf_record(kernel: Kernel, events: Events, *, period: Count | None = None, task: Pid | None = None) -> Reply:
    """Sample events, with the calls that led there, from now on; kmemd/perf/script has the samples.

    A sample is taken whenever period more events were counted: each one by default, of the clocks every 10000 ns.
    task= samples one process only. Samples of an earlier recording are dropped. ENOENT: an event that this
    machine does not count; ESRCH: no such process.
    """
    kernel.perf.start(events, period or 0, kernel.tasks.find(task).tgid if task is not None else 0)
    return Reply({"events": ",".join(events)})


@verb
def perf_stop(kernel: Kernel) -> Reply:
    """End sampling; the samples stay until the next perf_record. ENOENT when nothing is recorded."""
    if not kernel.perf.open:
        raise KernelError(errno.ENOENT, "nothing is being recorded")
    kernel.perf.stop()
    return Reply({"samples": len(kernel.perf.samples), "lost": kernel.perf.lost})
