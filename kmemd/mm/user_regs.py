"""What a report says of the program that is executing: registers and code bytes (arch/x86/kernel/dumpstack.c
``show_iret_regs``, ``show_opcodes``; process_64.c and process_32.c ``__show_regs``).

Programs of the model have no instructions. An access stands for one loop over an address range, in every program at
the same place of its text: it has the start of the range in RDI, the length in RSI, whether it writes in RDX, and the
offset it has come to in RAX. The lines follow from that and from the address space; what such a loop does not
use is 0. Left out: registers at system calls, which the model does not make with instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kmemd.mm.layout import X86_64
from kmemd.mm.mm_types import VM_EXEC, Mm
from kmemd.mm.units import PAGE_SHIFT

PROLOGUE_SIZE, EPILOGUE_SIZE = 42, 21
TEXT_OFFSET = 0x6C6
"""Where a program's text has the loop."""
USER_CS, USER_DS = 0x33, 0x2B
USER_DS_32 = 0x7B
FLAGS_WRITE, FLAGS_READ = 0x202, 0x246
"""EFLAGS after the test of RDX: not zero, zero with even parity."""

LOOP = {
    True: bytes.fromhex("31c0 4839f0 7316 85d2 7506 0fb60c07 eb04 c6040701 480500100000 ebe5 c3"),
    False: bytes.fromhex("31c0 39f0 7315 85d2 7506 0fb60c07 eb04 c6040701 0500100000 ebe7 c3"),
}
"""xor eax,eax; cmp; jae end; test edx; jne write; movzx ecx,[rdi+rax]; jmp next; mov [rdi+rax],1; add 4096; jmp;
ret."""
LOAD, STORE = {True: 0x0B, False: 0x0A}, {True: 0x11, False: 0x10}
"""Where in the loop the two accesses are, by whether it is 64-bit code."""
NOP, INT3 = b"\x90", b"\xcc"


@dataclass(slots=True)
class UserAccess:
    """One access of a program, over pages in some order: ``address`` is the byte it has come to.

    ``span`` is the whole range in bytes, (start, length), where the pages are a part of one. ``task`` is whose
    access it is: it executes, also where another task has it done (ptrace, exec of a child).
    """

    mm: Mm
    vpns: npt.NDArray[np.int64]
    address: int
    write: bool = False
    execute: bool = False
    span: tuple[int, int] | None = None
    task: Any = None

    @property
    def start(self) -> int:
        """The first byte of the range."""
        return self.span[0] if self.span is not None else int(self.vpns.min()) << PAGE_SHIFT

    @property
    def length(self) -> int:
        """Bytes of the range."""
        return self.span[1] if self.span is not None else (int(self.vpns.max()) + 1 << PAGE_SHIFT) - self.start

    def come_to(self, vpn: int) -> None:
        """The program is at this page: its first byte, or the range's."""
        address = vpn << PAGE_SHIFT
        self.address = self.span[0] if self.span is not None and address < self.span[0] else address


class UserMode:
    """What the executing program does; ``access`` is None outside of an access."""

    def __init__(self, arch: str) -> None:
        self.long = arch == X86_64
        self.access: UserAccess | None = None

    def begin(
        self,
        mm: Mm,
        vpns: npt.NDArray[np.int64],
        *,
        write: bool = False,
        execute: bool = False,
        span: tuple[int, int] | None = None,
        task: Any = None,
    ) -> UserAccess | None:
        """A program goes over some pages; returns what it did before, for ``access`` to be set back to."""
        before = self.access
        self.access = UserAccess(mm, vpns, 0, write, execute, span, task)
        if len(vpns):
            self.access.come_to(int(vpns[0]))
        return before

    def ip(self, access: UserAccess) -> int:
        """The address of the instruction: the one that could not be fetched, or the loop's."""
        if access.execute:
            return access.address
        text = _text_start(access.mm)
        return text + TEXT_OFFSET + (STORE if access.write else LOAD)[self.long] if text else 0

    def sp(self, access: UserAccess) -> int:
        """The stack pointer: the loop was called from the function that the stack began with."""
        return max(0, (access.mm.start_stack & ~0xF) - 8) if access.mm.start_stack else 0

    def code(self, access: UserAccess) -> str:
        """The ``Code:`` line."""
        ip = self.ip(access)
        if access.execute or not ip:
            return f"Code: Unable to access opcode bytes at {ip - PROLOGUE_SIZE & self._mask:#x}."
        loop = LOOP[self.long]
        at = (STORE if access.write else LOAD)[self.long]
        before = (NOP * PROLOGUE_SIZE + loop[:at])[-PROLOGUE_SIZE:]
        after = (loop[at + 1 :] + INT3 * EPILOGUE_SIZE)[:EPILOGUE_SIZE]
        return f"Code: {before.hex(' ')} <{loop[at]:02x}> {after.hex(' ')}"

    def lines(self) -> Iterator[str]:
        """The registers, as they close a call trace that came from the access; nothing outside of one."""
        access = self.access
        if access is not None:
            yield from self._lines_64(access) if self.long else self._lines_32(access)

    @property
    def _mask(self) -> int:
        return (1 << (64 if self.long else 32)) - 1

    def _lines_64(self, access: UserAccess) -> Iterator[str]:
        offset, flags = access.address - access.start, FLAGS_WRITE if access.write else FLAGS_READ
        yield f"RIP: {USER_CS:04x}:{self.ip(access):#x}"
        yield self.code(access)
        yield f"RSP: {USER_DS:04x}:{self.sp(access):016x} EFLAGS: {flags:08x}"
        yield f"RAX: {offset:016x} RBX: {access.start:016x} RCX: {0:016x}"
        yield f"RDX: {access.write:016x} RSI: {access.length:016x} RDI: {access.start:016x}"
        yield f"RBP: {0:016x} R08: {0:016x} R09: {0:016x}"
        yield f"R10: {0:016x} R11: {0:016x} R12: {access.length:016x}"
        yield f"R13: {0:016x} R14: {0:016x} R15: {0:016x}"

    def _lines_32(self, access: UserAccess) -> Iterator[str]:
        offset, flags = access.address - access.start, FLAGS_WRITE if access.write else FLAGS_READ
        yield f"EIP: {self.ip(access):#x}"
        yield self.code(access)
        yield f"EAX: {offset:08x} EBX: {access.start:08x} ECX: {0:08x} EDX: {access.write:08x}"
        yield f"ESI: {access.length:08x} EDI: {access.start:08x} EBP: {0:08x} ESP: {self.sp(access):08x}"
        segments = f"DS: {USER_DS_32:04x} ES: {USER_DS_32:04x} FS: 0000 GS: 0000 SS: {USER_DS_32:04x}"
        yield f"{segments} EFLAGS: {flags:08x}"


def _text_start(mm: Mm) -> int:
    """Where a program's code begins; 0 for one that has none."""
    return mm.start_code or next((vma.start for vma in mm.vmas if vma.flags & VM_EXEC and vma.file), 0)
