"""The longest time that a command or a store keeps readers waiting: the slices of DESIGN's 5 ms promise.

A slice is what runs between two points where other programs get in. CPU time of this thread is taken, so that
what else the machine does counts for nothing; the best of several runs, because the host's memory comes at its own
pace.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.result import Figure
from kmemd import System
from kmemd.errors import KernelError
from kmemd.views.tree import Caller

ROUNDS = 3
GOAL_MS = 5.0
CTL = "/kmemd/ctl"
KMEMLEAK = "/sys/kernel/debug/kmemleak"
POOL = "/proc/sys/vm/nr_hugepages"


@dataclass(frozen=True)
class Case:
    """Writes to one machine, each ``(path, text)``. Those before ``first`` only prepare."""

    machine: str
    cmdline: str
    writes: Sequence[tuple[str, str]]
    first: int = 0


def ctl(*lines: str) -> tuple[tuple[str, str], ...]:
    """Command lines as writes."""
    return tuple((CTL, line) for line in lines)


SMALL = ("p = spawn a", "m = mmap p 1G", "madvise p m 1G MADV_NOHUGEPAGE", "access p m 1G w")
"""A process with a GiB of small pages."""
FILE = ("create /mnt/f 2G", "read_file /mnt/f")
TMPFS = ("mount tmpfs /t type=tmpfs size=8G", "create /t/f", "write_file /t/f n=1G")
NEAR = ("p = spawn a", "m = mmap p 3600M", "madvise p m 3600M MADV_NOHUGEPAGE")
DROP, NODE_RECLAIM = "/proc/sys/vm/drop_caches", "/proc/sys/vm/zone_reclaim_mode"
VALIDATE = "/sys/kernel/slab/kmalloc-64/validate"
OBJECTS = ctl("p = kmalloc 64 n=1000000", "kfree p")
CASES = (
    Case("default", "", OBJECTS),
    Case("default", "page_owner=on", OBJECTS),
    Case("default", "", ctl("p = kmalloc 8 n=1000000", "kfree p every=2", "q = kmalloc 8 n=700000")),
    Case("default", "", ctl("p = kmalloc 4096 n=100000", "kfree p")),
    Case("default", "", ctl("p = kmalloc 64K n=20000", "kfree p")),
    Case("default", "slub_debug=FZPU", ctl("p = kmalloc 64 n=100000", "kfree p")),
    Case(
        "default", "", ctl("p = vmalloc 4K n=10000", "vfree p every=2", "q = vmalloc 8K n=4000", "vfree p", "vfree q")
    ),
    Case("default", "kmemleak=off", ctl("p = vmalloc 4K n=10000", "vfree p")),
    Case("default", "", ctl("p = vmalloc 1G", "vfree p")),
    Case("default", "page_owner=on", ctl("p = vmalloc 1G", "vfree p")),
    Case("default", "page_owner=on", ctl("p = alloc_pages n=400000", "free_pages p every=2", "free_pages p")),
    Case("default", "page_owner=on", ctl("p = alloc_pages order=9 n=800", "free_pages p")),
    Case("laptop", "", ctl("p = alloc_pages n=3900000", "free_pages p every=2", "free_pages p")),
    Case("laptop", "", ctl("p = alloc_pages n=4200000")),
    Case("laptop", "", ctl("p = vmalloc 14G", "vfree p", "p = vmalloc 16000M")),
    Case("laptop", "", ctl("p = kmalloc 64 n=1000000", "WRITE_ONCE p+8 p")),
    Case("server-1t", "", ctl("p = alloc_pages order=10 n=200000", "free_pages p")),
    Case("server-1t", "", ((POOL, "500000"), (POOL, "1000"))),
    Case(
        "server-1t",
        "",
        (*ctl("p = kmalloc 64 n=1000000", "q = kmalloc 64 n=1000000"), (KMEMLEAK, "scan"), (KMEMLEAK, "clear")),
        2,
    ),
    Case("default", "", (*ctl("p = kmalloc 64 n=1000000", "forget p", "sleep 10"), (KMEMLEAK, "scan")), 1),
    Case("laptop", "", ctl(*SMALL, "q = fork p", "exit q", "madvise p m 1G MADV_DONTNEED", "kill p"), len(SMALL)),
    Case("laptop", "", ctl(*SMALL, "exec p other"), len(SMALL)),
    Case("four-node", "", ctl(*SMALL, "mbind p m 256M MPOL_BIND 2 flags=MPOL_MF_MOVE", "munmap p m 1G"), len(SMALL)),
    Case("laptop", "", ctl("p = spawn a", "m = mmap p 256M flags=MAP_SHARED|MAP_ANONYMOUS", "access p m 256M w"), 2),
    Case("laptop", "", ctl(*FILE, "fincore /mnt/f", "truncate /mnt/f 1G", "unlink /mnt/f"), 1),
    Case("laptop", "", ctl("create /mnt/f", "write_file /mnt/f n=1G", "sync"), 1),
    Case("laptop", "", ctl(*TMPFS, "fallocate /t/f 1G 1G", "fallocate /t/f 0 1G mode=punch_hole", "umount /t"), 2),
    Case("laptop", "", (*ctl("lookup /mnt/d n=100000"), (DROP, "2"))),
    Case("two-node", "", ((NODE_RECLAIM, "7"), *ctl(*NEAR, "access p m 2500M w", *FILE)), 1 + len(NEAR)),
    Case("laptop", "slub_debug=FZPU", (*ctl("p = kmalloc 64 n=100000"), (VALIDATE, "1")), 1),
)
READ = (
    ("laptop", "slub_debug=FZPU", ("p = kmalloc 64 n=100000",), "/sys/kernel/debug/slab/kmalloc-64/alloc_traces"),
    ("laptop", "", SMALL, "/proc/{pid}/smaps"),
    ("laptop", "", SMALL, "/proc/{pid}/numa_maps"),
)
"""Files that take long to make: machine, options, what is done before, path."""


def longest_ms(system: System, path: str, text: str) -> float:
    """Milliseconds of the longest slice of one write."""
    tree = system.tree
    file = tree.open(tree.lookup(path), Caller())
    try:
        return longest_of(file.write(text.encode() + b"\n"))
    finally:
        file.close()


def longest_of(steps: Iterator[object]) -> float:
    """Milliseconds of the longest slice."""
    longest = 0.0
    gc.collect()
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except (KernelError, StopIteration):  # memory that ran out is an answer, too
            return max(longest, time.thread_time() - began) * 1e3
        longest = max(longest, time.thread_time() - began)


def measured(case: Case) -> list[float]:
    """The longest slice of each write of a case, on one machine."""
    system = System.boot(machine=case.machine, seed=1, cmdline=case.cmdline, clock="manual")
    system.warm_up()  # as the daemon does
    return [longest_ms(system, path, text) for path, text in case.writes][case.first :]


def figures(case: Case) -> Iterator[Figure]:
    """A figure for each write of a case."""
    runs = [measured(case) for _ in range(ROUNDS)]
    where = f"{case.machine} {case.cmdline}".strip()
    for (path, text), times in zip(case.writes[case.first :], zip(*runs, strict=True), strict=True):
        what = text if path == CTL else f"echo {text} > {path.rpartition('/')[2]}"
        yield Figure(f"{what} ({where})", min(times), "ms", GOAL_MS, at_most=True)


def read_ms(machine: str, cmdline: str, lines: Sequence[str], path: str) -> float:
    """Milliseconds of the longest slice of reading one file."""
    system = System.boot(machine=machine, seed=1, cmdline=cmdline, clock="manual")
    system.warm_up()
    for line in lines:
        system.command(line)
    node = system.tree.lookup(path.format(pid=system.kernel.handles.get("p").pid))
    file = system.tree.open(node, Caller())
    try:
        return longest_of(file.prepare(0) or iter(()))
    finally:
        file.close()


def run(cases: Iterable[Case] = CASES) -> Iterator[Figure]:
    """The figures."""
    for case in cases:
        yield from figures(case)
    for machine, cmdline, lines, path in READ:
        best = min(read_ms(machine, cmdline, lines, path) for _ in range(ROUNDS))
        yield Figure(f"cat {path.rpartition('/')[2]} ({machine} {cmdline})", best, "ms", GOAL_MS, at_most=True)
