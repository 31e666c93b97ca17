"""The start of the kernel log: line by line what the captured machines said, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd import System
from kmemd.boot import log
from kmemd.machine import Machine

BOOT = Path(__file__).parents[1] / "captures/linux-6.1/boot"
GIB = 1 << 30
PAIR = ((10, 20), (20, 10))
MACHINES = {
    "i386-2G-highmem-2cpu": ("i386", 2, (2 * GIB,), ((0, 1),), ((10,),)),
    "x86_64-256M-1cpu": ("x86_64", 1, (GIB // 4,), ((0,),), ((10,),)),
    "x86_64-2G-2cpu": ("x86_64", 2, (2 * GIB,), ((0, 1),), ((10,),)),
    "x86_64-2node-4G-4cpu": ("x86_64", 4, (2 * GIB, 2 * GIB), ((0, 1), (2, 3)), PAIR),
    "x86_64-2node-8G-movablecore2G": ("x86_64", 4, (4 * GIB, 4 * GIB), ((0, 1), (2, 3)), PAIR),
}


def boot_log(name: str) -> list[str]:
    cmdline = (BOOT / name / "proc/cmdline").read_text().strip()
    machine = Machine.of_memory(name, *MACHINES[name], cmdline=cmdline)
    parsed = machine.command_line()
    memory = machine.boot_memory(parsed)
    zonelists = [[0]] if len(memory.nodes) == 1 else [[0, 1], [1, 0]]
    stages = (
        log.setup_arch(machine, parsed, memory),
        log.mm_init(machine, parsed, memory, zonelists),
        log.kernel_init(machine, parsed, memory),
        log.run_init(),
    )
    return [text for stage in stages for _, text in stage]


@pytest.mark.parametrize("name", MACHINES)
def test_the_lines_are_those_of_the_captured_machine_in_order(name: str) -> None:
    captured = iter((BOOT / name / "dmesg").read_text().splitlines())
    lines = [line for line in boot_log(name) if not line.startswith("NODE_DATA")]  # where it lies differs
    assert len(lines) > 40
    for line in lines:
        assert any(line == other for other in captured), line


def test_a_booted_machine_begins_its_log_with_its_version() -> None:
    system = System.boot("two-node", cmdline="page_owner=on")
    lines = system.read("/kmemd/dmesg").decode().splitlines()
    assert lines[0] == f"<5>[    0.000000] {system.kernel.machine.banner}"
    assert lines[1].endswith("nokaslr page_owner=on")
    assert not any("page_owner is disabled" in line for line in lines)
    assert lines[-1].endswith("Run /init as init process")


@pytest.mark.parametrize("name", [name for name in MACHINES if name.startswith("x86_64")])
def test_boot_ends_with_the_search_for_writable_code(name: str) -> None:
    captured = (BOOT / name / "dmesg").read_text().splitlines()
    end = captured.index("Run /init as init process") + 1
    machine = Machine.from_capture(BOOT / name, shape_only=True)
    lines = System.boot(machine).read("/kmemd/dmesg").decode().splitlines()
    assert [line.split("] ", 1)[1] for line in lines[-6:]] == captured[end - 6 : end]
    assert "Checked W+X" in lines[-2]


def test_without_nx_there_is_nothing_to_search_for() -> None:
    text = System.boot("highmem").read("/kmemd/dmesg").decode()
    assert "Write protecting kernel text and read-only data: 4040k\n" in text
    assert "W+X" not in text


@pytest.mark.parametrize(
    ("cmdline", "says"), [("pti=on", True), ("", False), ("pti=on nopti", True), ("nopti", False), ("pti=auto", False)]
)
def test_isolation_is_told_of(cmdline: str, says: bool) -> None:
    lines = [line.split("] ", 1)[1] for line in System.boot(cmdline=cmdline).read("/kmemd/dmesg").decode().splitlines()]
    title = "Kernel/User page tables isolation: "
    found = [line.removeprefix(title) for line in lines if line.startswith(title)]
    assert found == (["force enabled on command line.", "enabled"] if says else [])
    passed = "x86/mm: Checked W+X mappings: passed, no W+X pages found."
    assert ("x86/mm: Checking user space page tables" in lines) == says
    assert lines.count(passed) == 1 + says


def test_a_twin_tells_of_its_memory_and_not_of_a_boot() -> None:
    system = System.boot(BOOT / "x86_64-2G-2cpu")
    text = system.read("/kmemd/dmesg").decode()
    assert "BIOS-e820: [mem 0x0000000000100000-0x000000007ffd9fff] usable\n" in text
    assert "Run /init" not in text
