"""Contiguous ranges at run time: areas of cma=, and 1 GiB pages where something stands in the way."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kmemd.core import stats
from kmemd.core.mmzone import MIGRATE_CMA, MIGRATE_MOVABLE
from kmemd.machine import Machine
from kmemd.mm import cma
from kmemd.mm.device import Device
from kmemd.mm.gfp import GFP_KERNEL, F
from kmemd.steps import finish
from kmemd.system import System

MIB = 1 << 20
GIB = 1 << 30
NEVER = "transparent_hugepage=never"


def machine(mib: int, **rest: object) -> Machine:
    return Machine.of_memory("test", "x86_64", 1, (mib * MIB,), ((0,),), ((10,),), **rest)


@pytest.fixture
def system() -> System:
    return System.boot(machine(256), cmdline=f"{NEVER} cma=64M")


def meminfo(system: System, name: str) -> int:
    lines = dict(line.split(":") for line in system.read("/proc/meminfo").decode().splitlines())
    return int(lines[name].split()[0])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None),
        ("0", None),
        ("rubbish", None),
        ("64M", cma.Wanted(64 * MIB)),
        ("64M@1G", cma.Wanted(64 * MIB, GIB, GIB + 64 * MIB)),
        ("64M@1G-2G", cma.Wanted(64 * MIB, GIB, 2 * GIB)),
        ("64M@0-4G", cma.Wanted(64 * MIB, 0, 4 * GIB)),
    ],
)
def test_option(text: str | None, wanted: cma.Wanted | None) -> None:
    assert cma.parse_option(text) == wanted


def test_an_area_is_reserved_at_boot(system: System) -> None:
    area = system.kernel.cma.areas[0]
    assert (area.pages, area.name) == (64 * 256, "reserved")
    assert meminfo(system, "CmaTotal") == 64 << 10
    assert meminfo(system, "CmaFree") == 64 << 10
    assert system.kernel.buddy.pageblock_type(area.base) == MIGRATE_CMA
    assert "cma: Reserved 64 MiB at 0x" in "".join(record.text for record in system.kernel.printk.since(0))
    system.check()


def test_movable_pages_use_an_area_and_the_kernel_does_not(system: System) -> None:
    kernel = system.kernel
    system.command("p = spawn hog")
    system.command("m = mmap p 40M")
    pages = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.NORETRY | F.NOWARN, 0, 10**6)
    assert kernel.zones[1].free_pages >= 64 * 256
    assert meminfo(system, "CmaFree") == 64 << 10
    kernel.page_alloc.free_pages_bulk(pages[:3000].copy())  # for page tables and the like
    system.command("access p m 40M w")
    assert meminfo(system, "CmaFree") < 30 << 10
    system.check()


def test_pages_move_away_for_a_block(system: System) -> None:
    kernel, area = system.kernel, system.kernel.cma.areas[0]
    system.command("p = spawn hog")
    system.command("m = mmap p 170M")
    system.command("access p m 170M w")
    system.command("write p m+160M precious")
    before = int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS])
    pfn = kernel.cma.alloc(area, 1000, 4)
    assert pfn is not None
    assert pfn % 16 == 0
    assert area.holds(pfn)
    assert int(area.used.sum()) == 1000
    assert (area.succeeded, area.failed) == (1000, 0)
    assert kernel.vmstat.events[stats.CMA_ALLOC_SUCCESS] == 1
    assert kernel.pages.kind[pfn : pfn + 1000].tolist() == [3] * 1000
    moved = int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS]) - before
    other = kernel.cma.alloc(area, 4096, 8)
    assert other is not None
    assert int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS]) - before > moved
    assert "precious" in system.command("read p m+160M 8")
    system.check()
    assert kernel.cma.release(pfn, 1000)
    assert kernel.cma.release(other, 4096)
    assert not kernel.cma.release(5, 1)
    assert not area.used.any()
    system.check()


def test_what_cannot_move_makes_a_block_fail(system: System) -> None:
    kernel, area = system.kernel, system.kernel.cma.areas[0]
    assert kernel.cma.alloc(area, area.pages + 1) is None
    pfn = kernel.cma.alloc(area, area.pages // 2)
    assert pfn == area.base
    assert kernel.cma.alloc(area, area.pages // 2 + 1) is None
    assert kernel.vmstat.events[stats.CMA_ALLOC_FAIL] == 2
    assert area.max_chunk() == area.pages // 2
    free = kernel.zones[1].free_pages
    middle = area.base + area.pages // 2 + 5
    contig = kernel.cma.contig
    assert contig is not None
    assert finish(contig.alloc_contig_range(middle, middle + 10, MIGRATE_CMA))
    assert not finish(contig.alloc_contig_range(middle - 3, middle + 1, MIGRATE_CMA))
    assert kernel.zones[1].free_pages == free - 10
    finish(contig.free_contig_range(middle, 10))
    kernel.page_alloc.drain_all_pages()
    assert kernel.zones[1].free_pages == free
    system.check()


def test_huge_pages_move_away_as_wholes() -> None:
    system = System.boot(machine(256), cmdline="transparent_hugepage=always cma=64M")
    kernel = system.kernel
    kernel.huge_memory.enabled = "always"
    system.command("p = spawn hog")
    system.command("m = mmap p 180M")
    system.command("access p m 180M w")
    system.command("munmap p m+100M 40M")
    area = kernel.cma.areas[0]
    assert kernel.cma.alloc(area, area.pages // 2) is not None
    assert kernel.vmstat.events[stats.THP_MIGRATION_SUCCESS] + kernel.vmstat.events[stats.PGMIGRATE_SUCCESS] > 0
    system.check()


def test_a_gigantic_page_where_programs_had_pages() -> None:
    system = System.boot(machine(4096, cpu_features=("pdpe1gb",)), cmdline=NEVER)
    kernel = system.kernel
    pool = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    system.command("p = spawn hog")
    system.command("m = mmap p 2500M")
    system.command("access p m 2500M w")
    system.command("write p m+2400M kept")
    system.command("munmap p m 1800M")
    before = int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS])
    system.write(pool, "1")
    assert int(system.read(pool)) == 1
    assert int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS]) > before
    assert "kept" in system.command("read p m+2400M 4")
    system.check()
    system.write(pool, "0")
    system.check()
    assert (kernel.buddy.block_type[1 << 9 : 1 << 10] <= MIGRATE_MOVABLE).all()
    assert isinstance(kernel.buddy.taken, (int, np.integer))


def test_files_of_an_area(system: System) -> None:
    debug = "/sys/kernel/debug/cma/reserved"
    names = ("base_pfn", "count", "order_per_bit", "used", "maxchunk")
    area = system.kernel.cma.areas[0]

    def shown() -> list[int]:
        return [int(system.read(f"{debug}/{name}")) for name in names]

    assert shown() == [area.base, 16384, 0, 0, 16384]
    system.write(f"{debug}/alloc", "100")
    assert shown() == [area.base, 16384, 0, 100, 16284]
    assert system.read(f"{debug}/bitmap").split()[:5] == [b"4294967295"] * 3 + [b"15", b"0"]
    with pytest.raises(OSError, match="ENOMEM"):
        system.write(f"{debug}/alloc", "100000")
    for bad in ("-1", "x", ""):
        with pytest.raises(OSError, match="EINVAL"):
            system.write(f"{debug}/alloc", bad or " ")
    system.write(f"{debug}/free", "0x1e\n")
    assert shown()[3] == 70
    system.check()
    system.write(f"{debug}/free", "1000")
    assert shown()[3] == 0
    assert system.read("/sys/kernel/mm/cma/reserved/alloc_pages_success") == b"100\n"
    assert system.read("/sys/kernel/mm/cma/reserved/alloc_pages_fail") == b"100000\n"
    system.check()


def test_without_cma_there_are_no_files() -> None:
    system = System.boot(machine(256), cmdline=NEVER)
    with pytest.raises(OSError, match="ENOENT"):
        system.read("/sys/kernel/mm/cma/reserved/alloc_pages_success")
    assert list(system.tree.children(system.tree.lookup("/sys/kernel/debug/cma"))) == []


def test_devices_get_their_blocks_from_the_area(system: System) -> None:
    area = system.kernel.cma.areas[0]
    dma = system.kernel.device_memory.dma
    device = Device("nic", "platform")
    block = dma.alloc_coherent(device, 5 * MIB + 1)
    assert area.holds(block.pfn)
    assert int(area.used.sum()) == block.contiguous == 1281
    small = dma.alloc_coherent(device, 4096)
    assert not area.holds(small.pfn)
    system.check()
    dma.free_coherent(block.address)
    dma.free_coherent(small.address)
    assert not area.used.any()
    system.check()


def test_the_boot_log_tells_of_the_area() -> None:
    lines = {}
    for cmdline in (NEVER, f"{NEVER} cma=64M"):
        records = System.boot(machine(256), cmdline=cmdline).kernel.printk.since(0)
        text = next(record.text for record in records if record.text.startswith("Memory: "))
        lines[cmdline] = [int(word) for word in re.findall(r"(\d+)K", text)]
        assert any("cma: Reserved 64 MiB" in record.text for record in records) == ("cma" in cmdline)
    without, with_area = lines.values()
    assert without[-1] == 0
    assert with_area[-1] == 64 << 10
    assert with_area[0] == without[0] - (64 << 10)
    assert with_area[1:-1] == without[1:-1]
