"""A panic that somebody asked for halts the machine: it can be read, and nothing acts."""

from __future__ import annotations

import contextlib
import errno

import pytest

from kmemd.system import System

OOPS = "READ_ONCE 0xffffc9f000123000"


def halted(*lines: str, knobs: tuple[tuple[str, str], ...] = (), cmdline: str = "") -> System:
    """A machine after some lines of which the last one made it panic."""
    system = System.boot(machine="default", seed=1, cmdline=cmdline, clock="manual")
    for name, value in knobs:
        system.write(f"/proc/sys/{name}", value)
    for line in lines[:-1]:
        system.command(line)
    with contextlib.suppress(OSError):
        system.command(lines[-1])
    return system


def last_words(system: System) -> str:
    lines = [line for line in system.read("/kmemd/dmesg").decode().splitlines() if "Kernel panic" in line]
    return lines[0].partition("not syncing: ")[2]


@pytest.mark.parametrize(
    ("knob", "lines", "words"),
    [
        ("kernel/panic_on_oops", (OOPS,), "Fatal exception"),
        ("kernel/oops_limit", (OOPS,), "Oopsed too often (kernel.oops_limit is 1)"),
        (
            "vm/panic_on_oom",
            ("p = spawn big", "m = mmap p 4G", "access p m 4G w"),
            "Out of memory: system-wide panic_on_oom is enabled",
        ),
        (
            "kernel/panic_on_warn",
            ("a = vmalloc 16K", "set_memory_x a 2"),
            "kernel: panic_on_warn set ...",
        ),
        (
            "kernel/warn_limit",
            ("a = vmalloc 16K", "set_memory_x a 2"),
            "kernel: system warned too often (kernel.warn_limit is 1)",
        ),
    ],
)
def test_settings_that_halt(knob: str, lines: tuple[str, ...], words: str) -> None:
    system = halted(*lines, knobs=(("vm/overcommit_memory", "1"), (knob, "1")))
    assert last_words(system) == words
    with pytest.raises(OSError, match="panicked") as refused:
        system.command("kmalloc 64")
    assert refused.value.errno == errno.EHOSTDOWN


def test_what_a_halted_machine_refuses_and_what_it_shows() -> None:
    system = halted(OOPS, knobs=(("kernel/panic_on_oops", "1"),))
    uptime, vmstat = system.read("/proc/uptime"), system.read("/proc/vmstat")
    for refused in (
        lambda: system.write("/proc/sys/vm/swappiness", "7"),
        lambda: system.write("/proc/sysrq-trigger", "m"),
        lambda: system.mkdir("/sys/fs/cgroup/a"),
        lambda: system.command("sleep 1s"),
    ):
        with pytest.raises(OSError, match="nothing acts; mount the machine anew") as error:
            refused()
        assert error.value.errno == errno.EHOSTDOWN
    system.advance(10)
    assert (system.read("/proc/uptime"), system.read("/proc/vmstat")) == (uptime, vmstat)
    assert "panicked" in system.read("/kmemd/error_log").decode()
    system.check()


def test_sysrq_halts() -> None:
    system = System.boot(machine="default", seed=1, clock="manual")
    system.write("/proc/sysrq-trigger", "c")
    with pytest.raises(OSError, match="sysrq triggered crash"):
        system.command("kmalloc 64")


def test_a_report_of_kfence_is_a_warning() -> None:
    system = halted(
        "p = kmalloc 64 n=200",
        "WRITE_ONCE p+64 1",
        cmdline="kfence.sample_interval=1 panic_on_warn=1 nokaslr",
    )
    text = system.read("/kmemd/dmesg").decode()
    assert ("Kernel panic" in text) is ("BUG: KFENCE" in text)


def test_panics_that_nobody_asked_for_do_not_halt() -> None:
    system = halted("access init 0x0 4K r")
    system.kernel.dump_stack.panic("Attempted to kill init! exitcode=0x0000000b")
    assert last_words(system) == "Attempted to kill init! exitcode=0x0000000b"
    system.command("q = kmalloc 64")
    system.check()
