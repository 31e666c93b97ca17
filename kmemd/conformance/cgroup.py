"""The folder ``cgroup``: a group's files when it is fresh, what writes to them get, and a group at its limits.

On a machine of 1 GiB without transparent huge pages and with kernel memory not accounted, a group ``a`` holds another
one, takes the writes of ``cgroup_writes``, and then processes that write so many MiB each, as the folders are named:
within no limit (``hogN``), gone again (``afterN``), at memory.max without and with swap (``maxN_hogM_*``), after
memory.reclaim (``reclaimedN``), above memory.high (``highN_hogM``). At last it is removed, while it is busy and when
it is not.

Exact: every write's result, errno and what is read afterwards; files of a fresh group; results of memory.reclaim and
rmdir; the OOM killer's count. Format: the labels of all files and the lines of the report. Shape: what is charged,
reclaimed and counted as an event, within a quarter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kmemd.conformance.case import Case
from kmemd.conformance.uo import machine_of
from kmemd.machine import SwapDevice
from kmemd.mm.units import GIB, MIB
from kmemd.system import System, SystemCallError

ROOT = "/sys/fs/cgroup"
GROUP = f"{ROOT}/a"
CMDLINE = "transparent_hugepage=never cgroup.memory=nokmem"
SWAP = "/dev/vdb"
TOLERANCE, SLACK_BYTES = 0.25, MIB
DEFAULT_SCAN_NS, NSEC_PER_USEC = 900, 1000
NOT_READABLE = ("cgroup.kill", "memory.reclaim")
_WRITE = re.compile(r"(\S+) <- '(.*)' = (-?\d+) errno (\d+) reads (.*)")
_STAGE = re.compile(r"(hog|after|reclaimed)(\d+)|(max|high)(\d+)_hog(\d+)(_noswap|_swap)?")
ORDER = ("hog", "after", "noswap", "swap", "reclaimed", "high")
"""The stages in the order in which they ran."""
NUMBERS = (
    *(("memory.current", ""), ("memory.swap.current", ""), ("memory.peak", "")),
    *(("memory.stat", name) for name in ("anon", "pgscan", "pgsteal", "pgfault")),
    *(("memory.events", name) for name in ("high", "max")),
)
_DIGITS = re.compile(r"\b(0x[0-9a-f]+|\d+)")


def run(folder: Path) -> Iterator[Case]:
    """All cases of one machine's captures."""
    machine = machine_of("x86_64-1G-2cpu", swap=(SwapDevice(SWAP, GIB, active=False),))
    latency = replace(machine.latency, reclaim_page=_scan_ns(folder))
    system = System.boot(replace(machine, latency=latency), cmdline=CMDLINE)
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    system.mkdir(GROUP)
    system.mkdir(f"{GROUP}/b")
    if (folder / "fresh").is_dir():
        yield from compare_fresh(system, folder / "fresh")
    if (folder / "cgroup_writes").exists():
        yield from compare_writes(system, (folder / "cgroup_writes").read_text())
    if (folder / "root.memory.stat").exists():
        yield _labels(system, folder / "root.memory.stat", f"{ROOT}/memory.stat")
    system.rmdir(f"{GROUP}/b")
    system.rmdir(GROUP)
    system.mkdir(GROUP)
    yield from Stages(system, folder).run()


def _scan_ns(folder: Path) -> int:
    """What a page that reclaim looks at took there, by the group's own pressure: how far devices get meanwhile."""
    for stage in sorted(folder.glob("max*_swap")):
        total = re.search(r"some .*total=(\d+)", (stage / "memory.pressure").read_text())
        scanned = _figure((stage / "memory.stat").read_text(), "pgscan")
        if total is not None and scanned:
            return int(total[1]) * NSEC_PER_USEC // scanned
    return DEFAULT_SCAN_NS


def read(system: System, path: str) -> str:
    """A file's text, as cat has it."""
    try:
        return system.read(path).decode()
    except SystemCallError as error:
        return f"cat: read error: {'Invalid argument' if error.errno == 22 else error.errno}\n"


def compare_fresh(system: System, folder: Path) -> Iterator[Case]:
    """Every file of a fresh group, to the byte."""
    for file in sorted(folder.iterdir()):
        want, have = file.read_text(), read(system, f"{GROUP}/{file.name}")
        yield Case(f"fresh {file.name}", want == have, f"captured {want!r}, model {have!r}")


def compare_writes(system: System, text: str) -> Iterator[Case]:
    """One ``write(2)`` after the other, each on the state that the last one left."""
    for row in map(_WRITE.match, text.splitlines()):
        if row is None:
            continue
        name, value, result, number, reads = row.groups()
        have = _write(system, f"{GROUP}/{name}", value)
        want = (int(result), int(number))
        yield Case(f"{name} <- {value!r}", have == want, f"captured {want}, model {have}")
        if name not in NOT_READABLE:
            shown = " ".join(read(system, f"{GROUP}/{name}").split())
            yield Case(f"{name} after {value!r}", shown == reads.strip(), f"captured {reads.strip()}, model {shown}")


def _write(system: System, path: str, value: str) -> tuple[int, int]:
    try:
        return system.write(path, value), 0
    except SystemCallError as error:
        return -1, error.errno


def _labels(system: System, file: Path, path: str) -> Case:
    """The first word of every line, and the names of what follows."""
    want, have = (
        [re.sub(r"\d[\d.]*", "N", line) if "=" in line else line.split()[0] for line in text.splitlines() if line]
        for text in (file.read_text(), read(system, path))
    )
    if len(want) == 1 and want[0].isdigit():
        return Case(f"{file.parent.name} {file.name}", len(have) == 1 and have[0].isdigit(), "no number", "format")
    return Case(f"{file.parent.name} {file.name}", want == have, f"captured {want}, model {have}", "format")


class Stages:
    """The group at its limits, a stage after the other."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system, self._folder = system, folder
        self._pid = 0
        found = [(match, path) for path in folder.iterdir() if (match := _STAGE.fullmatch(path.name))]
        self._stages = sorted(found, key=lambda each: ORDER.index(self._kind(each[0])))

    @staticmethod
    def _kind(match: re.Match[str]) -> str:
        return match[1] or (match[6] or "_high").lstrip("_") if match[3] != "high" else "high"

    def run(self) -> Iterator[Case]:
        """Every stage that was captured, and what is left when all is over."""
        for match, path in self._stages:
            kind = self._kind(match)
            if kind in ("hog", "after"):
                self._end() if kind == "after" else self._hog(int(match[2]))
            elif kind == "reclaimed":
                yield from self._reclaim(int(match[2]))
            else:
                yield from self._limit(kind, match[3], int(match[4]), int(match[5]))
            yield from self._compare(path)
        yield from self._remove()

    def _hog(self, mib: int) -> bool:
        """A process in the group that writes its memory; whether it lived."""
        self._end()
        self._pid = int(self._system.command("spawn uo").split("pid=")[1].split()[0])
        self._system.write(f"{GROUP}/cgroup.procs", str(self._pid))
        try:
            self._system.command(f"mem = mmap {self._pid} {mib}M")
            self._system.command(f"access {self._pid} mem {mib}M w")
        except SystemCallError:
            return False
        return True

    def _end(self) -> None:
        if self._pid and self._pid in self._system.kernel.tasks:
            self._system.command(f"exit {self._pid}")
        self._pid = 0

    def _limit(self, kind: str, knob: str, limit: int, mib: int) -> Iterator[Case]:
        self._end()
        if kind == "swap":
            self._system.command(f"swapon {SWAP}")
        if knob == "high":
            self._system.write(f"{GROUP}/memory.max", "max")
        self._system.write(f"{GROUP}/memory.{knob}", f"{limit}M")
        lived = self._hog(mib)
        yield Case(f"{kind} process lives", lived == (kind != "noswap"), f"model: lived {lived}")
        log = self._folder / f"max{limit}_oom.dmesg"
        if kind == "noswap" and log.exists():
            yield from self._report(log.read_text())

    def _report(self, text: str) -> Iterator[Case]:
        """The OOM killer's report, line for line, but for the frames of the stack and numbers."""
        lines = [line.split(";", 1)[1] for line in self._system.read("/dev/kmsg").decode().splitlines() if ";" in line]
        start = next((at for at, line in enumerate(lines) if "invoked oom-killer" in line), len(lines))
        want, have = (_plain(each) for each in (text.splitlines(), lines[start:]))
        for line in want:
            yield Case(
                f"report: {line[:60]}", line in have, f"captured {line!r} is not in the model's report", "format"
            )

    def _reclaim(self, mib: int) -> Iterator[Case]:
        result, number = _write(self._system, f"{GROUP}/memory.reclaim", f"{mib}M")
        rc = self._folder / "reclaim_rc"
        if rc.exists():
            want = int(rc.read_text().split()[-1])
            yield Case("memory.reclaim", (want == 0) == (result > 0), f"captured rc {want}, model errno {number}")

    def _compare(self, folder: Path) -> Iterator[Case]:
        for file in sorted(folder.iterdir()):
            yield _labels(self._system, file, f"{GROUP}/{file.name}")
        for name, label in NUMBERS:
            if (folder / name).exists():
                want = _figure((folder / name).read_text(), label)
                have = _figure(read(self._system, f"{GROUP}/{name}"), label)
                slack = TOLERANCE * want + (SLACK_BYTES if label in ("", "anon") else 16)
                case = f"{folder.name} {name} {label}".strip()
                yield Case(case, abs(want - have) <= slack, f"captured {want}, model {have}", "shape")
        if (folder / "memory.events").exists():
            for label in ("oom", "oom_kill"):
                want = _figure((folder / "memory.events").read_text(), label)
                have = _figure(read(self._system, f"{GROUP}/memory.events"), label)
                yield Case(f"{folder.name} {label}", want == have, f"captured {want}, model {have}")

    def _remove(self) -> Iterator[Case]:
        """A busy group stays; an empty one goes, whatever is still charged to it."""
        if not self._pid:
            self._hog(1)
        for name, want in (("busy", 16), ("empty", 0)):
            try:
                self._system.rmdir(GROUP)
                have = 0
            except SystemCallError as error:
                have = error.errno
            yield Case(f"rmdir {name}", have == want, f"captured errno {want}, model {have}")
            self._end()
        self._system.check()


def _figure(text: str, label: str) -> int:
    if not label:
        return int(text)
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[0] == label), 0)


def _plain(lines: list[str]) -> list[str]:
    """Lines with N for numbers, without what the stack and the registers hold."""
    kept = [line for line in lines if not re.match(r" \S+\+0x|RIP|RSP|R[A-Z0-9]{2}:|Code|CPU:", line)]
    return [_DIGITS.sub("N", re.sub(r"\[ *\d+\].*", "[row]", line)) for line in kept]
