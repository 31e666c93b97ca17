"""How long it takes until a model can be used, and the memory it needs: small, huge, and mounted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.result import Figure, median_of

BOOT = """
import sys, time
from kmemd import System
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
times, before = [], resident()
for _ in range(5):
    began = time.perf_counter()
    system = System.boot(machine=sys.argv[1], seed=1, clock="manual")
    times.append(time.perf_counter() - began)
    del system
system = System.boot(machine=sys.argv[1], seed=1, clock="manual")
print(min(times), resident() - before)
"""


def boot(machine: str) -> tuple[float, float]:
    """Milliseconds to boot a machine, and MiB that it takes, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", BOOT, machine], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(found[0]) * 1e3, float(found[1]) / (1 << 20)


def seconds_to_mounted() -> float:
    """From starting the interpreter until the mount answers."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        daemon = subprocess.Popen([sys.executable, "-m", "kmemd", "mount", folder], stdout=subprocess.DEVNULL)
        ready = Path(folder, "proc", "buddyinfo")
        try:
            while not os.access(ready, os.R_OK):
                if daemon.poll() is not None:
                    raise RuntimeError(f"kmemd mount ended with {daemon.returncode}")
                time.sleep(0.002)
            return time.perf_counter() - began
        finally:
            daemon.terminate()
            daemon.wait()


def run() -> Iterator[Figure]:
    """The figures."""
    default_ms, default_mib = boot("default")
    server_ms, server_mib = boot("server-1t")
    yield Figure("boot default", default_ms, "ms")
    yield Figure("boot server-1t (1 TiB, 8 nodes, 256 CPUs)", server_ms, "ms")
    yield Figure("server-1t: time beyond default", server_ms - default_ms, "ms", 50, at_most=True)
    yield Figure("server-1t: memory beyond default", server_mib - default_mib, "MiB", 64, at_most=True)
    yield Figure("start of the program to mounted", median_of(5, seconds_to_mounted), "s", 0.6, at_most=True)
