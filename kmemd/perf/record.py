"""``kmemd perf record``, ``script`` and ``list``. A perf.data of kmemd is the text of ``perf script --header``.

A sample stands for ``period`` events: readers that add periods up (stackcollapse-perf.pl of 2019 and later) give widths
in events; those that count samples show how often there were some.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator

from kmemd.daemon import mountpoint
from kmemd.debug.perf_counters import CLOCKS
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.perf.options import PerfError
from kmemd.perf.target import Mounted, Target, target

HEAD = re.compile(r"^(?P<comm>\S.*?) +(?P<tid>\d+) \[\d+\] +\d+\.\d+: +(?P<n>\d+) (?P<event>\S+): ")


def record(options: argparse.Namespace) -> int:
    """Record samples while a script or a program runs, into a file. The exit status of what was run."""
    with target(options) as machine:
        status = recorded(machine, options.event, period_of(options), options.pid)
        text = machine.read("kmemd/perf/script")
        totals = dict(line.split() for line in machine.read("kmemd/perf/totals").splitlines())
    with open(options.output, "w", encoding="utf-8") as file:
        size = file.write(text)
    lost = f", {totals['lost']} lost" if int(totals["lost"]) else ""
    sys.stdout.flush()
    print(
        f"[ perf record: Captured and wrote {size / 1e6:.3f} MB {options.output} ({totals['samples']} samples{lost}) ]",
        file=sys.stderr,
    )
    return status


def recorded(machine: Target, events: str, period: int, pid: int = 0) -> int:
    """Sample while the target runs. Its exit status."""
    words = [f"perf_record {events}", *([f"period={period}"] if period else []), *([f"task={pid}"] if pid else [])]
    machine.command(" ".join(words))
    try:
        return machine.run()
    finally:
        machine.command("perf_stop")


def period_of(options: argparse.Namespace) -> int:
    """The period that -c or -F asks for; 0: the machine's own. PerfError."""
    if not options.freq:
        return max(0, int(options.count))
    if options.count:
        raise PerfError("-c and -F cannot both be given")
    if options.event not in CLOCKS:
        raise PerfError("-F is for cpu-clock and task-clock; other events take -c")
    return max(1, NSEC_PER_SEC // int(options.freq))


def script(options: argparse.Namespace) -> int:
    """Print samples."""
    if options.at is not None:
        lines: Iterable[str] = Mounted(mountpoint.find(options.at), []).read("kmemd/perf/script").splitlines(True)
        sys.stdout.writelines(chosen(lines, options))
        return 0
    if not os.path.exists(options.input):
        raise PerfError(f"{options.input}: no such file; make one with kmemd perf record")
    with open(options.input, encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(chosen(lines, options))
    return 0


def chosen(lines: Iterable[str], options: argparse.Namespace) -> Iterator[str]:
    """The lines that the options ask for."""
    events = set(filter(None, options.event.split(",")))
    keep = True
    for line in lines:
        if line.startswith("#"):
            if options.header:
                yield line
            continue
        head = HEAD.match(line)
        if head is not None:
            keep = (not events or head["event"] in events) and options.pid in (0, int(head["tid"]))
        if keep:
            yield line


def listing(options: argparse.Namespace) -> int:
    """Print the events that can be counted and sampled, by kind, as ``perf list`` does."""
    with target(options) as machine:
        names = [line.split()[0] for line in machine.read("kmemd/perf/counters").splitlines()]
    print("\nList of pre-defined events (to be used in -e):\n")
    for name in names:
        if not name.endswith("-ns"):
            print(f"  {name:<50} [{_kind(name)}]")
    return 0


def _kind(name: str) -> str:
    group = name.partition(":")[0]
    if group in ("vmstat", "mmu"):
        return {"vmstat": "Counter of /proc/vmstat", "mmu": "Step of kmemd/translation"}[group]
    if name == "cycles":
        return "Hardware event"
    return "Hardware cache event" if name.startswith(("dTLB", "LLC")) else "Software event"
