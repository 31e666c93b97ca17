"""A machine in a captured state of fragmentation whose movable memory belongs to a process, so that it can move.

Captures tell how many free blocks of each order and migratetype there are, not where, nor who has the rest. What a
program took between two states is taken here by a process; then single pages of it are given back until the movable
free blocks are the captured ones. They lie in the page blocks that were filled last, since the allocator hands out low
addresses first and what it broke up last is what is left in pieces.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kmemd.conformance.shape import machine_from_zoneinfo
from kmemd.core.buddy_state import BuddyState
from kmemd.core.mmzone import MAX_ORDER, MIGRATE_MOVABLE
from kmemd.core.page_ranges import PageRanges
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, F
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Zone
from kmemd.mm.units import GIB, MIB, PAGE_SIZE
from kmemd.system import System

CPUS = 2
HOG_MIB, STEP_MIB = 300, 100
TOP = MAX_ORDER - 1
SECTION = 128 * MIB
ROOM = 64 * GIB
ALWAYS = "transparent_hugepage=always"
ENTRY_BYTES = 8
PFN_BITS = (1 << 55) - 1

Key = tuple[int, str]
Counts = dict[Key, list[int]]
"""Free blocks of each order by node and zone name."""

_MOVABLE = re.compile(r"^Node +(\d+), zone +(\S+), type +Movable +([\d >]+)$", re.MULTILINE)
_BLOCKS = re.compile(r"^Node (\d+), zone +\S+ +([\d ]+)$", re.MULTILINE)


def movable(types: str) -> Counts:
    """The movable free blocks of a pagetypeinfo."""
    found = _MOVABLE.findall(types)
    return {(int(nid), zone): [int(word.lstrip(">")) for word in counts.split()] for nid, zone, counts in found}


def machine_at(folder: Path, state: str, more: dict[Key, int] | None = None) -> Machine:
    """A twin of a captured state: a machine as large as its page blocks say. ``more``: movable blocks of the highest
    order that are free beyond the captured ones, in zones without smaller ones.
    """
    types = (folder / f"{state}.pagetypeinfo").read_text()
    info = (folder / f"{state}.buddyinfo").read_text()
    pages = int(re.findall(r"^Pages per block: +(\d+)", types, re.MULTILINE)[0])
    blocks: dict[int, int] = {}
    for nid, row in _BLOCKS.findall(types):
        blocks[int(nid)] = blocks.get(int(nid), 0) + sum(map(int, row.split()))
    sizes = tuple(-(-count * pages * PAGE_SIZE // SECTION) * SECTION for _, count in sorted(blocks.items()))
    for (nid, zone), extra in (more or {}).items():
        change = [-count for count in movable(types)[nid, zone][:TOP]] + [extra]
        info = _changed(info, rf"^Node +{nid}, zone +{zone} ", change)
        types = _changed(types, rf"^Node +{nid}, zone +{zone}, type +Movable ", change)
    return machine_from_zoneinfo(_zoneinfo(sizes), _name(sizes), buddyinfo=info, pagetypeinfo=types)


def _zoneinfo(sizes: tuple[int, ...]) -> str:
    """What a fresh machine with nodes of these sizes shows."""
    nodes = range(len(sizes))
    cpus = tuple(tuple(cpu for cpu in range(CPUS) if cpu * len(sizes) // CPUS == nid) for nid in nodes)
    distances = tuple(tuple(10 if a == b else 20 for b in nodes) for a in nodes)
    machine = Machine.of_memory("captured", "x86_64", CPUS, sizes, cpus, distances)
    return System.boot(machine).read("/proc/zoneinfo").decode()


def _name(sizes: tuple[int, ...]) -> str:
    nodes = f"{len(sizes)}node-" if len(sizes) > 1 else ""
    return f"x86_64-{nodes}{sum(sizes) // GIB}G-{CPUS}cpu"


def _changed(text: str, line: str, change: list[int]) -> str:
    """A line of counts with other counts."""
    pattern = re.compile(rf"({line})([\d >]+)$", re.MULTILINE)
    found = pattern.search(text)
    assert found is not None, f"no line of counts: {line}"
    counts = (int(word.lstrip(">")) + more for word, more in zip(found[2].split(), change, strict=True))
    return text[: found.start(2)] + "".join(f"{count:6d} " for count in counts) + text[found.end(2) :]


def map_hog(system: System) -> None:
    """Have a process map and write what was mapped in the capture, with huge pages."""
    system.command("hog = spawn hog")
    for part in range(HOG_MIB // STEP_MIB):
        system.command(f"m{part} = mmap hog {STEP_MIB}M")
        system.command(f"access hog m{part} {STEP_MIB}M w")


def occupied(folder: Path, before: str, state: str) -> System:
    """A machine in ``state``, with a process that has the memory that was taken since ``before``."""
    had = movable((folder / f"{before}.pagetypeinfo").read_text())
    wanted = movable((folder / f"{state}.pagetypeinfo").read_text())
    more = {key: _chunks(had[key], counts) for key, counts in wanted.items() if _pages(had[key]) > _pages(counts)}
    system = System.boot(machine_at(folder, state, more), cmdline=ALWAYS)
    map_hog(system)
    zones = [zone for zone in system.kernel.zones if (zone.nid, zone.name) in more]
    owned = _fill(system, zones, wanted)
    for zone in zones:
        _take_surplus(system, zone, wanted[zone.nid, zone.name])
        _punch(system, zone, owned, wanted[zone.nid, zone.name][:TOP])
    return system


def _pages(counts: list[int]) -> int:
    return sum(count << order for order, count in enumerate(counts))


def _chunks(had: list[int], has: list[int]) -> int:
    """Blocks of the highest order for what was taken, and for the small free blocks with as much between them."""
    return -(-(_pages(had) - _pages(has)) >> TOP) + -(-2 * _pages(has[:TOP]) >> TOP) + 1


def _fill(system: System, zones: list[Zone], wanted: Counts) -> dict[int, int]:
    """Let the process have all movable memory but the captured blocks of the highest order: its small pages, by PFN
    with the address of each. What is less than a refill of a per-cpu list stays: one more would break up such a block.
    """
    kernel = system.kernel
    start, pid = _mapping(system)
    pages = 0
    for zone in zones:
        batch = zone.pageset(kernel.context.cpu)[2]
        free = _pages(list(zone.nr_free_type(MIGRATE_MOVABLE))) - (wanted[zone.nid, zone.name][TOP] << TOP)
        pages += max(0, free) // batch * batch
        pages += len(BuddyState(kernel.buddy).pcp_list(zone.index, kernel.context.cpu, MIGRATE_MOVABLE))
    if pages:
        system.command(f"access hog {start:#x} {pages * PAGE_SIZE} w")
    entries = np.frombuffer(
        system.read(f"/proc/{pid}/pagemap", start // PAGE_SIZE * ENTRY_BYTES, pages * ENTRY_BYTES), dtype=np.uint64
    )
    pfns = (entries & np.uint64(PFN_BITS)).tolist()
    return {int(pfn): start + at * PAGE_SIZE for at, pfn in enumerate(pfns)}


def _mapping(system: System) -> tuple[int, int]:
    """Where the process maps small pages, more than it ever writes, and its number."""
    reply = system.command(f"mmap hog {ROOM} flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE")
    start = int(dict(word.split("=") for word in reply.split())["addr"], 16)
    system.command(f"madvise hog {start:#x} {ROOM} MADV_NOHUGEPAGE")
    return start, next(task.pid for task in system.kernel.tasks if task.comm == "hog")


def _take_surplus(system: System, zone: Zone, wanted: list[int]) -> None:
    """Allocate movable blocks that were not captured, but for those too small to pass the per-cpu lists by."""
    for order in range(PAGE_ALLOC_COSTLY_ORDER + 1, TOP):
        for _ in range(zone.nr_free_type(MIGRATE_MOVABLE)[order] - wanted[order]):
            system.kernel.page_alloc.alloc_pages(GFP_HIGHUSER_MOVABLE | F.THISNODE, order, zone.nid)


def _punch(system: System, zone: Zone, owned: dict[int, int], wanted: list[int]) -> None:
    """Give back small pages of the process until the zone has the wanted blocks below the highest order.

    Page blocks are set apart meanwhile, so that pages become free blocks at once; next to each block a page stays.
    """
    ranges, size = PageRanges(system.kernel.buddy), 1 << system.kernel.buddy.pageblock_order
    free = np.zeros(zone.end_pfn, dtype=np.bool_)
    free[[pfn for pfn in owned if zone.start_pfn <= pfn < zone.end_pfn]] = True
    for order in reversed(range(TOP)):
        for _ in range(wanted[order] - zone.nr_free_type(MIGRATE_MOVABLE)[order]):
            pfn = _aligned(free, order + 1)
            if pfn < 0:
                return
            free[pfn : pfn + (2 << order)] = False
            low, high = pfn & -size, -(-(pfn + (1 << order)) // size) * size
            ranges.isolate_range(zone.index, low, high)
            for page in range(pfn, pfn + (1 << order)):
                system.command(f"madvise hog {owned[page]:#x} {PAGE_SIZE} MADV_DONTNEED")
            ranges.unisolate_range(zone.index, low, high, MIGRATE_MOVABLE)


def _aligned(free: npt.NDArray[np.bool_], order: int) -> int:
    """The highest aligned run of so many pages that are there to be given back, -1 without one."""
    whole = len(free) >> order
    runs = np.flatnonzero(free[: whole << order].reshape(whole, -1).all(axis=1))
    return int(runs[-1]) << order if len(runs) else -1
