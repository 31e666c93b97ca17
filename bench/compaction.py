"""Compaction of a fragmented 16 GiB zone, beside what copying its pages costs in C and the real kernel's compaction."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.result import Figure
from kmemd import System
from kmemd.machine import Machine
from kmemd.mm.units import GIB, MIB, PAGE_SHIFT

HERE = Path(__file__).parent
ZONE, USED = 16 * GIB, 15 * GIB
RUN = 8
"""Pages that are kept, and as many that are given back, in turns."""
COPIED = 512 * MIB


def elsewhere() -> tuple[float, int, float]:
    """ns to copy a page; pages that the real kernel moved, 0 where it may not be asked, and ns a page of that."""
    binary = HERE / "bin" / "compaction"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-o", str(binary), str(HERE / "compaction.c")], check=True)
    runs = [subprocess.run([binary, str(COPIED)], check=True, capture_output=True, text=True) for _ in range(3)]
    words = [run.stdout.split() for run in runs]
    real = [(int(pages), float(ns)) for _, pages, ns in words if int(pages) > 0]
    pages, ns = min(real, key=lambda one: one[1]) if real else (0, 0.0)
    return min(float(copy) for copy, _, _ in words), pages, ns


def fragmented() -> System:
    """A machine with one zone above 4 GiB, whose movable memory a process has in short runs."""
    machine = Machine.of_memory("fragmented", "x86_64", 4, (ZONE,), ((0, 1, 2, 3),), ((10,),))
    system = System.boot(machine, seed=1, cmdline="transparent_hugepage=never", clock="manual")
    system.command("hog = spawn hog")
    reply = system.command(f"mmap hog {USED} flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE")
    start = int(dict(word.split("=") for word in reply.split())["addr"], 16)
    system.command(f"access hog {start:#x} {USED} w")
    mm = next(task.mm for task in system.kernel.tasks if task.comm == "hog")
    for at in range(start, start + USED, 2 * RUN << PAGE_SHIFT):
        system.kernel.user.zap.zap_range(mm, at, at + (RUN << PAGE_SHIFT))
    system.kernel.page_alloc.drain_all_pages()
    return system


def counters(system: System) -> dict[str, int]:
    """vmstat."""
    lines = (line.split() for line in system.read("/proc/vmstat").decode().splitlines())
    return {name: int(value) for name, value in lines}


def run() -> Iterator[Figure]:
    """The figures."""
    copy, pages, real = elsewhere()
    yield Figure("C: copying a page elsewhere", copy, "ns")
    if pages:
        yield Figure(f"real kernel, compact_memory, {pages} pages: a page", real, "ns")
    system = fragmented()
    before, start = counters(system), time.perf_counter()
    system.write("/proc/sys/vm/compact_memory", "1")
    took = time.perf_counter() - start
    moved = {name: value - before[name] for name, value in counters(system).items()}
    ns = took * 1e9 / moved["pgmigrate_success"]
    yield Figure(f"model, compact_memory, {moved['pgmigrate_success']} pages: a page", ns, "ns")
    yield Figure("model: pages moved", moved["pgmigrate_success"] / took / 1e6, "M/s")
    yield Figure("model: pages scanned for free ones", moved["compact_free_scanned"] / took / 1e6, "M/s")
    yield Figure("model: pages scanned to be moved", moved["compact_migrate_scanned"] / took / 1e6, "M/s")
    yield Figure("model against copying", copy / ns, "x")
    if pages:
        yield Figure("model against the real kernel", real / ns, "x", goal=1)
    start = time.perf_counter()
    system.check()
    yield Figure("System.check of that machine", time.perf_counter() - start, "s", 3, at_most=True)
