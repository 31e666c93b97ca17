"""Verbs of high memory, and what the rest of the model makes of its addresses."""

from __future__ import annotations

import errno
import re

import pytest

from kmemd import System


@pytest.fixture
def system() -> System:
    return System.boot(machine="highmem", seed=1)


def words(reply: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in reply.split())


def refused(system: System, line: str, error: int) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        system.command(line)
    assert caught.value.errno == error
    system.check()
    return str(caught.value)


def log(system: System, text: str) -> int:
    return sum(text in record.text for record in system.kernel.printk.since(0))


def test_a_mapped_page_is_written_and_an_unmapped_one_faults(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER n=3")
    system.command("m = kmap p")
    address = int(words(system.command("WRITE_ONCE m[1]+4092 0"))["addr"], 16)
    assert address == 0xFF002FFC
    refused(system, f"WRITE_ONCE {0xFF004000:#x} 0", errno.EFAULT)
    assert log(system, "unable to handle page fault for address: ff004000") == 1
    system.command("kunmap m")
    assert "m" not in system.kernel.handles
    assert b"in_use=0 need_flush=3" in system.read("/kmemd/highmem")
    system.check()


def test_a_page_inside_a_block_and_one_by_number(system: System) -> None:
    system.command("p = alloc_pages order=2 gfp=GFP_HIGHUSER")
    first = system.kernel.handles["p"].pfn
    assert words(system.command("kmap p+8192"))["pfn"] == str(first + 2)
    assert words(system.command(f"kmap pfn={first + 1}"))["addr"] == "0xff002000"
    system.command("kunmap 0xff002000")
    refused(system, "kmap p+16384", errno.EINVAL)
    refused(system, "kmap", errno.EINVAL)
    refused(system, "kmap 0xff003000", errno.EFAULT)
    system.command("c = kmem_cache_create fun 64")
    system.command("o = kmalloc 64")
    refused(system, "kmap o", errno.EINVAL)


def test_a_full_window_puts_the_task_to_sleep_and_a_kunmap_ends_it(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER n=1030")
    system.command("t = spawn dd")
    pid = system.kernel.handles["t"].pid
    said = refused(system, "m = kmap p pid=t", errno.EAGAIN)
    assert "mapped 1024 of 1030, kept as m" in said
    assert system.read(f"/proc/{pid}/stat").split()[2] == b"D"
    assert b"procs_blocked 1\n" in system.read("/proc/stat")
    assert f"waiter pid={pid} comm=dd".encode() in system.read("/kmemd/highmem")
    refused(system, "kmap p[1029] pid=t", errno.EBUSY)
    system.command("kunmap p[7]")
    assert len(system.kernel.handles["m"]) == 1025
    assert system.read(f"/proc/{pid}/stat").split()[2] == b"S"
    assert int(system.kernel.handles["m"].addresses[-1]) == 0xFF008000
    system.check()


def test_items_that_are_unmapped_leave_the_handle(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER n=10")
    system.command("m = kmap p")
    assert words(system.command("kunmap m every=2"))["n"] == "5"
    assert len(system.kernel.handles["m"]) == 5
    refused(system, "kunmap p", errno.EFAULT)  # the first was unmapped already
    assert log(system, "kernel BUG at mm/highmem.c:368!") == 1
    system.command("kunmap m")
    system.check()


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ("alloc_pages", "__alloc_pages"),
        ("alloc_pages n=10", "__alloc_pages"),
        ("kmalloc 64", "__kmem_cache_alloc_node"),
        ("vmalloc 8K", "__kmem_cache_alloc_node"),
        ("kmap pfn=5", "kmap"),
        ("vfree v", "vfree"),
        ("dma_alloc_coherent 0000:00:03.0 4K", "__alloc_pages"),
    ],
)
@pytest.mark.parametrize("machine", ["highmem", "default"])
def test_what_may_sleep_is_reported_in_an_atomic_section(machine: str, line: str, frame: str) -> None:
    system = System.boot(machine=machine, seed=1)
    system.command("v = vmalloc 8K")
    system.command("p = alloc_pages gfp=GFP_HIGHUSER")
    system.command("a = kmap_atomic p")
    system.command(line)
    records = [record.text for record in system.kernel.printk.since(0)]
    start = next(place for place, text in enumerate(records) if text.startswith("BUG: sleeping function"))
    assert re.fullmatch(r"in_atomic\(\): 1, irqs_disabled\(\): 0, non_block: 0, pid: \d+, name: sh", records[start + 1])
    assert records[start + 2] == "preempt_count: 1, expected: 0"
    trace = [text.strip().split("+")[0] for text in records[start + 3 : start + 12]]
    assert trace[trace.index("__might_resched") + 1] == frame
    system.command("kunmap_atomic a")
    system.command("sleep 2")
    system.command(line.replace("vfree v", "vmalloc 4K"))
    assert log(system, "BUG: ") == 1
    assert system.read("/proc/sys/kernel/tainted") == b"512\n"
    system.check()


def test_a_request_that_does_not_wait_is_not_reported(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER")
    system.command("a = kmap_atomic p")
    system.command("alloc_pages gfp=GFP_ATOMIC")
    system.command("kmalloc 64 gfp=GFP_NOWAIT")
    system.command("kmalloc 64 comm=other pid=1 cpu=1")
    assert log(system, "BUG: ") == 0


def test_sleeping_with_an_atomic_mapping_is_reported(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER")
    system.command("a = kmap_atomic p")
    system.command("sleep 1ms")
    pid = system.kernel.context.pid
    assert log(system, f"BUG: scheduling while atomic: sh/{pid}/0x00000002") == 1
    assert words(system.command("kunmap_atomic a"))["preempt_count"] == str(0x7FFFFFFF)
    system.command("sleep 1ms")
    assert log(system, f"BUG: scheduling while atomic: sh/{pid}/0x00000000") == 1
    system.command("kmalloc 64")
    assert log(system, "BUG: ") == 2
    system.check()


def test_local_mappings_are_undone_by_handle_or_address(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER n=2")
    system.command("a = kmap_local_page p[0]")
    address = words(system.command("kmap_local_page p[1]"))["addr"]
    system.command("WRITE_ONCE a+4 a")
    assert b"mapped=2" in system.read("/kmemd/highmem")
    system.command(f"kunmap_local {address}")
    system.command("kunmap_local a")
    refused(system, "kunmap_local a", errno.ENOENT)
    refused(system, "kunmap_local p", errno.EINVAL)
    refused(system, "kunmap_atomic 0xfffbb000", errno.EINVAL)


def test_a_task_stays_on_the_cpu_of_its_mappings(system: System) -> None:
    system.command("p = alloc_pages gfp=GFP_HIGHUSER")
    system.command("a = kmap_local_page p cpu=1")
    assert system.kernel.handles["a"].address == 0xFFFBB000 - 16 * 4096
    refused(system, "kunmap_local a cpu=0", errno.EBUSY)
    system.command("kunmap_local a cpu=1")
