"""The page cache as a cache: 4 M reads of single pages by Zipf(1.0) out of 1 M, with about 100,000 pages in memory,
against libcachesim on the same trace in the same run.

libcachesim is driven as its Python users drive it, ``cache.get(request)`` for each read, one ``Request`` whose
``obj_id`` changes, sizes of 1; and by its own loop in C (``process_trace`` of a file in its binary format), for
comparison. The model's reads are pread(2) of a page each on a file with POSIX_FADV_RANDOM, so that readahead adds
nothing. Its cache is bounded by the memory of the machine: reclaim, shadow entries, LRU batches, disk and counters are
all at work. With vm.watermark_scale_factor=100 kswapd keeps up to one percent of memory free, so that the cache is on
average a little below what the others have; the run with the default of 10 is given, too.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
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
MACHINE = 'description = "a cache of 100,000 pages"\narch = "x86_64"\ncpus = 2\n\n[[node]]\nmemory = "448M"\n'
ORACLE_GENERAL = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
"""A record of libcachesim's binary traces."""
GOAL = 3

Trace = npt.NDArray[np.int64]


def zipf_trace() -> Trace:
    """Page numbers, the popular ones anywhere in the file."""
    rng = np.random.default_rng(SEED)
    weights = np.cumsum(np.arange(1, PAGES + 1, dtype=np.float64) ** -SKEW)
    ranks = np.searchsorted(weights, rng.random(READS) * weights[-1])
    return rng.permutation(PAGES)[ranks].astype(np.int64)


def replay(trace: Trace, scale: int) -> tuple[float, float, float]:
    """Seconds of CPU that the model takes, its hit ratio, and how many pages of the file are in memory on average."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Path(folder) / "cache.toml"
        machine.write_text(MACHINE)
        system = System.boot(machine=str(machine), seed=SEED, clock="manual")
    system.write("/proc/sys/vm/watermark_scale_factor", f"{scale}\n")
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


def of_model(trace: Trace) -> tuple[list[Figure], float]:
    """The model's figures, and its seconds with the wide watermarks."""
    rows: list[Figure] = []
    best = 0.0
    for scale in (10, 100):
        best, hits, resident = replay(trace, scale)
        what = f"two lists, watermark_scale_factor={scale}"
        rows.append(Figure(f"{what}: a read", ns(best), "ns"))
        rows.append(Figure(f"{what}: hit ratio", hits, ""))
        rows.append(Figure(f"{what}: pages in memory", resident, "pages"))
    return rows, best


def run() -> Iterator[Figure]:
    """The figures. Without libcachesim (pip install kmemd[bench]) those of the model alone."""
    trace = zipf_trace()
    rows, model = of_model(trace)
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
            yield Figure("model against libcachesim's LRU from Python", seconds / model, "times", GOAL)
    seconds, hits = by_c_loop(library, trace)
    yield Figure("libcachesim LRU, its C loop over a file: a read", ns(seconds), "ns")
    yield Figure("libcachesim LRU, its C loop: hit ratio", hits, "")
