"""Memory for code: where modules and programs of BPF go, what may be done with it, and that it comes back."""

from __future__ import annotations

import dataclasses
import errno
from itertools import pairwise

import pytest

from kmemd import System
from kmemd.core.pte import NX, RW
from kmemd.machine import Machine
from kmemd.mm.layout import START_KERNEL_MAP
from kmemd.system import SystemCallError
from kmemd.views.tree import Caller

MIB = 1 << 20


def boot(machine: str = "default", cmdline: str = "nokaslr", seed: int = 1) -> System:
    return System.boot(machine=machine, seed=seed, cmdline=cmdline)


def words(reply: str) -> dict[str, str]:
    return dict(item.split("=", 1) for item in reply.split())


def fails(system: System, command: str) -> int:
    with pytest.raises(SystemCallError) as caught:
        system.command(command)
    system.check()
    return caught.value.errno or 0


def bits(system: System, address: int) -> str:
    leaf = system.kernel.init_mm.lookup(address)
    if leaf is None:
        return "-"
    return ("w" if leaf.flags & RW else "r") + ("-" if leaf.flags & NX else "x")


def used(system: System) -> int:
    """Pages of code."""
    end = system.kernel.layout.modules_end
    areas = [area for area in system.kernel.vmalloc.areas() if area.caller[1] == "module_alloc" and area.end <= end]
    return sum(area.nr_pages for area in areas if area.address >= system.kernel.layout.modules_start)


def modules(system: System) -> list[str]:
    """Those but the one that lines of commands are in."""
    names = [line.split()[0] for line in system.read("/proc/modules").decode().splitlines()]
    return [name for name in names if name != "kmemd"]


def names(system: System, path: str) -> list[str]:
    return sorted(node.path.rpartition("/")[2] for node in system.tree.children(system.tree.lookup(path)))


@pytest.mark.parametrize(("machine", "data"), [("default", "w-"), ("two-node", "w-"), ("highmem", "wx")])
def test_a_module_is_code_constants_and_data(machine: str, data: str) -> None:
    system = boot(machine)
    before = used(system)
    reply = words(system.command("init_module drv text=17K rodata=8K data=1"))
    address = int(reply["addr"], 16)
    text, rodata, writable = (int(reply[name], 16) for name in (".text", ".rodata", ".data"))
    assert [text - address, rodata - address, writable - address] == [0, 20 << 10, 28 << 10]
    assert used(system) - before == 8
    nx = "-" if machine != "highmem" else "x"
    found = [bits(system, place) for place in (text, rodata - 1, rodata, writable - 1, writable, writable + 4096)]
    assert found == ["rx", "rx", f"r{nx}", f"r{nx}", data, "-"]
    if machine != "highmem":
        assert address == START_KERNEL_MAP + 1024 * MIB
    else:
        assert system.kernel.layout.is_vmalloc_addr(address)
    assert fails(system, f"WRITE_ONCE {text:#x} 0") == errno.EFAULT
    assert fails(system, f"WRITE_ONCE {rodata:#x} 0") == errno.EFAULT
    system.command(f"WRITE_ONCE {writable:#x} 0")
    system.command(f"call {text:#x}")
    if machine != "highmem":
        assert fails(system, f"call {writable:#x}") == errno.EFAULT
        assert system.read("/kmemd/security/check_wx_pages") == b"SUCCESS\n"
    system.command("delete_module drv")
    system.kernel.vmalloc.purge()
    assert used(system) == before
    assert bits(system, text) == "-"
    assert modules(system) == []
    assert words(system.command("init_module other text=4K"))["addr"] == reply["addr"], "the place is free again"
    system.check()


def test_it_is_seen_where_linux_shows_it() -> None:
    system = boot(cmdline="nokaslr no_hash_pointers")
    address = words(system.command("init_module drv text=16K rodata=8K data=4K"))["addr"][2:]
    assert system.read("/proc/modules").decode() == f"drv 28672 0 - Live 0x{address}\n"
    assert system.read("/sys/module/drv/coresize") == b"28672\n"
    assert system.read("/sys/module/drv/sections/.text").decode() == f"0x{address}\n"
    assert names(system, "/sys/module/drv/sections") == [".data", ".rodata", ".text"]
    other = Caller(4242, 1000)
    node = system.tree.lookup("/proc/modules", other)
    assert b"0x0000000000000000" in system.tree.open(node, other).read(0, 4096)
    (line,) = [line for line in system.read("/proc/vmallocinfo").decode().splitlines() if "move_module" in line]
    assert line.endswith("pages=7 vmalloc N0=7")
    assert " 32768 move_module+0x" in line
    dump = system.read("/sys/kernel/debug/page_tables/kernel").decode()
    part = dump[dump.index("---[ Modules ]---") :].splitlines()[1:5]
    shown = [" ".join(row.split()[2:]) for row in part]
    assert shown == ["ro GLB x pte", "ro GLB NX pte", "RW GLB NX pte", "pte"]


def test_its_functions_are_in_it_and_gone_with_it() -> None:
    system = boot(cmdline="nokaslr page_owner=on")
    address = int(words(system.command("init_module drv"))["addr"], 16)
    system.command("p = alloc_pages by=probe+0x2a[drv]")
    assert b"probe+0x2a/" in system.read("/sys/kernel/debug/page_owner")
    symbols = [line for line in system.read("/proc/kallsyms").decode().splitlines() if line.endswith("[drv]")]
    assert [int(line.split()[0], 16) for line in symbols] == [address]
    system.command("delete_module drv")
    assert not [line for line in system.read("/proc/kallsyms").decode().splitlines() if line.endswith("[drv]")]
    assert b"probe+0x2a/" in system.read("/sys/kernel/debug/page_owner")
    assert fails(system, "delete_module drv") == errno.ENOENT


def test_one_that_a_call_site_named_has_code_alone_and_a_place_of_its_own() -> None:
    for machine in ("default", "highmem"):
        system = boot(machine, cmdline="nokaslr page_owner=on")
        before = used(system)
        system.command("p = alloc_pages by=probe+0x2a[named]")
        system.command("init_module first text=4K rodata=0 data=0")
        assert b"[named]" in system.read("/sys/kernel/debug/page_owner")
        place = system.kernel.kallsyms.symbol("probe", "named").address
        assert bits(system, place) == "rx"
        assert used(system) - before == 1, "nobody's memory"
        assert fails(system, "init_module named") == errno.EEXIST
        later = int(words(system.command("init_module second text=64K"))["addr"], 16)
        assert later != place
        assert names(system, "/sys/module/named/sections") == [".text"]
        system.check()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("init_module drv text=0", errno.ENOEXEC),
        ("init_module a/b", errno.EINVAL),
        ("init_module drv text=2G", errno.ENOMEM),
        ("delete_module nothing", errno.ENOENT),
        ("bpf_prog_free 0xffffffffc0000000", errno.EINVAL),
        ("bpf_prog_load 2G", errno.ENOMEM),
    ],
)
def test_what_does_not_go(command: str, number: int) -> None:
    system = boot()
    before = used(system)
    assert fails(system, command) == number
    assert used(system) == before
    assert len(system.kernel.bpf) == 0


def test_kaslr_moves_modules_by_pages() -> None:
    machine = dataclasses.replace(Machine.load("default"), cmdline="")
    systems = [System.boot(machine=machine, seed=seed) for seed in range(8)]
    places = {int(words(system.command("init_module drv"))["addr"], 16) for system in systems}
    first = START_KERNEL_MAP + 1024 * MIB
    assert len(places) > 5
    assert all(first + 4096 <= place <= first + 1024 * 4096 and place % 4096 == 0 for place in places)


def test_the_policy_has_the_last_word() -> None:
    system = boot()
    text = words(system.command("init_module drv"))[".text"]
    program = words(system.command("p = bpf_prog_load 300"))["addr"]
    system.write("/kmemd/security/kernel_wx", "refuse")
    for place in (text, program):
        assert fails(system, f"set_memory_rw {place} 1") == errno.EACCES
        system.command(f"set_memory_nx {place} 1")
        system.command(f"set_memory_rw {place} 1")
        assert fails(system, f"set_memory_x {place} 1") == errno.EACCES
    assert system.read("/kmemd/security/check_wx_pages") == b"SUCCESS\n"


def test_without_rodata_code_is_writable_and_linux_says_so() -> None:
    system = boot(cmdline="nokaslr rodata=off")
    first = system.kernel.printk.next_seq
    text = int(words(system.command("init_module drv"))[".text"], 16)
    assert bits(system, text) == "wx"
    said = [line for record in system.kernel.printk.since(first) for line in record.text.splitlines()]
    assert any(line.startswith("CPA detected W^X violation: ") for line in said)
    system.write("/kmemd/security/kernel_wx", "refuse")
    before = used(system)
    assert fails(system, "init_module other") == errno.EACCES
    assert used(system) == before
    assert modules(system) == ["drv"]


@pytest.mark.parametrize(("machine", "pack"), [("default", 2 * MIB), ("two-node", 4 * MIB)])
def test_programs_share_packs(machine: str, pack: int) -> None:
    system = boot(machine)
    before = used(system)
    system.command("a = bpf_prog_load 500 n=100")
    assert used(system) - before == pack >> 12
    places = [int(address) for address in system.kernel.handles["a"].addresses]
    starts = [place & -64 for place in places]
    assert [after - start for start, after in pairwise(starts)] == [576] * 99, "whole chunks of 64"
    assert len({place % 64 for place in places}) > 3, "each begins somewhere else"
    assert all(place % 64 >= 8 and place % 4 == 0 for place in places)
    assert {bits(system, place) for place in places} == {"rx"}
    assert fails(system, f"WRITE_ONCE {places[0] & -8:#x} 0") == errno.EFAULT
    system.command(f"b = bpf_prog_load {pack - 4096}")
    assert used(system) - before == 2 * pack >> 12, "what does not fit goes to another pack"
    system.command("bpf_prog_free a[50]")
    system.command("c = bpf_prog_load 500")
    assert system.kernel.handles["c"].address & -64 == starts[50], "the first hole"
    system.check()
    for name in ("a", "b", "c"):
        system.command(f"bpf_prog_free {name}")
    assert used(system) == before, "packs that are empty go"
    system.check()


def test_a_program_larger_than_a_pack_has_pages_of_its_own() -> None:
    system = boot()
    before = used(system)
    system.command("a = bpf_prog_load 3M")
    pages = -(-((3 << 20) + 8 + 16) // 4096)
    assert 0 <= used(system) - before - pages <= 2, "and the array of its pages"
    system.command("bpf_prog_free a")
    assert used(system) == before
    system.check()


def test_i386_has_no_packs() -> None:
    system = boot("highmem")
    before = used(system)
    system.command("a = bpf_prog_load 500 n=3")
    assert used(system) - before == 3
    assert {bits(system, int(place)) for place in system.kernel.handles["a"].addresses} == {"rx"}
    system.command("bpf_prog_free a")
    assert used(system) == before
    system.check()


def test_the_leak_detector_does_not_report_it() -> None:
    system = boot(cmdline="nokaslr kmemleak=on")
    system.command("init_module drv")
    system.command("a = bpf_prog_load 500 n=10")
    system.command("forget a")
    system.advance(6)
    for _ in range(2):
        system.write("/sys/kernel/debug/kmemleak", "scan")
    assert system.read("/sys/kernel/debug/kmemleak") == b""
