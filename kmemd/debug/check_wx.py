"""The search for kernel memory that can be written and executed (arch/x86/mm/dump_pagetables.c
``ptdump_walk_pgd_level_checkwx``, CONFIG_DEBUG_WX): at the end of boot, and when somebody asks.

Without NX there is nothing to find: all memory is executable, and Linux does not look.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.pte import NX, RW
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.init_mm import InitMm, Leaf
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.units import PAGE_SIZE

WHERE = "arch/x86/mm/dump_pagetables.c:246"
LEVEL_FRAMES = {PAGE_SIZE: "ptdump_pte_entry", 2 << 20: "ptdump_pmd_entry", 1 << 30: "ptdump_pud_entry"}
FRAMES = (
    *("walk_pgd_range", "walk_page_range_novma", "ptdump_walk_pgd", "ptdump_walk_pgd_level_core"),
    "ptdump_walk_pgd_level_checkwx",
)


def insecure(leaves: list[Leaf]) -> list[Leaf]:
    """What can be written and executed (``note_wx``)."""
    return [leaf for leaf in leaves if leaf.flags & RW and not leaf.flags & NX]


class CheckWx:
    """The check of one kernel, which warns of the first mapping that it finds, once. ``nx``: whether the CPU has it."""

    def __init__(
        self, mm: InitMm, printk: Printk, dump_stack: DumpStack, symbolize: Callable[[int], str], *, nx: bool
    ) -> None:
        self._mm = mm
        self._printk = printk
        self._dump_stack = dump_stack
        self._symbolize = symbolize
        self._nx = nx and mm.long

    def boot(self) -> None:
        """What boot looks at: the kernel's tables, and the kernel's part of those of programs that are isolated."""
        self()
        if self._nx and self._mm.isolated:
            self._printk.log(KERN_INFO, "x86/mm: Checking user space page tables")
            self._check(self._mm.shared.leaves)

    def __call__(self) -> bool:
        """Look at the kernel's tables, and log what was found. Whether all is well."""
        return not self._nx or self._check(self._mm.leaves())

    def _check(self, leaves: list[Leaf]) -> bool:
        found = insecure(leaves)
        if found:
            text = f"x86/mm: Found insecure W+X mapping at address {self._symbolize(found[0].start)}"
            frames = ("note_page", LEVEL_FRAMES[found[0].size], *FRAMES)
            self._dump_stack.warn_once("note_wx", frames, text, WHERE)
        pages = sum(leaf.end - leaf.start for leaf in found) // PAGE_SIZE
        what = f"FAILED, {pages} W+X pages found." if found else "passed, no W+X pages found."
        self._printk.log(KERN_INFO, f"x86/mm: Checked W+X mappings: {what}")
        return not found
