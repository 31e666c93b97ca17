"""Faults of the kernel: who is told, who dies, and that the machine lives."""

from __future__ import annotations

import errno

import pytest

from kmemd import System
from kmemd.machine import Machine
from kmemd.system import SystemCallError

LOG_BUG = "BUG: unable to handle page fault for address: "


@pytest.fixture
def system() -> System:
    return System.boot(machine="default", seed=1, cmdline="nokaslr", clock="manual")


def log(system: System, first: int) -> list[str]:
    return [line for record in system.kernel.printk.since(first) for line in record.text.splitlines()]


def fails(system: System, command: str) -> tuple[int, list[str]]:
    """The errno of a command, and what the kernel said."""
    first = system.kernel.printk.next_seq
    with pytest.raises(SystemCallError) as caught:
        system.command(command)
    return caught.value.errno or 0, log(system, first)


def pid_of(reply: str) -> str:
    return reply.split("pid=")[1].split()[0]


@pytest.mark.parametrize(
    ("prepare", "command", "says", "code"),
    [
        ("a = vmalloc 8K", "WRITE_ONCE a+8K 0", "supervisor write access in kernel mode", "0x0002"),
        ("a = vmalloc 8K", "READ_ONCE a+8K", "supervisor read access in kernel mode", "0x0000"),
        ("a = kmalloc 64", "call a", "supervisor instruction fetch in kernel mode", "0x0011"),
        ("a = kmalloc 64", "WRITE_ONCE 0xffffffff81000008 0", "supervisor write access in kernel mode", "0x0003"),
        ("a = kmalloc 64", "WRITE_ONCE 0xffffffff81800008 0", "supervisor write access in kernel mode", "0x0003"),
        ("a = kmalloc 64", "call 0xffffffff81800008", "supervisor instruction fetch in kernel mode", "0x0011"),
    ],
)
def test_a_bad_access_is_reported_and_ends_its_task(
    system: System, prepare: str, command: str, says: str, code: str
) -> None:
    pid = pid_of(system.command("spawn w image=tiny"))
    system.command(prepare)
    number, said = fails(system, f"{command} pid={pid} by=bad_write+0x2a[bad_drv],cmd_write")
    assert number == errno.EFAULT
    assert any(line.startswith(LOG_BUG) for line in said)
    assert f"#PF: {says}" in said
    assert any(line.startswith(f"#PF: error_code({code}) - ") for line in said)
    assert f"Comm: w {'Not tainted'}" in next(line for line in said if line.startswith("CPU: "))
    culprit = "bad_write+0x2a/" if not command.startswith("call") else " bad_write+0x2a/"
    assert any(culprit in line for line in said)
    assert sum(line == "---[ end trace 0000000000000000 ]---" for line in said) == 1
    assert f"note: w[{pid}] exited with irqs disabled" in said
    with pytest.raises(SystemCallError):
        system.read(f"/proc/{pid}/status")
    assert system.read("/proc/sys/kernel/tainted") == b"128\n"
    system.check()


def test_a_null_pointer_has_words_of_its_own(system: System) -> None:
    number, said = fails(system, "READ_ONCE 0x18")
    assert number == errno.EFAULT
    assert said[0] == "BUG: kernel NULL pointer dereference, address: 0000000000000018"
    assert "PGD 0" in [line.strip() for line in said]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("READ_ONCE 0x6b6b6b6b6b6b6b6b", ", probably for non-canonical address 0x6b6b6b6b6b6b6b6b"),
        ("READ_ONCE 0x800000000000", ", probably for non-canonical address 0x800000000000"),
        ("call 0x6b6b6b6b6b6b6b6b", ""),
    ],
)
def test_an_address_that_no_table_can_map_is_another_fault(system: System, command: str, says: str) -> None:
    number, said = fails(system, f"{command} by=bad_use+0x2a[bad_drv]")
    assert number == errno.EFAULT
    assert said[0] == f"general protection fault{says}: 0000 [#1] SMP"
    assert any(line.startswith("RIP: 0010:bad_use+0x2a/") for line in said)
    assert not any(line.startswith(("BUG: ", "#PF: ", "PGD ")) for line in said)
    assert any(line.startswith("CR2: 0000000000000000 CR3: ") for line in said), "none faulted yet"
    system.check()


def test_a_stack_has_a_guard_below(system: System) -> None:
    pid = pid_of(system.command("spawn deep image=tiny"))
    assert "free=16256" in system.command(f"recurse 1 pid={pid}")
    stack = system.kernel.tasks.find(int(pid)).stack_addr
    number, said = fails(system, f"recurse 129 pid={pid}")
    assert number == errno.EFAULT
    span = f"{stack:016x}..{stack + 16384:016x}"
    assert said[0] == f"BUG: TASK stack guard page was hit at {stack - 8:016x} (stack is {span})"
    assert said[1].startswith("stack guard page: 0000 [#1] SMP")
    with pytest.raises(SystemCallError):
        system.read(f"/proc/{pid}/status")
    system.check()


def test_panic_on_oops_panics_and_leaves_the_task(system: System) -> None:
    pid = pid_of(system.command("spawn w image=tiny"))
    system.write("/proc/sys/kernel/panic_on_oops", "1\n")
    _, said = fails(system, f"READ_ONCE 0xffffc9f000123000 pid={pid}")
    assert "Kernel panic - not syncing: Fatal exception" in said
    assert system.read(f"/proc/{pid}/status")


def test_too_many_oopses_panic(system: System) -> None:
    system.write("/proc/sys/kernel/oops_limit", "2\n")
    assert not any("panic" in line for line in fails(system, "READ_ONCE 0x8")[1])
    said = fails(system, "READ_ONCE 0x8")[1]
    assert "Kernel panic - not syncing: Oopsed too often (kernel.oops_limit is 2)" in said


def test_i386_reports_its_two_levels() -> None:
    system = System.boot(machine="highmem", seed=1, cmdline="nokaslr", clock="manual")
    system.command("a = vmalloc 4K")
    _, said = fails(system, "WRITE_ONCE a+4K 0")
    assert any(line.startswith("*pde = ") and "*pte = 00000000" in line for line in said)
    assert any(line.startswith("EIP: ") for line in said)


def test_set_memory_changes_what_faults(system: System) -> None:
    system.command("a = vmalloc 8K")
    system.command("set_memory_ro a 1")
    assert fails(system, "WRITE_ONCE a 0")[0] == errno.EFAULT
    system.command("WRITE_ONCE a+4K 0")
    system.command("set_memory_x a 1")
    system.command("call a")
    system.command("set_memory_nx a 1")
    assert fails(system, "call a")[0] == errno.EFAULT
    system.command("set_memory_rw a 1")
    system.command("WRITE_ONCE a 0")
    assert fails(system, "set_memory_ro a 4")[0] == errno.EFAULT, "the guard page is not mapped"
    system.check()


def test_writable_and_executable_is_warned_of_once_or_refused(system: System) -> None:
    system.command("a = vmalloc 16K")
    first = system.kernel.printk.next_seq
    system.command("set_memory_x a 1")
    system.command("set_memory_x a+4K 1")
    assert sum(line.startswith("CPA detected W^X violation: ") for line in log(system, first)) == 1
    system.write("/kmemd/security/kernel_wx", "refuse\n")
    assert system.read("/kmemd/security/kernel_wx") == b"warn [refuse]\n"
    assert fails(system, "set_memory_x a+8K 1")[0] == errno.EACCES
    assert fails(system, "call a+8K")[0] == errno.EFAULT


def test_the_policy_refuses_writable_code_to_programs(system: System) -> None:
    pid = pid_of(system.command("spawn w image=tiny"))
    system.command(f"mmap {pid} 4K prot=rwx")
    system.write("/kmemd/security/user_wx", "refuse\n")
    assert fails(system, f"mmap {pid} 4K prot=rwx")[0] == errno.EACCES
    reply = system.command(f"mmap {pid} 4K prot=rw")
    address = next(word for word in reply.split() if word.startswith("addr="))[5:]
    assert fails(system, f"mprotect {pid} {address} 4K rwx")[0] == errno.EACCES
    system.command(f"mprotect {pid} {address} 4K rx")


def test_a_freed_area_leaves_no_protection_behind(system: System) -> None:
    reply = system.command("a = vmalloc 4K")
    system.command("set_memory_ro a 1")
    system.command("vfree a")
    system.kernel.vmalloc.purge()
    assert system.command("b = vmalloc 4K").split()[0] == reply.split()[0]
    system.command("WRITE_ONCE b 0")


def guarded(*features: str, cmdline: str = "") -> tuple[System, str, str]:
    """A machine with some features, a process, and the address of a page of it."""
    machine = Machine.of_memory("guarded", "x86_64", 1, (1 << 30,), ((0,),), ((10,),), cpu_features=features)
    system = System.boot(machine=machine, seed=1, cmdline=f"nokaslr {cmdline}", clock="manual")
    pid = pid_of(system.command("spawn w image=tiny"))
    address = system.command(f"mmap {pid} 4K prot=rwx").split("addr=")[1].split()[0]
    system.command(f"access {pid} {address} 4K w")
    return system, pid, address


def test_smep_keeps_the_kernel_from_user_code() -> None:
    system, pid, address = guarded("smep")
    number, said = fails(system, f"call {address} pid={pid}")
    assert number == errno.EFAULT
    assert said[0] == "unable to execute userspace code (SMEP?) (uid: 0)"
    assert "#PF: error_code(0x0011) - permissions violation" in said
    system.check()


def test_a_report_names_the_tasks_user_and_the_modules(system: System) -> None:
    pid = pid_of(system.command("spawn w image=tiny uid=1000"))
    system.command("init_module first text=8K")
    system.command("init_module second text=8K")
    system.command("init_module gone text=8K")
    system.command("delete_module gone")
    system.command("a = kmalloc 64")
    _, said = fails(system, f"call a pid={pid} by=bad_call[first]")
    assert said[0].endswith("exploit attempt? (uid: 1000)")
    shown = [line.split()[0] for line in system.read("/proc/modules").decode().splitlines()]
    assert shown == ["second", "first"]
    assert "Modules linked in: second first [last unloaded: gone]" in said


def test_smap_keeps_the_kernel_from_user_data() -> None:
    system, pid, address = guarded("smap")
    number, said = fails(system, f"READ_ONCE {address} pid={pid}")
    assert number == errno.EFAULT
    assert said[0] == f"{LOG_BUG}{int(address, 16):016x}"
    assert "#PF: error_code(0x0001) - permissions violation" in said


@pytest.mark.parametrize(
    ("features", "cmdline"), [((), ""), (("smep", "smap"), "nosmep nosmap")], ids=["without", "turned off"]
)
def test_without_them_the_kernel_may(features: tuple[str, ...], cmdline: str) -> None:
    system, pid, address = guarded(*features, cmdline=cmdline)
    system.command(f"READ_ONCE {address} pid={pid}")
    system.command(f"call {address} pid={pid}")
    assert system.read(f"/proc/{pid}/status")


def direct_map(system: System) -> dict[str, int]:
    lines = system.read("/proc/meminfo").decode().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("DirectMap")}


def test_a_changed_page_splits_its_large_page_once(system: System) -> None:
    before = direct_map(system)
    address = system.kernel.layout.page_offset + (512 << 20)
    for page in (0, 3, 511):
        system.command(f"set_memory_ro {address + page * 4096:#x} 1")
    after = direct_map(system)
    assert after["DirectMap4k"] - before["DirectMap4k"] == 2048
    assert before["DirectMap2M"] - after["DirectMap2M"] == 2048
    assert b"\ndirect_map_level2_splits 1\n" in system.read("/proc/vmstat")
    system.command("a = vmalloc 4K")
    system.command("set_memory_ro a 1")
    assert direct_map(system) == after
