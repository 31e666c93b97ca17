"""vmalloc: areas, pages, lazy freeing, and what it says when it is used wrongly."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest

from kmemd.core.context import Context
from kmemd.core.pages import ALLOCATED
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.layout import Layout
from kmemd.mm.printk import Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.vmalloc import VM_ALLOC, VM_IOREMAP, Vmalloc
from kmemd.system import System

START = 0xFFFFC90000000000


class Pages:
    """A page allocator that hands out numbers and knows what is out."""

    def __init__(self, limit=100_000):
        self.limit, self.next, self.out, self.calls = limit, 1000, {}, []
        self.slow_paths, self.patience, self.suspended = 0, None, False

    def may_suspend(self, allowed, *, in_parts=False):
        self.suspended = False

    def alloc_pages_bulk(self, gfp, order, n, nid=-1):
        self.calls.append((gfp, order, n, nid))
        n = min(n, self.limit - sum(self.out.values()) >> order)
        got = self.next + (np.arange(n, dtype=np.int64) << order)
        self.next += n << order
        self.out.update(dict.fromkeys(got.tolist(), 1 << order))
        return got

    def free_pages_bulk(self, pfns, order=0):
        for pfn in pfns.tolist():
            assert self.out.pop(pfn) == 1 << order


class Slab:
    """A slab allocator whose objects are numbers."""

    def __init__(self):
        self.next, self.live = 0xFFFF888000001000, {}

    def kmalloc(self, size, gfp, nid):
        self.next += 4096
        self.live[self.next] = size
        return self.next

    def kfree(self, address):
        del self.live[address]


class Observer:
    """Remembers what it is told."""

    enabled = True

    def __init__(self):
        self.areas, self.stores = {}, {}

    def vmalloc(self, address, size, area, stack=None):
        self.areas[address] = (size, area, stack)

    def free(self, address):
        self.areas.pop(address, None)

    def store(self, address, value):
        self.stores[address] = value
        return True


class Machine:
    """A vmalloc area with its surroundings."""

    def __init__(self, arch="x86_64", limit=100_000, slab=True, nodes=1):
        self.context = Context()
        self.depot = StackDepot()
        self.printk = Printk(self.context)
        self.pages = Pages(limit)
        self.slab = Slab() if slab else None
        self.observer = Observer()
        half = 100_000 // nodes
        self.vmalloc = Vmalloc(
            Layout(arch, 0x80000),
            self.pages,
            [SimpleNamespace(nid=nid, start_pfn=nid * half, spanned=half, managed=half) for nid in range(nodes)],
            self.context,
            self.depot,
            self.printk,
            DumpStack(self.context, self.depot, self.printk, str, "6.1"),
            cpus=2,
            slab=self.slab,
            observer=self.observer,
            show_pointer=lambda address: f"{address:016x}",
            area_ns=1500,
            page_ns=90,
        )
        self.context.site = self.depot.save(("kernel_clone", "x64_sys_call"))

    def log(self):
        return [record.text for record in self.printk.since(0)]


def test_areas_follow_one_another_with_a_guard_page():
    machine = Machine()
    first, second = machine.vmalloc.vmalloc(20000), machine.vmalloc.vmalloc(1)
    assert (first, second) == (START, START + 6 * 4096)
    area = machine.vmalloc.find_vm_area(first)
    assert (area.size, area.nr_pages, area.flags) == (24576, 5, VM_ALLOC)
    assert area.caller == ("kernel_clone", "vmalloc")
    assert machine.vmalloc.nr_pages == 6
    assert machine.context.now == 2 * 1500 + 6 * 90
    machine.vmalloc.check()


def test_thread_stacks_are_aligned_and_small_areas_fill_the_gaps():
    machine = Machine()
    stacks = [machine.vmalloc.alloc(16384, align=16384).address for _ in range(3)]
    assert stacks == [START, START + 0x8000, START + 0x10000]
    assert machine.vmalloc.vmalloc(8192) == START + 0x5000
    machine.vmalloc.check()


def test_the_pages_come_zeroed_or_not_and_from_high_memory():
    machine = Machine()
    machine.vmalloc.vmalloc(4096, g.GFP_KERNEL | g.F.ZERO)
    gfp, order, count, nid = machine.pages.calls[-1]
    assert gfp == g.GFP_KERNEL | g.F.ZERO | g.F.HIGHMEM | g.F.NOWARN
    assert (order, count, nid) == (0, 1, -1)


def test_a_large_page_array_is_itself_an_area():
    machine = Machine()
    area = machine.vmalloc.alloc(513 * 4096)
    assert machine.vmalloc.find_vm_area(area.page_array).nr_pages == 2
    assert machine.vmalloc.nr_pages == 515
    small = machine.vmalloc.alloc(512 * 4096)
    assert machine.slab.live[small.page_array] == 4096
    machine.vmalloc.vfree(area.address)
    machine.vmalloc.vfree(small.address)
    assert machine.vmalloc.nr_pages == 0
    assert machine.pages.out == {}
    assert machine.slab.live == {}
    machine.vmalloc.check()


def test_vfree_is_lazy_and_neighbours_merge():
    machine = Machine()
    areas = [machine.vmalloc.vmalloc(4096) for _ in range(3)]
    machine.vmalloc.vfree(areas[0])
    machine.vmalloc.vfree(areas[1])
    assert list(machine.vmalloc.unpurged()) == [(START, START + 0x4000)]
    assert machine.vmalloc.nr_lazy == 4
    assert machine.vmalloc.vmalloc(4096) == START + 0x6000
    assert machine.vmalloc.purge()
    assert machine.vmalloc.vmalloc(4096) == START
    machine.vmalloc.check()


def test_a_purge_comes_when_more_than_lazy_max_pages_wait():
    machine = Machine()
    assert machine.vmalloc.lazy_max_pages == 2 * 8192
    areas = [machine.vmalloc.alloc(4096 * 1000).address for _ in range(17)]
    for address in areas[:16]:
        machine.vmalloc.vfree(address)
    assert machine.vmalloc.nr_lazy > 16000
    machine.vmalloc.vfree(areas[16])
    assert machine.vmalloc.nr_lazy <= 4
    machine.vmalloc.check()


def test_running_out_of_addresses_purges_first():
    machine = Machine("i386")
    address = machine.vmalloc.vmalloc(100 << 20)
    machine.vmalloc.vfree(address)
    again = machine.vmalloc.vmalloc(100 << 20)
    assert again == address
    with pytest.raises(KernelError) as caught:
        machine.vmalloc.vmalloc(100 << 20)
    assert caught.value.errno == errno.ENOMEM
    text = "vmap allocation for size 104861696 failed: use vmalloc=<size> to increase size"
    assert text in machine.log()
    machine.vmalloc.check()


def test_too_few_pages_give_everything_back():
    machine = Machine(limit=10)
    with pytest.raises(KernelError) as caught:
        machine.vmalloc.vmalloc(11 * 4096)
    assert caught.value.errno == errno.ENOMEM
    assert machine.pages.out == {}
    assert machine.vmalloc.nr_pages == 0
    assert machine.slab.live == {}
    machine.vmalloc.check()


def test_more_than_the_machine_has_and_nothing_at_all():
    machine = Machine()
    with pytest.raises(KernelError) as caught:
        machine.vmalloc.vmalloc(100_001 << 12)
    assert caught.value.errno == errno.ENOMEM
    assert "exceeds total pages" in machine.log()[0]
    with pytest.raises(KernelError) as caught:
        machine.vmalloc.vmalloc(0)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (START + 4096, "Trying to vfree() nonexistent vm area (ffffc90000001000)"),
        (START + 5, "Trying to vfree() bad address (ffffc90000000005)"),
    ],
)
def test_vfree_of_a_wrong_address_warns(address, text):
    machine = Machine()
    machine.vmalloc.vmalloc(4096)
    with pytest.raises(KernelError) as caught:
        machine.vmalloc.vfree(address)
    assert caught.value.errno == errno.EFAULT
    log = machine.log()
    assert log[:2] == ["------------[ cut here ]------------", text]
    assert log[2] == "WARNING: CPU: 0 PID: 0 at __vunmap"
    assert log[-1] == "---[ end trace 0000000000000000 ]---"
    machine.vmalloc.check()


def test_huge_mappings_are_pmd_sized_and_only_where_allowed():
    machine = Machine()
    plain = machine.vmalloc.alloc(4 << 20)
    huge = machine.vmalloc.alloc(3 << 20, huge=True)
    assert (plain.order, huge.order) == (0, 9)
    assert huge.nr_pages == 1024
    assert huge.address % (2 << 20) == 0
    assert machine.vmalloc.alloc(1 << 20, huge=True).order == 0
    machine.vmalloc.vfree(huge.address)
    machine.vmalloc.check()


def test_pages_are_counted_per_node_and_may_be_interleaved():
    machine = Machine(nodes=2)
    machine.pages.next = 49_998
    area = machine.vmalloc.alloc(4 * 4096)
    assert area.node_pages == {0: 2, 1: 2}
    machine.vmalloc.alloc(5 * 4096, interleave=(0, 1))
    assert [(count, nid) for _, _, count, nid in machine.pages.calls[-2:]] == [(3, 0), (2, 1)]


def test_ioremap_keeps_the_offset_and_aligns_to_its_size():
    machine = Machine()
    machine.vmalloc.vmalloc(4096)
    address = machine.vmalloc.ioremap(0xFED00010, 0x2FF0)
    assert address == START + 0x4010
    area = machine.vmalloc.find_vm_area(START + 0x4000)
    assert (area.size, area.phys, area.flags, area.nr_pages) == (0x4000, 0xFED00000, VM_IOREMAP, 0)
    machine.vmalloc.iounmap(address)
    assert machine.vmalloc.find_vm_area(START + 0x4000) is None
    assert machine.vmalloc.nr_pages == 1
    machine.vmalloc.check()


def test_percpu_areas_are_at_the_top_and_have_no_guard():
    machine = Machine()
    (address,) = machine.vmalloc.pcpu_get_vm_areas([0], [2 << 20], 2 << 20)
    assert address % (2 << 20) == 0
    assert address + (4 << 20) >= START + (32 << 40)
    assert machine.vmalloc.find_vm_area(address).size == 2 << 20
    machine.vmalloc.check()


def test_kmemleak_hears_of_area_descriptor_and_page_array():
    machine = Machine()
    area = machine.vmalloc.alloc(5000)
    size, struct, stack = machine.observer.areas[area.address]
    assert (size, struct) == (8192, area.struct)
    frames = ("__vmalloc_node_range", "__vmalloc_node", "vmalloc", "kernel_clone", "x64_sys_call")
    assert machine.depot.frames(stack) == frames
    assert machine.observer.stores == {area.struct + 8: area.address, area.struct + 32: area.page_array}
    assert machine.vmalloc.roots().tolist() == [area.struct]
    machine.vmalloc.vfree(area.address)
    assert machine.observer.areas == {}


@pytest.fixture
def booted():
    """A machine, and an area of 1000 pages on it by the name v, whose page array is an area, too."""
    system = System.boot(cmdline="nokaslr kmemleak=on")
    system.command("v = vmalloc 4000K")
    return system, system.kernel.vmalloc.find_vm_area(int(system.kernel.handles["v"].address))


def test_iounmap_of_a_vmalloc_area_loses_its_pages(booted):
    system, area = booted
    vmalloc, free = system.kernel.vmalloc, system.read("/proc/buddyinfo")
    before, array = vmalloc.nr_pages, area.page_array
    system.command(f"iounmap {area.address:#x}")
    assert vmalloc.find_vm_area(area.address) is None
    assert vmalloc.find_vm_area(array) is not None
    assert vmalloc.nr_pages == before
    assert system.read("/proc/buddyinfo") == free
    system.check()


def test_a_page_freed_behind_an_areas_back_does_not_keep_the_others(booted):
    system, area = booted
    before = system.kernel.vmalloc.nr_pages
    pfns = area.blocks.tolist()
    system.command(f"free_pages pfn={pfns[3]}")
    with pytest.raises(OSError, match=f"pfn {pfns[3]}"):
        system.command("vfree v")
    assert system.kernel.vmalloc.find_vm_area(area.address) is None
    assert system.kernel.vmalloc.nr_pages == before - 1000 - 2
    assert (system.kernel.pages.kind[pfns] != ALLOCATED).all()
    system.check()
