"""pagemap and clear_refs: what is behind each address, and what was used since."""

import dataclasses
import re

import numpy as np
import pytest

from kmemd import System
from kmemd.machine import Machine
from kmemd.views.task_pagemap import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PRESENT, PM_SOFT_DIRTY, PM_SWAP
from kmemd.views.tree import Caller
from tests.views.process import MIB, PAGE, TWO_NODES, Process, kib

PFN = (1 << 55) - 1
ON_LRU = 1 << 5
ROOT, USER = Caller(), Caller(4711, 1000)


@pytest.fixture
def system():
    return System.boot("two-node", seed=1)


def entries(process, address, count, caller=ROOT):
    """pagemap's words from an address on."""
    system = process.system
    file = system.tree.open(system.tree.lookup(f"/proc/{process.pid}/pagemap"), caller)
    return np.frombuffer(file.read(address // PAGE * 8, count * 8), dtype="<u8")


def words(process, name, pfn):
    system = process.system
    file = system.tree.open(system.tree.lookup(f"/proc/{name}"), Caller())
    return int(np.frombuffer(file.read(pfn * 8, 8), dtype="<u8")[0])


def test_pages_are_flagged_as_captured(system):
    process = Process(system)
    address = process.mmap(16 * PAGE)
    process.do("access", hex(address), 4 * PAGE, "w")
    process.do("access", hex(address + 4 * PAGE), 4 * PAGE, "r")
    shown = []
    for page, word in enumerate(entries(process, address, 16).tolist()):
        pfn = word & PFN
        flags, count = (words(process, name, pfn) if word else 0 for name in ("kpageflags", "kpagecount"))
        if page < 4:
            flags |= ON_LRU  # or in a CPU's batch still, which depends on what it did before
        shown.append(f"page {page} pagemap {word & ~PFN:016x} flags {flags:016x} count {count}\n")
    captured = (TWO_NODES / "uo_pagemap").read_text()
    assert "".join(shown) == captured.replace("0000000400005808", "0000000400005828")


def test_page_frames_show_to_root_alone(system):
    process = Process(system)
    task = system.kernel.tasks.find(process.pid)
    task.uid = task.gid = USER.uid
    address = process.mmap(2 * PAGE)
    process.do("access", hex(address), PAGE, "w")
    present = PM_PRESENT | PM_MMAP_EXCLUSIVE
    root, own = entries(process, address, 2).tolist(), entries(process, address, 2, USER).tolist()
    assert (root[0] & ~PFN, root[0] & PFN != 0, root[1]) == (present, True, 0)
    assert own == [present, 0]


def test_another_user_may_not_look(system):
    process = Process(system)
    for name in ("pagemap", "maps", "smaps", "smaps_rollup", "numa_maps", "mem", "environ"):
        node = system.tree.lookup(f"/proc/{process.pid}/{name}")
        with pytest.raises(Exception, match="EACCES"):
            system.tree.open(node, USER)
    assert re.search(r" 18446744073709551615 1 1 0 ", stat_as(system, process.pid, USER))


def stat_as(system, pid, caller):
    return system.tree.open(system.tree.lookup(f"/proc/{pid}/stat"), caller).read(0, 4096).decode()


def test_a_page_of_two_processes_is_not_exclusive(system):
    parent = Process(system)
    address = parent.mmap(PAGE)
    parent.do("access", hex(address), PAGE, "w")
    assert entries(parent, address, 1)[0] & np.uint64(PM_MMAP_EXCLUSIVE)
    child = parent.fork()
    shared = entries(parent, address, 1)[0]
    assert shared == entries(child, address, 1)[0]
    assert not shared & np.uint64(PM_MMAP_EXCLUSIVE)
    assert words(parent, "kpagecount", int(shared) & PFN) == 2
    child.do("access", hex(address), PAGE, "w")
    assert entries(child, address, 1)[0] & np.uint64(PM_MMAP_EXCLUSIVE)
    assert words(parent, "kpagecount", int(shared) & PFN) == 1


def test_shared_memory_is_of_a_file(system):
    process = Process(system)
    address = process.mmap(4 * PAGE, "flags=MAP_SHARED|MAP_ANONYMOUS")
    process.do("access", hex(address), 2 * PAGE, "w")
    found = entries(process, address, 4)
    assert [int(word) & ~PFN for word in found] == [PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE] * 2 + [0, 0]


def test_each_part_of_a_huge_page_has_its_own_frame(system):
    process = Process(system)
    address = -(-process.mmap(4 * MIB) // (2 * MIB)) * 2 * MIB
    process.do("madvise", hex(address), 2 * MIB, "MADV_HUGEPAGE")
    process.do("access", hex(address), 1, "w")
    found = entries(process, address, 512)
    frames = found & np.uint64(PFN)
    assert (np.diff(frames.astype(np.int64)) == 1).all()
    assert set((found & np.uint64(~PFN & (1 << 64) - 1)).tolist()) == {PM_PRESENT | PM_MMAP_EXCLUSIVE}
    assert entries(process, address + 7 * PAGE, 3).tolist() == found[7:10].tolist()


def test_ranges_are_parts_of_the_whole_and_end_with_the_address_space(system):
    process = Process(system)
    address = process.mmap(3 * MIB)
    process.do("access", hex(address + MIB), MIB, "w")
    whole = entries(process, address - 100 * PAGE, 1200)
    for first, count in ((0, 1), (99, 2), (355, 513), (700, 500)):
        assert entries(process, address + (first - 100) * PAGE, count).tolist() == whole[first : first + count].tolist()
    assert not whole[:100].any()
    end = system.kernel.tasks.find(process.pid).mm.task_size
    assert len(entries(process, end - 2 * PAGE, 5)) == 2
    assert len(entries(process, end, 5)) == 0
    file = system.tree.open(system.tree.lookup(f"/proc/{process.pid}/pagemap"), Caller())
    for offset, size in ((4, 8), (8, 9)):
        with pytest.raises(Exception, match="EINVAL"):
            file.read(offset, size)


def test_kernel_threads_have_no_pagemap(system):
    assert system.read("/proc/2/pagemap") == b""
    assert system.write("/proc/2/clear_refs", "1\n") == 2


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1\n", 2),
        (" 2 \n", 4),
        ("+3", 2),
        ("0", "EINVAL"),
        ("6\n", "EINVAL"),
        ("-1", "EINVAL"),
        ("x", "EINVAL"),
        ("", "EINVAL"),
        ("1 1", "EINVAL"),
        ("0x1", "EINVAL"),
        ("99999999999", "ERANGE"),
        ("5\0junk", 6),
        ("1" + "\n" * 20, 12),
    ],
)
def test_what_is_written_to_clear_refs_is_parsed_as_linux_does(system, text, result):
    process = Process(system)
    path = f"/proc/{process.pid}/clear_refs"
    if isinstance(result, int):
        assert system.write(path, text) == result
    else:
        with pytest.raises(OSError, match=result):
            system.write(path, text)
    with pytest.raises(OSError, match="EINVAL"):
        system.read(path)
    with pytest.raises(OSError, match="EINVAL"):
        system.write(f"/proc/{process.pid}/maps", text)


def test_clear_refs_forgets_what_was_used_of_each_kind(system):
    process = Process(system)
    anon, shared = process.mmap(MIB), process.mmap(MIB, "flags=MAP_SHARED|MAP_ANONYMOUS")
    for address in (anon, shared):
        process.do("access", hex(address), MIB, "w")

    def referenced():
        return tuple(int(re.search(r"Referenced: +(\d+)", process.smaps(address))[1]) for address in (anon, shared))

    assert referenced() == (1024, 1024)
    system.write(f"/proc/{process.pid}/clear_refs", "2")
    assert referenced() == (0, 1024)
    process.do("access", hex(anon), MIB, "w")
    system.write(f"/proc/{process.pid}/clear_refs", "3")
    assert referenced()[1] == 0
    system.write(f"/proc/{process.pid}/clear_refs", "1")
    assert referenced() == (0, 0)


def test_clear_refs_resets_the_peak(system):
    process = Process(system)
    address = process.mmap(4 * MIB)
    process.do("access", hex(address), 4 * MIB, "w")
    process.do("munmap", hex(address), 4 * MIB)
    peak = process.fields("status")["VmHWM"]
    assert peak > 3 * 1024
    system.write(f"/proc/{process.pid}/clear_refs", "5\n")
    after = process.fields("status")
    assert after["VmHWM"] == after["VmRSS"] < peak


def test_writes_are_tracked_where_the_kernel_has_it():
    system = System.boot(dataclasses.replace(Machine.load("two-node"), soft_dirty=True), seed=1)
    process = Process(system)
    address = process.mmap(8 * PAGE)
    process.do("access", hex(address), 4 * PAGE, "w")
    assert (entries(process, address, 8) & np.uint64(PM_SOFT_DIRTY)).all()
    assert " sd " in process.smaps(address)
    system.write(f"/proc/{process.pid}/clear_refs", "4")
    assert not (entries(process, address, 8) & np.uint64(PM_SOFT_DIRTY)).any()
    assert " sd " not in process.smaps(address)
    process.do("access", hex(address + PAGE), PAGE, "w")
    assert [bool(word & np.uint64(PM_SOFT_DIRTY)) for word in entries(process, address, 4)] == [
        False,
        True,
        False,
        False,
    ]


def test_what_is_in_swap_shows_its_slot_and_is_shared_by_a_child(system):
    process = Process(system)
    address = process.mmap(4 * PAGE)
    process.do("access", hex(address), 4 * PAGE, "w")
    process.do("madvise", hex(address), 4 * PAGE, "MADV_PAGEOUT")
    system.advance(1)
    found = entries(process, address, 4).tolist()
    assert {word & ~PFN for word in found} == {PM_SWAP}
    assert len({(word & PFN) >> 5 for word in found}) == 4
    areas = [area.number for area in system.kernel.swap.areas]
    assert {word & 31 for word in found} <= set(areas)
    assert entries(process, address, 4, Caller(1, 0)).tolist() == found
    figures = kib(process.smaps(address))
    assert (figures["Swap"], figures["SwapPss"], figures["Rss"]) == (16, 16, 0)
    child = process.fork()
    figures = kib(child.smaps(address))
    assert (figures["Swap"], figures["SwapPss"]) == (16, 8)
    assert process.fields("status")["VmSwap"] == child.fields("status")["VmSwap"] == 16


def test_i386_has_pagemap_and_no_numa_maps():
    system = System.boot("highmem", seed=1)
    process = Process(system)
    address = process.mmap(3 * PAGE)
    process.do("access", hex(address), PAGE, "w")
    first, *rest = entries(process, address, 3).tolist()
    assert (first & ~PFN, rest) == (PM_PRESENT | PM_MMAP_EXCLUSIVE, [0, 0])
    assert words(process, "kpagecount", first & PFN) == 1
    with pytest.raises(OSError, match="ENOENT"):
        process.read("numa_maps")
    auxv = system.read(f"/proc/{process.pid}/auxv")
    assert (len(auxv) % 8, auxv[-8:]) == (0, bytes(8))
