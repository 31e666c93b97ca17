"""The leak detector: what is a leak, when it is reported, what the file says and takes."""

import errno
import re

import numpy as np
import pytest

from kmemd.core.context import Context
from kmemd.core.leak import BLACK, GREY
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.kmemleak import Kmemleak
from kmemd.debug.leak_text import crc, hex_dump
from kmemd.errors import KernelError
from kmemd.mm.clock import Clock
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.layout import Layout
from kmemd.mm.leak_observer import FILL_POISON
from kmemd.mm.printk import Printk
from kmemd.mm.sched import TaskTable
from kmemd.mm.stackdepot import StackDepot

BASE = 0xFFFF888004425000
SECOND = 1_000_000_000


class Machine:
    """A detector with its surroundings."""

    def __init__(self, arch="x86_64", booted=True, **options):
        self.context = Context()
        self.context.switch(40, 40, "sh", 0)
        self.clock = Clock(self.context, 0)
        self.printk = Printk(self.context)
        self.depot = StackDepot()
        self.layout = Layout(arch, 0x80000)
        kallsyms = Kallsyms(self.layout, self.depot, no_hash_pointers=True)
        dump = DumpStack(self.context, self.depot, self.printk, kallsyms.frame_text, "6.1")
        self.roots, self.on_stack = [], []
        self.tasks = TaskTable(self.context, 1)
        self.tasks.spawn("init")
        self.leak = Kmemleak(
            self.context,
            self.clock,
            self.printk,
            kallsyms,
            self.layout,
            dump,
            roots=[lambda: np.array(self.roots, dtype=np.uint64)],
            stacks=lambda: np.array(self.on_stack, dtype=np.uint64),
            tasks=self.tasks,
            **options,
        )
        self.context.site = self.depot.save(("leaky_probe+0x2a[leaky_drv]", "vfs_write", "ksys_write"))
        if booted:
            self.leak.late_init()

    def scan(self, seconds=0):
        self.clock.advance(seconds * SECOND)
        self.leak.write("scan")
        return self.report()

    def report(self):
        return re.findall(r"unreferenced object 0x(\w+) \(size (\d+)\)", "".join(self.leak.report()))

    def log(self):
        return [record.text for record in self.printk.since(0)]


def test_an_old_object_without_a_pointer_to_it_is_a_leak():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    machine.leak.alloc(BASE + 64, 64)
    machine.roots.append(BASE + 64 + 13)
    assert machine.scan() == []
    assert machine.scan(5) == [(f"{BASE:016x}", "64")]
    assert machine.log()[-1] == "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"
    machine.scan(1)
    assert sum("suspected" in line for line in machine.log()) == 1
    machine.leak.free(BASE)
    assert machine.report() == []
    machine.leak.check()


def test_an_object_that_changed_since_the_last_scan_waits_for_the_next():
    machine = Machine()
    machine.leak.alloc(BASE, 64, fill=FILL_POISON)
    assert machine.scan(10) == []
    assert len(machine.scan()) == 1
    machine.leak.store(BASE + 8, BASE)
    assert machine.scan() == []
    assert len(machine.scan()) == 1
    machine.leak.memset(BASE, 0x41)
    assert machine.scan() == []


def test_what_only_a_leak_points_to_is_reported_too_once_the_leak_is():
    machine = Machine()
    machine.leak.alloc(BASE, 192)
    machine.leak.alloc(BASE + 192, 96)
    machine.leak.store(BASE + 64, BASE + 192)
    assert machine.scan(10) == []
    assert [size for _, size in machine.scan()] == ["192", "96"]


def test_the_report_has_the_captured_form():
    machine = Machine()
    machine.leak.alloc(BASE, 8, fill=FILL_POISON)
    machine.leak.alloc(BASE + 64, 40)
    machine.leak.store(BASE + 72, 0xFFFF888004425110)
    machine.scan(10)
    machine.scan()
    lines = "".join(machine.leak.report()).splitlines()
    assert lines[0] == f"unreferenced object 0x{BASE:016x} (size 8):"
    assert lines[1] == '  comm "sh", pid 40, jiffies 4294892296'
    assert lines[2] == "  hex dump (first 8 bytes):"
    assert lines[3] == "    6b 6b 6b 6b 6b 6b 6b a5                          kkkkkkk."
    assert lines[4] == "  backtrace:"
    assert re.fullmatch(r"    \[<ffffffffc000002a>\] leaky_probe\+0x2a/0x\w+ \[leaky_drv\]", lines[5])
    assert lines[10] == "  hex dump (first 32 bytes):"
    assert lines[11] == "    00 00 00 00 00 00 00 00 10 51 42 04 80 88 ff ff  .........QB....."


def test_grey_objects_are_scanned_and_never_reported():
    machine = Machine()
    for index in range(4):
        machine.leak.alloc(BASE + 64 * index, 64)
    machine.leak.not_leak(BASE)
    machine.leak.store(BASE, BASE + 64)
    machine.leak.ignore(BASE + 128)
    machine.leak.store(BASE + 128, BASE + 192)
    machine.scan(10)
    assert machine.scan() == [(f"{BASE + 192:016x}", "64")]


def test_clear_greys_what_was_reported_and_later_leaks_still_show():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    assert machine.scan(10)
    machine.leak.write("clear\n")
    assert machine.report() == machine.scan(10) == []
    machine.leak.alloc(BASE + 64, 64)
    assert len(machine.scan(10)) == 1


def test_vmalloc_needs_a_reference_besides_its_descriptor():
    machine = Machine()
    area, address = BASE, 0xFFFFC90000365000
    machine.leak.alloc(area, 64)
    machine.leak.store(area + 8, address)
    machine.leak.vmalloc(address, 20480, area)
    machine.roots.append(area)
    machine.scan(10)
    assert machine.scan() == [(f"{address:016x}", "20480")]
    machine.roots.append(area)
    assert machine.scan() == []


def test_objects_of_the_kernel_itself_are_grey():
    machine = Machine(booted=False)
    machine.leak.alloc(BASE, 64)
    machine.leak.late_init()
    with machine.leak.kernel_data():
        machine.leak.alloc(BASE + 64, 64)
    machine.leak.alloc(BASE + 128, 64)
    machine.scan(10)
    assert machine.scan() == [(f"{BASE + 128:016x}", "64")]
    assert "kmemleak: Kernel memory leak detector initialized (mem pool available: 15747)" in machine.log()


def test_stacks_count_while_they_are_scanned():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    machine.on_stack.append(BASE)
    assert machine.scan(10) == []
    machine.leak.write("stack=off")
    assert len(machine.scan()) == 1
    machine.leak.write("stack=on")
    assert machine.scan() == []


def test_free_part_leaves_both_ends():
    machine = Machine()
    machine.leak.alloc(BASE, 4096)
    machine.leak.free_part(BASE + 1024, 1024)
    assert machine.scan(10) == [(f"{BASE:016x}", "1024"), (f"{BASE + 2048:016x}", "2048")]


def many(machine, count=40_000):
    """Objects that nothing points to but each other, in one chain from the root."""
    addresses = BASE + 64 * np.arange(count, dtype=np.uint64)
    machine.leak.alloc_bulk(addresses, 64)
    machine.leak.store_bulk(addresses[:-1], 8, addresses[1:])
    machine.roots.append(BASE)
    return addresses


def test_a_scan_lets_others_in_and_finds_the_same():
    machine = Machine()
    addresses = many(machine)
    machine.leak.alloc(BASE - 64, 64)
    machine.clock.advance(10 * SECOND)
    steps = machine.leak.write_steps("scan")
    slices = sum(1 for _ in steps)
    assert 3 <= slices <= 40
    assert machine.report() == [(f"{BASE - 64:016x}", "64")]
    machine.leak.store(int(addresses[99]) + 8, 0)
    machine.leak.scan()
    assert len(machine.report()) == 1
    machine.leak.scan()
    assert len(machine.report()) == 1 + 40_000 - 100


def test_the_world_goes_on_during_a_scan_of_the_thread():
    machine = Machine()
    addresses = many(machine)
    machine.clock.advance(10 * SECOND)
    machine.leak.write("scan=on")
    machine.clock.run_due()
    assert machine.clock.next_timer_ns == machine.clock.now + 1
    machine.leak.free_bulk(addresses[::2])
    machine.leak.alloc_bulk(addresses[::4], 32)
    fresh = addresses[-1] + np.uint64(64) * np.arange(1, 9, dtype=np.uint64)
    machine.leak.alloc_bulk(fresh, 64)
    machine.leak.write("scan")
    assert not set(machine.report()) & {(f"{int(address):016x}", "64") for address in fresh}
    machine.leak.check()
    machine.clock.advance(1000)
    assert machine.clock.next_timer_ns > machine.clock.now + 500 * SECOND
    machine.leak.check()


def test_a_scan_that_was_given_up_is_ended_by_the_next():
    machine = Machine()
    many(machine)
    machine.clock.advance(10 * SECOND)
    steps = machine.leak.write_steps("scan")
    next(steps)
    del steps
    assert machine.leak.scan() == 0
    machine.leak.write("off")
    machine.leak.check()


def test_the_thread_scans_at_its_times_only():
    machine = Machine(auto_scan=True)
    machine.leak.alloc(BASE, 64)
    machine.clock.advance(59 * SECOND)
    assert machine.report() == []
    machine.clock.advance(2 * SECOND)
    assert len(machine.report()) == 1
    assert [task.comm for task in machine.tasks] == ["init", "kmemleak"]
    machine.leak.alloc(BASE + 64, 64)
    machine.clock.advance(598 * SECOND)
    assert len(machine.report()) == 1
    machine.clock.advance(2 * SECOND)
    assert len(machine.report()) == 2
    machine.leak.write("scan=off")
    machine.leak.write("scan=0")
    machine.leak.alloc(BASE + 128, 64)
    machine.clock.advance(2000 * SECOND)
    assert len(machine.report()) == 2
    machine.leak.write("scan=0x10\n")
    machine.clock.advance(16 * SECOND)
    assert len(machine.report()) == 3
    assert [line for line in machine.log() if "thread" in line] == [
        "kmemleak: Automatic memory scanning thread started",
        "kmemleak: Automatic memory scanning thread ended",
        "kmemleak: Automatic memory scanning thread started",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("on", errno.EINVAL),
        ("", errno.EINVAL),
        ("0", errno.EINVAL),
        ("scan=abc", errno.EINVAL),
        ("scan=-1", errno.EINVAL),
        ("scan=4294967296", errno.ERANGE),
        ("dump=zz", errno.EINVAL),
        ("dump=0xffff888000000000", errno.EINVAL),
        ("dump=99999999999999999999", errno.EINVAL),
        ("stack=maybe", errno.EINVAL),
    ],
)
def test_bad_commands(text, number):
    machine = Machine()
    with pytest.raises(KernelError) as caught:
        machine.leak.write(text)
    assert caught.value.errno == number


def test_off_is_for_good_and_clear_still_works():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    machine.scan(10)
    machine.leak.write("off")
    assert machine.log()[-1].endswith('Reclaim the memory with "echo clear > /sys/kernel/debug/kmemleak".')
    for text in ("on", "scan", "stack=on", "scan=on", "dump=zz", "bogus", ""):
        with pytest.raises(KernelError) as caught:
            machine.leak.write(text)
        assert caught.value.errno == errno.EPERM
    assert len(machine.report()) == 1
    machine.leak.alloc(BASE + 64, 64)
    machine.leak.write("clear")
    assert machine.report() == []
    assert machine.leak.table.live == 0
    machine.leak.check()


def test_booted_off():
    machine = Machine(enabled=False)
    machine.leak.alloc(BASE, 64)
    assert machine.leak.table.live == 0
    assert machine.log() == ["kmemleak: Kernel memory leak detector disabled"]
    machine.leak.check()


def test_dump_says_all():
    machine = Machine()
    machine.leak.alloc(BASE, 64, fill=FILL_POISON)
    machine.scan(10)
    machine.leak.write(f"dump={BASE:#x}")
    log = machine.log()
    start = log.index(f"kmemleak: Object 0x{BASE:016x} (size 64):")
    assert log[start + 1] == 'kmemleak:   comm "sh", pid 40, jiffies 4294892296'
    assert log[start + 2 : start + 5] == [
        "kmemleak:   min_count = 1",
        "kmemleak:   count = 1",
        "kmemleak:   flags = 0x1",
    ]
    assert log[start + 6] == "kmemleak:   backtrace:"
    assert log[start + 7].startswith(" leaky_probe+0x2a/0x")
    with pytest.raises(KernelError):
        machine.leak.write(f"dump={BASE + 1:#x}")
    assert f"kmemleak: Found object by alias at 0x{BASE + 1:016x}" in machine.log()
    assert machine.log()[-1] == f"kmemleak: Unknown object at 0x{BASE + 1:016x}"


def test_an_overlap_ends_the_detector():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    machine.leak.alloc(BASE, 64)
    assert not machine.leak.enabled
    assert f"kmemleak: Cannot insert 0x{BASE:x} into the object search tree (overlaps existing)" in machine.log()
    machine.leak.check()


def test_i386_words_are_four_bytes():
    machine = Machine("i386")
    machine.leak.alloc(0xC1000000, 8)
    machine.leak.alloc(0xC1000040, 16)
    machine.leak.store(0xC1000004, 0xC1000048)
    machine.roots.append(0xC1000000)
    assert machine.scan(10) == []
    assert not machine.leak.store(0xC1000006, 1)
    machine.roots.clear()
    machine.scan()
    assert [line[0] for line in machine.scan()] == ["c1000000", "c1000040"]


def test_checksum_and_hex_dump_are_the_kernels():
    assert crc(bytes(100)) == 0
    assert crc(b"123456789") == 0x2DFD2D88
    assert hex_dump(bytes(range(0x30, 0x40))).splitlines()[1] == (
        "    30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789:;<=>?"
    )


def test_a_hundred_thousand_leaks_are_streamed():
    machine = Machine()
    addresses = (np.arange(100_000, dtype=np.uint64) * np.uint64(64)) + np.uint64(BASE)
    machine.leak.alloc_bulk(addresses, 64)
    machine.clock.advance(10 * SECOND)
    machine.leak.scan()
    pieces = machine.leak.report()
    assert next(pieces).count("unreferenced object") == 512
    assert sum(piece.count("unreferenced object") for piece in pieces) == 100_000 - 512
    machine.leak.free_bulk(addresses)
    assert machine.leak.table.live == 0


def test_free_part_up_to_the_end_leaves_nothing_behind_it():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    machine.leak.free_part(BASE + 32, 32)
    assert machine.leak.table.live == 1
    assert machine.leak.table.find(BASE + 64) < 0
    machine.leak.check()


def test_off_after_clear_keeps_nothing():
    machine = Machine()
    machine.leak.alloc(BASE, 64)
    assert len(machine.scan(5)) == 1
    machine.leak.write("clear")
    machine.leak.write("off")
    assert machine.leak.table.live == 0
    assert not any("without freeing internal data" in line for line in machine.log())


def test_kernel_data_that_is_ignored_stays_so():
    machine = Machine()
    with machine.leak.kernel_data():
        machine.leak.alloc(BASE, 64, min_count=BLACK)
        machine.leak.alloc(BASE + 64, 64)
    colours = [int(machine.leak.table.min_count[machine.leak.table.find(BASE + at)]) for at in (0, 64)]
    assert colours == [BLACK, GREY]
