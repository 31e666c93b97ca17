"""Bad accesses: the kernel's line, the registers behind it, and what the signal does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from kmemd.core.context import Context
from kmemd.mm.bad_area import BadArea
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.mm_types import VM_EXEC, VM_READ, Mm, Vma
from kmemd.mm.printk import KERN_EMERG, KERN_INFO, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.signals import SEGV_ACCERR, SEGV_MAPERR, SI_KERNEL, SIGBUS, SIGSEGV, Action, Signal
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.user_regs import UserMode
from tests.mm.oom_fake import Task

TEXT, STACK = 0x401000, 0x7FFD2352A188
STORE = TEXT + 0x6D7
LOAD = TEXT + 0x6D1


@dataclass
class FakeFile:
    name: str


class Harness:
    def __init__(self, arch: str = "x86_64", fatal: int = 0) -> None:
        self.context = Context()
        self.printk = Printk(self.context)
        self.user = UserMode(arch)
        dump = DumpStack(self.context, StackDepot(), self.printk, str, "6.1.192 #2", user=self.user)
        self.area = BadArea(
            self.context,
            self.printk,
            self.user,
            RateLimit(lambda: self.context.now, self.printk),
            dump,
            lambda cpu: (cpu, 0),
            long_bits=64 if arch == "x86_64" else 32,
            print_fatal_signals=fatal,
        )
        file = FakeFile("/bin/uo")
        text = Vma(TEXT, TEXT + 0x7B000, VM_READ | VM_EXEC, file=file)  # type: ignore[arg-type]
        self.task = Task(60, mm=Mm(1, vmas=[text], start_code=TEXT, start_stack=STACK))
        self.context.switch(60, 60, "uo", 1)

    def deliver(self, *args: int, **more: bool) -> bool:
        return self.area.deliver(self.task, Signal(*args, **more))

    @property
    def log(self) -> list[str]:
        return [record.text for record in self.printk.since(0)]


SP = "sp 00007ffd2352a178"
WHERE = "in uo[401000+7b000] likely on CPU 1 (core 1, socket 0)"


@pytest.mark.parametrize(
    ("signal", "more", "line"),
    [
        ((SIGSEGV, SEGV_MAPERR, 0), {}, f"segfault at 0 ip {LOAD:016x} {SP} error 4 {WHERE}"),
        ((SIGSEGV, SEGV_MAPERR, 0x5000), {"write": True}, f"segfault at 5000 ip {STORE:016x} {SP} error 6 {WHERE}"),
        (
            (SIGSEGV, SEGV_ACCERR, 0x5000),
            {"write": True, "present": True},
            f"segfault at 5000 ip {STORE:016x} {SP} error 7 {WHERE}",
        ),
        (
            (SIGSEGV, SEGV_MAPERR, 0xFFFFFFFF81000000),
            {},
            f"segfault at ffffffff81000000 ip {LOAD:016x} {SP} error 5 {WHERE}",
        ),
        (
            (SIGSEGV, SEGV_ACCERR, 0x402000),
            {"execute": True, "present": True},
            f"segfault at 402000 ip 0000000000402000 {SP} error 15 {WHERE}",
        ),
    ],
)
def test_the_line_of_a_segfault(signal: tuple[int, int, int], more: dict[str, bool], line: str) -> None:
    harness = Harness()
    assert not harness.deliver(*signal, **more)
    assert harness.log[0] == f"uo[60]: {line}"
    assert [record.level for record in harness.printk.since(0)] == [KERN_INFO, KERN_INFO]
    assert harness.task.killed == SIGSEGV
    assert harness.user.access is None


def test_no_text_behind_the_instruction() -> None:
    harness = Harness()
    harness.deliver(SIGSEGV, SEGV_MAPERR, 0x9000_0000, execute=True)
    assert harness.log == [
        f"uo[60]: segfault at 90000000 ip 0000000090000000 {SP} error 14 likely on CPU 1 (core 1, socket 0)",
        "Code: Unable to access opcode bytes at 0x8fffffd6.",
    ]


def test_code_shows_64_bytes_around_the_access() -> None:
    harness = Harness()
    harness.deliver(SIGSEGV, SEGV_MAPERR, 0x5000, write=True)
    words = harness.log[1].removeprefix("Code: ").split()
    assert len(words) == 64
    assert words[42:46] == ["<c6>", "04", "07", "01"]
    harness = Harness()
    harness.deliver(SIGSEGV, SEGV_MAPERR, 0x5000)
    assert harness.log[1].split()[43:47] == ["<0f>", "b6", "0c", "07"]


def test_a_non_canonical_address_is_another_trap() -> None:
    harness = Harness()
    harness.deliver(SIGSEGV, SI_KERNEL, 0x8000_0000_0000_0000)
    line = "traps: uo[60] general protection fault ip:4016d1 sp:7ffd2352a178 error:0 in uo[401000+7b000]"
    assert harness.log == [line]


def test_a_bus_error_is_not_logged() -> None:
    harness = Harness()
    assert not harness.deliver(SIGBUS, 2, 0x5000)
    assert harness.log == []
    assert harness.task.killed == SIGBUS


def test_who_handles_it_lives_and_is_not_logged() -> None:
    harness = Harness()
    harness.task.signals.set(SIGSEGV, Action.CATCH)
    assert harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    assert (harness.log, harness.task.killed) == ([], 0)


def test_ignoring_it_helps_nobody() -> None:
    harness = Harness()
    harness.task.signals.set(SIGSEGV, Action.IGNORE)
    assert not harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    assert len(harness.log) == 2
    assert harness.task.signals.mask(Action.IGNORE) == 0


def test_ten_lines_in_five_seconds() -> None:
    harness = Harness()
    for _ in range(12):
        harness.task.killed = 0
        harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    assert len(harness.log) == 20
    harness.task.killed = 0
    harness.context.charge(5 * NSEC_PER_SEC + 1)
    harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    assert harness.log[20] == "show_signal_msg: 2 callbacks suppressed"
    assert harness.log[21].startswith("uo[60]: segfault at 0 ")


def test_the_knob_silences_it() -> None:
    harness = Harness()
    row = next(row for row in harness.area.TUNABLES if row.path == "proc/sys/debug/exception-trace")
    harness.area.tune(row, "0")
    assert not harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    assert harness.log == []


def test_init_is_an_emergency_and_a_panic_that_it_survives() -> None:
    harness = Harness()
    harness.task.pid = 1
    harness.task.signals.set(SIGSEGV, Action.IGNORE)
    assert harness.deliver(SIGSEGV, SEGV_MAPERR, 0)
    records = harness.printk.since(0)
    assert records[0].level == KERN_EMERG
    assert "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b" in harness.log
    assert harness.task.killed == 0


def test_fatal_signals_can_be_printed() -> None:
    harness = Harness(fatal=1)
    harness.user.begin(harness.task.mm, np.arange(5, 9), write=True)  # type: ignore[arg-type]
    harness.deliver(SIGBUS, 2, 0x7000, write=True)
    assert harness.log == [
        "potentially unexpected fatal signal 7.",
        "CPU: 1 PID: 60 Comm: uo Not tainted 6.1.192 #2 ",
        "RIP: 0033:0x4016d7",
        harness.log[3],
        "RSP: 002b:00007ffd2352a178 EFLAGS: 00000202",
        "RAX: 0000000000002000 RBX: 0000000000005000 RCX: 0000000000000000",
        "RDX: 0000000000000001 RSI: 0000000000004000 RDI: 0000000000005000",
        "RBP: 0000000000000000 R08: 0000000000000000 R09: 0000000000000000",
        "R10: 0000000000000000 R11: 0000000000000000 R12: 0000000000004000",
        "R13: 0000000000000000 R14: 0000000000000000 R15: 0000000000000000",
        "FS:  0000000000000000 GS:  0000000000000000",
    ]


def test_a_32_bit_machine() -> None:
    harness = Harness("i386", fatal=1)
    assert harness.task.mm is not None
    harness.task.mm.start_stack = 0xBFFFE188
    harness.deliver(SIGSEGV, SEGV_MAPERR, 0xC0100000, write=True)
    assert harness.log[0] == f"uo[60]: segfault at c0100000 ip 004016d6 sp bfffe178 error 7 {WHERE}"
    assert "EAX: 00000000 EBX: c0100000 ECX: 00000000 EDX: 00000001" in harness.log
    assert "DS: 007b ES: 007b FS: 0000 GS: 0000 SS: 007b EFLAGS: 00000202" in harness.log
