"""Tracing: events per second, what the page allocator loses, how fast a trace becomes text.

What tracing costs while it is off is the difference from an allocator whose tests of the mask are compiled out: the
same source with each test replaced by 0. Instructions are counted by callgrind; for times both run in turn, each in a
process of its own, and the best of each counts (the host's noise is larger than the difference).
The kernel has no figure for an event; its documents call an event that is off "a tiny time penalty (checking a
condition for a branch)", and give 60 ns for the cheapest probe of a function and 490 ns to 990 ns for an ordinary one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.result import Figure
from kmemd import System
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE

COUNT = 100_000
PASSES = 12
TURNS = 7
COUNTED = (2, 6)
"""Passes under callgrind; the difference counts."""
GOAL_OFF = 2.0
TRACING = "/sys/kernel/tracing/"
DIRECTIVES = ("boundscheck=False", "wraparound=False", "cdivision=True", "initializedcheck=False", "infer_types=True")
ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kmemd"
LAYERS = ("free_lists", "migratetypes", "buddy")
"""The allocator's modules that test the mask, those that derive from others last."""
BENCH = {**os.environ, "PYTHONPATH": str(ROOT)}
"""A program that is run in another folder has this package of benchmarks, and the ``kmemd`` of the folder."""
TEST = re.compile(r"self\._control\[_MASK\] >> _T_\w+ & 1")


def pair_ns(system: System, passes: int = PASSES) -> float:
    """CPU time of allocating and freeing a page in bulk, in ns: the best pass."""
    allocator, best = system.kernel.page_alloc, 1e9
    for _ in range(passes):
        began = time.process_time()
        allocator.free_pages_bulk(allocator.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 0, COUNT), 0)
        best = min(best, time.process_time() - began)
    return best * 1e9 / COUNT


def boot(cmdline: str = "kmemleak=off") -> System:
    """A machine with four CPUs and two nodes."""
    return System.boot(machine="two-node", seed=1, cmdline=cmdline, clock="manual")


def without_tests(folder: Path) -> Path:
    """A copy of the package whose allocator has no tests of the mask: the folder to run it in."""
    core = folder / "kmemd" / "core"
    shutil.copytree(PACKAGE, folder / "kmemd", ignore=shutil.ignore_patterns("*.c", "__pycache__"))
    for name in LAYERS:
        text, found = TEST.subn("0", (core / f"{name}.py").read_text())
        assert found, f"{name} tests no mask"
        (core / f"{name}.py").write_text(text)
        (core / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}").unlink()
    options = [part for directive in DIRECTIVES for part in ("-X", directive)]
    cythonize = shutil.which("cythonize", path=str(Path(sys.executable).parent)) or "cythonize"
    sources = [str(core / f"{name}.py") for name in LAYERS]
    subprocess.run([cythonize, "-i", "-3", *options, *sources], check=True, capture_output=True)
    return folder


def instructions(valgrind: str, folder: Path) -> float:
    """Instructions of allocating and freeing a page in bulk, boot left out."""
    repeatable = {**BENCH, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # BLAS threads spin while they wait
    counts = []
    for passes in COUNTED:
        command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", "bench.trace"]
        done = subprocess.run(
            [*command, str(passes)], cwd=folder, check=True, capture_output=True, text=True, env=repeatable
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found is not None, done.stderr
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / (COUNTED[1] - COUNTED[0]) / COUNT


def off() -> Iterator[Figure]:
    """What the tests of the mask cost an allocation and its free."""
    valgrind = shutil.which("valgrind")
    with TemporaryDirectory() as folder:
        bare = without_tests(Path(folder))
        if valgrind is not None:
            tested, plain = (instructions(valgrind, place) for place in (ROOT, bare))
            yield Figure("page allocated and freed, tracing off: instructions", tested, "")
            more = (tested / plain - 1) * 100
            yield Figure("tests of the mask: more instructions", more, "%", GOAL_OFF, at_most=True)
        best = {ROOT: 1e9, bare: 1e9}
        for _ in range(TURNS):
            for place in best:
                command = [sys.executable, "-m", "bench.trace", str(PASSES)]
                done = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, env=BENCH)
                best[place] = min(best[place], float(done.stdout))
        yield Figure("tests of the mask: more time", (best[ROOT] / best[bare] - 1) * 100, "%")


def written(system: System) -> int:
    """Events that reached the ring."""
    tracing = system.kernel.tracing
    tracing.sync()
    return int(tracing.top.ring.state[:, 6].sum())


def on(system: System) -> tuple[float, float]:
    """ns of a page with all kmem events on, and events of a page."""
    system.write(f"{TRACING}events/kmem/enable", "1")
    before = written(system)
    ns = pair_ns(system)
    return ns, (written(system) - before) / (COUNT * PASSES)


def text_mb_s(system: System) -> float:
    """How fast the trace is read as text."""
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        size = len(system.read(f"{TRACING}trace"))
        best = max(best, size / (time.process_time() - began) / 1e6)
    return best


def run() -> Iterator[Figure]:
    """The figures."""
    yield from off()
    system = boot()
    quiet = pair_ns(system)
    yield Figure("page allocated and freed, tracing off", quiet, "ns")
    traced, events = on(system)
    yield Figure("page allocated and freed, kmem events on", traced, "ns")
    yield Figure("events in the ring, all kmem events on", events / traced * 1e3, "M/s")
    yield Figure("an event adds", (traced - quiet) / events, "ns")
    yield Figure("text of the trace", text_mb_s(system), "MB/s")
    yield Figure("page allocated and freed, page_owner=on", pair_ns(boot("kmemleak=off page_owner=on")), "ns")
    yield Figure("page allocated and freed, kmemleak on", pair_ns(boot("")), "ns")


if __name__ == "__main__":
    print(pair_ns(boot(), int(sys.argv[1])))
