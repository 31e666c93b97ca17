"""debugfs ``page_tables``: how the kernel's address space is mapped (arch/x86/mm/debug_pagetables.c)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.debug import ptdump
from kmemd.kernel import Kernel
from kmemd.views.tree import debugfs


@debugfs.file("page_tables/kernel", mode=0o400)
def kernel_tables(kernel: Kernel) -> Iterator[str]:
    """The reference page tables of the kernel (``ptdump_show``)."""
    yield from ptdump.dump(kernel.init_mm)
