"""Device memory in address spaces: remap_pfn_range and /dev/mem."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from kmemd import System
from kmemd.core.mmu import READ, WRITE
from kmemd.core.pte import NX, PFN_MASK, RW, SPECIAL
from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.mm_types import VM_DONTDUMP, VM_DONTEXPAND, VM_IO, VM_PFNMAP
from kmemd.mm.mmap_region import Request
from kmemd.mm.units import PAGE_SIZE

SHARED = mman.MAP_SHARED | mman.MAP_ANONYMOUS
PRIVATE = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
RW_PROT = mman.PROT_READ | mman.PROT_WRITE
REGISTERS = 0xFD000
SIZE = 16 * PAGE_SIZE


class Process:
    """A process that a driver maps its registers into."""

    def __init__(self, machine: str = "two-node") -> None:
        self.system = System.boot(machine=machine, seed=1)
        self.kernel = self.system.kernel
        self.system.command("t = spawn fb")
        self.task: Any = self.kernel.tasks.find(self.kernel.handles["t"].pid)
        self.mm = self.task.mm

    def mmap(self, flags: int = SHARED, prot: int = RW_PROT, size: int = SIZE) -> int:
        return int(self.kernel.user.spaces.mmap(self.task, Request(length=size, prot=prot, flags=flags)).address)

    def remap(self, address: int, pfn: int = REGISTERS, size: int = SIZE) -> None:
        self.kernel.user.pfn_map.remap_pfn_range(self.mm, self.mm.find(address), address, pfn, size)

    def refused(self, error: int, *args: Any) -> str:
        with pytest.raises(KernelError) as caught:
            self.remap(*args)
        assert caught.value.errno == error
        self.system.check()
        return caught.value.reason

    def entry(self, address: int) -> int:
        return int(self.kernel.mmu.words[self.kernel.mmu.slot(self.mm.id, address >> 12)])

    def access(self, address: int, op: int, pages: int = 16) -> None:
        vpns = np.arange(address >> 12, (address >> 12) + pages, dtype=np.int64)
        self.kernel.memory.access(self.task, vpns, op)

    def rss(self) -> int:
        return int(self.kernel.mm_counters.rss(self.mm))

    def smaps(self, address: int) -> dict[str, str]:
        text = self.system.read(f"/proc/{self.task.pid}/smaps").decode()
        part = text[text.index(f"{address:08x}-") :].splitlines()[1:]
        fields: dict[str, str] = {}
        for line in part:
            if ":" not in line.split()[0]:
                break
            key, value = line.split(":", 1)
            fields[key] = value.strip()
        return fields


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_shared_mapping_shows_the_device(process: Process) -> None:
    process.kernel.mmu.sync_rss(process.mm.id)
    before = process.rss()
    address = process.mmap()
    process.remap(address)
    assert process.entry(address + 3 * PAGE_SIZE) & PFN_MASK == REGISTERS + 3 << 12
    assert process.entry(address) & (SPECIAL | RW | NX) == SPECIAL | RW | NX
    flags = process.smaps(address)["VmFlags"].split()
    assert {"io", "pf", "de", "dd", "ar", "sh"} <= set(flags)
    assert process.smaps(address)["Rss"] == "0 kB"
    process.access(address, READ)
    process.access(address, WRITE)
    process.kernel.mmu.sync_rss(process.mm.id)
    assert process.rss() == before
    process.system.check()


def test_tables_are_counted_and_all_goes_with_the_process(process: Process) -> None:
    before = process.system.read("/proc/meminfo").decode().split("PageTables:")[1].split()[0]
    address = process.mmap(size=4 << 20)
    process.remap(address, size=4 << 20)
    after = process.system.read("/proc/meminfo").decode().split("PageTables:")[1].split()[0]
    assert int(after) - int(before) in (8, 12, 16)
    process.kernel.user.spaces.munmap(process.task, address, 4 << 20)
    assert process.kernel.mmu.slot(process.mm.id, address >> 12) == -1
    process.system.command("exit t")
    process.system.check()


def test_a_part_of_a_shared_mapping(process: Process) -> None:
    address = process.mmap()
    process.remap(address + PAGE_SIZE, REGISTERS, 2 * PAGE_SIZE)
    vma = process.mm.find(address)
    assert (
        vma.flags & (VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP) == VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP
    )
    assert "ar" not in process.smaps(address)["VmFlags"].split()
    assert process.entry(address) == 0
    process.remap(address + 8 * PAGE_SIZE, REGISTERS, 100)
    assert process.entry(address + 8 * PAGE_SIZE) & PFN_MASK == REGISTERS << 12
    process.system.check()


def test_a_private_writable_mapping_is_remapped_whole(process: Process) -> None:
    address = process.mmap(PRIVATE)
    process.refused(errno.EINVAL, address, REGISTERS, SIZE - PAGE_SIZE)
    process.refused(errno.EINVAL, address + PAGE_SIZE, REGISTERS, SIZE - PAGE_SIZE)
    process.remap(address)
    assert process.mm.find(address).pgoff == REGISTERS
    assert not process.entry(address) & RW
    process.access(address, WRITE, 1)  # a copy of its own
    assert not process.entry(address) & SPECIAL
    assert process.entry(address + PAGE_SIZE) & SPECIAL
    process.kernel.mmu.sync_rss(process.mm.id)
    assert process.smaps(address)["Rss"] == "4 kB"
    process.system.check()


def test_a_private_mapping_that_nobody_may_write_is_no_copy_on_write(process: Process) -> None:
    address = process.mmap(PRIVATE, mman.PROT_READ)
    process.refused(errno.EINVAL, address, REGISTERS, PAGE_SIZE)  # it could be made writable: VM_MAYWRITE
    process.remap(address)
    assert not process.entry(address) & RW


@pytest.mark.parametrize(
    ("offset", "pfn", "size"),
    [
        (1, REGISTERS, PAGE_SIZE),
        (0, REGISTERS, SIZE + 1),
        (0, REGISTERS, 0),
        (0, 1 << 28, SIZE),
        (SIZE - PAGE_SIZE, REGISTERS, 2 * PAGE_SIZE),
    ],
)
def test_what_cannot_be_remapped(process: Process, offset: int, pfn: int, size: int) -> None:
    address = process.mmap()
    process.refused(errno.EINVAL, address + offset, pfn, size)
    slot = process.kernel.mmu.slot(process.mm.id, address >> 12)
    assert slot == -1 or not process.kernel.mmu.words[slot : slot + 16].any()
    assert not process.mm.find(address).flags & VM_PFNMAP


def test_pages_that_are_there_are_a_bug(process: Process) -> None:
    address = process.mmap(PRIVATE)
    process.access(address + PAGE_SIZE, WRITE, 1)
    process.refused(errno.EFAULT, address)
    texts = [record.text for record in process.kernel.printk.since(0)]
    assert "kernel BUG at mm/memory.c:2402!" in texts
    twice = process.mmap()
    process.remap(twice)
    process.refused(errno.EFAULT, twice)


def test_memory_may_be_shown_and_is_not_counted(process: Process) -> None:
    process.system.command("p = alloc_pages order=2")
    pfn = process.kernel.handles["p"].pfn
    address = process.mmap(size=4 * PAGE_SIZE)
    process.remap(address, pfn, 4 * PAGE_SIZE)
    assert int(process.kernel.pages.mapcount[pfn]) == 0
    process.kernel.user.spaces.munmap(process.task, address, 4 * PAGE_SIZE)
    process.system.command("free_pages p")
    process.system.check()


def test_the_list_of_memory_types_has_what_is_mapped_whole(process: Process) -> None:
    address = process.mmap()
    process.remap(address)

    def shown() -> bool:
        text = process.system.read("/sys/kernel/debug/x86/pat_memtype_list")
        return b"PAT: [mem 0x00000000fd000000-0x00000000fd010000] uncached-minus\n" in text

    assert shown()
    process.kernel.user.spaces.munmap(process.task, address, SIZE)
    assert not shown()


def test_a_child_has_the_device_too(process: Process) -> None:
    address = process.mmap()
    process.remap(address)
    process.system.command("c = fork t")
    child: Any = process.kernel.tasks.find(process.kernel.handles["c"].pid)
    slot = process.kernel.mmu.slot(child.mm.id, address >> 12)
    assert int(process.kernel.mmu.words[slot]) & (SPECIAL | PFN_MASK) == SPECIAL | REGISTERS << 12
    process.system.check()
    process.system.command("exit c")
    process.system.command("exit t")
    process.system.check()


def test_dev_mem_shows_devices_and_no_memory(process: Process) -> None:
    allowed = process.kernel.user.pfn_map.devmem_is_allowed
    assert allowed(REGISTERS, 16)
    assert allowed(0xF0, 16)
    assert not allowed(0x200, 1)
    assert not allowed(0xF0, 17)


@pytest.mark.parametrize("machine", ["default", "highmem"])
def test_the_verb(machine: str) -> None:
    process = Process(machine)
    address = process.mmap()
    reply = process.system.command(f"remap_pfn_range t {address:#x} {REGISTERS:#x} 64K")
    assert "pages=16" in reply
    for line, error in (
        (f"remap_pfn_range 2 {address:#x} 1 4K", errno.EINVAL),
        ("remap_pfn_range t 0x10000 1 4K", errno.EFAULT),
        (f"remap_pfn_range 99999 {address:#x} 1 4K", errno.ESRCH),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            process.system.command(line)
        assert caught.value.errno == error
    process.system.check()


def test_a_mapping_of_dev_mem(process: Process) -> None:
    reply = process.system.command("m = mmap t 64K flags=MAP_SHARED file=/dev/mem offset=0xfd000000")
    address = process.kernel.handles["m"].address
    assert f"{address:#x}" in reply
    assert process.entry(address + PAGE_SIZE) & (PFN_MASK | SPECIAL) == REGISTERS + 1 << 12 | SPECIAL
    maps = process.system.read(f"/proc/{process.task.pid}/maps").decode()
    line = next(line for line in maps.splitlines() if line.startswith(f"{address:x}-"))
    assert line.split()[1:4] == ["rw-s", "fd000000", "00:05"]
    assert line.endswith("/dev/mem")
    assert "pf" in process.smaps(address)["VmFlags"].split()
    process.system.command(f"munmap t {address:#x} 64K")
    process.system.check()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("mmap t 4K flags=MAP_SHARED file=/dev/mem offset=0x200000", errno.EPERM),
        ("mmap t 4K flags=MAP_SHARED file=/dev/mem offset=0x20000000000", errno.EINVAL),
        ("truncate /dev/mem 100", errno.EINVAL),
    ],
)
def test_what_dev_mem_refuses(process: Process, line: str, error: int) -> None:
    total = process.mm.total_vm
    with pytest.raises(OSError) as caught:  # noqa: PT011
        process.system.command(line)
    assert caught.value.errno == error
    assert process.mm.total_vm == total
    process.system.check()
