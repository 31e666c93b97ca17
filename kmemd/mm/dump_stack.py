"""The stack dump that goes with the kernel's complaints (lib/dump_stack.c)."""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.context import Context
from kmemd.mm.printk import KERN_WARNING, Printk
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
    ) -> None:
        self._context = context
        self._depot = depot
        self._printk = printk
        self._symbolize = symbolize
        self._banner = banner
        self.taint = "Not tainted"

    def __call__(self, inner: tuple[str, ...] = (), level: int = KERN_WARNING) -> None:
        """Log the CPU, the task and the call trace: ``inner`` frames called from the context's call site."""
        at = self._context
        self._printk.log(
            level, f"CPU: {at.cpu} PID: {at.pid} Comm: {at.comm} {self.taint} {self._banner} \nCall Trace:\n <TASK>"
        )
        for frame in ("dump_stack_lvl", "dump_stack", *inner, *self._depot.frames(at.site)):
            self._printk.log(level, f" {self._symbolize(frame)}")
        self._printk.log(level, " </TASK>")
