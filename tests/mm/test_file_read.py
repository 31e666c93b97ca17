"""Bulk reads of single pages (mm.file_read, mm.file_evict): the same state as one read after the other leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmemd import System
from kmemd.control.verbs_mm import run_as
from kmemd.core.lru_lists import NR_LRU_LISTS
from kmemd.mm.file_read import Reads
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.steps import finish

PAGES = 1 << 14
SMALL = 'description = "little memory"\narch = "x86_64"\ncpus = 2\n\n[[node]]\nmemory = "64M"\n'


def boot(folder: Path, *lines: str) -> System:
    machine = folder / "small.toml"
    machine.write_text(SMALL)
    system = System.boot(str(machine), seed=1)
    for line in (f"create /mnt/f {PAGES << PAGE_SHIFT}", *lines):
        system.command(line)
    return system


def trace(kind: str, seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "hot":
        return rng.integers(0, 600, count)
    if kind == "cold":
        return rng.integers(0, PAGES, count)
    parts = [rng.integers(0, PAGES, count // 4), rng.zipf(1.4, count // 2) % PAGES, np.arange(count // 4) % PAGES]
    return np.concatenate(parts)


def state(system: System) -> dict[str, Any]:
    """Everything that reads may change."""
    kernel = system.kernel
    user, file = kernel.user, kernel.user.vfs.lookup("/mnt/f")
    lruvecs = user.page_reclaim.lruvecs
    return {
        "time": kernel.context.now,
        "events": kernel.vmstat.events.tolist(),
        "zones": kernel.vmstat.zone_stat.tolist(),
        "nodes": kernel.vmstat.node_stat.tolist(),
        "lists": [user.lru.pages_of(0, which) for which in range(NR_LRU_LISTS - 1)],
        "batches": [user.lru.pending(cpu, kind) for cpu in range(2) for kind in range(6)],
        "flags": kernel.pages.flags[: 64 << (20 - PAGE_SHIFT)].tolist(),
        "table": file.slots.window(0, file.slots.end).tolist(),
        "file": (file.nrpages, file.ra.prev_pos, file.ra.start, file.ra.size, file.slots.end),
        "lruvec": repr(lruvecs.get(0, 0)),
        "disk": (repr(file.wb.disk.stats), file.wb.disk.free_at),
        "pressure": [kernel.psi.report(resource) for resource in ("io", "memory")],
    }


def one_by_one(system: System, indices: np.ndarray) -> Reads:
    files, done = system.kernel.user.files, Reads()
    file = files.vfs.lookup("/mnt/f")
    for index in indices.tolist():
        done.missed += file.slots.get(index) <= 0
        done.calls += 1
        done.bytes += files.read(file, index << PAGE_SHIFT, PAGE_SIZE)
    return done


def in_bulk(system: System, indices: np.ndarray) -> Reads:
    user, done = system.kernel.user, Reads()
    finish(user.file_reads.read_pages(user.vfs.lookup("/mnt/f"), indices, done))
    return done


def compared(systems: list[System], indices: np.ndarray) -> tuple[dict[str, Any], Reads]:
    bulk, single = in_bulk(systems[0], indices), one_by_one(systems[1], indices)
    assert (bulk.calls, bulk.bytes, bulk.missed) == (single.calls, single.bytes, single.missed)
    found = [state(system) for system in systems]
    for name, value in found[0].items():
        assert value == found[1][name], f"{name} differs"
    for system in systems:
        system.check()
    return found[0], bulk


@pytest.mark.parametrize("advice", ["NORMAL", "RANDOM"])
@pytest.mark.parametrize("kind", ["hot", "cold", "mixed"])
def test_bulk_reads_are_reads(tmp_path: Path, kind: str, advice: str) -> None:
    systems = [boot(tmp_path, f"fadvise /mnt/f {advice}") for _ in range(2)]
    _, done = compared(systems, trace(kind, 3, 2500))
    assert 0 < done.missed < done.calls == len(trace(kind, 3, 2500))


def test_bulk_reads_are_reads_while_memory_is_short(tmp_path: Path) -> None:
    systems = [boot(tmp_path, "fadvise /mnt/f RANDOM", "read_file /mnt/f length=40M") for _ in range(2)]
    found, done = compared(systems, trace("mixed", 5, 12000))
    file = systems[0].kernel.user.vfs.lookup("/mnt/f")
    assert file.nrpages < PAGES
    assert min(found["table"]) < 0, "reclaim left shadows"
    assert done.missed > 1000


def test_a_cgroup_is_charged_for_what_it_reads_in_bulk(tmp_path: Path) -> None:
    systems = []
    for _ in range(2):
        system = boot(tmp_path, "fadvise /mnt/f RANDOM")
        system.write("/sys/fs/cgroup/cgroup.subtree_control", "+memory\n")
        system.mkdir("/sys/fs/cgroup/g")
        system.write("/sys/fs/cgroup/g/memory.max", "4M\n")
        pid = dict(word.split("=") for word in system.command("p = spawn t").split() if "=" in word)["pid"]
        system.write("/sys/fs/cgroup/g/cgroup.procs", f"{pid}\n")
        run_as(system.kernel, int(pid))
        systems.append(system)
    _, done = compared(systems, trace("cold", 7, 4000))
    current = [int(system.read("/sys/fs/cgroup/g/memory.current")) for system in systems]
    assert current[0] == current[1] <= 4 << 20
    assert done.missed > 2000


def test_the_verb_reads_by_a_pattern(tmp_path: Path) -> None:
    system = boot(tmp_path)
    reply = system.command("read_file /mnt/f pattern=zipf:1 n=5000")
    words = dict(word.split("=") for word in reply.split())
    assert (words["n"], words["bytes"]) == ("5000", str(5000 * PAGE_SIZE))
    assert 0 < int(words["hits"]) < 5000
    assert "n=64 bytes=262144" in system.command("read_file /mnt/f offset=1M length=256K pattern=seq")
    assert "n=0 " in system.command("read_file /mnt/f offset=1G pattern=random n=10")
    assert system.command("read_file /mnt/f length=3").split()[2] == "data=000000"
    system.check()


def test_known_bytes_come_with_pages_that_are_read_in_bulk(tmp_path: Path) -> None:
    system = boot(tmp_path, "fadvise /mnt/f RANDOM", "write_file /mnt/f offset=20K data=hello sync=1")
    system.command("fadvise /mnt/f DONTNEED")
    assert in_bulk(system, np.array([5, 4])).missed == 2
    assert system.command("read_file /mnt/f offset=20K n=5").split()[2] == f"data={b'hello'.hex()}"


def test_a_bad_sector_is_an_error_in_bulk_too(tmp_path: Path) -> None:
    system = boot(tmp_path, "fadvise /mnt/f RANDOM")
    system.command("disk_error /dev/ram0 read")
    with pytest.raises(OSError, match="EIO"):
        system.command("read_file /mnt/f pattern=random n=3")
