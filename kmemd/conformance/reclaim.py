"""The folder ``reclaim``: what reclaim takes, from programs or from the page cache, for each swappiness.

A machine of 512 MiB without transparent huge pages swaps to a disk. A process writes 150 MiB; of a file the first 100
MiB are read, then the first 200 MiB (``a``); a second process writes 200 MiB (``b``); the 200 MiB of the file are read
again (``c``). Each run begins on a fresh machine, with as much free memory as the captured one had: what the kernel
holds besides lies scattered in blocks of its own, as slabs do. Below ``mglru`` are runs with the multi-generational
LRU.

Of each phase is compared how many pages were reclaimed, and which share of them went to swap. Both tolerances are
those of a behaviour; a phase that reclaims less than what kswapd does at once may differ by that.
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
SWAP_DISK, FILE_PATH = "/dev/vdb", "/mnt/data"
FIRST, SECOND, FILE, HALF = 150 * MIB, 200 * MIB, 200 * MIB, 100 * MIB
SHARE, COUNT = 0.15, 0.25
SLACK = 1200
"""Pages that kswapd reclaims at once on such a machine: the sum of the high watermarks."""
HOLES = 2000
"""Free pages between those that the kernel holds."""
PHASES = (("a", "b"), ("b", "c"))
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
        yield from guarded("mglru", run_kind(folder / "mglru", folder, mglru=True))


def run_kind(folder: Path, home: Path, *, mglru: bool = False) -> Iterator[Case]:
    """All runs of a folder, on a machine of the zones that ``home`` tells."""
    values = sorted(int(match[1]) for path in folder.iterdir() if (match := _SWAPPINESS.fullmatch(path.name)))
    for swappiness in values:
        system = boot(home)
        if mglru:
            system.write("/sys/kernel/mm/lru_gen/enabled", "y")
        have = replay(system, swappiness)
        read = {phase: vmstat((folder / f"sw{swappiness}.{phase}.vmstat").read_text()) for phase in "abc"}
        for before, after in PHASES:
            wanted = Taken.between(read[before], read[after])
            name = f"{'mglru ' if mglru else ''}swappiness {swappiness} phase {after}"
            yield from compare(name, wanted, Taken.between(have[before], have[after]))


def boot(home: Path) -> System:
    """The machine as it stood before the first run: with as much memory free."""
    machine = machine_from_zoneinfo((home / "zoneinfo.start").read_text(), "x86_64-2cpu")
    start = meminfo((home / "meminfo.start").read_text())
    swap = SwapDevice(SWAP_DISK, (start["SwapTotal"] + 4) * KIB)
    system = System.boot(machine=replace(machine, swap=(swap,)), cmdline=CMDLINE)
    more = (meminfo(system.read("/proc/meminfo").decode())["MemFree"] - start["MemFree"]) // KIB_PER_PAGE
    if more > 0:
        system.command(f"rest = alloc_pages n={more + HOLES}")
        system.command(f"free_pages rest every=2 n={HOLES}")
    system.command(f"create {FILE_PATH} {FILE}")
    return system


def replay(system: System, swappiness: int) -> dict[str, dict[str, int]]:
    """One run: vmstat after each phase."""
    system.write("/proc/sys/vm/swappiness", str(swappiness))
    found = {}
    _writer(system, FIRST)
    for size in (HALF, FILE):
        system.command(f"read_file {FILE_PATH} n={size}")
    found["a"] = vmstat(system.read("/proc/vmstat").decode())
    _writer(system, SECOND)
    found["b"] = vmstat(system.read("/proc/vmstat").decode())
    system.command(f"read_file {FILE_PATH} n={FILE}")
    found["c"] = vmstat(system.read("/proc/vmstat").decode())
    return found


def _writer(system: System, size: int) -> None:
    """A process that wrote ``size`` bytes."""
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {size}"), "addr")
    system.command(f"access {pid} {start:#x} {size} w")


def vmstat(text: str) -> dict[str, int]:
    """The counters of a vmstat file."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def meminfo(text: str) -> dict[str, int]:
    """The fields of a meminfo file in kB."""
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def compare(name: str, wanted: Taken, have: Taken) -> Iterator[Case]:
    """The two cases of a phase; where next to nothing was reclaimed a share says nothing."""
    near = abs(have.pages - wanted.pages) <= max(COUNT * wanted.pages, SLACK)
    yield Case(f"{name} pages", near, f"captured {wanted.pages} reclaimed, model {have.pages}", "shape")
    if min(wanted.pages, have.pages) > SLACK:
        near = abs(have.share - wanted.share) <= SHARE
        yield Case(f"{name} share", near, f"captured {wanted.share:.3f} to swap, model {have.share:.3f}", "shape")
