"""``/sys/kernel/debug/page_owner`` and ``/sys/kernel/debug/kmemleak`` (mm/page_owner.c, mm/kmemleak.c).

Both are made while they are read: a full machine's page_owner is some hundred megabytes.
"""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.kstrtox import kstrtobool, to_bytes
from kmemd.views.stream import StreamFile
from kmemd.views.tree import Caller, debugfs, sysfs


@debugfs.device("page_owner", mode=0o400, exists=lambda kernel: kernel.page_owner.enabled)
def page_owner(kernel: Kernel, caller: Caller) -> StreamFile:
    """Who allocated each page in use; the file is there when booted with page_owner=on."""
    return StreamFile(kernel.page_owner.text)


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
