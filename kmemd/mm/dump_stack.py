"""The kernel's complaints: stack dumps, warnings, oopses (lib/dump_stack.c, kernel/panic.c).

Left out: registers, code bytes, the list of modules.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.context import Context
from kmemd.mm.panic import TAINT_DIE, TAINT_WARN, Taint
from kmemd.mm.printk import KERN_ALERT, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot


class DumpStack:
    """Prints where the kernel is. ``symbolize`` turns a frame's name into ``name+0x../0x..``."""

    def __init__(
        self,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        symbolize: Callable[[str], str],
        banner: str,
        taint: Taint | None = None,
    ) -> None:
        self._context = context
        self._depot = depot
        self._printk = printk
        self._symbolize = symbolize
        self._banner = banner
        self.taint = taint or Taint()
        self._oopses = 0

    def __call__(self, inner: tuple[str, ...] = (), level: int = KERN_WARNING) -> None:
        """Log the CPU, the task and the call trace: ``inner`` frames called from the context's call site."""
        self._show_regs(("dump_stack_lvl", "dump_stack", *inner), level)

    def warn(self, frames: tuple[str, ...], text: str = "", level: int = KERN_WARNING) -> None:
        """``WARN`` in ``frames[0]``: the message, where the kernel is, and the stack (kernel/panic.c ``__warn``)."""
        at = self._context
        self._printk.log(KERN_WARNING, "------------[ cut here ]------------")
        if text:
            self._printk.log(level, text)
        self._printk.log(KERN_WARNING, f"WARNING: CPU: {at.cpu} PID: {at.pid} at {self._symbolize(frames[0])}")
        self._printk.log(KERN_WARNING, "Modules linked in:")
        self._show_regs(frames, KERN_WARNING)
        self._printk.log(KERN_WARNING, "---[ end trace 0000000000000000 ]---")
        self.taint.add(TAINT_WARN)

    def oops(self, address: int, width: int, inner: tuple[str, ...] = (), *, write: bool = True) -> None:
        """Log an access of the kernel to an address that nothing is mapped at (page_fault_oops, __die).

        ``width`` is the size of a pointer in bytes. Registers, code bytes and page table entries are left out.
        """
        self._oopses += 1
        where = f"{address:0{2 * width}x}"
        self._printk.log(KERN_ALERT, f"BUG: unable to handle page fault for address: {where}")
        self._printk.log(KERN_ALERT, f"#PF: supervisor {'write' if write else 'read'} access in kernel mode")
        self._printk.log(KERN_ALERT, f"#PF: error_code({write << 1:#06x}) - not-present page")
        self._printk.log(KERN_WARNING, f"Oops: {write << 1:04x} [#{self._oopses}] SMP")
        self._show_regs(inner, KERN_WARNING)
        self._printk.log(KERN_WARNING, f"CR2: {where}\n---[ end trace 0000000000000000 ]---")
        self.taint.add(TAINT_DIE)

    def _show_regs(self, inner: tuple[str, ...], level: int) -> None:
        at = self._context
        state = f"{self.taint.text} {self._banner}"
        self._printk.log(level, f"CPU: {at.cpu} PID: {at.pid} Comm: {at.comm} {state} \nCall Trace:\n <TASK>")
        for frame in (*inner, *self._depot.frames(at.site)):
            self._printk.log(level, f" {self._symbolize(frame)}")
        self._printk.log(level, " </TASK>")
