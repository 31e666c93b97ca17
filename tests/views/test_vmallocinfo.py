"""vmallocinfo against the form of the captured lines."""

import re

import pytest

from kmemd.system import System

LINE = re.compile(
    r"0x(\(____ptrval____\)|[0-9a-f]{16})-0x(\(____ptrval____\)|[0-9a-f]{16}) +\d+ "
    r"(unpurged vm_area|[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?( pages=\d+)?( phys=0x[0-9a-f]{16})?"
    r"( ioremap)?( vmalloc)?( vmap)?( vpages)?( N\d+=\d+)*)"
)


@pytest.fixture
def system():
    return System.boot(cmdline="nokaslr")


def test_every_line_has_the_form(system):
    system.command("big = vmalloc 8M by=leaky_probe+0x2a[leaky_drv]")
    system.command("gone = vmalloc 4K")
    system.command("vfree gone")
    lines = system.read("/proc/vmallocinfo").decode().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    (big,) = (line for line in lines if "pages=2048 " in line)
    assert big.startswith("0x(____ptrval____)-0x(____ptrval____) 8392704 leaky_probe+0x2a/")
    assert big.endswith("[leaky_drv] pages=2048 vmalloc vpages N0=2048")
    assert lines[-1].endswith("    8192 unpurged vm_area")


def test_kptr_restrict_shows_root_the_addresses(system):
    reply = system.command("one = vmalloc 20000")
    address = int(re.search(r"addr=0x([0-9a-f]+)", reply)[1], 16)
    system.write("/proc/sys/kernel/kptr_restrict", "1")
    text = system.read("/proc/vmallocinfo").decode()
    assert f"0x{address:016x}-0x{address + 24576:016x}   24576 " in text
    system.write("/proc/sys/kernel/kptr_restrict", "2")
    assert "0x0000000000000000-0x0000000000000000   24576 " in system.read("/proc/vmallocinfo").decode()


def test_meminfo_counts_the_pages(system):
    def used():
        found = re.search(r"VmallocUsed: +(\d+) kB", system.read("/proc/meminfo").decode())
        return int(found[1])

    before = used()
    system.command("one = vmalloc 1M")
    assert used() == before + 1024
    pages = re.findall(r" pages=(\d+)", system.read("/proc/vmallocinfo").decode())
    assert used() == 4 * sum(map(int, pages))
