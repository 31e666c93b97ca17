"""Page faults: the model's fault loop against the real kernel's, TLB hits, fork, exit, huge pages, and how it grows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.pages import resident
from bench.result import Figure, best_of
from kmemd import System
from kmemd.core.mmu import READ, WRITE
from kmemd.mm.sched import Task
from kmemd.mm.units import GIB, PAGE_SHIFT

HERE = Path(__file__).parent
BYTES = GIB
PAGES = BYTES >> PAGE_SHIFT
MACHINE = "laptop"
FEATURES = "page_owner=on"
PIECE = 1 << 15
SPARSE_TOUCHES = 1 << 14
CALLGRIND_FAULTS = (50_000, 250_000)
CALLGRIND = """
import gc, sys
from bench.faults import Process
process = Process("")
gc.disable()
process.touch(process.sequential(int(sys.argv[1])))
"""


class Process:
    """A process of a fresh model with a mapping of small pages."""

    def __init__(self, cmdline: str, size: int = BYTES, machine: str = MACHINE) -> None:
        self.system = System.boot(machine=machine, seed=1, cmdline=cmdline, clock="manual")
        self.kernel = self.system.kernel
        words = dict(word.split("=", 1) for word in self.system.command("spawn bench").split())
        self.pid = int(words["pid"])
        self.size = size
        self.map()

    @property
    def task(self) -> Task:
        """The process."""
        return self.kernel.tasks.find(self.pid)

    def map(self, advice: str = "MADV_NOHUGEPAGE") -> None:
        """A new mapping in place of the old one."""
        reply = self.system.command(f"mmap {self.pid} {self.size} flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE")
        self.start = int(dict(word.split("=", 1) for word in reply.split())["addr"], 16)
        self.system.command(f"madvise {self.pid} {self.start:#x} {self.size} {advice}")

    def unmap(self) -> None:
        """Give the mapping back."""
        self.system.command(f"munmap {self.pid} {self.start:#x} {self.size}")

    def sequential(self, pages: int) -> np.ndarray:
        """Page numbers in order."""
        return (self.start >> PAGE_SHIFT) + np.arange(pages, dtype=np.int64)

    def random(self, pages: int) -> np.ndarray:
        """Page numbers, each once, in no order."""
        return np.random.default_rng(1).permutation(self.sequential(pages))

    def touch(self, vpns: np.ndarray, op: int = WRITE) -> None:
        """Access pages, as the ``access`` command does."""
        for at in range(0, len(vpns), PIECE):
            self.kernel.memory.access(self.task, vpns[at : at + PIECE], op)


def kernel_ns() -> tuple[float, float, float]:
    """ns a page on the real kernel: sequential and random demand faults, MAP_POPULATE."""
    binary = HERE / "bin" / "faults"
    binary.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-o", str(binary), str(HERE / "faults.c")], check=True)
    run = subprocess.run([str(binary), str(BYTES), "3"], check=True, capture_output=True, text=True)
    sequential, random, populate = (float(word) for word in run.stdout.split())
    return sequential, random, populate


def fault_ns(process: Process, order: Callable[[int], np.ndarray]) -> float:
    """ns of a fault in the model, the best of three mappings that are touched whole."""
    best = float("inf")
    for _ in range(3):
        vpns = order(PAGES)
        start = time.perf_counter()
        process.touch(vpns)
        best = min(best, (time.perf_counter() - start) * 1e9 / PAGES)
        process.unmap()
        process.map()
    return best


def hits_per_second(process: Process) -> float:
    """Accesses that the TLB answers, a second."""
    vpns = np.tile(process.sequential(32), PIECE // 32)
    process.touch(vpns)
    return len(vpns) * 100 / best_of(3, lambda: [process.touch(vpns, READ) for _ in range(100)])


def lives() -> Iterator[Figure]:
    """fork and exit of a process with 1 GiB, and huge page faults."""
    process = Process("")
    process.touch(process.sequential(PAGES))
    start = time.perf_counter()
    child = process.kernel.fork.fork(process.pid)
    yield Figure("fork of 1 GiB", (time.perf_counter() - start) * 1e3, "ms")
    start = time.perf_counter()
    process.kernel.fork.exit(child.pid)
    yield Figure("exit of the child", (time.perf_counter() - start) * 1e3, "ms")
    start = time.perf_counter()
    process.kernel.fork.exit(process.pid)
    yield Figure("exit of the parent, 1 GiB freed", (time.perf_counter() - start) * 1e3, "ms")
    process = Process("")
    process.unmap()
    process.map("MADV_HUGEPAGE")
    first = np.ascontiguousarray(process.sequential(PAGES)[::512])
    start = time.perf_counter()
    process.touch(first)
    yield Figure("huge page fault", (time.perf_counter() - start) * 1e6 / len(first), "us")


def callgrind() -> float | None:
    """Instructions a fault, boot left out; None without valgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return None
    repeatable = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # BLAS threads spin while they wait
    counts = []
    for faults in CALLGRIND_FAULTS:
        command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", CALLGRIND]
        run = subprocess.run(
            [*command, str(faults)], check=True, capture_output=True, text=True, cwd=HERE.parent, env=repeatable
        )
        found = re.search(r"Collected : (\d+)", run.stderr)
        assert found is not None, run.stderr
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / (CALLGRIND_FAULTS[1] - CALLGRIND_FAULTS[0])


def growth() -> Iterator[Figure]:
    """Mappings of growing size, touched at as many places each."""
    for shift in (30, 32, 34, 36, 38, 40):
        process = Process("", size=1 << shift, machine="server-1t")
        stride = (process.size >> PAGE_SHIFT) // SPARSE_TOUCHES
        vpns = (process.start >> PAGE_SHIFT) + np.arange(SPARSE_TOUCHES, dtype=np.int64) * stride
        before = resident()
        start = time.perf_counter()
        process.touch(vpns)
        took = (time.perf_counter() - start) * 1e9 / len(vpns)
        name = f"{process.size >> 30} GiB touched at {SPARSE_TOUCHES} places"
        yield Figure(f"{name}: time", took, "ns/fault")
        yield Figure(f"{name}: memory", (resident() - before) / len(vpns), "B/fault")


def run() -> Iterator[Figure]:
    """The figures of page faults."""
    sequential, random, populate = kernel_ns()
    yield Figure("real kernel, demand faults in order", sequential, "ns")
    yield Figure("real kernel, demand faults at random", random, "ns")
    yield Figure("real kernel, MAP_POPULATE", populate, "ns")
    for cmdline in ("", FEATURES):
        process = Process(cmdline)
        name = f"model {cmdline}".strip()
        for order, real in ((process.sequential, sequential), (process.random, random)):
            kind = order.__name__
            ns = fault_ns(process, order)
            yield Figure(f"{name}, {kind} faults", ns, "ns")
            yield Figure(f"{name}, {kind}: times demand faults", real / ns, "x", goal=10)
            yield Figure(f"{name}, {kind}: times MAP_POPULATE", populate / ns, "x", goal=5)
        yield Figure(f"{name}, TLB hits", hits_per_second(process) / 1e6, "M/s", goal=50)
    yield from lives()
    instructions = callgrind()
    if instructions is not None:
        yield Figure("callgrind instructions a fault", instructions, "", 700, at_most=True)
    yield from growth()
