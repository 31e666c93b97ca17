"""Lines that name memory which is not theirs: the kernel's own report, an error, and everything goes on."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd import System
from kmemd.core.pages import PG_LRU, PG_SLAB


@pytest.fixture
def system() -> System:
    return System.boot(seed=1, cmdline="page_owner=on")


def refused(system: System, line: str, error: int, says: str) -> None:
    start = system.kernel.printk.next_seq
    with pytest.raises(OSError) as caught:  # noqa: PT011
        system.command(line)
    assert caught.value.errno == error
    assert says in "\n".join(record.text for record in system.kernel.printk.since(start))
    system.check()


@pytest.mark.parametrize(("machine", "word"), [("default", 8), ("highmem", 4)])
def test_the_guard_page_behind_a_vmalloc_area_faults(machine: str, word: int) -> None:
    system = System.boot(machine=machine)
    system.command("a = vmalloc 8K")
    system.command("b = vmalloc 8K")
    system.command(f"WRITE_ONCE a+{8192 - word} b")
    address = system.kernel.handles["a"].address + 8192
    fault = f"BUG: unable to handle page fault for address: {address:0{2 * word}x}"
    refused(system, "WRITE_ONCE a+8192 b", errno.EFAULT, fault)
    refused(system, f"WRITE_ONCE {address + 4096 - word:#x} b", errno.EFAULT, "#PF: supervisor write access")
    start = system.kernel.handles["b"].address
    system.command("vfree b")
    refused(system, f"WRITE_ONCE {start:#x} a", errno.EFAULT, "Oops: 0002 [#")


@pytest.mark.parametrize("flag", [PG_SLAB, PG_LRU])
def test_pages_of_a_slab_or_an_lru_list_are_not_freed(system: System, flag: int) -> None:
    pages = system.kernel.pages
    pfn = int(np.flatnonzero(pages.flags[: 1 << 16] >> flag & 1)[0])
    refused(system, f"free_pages pfn={pfn} order={pages.order[pfn]}", errno.EFAULT, "BUG: Bad page state")
    system.command("kmalloc 64 n=1000")
    system.check()


def test_a_free_huge_page_is_not_freed(system: System) -> None:
    system.write("/proc/sys/vm/nr_hugepages", "2")
    pfn = system.kernel.hugetlb.default.free_lists[0][0]
    refused(system, f"free_pages pfn={pfn} order=9", errno.EFAULT, "nobody has a reference")
    assert b"HugePages_Free:        2\n" in system.read("/proc/meminfo")


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("kfree 0xffff888000001000", errno.EINVAL, "free_large_kmalloc"),
        ("kfree 0xffffffffffffff00", errno.EINVAL, "free_large_kmalloc"),
        ("kfree 0xffffc90000001000", errno.EFAULT, "BUG: unable to handle page fault for address: ffffeb0200000048"),
        ("kfree 0x1000", errno.EFAULT, "BUG: unable to handle page fault for address: ffffebde00000048"),
        ("kfree 0x4141414141414141", errno.EFAULT, "general protection fault, probably for non-canonical address"),
        ("kmem_cache_free kmalloc-64 k", errno.EINVAL, "Wrong slab cache. kmalloc-64 but object is from kmalloc-192"),
        ("kfree k+8", errno.EINVAL, "k"),
        ("vfree k", errno.EINVAL, "k"),
    ],
)
def test_kfree_of_a_wrong_pointer(line: str, error: int, says: str) -> None:
    system = System.boot(seed=1, cmdline="nokaslr")
    system.command("k = kmalloc 192")
    refused(system, line, error, says)
    assert system.command("kfree k")


def test_kfree_of_nowhere_is_an_oops_in_kfree_which_ends_its_task() -> None:
    """What it reads there is the page's struct page, for 64 bytes each, from its second word."""
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    pid = system.command("spawn w image=tiny").split("pid=")[1].split()[0]
    refused(system, f"kfree 0xffffc90000001000 pid={pid} by=bad_free+0x9[drv]", errno.EFAULT, "RIP: 0010:kfree+0x")
    said = [line for record in system.kernel.printk.since(0) for line in record.text.splitlines()]
    assert "#PF: supervisor read access in kernel mode" in said
    assert "CR2: ffffeb0200000048" in said
    trace = said[said.index(" <TASK>") :]
    assert trace[1].startswith(" bad_free+0x9/")
    assert f"note: w[{pid}] exited with irqs disabled" in said
    assert not system.kernel.printk.since(0)[-1].text.startswith("CR2")
    with pytest.raises(OSError):  # noqa: PT011
        system.read(f"/proc/{pid}/status")


def test_compound_pages_show_their_head_in_page_owner(system: System) -> None:
    system.command("p = alloc_pages order=3 gfp=GFP_KERNEL|__GFP_COMP")
    system.command("q = alloc_pages order=3")
    text = system.read("/sys/kernel/debug/page_owner").decode()
    for name, head in (("p", True), ("q", False)):
        (record,) = [part for part in text.split("\n\n") if f"\nPFN {system.kernel.handles[name].pfn} " in part]
        assert ("(head|node=" in record) is head
    assert "(slab|head|node=" in text
