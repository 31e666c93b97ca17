"""Compaction of a captured occupation: ``NAME.buddyinfo``, ``.pagetypeinfo``, ``.extfrag``, ``.unusable``, ``.vmstat``.

The indices follow from each state's buddyinfo; a state was captured file by file by a program that ran meanwhile, so
that the last digit may differ by one.

Two runs begin at a captured state. ``punched``: a process maps and writes what ``hog2`` maps, 100 MiB at a time; what
is free in each order may differ by 10 %, and by what one refill of a per-cpu list takes, for what those lists held was
not captured. ``hog2`` (``conformance.compaction_twin``): ``compact_memory`` is written; what is free in each order may
differ from ``compacted`` by 10 %, at least a block. So may the pages that were moved and isolated. What the scanners
looked at is not compared: it depends on where the original's pages lay, which no file says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.conformance.compaction_twin import ALWAYS, machine_at, map_hog, occupied
from kmemd.conformance.frag import INDICES, parse_line
from kmemd.system import System
from kmemd.views.extfrag import index_line

TOLERANCE = 0.10
LAST_DIGIT = 0.0015
CAPTURED_NAMES = {"extfrag_index": "extfrag", "unusable_index": "unusable"}
SHAPED = ("pgmigrate_success", "compact_isolated")
SAME = (
    *("nr_isolated_anon", "nr_isolated_file", "compact_stall", "compact_fail", "compact_success", "pgmigrate_fail"),
    *("compact_daemon_wake", "compact_daemon_migrate_scanned", "compact_daemon_free_scanned"),
)


def run(folder: Path) -> Iterator[Case]:
    """The indices of every state, and the two runs."""
    for info in sorted(folder.glob("*.buddyinfo")):
        yield from guarded(info.stem, indices(info))
    if all((folder / f"{name}.buddyinfo").exists() for name in ("punched", "hog2", "compacted")):
        yield from guarded("fill", fill(folder))
        yield from guarded("compaction", compact(folder))


def indices(info: Path) -> Iterator[Case]:
    """extfrag and unusable indices of one state."""
    zones = [parse_line(line) for line in info.read_text().splitlines() if line.strip()]
    for name, index, width in INDICES:
        captured = info.with_suffix(f".{CAPTURED_NAMES[name]}")
        if captured.exists():
            lines = zip(captured.read_text().splitlines(), zones, strict=True)
            for want, (nid, zone, nr_free) in lines:
                line = index_line(nid, zone, nr_free, index, width)
                near = line[:23] == want[:23] and all(
                    abs(a - b) < LAST_DIGIT for a, b in zip(*map(numbers, (line, want)), strict=True)
                )
                yield Case(
                    f"{info.stem}.{name} Node {nid} zone {zone}", near, "" if near else f"{want} != {line}", "shape"
                )


def numbers(line: str) -> list[float]:
    """The indices of a line."""
    return [float(word) for word in line[23:].split()]


def fill(folder: Path) -> Iterator[Case]:
    """From ``punched`` to ``hog2``: what a program's memory takes of the free lists."""
    system = System.boot(machine_at(folder, "punched"), cmdline=ALWAYS)
    map_hog(system)
    yield from compare_free(system, "hog2", (folder / "hog2.buddyinfo").read_text(), refills=1)
    system.check()


def compact(folder: Path) -> Iterator[Case]:
    """From ``hog2`` to ``compacted``."""
    system = occupied(folder, "punched", "hog2")
    before = counters(system)
    system.write("/proc/sys/vm/compact_memory", "1")
    yield from compare_free(system, "compacted", (folder / "compacted.buddyinfo").read_text())
    if (folder / "compacted.vmstat").exists():
        yield from compare_counters(before, counters(system), folder)
    system.check()


def compare_free(system: System, state: str, captured: str, refills: int = 0) -> Iterator[Case]:
    """Free pages by order. ``refills`` of a per-cpu list may be missing or left over."""
    zones = {(zone.nid, zone.name): zone for zone in system.kernel.zones}
    for nid, name, wanted in (parse_line(line) for line in captured.splitlines() if line.strip()):
        zone = zones[nid, name]
        batch = zone.pageset(0)[2] * refills
        for order, (want, have) in enumerate(zip(wanted, zone.nr_free, strict=True)):
            room = max(TOLERANCE * want, 1) + (batch >> order)
            detail = f"captured {want} blocks, model {have}"
            yield Case(f"{state} node {nid} {name} order {order}", abs(have - want) <= room, detail, "shape")
        total, free = (sum(count << order for order, count in enumerate(row)) for row in (wanted, zone.nr_free))
        near = abs(free - total) <= TOLERANCE * total
        yield Case(f"{state} node {nid} {name} free pages", near, f"captured {total}, model {free}", "shape")


def counters(system: System) -> dict[str, int]:
    """vmstat."""
    return parse_vmstat(system.read("/proc/vmstat").decode())


def parse_vmstat(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines() if line.strip())}


def compare_counters(before: dict[str, int], after: dict[str, int], folder: Path) -> Iterator[Case]:
    """What compaction counted."""
    end = parse_vmstat((folder / "compacted.vmstat").read_text())
    begin = parse_vmstat((folder / "hog2.vmstat").read_text())
    for name in (*SAME, *SHAPED):
        if name not in end or name not in begin:
            continue
        want, have = end[name] - begin[name], after[name] - before[name]
        near = want == have if name in SAME else abs(have - want) <= TOLERANCE * want
        yield Case(f"compacted {name}", near, f"captured {want}, model {have}", "shape")
