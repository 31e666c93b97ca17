"""Mountpoints: which are live, which are what a killed daemon left behind, how to unmount.

Imports are made where they are needed: every command starts with this module.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

FSTYPE = "fuse.kmemd"
DEFAULT = "/run/kmemd"
DEVICE = "/dev/fuse"
ENVIRONMENT = "KMEMD_MOUNT"
"""The environment variable that names the mount to programs started by ``kmemd run``."""


class MountError(Exception):
    """A mountpoint cannot be used; the text says why and what to do."""


class Mount(NamedTuple):
    """One line of ``/proc/self/mountinfo``."""

    path: str
    fstype: str


def mounts(mountinfo: str = "/proc/self/mountinfo") -> Iterator[Mount]:
    """The mounts of this mount namespace, oldest first."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                yield Mount(_unescape(before.split(" ")[4]), after.split(" ")[0])
    except FileNotFoundError:
        return


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text


def live_mounts() -> list[str]:
    """The mountpoints of kmemd that a daemon serves."""
    return [mount.path for mount in mounts() if mount.fstype == FSTYPE and not is_stale(mount.path)]


def is_kmemd(path: str) -> bool:
    """Whether the uppermost mount at ``path`` is kmemd's."""
    found = [mount.fstype for mount in mounts() if mount.path == os.path.abspath(path)]
    return bool(found) and found[-1] == FSTYPE


def is_stale(path: str) -> bool:
    """Whether ``path`` is a FUSE mount whose daemon is gone.

    statvfs, because the kernel answers stat from its cache for as long as the daemon once allowed.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def prepare(path: str) -> str:
    """Make ``path`` ready to be mounted on; returns it absolute.

    A stale mount is unmounted. Raises MountError when the path cannot be used.
    """
    if not os.path.exists(DEVICE):
        raise MountError(f"{DEVICE} is missing: load the fuse module, or give the container the device")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise MountError(f"no permission to open {DEVICE}: be root, or let users open it (mode 0666)")
    path = os.path.abspath(path)
    while is_stale(path):
        unmount(path, lazy=True)
    if is_kmemd(path):
        raise MountError(f"{path} is already a live kmemd mount: unmount it first (kmemd umount {path})")
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        raise MountError(f"{path} does not exist: make the directory first") from None
    except NotADirectoryError:
        raise MountError(f"{path} is not a directory") from None
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from None
    if entries:
        raise MountError(f"{path} is not empty: its {len(entries)} entries would be hidden")
    return path


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount; ``lazy`` does so even if somebody uses it. MountError, also when another unmounted it meanwhile."""
    try:
        _unmount(path, lazy)
    except MountError:
        if not is_kmemd(path):
            raise MountError(f"{path} is not mounted any more") from None
        raise


def _unmount(path: str, lazy: bool) -> None:
    if os.geteuid() != 0:
        _fusermount(path, lazy)
        return
    from kmemd.daemon import syscalls

    try:
        syscalls.umount(path, syscalls.MNT_DETACH if lazy else 0)
    except OSError as error:
        hint = ": a program uses it; end it, or use --lazy" if error.errno == errno.EBUSY else ""
        raise MountError(f"cannot unmount {path}: {error.strerror}{hint}") from None


def _fusermount(path: str, lazy: bool) -> None:
    import subprocess

    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountError("fusermount3 is missing: install the package fuse3") from None
    if done.returncode != 0:
        raise MountError(f"cannot unmount {path}: {done.stderr.strip()}")


def find(at: str | None) -> str:
    """The mountpoint that a command means: ``at``, what ``kmemd run`` set, the only live one, the default."""
    if at is not None:
        return os.path.abspath(at)
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    if is_kmemd(DEFAULT) and not is_stale(DEFAULT):
        return DEFAULT
    live = live_mounts()
    if len(live) == 1:
        return live[0]
    if live:
        raise MountError(f"several machines are mounted ({', '.join(live)}): choose one with --at")
    raise MountError("no machine is mounted: start one with kmemd mount MOUNTPOINT")
