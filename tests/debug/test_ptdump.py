"""Dumps of page tables: the kernel's as captured outside of the vmalloc area, which depends on drivers."""

from itertools import pairwise
from pathlib import Path

import pytest

from kmemd import System
from kmemd.core.pte import GLOBAL, NX
from kmemd.debug.check_wx import insecure
from kmemd.machine import Machine
from kmemd.views.tree import Caller

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
    assert insecure(mm.leaves()) == []
    address = system.kernel.layout.page_offset + (64 << 20) + 5 * 4096
    mm.change(address, address + 8192, off=NX, on=0)
    assert [leaf.start for leaf in insecure(mm.leaves())] == [address, address + 4096]
    (line,) = lines_at(system, address)
    assert line.startswith(f"0x{address:016x}-0x{address + 8192:016x}")
    assert line.endswith("RW                 GLB x  pte")
    (before,) = lines_at(system, address - 4096)
    (after,) = lines_at(system, address + 8192)
    assert [before[-6:], after[-6:]] == ["NX pte", "NX pte"], "the large page was split"
    (large,) = lines_at(system, address + (2 << 20))
    assert large.endswith("PSE     GLB NX pmd")


def halves(system, name, pid=None):
    """The lines of a dump below the kernel and above, as a process reads it; init does without ``pid``."""
    path = f"/sys/kernel/debug/page_tables/{name}"
    caller = Caller(pid or 0, 0, lambda: iter([pid or 0]))
    text = system.tree.open(system.tree.lookup(path, caller), caller).read(0, 1 << 24).decode()
    user, mark, kernel = text.partition("---[ Kernel ")
    assert user.startswith("---[ User Space ]---\n")
    assert mark
    return user.splitlines()[1:], kernel


def spawned(system, prot="rw"):
    pid = int(system.command("spawn w image=tiny").split("pid=")[1].split()[0])
    address = int(system.command(f"mmap {pid} 64K prot={prot}").split("addr=")[1].split()[0], 16)
    return pid, address


@pytest.mark.parametrize("machine", ["default", "highmem"])
def test_the_reader_sees_its_own_half_and_the_kernel_s(machine):
    system = System.boot(machine=machine, seed=1, cmdline="nokaslr")
    pid, address = spawned(system)
    system.command(f"access {pid} {address + 4096:#x} 8K w")
    system.command(f"mprotect {pid} {address + 8192:#x} 4K r")
    lines, above = halves(system, "current_kernel", pid)
    long = machine == "default"
    width = 16 if long else 8
    nx = "NX" if long else "x "
    at = [index for index, line in enumerate(lines) if line.startswith(f"0x{address + 4096:0{width}x}-")]
    found = lines[at[0] : at[0] + 2]
    for index, bits in enumerate(("RW", "ro")):
        start = address + 4096 * (index + 1)
        where = f"0x{start:0{width}x}-0x{start + 4096:0{width}x}"
        assert found[index] == f"{where}           4K USR {bits}                     {nx} pte"
    assert above == halves(system, "kernel")[1], "all share the kernel's half"
    ends = [line.split()[0] for line in lines]
    for line, following in pairwise(ends):
        assert line.split("-")[1] == following.split("-")[0], "no address is left out"
    assert ends[0].startswith("0x" + "0" * width)
    assert ends[-1].endswith("0xffff880000000000" if long else "0xc0000000")


def test_entries_that_are_not_there_break_lines_too():
    """Linux compares all bits: a page that was read and one that was written differ in DIRTY."""
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    pid, address = spawned(system)
    system.command(f"access {pid} {address:#x} 16K w")
    joined = [line for line in halves(system, "current_kernel", pid)[0] if f"0x{address:016x}-" in line]
    assert f"0x{address:016x}-0x{address + 16384:016x}" in joined[0]
    slot, level = system.kernel.mmu.leaf(system.kernel.tasks.find(pid).mm.id, (address >> 12) + 1)
    assert level == 0
    system.kernel.mmu.words[slot] ^= 0x40
    lines = halves(system, "current_kernel", pid)[0]
    mine = [line for line in lines if address <= int(line.split("-")[0], 16) < address + 16384]
    assert [line.split()[1] for line in mine] == ["4K", "4K", "8K"]
    assert {line[-30:] for line in mine} == {mine[0][-30:]}, "they look alike"
    system.kernel.mmu.words[slot] ^= 0x40


def test_huge_pages_are_entries_of_the_level_above():
    system = System.boot(machine="default", seed=1, cmdline="nokaslr transparent_hugepage=always")
    pid = int(system.command("spawn w image=tiny").split("pid=")[1].split()[0])
    address = int(system.command(f"mmap {pid} 8M").split("addr=")[1].split()[0], 16)
    system.command(f"access {pid} {address:#x} 8M w")
    lines = [line for line in halves(system, "current_kernel", pid)[0] if line.endswith("pmd") and "PSE" in line]
    (line,) = lines
    assert "USR RW         PSE         NX pmd" in line
    assert line.split()[1] in ("6M", "8M")


def test_a_program_outside_of_the_model_maps_nothing_of_it():
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    lines, _ = halves(system, "current_kernel", 4_000_000)
    assert lines == ["0x0000000000000000-0xffff880000000000    16777096T                               pgd"]
    assert len(halves(system, "current_kernel")[0]) > 20, "without a process it is init"


@pytest.mark.parametrize("cmdline", ["nokaslr", "nokaslr pti=on"])
def test_programs_see_the_kernel_unless_they_are_isolated(cmdline):
    system = System.boot(machine="default", seed=1, cmdline=cmdline)
    pid, address = spawned(system)
    system.command(f"access {pid} {address:#x} 8K w")
    own, above = halves(system, "current_kernel", pid)
    user, seen = halves(system, "current_user", pid)
    assert own == user
    isolated = "pti" in cmdline
    assert (above != seen) == isolated
    mapped = [line for line in seen.splitlines() if " GLB " in line or " RW " in line or " ro " in line]
    if isolated:
        entry = 0xFFFFFFFF81400000
        inside = [line for line in mapped if not line.startswith("0xfffffe00000")]
        assert inside == [f"0x{entry:016x}-0x{entry + (2 << 20):016x}           2M     ro         PSE     GLB x  pmd"]
        kernel = [leaf for leaf in system.kernel.init_mm.leaves() if leaf.flags & GLOBAL]
        assert {leaf.start for leaf in kernel} == {leaf.start for leaf in system.kernel.init_mm.shared.leaves}
    system.check()


def test_i386_has_no_isolation():
    system = System.boot(machine="highmem", seed=1, cmdline="pti=on")
    with pytest.raises(OSError, match="current_user"):
        system.read("/sys/kernel/debug/page_tables/current_user")


def test_a_dump_ends_with_the_process():
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    pid, _ = spawned(system)
    caller = Caller(pid, 0, lambda: iter([pid]))
    path = "/sys/kernel/debug/page_tables/current_kernel"
    file = system.tree.open(system.tree.lookup(path, caller), caller)
    assert file.read(0, 100)
    system.command(f"exit {pid}")
    system.command("vmalloc 4M")
    assert b"End Modules" in file.read(0, 1 << 24)


@pytest.mark.parametrize("machine", ["default", "highmem"])
def test_rodata_off_leaves_the_image_writable(machine):
    system = System.boot(machine=machine, seed=1, cmdline="nokaslr rodata=off")
    log = system.read("/kmemd/dmesg").decode()
    assert "Kernel memory protection disabled.\n" in log
    assert "Write protecting" not in log
    assert "W+X" not in log
    text = system.kernel.layout.text_base
    (line,) = lines_at(system, text)
    assert "RW         PSE     GLB x  pmd" in line
    plain = System.boot(machine=machine, seed=1, cmdline="nokaslr rodata=bogus")
    assert "     ro " in lines_at(plain, text)[0]

    def small(system):
        return int(system.read("/proc/meminfo").split(b"DirectMap4k:")[1].split()[0])

    large = 2048 if machine == "default" else 4096
    assert small(plain) - small(system) == large * (4 if machine == "default" else 1), "fewer large pages are split"
    if machine == "default":
        assert check(system)[0] == b"FAILED\n"


# -- the search for what is writable and executable ------------------------------------------------------------


def check(system):
    first = system.kernel.printk.next_seq
    said = system.read("/kmemd/security/check_wx_pages")
    return said, [line for record in system.kernel.printk.since(first) for line in record.text.splitlines()]


def test_writable_code_is_found_and_warned_of_once():
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    assert check(system) == (b"SUCCESS\n", ["x86/mm: Checked W+X mappings: passed, no W+X pages found."])
    system.command("a = vmalloc 16K")
    start = system.kernel.handles["a"].address
    system.command("set_memory_x a+4K 2")
    said, log = check(system)
    assert said == b"FAILED\n"
    assert log[0] == "------------[ cut here ]------------"
    assert log[1] == f"x86/mm: Found insecure W+X mapping at address 0x{start + 4096:x}"
    assert " at arch/x86/mm/dump_pagetables.c:246 note_page+0x" in log[2]
    assert log[-1] == "x86/mm: Checked W+X mappings: FAILED, 2 W+X pages found."
    assert check(system)[1] == log[-1:], "WARN_ONCE"
    assert system.read("/proc/sys/kernel/tainted") == b"512\n"
    system.command("set_memory_nx a+4K 2")
    assert check(system)[0] == b"SUCCESS\n"
    system.check()


def test_an_address_in_the_kernel_s_code_has_its_name():
    system = System.boot(machine="default", seed=1, cmdline="nokaslr")
    system.command("set_memory_rw 0xffffffff81000000 1")
    log = check(system)[1]
    name = system.kernel.kallsyms.symbolize(0xFFFFFFFF81000000)
    assert "+0x0/" in name
    assert any(line.endswith(f"W+X mapping at address {name}") for line in log)
    assert any(line.startswith(" ptdump_pte_entry+0x") for line in log)


def test_i386_without_nx_does_not_look():
    system = System.boot(machine="highmem", seed=1)
    assert check(system) == (b"SUCCESS\n", [])
