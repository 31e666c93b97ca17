"""The dump of the kernel's page tables: as captured outside of the vmalloc area, which depends on drivers."""

from pathlib import Path

import pytest

from kmemd import System
from kmemd.debug import ptdump
from kmemd.machine import Machine

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"
FILE = "sys/kernel/debug/page_tables/kernel"
MACHINES = sorted(path.name for path in CAPTURES.iterdir() if (path / FILE).is_file())


def boot(name, **options):
    return System.boot(Machine.from_capture(CAPTURES / name, shape_only=True), cmdline="nokaslr", **options)


def outside_vmalloc(text):
    """The lines of all parts but the vmalloc area, and of that the last 2 GiB, where per-CPU memory is."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("---["):
            inside = "vmalloc() Area" in line
        if not inside or line > "0xffffe8ffc":
            lines.append(line)
    return lines


@pytest.mark.parametrize("name", MACHINES)
def test_the_map_of_the_kernel_is_the_captured_one(name):
    assert len(MACHINES) == 5
    captured = (CAPTURES / name / FILE).read_text()
    got = boot(name).read(f"/{FILE}").decode()
    assert outside_vmalloc(got) == outside_vmalloc(captured)
    assert len(outside_vmalloc(got)) > 30


def lines_at(system, address):
    """The lines of the dump that cover an address."""
    found = []
    for line in system.read(f"/{FILE}").decode().splitlines():
        if line.startswith("0x"):
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if start <= address < (end or 1 << 64):
                found.append(line)
    return found


def test_an_area_has_a_guard_page_and_leaves_its_table_behind():
    system = boot("x86_64-256M-1cpu")
    reply = system.command("a = vmalloc 12K")
    start = int(next(word for word in reply.split() if word.startswith("addr="))[5:], 16)
    (line,) = lines_at(system, start)
    assert "RW                 GLB NX pte" in line
    (guard,) = lines_at(system, start + 12288)
    assert guard.endswith("pte")
    assert "GLB" not in guard
    system.command("vfree a")
    (gone,) = lines_at(system, start)
    assert gone.endswith(" pte")
    assert "RW" not in gone


def test_no_page_is_writable_and_executable_until_somebody_makes_it_so():
    system = boot("x86_64-2G-2cpu")
    mm = system.kernel.init_mm
    assert ptdump.insecure(mm) == (0, 0)
    address = system.kernel.layout.page_offset + (64 << 20) + 5 * 4096
    mm.change(address, address + 8192, off=ptdump.NX, on=0)
    assert ptdump.insecure(mm) == (2, address)
    (line,) = lines_at(system, address)
    assert line.startswith(f"0x{address:016x}-0x{address + 8192:016x}")
    assert line.endswith("RW                 GLB x  pte")
    (before,) = lines_at(system, address - 4096)
    (after,) = lines_at(system, address + 8192)
    assert [before[-6:], after[-6:]] == ["NX pte", "NX pte"], "the large page was split"
    (large,) = lines_at(system, address + (2 << 20))
    assert large.endswith("PSE     GLB NX pmd")
