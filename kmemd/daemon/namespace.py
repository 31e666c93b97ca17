"""A mount namespace in which the model's files lie over the host's ``/proc`` and ``/sys``.

Only what the model has is covered: the rest of ``/sys`` stays the host's, and so does everything else.
"""

from __future__ import annotations

import os
import tempfile

from kmemd.daemon import syscalls

COVERED = (
    "sys/devices/system/node",
    "sys/devices/system/cpu",
    "sys/devices/system/memory",
    "sys/block",
    "sys/class/bdi",
    "sys/fs/cgroup",
    "sys/kernel/mm",
    "sys/module",
    "sys/kernel/slab",
    "sys/kernel/debug",
    "sys/kernel/tracing",
    "dev/kmsg",
    "proc",
)
"""Bound over the host's in this order; ``proc`` last, because the steps before it may need the host's."""

OUTSIDE = "proc/.outside"
"""Where the host's procfs stays in reach: what the program itself has open is known to it alone."""


def enter(mountpoint: str) -> None:
    """Move this process into a namespace that shows the model mounted at ``mountpoint``. OSError.

    Without root a user namespace is made as well, in which the user is root.
    """
    if os.geteuid() == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    else:
        _become_root()
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    if os.path.isdir(os.path.join(mountpoint, OUTSIDE)):
        _cover("/proc", os.path.join(mountpoint, OUTSIDE))
    for path in COVERED:
        source = os.path.join(mountpoint, path)
        if os.path.lexists(source):
            _cover(source, f"/{path}")


def _become_root() -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _cover(source: str, target: str) -> None:
    if not os.path.exists(target):
        if not os.path.isdir(source):
            return
        _graft(target)
    syscalls.mount(source, target, flags=syscalls.MS_BIND | syscalls.MS_REC)


def _graft(target: str) -> None:
    """Make a directory where the host's kernel has none and lets nobody make one.

    Its parent is covered by a tmpfs that shows all that was there, and the new directory.
    """
    parent, name = os.path.split(target)
    if not os.path.isdir(parent):
        _graft(parent)
    staging = tempfile.mkdtemp(prefix="kmemd-")
    syscalls.mount("kmemd", staging, "tmpfs")
    for entry in os.scandir(parent):
        _show(entry, os.path.join(staging, entry.name))
    os.mkdir(os.path.join(staging, name))
    syscalls.mount(staging, parent, flags=syscalls.MS_MOVE)
    os.rmdir(staging)


def _show(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
        return
    if entry.is_dir():
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    syscalls.mount(entry.path, target, flags=syscalls.MS_BIND | syscalls.MS_REC)
