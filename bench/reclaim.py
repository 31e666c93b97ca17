"""Page reclaim: clean pages of a file, swap-out and swap-in, beside the real kernel dropping its own page cache.

The real kernel's figure is ``posix_fadvise(POSIX_FADV_DONTNEED)`` of a file whose pages are clean and that it has just
written to its disk: it removes each page from the cache and frees it, which is what reclaim does besides looking for
the page. The best of some runs is taken, for the host does other things, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator

from bench.result import Figure
from kmemd import System
from kmemd.mm.units import MIB, PAGE_SIZE

MACHINE, CMDLINE = "laptop", "transparent_hugepage=never"
FILE_MIB, CLEAN_PAGES = 4500, 1_000_000
ANON_MIB, SWAPPED_PAGES = 512, 100_000
GFP_HIGHUSER_MOVABLE = 0x1100CCA
REAL_MIB, REAL_ROUNDS = 128, 3
CLEAN_GOAL = 1.0
"""Million pages a second."""


def real_pages_per_second() -> float:
    """Clean pages that the real kernel drops a second."""
    best = 0.0
    with tempfile.NamedTemporaryFile(dir=".") as file:
        block = os.urandom(MIB)
        for _ in range(REAL_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        for _ in range(REAL_ROUNDS):
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            while os.read(file.fileno(), MIB):
                pass
            began = time.perf_counter()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            best = max(best, REAL_MIB * MIB / PAGE_SIZE / (time.perf_counter() - began))
    return best


def event(system: System, name: str) -> int:
    """A counter of vmstat."""
    found = re.search(rf"^{name} (\d+)$", system.read("/proc/vmstat").decode(), re.MULTILINE)
    assert found is not None, name
    return int(found[1])


def reclaim(system: System, pages: int) -> float:
    """Have the machine reclaim pages, as a write to memory.reclaim of the root would. Seconds."""
    began = time.perf_counter()
    system.kernel.vmscan.try_to_free_mem_cgroup_pages(0, pages, GFP_HIGHUSER_MOVABLE, True)
    return time.perf_counter() - began


def clean() -> float:
    """Clean pages of a file that reclaim takes a second."""
    system = System.boot(machine=MACHINE, seed=1, cmdline=CMDLINE, clock="manual")
    system.warm_up()
    system.command(f"create /mnt/data {FILE_MIB * MIB}")
    system.command(f"read_file /mnt/data n={FILE_MIB * MIB}")
    before = event(system, "pgsteal_file")
    took = reclaim(system, CLEAN_PAGES)
    return (event(system, "pgsteal_file") - before) / took


def swap() -> tuple[float, float]:
    """Pages swapped out a second by reclaim, and swapped in a second by a program that goes through its memory."""
    system = System.boot(machine=MACHINE, seed=1, cmdline=CMDLINE, clock="manual")
    system.warm_up()
    system.write("/proc/sys/vm/swappiness", "200")
    pid = int(re.findall(r"pid=(\d+)", system.command("spawn hog"))[0])
    start = re.findall(r"addr=(\w+)", system.command(f"mmap {pid} {ANON_MIB * MIB}"))[0]
    system.command(f"access {pid} {start} {ANON_MIB * MIB} w")
    before = event(system, "pswpout")
    took = reclaim(system, SWAPPED_PAGES)
    written = (event(system, "pswpout") - before) / took
    before, began = event(system, "pswpin"), time.perf_counter()
    system.command(f"access {pid} {start} {ANON_MIB * MIB} r")
    return written, (event(system, "pswpin") - before) / (time.perf_counter() - began)


def swapoff(hog_mib: int, other_mib: int = 0) -> float:
    """Pages brought back a second by swapoff, after a program has filled memory and swap, and another one, if any, has
    pushed it out and left. Without the other one memory runs out in its midst, and a task is killed.
    """
    system = System.boot(machine="default", seed=1, cmdline=CMDLINE, clock="manual")
    system.write("/proc/sys/vm/overcommit_memory", "1")
    pids = []
    for size in filter(None, (hog_mib, other_mib)):
        pids.append(int(re.findall(r"pid=(\d+)", system.command("spawn hog"))[0]))
        start = re.findall(r"addr=(\w+)", system.command(f"mmap {pids[-1]} {size * MIB}"))[0]
        system.command(f"access {pids[-1]} {start} {size * MIB} w")
    if other_mib:
        system.command(f"exit {pids[-1]}")
        system.advance(5)
    before, began = event(system, "pswpin"), time.perf_counter()
    with contextlib.suppress(OSError):
        system.command("swapoff /dev/vdb")
    return (event(system, "pswpin") - before) / (time.perf_counter() - began)


def run() -> Iterator[Figure]:
    """The figures of reclaim."""
    real = real_pages_per_second()
    yield Figure("real kernel, clean pages dropped by fadvise", real / 1e6, "M pages/s")
    dropped = clean()
    yield Figure("clean pages reclaimed", dropped / 1e6, "M pages/s", goal=CLEAN_GOAL)
    yield Figure("clean pages reclaimed: times the real kernel's fadvise", dropped / real, "x")
    written, read = swap()
    yield Figure("anonymous pages swapped out", written / 1e3, "k pages/s")
    yield Figure("anonymous pages swapped in by faults", read / 1e3, "k pages/s")
    yield Figure("pages swapped in by swapoff, memory left", swapoff(600, 2000) / 1e3, "k pages/s")
    yield Figure("pages swapped in by swapoff until memory runs out", swapoff(2500) / 1e3, "k pages/s")
