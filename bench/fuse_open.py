"""Files through the mount: how often open + read + close can be done.

Compared, in the same run and on the same CPU, with the smallest pyfuse3 file system that serves the same bytes as a
constant, and with lxcfs (C, libfuse), which makes a ``meminfo`` of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.result import Figure

WARM_UP = 300
READS = 1500
ROUNDS = 5
START_S = 20


def run() -> Iterator[Figure]:
    """The figures."""
    with tempfile.TemporaryDirectory(prefix="kmemd-bench-") as folder, contextlib.ExitStack() as servers:
        model = servers.enter_context(kmemd(Path(folder) / "kmemd"))
        constant = Path(folder) / "constant"
        constant.write_bytes((model / "proc/buddyinfo").read_bytes())
        minimal = servers.enter_context(
            server(Path(folder) / "minimal", "file", sys.executable, "-m", "bench.minimal_fs", "{}", str(constant))
        )
        yield from ratios("buddyinfo / minimal pyfuse3", model / "proc/buddyinfo", minimal / "file", 0.8)
        if shutil.which("lxcfs"):
            lxcfs = servers.enter_context(server(Path(folder) / "lxcfs", "proc/meminfo", "lxcfs", "-f", "{}"))
            yield from ratios("buddyinfo / lxcfs meminfo", model / "proc/buddyinfo", lxcfs / "proc/meminfo", 2)
            yield from ratios("meminfo / lxcfs meminfo", model / "proc/meminfo", lxcfs / "proc/meminfo")
        yield commands(model)


def ratios(what: str, ours: Path, theirs: Path, goal: float | None = None) -> Iterator[Figure]:
    """The rates of two files, measured by turns, and the median of their ratios."""
    mine, others = [], []
    for _ in range(ROUNDS):
        mine.append(rate(lambda: read_once(ours)))
        others.append(rate(lambda: read_once(theirs)))
    yield Figure(f"open+read+close {ours.parent.name}/{ours.name}", statistics.median(mine), "1/s")
    yield Figure(f"  of {theirs.parent.name}/{theirs.name}", statistics.median(others), "1/s")
    yield Figure(what, statistics.median(a / b for a, b in zip(mine, others, strict=True)), "ratio", goal)


def commands(model: Path) -> Figure:
    """Commands through one descriptor of kmemd/ctl, each with its reply."""
    descriptor = os.open(model / "kmemd/ctl", os.O_RDWR)

    def command() -> None:
        os.write(descriptor, b"p = alloc_pages order=0 gfp=GFP_KERNEL\n")
        os.read(descriptor, 4096)
        os.write(descriptor, b"free_pages p\n")
        os.read(descriptor, 4096)

    try:
        return Figure("alloc_pages + free_pages through kmemd/ctl, pairs", rate(command), "1/s")
    finally:
        os.close(descriptor)


def read_once(path: Path) -> None:
    """What a monitoring program does with a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 1 << 16)
    os.close(descriptor)


def rate(function: Callable[[], None]) -> float:
    """Calls per second."""
    for _ in range(WARM_UP):
        function()
    began = time.perf_counter()
    for _ in range(READS):
        function()
    return READS / (time.perf_counter() - began)


@contextlib.contextmanager
def kmemd(path: Path, *options: str) -> Iterator[Path]:
    """A machine, mounted: the default one without ``options``."""
    with server(path, "proc/buddyinfo", sys.executable, "-m", "kmemd", "mount", *options, "{}") as mounted:
        yield mounted


@contextlib.contextmanager
def server(path: Path, answers: str, *command: str) -> Iterator[Path]:
    """A file system in a process of its own, entered when its file ``answers`` is there."""
    path.mkdir()
    words = [word.format(path) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while not (path / answers).exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.002)
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    for figure in run():
        print(figure.row())
