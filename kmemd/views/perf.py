"""``kmemd/perf/``: what ``kmemd perf`` reads (no Linux counterpart; perf itself has a system call).

``counters`` is every event with its count since boot, ``script`` the samples as ``perf script`` prints them,
``totals`` what was counted since recording began, ``folded`` has the stacks that hold memory, for flame graph programs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kmemd.debug.alloc_stacks import WEIGHTS
from kmemd.debug.perf_events import described
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views.stream import StreamFile
from kmemd.views.tree import Caller, kmemd

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

_FOLDED = "perf/folded/{stacks}"


@kmemd.file("perf/counters", mode=0o444)
def counters(kernel: Kernel) -> Iterator[str]:
    """Events and their counts since boot: one a line; before them the clock, and what programs ran."""
    times = [kernel.tasks.cpu_times(cpu) for cpu in range(kernel.machine.cpus)]
    user, system = (sum(column) for column in zip(*times, strict=True))
    yield f"elapsed-ns {kernel.clock.now}\nuser-ns {user}\nsystem-ns {system}\n"
    for name, count in kernel.perf.counters.lines():
        yield f"{name} {count}\n"


@kmemd.file("perf/totals", mode=0o444)
def totals(kernel: Kernel) -> Iterator[str]:
    """The events that are recorded, or were: what was counted, samples, lost samples."""
    perf = kernel.perf
    for watch in perf.watches:
        yield f"{watch.name} {watch.counted}\n"
    yield f"samples {len(perf.samples)}\nlost {perf.lost}\n"


@kmemd.device("perf/script", 0o400)
def script(kernel: Kernel, caller: Caller) -> StreamFile:
    """The samples, below the header that ``perf script --header`` prints."""
    return StreamFile(lambda: _script(kernel))


def _script(kernel: Kernel) -> Iterator[str]:
    yield "".join(f"# {line}\n" for line in _header(kernel)) + "#\n"
    yield from kernel.perf.script()


def _header(kernel: Kernel) -> Iterator[str]:
    machine, release = kernel.machine, kernel.machine.release_and_build.split()[0]
    now = time.gmtime(kernel.clock.boot_time_s + kernel.clock.now // NSEC_PER_SEC)
    yield "========"
    yield f"captured on    : {time.strftime('%a %b %e %H:%M:%S %Y', now)}"
    yield "header version : 1"
    yield f"hostname : {kernel.kernel_sysctl.hostname}"
    yield f"os release : {release}"
    yield f"perf version : {release}"
    yield f"arch : {'i686' if machine.arch == 'i386' else machine.arch}"
    yield f"nrcpus online : {machine.cpus}"
    yield f"nrcpus avail : {machine.cpus}"
    yield f"cpudesc : {machine.cpu_model.model_name}"
    yield f"total memory : {kernel.totalram_pages() * KIB_PER_PAGE} kB"
    yield "cmdline : kmemd perf record"
    for watch in kernel.perf.watches:
        yield described(watch.name, watch.period)
    yield "========"


@kmemd.file(_FOLDED, mode=0o400)
def folded(kernel: Kernel, stacks: str) -> Iterator[str]:
    """Who holds memory: ``outermost;…;innermost NUMBER`` by descending number."""
    source, _, weight = stacks.rpartition("-")
    return kernel.alloc_stacks.folded(source, weight)


@kmemd.keys(_FOLDED, fixed=True)
def stacks(kernel: Kernel) -> Iterator[str]:
    """Sources and weights: ``page_owner-bytes``."""
    for source in kernel.alloc_stacks.sources:
        yield from (f"{source}-{weight}" for weight in WEIGHTS)
