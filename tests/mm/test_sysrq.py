"""The magic SysRq keys: what they log, and what they do."""

from __future__ import annotations

import re

import pytest

from kmemd.system import System


@pytest.fixture
def system() -> System:
    found = System.boot(machine="default", seed=1, clock="manual")
    for line in ("hog = spawn hog", "m = mmap hog 64M", "access hog m 64M w", "small = spawn small"):
        found.command(line)
    return found


def press(system: System, keys: str) -> str:
    """What the kernel logs for a write; the machine is whole afterwards."""
    before = len(system.read("/kmemd/dmesg"))
    system.write("/proc/sysrq-trigger", keys)
    system.check()
    return re.sub(r"<\d>\[ +\d+\.\d+\] ", "", system.read("/kmemd/dmesg")[before:].decode())


def comms(system: System) -> set[str]:
    """The names of all processes."""
    return {task.comm for task in system.kernel.tasks}


def test_it_cannot_be_read(system: System) -> None:
    with pytest.raises(OSError, match="EIO"):
        system.read("/proc/sysrq-trigger")


def test_memory(system: System) -> None:
    lines = press(system, "m\n").splitlines()
    assert lines[:2] == ["sysrq: Show Memory", "Mem-Info:"]
    free = int(re.findall(r" free:(\d+) ", "\n".join(lines))[0])
    total = {row.split(":")[0]: int(row.split()[1]) for row in system.read("/proc/meminfo").decode().splitlines()}
    assert free * 4 <= total["MemFree"] <= total["MemTotal"]
    assert "524152 pages RAM" in lines


def test_the_oom_killer_by_hand(system: System) -> None:
    text = press(system, "f\n")
    lines = text.splitlines()
    assert lines[0] == "sysrq: Manual OOM execution"
    assert lines[1] == "kworker/0:1 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=-1, oom_score_adj=0"
    frames = re.findall(r"^ (\w+)\+0x[0-9a-f]+/", text, re.M)
    assert frames[2:] == [
        *("dump_header", "oom_kill_process", "out_of_memory", "moom_callback"),
        *("process_one_work", "worker_thread", "kthread", "ret_from_fork"),
    ]
    assert re.search(r"^Out of memory: Killed process \d+ \(hog\) total-vm:", text, re.M)
    assert "hog" not in comms(system)
    assert "small" in comms(system)


def test_nobody_to_kill_is_no_panic(system: System) -> None:
    system.write("/proc/sys/vm/panic_on_oom", "2")
    press(system, "i")
    assert not {"hog", "small", "sh", "getty"} & comms(system)
    said = press(system, "f")
    assert said.endswith("Out of memory and no killable processes...\nsysrq: OOM request ignored. No task eligible\n")
    assert "panic" not in said


def test_signals(system: System) -> None:
    system.command("sigaction small TERM ignore")
    press(system, "e")
    assert {"hog", "small"} & comms(system) == {"small"}
    assert system.read("/proc/sys/kernel/printk") == b"10\t4\t1\t7\n"
    press(system, "i")
    assert "small" not in comms(system)
    assert "init" in comms(system)


def test_loglevel_and_sync(system: System) -> None:
    assert press(system, "4").splitlines() == ["sysrq: Changing Loglevel", "sysrq: Loglevel set to 4"]
    assert system.read("/proc/sys/kernel/printk").split()[0] == b"4"
    system.command("create /mnt/file 1M")
    system.command("write_file /mnt/file n=1M")
    assert press(system, "s").splitlines() == ["sysrq: Emergency Sync", "Emergency Sync complete"]
    dirty = re.search(r"^Dirty: +(\d+) kB", system.read("/proc/meminfo").decode(), re.M)
    assert dirty is not None
    assert dirty[1] == "0"


def test_crash(system: System) -> None:
    said = press(system, "c")
    assert said.startswith("sysrq: Trigger a crash\nKernel panic - not syncing: sysrq triggered crash\n")
    assert "sysrq_handle_crash" in said


@pytest.mark.parametrize("key", ["h", "?", "A", "\n"])
def test_help(system: System, key: str) -> None:
    (line,) = press(system, key).splitlines()
    assert line.startswith("sysrq: HELP : loglevel(0-9) crash(c) ")
    assert "memory-full-oom-kill(f)" in line


def test_a_write_of_nothing(system: System) -> None:
    assert press(system, "") == ""


def test_the_knob() -> None:
    system = System.boot(machine="default", seed=1, clock="manual")
    assert system.read("/proc/sys/kernel/sysrq") == b"438\n"
    system.write("/proc/sys/kernel/sysrq", "0")
    assert press(system, "m").startswith("sysrq: Show Memory"), "root's writes are not asked for it"
    assert System.boot(machine="default", cmdline="sysrq_always_enabled").read("/proc/sys/kernel/sysrq") == b"1\n"
