"""A thousand control groups: making and removing them, charging, reading and reclaiming with them there.

mkdir and rmdir are measured through a mount and compared with the host kernel's own: of control groups where a
hierarchy is writable, of directories of tmpfs elsewhere. The rest is in process: what a fault costs in one group among
a thousand against one without any group; reading all ``memory.stat``; global reclaim and ``memory.reclaim`` over all
groups, the longest slice of it included.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.result import Figure
from bench.slices import GOAL_MS, longest_ms
from kmemd import System
from kmemd.views.tree import Caller

GROUPS = 1000
ROOT = "/sys/fs/cgroup"
CTL = "/kmemd/ctl"
ROUNDS = 3
SIZE_MIB = 2
"""What a process of each group holds."""


def timed(work: Callable[[], object]) -> float:
    """Seconds of CPU time of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def elapsed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- directories ---------------------------------------------------------------------------------------------


@contextmanager
def mounted() -> Iterator[Path]:
    """A machine that is mounted by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kmemd", "mount", "--clock", "manual", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not os.path.ismount(folder):
                time.sleep(0.05)
            yield Path(folder)
        finally:
            server.terminate()
            server.wait()


def make(folder: Path) -> None:
    """A thousand directories."""
    for number in range(GROUPS):
        (folder / f"g{number}").mkdir()


def remove(folder: Path) -> None:
    """And away with them."""
    for number in range(GROUPS):
        (folder / f"g{number}").rmdir()


def host_folder() -> tuple[str, str]:
    """Where the host makes directories like these, and what they are."""
    for path in (ROOT, f"{ROOT}/unified"):
        if os.access(f"{path}/cgroup.subtree_control", os.W_OK):
            with tempfile.TemporaryDirectory(dir=path, ignore_cleanup_errors=True):
                return path, "cgroup2"
    return "/dev/shm", "tmpfs"


def directories() -> Iterator[Figure]:
    """mkdir and rmdir through the mount, and the host's own."""
    path, kind = host_folder()
    folder = Path(tempfile.mkdtemp(dir=path))
    try:
        host = [(elapsed(lambda: make(folder)), elapsed(lambda: remove(folder))) for _ in range(ROUNDS)]
    finally:
        folder.rmdir()
    with mounted() as top:
        (top / "sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
        groups = top / "sys/fs/cgroup"
        model = [(elapsed(lambda: make(groups)), elapsed(lambda: remove(groups))) for _ in range(ROUNDS)]
    for at, what in enumerate(("mkdir", "rmdir")):
        own, others = min(run[at] for run in model), min(run[at] for run in host)
        yield Figure(f"{what} of {GROUPS} groups through the mount", own / GROUPS * 1e6, "us each", None)
        yield Figure(f"{what}: times the host's, of {kind}", own / others, "x", None)


# -- memory --------------------------------------------------------------------------------------------------


def populated() -> System:
    """A machine of 16 GiB whose groups hold a process of 2 MiB each."""
    system = System.boot(machine="laptop", seed=1, cmdline="transparent_hugepage=never", clock="manual")
    system.warm_up()
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    for number in range(GROUPS):
        enter(system, number)
        system.command(f"access p m {SIZE_MIB}M w")
        system.command("forget m")
        system.command("forget p")
    return system


def fault_ns(system: System, group: str | None) -> float:
    """Nanoseconds of a fault in a group, or in none."""
    pid = system.command("spawn one").split("pid=")[1].split()[0]
    if group is not None:
        system.write(f"{ROOT}/{group}/cgroup.procs", pid)
    system.command(f"big = mmap {pid} 512M")
    seconds = timed(lambda: system.command(f"access {pid} big 512M w"))
    system.command(f"exit {pid}")
    return seconds / (512 << 8) * 1e9


def charging(system: System) -> Iterator[Figure]:
    """A fault in one of the groups, and in none."""
    inside = min(fault_ns(system, "g500") for _ in range(ROUNDS))
    outside = min(fault_ns(system, None) for _ in range(ROUNDS))
    yield Figure(f"a fault in one of {GROUPS} groups", inside, "ns", None)
    yield Figure("a fault in a group, times one in none", inside / outside, "x", 2, at_most=True)


def reading(system: System) -> Iterator[Figure]:
    """memory.stat of every group, the model standing still and going on between two."""

    def all_of_them(between: str) -> None:
        for number in range(GROUPS):
            system.read(f"{ROOT}/g{number}/memory.stat")
            if between:
                system.command(between)

    still = timed(lambda: all_of_them(""))
    pid = system.command("spawn other").split("pid=")[1].split()[0]
    system.command(f"other = mmap {pid} 4K")
    moving = timed(lambda: all_of_them(f"access {pid} other 4K w"))
    yield Figure("memory.stat of a group", still / GROUPS * 1e6, "us", 200, at_most=True)
    yield Figure("memory.stat of a group, after a change", moving / GROUPS * 1e6, "us", 5000, at_most=True)


def reclaiming(system: System) -> Iterator[Figure]:
    """Reclaim of every group by its own file, and of all groups through the root's."""

    def each() -> None:
        for number in range(GROUPS):
            _reclaim(system, f"g{number}", "512K")

    own = timed(each)
    yield Figure("memory.reclaim of 512K, of each group", own / GROUPS * 1e6, "us", None)
    slices = longest_ms(system, f"{ROOT}/memory.reclaim", "64M")
    yield Figure(f"longest slice of memory.reclaim over {GROUPS} groups", slices, "ms", GOAL_MS, at_most=True)


def pressure() -> Iterator[Figure]:
    """The same processes on a machine of 2 GiB with 1 GiB of swap, where the later ones take memory from the others."""
    system = System.boot(machine="default", seed=1, cmdline="transparent_hugepage=never", clock="manual")
    system.warm_up()
    gc.collect()
    gc.freeze()
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    longest, began = 0.0, time.process_time()
    for number in range(GROUPS):
        enter(system, number)
        longest = max(longest, slice_ms(system, f"access p m {SIZE_MIB}M w"))
        system.command("forget m")
        system.command("forget p")
    faults = GROUPS * SIZE_MIB << 8
    yield Figure("a fault, groups under pressure", (time.process_time() - began) / faults * 1e6, "us", None)
    yield Figure(f"longest slice of it over {GROUPS} groups", longest, "ms", GOAL_MS, at_most=True)


def slice_ms(system: System, line: str) -> float:
    """Milliseconds of the longest slice of a command: ``longest_ms`` for many of them."""
    file = system.tree.open(system.tree.lookup(CTL), Caller())
    longest, began = 0.0, time.thread_time()
    for _ in file.write(line.encode() + b"\n"):
        longest = max(longest, time.thread_time() - began)
        began = time.thread_time()
    file.close()
    return max(longest, time.thread_time() - began) * 1e3


def enter(system: System, number: int) -> None:
    """A process ``p`` with a mapping ``m`` in a group of its own."""
    system.mkdir(f"{ROOT}/g{number}")
    pid = system.command("p = spawn hog").split("pid=")[1].split()[0]
    system.write(f"{ROOT}/g{number}/cgroup.procs", pid)
    system.command(f"m = mmap p {SIZE_MIB}M")


def _reclaim(system: System, group: str, size: str) -> None:
    try:
        system.write(f"{ROOT}/{group}/memory.reclaim", size)
    except OSError:  # nothing left that can be reclaimed
        return


def run() -> Iterator[Figure]:
    """The figures."""
    yield from directories()
    system = populated()
    gc.collect()
    gc.freeze()  # as the daemon does
    yield from charging(system)
    yield from reading(system)
    yield from reclaiming(system)
    yield from pressure()
