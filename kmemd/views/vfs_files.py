"""``/proc/sys/fs/dentry-state``, ``inode-nr``, ``inode-state``, and ``/proc/PID/io``.

Linux: fs/dcache.c, fs/inode.c, fs/proc/base.c. The names and inodes of boot, of proc, sysfs and others, are those that
the slab caches have objects of.
"""

from __future__ import annotations

from kmemd.kernel import Kernel
from kmemd.mm.dcache import DENTRY_AGE_LIMIT
from kmemd.mm.sched import Task
from kmemd.views.task_files import task_file
from kmemd.views.tree import proc


@proc.file("sys/fs/dentry-state")
def dentry_state(kernel: Kernel) -> str:
    """Dentries, unused ones, two constants of old, and negative ones."""
    dcache = kernel.user.block.dcache
    total = kernel.user.block.boot_dentries + dcache.nr_dentry
    return f"{total}\t{dcache.nr_unused}\t{DENTRY_AGE_LIMIT}\t0\t{dcache.nr_negative}\t0\n"


def _inodes(kernel: Kernel) -> tuple[int, int]:
    block = kernel.user.block
    return block.boot_inodes + block.dcache.nr_inodes, block.dcache.unused_inodes()


@proc.file("sys/fs/inode-nr")
def inode_nr(kernel: Kernel) -> str:
    """Inodes, and unused ones."""
    total, unused = _inodes(kernel)
    return f"{total}\t{unused}\n"


@proc.file("sys/fs/inode-state")
def inode_state(kernel: Kernel) -> str:
    """The same, and five zeros."""
    total, unused = _inodes(kernel)
    return f"{total}\t{unused}" + "\t0" * 5 + "\n"


@task_file("io", 0o400)
def io(kernel: Kernel, task: Task) -> str:
    """Bytes and calls of reads and writes, and what of them went to disks."""
    names = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes")
    return "".join(f"{name}: {getattr(task.ioac, name)}\n" for name in names)
