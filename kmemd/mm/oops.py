"""Faults of the kernel itself: what it says, and what becomes of the task (arch/x86/mm/fault.c ``page_fault_oops``,
arch/x86/kernel/dumpstack.c ``__die``, ``oops_end``, kernel/exit.c ``make_task_dead``).

An access of kernel code stands for one instruction: a store of RDX to, a load into RDX from, or a call of the address
in RAX; registers that it does not use are 0, and so are bytes of memory that nobody told the model. Tables of the
kernel's own page tables are no pages of the model: their entries show places behind the kernel's image, in the order
of their region. Left out: the trace's guesses (``? name``), the registers of the system call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kmemd.core.context import Context
from kmemd.core.pte import ACCESSED, DIRTY, NX, PFN_MASK, PRESENT, RW, USER
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.init_mm import IMAGE_END, InitMm, Leaf
from kmemd.mm.layout import PHYSICAL_START
from kmemd.mm.panic import TAINT_DIE
from kmemd.mm.printk import KERN_ALERT, KERN_CRIT, KERN_EMERG, KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import GIB, MIB, PAGE_SIZE
from kmemd.mm.user_regs import EPILOGUE_SIZE, INT3, NOP, PROLOGUE_SIZE

PF_PROT, PF_WRITE, PF_INSTR = 1, 2, 16
NON_CANONICAL = 1 << 47
"""The first address behind what four levels of tables can map for programs."""
STACK_USED = 0x340
"""Bytes of the kernel stack below its end when the access is made."""
THREAD_SIZE = {True: 4 * PAGE_SIZE, False: 2 * PAGE_SIZE}
CR0, CR4 = 0x8005_0033, 0x6A0
FLAGS = 0x246
CONTROL_LINES = 3
"""The last lines of the registers are the processor's own: a report closes with the other ones of the first report."""
STORE, LOAD = bytes.fromhex("488910"), bytes.fromhex("488b10")
REGIONS = {True: ((512 * GIB, "PGD"), (512 * GIB, "P4D"), (GIB, "PUD"), (2 * MIB, "PMD")), False: ((4 * MIB, "pde"),)}
TABLE = PRESENT | RW | ACCESSED | DIRTY
"""_KERNPG_TABLE; entries that lead to user tables have USER."""


@dataclass(frozen=True, slots=True)
class KernelAccess:
    """What kernel code does at an address. ``frames``: the functions, innermost first, that the call site called."""

    address: int
    write: bool = False
    execute: bool = False
    value: int = 0
    frames: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """In the words of the report."""
        return "instruction fetch" if self.execute else "write access" if self.write else "read access"


class Oops:
    """Faults of one kernel. ``stack()`` is the address of the executing task's kernel stack, ``pgd()`` that of its
    page tables; ``die()`` ends the task, ``uid()`` is its user.

    ``count`` is how many there were, which ``kernel.oops_limit`` bounds.
    """

    def __init__(
        self,
        mm: InitMm,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        symbolize: Callable[[str], str],
        stack: Callable[[], int],
        pgd: Callable[[], int],
        panics: Callable[[], tuple[bool, int]],
        die: Callable[[], None],
        uid: Callable[[], int],
        *,
        smep: bool = False,
        smap: bool = False,
    ) -> None:
        self._mm = mm
        self._context = context
        self._depot = depot
        self._printk = printk
        self._dump_stack = dump_stack
        self._symbolize = symbolize
        self._stack, self._pgd = stack, pgd
        self._panics, self._die, self._uid = panics, die, uid
        self.smep, self.smap = smep, smap
        self.count = 0
        self._cr2 = 0
        self._first: list[str] = []
        self._width = 16 if mm.long else 8

    def fault(self, access: KernelAccess) -> int:
        """The bits of the error code of an access, -1 for one that does not fault."""
        leaf = self._mm.lookup(access.address)
        code = PF_WRITE * access.write | PF_INSTR * access.execute
        if leaf is None:
            return code
        if (access.write and not leaf.flags & RW) or (access.execute and leaf.flags & NX):
            return code | PF_PROT
        return -1

    def user_fault(self, access: KernelAccess, entry: int) -> int:
        """The error code of an access to user memory that the task maps by ``entry``, -1 where it is allowed.

        With SMAP the kernel reads and writes user memory through ``copy_from_user`` and its like alone, with SMEP it
        never executes any.
        """
        guard = self.smep if access.execute else self.smap
        code = PF_WRITE * access.write | PF_INSTR * access.execute | PF_PROT
        forbidden = (access.write and not entry & RW) or (access.execute and entry & NX)
        return code if guard or forbidden else -1

    def page_fault(self, access: KernelAccess, code: int, user: Leaf | None = None) -> None:
        """Report a fault that nothing handles, and end the task (``page_fault_oops``, ``oops_end``).

        ``user`` is what maps the address for the task, where it is the task's. The processor does not even look up an
        address whose upper bits are not all alike (``exc_general_protection``).
        """
        if self._mm.long and access.address + NON_CANONICAL & (1 << 64) - 1 >= 2 * NON_CANONICAL:
            self._general_protection(access)
            return
        self._cr2 = access.address
        leaf = self._mm.lookup(access.address) if user is None else user
        if access.execute and leaf is not None and leaf.flags & NX:
            what = "kernel tried to execute NX-protected page - exploit attempt?"
            self._printk.log(KERN_CRIT, f"{what} (uid: {self._uid()})")
        elif access.execute and user is not None and self.smep:
            self._printk.log(KERN_CRIT, f"unable to execute userspace code (SMEP?) (uid: {self._uid()})")
        null = "kernel NULL pointer dereference, address" if access.address < PAGE_SIZE else ""
        what = null or "unable to handle page fault for address"
        self._printk.log(KERN_ALERT, f"BUG: {what}: {access.address:0{self._width}x}")
        self._printk.log(KERN_ALERT, f"#PF: supervisor {access.what} in kernel mode")
        why = "permissions violation" if code & PF_PROT else "not-present page"
        self._printk.log(KERN_ALERT, f"#PF: error_code({code:#06x}) - {why}")
        self._printk.log(KERN_INFO, self._tables(access.address, leaf, user=user is not None))
        self.die(f"Oops: {code:04x}", access)

    def _general_protection(self, access: KernelAccess) -> None:
        """A jump does not tell where to: it faults before it is made."""
        hint = "" if access.execute else f", probably for non-canonical address {access.address:#x}"
        self.die(f"general protection fault{hint}: 0000", replace(access, execute=False))

    def invalid_op(self, where: str, frames: tuple[str, ...]) -> None:
        """``BUG()`` in ``frames[0]`` at a file and line: report it, and end the task (``handle_bug``)."""
        self.count += 1
        self._dump_stack.bug(where, frames)
        self._end()

    def stack_overflow(self) -> None:
        """Report that the task's stack ran into its guard page, and end the task (``handle_stack_overflow``)."""
        start = self._stack()
        address = start - 8
        end = start + THREAD_SIZE[self._mm.long]
        span = f"stack is {start:0{self._width}x}..{end:0{self._width}x}"
        text = f"BUG: TASK stack guard page was hit at {address:0{self._width}x} ({span})"
        self._printk.log(KERN_EMERG, text)
        self._cr2 = address
        self.die("stack guard page: 0000", KernelAccess(address, write=True), sp=address + 8)

    def die(self, title: str, access: KernelAccess, sp: int = 0) -> None:
        """The report's body, and what follows it (``__die``, ``oops_end``)."""
        self.count += 1
        regs = list(self._registers(access, sp))
        frames = self._frames(access)
        self._printk.log(KERN_WARNING, f"{title} [#{self._dump_stack.next_oops()}] SMP")
        self._printk.log(KERN_WARNING, self._dump_stack.who)
        for line in (*regs, "Call Trace:", " <TASK>", *frames, " </TASK>", self._dump_stack.modules()):
            self._printk.log(KERN_WARNING, line)
        if title.startswith("Oops"):
            self._printk.log(KERN_WARNING, f"CR2: {access.address:0{self._width}x}")
        self._dump_stack.taint.add(TAINT_DIE)
        self._printk.log(KERN_WARNING, "---[ end trace 0000000000000000 ]---")
        self._first = self._first or regs
        for line in (*self._first[:-CONTROL_LINES], *regs[-CONTROL_LINES:]):
            self._printk.log(KERN_WARNING, line)
        self._end()

    def _end(self) -> None:
        """Panic where the settings want it, else end the task."""
        on_oops, limit = self._panics()
        if on_oops:
            self._dump_stack.panic("Fatal exception", halts=True)
            return
        self._printk.log(KERN_INFO, f"note: {self._context.comm}[{self._context.pid}] exited with irqs disabled")
        if limit and self.count >= limit:
            self._dump_stack.panic(f"Oopsed too often (kernel.oops_limit is {limit})", halts=True)
            return
        self._die()

    # -- parts -----------------------------------------------------------------------------------------------

    def _frames(self, access: KernelAccess) -> list[str]:
        frames = (*access.frames, *self._depot.frames(self._context.site))
        return [f" {self._symbolize(frame)}" for frame in (frames if access.execute else frames[1:])]

    def _where(self, access: KernelAccess) -> str:
        frames = (*access.frames, *self._depot.frames(self._context.site))
        return f"{access.address:#x}" if access.execute or not frames else self._symbolize(frames[0])

    def _code(self, access: KernelAccess) -> str:
        if access.execute:
            if self._mm.lookup(access.address) is None:
                return f"Code: Unable to access opcode bytes at {access.address - PROLOGUE_SIZE:#x}."
            zeros = " ".join(["00"] * PROLOGUE_SIZE), " ".join(["00"] * EPILOGUE_SIZE)
            return f"Code: {zeros[0]} <00> {zeros[1]}"
        body = (STORE if access.write else LOAD)[0 if self._mm.long else 1 :]
        before, after = NOP * PROLOGUE_SIZE, (body[1:] + INT3 * EPILOGUE_SIZE)[:EPILOGUE_SIZE]
        return f"Code: {before.hex(' ')} <{body[0]:02x}> {after.hex(' ')}"

    def _registers(self, access: KernelAccess, sp: int) -> Iterator[str]:
        sp = sp or self._stack() + THREAD_SIZE[self._mm.long] - STACK_USED
        if not self._mm.long:
            yield from self._registers_32(access, sp)
            return
        yield f"RIP: 0010:{self._where(access)}"
        yield self._code(access)
        yield f"RSP: 0018:{sp:016x} EFLAGS: {FLAGS:08x}"
        yield f"RAX: {access.address:016x} RBX: {0:016x} RCX: {0:016x}"
        yield f"RDX: {access.value:016x} RSI: {0:016x} RDI: {0:016x}"
        yield f"RBP: {sp + STACK_USED // 2:016x} R08: {0:016x} R09: {0:016x}"
        yield f"R10: {0:016x} R11: {0:016x} R12: {0:016x}"
        yield f"R13: {0:016x} R14: {0:016x} R15: {0:016x}"
        yield f"FS:  {0:016x}(0000) GS:{self._mm.layout.page_offset:016x}(0000) knlGS:{0:016x}"
        yield f"CS:  0010 DS: 0000 ES: 0000 CR0: {CR0:016x}"
        yield f"CR2: {self._cr2:016x} CR3: {self._pgd():016x} CR4: {CR4:016x}"

    def _registers_32(self, access: KernelAccess, sp: int) -> Iterator[str]:
        yield f"EIP: {self._where(access)}"
        yield self._code(access)
        yield f"EAX: {access.address:08x} EBX: {0:08x} ECX: {0:08x} EDX: {access.value:08x}"
        yield f"ESI: {0:08x} EDI: {0:08x} EBP: {sp + STACK_USED // 2:08x} ESP: {sp:08x}"
        yield f"DS: 007b ES: 007b FS: 00d8 GS: 0000 SS: 0068 EFLAGS: {FLAGS:08x}"
        yield f"CR0: {CR0:08x} CR2: {self._cr2:08x} CR3: {self._pgd():08x} CR4: {CR4:08x}"

    def _tables(self, address: int, leaf: Leaf | None, *, user: bool) -> str:
        """The entries on the way to an address (``dump_pagetable``)."""
        words = []
        for size, name in REGIONS[self._mm.long]:
            words.append((name, self._entry(address, size, leaf, user=user)))
            if leaf is not None and leaf.size == size:
                return self._shown(words, large=True)
            if not words[-1][1]:
                return self._shown(words)
        entry = 0 if leaf is None else self._leaf_entry(address, leaf)
        return self._shown([*words, ("PTE" if self._mm.long else "pte", entry)])

    def _shown(self, words: list[tuple[str, int]], *, large: bool = False) -> str:
        if self._mm.long:
            return " ".join(f"{name} {entry:x}" for name, entry in words) + (" " if large else "")
        return " ".join(f"*{name} = {entry:08x}" for name, entry in words) + " "

    def _entry(self, address: int, size: int, leaf: Leaf | None, *, user: bool) -> int:
        """An upper entry: the leaf's own, or one that leads to a table."""
        if leaf is not None and leaf.size == size:
            return self._leaf_entry(address, leaf)
        region = address & -size
        number = next((n for n, (low, high) in enumerate(self._mm.regions(size)) if low <= region < high), -1)
        if number < 0 and not user:
            return 0
        table = PHYSICAL_START + (IMAGE_END & -PAGE_SIZE) + (number + 1) * PAGE_SIZE
        return table | TABLE | (USER if size == 512 * GIB else 0)

    @staticmethod
    def _leaf_entry(address: int, leaf: Leaf) -> int:
        phys = leaf.phys + (address & -leaf.size) - leaf.start if leaf.phys >= 0 else 0
        return (phys & PFN_MASK) | leaf.flags
