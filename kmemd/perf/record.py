"""``kmemd perf record``, ``script`` and ``list``. perf itself reads the perf.data files, too.

A sample stands for ``period`` events: readers that add periods up (stackcollapse-perf.pl of 2019 and later) give widths
in events; those that count samples show how often there were some.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from kmemd.daemon import mountpoint
from kmemd.debug.perf_counters import CLOCKS
from kmemd.debug.perf_events import described
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.perf.data import Event, Recording, Symbols, pack
from kmemd.perf.data_reader import unpack
from kmemd.perf.options import PerfError
from kmemd.perf.samples import Sample, parse
from kmemd.perf.target import Mounted, Target, target

EVENT = re.compile(r"name = (\S+), , sample_period = (\d+), ")


def record(options: argparse.Namespace) -> int:
    """Record samples while a script or a program runs, into a file. The exit status of what was run."""
    with target(options) as machine:
        status = recorded(machine, options.event, period_of(options), options.pid)
        text = machine.read("kmemd/perf/script")
        symbols = Symbols(machine.read("proc/kallsyms"))
        totals = dict(line.split() for line in machine.read("kmemd/perf/totals").splitlines())
    lines = text.splitlines(keepends=True)
    with open(options.output, "wb") as file:
        size = file.write(pack(Recording(*_header(lines), parse(lines)), symbols))
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
        lines = Mounted(mountpoint.find(options.at), []).read("kmemd/perf/script").splitlines(keepends=True)
        return _print([line for line in lines if line.startswith("#")], parse(lines), options)
    try:
        with open(options.input, "rb") as file:
            recording = unpack(file.read())
        head = [f"# {line}\n" for line in _about(recording, os.stat(options.input).st_mtime)]
        return _print([*head, "#\n"], recording.samples, options)
    except FileNotFoundError:
        raise PerfError(f"{options.input}: no such file; make one with kmemd perf record") from None
    except ValueError as error:
        raise PerfError(f"{options.input}: {error}") from None


def _print(head: Sequence[str], samples: Iterable[Sample], options: argparse.Namespace) -> int:
    """The samples that the options ask for, below the header where it is wanted."""
    events = set(filter(None, options.event.split(",")))
    if options.header:
        sys.stdout.writelines(head)
    for sample in samples:
        if (not events or sample.event in events) and options.pid in (0, sample.tid):
            sys.stdout.write(sample.text())
    return 0


def _header(lines: Iterable[str]) -> tuple[dict[str, str], list[Event]]:
    """What the header of a text says of the machine, and of the events."""
    about: dict[str, str] = {}
    events = []
    for line in lines:
        key, separator, value = line.strip("# \n").partition(" : ")
        event = EVENT.match(value)
        if not line.startswith("#"):
            break
        if event is not None:
            events.append(Event(event[1], int(event[2])))
        elif separator:
            about[key.strip()] = value
    return about, events


def _about(recording: Recording, when: float) -> Iterator[str]:
    """The lines of a header. ``when``: the time of the file (s), which perf takes for that of the recording."""
    yield "========"
    yield f"captured on    : {time.strftime('%a %b %e %H:%M:%S %Y', time.localtime(when))}"
    yield "header version : 1"
    yield from (f"{key} : {value}" for key, value in recording.about.items())
    for event in recording.events:
        yield described(event.name, event.period)
    yield "========"


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
