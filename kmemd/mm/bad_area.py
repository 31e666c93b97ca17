"""Bad accesses of programs: the kernel's log line and the signal (arch/x86/mm/fault.c ``show_signal_msg``,
``__bad_area_nosemaphore``; arch/x86/kernel/traps.c ``show_signal``; kernel/signal.c ``force_sig_info_to_task``,
``print_fatal_signal``).

Left out: protection keys, the kernel's emulation of the vsyscall page, tracers. When init dies of a signal, Linux
panics: that is logged, and init lives on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np

from kmemd.core.context import Context
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.mm_types import Mm
from kmemd.mm.oom_adj import INIT_PID
from kmemd.mm.printk import KERN_EMERG, KERN_INFO, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.signals import COREDUMP, SI_KERNEL, SIGSEGV, Action, Dispositions, Signal
from kmemd.mm.sysctl_handlers import proc_dointvec_minmax, show_number
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.user_regs import UserAccess, UserMode
from kmemd.tunable import Tunable, Tuned

PF_PROT, PF_WRITE, PF_USER, PF_INSTR = 1, 2, 4, 16
"""Bits of the processor's error code."""
TASK_SIZE_MAX = {64: (1 << 47) - PAGE_SIZE, 32: 0xC000_0000}


class Faulting(Protocol):
    """The task that makes the access."""

    pid: int
    comm: str
    mm: Mm | None
    killed: int
    signals: Dispositions


class BadArea(Tuned):
    """Turns a bad access into a signal to the task, and says so.

    ``topology(cpu)`` gives the core and the socket of a CPU, ``limit`` is printk_ratelimit.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable("proc/sys/debug/exception-trace", "exception_trace", show_number, proc_dointvec_minmax),
        Tunable("proc/sys/kernel/print-fatal-signals", "print_fatal_signals", show_number, proc_dointvec_minmax),
    )

    def __init__(
        self,
        context: Context,
        printk: Printk,
        user: UserMode,
        limit: RateLimit,
        dump_stack: DumpStack,
        topology: Callable[[int], tuple[int, int]],
        *,
        long_bits: int = 64,
        print_fatal_signals: int = 0,
    ) -> None:
        self._context = context
        self._printk = printk
        self._user = user
        self._limit = limit
        self._dump_stack = dump_stack
        self._topology = topology
        self.long_bits = long_bits
        self.exception_trace = 1
        self.print_fatal_signals = print_fatal_signals

    def deliver(self, task: Faulting, signal: Signal) -> bool:
        """Force the signal of a bad access on the executing task. True: a handler took it; False: it must end."""
        assert task.mm is not None
        access = self._user.access
        if access is None or access.mm is not task.mm:
            page = np.array([signal.address >> PAGE_SHIFT], dtype=np.uint64).astype(np.int64)
            access = UserAccess(task.mm, page, signal.address, signal.write, signal.execute)
        access.address = signal.address
        self._user.access = access
        if self.exception_trace and signal.number == SIGSEGV and _unhandled(task, SIGSEGV):
            self._show(task, signal, access)
        ended = not task.signals.force(signal.number)
        if ended and task.pid == INIT_PID:
            self._dump_stack.panic(f"Attempted to kill init! exitcode={signal.number:#010x}", ("do_exit",))
        elif ended:
            if self.print_fatal_signals and signal.number in COREDUMP:
                self._print_fatal(signal.number, access)
            task.killed = signal.number
        self._user.access = None
        return not ended or task.pid == INIT_PID

    def _show(self, task: Faulting, signal: Signal, access: UserAccess) -> None:
        """The line on a signal that nobody handles, for one CPU's page fault or general protection fault."""
        ip, sp = self._user.ip(access), self._user.sp(access)
        where = _vma_text(access.mm, ip)
        if signal.code == SI_KERNEL:
            if self._limit("show_signal"):
                text = f"traps: {task.comm}[{task.pid}] general protection fault ip:{ip:x} sp:{sp:x} error:0{where}"
                self._printk.log(KERN_INFO, text)
            return
        if not self._limit("show_signal_msg"):
            return
        level = KERN_INFO if task.pid > INIT_PID else KERN_EMERG
        width = self.long_bits // 4
        core, socket = self._topology(self._context.cpu)
        at = f"segfault at {signal.address:x} ip {ip:0{width}x} sp {sp:0{width}x}"
        cpu = f"likely on CPU {self._context.cpu} (core {core}, socket {socket})"
        error = self._error_code(signal, access)
        self._printk.log(level, f"{task.comm}[{task.pid}]: {at} error {error:x}{where} {cpu}")
        self._printk.log(level, self._user.code(access))

    def _error_code(self, signal: Signal, access: UserAccess) -> int:
        """What the processor says of the access; whether a kernel address is mapped is nobody's business."""
        protected = signal.present or signal.address >= TASK_SIZE_MAX[self.long_bits]
        return PF_USER | PF_PROT * protected | PF_WRITE * access.write | PF_INSTR * access.execute

    def _print_fatal(self, number: int, access: UserAccess) -> None:
        self._printk.log(KERN_INFO, f"potentially unexpected fatal signal {number}.")
        if self.long_bits == 32:
            self._printk.log(KERN_INFO, f"code at {self._user.ip(access):08x}: ")
        self._dump_stack.show_user_regs()


def _unhandled(task: Faulting, number: int) -> bool:
    """Whether nobody will take the signal (unhandled_signal)."""
    if task.pid == INIT_PID:
        return True
    return task.signals.of(number) is not Action.CATCH and not task.killed


def _vma_text(mm: Mm, ip: int) -> str:
    """The file that the instruction is in (print_vma_addr)."""
    vma = mm.find_vma(ip)
    if vma is None or vma.file is None:
        return ""
    name = vma.file.name.rpartition("/")[2]
    return f" in {name}[{vma.start:x}+{vma.end - vma.start:x}]"
