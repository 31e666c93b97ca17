"""Who may open what. The kernel checks mode bits (mount option ``default_permissions``); root passes those.

Two trees of Linux hold root to the mode bits as well: sysfs (fs/kernfs/file.c, where
KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK refuses to read what has no read bit and to write what has no write bit)
and ``/proc/sys`` (fs/proc/proc_sysctl.c ``sysctl_perm``). debugfs and tracefs are not part of sysfs, they
are mounted in it.
"""

from __future__ import annotations

import errno
import os

from kmemd.errors import KernelError
from kmemd.views.tree import Node

READ_BITS = 0o444
WRITE_BITS = 0o222

_STRICT = ("/sys/", "/proc/sys/")
_LENIENT = ("/sys/kernel/debug/", "/sys/kernel/tracing/", "/sys/fs/cgroup/")


def is_strict(path: str) -> bool:
    """Whether even root needs the mode bits to open ``path``."""
    return path.startswith(_STRICT) and not path.startswith(_LENIENT)


def check_open(node: Node, flags: int) -> None:
    """Refuse an ``open(2)`` that the tree of ``node`` refuses to root too. EACCES."""
    if not is_strict(node.path):
        return
    access, mode = flags & os.O_ACCMODE, node.entry.mode
    if access != os.O_WRONLY and not mode & READ_BITS:
        raise KernelError(errno.EACCES, f"{node.path} cannot be read")
    if access != os.O_RDONLY and not mode & WRITE_BITS:
        raise KernelError(errno.EACCES, f"{node.path} cannot be written")
