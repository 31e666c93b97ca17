"""``kmemd perf stat``: counts of events, as perf 6.1 prints them (tools/perf/util/stat-display.c, stat-shadow.c).

The columns are perf's: a count of 18 characters, its unit, the event, and what the count means in proportion. Rates are
by the second of the clock event, when one is among the events; the clock is the model's, and idle time is not on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from kmemd.debug.perf_counters import ALIASES, CLOCKS, NOT_COUNTED
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.perf.options import PerfError
from kmemd.perf.target import Target, target

NOT_SUPPORTED = "<not supported>"
COUNT_WIDTH, UNIT_WIDTH, NAME_WIDTH, NAME_WIDTH_UNCOUNTED, METRIC_WIDTH = 18, 4, 32, 25, 35
NS_PER_MS = 1_000_000
OF_ALL = {
    "dTLB-load-misses": ("dTLB-loads", "of all dTLB cache accesses"),
    "LLC-load-misses": ("LLC-loads", "of all LL-cache accesses"),
}
"""A miss, what it is a miss of, and how perf says so."""


@dataclass(frozen=True)
class Count:
    """One line. ``value`` None: not supported. ``metric``: a number, its text, and what it is."""

    name: str
    value: int | None
    metric: tuple[float, str, str] | None = None

    @property
    def is_clock(self) -> bool:
        """Whether the count is of ns, to be shown in ms."""
        return self.name in CLOCKS


def main(options: argparse.Namespace) -> int:
    """Count, run, print. The exit status is that of what was run."""
    names = [name for name in options.event.split(",") if name]
    with target(options) as machine:
        before, counted, status = _count(machine, names, options.pid)
        times = {name: count - before.get(name, 0) for name, count in _counters(machine).items()}
        found = list(counts(names, times if counted is None else counted, times["elapsed-ns"]))
        what = f"process id '{options.pid}'" if options.pid else f"'{machine.name}'"
        what = "'system wide'" if options.all_cpus else what
    if options.output is None:
        sys.stdout.flush()
        _show(options, sys.stderr, found, what, times)
    else:
        with open(options.output, "w", encoding="utf-8") as out:
            _show(options, out, found, what, times)
    return status


def _count(machine: Target, names: list[str], pid: int) -> tuple[dict[str, int], dict[str, int] | None, int]:
    """Counters before, what was counted of one process (None: of the machine), and the exit status."""
    before = _counters(machine)
    for name in names:
        if ALIASES.get(name, name) not in before and name not in NOT_COUNTED and name not in ALIASES:
            raise PerfError(f"event syntax error: '{name}'; kmemd perf list shows what there is")
    if not pid:
        return before, None, machine.run()
    wanted = [name for name in names if ALIASES.get(name, name) in before]
    machine.command(f"perf_record {','.join(wanted)} period=1 task={pid}")
    try:
        status = machine.run()
    finally:
        machine.command("perf_stop")
    totals = _parse(machine.read("kmemd/perf/totals"))
    return before, {ALIASES.get(name, name): totals[name] for name in wanted}, status


def _counters(machine: Target) -> dict[str, int]:
    return _parse(machine.read("kmemd/perf/counters"))


def _parse(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in map(str.split, text.splitlines())}


# -- what counts mean ------------------------------------------------------------------------------------


def counts(names: list[str], values: dict[str, int], elapsed_ns: int) -> Iterator[Count]:
    """The lines for the events in their order, with what perf makes of counts."""
    clock = next((values[name] for name in names if name in CLOCKS and name in values), 0)
    shown = {ALIASES.get(name, name) for name in names}
    for name in names:
        key = ALIASES.get(name, name)
        value = values.get(key)
        yield Count(name, value, None if value is None else _metric(key, value, values, shown, clock, elapsed_ns))


def _metric(
    name: str, value: int, values: dict[str, int], shown: set[str], clock: int, elapsed_ns: int
) -> tuple[float, str, str] | None:
    if name in CLOCKS:
        used = value / elapsed_ns if elapsed_ns else 0.0
        return used, f"{used:8.3f}", "CPUs utilized"
    whole, text = OF_ALL.get(name, ("", ""))
    if whole in shown and values.get(whole):
        share = 100 * value / values[whole]
        return share, f"{share:7.2f}%", text
    if not clock:
        return None
    if name == "cycles":
        return value / clock, f"{value / clock:8.3f}", "GHz"
    rate, prefix = value * NSEC_PER_SEC / clock, ""
    for letter in "KMG":
        if rate >= 1000:
            rate, prefix = rate / 1000, letter
    return rate, f"{rate:8.3f}", f"{prefix}/sec"


# -- how they are printed ----------------------------------------------------------------------------------


def _show(options: argparse.Namespace, out: TextIO, found: list[Count], what: str, times: dict[str, int]) -> None:
    runtime = times["cpu-clock"]
    if options.json:
        out.writelines(json_line(count, runtime) for count in found)
    elif options.field_separator:
        out.writelines(csv_line(count, runtime, options.field_separator) for count in found)
    else:
        out.writelines(text(found, what, times["elapsed-ns"], times["user-ns"], times["system-ns"]))


def text(found: list[Count], what: str, elapsed_ns: int, user_ns: int, system_ns: int) -> Iterator[str]:
    """The report for people."""
    yield f"\n Performance counter stats for {what}:\n\n"
    for count in found:
        yield text_line(count)
    yield f"\n {elapsed_ns / NSEC_PER_SEC:17.9f} seconds time elapsed\n\n"
    yield f" {user_ns / NSEC_PER_SEC:17.9f} seconds user\n"
    yield f" {system_ns / NSEC_PER_SEC:17.9f} seconds sys\n\n\n"


def text_line(count: Count) -> str:
    """A line of the report."""
    number, unit = NOT_SUPPORTED, ""
    if count.value is not None:
        number = f"{count.value / NS_PER_MS:,.2f}" if count.is_clock else f"{count.value:,}"
        unit = "msec" if count.is_clock else ""
    metric, width = " " * METRIC_WIDTH, NAME_WIDTH if count.value is not None else NAME_WIDTH_UNCOUNTED
    if count.metric is not None:
        head = f" # {count.metric[1]}"
        metric = f"{head} {count.metric[2]:<{METRIC_WIDTH - len(head) - 1}}"
    return f"{number:>{COUNT_WIDTH}} {unit:<{UNIT_WIDTH}} {count.name:<{width}}{metric}\n"


def csv_line(count: Count, runtime_ns: int, separator: str) -> str:
    """Fields: count, unit, event, ns it was counted for, percent of the time it was, metric, unit of the metric."""
    if count.value is None:
        return separator.join((NOT_SUPPORTED, "", count.name, "0", "100.00", "", "")) + "\n"
    number = f"{count.value / NS_PER_MS:.2f}" if count.is_clock else str(count.value)
    metric = ("", "") if count.metric is None else (count.metric[1].strip().rstrip("%"), count.metric[2])
    unit = "msec" if count.is_clock else ""
    return separator.join((number, unit, count.name, str(runtime_ns), "100.00", *metric)) + "\n"


def json_line(count: Count, runtime_ns: int) -> str:
    """An object with perf's names."""
    value = None if count.value is None else count.value / (NS_PER_MS if count.is_clock else 1)
    number, _, unit = count.metric or (0.0, "", "")
    fields = (
        ("counter-value", json.dumps(NOT_SUPPORTED if value is None else f"{value:.6f}")),
        ("unit", '"msec"' if value is not None and count.is_clock else '""'),
        ("event", json.dumps(count.name)),
        ("event-runtime", str(0 if value is None else runtime_ns)),
        ("pcnt-running", "100.00"),
        ("metric-value", f"{number:.6f}"),
        ("metric-unit", json.dumps(unit)),
    )
    return "{" + ", ".join(f'"{name}" : {shown}' for name, shown in fields) + "}\n"
