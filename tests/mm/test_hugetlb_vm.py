"""Mappings of huge pages: what mmap reserves, what faults take, what forks share."""

from __future__ import annotations

import errno

import pytest

from kmemd.core import pte
from kmemd.errors import KernelError
from kmemd.machine import Machine
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.mm_types import Mm
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.system import System
from tests.mm.huge_machine import HUGE, MIB, PRIVATE, RW, SHARED, HugeMachine, Process

GIB = 1 << 30
MAP_HUGE_1GB = 30 << mman.MAP_HUGE_SHIFT
HUGETLB = PRIVATE | mman.MAP_HUGETLB
SHARED_HUGETLB = SHARED | mman.MAP_HUGETLB


def machine(pages: int, overcommit: int = 0, **rest: object) -> HugeMachine:
    m = HugeMachine(size=256 * MIB, **rest)  # type: ignore[arg-type]
    m.kernel.hugetlb.nr_hugepages = pages
    m.kernel.hugetlb.nr_overcommit = overcommit
    return m


def counts(m: HugeMachine) -> tuple[int, int, int, int]:
    """HugePages_Total, Free, Rsvd and Surp."""
    pool = m.kernel.hugetlb.default
    return pool.nr, pool.free, pool.resv, pool.surplus


def huge_pages(mm: Mm) -> int:
    return mm.hugetlb_pages // 512


def test_six_pages_of_a_pool_of_ten() -> None:
    m = machine(10)
    p = m.process()
    at = m.mmap(p, 12 * MIB, HUGETLB)
    assert (at % HUGE, counts(m)) == (0, (10, 10, 6, 0))
    vma = m.vma(p, at)
    assert vma.flags & (mt.VM_HUGETLB | mt.VM_DONTEXPAND) == mt.VM_HUGETLB | mt.VM_DONTEXPAND
    assert vma.file is not None
    assert (vma.file.name, vma.file.device) == ("/anon_hugepage (deleted)", "00:0c")
    m.write(p, at, 6 * MIB)
    assert (counts(m), huge_pages(p.mm), m.rss(p)) == ((10, 7, 3, 0), 3, 0)
    entry, level = m.entry(p, at)
    assert level == 1
    assert entry & (pte.PSE | pte.RW | pte.DIRTY) == pte.PSE | pte.RW | pte.DIRTY
    assert m.user.hugetlb_vm.scan(p.mm, vma) == (0, 6 * MIB)
    m.check()
    m.munmap(p, at, 12 * MIB)
    assert (counts(m), huge_pages(p.mm)) == ((10, 10, 0, 0), 0)
    m.check()
    m.exit(p)
    m.kernel.hugetlb.nr_hugepages = 0
    assert m.free_pages() == m.free_at_boot


@pytest.mark.parametrize("pages", [0, 4])
def test_too_few_pages(pages: int) -> None:
    m = machine(pages)
    p = m.process()
    with pytest.raises(KernelError) as error:
        m.mmap(p, 12 * MIB, HUGETLB)
    assert error.value.errno == errno.ENOMEM
    assert (counts(m), p.mm.vmas) == ((pages, pages, 0, 0), [])
    m.check()


def test_surplus_pages_come_and_go() -> None:
    m = machine(4, overcommit=3)
    p = m.process()
    at = m.mmap(p, 12 * MIB, HUGETLB)
    assert counts(m) == (6, 6, 6, 2)
    m.write(p, at, 6 * MIB)
    assert counts(m) == (6, 3, 3, 2)
    m.check()
    m.munmap(p, at, 12 * MIB)
    assert counts(m) == (4, 4, 0, 0)
    m.check()


def test_lengths_are_rounded_up_and_addresses_must_fit() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 4096, HUGETLB)
    assert (m.vma(p, at).end - at, counts(m)[2]) == (HUGE, 1)
    for call in (
        lambda: m.mmap(p, HUGE, HUGETLB, address=at + HUGE + 4096),
        lambda: m.munmap(p, at, 4096),
        lambda: m.user.mprotect.mprotect(p, at, 4096, mman.PROT_READ),
        lambda: m.mmap(p, HUGE, HUGETLB | 16 << 26),
        lambda: m.advise(p, at, HUGE, mman.MADV_FREE),
    ):
        with pytest.raises(KernelError) as error:
            call()
        assert error.value.errno == errno.EINVAL
    assert counts(m) == (4, 4, 1, 0)
    m.check()


def test_a_read_of_private_memory_maps_a_page_read_only() -> None:
    m = machine(2)
    p = m.process()
    at = m.mmap(p, HUGE, HUGETLB)
    m.read(p, at, HUGE)
    pfn = m.pfn(p, at)
    assert counts(m) == (2, 1, 0, 0)
    assert not m.entry(p, at)[0] & pte.RW
    m.write(p, at, HUGE)
    assert m.pfn(p, at) == pfn
    assert m.entry(p, at)[0] & pte.RW
    m.check()


def test_noreserve_takes_pages_when_they_are_touched() -> None:
    m = machine(1)
    p = m.process()
    at = m.mmap(p, 4 * MIB, HUGETLB | mman.MAP_NORESERVE)
    assert counts(m) == (1, 1, 0, 0)
    m.write(p, at, HUGE)
    with pytest.raises(Signal) as signal:
        m.write(p, at + HUGE, HUGE)
    assert (signal.value.number, signal.value.code) == (SIGBUS, BUS_ADRERR)
    assert signal.value.address == at + HUGE
    m.munmap(p, at, 4 * MIB)
    assert counts(m) == (1, 1, 0, 0)
    m.check()


def test_pages_that_others_were_promised_are_not_taken() -> None:
    m = machine(2)
    p, q = m.process(), m.process()
    m.mmap(p, 4 * MIB, HUGETLB)
    at = m.mmap(q, HUGE, HUGETLB | mman.MAP_NORESERVE)
    with pytest.raises(Signal):
        m.write(q, at, HUGE)
    assert counts(m) == (2, 2, 2, 0)
    m.check()


def test_the_owner_copies_after_a_fork() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 4 * MIB, HUGETLB)
    m.write(p, at, 2 * MIB)
    child = m.fork(p)
    pfn = m.pfn(p, at)
    assert (m.pfn(child, at), counts(m), huge_pages(child.mm)) == (pfn, (4, 3, 1, 0), 1)
    assert m.user.hugetlb_vm.scan(p.mm, m.vma(p, at)) == (HUGE, 0)
    m.write(p, at, 2 * MIB)
    assert m.pfn(p, at) != pfn == m.pfn(child, at)
    assert counts(m) == (4, 2, 1, 0)
    m.check()
    m.exit(child)
    assert counts(m) == (4, 3, 1, 0)
    m.exit(p)
    assert counts(m) == (4, 4, 0, 0)
    m.check()


def test_the_owner_takes_a_page_away_from_its_child() -> None:
    m = machine(1)
    p = m.process()
    at = m.mmap(p, HUGE, HUGETLB)
    m.write(p, at, HUGE)
    child = m.fork(p)
    pfn = m.pfn(p, at)
    m.write(p, at, HUGE)
    assert (m.pfn(p, at), m.entry(child, at)[0], huge_pages(child.mm)) == (pfn, 0, 0)
    with pytest.raises(Signal) as signal:
        m.read(child, at, HUGE)
    assert signal.value.number == SIGBUS
    assert counts(m) == (1, 0, 0, 0)
    m.check()
    m.exit(child)
    m.exit(p)
    assert counts(m) == (1, 1, 0, 0)


def test_a_child_has_no_promises() -> None:
    m = machine(2)
    p = m.process()
    at = m.mmap(p, 4 * MIB, HUGETLB)
    m.write(p, at, HUGE)
    child = m.fork(p)
    for address in (at, at + HUGE):
        with pytest.raises(Signal):
            m.write(child, address, HUGE)
    m.write(p, at, 4 * MIB)
    assert counts(m) == (2, 0, 0, 0)
    m.check()
    m.exit(p)
    assert counts(m)[1:3] == (2, 0)
    m.exit(child)
    assert counts(m) == (2, 2, 0, 0)
    m.check()


def test_shared_memory_is_reserved_once() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 6 * MIB, SHARED_HUGETLB)
    assert counts(m) == (4, 4, 3, 0)
    child = m.fork(p)
    m.write(p, at, HUGE)
    m.read(child, at, HUGE)
    assert m.pfn(p, at) == m.pfn(child, at)
    assert (counts(m), m.user.hugetlb_vm.scan(p.mm, m.vma(p, at))) == ((4, 3, 2, 0), (HUGE, 0))
    m.munmap(p, at, 6 * MIB)
    assert counts(m) == (4, 3, 2, 0)
    m.write(child, at + HUGE, HUGE)
    assert counts(m) == (4, 2, 1, 0)
    m.check()
    m.exit(child)
    assert counts(m) == (4, 4, 0, 0)
    m.check()


def test_parts_of_a_mapping_go_one_by_one() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 8 * MIB, HUGETLB)
    m.write(p, at + HUGE, HUGE)
    m.munmap(p, at + HUGE, HUGE)
    assert counts(m) == (4, 4, 3, 0)
    m.write(p, at, HUGE)
    m.munmap(p, at, HUGE)
    assert counts(m) == (4, 4, 2, 0)
    m.user.mremap.mremap(p, at + 2 * HUGE, 2 * HUGE, HUGE, 0)
    assert counts(m) == (4, 4, 1, 0)
    m.write(p, at + 2 * HUGE, HUGE)
    m.check()
    m.exit(p)
    assert counts(m) == (4, 4, 0, 0)


def test_dontneed_gives_pages_back_and_the_next_touch_takes_one() -> None:
    m = machine(2)
    p = m.process()
    at = m.mmap(p, HUGE, HUGETLB)
    m.write(p, at, HUGE)
    m.advise(p, at, HUGE, mman.MADV_DONTNEED)
    assert (counts(m), huge_pages(p.mm)) == ((2, 2, 0, 0), 0)
    m.write(p, at, HUGE)
    assert counts(m) == (2, 1, 0, 0)
    m.check()


def test_mremap_takes_the_promises_along() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 4 * MIB, HUGETLB)
    m.write(p, at, HUGE)
    pfn = m.pfn(p, at)
    to = at - 64 * HUGE
    m.user.mremap.mremap(p, at, 2 * HUGE, 2 * HUGE, mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED, to)
    assert (m.pfn(p, to), counts(m), huge_pages(p.mm)) == (pfn, (4, 3, 1, 0), 1)
    m.write(p, to + HUGE, HUGE)
    m.check()
    m.exit(p)
    assert counts(m) == (4, 4, 0, 0)


def test_mprotect_of_huge_pages() -> None:
    m = machine(2)
    p = m.process()
    at = m.mmap(p, 4 * MIB, HUGETLB)
    m.write(p, at, 4 * MIB)
    m.user.mprotect.mprotect(p, at, HUGE, mman.PROT_READ)
    assert not m.entry(p, at)[0] & pte.RW
    assert m.entry(p, at + HUGE)[0] & pte.RW
    with pytest.raises(Signal):
        m.write(p, at, 4096)
    m.user.mprotect.mprotect(p, at, HUGE, RW)
    m.write(p, at, HUGE)
    assert counts(m) == (2, 0, 0, 0)
    m.check()


def gigantic(m: HugeMachine) -> Pool:
    pool = m.kernel.hugetlb.pool("hugepages-1048576kB")
    assert pool is not None
    return pool


def test_pages_of_one_gib() -> None:
    m = HugeMachine(size=6 * GIB, cmdline="hugepagesz=1G hugepages=2", cpu_features=("pdpe1gb",))
    p = m.process()
    pool = gigantic(m)
    with pytest.raises(KernelError) as error:
        m.mmap(p, GIB, HUGETLB)
    assert error.value.errno == errno.ENOMEM
    at = m.mmap(p, 2 * GIB, HUGETLB | MAP_HUGE_1GB)
    assert (at % GIB, pool.resv) == (0, 2)
    vma = m.vma(p, at)
    assert vma.file is not None
    assert vma.file.device == "00:0d"
    m.write(p, at, 16 * 4096)
    assert (m.entry(p, at)[1], pool.free, p.mm.hugetlb_pages) == (2, 1, 1 << 18)
    m.check()
    child: Process = m.fork(p)
    m.write(child, at + GIB, 0)
    m.exit(child)
    m.exit(p)
    assert (pool.free, pool.resv) == (2, 0)
    m.check()


def test_a_bound_task_reserves_on_its_nodes() -> None:
    m = HugeMachine(size=256 * MIB, nodes=2)
    m.kernel.hugetlb.nr_hugepages = 4
    p = m.process()
    m.kernel.mempolicy.set_mempolicy(p, 2, 0b10)
    with pytest.raises(KernelError):
        m.mmap(p, 6 * MIB, HUGETLB)
    at = m.mmap(p, 4 * MIB, HUGETLB)
    m.write(p, at, 4 * MIB)
    assert [len(pages) for pages in m.kernel.hugetlb.default.free_lists] == [2, 0]
    m.check()


def test_a_hole_in_shared_memory() -> None:
    m = machine(4)
    p = m.process()
    at = m.mmap(p, 6 * MIB, SHARED_HUGETLB)
    m.write(p, at, 4 * MIB)
    assert counts(m) == (4, 2, 1, 0)
    m.advise(p, at, HUGE, mman.MADV_REMOVE)
    assert (counts(m), m.entry(p, at)[0]) == ((4, 3, 1, 0), 0)
    m.check()
    m.write(p, at, HUGE)
    assert counts(m) == (4, 2, 1, 0)
    m.check()
    m.exit(p)
    assert counts(m) == (4, 4, 0, 0)


def test_sysfs_of_gigantic_pages() -> None:
    machine = Machine.of_memory("test", "x86_64", 1, (6 * GIB,), ((0,),), ((10,),), cpu_features=("pdpe1gb",))
    system = System.boot(machine, cmdline="hugepagesz=1G hugepages=2")
    giant = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
    small = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    assert system.read(f"{giant}/nr_hugepages") == b"2\n"
    assert system.read(f"{giant}/demote_size") == b"2048kB\n"
    for path, text in ((f"{giant}/nr_overcommit_hugepages", b"1\n"), (f"{giant}/demote_size", b"1G\n")):
        with pytest.raises(OSError, match="EINVAL"):
            system.write(path, text)
    with pytest.raises(OSError, match="ENOENT"):
        system.read(f"{small}/demote_size")
    assert system.write(f"{giant}/demote", b"1\n") == 2
    assert system.read(f"{small}/nr_hugepages") == b"512\n"
    node = "/sys/devices/system/node/node0/hugepages/hugepages-1048576kB"
    assert (system.read(f"{node}/free_hugepages"), system.read(f"{node}/demote_size")) == (b"1\n", b"2048kB\n")
    assert system.write(f"{giant}/nr_hugepages", b"0\n") == 2
    meminfo = system.read("/proc/meminfo").decode()
    assert "HugePages_Total:     512\n" in meminfo
    assert "DirectMap1G:" in meminfo
    assert " pdpe1gb lm " in system.read("/proc/cpuinfo").decode()
    system.check()
