"""How long a reader of the mount waits while a process of the model works through 64 GiB.

One process writes commands to ``kmemd/ctl``: a program that writes 64 GiB of small pages, reads them again in another
order, and gives them back. Another one opens, reads and closes ``proc/meminfo`` meanwhile, as fast as it can with a
millisecond in between. On the first machine all of it fits; on the second one it does not, so that kswapd, direct
reclaim and swap are in the way. ``cat`` is started now and then: its figure has the start of the program in it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.result import Figure

GOAL_MS = 20.0
START_S = 20.0
PAUSE_S = 0.001
CATS_EVERY = 50
MACHINE = """
description = "{memory} GiB and 16 GiB of swap for a benchmark"
arch = "x86_64"
cpus = 8

[[node]]
memory = "{memory}G"
cpus = "0-7"

[[swap]]
path = "/dev/nvme0n1"
size = "16G"
"""
WORK = (
    "p = spawn hog",
    "m = mmap p 64G",
    "madvise p m 64G MADV_NOHUGEPAGE",
    "access p m 64G w",
    "access p m 64G r pattern=random n=200000",
    "create /mnt/file 2G",
    "read_file /mnt/file",
    "munmap p m 32G",
    "kill p",
)
WORKER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
for line in sys.argv[2:]:
    try:
        os.write(descriptor, line.encode() + b"\\n")
    except OSError as error:
        print(line, error, file=sys.stderr)
"""


def run() -> Iterator[Figure]:
    """The figures: of a machine that is large enough, and of one that is not."""
    pinned = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a reader and the server are two programs on a real machine
    try:
        for memory, what in ((80, "64 GiB fit"), (60, "64 GiB on 60")):
            yield from measured(memory, what)
    finally:
        os.sched_setaffinity(0, pinned)


def measured(memory: int, what: str) -> Iterator[Figure]:
    """What readers of one machine see."""
    with tempfile.TemporaryDirectory(prefix="kmemd-bench-") as folder, mounted(Path(folder), memory) as top:
        reads, cats, seconds = watch(top)
    yield Figure(f"{what}: the workload took", seconds, "s")
    yield Figure(f"{what}: reads of meminfo meanwhile", len(reads), "")
    for share in (0.5, 0.99):
        goal = GOAL_MS if share > 0.9 else None
        yield Figure(f"{what}: meminfo, {share:.0%} within", quantile(reads, share), "ms", goal, at_most=True)
    yield Figure(f"{what}: meminfo, longest", max(reads), "ms")
    yield Figure(f"{what}: cat meminfo, 99% within", quantile(cats, 0.99), "ms", GOAL_MS, at_most=True)


def quantile(times: list[float], share: float) -> float:
    """So much of them took no longer."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


@contextlib.contextmanager
def mounted(folder: Path, memory: int) -> Iterator[Path]:
    """A machine of its own, mounted by a process of its own."""
    machine, top = folder / "machine.toml", folder / "mount"
    machine.write_text(MACHINE.format(memory=memory))
    top.mkdir()
    command = [sys.executable, "-m", "kmemd", "mount", "--machine", str(machine), "--seed", "1", str(top)]
    server = subprocess.Popen(command)
    try:
        end = time.monotonic() + START_S
        while not (top / "proc/meminfo").exists():
            if time.monotonic() > end:
                raise TimeoutError("the mount does not come up")
            time.sleep(0.02)
        yield top
    finally:
        server.terminate()
        server.wait()


def watch(top: Path) -> tuple[list[float], list[float], float]:
    """Milliseconds of reads and of cats while the workload runs, and the seconds that it takes."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(top / "kmemd/ctl"), *WORK])
    path, reads, cats = str(top / "proc/meminfo"), [], []
    began = time.monotonic()
    while worker.poll() is None:
        reads.append(read_ms(path))
        if len(reads) % CATS_EVERY == 0:
            cats.append(cat_ms(path))
        time.sleep(PAUSE_S)
    return reads, cats or [0.0], time.monotonic() - began


def read_ms(path: str) -> float:
    """Open, read and close."""
    began = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 1 << 16)
    os.close(descriptor)
    return (time.monotonic() - began) * 1e3


def cat_ms(path: str) -> float:
    """The program ``cat``."""
    began = time.monotonic()
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - began) * 1e3
