"""Compaction of a captured occupation: ``NAME.buddyinfo``, ``.pagetypeinfo``, ``.extfrag``, ``.unusable``, ``.vmstat``.

The indices follow from each state's buddyinfo; a state was captured file by file by a program that ran meanwhile, so
that the last digit may differ by one. The machine is made a twin of the state ``punched``; a process maps and writes
what ``hog2`` maps, 100 MiB at a time, and ``compact_memory`` is written. What is free in each order may then differ by
10 % from ``compacted``, and by what the per-cpu lists can hold and one block, for the lists' content was not captured.
The counters of migration depend on where the original's pages lay, which no file says: they are compared within a
factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.conformance.frag import INDICES, parse_line
from kmemd.conformance.shape import machine_from_zoneinfo
from kmemd.machine import Machine
from kmemd.mm.units import GIB, MIB, PAGE_SIZE
from kmemd.system import System
from kmemd.views.extfrag import index_line

CPUS = 2
HOG_MIB, STEP_MIB = 300, 100
TOLERANCE = 0.10
FACTOR = 2.5
LAST_DIGIT = 0.0015
CAPTURED_NAMES = {"extfrag_index": "extfrag", "unusable_index": "unusable"}
SHAPED = ("pgmigrate_success", "compact_isolated")
SAME = (
    *("nr_isolated_anon", "nr_isolated_file", "compact_stall", "compact_fail", "compact_success", "pgmigrate_fail"),
    *("compact_daemon_wake", "compact_daemon_migrate_scanned", "compact_daemon_free_scanned"),
)


def run(folder: Path) -> Iterator[Case]:
    """The indices of every state, and one run of compaction."""
    for info in sorted(folder.glob("*.buddyinfo")):
        yield from guarded(info.stem, indices(info))
    if all((folder / f"{name}.buddyinfo").exists() for name in ("punched", "hog2", "compacted")):
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


def compact(folder: Path) -> Iterator[Case]:
    """From ``punched`` to ``compacted``."""
    system = System.boot(machine_at(folder, "punched"), cmdline="transparent_hugepage=always")
    system.command("hog = spawn hog")
    for part in range(HOG_MIB // STEP_MIB):
        system.command(f"m{part} = mmap hog {STEP_MIB}M")
        system.command(f"access hog m{part} {STEP_MIB}M w")
    yield from compare_free(system, "hog2", (folder / "hog2.buddyinfo").read_text())
    before = counters(system)
    system.write("/proc/sys/vm/compact_memory", "1")
    yield from compare_free(system, "compacted", (folder / "compacted.buddyinfo").read_text())
    if (folder / "compacted.vmstat").exists():
        yield from compare_counters(before, counters(system), folder)
    system.check()


def machine_at(folder: Path, state: str) -> Machine:
    """A twin of a captured state: a machine as large as its page blocks say."""
    types = (folder / f"{state}.pagetypeinfo").read_text()
    blocks = sum(
        sum(map(int, row.split())) for row in re.findall(r"^Node \d+, zone +\S+ +([\d ]+)$", types, re.MULTILINE)
    )
    pages = int(re.findall(r"^Pages per block: +(\d+)", types, re.MULTILINE)[0])
    size = -(-blocks * pages * PAGE_SIZE // (128 * MIB)) * 128 * MIB
    plain = System.boot(Machine.of_memory("captured", "x86_64", CPUS, (size,), (tuple(range(CPUS)),), ((10,),)))
    zoneinfo = plain.read("/proc/zoneinfo").decode()
    name = f"x86_64-{size // GIB}G-{CPUS}cpu"
    info = (folder / f"{state}.buddyinfo").read_text()
    return machine_from_zoneinfo(zoneinfo, name, buddyinfo=info, pagetypeinfo=types)


def compare_free(system: System, state: str, captured: str) -> Iterator[Case]:
    """Free pages by order."""
    cpus = len(system.kernel.online_cpus)
    zones = {(zone.nid, zone.name): zone for zone in system.kernel.zones}
    for nid, name, wanted in (parse_line(line) for line in captured.splitlines() if line.strip()):
        zone = zones[nid, name]
        lists = zone.pageset(0)[1] * cpus
        for order, (want, have) in enumerate(zip(wanted, zone.nr_free, strict=True)):
            room = max(TOLERANCE * want, 1 + (lists >> order))
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
        near = want == have if name in SAME else want / FACTOR <= have <= want * FACTOR
        yield Case(f"compacted {name}", near, f"captured {want}, model {have}", "shape")
