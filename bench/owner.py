"""page_owner of full machines: how fast it is written, and how fast it comes through a mount.

2 GiB in the process itself; 16 GiB through the mount, from the open to the first byte and to the last, while
each piece is made as it is read. What the table takes is of the owner records alone, by page.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.fuse_open import kmemd
from bench.result import Figure
from kmemd import System
from kmemd.core.owner import OwnerTable
from kmemd.views.tree import Caller

CHUNK = 1 << 17
PAGES = 4_050_000
"""Of 16 GiB, what is free after boot but for some pages."""
MACHINE = """\
description = "1 node, 16 GiB"
arch = "x86_64"
cpus = 2

[[node]]
memory = "16G"
"""
FIRST_BYTE_MS = 50.0
MOUNT_SPEED = 100.0


def read_all(system: System) -> tuple[int, float]:
    """Bytes of page_owner, and the seconds that reading it took."""
    tree = system.tree
    began = time.perf_counter()
    file = tree.open(tree.lookup("/sys/kernel/debug/page_owner"), Caller())
    size = 0
    while data := file.read(size, CHUNK):
        size += len(data)
    file.close()
    return size, time.perf_counter() - began


def run() -> Iterator[Figure]:
    """The figures."""
    system = System.boot(machine="default", seed=1, cmdline="page_owner=on", clock="manual")
    system.command("fill = alloc_pages order=0 gfp=GFP_HIGHUSER_MOVABLE n=480000 by=fill_memory+0x10")
    size, seconds = read_all(system)
    yield Figure("page_owner of a full 2 GiB machine", size / 1e6, "MB")
    yield Figure("page_owner of a full 2 GiB machine: speed", size / 1e6 / seconds, "MB/s")
    del system
    table = OwnerTable(1)
    columns = [column for column in vars(table).values() if hasattr(column, "itemsize")]
    yield Figure("page_owner: records", sum(column.itemsize for column in columns), "byte/page")
    yield from through_the_mount()


def through_the_mount() -> Iterator[Figure]:
    """16 GiB, read as ``cat`` reads."""
    with tempfile.TemporaryDirectory(prefix="kmemd-bench-") as folder, contextlib.ExitStack() as servers:
        machine = Path(folder) / "machine.toml"
        machine.write_text(MACHINE)
        options = ["--machine", str(machine), "--cmdline", "page_owner=on", "--clock", "manual"]
        model = servers.enter_context(kmemd(Path(folder) / "kmemd", *options))
        line = f"fill = alloc_pages order=0 gfp=GFP_HIGHUSER_MOVABLE n={PAGES} by=fill_memory+0x10\n"
        (model / "kmemd/ctl").write_text(line)
        began = time.perf_counter()
        descriptor = os.open(model / "sys/kernel/debug/page_owner", os.O_RDONLY)
        size = len(os.read(descriptor, CHUNK))
        first = time.perf_counter() - began
        while part := os.read(descriptor, CHUNK):
            size += len(part)
        seconds = time.perf_counter() - began
        os.close(descriptor)
    yield Figure("page_owner of a full 16 GiB machine", size / 1e6, "MB")
    yield Figure("page_owner of 16 GiB through the mount: first byte", first * 1e3, "ms", FIRST_BYTE_MS, at_most=True)
    yield Figure("page_owner of 16 GiB through the mount: speed", size / 1e6 / seconds, "MB/s", MOUNT_SPEED)
