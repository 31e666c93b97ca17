"""The page cache as a cache: 4 M reads of single pages by Zipf(1.0) out of 1 M, with about 100,000 pages in memory,
against libcachesim on the same trace in the same run.

libcachesim is driven as its Python users drive it, ``cache.get(request)`` for each read, one ``Request`` whose
``obj_id`` changes, sizes of 1; and by its own loop in C (``process_trace`` of a file in its binary format), for
comparison. The model's reads are pread(2) of a page each on a file with POSIX_FADV_RANDOM, so that readahead adds
nothing. Its cache is bounded by the memory of the machine: reclaim, shadow entries, LRU batches, disk and counters are
all at work.

How often kswapd wakes depends on the distance of the watermarks, and that on the size of the machine: a machine of
448 MiB has 169 pages from low to high, one of 16 GiB whose memory is huge pages but for about 0.5 GiB has some
thousand. Both run with the default vm.watermark_scale_factor of 10, the small one also with 100. Hit ratios can be
compared where the pages in memory are as many; the rows say how many there were on average.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.result import Figure
from kmemd import System
from kmemd.mm.file_read import Reads

READS, PAGES, CACHE = 4_000_000, 1_000_000, 100_000
PIECE = 1 << 13
SKEW = 1.0
SEED = 1
MACHINE = 'description = "a cache of 100,000 pages"\narch = "x86_64"\ncpus = 2\n\n[[node]]\nmemory = "{memory}"\n'
ORACLE_GENERAL = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
"""A record of libcachesim's binary traces."""
GOAL = 3


@dataclass(frozen=True)
class Setup:
    """A machine. ``scale`` is vm.watermark_scale_factor, None for the default of 10."""

    what: str
    memory: str
    cmdline: str = ""
    scale: int | None = None


SETUPS = (
    Setup("448 MiB", "448M"),
    Setup("448 MiB, watermark_scale_factor=100", "448M", scale=100),
    Setup("16 GiB, 15.1 of them huge pages", "16G", "hugepages=7744"),
)
POLICIES = ("mglru", "fifo", "clock", "lru")
"""What kmemd/replacement has besides the two lists."""
Trace = npt.NDArray[np.int64]


def zipf_trace() -> Trace:
    """Page numbers, the popular ones anywhere in the file."""
    rng = np.random.default_rng(SEED)
    weights = np.cumsum(np.arange(1, PAGES + 1, dtype=np.float64) ** -SKEW)
    ranks = np.searchsorted(weights, rng.random(READS) * weights[-1])
    trace: Trace = rng.permutation(PAGES)[ranks].astype(np.int64)
    return trace


def boot(setup: Setup) -> System:
    """A machine whose page cache has room for about 100,000 pages."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Path(folder) / "cache.toml"
        machine.write_text(MACHINE.format(memory=setup.memory))
        system = System.boot(machine=str(machine), seed=SEED, clock="manual", cmdline=setup.cmdline)
    if setup.scale is not None:
        system.write("/proc/sys/vm/watermark_scale_factor", f"{setup.scale}\n")
    return system


def replay(trace: Trace, setup: Setup, policy: str = "two-list") -> tuple[float, float, float]:
    """Seconds of CPU that the model takes, its hit ratio, and how many pages of the file are in memory on average."""
    system = boot(setup)
    system.write("/kmemd/replacement", f"{policy}\n")
    system.command(f"create /mnt/pages {PAGES * 4}K")
    system.command("fadvise /mnt/pages RANDOM")
    user, clock = system.kernel.user, system.kernel.clock
    file, done, resident = user.vfs.lookup("/mnt/pages"), Reads(), []
    began = time.process_time()
    for at in range(0, READS, PIECE):
        for _ in user.file_reads.read_pages(file, trace[at : at + PIECE], done):
            clock.run_due()
        clock.run_due()
        resident.append(file.nrpages)
    seconds = time.process_time() - began
    full = resident[len(resident) // 2 :]
    system.check()
    return seconds, 1 - done.missed / done.calls, sum(full) / len(full)


def by_request(cache: Any, request: Any, trace: Trace) -> tuple[float, float]:
    """Seconds of CPU and hit ratio of a cache that is asked read by read."""
    ids, get = trace.tolist(), cache.get
    hits = 0
    began = time.process_time()
    for number in ids:
        request.obj_id = number
        hits += get(request)
    return time.process_time() - began, hits / len(ids)


def by_c_loop(library: Any, trace: Trace) -> tuple[float, float]:
    """Seconds of CPU and hit ratio of LRU in the library's own loop."""
    records = np.zeros(len(trace), dtype=ORACLE_GENERAL)
    records["time"], records["id"], records["size"], records["next"] = np.arange(len(trace)), trace, 1, -2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.bin"
        records.tofile(path)
        reader = library.TraceReader(str(path), library.TraceType.ORACLE_GENERAL_TRACE)
        began = time.process_time()
        missed, _ = library.LRU(CACHE).process_trace(reader)
        return time.process_time() - began, 1 - missed


def ns(seconds: float) -> float:
    """Of one read."""
    return seconds * 1e9 / READS


def of_model(trace: Trace) -> tuple[list[Figure], list[float]]:
    """The model's figures, and its seconds with two lists on each machine."""
    rows: list[Figure] = []
    took: list[float] = []
    runs = [(setup, "two-list") for setup in SETUPS] + [(SETUPS[-1], policy) for policy in POLICIES]
    for setup, policy in runs:
        seconds, hits, resident = replay(trace, setup, policy)
        what = f"{policy}, {setup.what}"
        rows.append(Figure(f"{what}: a read", ns(seconds), "ns"))
        rows.append(Figure(f"{what}: hit ratio", hits, ""))
        rows.append(Figure(f"{what}: pages in memory", resident, "pages"))
        took.append(seconds)
    return rows, took[: len(SETUPS)]


def run() -> Iterator[Figure]:
    """The figures. Without libcachesim (pip install kmemd[bench]) those of the model alone."""
    trace = zipf_trace()
    rows, took = of_model(trace)
    yield from rows
    try:
        library = importlib.import_module("libcachesim")
    except ImportError:
        print("libcachesim is not installed (pip install -e .[bench]): nothing to compare with")
        return
    policies: tuple[Callable[[int], Any], ...] = (library.LRU, library.ARC, library.S3FIFO)
    for policy in policies:
        request = library.Request()
        request.obj_size = 1
        seconds, hits = by_request(policy(CACHE), request, trace)
        name = policy.__name__
        yield Figure(f"libcachesim {name} from Python: a read", ns(seconds), "ns")
        yield Figure(f"libcachesim {name}: hit ratio", hits, "")
        if policy is library.LRU:
            for setup, model in zip(SETUPS, took, strict=True):
                goal = GOAL if setup is SETUPS[-1] else None
                yield Figure(f"{setup.what}: against libcachesim's LRU from Python", seconds / model, "times", goal)
    seconds, hits = by_c_loop(library, trace)
    yield Figure("libcachesim LRU, its C loop over a file: a read", ns(seconds), "ns")
    yield Figure("libcachesim LRU, its C loop: hit ratio", hits, "")
