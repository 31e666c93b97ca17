"""Every way of going wrong with memory, with its guard on and off: who notices, in which words, and what is left.

Off is what Linux has: a parameter, or a machine whose hardware or kernel lacks the guard (NX, a guard below stacks).
What keeps programs out of the kernel cannot be off; a guard page is one page, and does not see a write behind it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from kmemd import System
from kmemd.machine import Machine
from kmemd.system import SystemCallError

BY = "by=bad_write+0x2a[bad_drv],cmd_write"
DEBUG = "slub_debug=FZPU,kmalloc-64"
OTHER = "kmalloc 64 by=good_alloc+0x10[good_drv],cmd_write"


@dataclass(frozen=True)
class Violation:
    """What code does, and the command at which a guard finds it. ``a`` is an object of 64 bytes, ``A`` its address."""

    name: str
    guard: str
    steps: tuple[str, ...]
    finds: str
    says: str
    culprit: str = ""
    fails: bool = False


VIOLATIONS = (
    Violation(
        "write past a slab object",
        DEBUG,
        (f"memset a+64 0x41 4 {BY}",),
        f"kfree a {BY}",
        "BUG kmalloc-64 (Not tainted): Right Redzone overwritten",
        "Allocated in good_alloc+0x10/",
        fails=True,
    ),
    Violation(
        "write before a slab object",
        DEBUG,
        (f"memset A-8 0x41 4 {BY}",),
        f"kfree a {BY}",
        "BUG kmalloc-64 (Not tainted): Left Redzone overwritten",
        "Allocated in good_alloc+0x10/",
        fails=True,
    ),
    Violation(
        "write behind the red zone",
        DEBUG,
        (f"memset A+151 0x41 1 {BY}",),
        f"kfree a {BY}",
        "BUG kmalloc-64 (Not tainted): Object padding overwritten",
        "Allocated in good_alloc+0x10/",
    ),
    Violation(
        "write after free",
        DEBUG,
        ("kfree A by=good_free+0x8[good_drv]", f"memset A+16 0x42 1 {BY}"),
        OTHER,
        "BUG kmalloc-64 (Not tainted): Poison overwritten",
        "Freed in good_free+0x8/",
    ),
    Violation(
        "a wild pointer over a free pointer",
        DEBUG,
        ("kfree A by=good_free+0x8[good_drv]", f"memset A+72 0x42 8 {BY}"),
        OTHER,
        "BUG kmalloc-64 (Not tainted): Freepointer corrupt",
        "Freed in good_free+0x8/",
    ),
    Violation(
        "write to a free page",
        "page_poison=1",
        (f"memset PAGE+100 0x42 3 {BY}",),
        f"q = alloc_pages {BY}",
        "pagealloc: memory corruption",
        "bad_write+0x2a/",
    ),
    Violation(
        "copy of more than an object to a program",
        "hardened_usercopy=on",
        (),
        f"copy_to_user PID USER A 128 {BY}",
        "usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64' (offset 0, size 128)!",
        "bad_write+0x2a/",
        fails=True,
    ),
    Violation(
        "copy of more than an object from a program",
        "hardened_usercopy=on",
        (),
        f"copy_from_user PID A USER 96 {BY}",
        "usercopy: Kernel memory overwrite attempt detected to SLUB object 'kmalloc-64' (offset 0, size 96)!",
        "bad_write+0x2a/",
        fails=True,
    ),
)
GUARDED = (
    Violation(
        "read past a guarded object",
        "",
        (),
        f"READ_ONCE GUARD {BY}",
        "BUG: KFENCE: out-of-bounds read in bad_write+0x2a/",
        "allocated by task ",
    ),
    Violation(
        "write after free of a guarded object",
        "",
        ("kfree A by=good_free+0x8[good_drv]",),
        f"memset A 0x42 4 {BY}",
        "BUG: KFENCE: use-after-free write in bad_write+0x2a/",
        "freed by task ",
    ),
    Violation(
        "double free of a guarded object",
        "",
        ("kfree A by=good_free+0x8[good_drv]",),
        f"kfree A {BY}",
        "BUG: KFENCE: invalid free in bad_write+0x2a/",
        "freed by task ",
        fails=True,
    ),
    Violation(
        "write between a guarded object and its guard",
        "",
        (f"memset A+60 0x41 8 {BY}",),
        f"kfree A {BY}",
        "BUG: KFENCE: memory corruption in bad_write+0x2a/",
        " good_alloc+0x10/",
    ),
)
OFF = {DEBUG: "", "page_poison=1": "page_poison=0", "hardened_usercopy=on": "hardened_usercopy=off"}
TITLES = [violation.name for violation in VIOLATIONS]


class Play:
    """A machine on which a violation is played."""

    def __init__(self, cmdline: str, size: int = 64) -> None:
        self.system = System.boot(machine="default", seed=1, cmdline=f"nokaslr no_hash_pointers {cmdline}")
        reply = self.system.command(f"a = kmalloc {size} by=good_alloc+0x10[good_drv],cmd_write")
        self.object = word(reply, "addr")
        self.pid = word(self.system.command("spawn w image=tiny"), "pid", 10)
        self.user = word(self.system.command(f"mmap {self.pid} 4K"), "addr")
        page = word(self.system.command("p = alloc_pages"), "pfn", 0)
        self.page = self.system.kernel.layout.page_offset + (page << 12)
        self.system.command("free_pages p")

    def text(self, command: str) -> str:
        """A command with the places of this machine in it."""
        places = {"PAGE": self.page, "USER": self.user, "GUARD": (self.object & -4096) + 4096, "A": self.object}
        out = []
        for item in command.split():
            name, sign, offset = item.partition("+") if "+" in item else item.partition("-")
            if name in places and (sign or name == item):
                distance = int(offset or 0) * (-1 if sign == "-" else 1)
                item = f"{places[name] + distance:#x}"
            out.append(str(self.pid) if item == "PID" else item)
        return " ".join(out)

    def run(self, command: str, *, fails: bool = False) -> list[str]:
        """What the kernel says of a command."""
        first = self.system.kernel.printk.next_seq
        if fails:
            with pytest.raises(SystemCallError):
                self.system.command(self.text(command))
        else:
            self.system.command(self.text(command))
        return [r.text for r in self.system.kernel.printk.since(first) if not r.text.startswith("kmemd: ")]


def word(reply: str, key: str, base: int = 0) -> int:
    return int(reply.split(f"{key}=")[1].split()[0], base)


@pytest.mark.parametrize("violation", VIOLATIONS, ids=TITLES)
def test_a_guard_that_is_on_reports_it(violation: Violation) -> None:
    play = Play(violation.guard)
    for step in violation.steps:
        assert play.run(step) == [], "nothing is seen until somebody looks"
    said = play.run(violation.finds, fails=violation.fails)
    assert violation.says in said
    assert any(line.strip().startswith(violation.culprit.strip()) for line in said)
    assert play.system.read("/proc/sys/kernel/tainted") != b"0\n" or violation.guard == "page_poison=1"
    play.system.check()
    assert play.run("kmalloc 64 n=200") == [], "the allocator goes on"
    play.system.check()


@pytest.mark.parametrize("violation", VIOLATIONS, ids=TITLES)
def test_without_its_guard_nobody_notices(violation: Violation) -> None:
    play = Play(OFF[violation.guard])
    for step in (*violation.steps, violation.finds):
        assert play.run(step) == []
    play.system.check()
    assert play.run("kmalloc 64 n=200") == []
    assert play.system.read("/proc/sys/kernel/tainted") == b"0\n"
    play.system.check()


@pytest.mark.parametrize("violation", GUARDED, ids=[violation.name for violation in GUARDED])
def test_kfence_reports_it_at_once(violation: Violation) -> None:
    play = Play("kfence.sample_interval=100", size=60)
    assert play.system.kernel.kfence.covers(play.object)
    for step in violation.steps:
        assert play.run(step) == []
    said = play.run(violation.finds, fails=violation.fails)
    assert any(line.startswith(violation.says) for line in said)
    assert any(line.startswith(violation.culprit) for line in said)
    assert b"total bugs: 1\n" in play.system.read("/sys/kernel/debug/kfence/stats")
    assert play.system.read("/proc/sys/kernel/tainted") == b"32\n"
    play.system.check()


@dataclass(frozen=True)
class Trap:
    """What the page tables catch at once. ``{pid}`` and ``{a}`` in a command are the task and an address; ``machine``
    and ``cmdline`` have the guard, ``off`` (a machine, a command line and a command) has not.
    """

    name: str
    prepare: tuple[str, ...]
    command: str
    says: tuple[str, ...]
    culprit: str
    off: tuple[str, str, str]
    machine: str = "default"
    cmdline: str = ""


OOPS = "BUG: unable to handle page fault for address: "
BAD = "pid={pid} by=bad_write+0x2a[bad_drv],cmd_write"
AREAS = ("a = vmalloc 8K", "b = vmalloc 8K")
TRAPS = (
    Trap(
        "write past a vmalloc area",
        AREAS,
        f"WRITE_ONCE a+8K 0 {BAD}",
        (OOPS, "#PF: supervisor write access in kernel mode", "#PF: error_code(0x0002) - not-present page"),
        "RIP: 0010:bad_write+0x2a/",
        ("default", "", f"WRITE_ONCE a+12K 0 {BAD}"),
    ),
    Trap(
        "memset past a vmalloc area",
        AREAS,
        f"memset a 0x41 8193 {BAD}",
        (OOPS, "#PF: supervisor write access in kernel mode"),
        "RIP: 0010:bad_write+0x2a/",
        ("default", "", f"memset a+12K 0x41 8192 {BAD}"),
    ),
    Trap(
        "write to a vmalloc area that is gone",
        (*AREAS, "vfree a"),
        f"WRITE_ONCE {{a}} 0 {BAD}",
        (OOPS, "#PF: error_code(0x0002) - not-present page"),
        "RIP: 0010:bad_write+0x2a/",
        ("default", "", f"WRITE_ONCE b 0 {BAD}"),
    ),
    Trap(
        "write to the kernel's code",
        (),
        f"WRITE_ONCE 0xffffffff81000008 0 {BAD}",
        (f"{OOPS}ffffffff81000008", "#PF: error_code(0x0003) - permissions violation"),
        "RIP: 0010:bad_write+0x2a/",
        ("default", "rodata=off", f"WRITE_ONCE 0xffffffff81000008 0 {BAD}"),
    ),
    Trap(
        "write to the kernel's constants",
        (),
        f"memset 0xffffffff81800008 0 8 {BAD}",
        (f"{OOPS}ffffffff81800008", "#PF: error_code(0x0003) - permissions violation"),
        "RIP: 0010:bad_write+0x2a/",
        ("default", "rodata=off", f"memset 0xffffffff81800008 0 8 {BAD}"),
    ),
    Trap(
        "execution of data",
        ("a = kmalloc 64",),
        f"call a {BAD}",
        (
            "kernel tried to execute NX-protected page - exploit attempt? (uid: 0)",
            OOPS,
            "#PF: supervisor instruction fetch in kernel mode",
            "#PF: error_code(0x0011) - permissions violation",
        ),
        "bad_write+0x2a/",
        ("highmem", "", f"call a {BAD}"),
    ),
    Trap(
        "execution of a program's memory",
        (),
        f"call {{user}} {BAD}",
        ("unable to execute userspace code (SMEP?) (uid: 0)", OOPS),
        "bad_write+0x2a/",
        ("guarded", "nosmep", f"call {{user}} {BAD}"),
        machine="guarded",
    ),
    Trap(
        "read of a program's memory without copy_from_user",
        (),
        f"READ_ONCE {{user}} {BAD}",
        (OOPS, "#PF: error_code(0x0001) - permissions violation"),
        "RIP: 0010:bad_write+0x2a/",
        ("guarded", "nosmap", f"READ_ONCE {{user}} {BAD}"),
        machine="guarded",
    ),
    Trap(
        "a stack that runs into its guard",
        (),
        f"recurse 129 {BAD}",
        ("BUG: TASK stack guard page was hit at ", "stack guard page: 0000 [#1] SMP"),
        "RIP: 0010:bad_write+0x2a/",
        ("highmem", "", f"recurse 129 {BAD}"),
    ),
)


class Trapped:
    """A machine with a task that does wrong."""

    def __init__(self, machine: str, cmdline: str, prepare: tuple[str, ...]) -> None:
        features = ("smep", "smap")
        guarded = Machine.of_memory("guarded", "x86_64", 1, (1 << 30,), ((0,),), ((10,),), cpu_features=features)
        system = System.boot(machine=guarded if machine == "guarded" else machine, seed=1, cmdline=f"nokaslr {cmdline}")
        self.system = system
        self.pid = word(system.command("spawn w image=tiny"), "pid", 10)
        self.user = word(system.command(f"mmap {self.pid} 4K prot=rwx"), "addr")
        system.command(f"access {self.pid} {self.user:#x} 4K w")
        replies = [system.command(line) for line in prepare]
        self.a = word(replies[0], "addr") if replies else 0

    def run(self, command: str) -> tuple[int, list[str]]:
        """The errno of a command, 0 without, and what the kernel said of it."""
        first, number = self.system.kernel.printk.next_seq, 0
        text = command.format(pid=self.pid, a=f"{self.a:#x}", user=f"{self.user:#x}")
        try:
            self.system.command(text)
        except SystemCallError as error:
            number = error.errno or 0
        records = self.system.kernel.printk.since(first)
        lines = [line for record in records for line in record.text.splitlines()]
        return number, [line for line in lines if not line.startswith("kmemd: ")]

    @property
    def lives(self) -> bool:
        return self.pid in self.system.kernel.tasks

    def goes_on(self) -> None:
        self.system.check()
        for line in ("c = vmalloc 64K", "memset c 1 64K", "k = kmalloc 64 n=200", "vfree c"):
            assert self.run(line) == (0, [])
        self.system.check()


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.name for trap in TRAPS])
def test_page_tables_catch_it_at_once(trap: Trap) -> None:
    play = Trapped(trap.machine, trap.cmdline, trap.prepare)
    number, said = play.run(trap.command)
    assert number == errno.EFAULT
    at = 0
    for words in trap.says:
        at = next(index for index in range(at, len(said)) if said[index].startswith(words))
    assert any(line.strip().startswith(trap.culprit) for line in said)
    assert any(f" PID: {play.pid} Comm: w Not tainted " in line for line in said)
    assert any(line.strip().startswith("cmd_write+0x") for line in said)
    assert said.count("---[ end trace 0000000000000000 ]---") == 1
    assert said[-1] == f"note: w[{play.pid}] exited with irqs disabled"
    assert not play.lives
    assert play.system.read("/proc/sys/kernel/tainted") == b"128\n"
    play.goes_on()


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.name for trap in TRAPS])
def test_without_it_nothing_is_caught(trap: Trap) -> None:
    machine, cmdline, command = trap.off
    play = Trapped(machine, cmdline, trap.prepare)
    assert play.run(command) == (0, [])
    assert play.lives
    assert play.system.read("/proc/sys/kernel/tainted") == b"0\n"
    play.goes_on()


@pytest.mark.parametrize("cmdline", ["", "pti=on"])
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("kind", "code"), [("r", 5), ("w", 7)])
@pytest.mark.parametrize("address", ["0xffff888000001000", "0xffffffff81000000", "0xffffc90000001000"])
def test_programs_are_kept_out_of_the_kernel(address: str, kind: str, code: int, shown: bool, cmdline: str) -> None:
    """Its own instruction is what did it; nobody can turn that off, only what is said of it."""
    play = Trapped("default", cmdline, ())
    play.system.write("/proc/sys/debug/exception-trace", "1" if shown else "0")
    number, said = play.run(f"access {{pid}} {address} 8 {kind}")
    assert number == errno.EFAULT
    assert not play.lives
    segfault = f"w[{play.pid}]: segfault at {int(address, 16):x} ip "
    assert [line.startswith(segfault) for line in said if not line.startswith("Code: ")] == [True] * shown
    assert all(f" error {code} in tiny[" in line for line in said if line.startswith(segfault))
    assert play.system.read("/proc/sys/kernel/tainted") == b"0\n"
    play.goes_on()


def test_panic_on_oops_stops_the_machine_and_not_the_task() -> None:
    play = Trapped("default", "", AREAS)
    play.system.write("/proc/sys/kernel/panic_on_oops", "1")
    number, said = play.run(f"WRITE_ONCE a+8K 0 {BAD}")
    assert number == errno.EFAULT
    assert "Kernel panic - not syncing: Fatal exception" in said
    assert play.lives
    play.system.check()


@pytest.mark.parametrize(
    ("cmdline", "says", "number"),
    [
        (DEBUG, "BUG kmalloc-64 (Not tainted): Object already free", errno.EINVAL),
        ("slab_freelist_hardened", "kernel BUG at mm/slub.c:419!", errno.EFAULT),
        ("", "BUG kmalloc-64 (Not tainted): Object already free", errno.EINVAL),
    ],
    ids=["slub_debug", "hardened", "off"],
)
def test_a_double_free_is_never_done(cmdline: str, says: str, number: int) -> None:
    play = Play(cmdline)
    play.run("kfree A")
    first = play.system.kernel.printk.next_seq
    with pytest.raises(SystemCallError) as caught:
        play.system.command(play.text(f"kfree A {BY}"))
    assert caught.value.errno == number
    said = [record.text for record in play.system.kernel.printk.since(first)]
    assert says in said
    assert any(line.strip().startswith("bad_write+0x2a/") for line in said)
    play.system.check()


def test_a_bug_ends_the_task_that_runs_into_it() -> None:
    play = Play("")
    said = play.run(f"copy_to_user PID USER A 128 {BY}", fails=True)
    assert "kernel BUG at mm/usercopy.c:101!" in said
    with pytest.raises(SystemCallError):
        play.system.read(f"/proc/{play.pid}/status")
    assert play.system.read("/proc/sys/kernel/tainted") == b"128\n"
    play.system.check()


def test_what_is_within_an_object_may_be_copied_and_arrives() -> None:
    play = Play("")
    play.run("memset A 0x41 64")
    play.run("copy_to_user PID USER A 64")
    assert "data=" + "A" * 64 in play.system.command(f"read {play.pid} {play.user:#x} 64")
    play.system.command(f"write {play.pid} {play.user:#x} hello")
    play.run("copy_from_user PID A USER 5")
    assert f"data={b'helloAAA'.hex()}" in play.system.command(play.text("print_hex_dump A 8"))
    play.system.check()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("copy_to_user PID USER 0 8", "null address (offset 0, size 8)"),
        ("copy_to_user PID USER 0xffffffff81000000 8", "kernel text (offset 0, size 8)"),
        ("copy_to_user PID USER 0xffffc9fff0000000 8", "vmalloc 'no area' (offset 0, size 8)"),
    ],
)
def test_other_places_that_are_not_given_away(command: str, says: str) -> None:
    play = Play("")
    said = play.run(command, fails=True)
    assert said[0] == f"usercopy: Kernel memory exposure attempt detected from {says}!"
    play.system.check()


def test_memset_takes_pointers_away_from_the_leak_detector() -> None:
    for size, leaks in ((8, True), (7, False)):
        system = System.boot(machine="default", seed=1, cmdline="nokaslr kmemleak=on")
        system.command("outer = kzalloc 192")
        system.command("inner = kmalloc 96 by=lost+0x1[drv]")
        system.command("WRITE_ONCE outer+64 inner")
        system.command("forget inner")
        system.command(f"memset outer+64 0x11 {size}")
        system.advance(6)
        for _ in range(2):
            system.write("/sys/kernel/debug/kmemleak", "scan")
        assert (b"lost+0x1" in system.read("/sys/kernel/debug/kmemleak")) is leaks
        system.check()
