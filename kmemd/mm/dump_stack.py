"""The kernel's complaints: stack dumps, warnings, oopses (lib/dump_stack.c, kernel/panic.c).

Left out: registers and code bytes, but for those of a program that is in an access of memory.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.context import Context
from kmemd.mm.panic import TAINT_DIE, TAINT_WARN, Halt, Taint
from kmemd.mm.printk import KERN_CRIT, KERN_EMERG, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.user_regs import UserMode

FAULT_ENTRY = "asm_exc_page_fault"


class DumpStack:
    """Prints where the kernel is. ``symbolize`` turns a frame's name into ``name+0x../0x..``.

    ``user`` knows the registers of the executing program: they close the trace of a page fault. ``kernel_offset``
    says how far KASLR moved the kernel, ``panic_timeout()`` is the setting kernel.panic, ``modules()`` the line that
    lists the modules.
    """

    def __init__(
        self,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        symbolize: Callable[[str], str],
        banner: str,
        taint: Taint | None = None,
        user: UserMode | None = None,
        kernel_offset: str = "disabled",
        panic_timeout: Callable[[], int] = lambda: 0,
        on_warning: Callable[[], tuple[int, int]] = lambda: (0, 0),
        modules: Callable[[], str] = lambda: "Modules linked in:",
    ) -> None:
        self._context = context
        self._depot = depot
        self._printk = printk
        self._symbolize = symbolize
        self._banner = banner
        self.taint = taint or Taint()
        self._user = user
        self._kernel_offset = kernel_offset
        self._panic_timeout = panic_timeout
        self._on_warning = on_warning
        self._oopses = self._warnings = 0
        self.halt = Halt()
        self.modules = modules

    def __call__(self, inner: tuple[str, ...] = (), level: int = KERN_WARNING) -> None:
        """Log the CPU, the task and the call trace: ``inner`` frames called from the context's call site."""
        self._show_regs(("dump_stack_lvl", "dump_stack", *inner), level)

    def warn(self, frames: tuple[str, ...], text: str = "", level: int = KERN_WARNING, where: str = "") -> None:
        """``WARN`` in ``frames[0]``: the message, where the kernel is, and the stack (kernel/panic.c ``__warn``).

        ``where`` is the file and line, of those who know it.
        """
        at = self._context
        place = f"{where} {self._symbolize(frames[0])}".lstrip()
        self._printk.log(KERN_WARNING, "------------[ cut here ]------------")
        if text:
            self._printk.log(level, text)
        self._printk.log(KERN_WARNING, f"WARNING: CPU: {at.cpu} PID: {at.pid} at {place}")
        self._printk.log(KERN_WARNING, self.modules())
        self._show_regs(frames, KERN_WARNING)
        self.check_panic_on_warn("kernel")
        self._printk.log(KERN_WARNING, "---[ end trace 0000000000000000 ]---")
        self.taint.add(TAINT_WARN)

    def check_panic_on_warn(self, origin: str) -> None:
        """Panic after a warning, where kernel.panic_on_warn or kernel.warn_limit want it."""
        panics, limit = self._on_warning()
        self._warnings += 1
        if panics:
            self.panic(f"{origin}: panic_on_warn set ...", halts=True)
        elif limit and self._warnings >= limit:
            self.panic(f"{origin}: system warned too often (kernel.warn_limit is {limit})", halts=True)

    def warn_once(self, place: str, frames: tuple[str, ...], text: str = "", where: str = "") -> None:
        """``WARN_ONCE``: ``warn``, if this place has not warned since clear_warn_once."""
        if self._printk.once(place):
            self.warn(frames, text, where=where)

    def panic(self, message: str, inner: tuple[str, ...] = (), *, halts: bool = False) -> None:
        """Log what the kernel says when it gives up (kernel/panic.c ``panic``). The model lives on, or ``halts``."""
        self._printk.log(KERN_EMERG, f"Kernel panic - not syncing: {message}")
        if not self.taint.mask >> TAINT_DIE & 1:
            self(("panic", *inner), KERN_WARNING)
        self._printk.log(KERN_EMERG, f"Kernel Offset: {self._kernel_offset}")
        if halts:
            self.halt.reason = self.halt.reason or message
        timeout = self._panic_timeout()
        if timeout > 0:
            self._printk.log(KERN_EMERG, f"Rebooting in {timeout} seconds..")
        elif timeout == 0:
            self._printk.log(KERN_EMERG, f"---[ end Kernel panic - not syncing: {message} ]---")

    def bug(self, where: str, frames: tuple[str, ...]) -> None:
        """``BUG()`` at a file and line: the kernel stops in an invalid instruction (lib/bug.c, exc_invalid_op)."""
        self._oopses += 1
        self._printk.log(KERN_WARNING, "------------[ cut here ]------------")
        self._printk.log(KERN_CRIT, f"kernel BUG at {where}!")
        self._printk.log(KERN_WARNING, f"invalid opcode: 0000 [#{self._oopses}] SMP")
        self._show_regs(frames, KERN_WARNING)
        self._printk.log(KERN_WARNING, f"{self.modules()}\n---[ end trace 0000000000000000 ]---")
        self.taint.add(TAINT_DIE)

    def show_user_regs(self, level: int = KERN_WARNING) -> None:
        """Log who executes, and the registers of the program (show_regs)."""
        if self._user is not None:
            self._printk.log(level, self.who)
            for line in self._user.lines():
                self._printk.log(level, line)
            if self._user.long:
                self._printk.log(level, f"FS:  {0:016x} GS:  {0:016x}")

    def next_oops(self) -> int:
        """The number of the report that begins."""
        self._oopses += 1
        return self._oopses

    @property
    def who(self) -> str:
        """Which CPU executes which task, and the kernel's state and version."""
        at = self._context
        return f"CPU: {at.cpu} PID: {at.pid} Comm: {at.comm} {self.taint.text} {self._banner} "

    def _show_regs(self, inner: tuple[str, ...], level: int) -> None:
        self._printk.log(level, f"{self.who}\nCall Trace:\n <TASK>")
        frames = (*inner, *self._depot.frames(self._context.site))
        for frame in frames:
            self._printk.log(level, f" {self._symbolize(frame)}")
        if self._user is not None and frames[-1] == FAULT_ENTRY:
            for line in self._user.lines():
                self._printk.log(level, line)
        self._printk.log(level, " </TASK>")
