"""The folder ``reclaim``: what reclaim takes, from programs or from the page cache, for each swappiness.

A machine of 512 MiB without transparent huge pages swaps to a disk. A process writes 150 MiB; of a file the first 100
MiB are read, then the first 200 MiB (``a``); a second process writes 200 MiB (``b``); the 200 MiB of the file are read
again (``c``). After each phase kswapd has time to finish. Each run begins on a fresh machine, with as much free memory
as the captured one had. What meminfo counts as Buffers says that the file was a disk, whose pages are not movable, and
was read in calls of 1 MiB, for the page cache holds one more than was asked for: the next one was on its way. Below
``mglru`` are runs with the multi-generational LRU, which follow one another.

Of each phase is compared how many pages were reclaimed, and which share of them went to swap. Both tolerances are
those of a behaviour; a phase that reclaims less than kswapd does when it is woken once (the sum of the high watermarks,
its ``nr_to_reclaim``) may differ by that.

What is not met: phase ``c`` of swappiness 0, the first run of its machine. Compaction moved 6,912 pages before, each to
the young end of its list (1,882 at most in later runs), and a quarter of the file was found in memory. Where lists are
first in, first out, a file that is read from its start finds none: each page was evicted just before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.conformance.shape import machine_from_zoneinfo
from kmemd.conformance.uo import number
from kmemd.machine import SwapDevice
from kmemd.mm.units import KIB, KIB_PER_PAGE, MIB
from kmemd.system import System

CMDLINE = "transparent_hugepage=never"
SWAP_DISK, FILE_PATH, DISK = "/dev/vdb", "/mnt/data", "/dev/vda"
CALL = MIB
"""Bytes of a read(2)."""
FIRST, SECOND, FILE, HALF = 150 * MIB, 200 * MIB, 200 * MIB, 100 * MIB
SHARE, COUNT = 0.15, 0.25
PAUSE_S = 1
"""Between phases: kswapd finishes."""
PHASES = (("a", "b"), ("b", "c"))
Reading = dict[str, dict[str, int]]
_SWAPPINESS = re.compile(r"sw(\d+)\.a\.vmstat")


@dataclass(frozen=True)
class Taken:
    """What a phase reclaimed, in pages, and what went to swap."""

    pages: int
    swapped: int

    @property
    def share(self) -> float:
        """Which part of the pages went to swap."""
        return self.swapped / self.pages if self.pages else 0.0

    @classmethod
    def between(cls, before: dict[str, int], after: dict[str, int]) -> Taken:
        """From two readings of vmstat."""
        delta = {name: after.get(name, 0) - before.get(name, 0) for name in ("pgsteal_anon", "pgsteal_file")}
        return cls(delta["pgsteal_anon"] + delta["pgsteal_file"], delta["pgsteal_anon"])


def run(folder: Path) -> Iterator[Case]:
    """The cases of the two-list LRU, and of the generations where the model has them."""
    yield from guarded(folder.name, run_kind(folder, folder))
    if (folder / "mglru").is_dir():
        yield from guarded("mglru", run_after_others(folder / "mglru", folder))


def run_kind(folder: Path, home: Path) -> Iterator[Case]:
    """All runs of a folder, each on a fresh machine of the zones that ``home`` tells."""
    path = what_was_read(folder)
    for swappiness, read in captured(folder).items():
        system = boot(home)
        have, _ = replay(system, swappiness, path)
        yield from compare_run(str(swappiness), read, have, slack(system))


def run_after_others(folder: Path, home: Path) -> Iterator[Case]:
    """The same with generations. What the controller learned in one run it remembers in the next, and the captured runs
    followed one another: page caches were dropped before each, which tells its number. All but the first are replayed
    on a machine that has been through one, with the same swappiness: what was before counts for less and less."""
    path = what_was_read(folder)
    for swappiness, read in captured(folder).items():
        system = boot(home)
        system.write("/sys/kernel/mm/lru_gen/enabled", "y")
        have, writers = replay(system, swappiness, path)
        if read["a"].get("drop_pagecache", 0) > 1:
            for pid in writers:
                system.command(f"exit {pid}")
            system.write("/proc/sys/vm/drop_caches", "3")
            have, _ = replay(system, swappiness, path)
        yield from compare_run(f"mglru {swappiness}", read, have, slack(system))


def captured(folder: Path) -> dict[int, Reading]:
    """The runs of a folder by swappiness: vmstat after each phase."""
    values = sorted(int(match[1]) for path in folder.iterdir() if (match := _SWAPPINESS.fullmatch(path.name)))
    return {n: {phase: vmstat((folder / f"sw{n}.{phase}.vmstat").read_text()) for phase in "abc"} for n in values}


def what_was_read(folder: Path) -> str:
    """A disk, if all that was read is in the buffer cache after the first phase of a run, or a file."""
    files = sorted(folder.glob("sw*.a.meminfo"))
    buffers = min((meminfo(file.read_text()).get("Buffers", 0) for file in files), default=0)
    return DISK if buffers * KIB >= FILE else FILE_PATH


def compare_run(label: str, read: Reading, have: Reading, near: int) -> Iterator[Case]:
    """The cases of one run; the label is the swappiness, or ``mglru`` and the swappiness."""
    *kind, swappiness = label.split()
    for before, after in PHASES:
        wanted = Taken.between(read[before], read[after])
        name = " ".join([*kind, f"swappiness {swappiness} phase {after}"])
        yield from compare(name, wanted, Taken.between(have[before], have[after]), near)


def boot(home: Path) -> System:
    """The machine as it stood before the first run: with as much memory free."""
    machine = machine_from_zoneinfo((home / "zoneinfo.start").read_text(), "x86_64-2cpu")
    start = meminfo((home / "meminfo.start").read_text())
    swap = SwapDevice(SWAP_DISK, (start["SwapTotal"] + 4) * KIB)
    system = System.boot(machine=replace(machine, swap=(swap,)), cmdline=CMDLINE)
    more = (meminfo(system.read("/proc/meminfo").decode())["MemFree"] - start["MemFree"]) // KIB_PER_PAGE
    if more > 0:
        system.command(f"rest = alloc_pages n={more}")
    return system


def replay(system: System, swappiness: int, path: str = DISK) -> tuple[Reading, list[int]]:
    """One run: vmstat after each phase, and the processes that wrote, which are still there."""
    system.write("/proc/sys/vm/swappiness", str(swappiness))
    found = {}
    writers = [_writer(system, FIRST)]
    for size in (HALF, FILE):
        _read(system, path, size)
    system.advance(PAUSE_S)
    found["a"] = vmstat(system.read("/proc/vmstat").decode())
    writers.append(_writer(system, SECOND))
    system.advance(PAUSE_S)
    found["b"] = vmstat(system.read("/proc/vmstat").decode())
    _read(system, path, FILE)
    system.advance(PAUSE_S)
    found["c"] = vmstat(system.read("/proc/vmstat").decode())
    return found, writers


def _writer(system: System, size: int) -> int:
    """A process that wrote ``size`` bytes: its pid."""
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {size}"), "addr")
    system.command(f"access {pid} {start:#x} {size} w")
    return pid


def _read(system: System, path: str, size: int) -> None:
    """The first ``size`` bytes are read."""
    if path == FILE_PATH and not system.kernel.user.vfs.mount_of(path).has(path):
        system.command(f"create {path} {FILE}")
    for start in range(0, size, CALL):
        system.command(f"read_file {path} offset={start} n={CALL}")


def vmstat(text: str) -> dict[str, int]:
    """The counters of a vmstat file."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def meminfo(text: str) -> dict[str, int]:
    """The fields of a meminfo file in kB."""
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def slack(system: System) -> int:
    """Pages that kswapd reclaims when it is woken once."""
    return sum(zone.watermark_high for zone in system.kernel.zones if zone.managed)


def compare(name: str, wanted: Taken, have: Taken, slack: int) -> Iterator[Case]:
    """The two cases of a phase; where next to nothing was reclaimed a share says nothing."""
    near = abs(have.pages - wanted.pages) <= max(COUNT * wanted.pages, slack)
    yield Case(f"{name} pages", near, f"captured {wanted.pages} reclaimed, model {have.pages}", "shape")
    if min(wanted.pages, have.pages) > slack:
        near = abs(have.share - wanted.share) <= SHARE
        yield Case(f"{name} share", near, f"captured {wanted.share:.3f} to swap, model {have.share:.3f}", "shape")
