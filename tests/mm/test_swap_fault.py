"""Faults on swap in the core's loop do what Python does one at a time (core.swap_fault, mm.swap_fault)."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import pytest

from kmemd import System
from kmemd.core import swap_fault as installed
from kmemd.core.lru import ADD
from kmemd.core.pte import PRESENT
from kmemd.machine import Machine, SwapDevice
from tests.core import builds
from tests.mm.files_fixture import Box

MIB = 1 << 20
DEVICES = {
    "disk": [SwapDevice("/dev/vdb", 64 * MIB, "partition", -1, True)],
    "two disks": [SwapDevice(f"/dev/vd{name}", 32 * MIB, "partition", 5, True) for name in "bc"],
    "no seeks": [SwapDevice("/dev/nvme0n1p2", 64 * MIB, "partition", -1, True)],
    "nearly full": [SwapDevice("/dev/vdb", 6 * MIB, "partition", -1, True)],
    "rw_page": [SwapDevice("/dev/zram0", 64 * MIB, "partition", -1, True)],
}
BUILDS = {
    "installed": lambda: installed,
    "uncompiled": lambda: builds.uncompiled("swap_fault"),
    "checked": lambda: builds.checked("swap_fault"),
}


@pytest.fixture
def box() -> Box:
    return Box(machine(DEVICES["disk"]))


def machine(devices: list[SwapDevice]) -> Machine:
    return dataclasses.replace(Machine.load("default"), swap=tuple(devices))


def step(system: System, random: Random) -> None:
    """One command of a program in want of memory, or of its administrator."""
    offset, pages = random.randrange(900), random.randrange(1, 100)
    part = f"m+{offset * 4096} {pages * 4096}"
    match random.randrange(9):
        case 0 | 1:
            system.command(f"madvise p {part} MADV_PAGEOUT")
        case 2:
            system.command("madvise p m 4M MADV_PAGEOUT")
            system.command("sleep 1")
        case 3:
            system.command(f"access p m 4M {random.choice('rw')} pattern=random n=200")
        case 4 | 5:
            system.command(f"access p {part} {random.choice('rw')}")
        case 6:
            system.write("/proc/sys/vm/page-cluster", f"{random.randrange(6)}\n")
        case 7:
            system.command("q = fork p")
            system.command(f"access q m {random.randrange(1, 4)}M {random.choice('rw')}")
            system.command("exit q")
        case _:
            system.command(f"madvise p {part} {random.choice(['MADV_WILLNEED', 'MADV_DONTNEED', 'MADV_RANDOM'])}")


def run(devices: list[SwapDevice], seed: int, *, one_by_one: bool) -> System:
    """A machine after a life with swap; all faults in one slice, as its length depends on how fast they are."""
    system = System.boot(machine(devices), seed=seed)
    system.kernel.memory._tire = lambda steps: None  # type: ignore[method-assign]
    if one_by_one:
        system.kernel.mmu.swap = None
    random = Random(seed)
    for line in ("p = spawn t", "m = mmap p 4M prot=rw", "madvise p m 4M MADV_NOHUGEPAGE", "access p m 4M w fill=text"):
        system.command(line)
    for _ in range(40):
        step(system, random)
    system.check()
    return system


def state(system: System) -> dict[str, Any]:
    """All that may differ: counters, pages with their places in the LRU lists, entries, slots, time."""
    kernel = system.kernel
    names = ("flags", "mapping", "index", "mapcount", "private", "next", "prev")
    task = kernel.tasks.find(kernel.handles["p"].pid)
    rows = kernel.mmu.extents(task.mm.id, 0, task.mm.task_size >> 12)
    return {
        **{name: getattr(kernel.pages, name).tobytes() for name in names},
        "entries": [kernel.mmu.words[slot : slot + count].tobytes() for _, count, slot, _ in rows.tolist()],
        "steps": kernel.mmu.stats.tolist(),
        "vmstat": system.read("/proc/vmstat"),
        "status": system.read(f"/proc/{task.pid}/status"),
        "now": kernel.context.now,
        "slots": [(area.count.tobytes(), area.cache.tobytes()) for area in kernel.swap.areas],
        "kept": (kernel.swap.files.slots.slots, kernel.swap.files.slots.returned),
        "bytes": [kernel.contents.read(pfn) for pfn in mapped(system, rows)[:50]],
    }


def mapped(system: System, rows: Any) -> list[int]:
    """The pages that the program has."""
    words = system.kernel.mmu.words
    return [
        int(word) >> 12 & (1 << 40) - 1
        for _, count, slot, _ in rows.tolist()
        for word in words[slot : slot + count]
        if int(word) & PRESENT
    ]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_the_loop_does_what_single_faults_do(
    devices: list[SwapDevice], build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmemd.user_memory.SwapFaults", BUILDS[build]().SwapFaults)
    for seed in (3, 4):
        in_loop, one_by_one = (state(run(devices, seed, one_by_one=single)) for single in (False, True))
        assert [name for name in in_loop if in_loop[name] != one_by_one[name]] == []


def test_a_run_of_swapped_pages_is_one_call_of_the_loop(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.run("p = spawn t", "m = mmap p 4M prot=rw", "madvise p m 4M MADV_NOHUGEPAGE", "access p m 4M w")
    box.run("madvise p m 4M MADV_PAGEOUT", "sleep 1", "access p m 4M r", "madvise p m 4M MADV_PAGEOUT", "sleep 1")
    slow: list[int] = []
    fault = box.kernel.memory.handle_mm_fault
    monkeypatch.setattr(box.kernel.memory, "handle_mm_fault", lambda *words: slow.append(words[3]) or fault(*words))
    reply = box.run("access p m 4M r")
    assert (reply["faults"], box.vmstat("pswpin")) == ("1024", [1024])
    assert int(reply["major"]) == 129
    assert len(slow) < 8, "but for the end of a slice"


def test_each_page_that_was_read_ahead_is_a_hit() -> None:
    box = Box(machine(DEVICES["no seeks"]))
    box.run("p = spawn t", "m = mmap p 1M prot=rw", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w")
    box.run("madvise p m 1M MADV_PAGEOUT", "sleep 1", "access p m 1M r", "madvise p m 1M MADV_PAGEOUT")
    box.run("access p m 64K r")
    ahead, hits = box.vmstat("swap_ra", "swap_ra_hit")
    assert 0 < ahead - hits <= 8, "the last window is not used up"
    vma = box.kernel.tasks.find(box.kernel.handles["p"].pid).mm.find(box.kernel.handles["m"].address)
    mm = box.kernel.tasks.find(box.kernel.handles["p"].pid).mm
    row = box.kernel.user.swap_state.window_row(mm, vma)
    assert row
    assert int(box.kernel.user.swap_state.windows[row, installed.PREVIOUS]) == vma.vpn + 15


def test_a_page_that_is_being_written_counts_as_read_ahead(box: Box) -> None:
    """PG_readahead is PG_reclaim: whoever wants the page back makes a hit of it, and it is not rotated."""
    box.run("p = spawn t", "m = mmap p 1M prot=rw", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w")
    box.system.command("madvise p m 1M MADV_PAGEOUT")
    written = box.vmstat("nr_writeback")[0]
    assert written > 0
    box.run("access p m 1M r")
    ahead, hits, major, rotated = box.vmstat("swap_ra", "swap_ra_hit", "pgmajfault", "pgrotated")
    assert (ahead, major) == (0, 0)
    assert 0 < hits <= written - rotated


def test_a_window_is_put_on_the_list_even_when_it_is_one_page(box: Box) -> None:
    """Readahead by slots drains the CPU's batch, unless it is off (lru_add_drain)."""
    box.run("p = spawn t", "m = mmap p 64K prot=rw", "madvise p m 64K MADV_NOHUGEPAGE", "access p m 64K w")
    box.run("madvise p m 64K MADV_PAGEOUT", "sleep 1", "access p m 64K r", "madvise p m 64K MADV_PAGEOUT")
    box.run("access p m+8192 4K r", "munmap p m+16384 48K", "access p m 4K r", "access p m+4096 4K r")
    assert box.vmstat("nr_inactive_anon", "nr_swapcached")[1] > 0
    lru = box.kernel.user.lru
    assert not [pfn for pfn in lru.pending(box.kernel.context.cpu, ADD) if box.kernel.pages.private[pfn]]


def test_what_is_read_from_swap_is_the_tasks_io(box: Box) -> None:
    pid = box.run("p = spawn t")["pid"]
    box.run("m = mmap p 1M prot=rw", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w", "madvise p m 1M MADV_PAGEOUT")
    box.run("sleep 1", "access p m 1M r", "madvise p m 1M MADV_PAGEOUT", "access p m 1M r")
    assert box.vmstat("pswpin") == [256]
    assert f"read_bytes: {MIB}\n" in box.system.read(f"/proc/{pid}/io").decode()
