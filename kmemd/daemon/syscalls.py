"""The few Linux system calls that Python 3.11 does not offer: mount(2), umount2(2), unshare(2), prctl(2); and write(2)
without its retries.
"""

from __future__ import annotations

import ctypes
import os

MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def _call(name: str, where: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), where)


def mount(source: str, target: str, fstype: str = "", flags: int = 0) -> None:
    """mount(2). OSError."""
    _call(
        "mount",
        target,
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode(),
        ctypes.c_ulong(flags),
        None,
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2). OSError."""
    _call("umount2", target, os.fsencode(target), flags)


def unshare(flags: int) -> None:
    """unshare(2). OSError."""
    _call("unshare", "unshare", flags)


def die_with_parent(signal_number: int) -> None:
    """Get a signal when the parent process ends. OSError."""
    _call("prctl", "prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number))


def write_once(descriptor: int, data: bytes) -> int:
    """write(2). OSError, also for EINTR: ``os.write`` tries again then, so that a command would run twice."""
    function = ctypes.CDLL(None, use_errno=True).write
    function.restype = ctypes.c_ssize_t
    taken: int = function(descriptor, data, ctypes.c_size_t(len(data)))
    if taken < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return taken
