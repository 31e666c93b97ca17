"""``/sys/kernel/debug``: page_owner, kmemleak, clear_warn_once (mm/page_owner.c, mm/kmemleak.c, kernel/panic.c).

The first two are made while they are read: a full machine's page_owner is some hundred megabytes.
"""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.debugfs_handlers import simple_number
from kmemd.mm.kstrtox import kstrtobool, to_bytes
from kmemd.views.stream import StreamFile
from kmemd.views.tree import Caller, debugfs, sysfs


def _enabled(kernel: Kernel) -> bool:
    return bool(kernel.page_owner.enabled)


@debugfs.device("page_owner", mode=0o400, exists=_enabled)
def page_owner(kernel: Kernel, caller: Caller) -> StreamFile:
    """Who allocated each page in use; the file is there when booted with page_owner=on."""
    return StreamFile(kernel.page_owner.text)


debugfs.dir("page_owner_stacks", exists=_enabled)


@debugfs.device("page_owner_stacks/show_stacks", mode=0o400)
def show_stacks(kernel: Kernel, caller: Caller) -> StreamFile:
    """How many pages each call stack holds, as Linux has it from 6.9 on."""
    return StreamFile(kernel.page_owner.stacks)


@debugfs.file("page_owner_stacks/count_threshold", mode=0o600)
def count_threshold(kernel: Kernel) -> str:
    """Stacks with fewer pages are not shown."""
    return f"{kernel.page_owner.count_threshold}\n"


@count_threshold.store
def count_threshold_store(kernel: Kernel, text: str) -> None:
    """A number. EINVAL, ERANGE."""
    kernel.page_owner.count_threshold = simple_number(text)


@debugfs.write_only("clear_warn_once")
def clear_warn_once(kernel: Kernel, text: str) -> None:
    """Any number: warnings that are given once may be given again (kernel/panic.c). EINVAL, ERANGE."""
    simple_number(text)
    kernel.printk.clear_once()


@debugfs.device("kmemleak", mode=0o644)
def kmemleak(kernel: Kernel, caller: Caller) -> StreamFile:
    """Suspected leaks; a write is a command."""
    return StreamFile(kernel.kmemleak.report, kernel.kmemleak.write_steps)


@sysfs.file("module/kmemleak/parameters/verbose", mode=0o600)
def kmemleak_verbose(kernel: Kernel) -> str:
    """Whether leaks go to the kernel log as well when a scan finds them."""
    return "Y\n" if kernel.kmemleak.verbose else "N\n"


@kmemleak_verbose.store
def kmemleak_verbose_store(kernel: Kernel, text: str) -> None:
    """``param_set_bool``."""
    kernel.kmemleak.verbose = kstrtobool(to_bytes(text))
