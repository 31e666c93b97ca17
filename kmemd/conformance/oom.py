"""The folder ``oom``: scores of processes, then memory runs out: who is killed in which order, and the reports.

``oom_scores`` names processes that each wrote so many MiB, with their adjustment; further ones of ``oom.dmesg`` are
started one after the other until memory has run out as often as it did there. The machine has the size that the folder
is named for, as many CPUs as the reports tell, and no transparent huge pages, whose pool of free pages would be larger.

Exact: scores, victims, what the killer says of them, the rows of finished processes, watermarks and sizes of zones.
Format: all other lines. Page tables may be two pages more or fewer: it depends on where chance placed mappings. A score
that was read while its process still wrote lies between that of its pages then and of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.conformance.process import SWAP_HEADER_KIB
from kmemd.conformance.uo import SEEDS, figures, machine_of, number
from kmemd.machine import SwapDevice
from kmemd.mm.units import KIB_PER_PAGE, MIB, PAGE_SIZE
from kmemd.system import System, SystemCallError

CMDLINE = "transparent_hugepage=never"
PROGRAM_PAGES = 265
"""Pages of address space that the program has without the memory that it asks for."""
PAGES_PER_MIB = MIB // PAGE_SIZE
TABLE_SLACK = 2
USUAL_CPUS, MOST_CPUS = 2, 8
_SCORE = re.compile(r"(\d+) \S+ hog (\d+) (-?\d+) +rss=(\d+) adj=(-?\d+) score=(\d+) oom_adj=(-?\d+)")
_LEFT = re.compile(r"(\d+) \S+ hog (\d+) (-?\d+)")
_ROW = re.compile(r"\[ *(\d+)\] +\d+ +\d+ +(\d+) +(\d+) +(\d+) +(\d+) +(-?\d+) (\S+)")
_VICTIM = re.compile(r"Out of memory: Killed process (\d+) (.*pgtables:)(\d+)(kB.*)")
_CPU = re.compile(r"^CPU: (\d+) PID: (\d+)", re.MULTILINE)
_START = "invoked oom-killer"
_ZONE = re.compile(r"(Node \d+ \w+) .*?(boost:\d+kB min:\d+kB low:\d+kB high:\d+kB).*(present:\d+kB managed:\d+kB)")
_SIZES = re.compile(
    r"lowmem_reserve\[\]|\d+ pages (RAM|HighMem|reserved|cma)|(Free|Total) swap|Node \d+ hugepages_total"
)


@dataclass
class Hog:
    """A process that wrote memory: its pid in the capture and in the model."""

    pid: int
    mib: int
    adj: int
    own: int = 0


@dataclass
class Report:
    """What the killer logged once: its lines, the processes by pid, the victim."""

    lines: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """The table: pages of address space, resident, bytes of page tables, swap entries, adjustment."""
        found = (match for line in self.lines if (match := _ROW.match(line)))
        return {int(match[1]): tuple(int(match[place]) for place in range(2, 7)) for match in found}

    @property
    def comms(self) -> dict[int, str]:
        """The names in the table."""
        return {int(match[1]): match[7] for line in self.lines if (match := _ROW.match(line))}

    @property
    def victim(self) -> re.Match[str] | None:
        """The line about who was killed."""
        return next((match for line in self.lines if (match := _VICTIM.match(line))), None)


def reports(text: str) -> list[Report]:
    """The reports of a log."""
    found: list[Report] = []
    for line in text.splitlines():
        if _START in line:
            found.append(Report())
        if found:
            found[-1].lines.append(line)
    return found


def run(folder: Path) -> Iterator[Case]:
    """The cases of every machine's folder, or of this one where it is a machine's itself."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and (path / "oom_scores").exists())
    for machine in below or [folder]:
        if (machine / "oom_scores").exists():
            yield from guarded(machine.name, run_machine(machine))


def run_machine(folder: Path) -> Iterator[Case]:
    """One machine: of the runs that chance allows the first in which all passes, or the best. Where stacks and
    mappings begin decides who of two processes of the same size has one page table more.
    """
    texts = {path.name: path.read_text(errors="replace") for path in sorted(folder.iterdir()) if path.is_file()}
    best: list[Case] = []
    for seed in range(SEEDS):
        cases = list(run_once(folder.name, texts, seed))
        if not best or failures(cases) < failures(best):
            best = cases
        if not failures(cases):
            break
    yield from best


def failures(cases: list[Case]) -> int:
    """How many did not pass."""
    return sum(not case.passed for case in cases)


def run_once(name: str, texts: dict[str, str], seed: int) -> Iterator[Case]:
    """The processes, then the others until memory has run out."""
    wanted = reports(texts.get("oom.dmesg", ""))
    system = boot(name, texts, seed)
    first = sorted((match for line in texts["oom_scores"].splitlines() if (match := _SCORE.match(line))), key=_pid)
    hogs = [Hog(int(match[1]), int(match[2]), int(match[3])) for match in first]
    for hog, match in zip(hogs, first, strict=True):
        yield from start(system, hog, match)
    yield from _sizes(texts["oom_scores"], system)
    for hog in later(texts, wanted, {hog.pid for hog in hogs}):
        hogs.append(hog)
        yield from start(system, hog, None)
    log = "\n".join(line.partition(";")[2] for line in _log(system))
    yield from compare(wanted, reports(log), hogs)
    yield from _left(texts, system, hogs)


def boot(name: str, texts: dict[str, str], seed: int) -> System:
    """A machine of that name with as many CPUs as leave the captured MemTotal; with two, or all that are seen, if
    none does.
    """
    seen = max([int(match[1]) + 1 for match in _CPU.finditer(texts.get("oom.dmesg", ""))] + [1])
    scores = texts["oom_scores"]
    total = next((line for line in scores.splitlines() if line.startswith("MemTotal:")), "")
    usual = max(seen, USUAL_CPUS)
    for cpus in (usual, *(count for count in range(seen, MOST_CPUS + 1) if count != usual)):
        system = System.boot(machine=machine_of(name, cpus, swap_of(scores)), cmdline=CMDLINE, seed=seed)
        if total in system.read("/proc/meminfo").decode().splitlines():
            return system
    return System.boot(machine=machine_of(name, usual, swap_of(scores)), cmdline=CMDLINE, seed=seed)


def swap_of(text: str) -> tuple[SwapDevice, ...]:
    """The swap area that a machine with so much swap space had."""
    match = re.search(r"^SwapTotal: +(\d+) kB", text, re.MULTILINE)
    size = int(match[1]) if match is not None else 0
    return (SwapDevice("/dev/vdb", (size + SWAP_HEADER_KIB) << 10),) if size else ()


def _pid(match: re.Match[str]) -> int:
    return int(match[1])


def _log(system: System) -> list[str]:
    return system.read("/dev/kmsg").decode().splitlines()


def later(texts: dict[str, str], wanted: list[Report], known: set[int]) -> list[Hog]:
    """The processes that came afterwards: by the rows of the program that asked for the reports, and those left."""
    found: dict[int, Hog] = {}
    for report in wanted:
        comm = report.lines[0].partition(f" {_START}")[0]
        for pid, row in report.rows.items():
            if pid not in known and report.comms[pid] == comm and row[0] > PROGRAM_PAGES:
                found[pid] = Hog(pid, (row[0] - PROGRAM_PAGES) // PAGES_PER_MIB, row[4])
    for match in _LEFT.finditer(texts.get("oom_left", "")):
        if int(match[1]) not in known:
            found[int(match[1])] = Hog(*map(int, match.groups()))
    return [found[pid] for pid in sorted(found)]


# -- processes ---------------------------------------------------------------------------------------------


def start(system: System, hog: Hog, wanted: re.Match[str] | None) -> Iterator[Case]:
    """Start a process and have it write its memory; its score, where that was captured."""
    hog.own = number(system.command("spawn uo image=uo"), "pid")
    system.write(f"/proc/{hog.own}/oom_score_adj", str(hog.adj))
    size = hog.mib * MIB
    p = number(system.command(f"mmap {hog.own} {size}"), "addr")
    system.command(f"madvise {hog.own} {p:#x} {size} MADV_NOHUGEPAGE")
    low = None
    if wanted is not None:
        early = min(int(wanted[4]), size // PAGE_SIZE)
        system.command(f"access {hog.own} {p:#x} {early * PAGE_SIZE} w")
        low = int(_read(system, hog, "oom_score"))
    try:
        system.command(f"access {hog.own} {p:#x} {size} w")
    except SystemCallError:
        return  # killed: the reports tell
    if wanted is not None and low is not None:
        yield from _scores(system, hog, wanted, low)


def _read(system: System, hog: Hog, name: str) -> str:
    return system.read(f"/proc/{hog.own}/{name}").decode().strip()


def _scores(system: System, hog: Hog, wanted: re.Match[str], low: int) -> Iterator[Case]:
    """Adjustment, its old form, resident pages and score; the last two of a process that has finished exactly."""
    name = f"hog {hog.mib} {hog.adj}"
    rss, adj, score, old = (int(wanted[place]) for place in range(4, 8))
    yield _equal(f"{name} adj", adj, int(_read(system, hog, "oom_score_adj")))
    yield _equal(f"{name} oom_adj", old, int(_read(system, hog, "oom_adj")))
    resident = int(_read(system, hog, "statm").split()[1])
    have = int(_read(system, hog, "oom_score"))
    if rss > hog.mib * PAGES_PER_MIB:
        yield _equal(f"{name} rss", rss, resident)
        yield _equal(f"{name} score", score, have)
    else:
        yield Case(f"{name} score", low <= score <= have, f"captured {score}, model {low} to {have} while it wrote")


def _equal(name: str, want: object, have: object) -> Case:
    return Case(name, want == have, f"captured {want}, model {have}")


def _sizes(text: str, system: System) -> Iterator[Case]:
    """Memory and swap of the machine."""
    have = system.read("/proc/meminfo").decode().splitlines()
    for line in text.splitlines():
        if line.startswith(("MemTotal", "SwapTotal")):
            yield Case(line.partition(":")[0], line in have, f"captured {line}")


def _left(texts: dict[str, str], system: System, hogs: list[Hog]) -> Iterator[Case]:
    """Who is left, and how often the killer ran."""
    if "oom_left" in texts:
        want = {int(match[1]) for match in _LEFT.finditer(texts["oom_left"])}
        alive = {task.pid for task in system.kernel.tasks}
        yield _equal("left", sorted(want), sorted(hog.pid for hog in hogs if hog.own in alive))
    if "oom_vmstat" in texts:
        now = figures(system.read("/proc/vmstat").decode())
        for name, value in figures(texts["oom_vmstat"]).items():
            yield _equal(f"vmstat {name}", value, now.get(name))


# -- reports -----------------------------------------------------------------------------------------------


def compare(wanted: list[Report], found: list[Report], hogs: list[Hog]) -> Iterator[Case]:
    """Every report, one after the other."""
    pids = {hog.own: hog.pid for hog in hogs}
    victims = [[int(report.victim[1]) if report.victim else 0 for report in log] for log in (wanted, found)]
    yield _equal("victims in order", victims[0], [pids.get(pid, pid) for pid in victims[1]])
    for place, (want, have) in enumerate(zip(wanted, found, strict=False), 1):
        yield from _victim(f"report {place}", want, have)
        yield from _rows(f"report {place}", want, have, hogs)
        yield from _lines(f"report {place}", want, have)


def _victim(name: str, want: Report, have: Report) -> Iterator[Case]:
    if want.victim is None or have.victim is None:
        yield Case(f"{name}: victim", False, "no line about a victim")
        return
    mine, theirs = want.victim, have.victim
    near = abs(int(mine[3]) - int(theirs[3])) <= TABLE_SLACK * KIB_PER_PAGE
    same = (mine[2], mine[4]) == (theirs[2], theirs[4])
    yield Case(f"{name}: victim", near and same, f"captured {mine[0]!r}, model {theirs[0]!r}")


def _rows(name: str, want: Report, have: Report, hogs: list[Hog]) -> Iterator[Case]:
    """The rows of processes that had written all their memory."""
    for hog in hogs:
        row = want.rows.get(hog.pid)
        if row is None or row[1] <= hog.mib * PAGES_PER_MIB:
            continue
        own = have.rows.get(hog.own)
        same = own is not None and row[:2] + row[3:] == own[:2] + own[3:]
        near = own is not None and abs(row[2] - own[2]) <= TABLE_SLACK * PAGE_SIZE
        yield Case(f"{name}: row of hog {hog.mib} {hog.adj}", same and near, f"captured {row}, model {own}")


def form(line: str) -> str:
    """A line without its figures."""
    if line.startswith("Code: "):
        return "Code: BYTES"
    line = re.sub(r"\+0x[0-9a-f]+/0x[0-9a-f]+", "+N/N", line)
    line = re.sub(r"\d+\*(\d+)kB(?: \([UMEHCI]+\))?", r"N*\1kB", line)
    line = re.sub(r"\b(R\w\w|EFLAGS): ([0-9a-f]{4}:)?(0x)?[0-9a-f]+", r"\1: HEX", line)
    return re.sub(r" *(?<![*\w])-?\d+(?![*\w]*kB=)", "N", line)


def _lines(name: str, want: Report, have: Report) -> Iterator[Case]:
    """The form of all lines but the rows, and what of them does not depend on how memory is used."""
    mine, theirs = ([line for line in log.lines if not _ROW.match(line)] for log in (want, have))
    for place, line in enumerate(mine):
        other = theirs[place] if place < len(theirs) else ""
        short = f"{name}: {line[:40]}"
        yield Case(short, form(line) == form(other), f"captured {line!r}, model {other!r}", "format")
        zones = [_ZONE.match(text) for text in (line, other)]
        if zones[0] is not None and "boost:0kB" in line and "boost:0kB" in other:
            parts = [match.groups() if match is not None else () for match in zones]
            yield _equal(f"{short} sizes", *parts)
        elif _SIZES.match(line):
            yield _equal(short, line, other)
    if len(theirs) > len(mine):
        yield Case(f"{name}: end", False, f"the model says more: {theirs[len(mine)]!r}", "format")
