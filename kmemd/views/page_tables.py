"""debugfs ``page_tables``: how address spaces are mapped (arch/x86/mm/debug_pagetables.c), and
``check_wx_pages``, which searches for memory that is writable and executable.

The dumps are made while they are read. The captured kernels are built without CONFIG_PAGE_TABLE_ISOLATION and have no
``current_user``; ``efi`` needs CONFIG_EFI, which they lack, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.debug import ptdump
from kmemd.kernel import Kernel
from kmemd.mm.layout import X86_64
from kmemd.views.stream import StreamFile
from kmemd.views.tree import Caller, debugfs, kmemd


@debugfs.device("page_tables/kernel", mode=0o400)
def kernel_tables(kernel: Kernel, caller: Caller) -> StreamFile:
    """The reference page tables of the kernel (``ptdump_show``)."""
    return StreamFile(lambda: ptdump.dump(kernel.init_mm))


@debugfs.device("page_tables/current_kernel", mode=0o400)
def current_kernel(kernel: Kernel, caller: Caller) -> StreamFile:
    """The tables of the process that reads, as /proc/self finds it (``ptdump_curknl_show``)."""
    return StreamFile(lambda: ptdump.dump(kernel.init_mm, _own_half(kernel, caller)))


@debugfs.device("page_tables/current_user", mode=0o400, exists=lambda kernel: kernel.machine.arch == X86_64)
def current_user(kernel: Kernel, caller: Caller) -> StreamFile:
    """Those that the process runs on outside of the kernel, the same without isolation (``ptdump_curusr_show``)."""
    mm = kernel.init_mm
    return StreamFile(lambda: ptdump.dump(mm, _own_half(kernel, caller), mm.shared if mm.isolated else None))


def _own_half(kernel: Kernel, caller: Caller) -> Iterator[ptdump.Run]:
    """What the reader maps; a program outside of the model maps nothing of it."""
    pid = kernel.tasks.visit(caller.process, caller.uid)
    mm = kernel.tasks.find(pid).mm if pid in kernel.tasks else None
    if mm is not None:
        yield from ptdump.user_half(kernel.init_mm, kernel.mmu, mm.id)


@kmemd.file("security/check_wx_pages", mode=0o400)
def check_wx_pages(kernel: Kernel) -> str:
    """Look for kernel memory that can be written and executed, log it, and say how it went.

    Linux has such a file in debugfs from 6.10 on (``ptdump_check_wx``).
    """
    return "SUCCESS\n" if kernel.check_wx() else "FAILED\n"
