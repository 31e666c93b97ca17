"""kmap's window, the local slots, and what holders of atomic mappings must not do."""

import errno

import pytest

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.highmem import KM_MAX_IDX, Highmem
from kmemd.mm.layout import Layout
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import Printk
from kmemd.mm.sched import TaskTable
from kmemd.mm.stackdepot import StackDepot

PKMAP_BASE = 0xFF000000
FIRST_LOCAL = 0xFFFBB000
HIGH = 0x40000


class Machine:
    """A kernel's high memory, and the tasks that use it."""

    def __init__(self, arch="i386", pae=False, cpus=2):
        self.context = Context()
        self.printk = Printk(self.context)
        self.tasks = TaskTable(self.context, cpus)
        self.dump_stack = DumpStack(self.context, StackDepot(), self.printk, str, "6.1.192 #1")
        self.layout = Layout(arch, 0x80000)
        self.preempt = Preempt(self.context, self.tasks, self.printk, self.dump_stack)
        self.highmem = Highmem(self.layout, self.context, self.preempt, self.dump_stack, cpus=cpus, pae=pae)
        self.context.now = 10**9
        self.init = self.tasks.spawn("init")
        self.be(self.init)

    def be(self, task, cpu=0):
        self.context.switch(task.pid, task.tgid, task.comm, cpu)

    def log(self):
        return [record.text for record in self.printk.since(0)]

    def said(self, text):
        return sum(text in line for line in self.log())


@pytest.fixture
def machine():
    return Machine()


def refused(error, call, *args):
    with pytest.raises(KernelError) as caught:
        call(*args)
    assert caught.value.errno == error
    return caught.value.reason


# -- kmap -------------------------------------------------------------------------------------------------------


def test_a_low_page_has_its_address_for_good(machine):
    assert machine.highmem.kmap(0x123) == 0xC0123000
    machine.highmem.kunmap(0x123)
    assert machine.highmem.counts.sum() == 0


def test_slots_are_taken_behind_the_last_one(machine):
    assert [machine.highmem.kmap(HIGH + n) for n in range(3)] == [PKMAP_BASE + (n << 12) for n in (1, 2, 3)]
    machine.highmem.kunmap(HIGH)
    assert machine.highmem.kmap(HIGH + 9) == PKMAP_BASE + 0x4000  # a count of 1 is not free
    machine.highmem.check()


def test_a_page_that_is_mapped_keeps_its_slot_and_counts_its_users(machine):
    address = machine.highmem.kmap(HIGH)
    assert machine.highmem.kmap(HIGH) == address
    assert machine.highmem.counts[1] == 3
    machine.highmem.kunmap(HIGH)
    machine.highmem.kunmap(HIGH)
    assert machine.highmem.counts[1] == 1
    assert machine.highmem.page_address(HIGH) == address  # until the window is flushed
    assert machine.highmem.kmap(HIGH) == address


def test_the_window_is_flushed_where_the_search_wraps(machine):
    for n in range(1023):
        machine.highmem.kmap(HIGH + n)
        machine.highmem.kunmap(HIGH + n)
    assert machine.highmem.slots_to_flush() == 1023
    assert machine.highmem.flushes == 0
    assert machine.highmem.kmap(HIGH + 5000) == PKMAP_BASE
    assert machine.highmem.flushes == 1
    assert machine.highmem.slots_to_flush() == 0
    assert machine.highmem.to_pfn(PKMAP_BASE + 0x1000) == -1
    machine.highmem.check()


def test_a_wrap_with_nothing_to_unmap_flushes_no_tlb(machine):
    for n in range(1024):
        machine.highmem.kmap(HIGH + n)
    assert machine.highmem.flushes == 0


def test_pae_has_half_the_slots():
    machine = Machine(pae=True)
    for n in range(512):
        machine.highmem.kmap(HIGH + n)
    refused(errno.EAGAIN, machine.highmem.kmap, HIGH + 512)


def full(machine):
    for n in range(1024):
        machine.highmem.kmap(HIGH + n)


def test_a_task_without_a_slot_sleeps_until_one_is_unmapped(machine):
    full(machine)
    other, got = machine.tasks.spawn("dd", 1), []
    machine.be(other)
    assert "all 1024 slots" in refused(errno.EAGAIN, machine.highmem.kmap, HIGH + 2000, got.append)
    assert other.state == "D"
    assert machine.highmem.blocked(other)
    refused(errno.EBUSY, machine.highmem.kmap, HIGH + 2001)
    machine.highmem.check()
    machine.be(machine.init)
    machine.highmem.kunmap(HIGH + 6)
    assert got == [PKMAP_BASE + 0x7000]
    assert machine.highmem.to_pfn(got[0]) == HIGH + 2000
    assert other.state == "S"
    assert machine.highmem.flushes == 1
    machine.highmem.check()


def test_the_last_of_several_waiters_gets_the_slot_and_the_others_sleep_on(machine):
    full(machine)
    got = {}
    for name in ("a", "b"):
        machine.be(machine.tasks.spawn(name, 1))
        refused(errno.EAGAIN, machine.highmem.kmap, HIGH + 3000, lambda address, name=name: got.update({name: address}))
    machine.be(machine.init)
    machine.highmem.kunmap(HIGH)
    # both wanted the same page: the second one finds it mapped
    assert got == {"b": PKMAP_BASE + 0x1000, "a": PKMAP_BASE + 0x1000}
    assert machine.highmem.counts[1] == 3


def test_waiters_for_different_pages_get_slots_one_by_one(machine):
    full(machine)
    order = []
    for n in range(2):
        machine.be(machine.tasks.spawn("t", 1))
        refused(errno.EAGAIN, machine.highmem.kmap, HIGH + 3000 + n, lambda address, n=n: order.append(n))
    machine.be(machine.init)
    machine.highmem.kunmap(HIGH)
    assert order == [1]
    assert machine.highmem.sleeps == 3
    machine.highmem.check()
    machine.highmem.kunmap(HIGH + 1)
    assert order == [1, 0]


def test_a_waiter_that_ends_is_forgotten(machine):
    full(machine)
    task = machine.tasks.spawn("dd", 1)
    machine.be(task)
    refused(errno.EAGAIN, machine.highmem.kmap, HIGH + 2000)
    machine.tasks.exit(task.pid)
    machine.be(machine.init)
    machine.highmem.kunmap(HIGH)
    assert machine.highmem.slots_to_flush() == 1
    assert not machine.highmem.waiters()


@pytest.mark.parametrize(("times", "line"), [(0, 358), (1, 368)])
def test_unmapping_what_is_not_mapped_is_a_bug(machine, times, line):
    for _ in range(times):
        machine.highmem.kmap(HIGH)
        machine.highmem.kunmap(HIGH)
    refused(errno.EFAULT, machine.highmem.kunmap, HIGH)
    assert machine.said(f"kernel BUG at mm/highmem.c:{line}!") == 1
    machine.highmem.check()


def test_a_page_frame_must_exist(machine):
    for call in (machine.highmem.kmap, machine.highmem.kunmap, machine.highmem.kmap_atomic):
        refused(errno.EFAULT, call, 0x80000)


# -- local mappings ---------------------------------------------------------------------------------------------


def test_local_mappings_are_a_stack_in_the_fixmap_of_the_cpu(machine):
    assert machine.highmem.kmap_local_page(HIGH) == FIRST_LOCAL
    assert machine.highmem.kmap_local_page(HIGH + 1) == FIRST_LOCAL - 0x1000
    assert machine.highmem.to_pfn(FIRST_LOCAL - 0x1000 + 5) == HIGH + 1
    machine.highmem.kunmap_local(FIRST_LOCAL - 0x1000 + 0x123)
    assert machine.highmem.to_pfn(FIRST_LOCAL - 0x1000) == -1
    machine.highmem.kunmap_local(FIRST_LOCAL)
    assert machine.preempt.threads() == []
    assert machine.highmem.local_flushes == 2


def test_another_cpu_has_slots_of_its_own(machine):
    other = machine.tasks.spawn("dd", 1)
    machine.highmem.kmap_local_page(HIGH)
    machine.be(other, cpu=1)
    assert machine.highmem.kmap_local_page(HIGH) == FIRST_LOCAL - (KM_MAX_IDX << 12)
    machine.be(other, cpu=0)
    assert "on CPU 1" in refused(errno.EBUSY, machine.highmem.kmap_local_page, HIGH)
    machine.highmem.check()


def test_fifteen_local_mappings_are_all_there_is(machine):
    for n in range(KM_MAX_IDX - 1):
        machine.highmem.kmap_local_page(HIGH + n)
    refused(errno.EFAULT, machine.highmem.kmap_local_page, HIGH)
    assert machine.said("kernel BUG at mm/highmem.c:467!") == 1
    machine.highmem.check()


def test_out_of_order_warns_once_and_takes_the_mapping_on_top(machine):
    for n in range(3):
        machine.highmem.kmap_local_page(HIGH + n)
    machine.highmem.kunmap_local(FIRST_LOCAL)
    assert machine.said("at mm/highmem.c:610 kunmap_local_indexed") == 1
    assert machine.highmem.to_pfn(FIRST_LOCAL) == HIGH
    assert machine.highmem.to_pfn(FIRST_LOCAL - 0x2000) == -1
    machine.highmem.kunmap_local(FIRST_LOCAL - 0x2000)
    assert machine.said("------------[ cut here ]------------") == 1


def test_what_was_not_mapped_is_not_unmapped(machine):
    refused(errno.EINVAL, machine.highmem.kunmap_local, 0xC0123000)
    refused(errno.EINVAL, machine.highmem.kunmap_local, 0x1000)
    assert machine.said("at mm/highmem.c:604") == 1
    refused(errno.EFAULT, machine.highmem.kunmap_local, FIRST_LOCAL)
    assert machine.said("kernel BUG at mm/highmem.c:479!") == 1
    refused(errno.EINVAL, machine.highmem.kunmap_atomic, FIRST_LOCAL)


def test_x86_64_maps_nothing_and_keeps_the_rules():
    machine = Machine("x86_64")
    address = machine.highmem.kmap(HIGH)
    assert address == machine.layout.page_address(HIGH) == machine.highmem.kmap_atomic(HIGH)
    machine.preempt.might_alloc(g.GFP_KERNEL, "__alloc_pages")
    assert machine.said("BUG: sleeping function called") == 1
    machine.highmem.kunmap_atomic(address)
    assert machine.preempt.atomic == 0
    machine.highmem.check()


def test_mapped_pages_are_those_of_the_window_and_the_local_slots(machine):
    window = machine.highmem.kmap(HIGH)
    local = machine.highmem.kmap_atomic(HIGH)
    assert machine.highmem.mapped_pages() == [window, local]
    machine.highmem.kunmap_atomic(local)
    assert machine.highmem.mapped_pages() == [window]


# -- atomic sections --------------------------------------------------------------------------------------------


def test_a_sleeping_function_in_an_atomic_section_is_reported_once_a_second(machine):
    machine.highmem.kmap_atomic(HIGH)
    machine.highmem.kmap_atomic(HIGH + 1)
    for _ in range(2):
        machine.preempt.might_alloc(g.GFP_KERNEL, "__alloc_pages")
    start = machine.log().index("BUG: sleeping function called from invalid context at include/linux/sched/mm.h:274")
    assert machine.log()[start + 1 : start + 3] == [
        "in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 1, name: init",
        "preempt_count: 2, expected: 0",
    ]
    assert machine.said("BUG:") == 1
    machine.context.charge(10**9)
    machine.highmem.kmap(HIGH + 2)
    assert machine.said("invalid context at include/linux/highmem-internal.h:44") == 1
    assert machine.dump_stack.taint.text.endswith("W         ")


def test_a_request_that_does_not_wait_may_be_made(machine):
    machine.highmem.kmap_atomic(HIGH)
    machine.preempt.might_alloc(g.GFP_ATOMIC, "__alloc_pages")
    machine.preempt.might_alloc(g.GFP_NOWAIT, "__alloc_pages")
    assert machine.said("BUG:") == 0


def test_another_task_may_sleep(machine):
    machine.highmem.kmap_atomic(HIGH)
    machine.be(machine.tasks.spawn("dd", 1), cpu=1)
    machine.preempt.might_alloc(g.GFP_KERNEL, "__alloc_pages")
    assert machine.said("BUG:") == 0


def test_giving_up_the_cpu_is_reported_and_the_count_made_right(machine):
    address = machine.highmem.kmap_atomic(HIGH)
    machine.preempt.schedule("do_nanosleep")
    assert machine.said("BUG: scheduling while atomic: init/1/0x00000002") == 1
    machine.preempt.schedule("do_nanosleep")
    assert machine.said("BUG:") == 1
    machine.highmem.kunmap_atomic(address)  # one preempt_enable too many, as in Linux
    machine.preempt.schedule("do_nanosleep")
    assert machine.said("BUG: scheduling while atomic: init/1/0x00000000") == 1
    assert machine.preempt.threads() == []


def test_another_task_on_the_cpu_means_that_the_holder_was_switched_away(machine):
    machine.highmem.kmap_atomic(HIGH)
    other = machine.tasks.spawn("dd", 1)
    machine.be(other)
    assert machine.highmem.kmap_local_page(HIGH + 1) == FIRST_LOCAL
    assert machine.said("BUG: scheduling while atomic: init/1/0x00000002") == 1
    assert machine.highmem.to_pfn(FIRST_LOCAL) == HIGH + 1
    machine.highmem.kunmap_local(FIRST_LOCAL)
    machine.be(machine.init)
    machine.highmem.kunmap_atomic(FIRST_LOCAL)
    machine.highmem.check()


def test_what_a_task_held_goes_with_it(machine):
    task = machine.tasks.spawn("dd", 1)
    machine.be(task)
    machine.highmem.kmap_atomic(HIGH)
    machine.tasks.exit(task.pid)
    machine.be(machine.init)
    assert machine.preempt.threads() == []
    assert machine.preempt.atomic == 0
    assert machine.highmem.to_pfn(FIRST_LOCAL) == -1
