"""The kernel log: ``/dev/kmsg``, ``/proc/kmsg`` and ``kmemd/dmesg`` (kernel/printk/printk.c, fs/proc/kmsg.c).

``/dev/kmsg`` gives one record a read and takes records; ``/proc/kmsg`` gives what nobody has read yet, in
the old syslog format; both wait when there is nothing new. ``kmemd/dmesg`` is the whole log in the old
format, with its true length, for ``dmesg -F``.
"""

from __future__ import annotations

import errno
import re

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYS_ADMIN, CAP_SYSLOG
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.printk import KERN_WARNING, Record
from kmemd.steps import Steps
from kmemd.views.tree import Caller, dev, kmemd, proc

LOG_LINE_MAX = 1024 - 32
RATELIMIT_BURST = 10
RATELIMIT_INTERVAL_NS = 5 * NSEC_PER_SEC
LOG_USER = 1
_PREFIX = re.compile(rb"<(\d+)>")


def ext_record(record: Record) -> bytes:
    """One record as /dev/kmsg gives it: priority, sequence number, µs, flags; text."""
    text = record.text.encode("utf-8", "surrogateescape")
    body = "".join(chr(byte) if 32 <= byte < 127 and byte != 0x5C else f"\\x{byte:02x}" for byte in text)
    priority = record.facility << 3 | record.level
    return f"{priority},{record.seq},{record.ts_ns // 1000},-;{body}\n".encode()


def syslog_record(record: Record) -> str:
    """One record in the old format: every line with priority and time."""
    seconds, rest = divmod(record.ts_ns // 1000, 1_000_000)
    prefix = f"<{record.facility << 3 | record.level}>[{seconds:5d}.{rest:06d}] "
    return "".join(f"{prefix}{line}\n" for line in record.text.split("\n"))


class KmsgFile:
    """One open of /dev/kmsg (``struct devkmsg_user``): its place in the log, and its rate limit."""

    def __init__(self, kernel: Kernel, caller: Caller) -> None:
        self._kernel = kernel
        self._caller = caller
        self._seq = kernel.printk.first_seq
        self._moved = False
        self._began = 0
        self._lines = 0
        self._missed = 0

    def read(self, offset: int, size: int) -> bytes | None:
        """The next record; None when there is none. EPIPE when it was overwritten, EINVAL when it does not fit."""
        _check_permission(self._kernel, self._caller)
        log = self._kernel.printk
        if offset == 0 and self._moved:
            self._seq, self._moved = log.first_seq, False
        if self._seq < log.first_seq:
            self._seq = log.first_seq
            raise KernelError(errno.EPIPE, "records were overwritten before they were read")
        record = log.find(self._seq)
        if record is None:
            return None
        line = ext_record(record)
        if len(line) > size:
            raise KernelError(errno.EINVAL, f"the record needs {len(line)} bytes")
        self._seq += 1
        self._moved = True
        return line

    def readable(self) -> bool:
        """Whether a read would not wait."""
        return self._seq < self._kernel.printk.next_seq

    def write(self, data: bytes) -> Steps[int]:
        """Add a record; ``<N>`` before it says facility and level. EINVAL when it is too long."""
        if len(data) > LOG_LINE_MAX:
            raise KernelError(errno.EINVAL, f"a record has at most {LOG_LINE_MAX} bytes")
        if self._within_limit():
            self._emit(data)
        return len(data)
        yield

    def _emit(self, data: bytes) -> None:
        level, facility = KERN_WARNING, LOG_USER
        found = _PREFIX.match(data)
        if found is not None:
            priority = int(found.group(1))
            level = priority & 7
            facility = (priority >> 3 & 0xFF) or facility
            data = data[found.end() :]
        text = data.split(b"\0", 1)[0].removesuffix(b"\n")
        self._kernel.printk.emit(level, text.decode("utf-8", "surrogateescape"), facility)

    def _within_limit(self) -> bool:
        """``___ratelimit``: ten records in five seconds from one open."""
        now = self._kernel.clock.now
        if self._lines == 0 or now > self._began + RATELIMIT_INTERVAL_NS:
            self._began, self._lines = now, 0
        if self._lines >= RATELIMIT_BURST:
            self._missed += 1
            return False
        self._lines += 1
        return True

    def close(self) -> None:
        """Say how much the rate limit has held back."""
        if self._missed:
            comm = self._kernel.context.comm
            text = f"{comm}: {self._missed} output lines suppressed due to ratelimiting"
            self._kernel.printk.log(KERN_WARNING, text)


class ProcKmsgFile:
    """One open of /proc/kmsg; the position in the log is everybody's."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self, offset: int, size: int) -> bytes | None:
        """Unread records, as many as fit and at least one; None when there is none."""
        log = self._kernel.printk
        log.syslog_seq = max(log.syslog_seq, log.first_seq)
        text = b""
        for record in log.since(log.syslog_seq) if self.readable() else []:
            line = syslog_record(record).encode("utf-8", "surrogateescape")
            if text and len(text) + len(line) > size:
                break
            text += line
            log.syslog_seq += 1
            if len(text) >= size:
                break
        return text[:size] or None

    def readable(self) -> bool:
        """Whether a read would not wait."""
        return self._kernel.printk.syslog_seq < self._kernel.printk.next_seq

    def write(self, data: bytes) -> Steps[int]:
        """EIO: the file cannot be written."""
        raise KernelError(errno.EIO, "/proc/kmsg cannot be written")
        yield

    def close(self) -> None:
        """Nothing to let go."""


def _check_permission(kernel: Kernel, caller: Caller) -> None:
    """EPERM: with dmesg_restrict who has CAP_SYSLOG alone reads the log (``check_syslog_permissions``)."""
    if kernel.kernel_sysctl.dmesg_restrict and not (caller.capable(CAP_SYSLOG) or caller.capable(CAP_SYS_ADMIN)):
        raise KernelError(errno.EPERM, "kernel.dmesg_restrict keeps the log for root")


@dev.device("kmsg", mode=0o644, pollable=True)
def kmsg(kernel: Kernel, caller: Caller) -> KmsgFile:
    """The log, a record a read; a write adds one."""
    return KmsgFile(kernel, caller)


@proc.device("kmsg", mode=0o400, pollable=True)
def proc_kmsg(kernel: Kernel, caller: Caller) -> ProcKmsgFile:
    """What nobody has read yet, in the old format."""
    return ProcKmsgFile(kernel)


def _syslog(kernel: Kernel) -> str:
    return "".join(map(syslog_record, kernel.printk.since(0)))


@kmemd.file("dmesg", caller=True, length=lambda kernel: len(_syslog(kernel).encode("utf-8", "surrogateescape")))
def dmesg(kernel: Kernel, caller: Caller) -> str:
    """The whole log in the old format, for ``dmesg -F``."""
    _check_permission(kernel, caller)
    return _syslog(kernel)
