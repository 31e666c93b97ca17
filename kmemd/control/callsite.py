"""Who calls the allocator: ``by=leaky_probe+0x2a[leaky_drv]`` and the frames that such a caller has above it.

A backtrace in page_owner or kmemleak goes on above the driver's function: through the driver core, a system call, a
work queue, up to the entry code. Which of these it is follows from the kernel's naming habits (``*_probe``, ``*_init``,
``*_ioctl``, ``*_work``...), in ``CALLERS``; the chains are those of Linux 6.1's drivers/base/dd.c,
init/main.c, kernel/module/main.c, fs/read_write.c, fs/ioctl.c, kernel/workqueue.c and arch/x86/entry.
Left out: offsets of these outer frames, which ``debug/kallsyms`` gives.
"""

from __future__ import annotations

import re
from typing import Any

from kmemd.control.language import invalid, quoted
from kmemd.mm.sched import KTHREAD_FRAMES, WORKER_FRAMES

_FRAME = re.compile(
    r"(?P<symbol>[A-Za-z_][A-Za-z0-9_.]{0,127})(?:\+(?P<offset>0x[0-9a-fA-F]{1,6}|\d{1,6}))?"
    r"(?:/(?:0x[0-9a-fA-F]{1,6}|\d{1,6}))?(?:\[(?P<module>[A-Za-z_][A-Za-z0-9_]{0,55})\])?"
)
FRAMES_MAX = 16
"""Most frames in one ``by=``, kmemleak's MAX_TRACE."""

_MODULE_INIT = ("do_one_initcall", "do_init_module", "load_module", "__do_sys_finit_module")
_DRIVER_CORE = (
    "really_probe",
    "__driver_probe_device",
    "driver_probe_device",
    "__driver_attach",
    "bus_for_each_dev",
    "driver_attach",
    "bus_add_driver",
    "driver_register",
)

CALLERS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    (r"_probe$", (*_DRIVER_CORE, *_MODULE_INIT, "__x64_sys_finit_module"), True),
    (r"_init$|^init_module$", (*_MODULE_INIT, "__x64_sys_finit_module"), True),
    (r"_work$|_work_fn$|_worker$", WORKER_FRAMES, False),
    (r"_thread$|_kthread$", KTHREAD_FRAMES, False),
    (r"_open$", ("do_dentry_open", "vfs_open", "path_openat", "do_filp_open", "do_sys_openat2"), True),
    (r"_ioctl$", ("__x64_sys_ioctl",), True),
    (r"_mmap$", ("mmap_region", "do_mmap", "vm_mmap_pgoff", "ksys_mmap_pgoff"), True),
    (r"_read$|_show$", ("vfs_read", "ksys_read", "__x64_sys_read"), True),
    (r"", ("vfs_write", "ksys_write", "__x64_sys_write"), True),
)
"""Pattern of the outermost named function, the frames above it, and whether they end in a system call."""

_ENTRY = {
    "x86_64": ("do_syscall_64", "entry_SYSCALL_64_after_hwframe"),
    "i386": ("do_int80_syscall_32", "entry_INT80_32"),
}
DEFAULT = ("ctl_write[kmemd]", "full_proxy_write")
"""The caller of a command without ``by=``: the write to the command file itself."""


def frames(text: str) -> tuple[str, ...]:
    """The frames of a ``by=`` word, innermost first, separated by commas. EINVAL."""
    found: list[str] = []
    column = 0
    for part in text.split(","):
        match = _FRAME.fullmatch(part)
        if match is None:
            invalid(f"{quoted(part)} is not a call site; write symbol+0x2a[module]", column)
        offset = f"+{int(match['offset'], 0):#x}" if match["offset"] else ""
        module = f"[{match['module']}]" if match["module"] else ""
        found.append(match["symbol"] + offset + module)
        column += len(part) + 1
    if len(found) > FRAMES_MAX:
        invalid(f"{len(found)} frames; at most {FRAMES_MAX}", 0)
    return tuple(found)


def stack(inner: tuple[str, ...], arch: str) -> tuple[str, ...]:
    """``inner`` with the frames above it, out to the entry of the kernel."""
    symbol = re.split(r"[+\[]", inner[-1])[0]
    above, syscall = next((above, call) for pattern, above, call in CALLERS if re.search(pattern, symbol))
    if not syscall:
        return inner + above
    if arch == "i386":
        above = tuple(frame.replace("__x64_", "__ia32_") for frame in above)
    return inner + above + _ENTRY.get(arch, _ENTRY["x86_64"])


def site(inner: tuple[str, ...], kernel: Any) -> int:
    """The stack depot handle of a call site on this kernel."""
    return int(kernel.depot.save(stack(inner or DEFAULT, kernel.machine.arch)))
