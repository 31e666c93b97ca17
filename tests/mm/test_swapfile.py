"""mm.swapfile: areas by priority, counts of slots, what CPUs keep at hand."""

from __future__ import annotations

import errno
from random import Random

import numpy as np
import pytest

from kmemd.core.context import Context
from kmemd.core.pte import swap_entry, swap_offset, swap_type
from kmemd.errors import KernelError
from kmemd.mm.printk import Printk
from kmemd.mm.swapfile import SwapFiles, entries_of, slots_of

MIB = 1 << 20
ONE = 1 << 50


def files(cpus: int = 1) -> SwapFiles:
    context = Context()
    return SwapFiles(context, Printk(context), Random(1), cpus=cpus, long_bits=64)


def test_entries_and_slots_are_the_same_numbers() -> None:
    slots = np.array([1, 77, 5 * ONE | 123456, 22 * ONE | 1])
    entries = entries_of(slots)
    assert slots_of(entries).tolist() == slots.tolist()
    assert int(entries[2]) == swap_entry(5, 123456)
    assert (swap_type(int(entries[2])), swap_offset(int(entries[2]))) == (5, 123456)


def test_automatic_priorities_go_down_and_move_up() -> None:
    swap = files()
    areas = [swap.swapon(f"/dev/vd{letter}", "partition", MIB) for letter in "bcd"]
    assert [area.priority for area in areas] == [-2, -3, -4]
    swap.begin_swapoff(areas[0])
    swap.end_swapoff(areas[0])
    assert [area.priority for area in swap.areas] == [-2, -3]
    again = swap.swapon("/dev/vdb", "partition", MIB)
    assert (again.number, again.priority) == (0, -4)
    swap.check()


def test_the_highest_priority_is_used_first_and_equal_ones_in_turn() -> None:
    swap = files()
    swap.swapon("/dev/low", "partition", MIB, 1)
    swap.swapon("/dev/a", "partition", MIB, 5)
    swap.swapon("/dev/b", "partition", MIB, 5)
    used = [swap.get_swap_pages(64)[0] // ONE for _ in range(6)]
    assert used == [1, 2, 1, 2, 1, 2]
    while swap.get_swap_pages(64)[0] // ONE != 0:
        pass
    assert [area.inuse_pages for area in swap.areas] == [64, 255, 255]
    swap.check()


def test_the_log_line_of_an_area() -> None:
    context = Context()
    printk = Printk(context)
    swap = SwapFiles(context, printk, Random(1), cpus=1, long_bits=64)
    swap.swapon("/dev/vdb", "partition", 1 << 30)
    swap.swapon("/dev/nvme0n1", "partition", MIB, 7)
    lines = [record.text for record in printk.since(0)]
    assert lines[0] == "Adding 1048572k swap on /dev/vdb.  Priority:-2 extents:1 across:1048572k FS"
    assert lines[1] == "Adding 1020k swap on /dev/nvme0n1.  Priority:7 extents:1 across:1020k SSFS"


@pytest.mark.parametrize(
    ("path", "discard", "flags", "told"),
    [
        ("/dev/nvme0n1", "both", "SSDscFS", [(1, 255)]),
        ("/dev/nvme0n1", "once", "SSDsFS", [(1, 255)]),
        ("/dev/nvme0n1", "pages", "SSDcFS", []),
        ("/dev/vdb", "both", "DscFS", [(1, 255)]),
        ("/dev/ram1", "both", "SSFS", []),
    ],
)
def test_the_log_line_tells_what_is_discarded(path: str, discard: str, flags: str, told: list[tuple[int, int]]) -> None:
    context = Context()
    printk = Printk(context)
    swap = SwapFiles(context, printk, Random(1), cpus=1, long_bits=64)
    found: list[tuple[int, int]] = []
    swap.on_discard = lambda _, start, pages: found.append((start, pages))
    swap.swapon(path, "partition", MIB, discard=discard)
    assert printk.since(0)[0].text.rpartition(" ")[2] == flags
    assert found == told


def test_a_file_is_like_the_disk_that_it_is_on_but_has_no_huge_pages() -> None:
    swap = files()
    area = swap.swapon("/mnt/swap", "file", 64 * MIB, disk="nvme0n1")
    assert area.solid_state
    assert not area.synchronous
    assert swap.alloc_huge(512) == -1
    swap.swapon("/dev/nvme1n1", "partition", 64 * MIB, 5)
    assert swap.alloc_huge(512) >> 50 == 1
    assert swap.nr_swap_pages == sum(area.pages for area in swap.areas) - 512


def test_each_node_takes_equal_areas_in_turn() -> None:
    context = Context()
    swap = SwapFiles(context, Printk(context), Random(1), cpus=2, long_bits=64, cpu_nodes={0: 0, 1: 1})
    for name in "ab":
        swap.swapon(f"/dev/{name}", "partition", MIB, 5)
    used = []
    for cpu in (0, 0, 1, 1, 0):
        context.cpu = cpu
        used.append(swap.get_swap_pages(1)[0] // ONE)
    assert used == [0, 1, 0, 1, 0]
    swap.check()


@pytest.mark.parametrize(
    ("path", "size", "priority", "number"),
    [
        ("/dev/vdb", MIB, -1, errno.EBUSY),
        ("/dev/vdc", 4096, -1, errno.EINVAL),
        ("/dev/vdc", MIB, 40000, errno.EINVAL),
    ],
)
def test_what_cannot_be_turned_on(path: str, size: int, priority: int, number: int) -> None:
    swap = files()
    swap.swapon("/dev/vdb", "partition", MIB)
    with pytest.raises(KernelError) as error:
        swap.swapon(path, "partition", size, priority)
    assert error.value.errno == number
    assert len(swap.areas) == 1


def test_there_are_23_areas_at_most() -> None:
    swap = files()
    for number in range(23):
        swap.swapon(f"/dev/x{number}", "partition", MIB)
    with pytest.raises(KernelError) as error:
        swap.swapon("/dev/y", "partition", MIB)
    assert error.value.errno == errno.EPERM


def test_a_slot_is_free_with_its_last_user() -> None:
    swap = files()
    swap.swapon("/dev/vdb", "partition", MIB)
    slots = swap.alloc(2)
    swap.set_cache(slots, np.array([100, 200]))
    swap.duplicate(slots)
    swap.duplicate(slots[:1])
    assert swap.counts(slots).tolist() == [2, 1]
    assert swap.free(slots).tolist() == slots[1:].tolist(), "its page alone holds the second slot now"
    swap.drop_cache(slots)
    assert swap.counts(slots).tolist() == [1, 0]
    swap.free(slots[:1])
    assert swap.areas[0].inuse_pages == 0
    assert swap.free_pages == 255
    swap.check()


def test_a_slot_with_64_users_needs_no_continuation() -> None:
    swap = files()
    swap.swapon("/dev/vdb", "partition", MIB)
    slots = swap.alloc(1)
    swap.duplicate(np.repeat(slots, 5000))
    swap.drop_cache(slots)
    for _ in range(4999):
        swap.free(slots)
    assert swap.counts(slots)[0] == 1
    swap.check()


def test_cpus_take_and_give_back_64_slots_at_once() -> None:
    swap = files(cpus=1)
    area = swap.swapon("/dev/nvme0n1", "partition", 64 * MIB)
    slots = swap.alloc(1)
    assert area.inuse_pages == 64, "63 of them are the CPU's"
    swap.alloc(63)
    assert area.inuse_pages == 64
    swap.drop_cache(slots)
    assert area.inuse_pages == 64, "it waits for 64 more to be freed"
    more = swap.alloc(100)
    swap.drop_cache(more)
    assert area.inuse_pages == 64 + 128 - 64
    swap.slots.disable()
    assert area.inuse_pages == 63
    swap.check()


def test_little_swap_is_not_hoarded() -> None:
    swap = files(cpus=4)
    area = swap.swapon("/dev/vdb", "partition", 4 * MIB)
    assert len(swap.alloc(10)) == 10
    assert area.inuse_pages == 10
    assert len(swap.alloc(5000)) == 1013
    assert swap.alloc(1).tolist() == []
    swap.check()


def test_swap_is_full_when_more_than_half_is_used() -> None:
    swap = files(cpus=4)
    swap.swapon("/dev/vdb", "partition", 4 * MIB)
    swap.alloc(511)
    assert not swap.full
    swap.alloc(1)
    assert swap.full
