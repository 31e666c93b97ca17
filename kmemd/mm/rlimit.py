"""Resource limits of processes (include/uapi/asm-generic/resource.h, kernel/sys.c ``do_prlimit``).

Models the sixteen limits, what a process is born with (include/asm-generic/resource.h, ``fork_init``), who may raise
them, and that a child has its parent's. Enforced are those of memory, AS, DATA, STACK, MEMLOCK, and NPROC; the others
are kept and shown.
"""

from __future__ import annotations

import errno
from typing import Protocol

from kmemd.errors import KernelError
from kmemd.mm.units import MIB, PAGE_SHIFT

RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_RSS, RLIMIT_NPROC, RLIMIT_NOFILE = range(8)
RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_LOCKS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTPRIO = range(8, 15)
RLIMIT_RTTIME = 15
RLIM_NLIMITS = 16
NAMES = (
    *("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC"),
    *("RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE"),
    *("RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME"),
)
SHOWN = (
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)
"""Name and unit in /proc/PID/limits, by number."""
INFINITY_64, INFINITY_32 = (1 << 64) - 1, (1 << 32) - 1
STACK_LIMIT, MEMLOCK_LIMIT = 8 * MIB, 8 * MIB
NOFILE, NOFILE_MAX, MQ_BYTES_MAX = 1024, 4096, 819200
NR_OPEN = 1 << 20

Limit = tuple[int, int]


class Limited(Protocol):
    """What of a task matters here. ``rlimits`` holds the limits that are not the ones of boot, by number."""

    uid: int
    rlimits: dict[int, Limit]


def capable(task: Limited) -> bool:
    """Whether a task may do what root may (CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RESOURCE)."""
    return task.uid == 0


class Rlimits:
    """The limits of tasks. ``max_threads`` is kernel.threads-max as boot set it."""

    def __init__(self, max_threads: int, *, long_bits: int = 64) -> None:
        self.infinity = INFINITY_64 if long_bits == 64 else INFINITY_32
        self._max_threads = max_threads

    def boot(self, resource: int) -> Limit:
        """What init is born with: soft and hard limit."""
        threads = self._max_threads // 2
        special = {
            RLIMIT_STACK: (STACK_LIMIT, self.infinity),
            RLIMIT_CORE: (0, self.infinity),
            RLIMIT_NPROC: (threads, threads),
            RLIMIT_NOFILE: (NOFILE, NOFILE_MAX),
            RLIMIT_MEMLOCK: (MEMLOCK_LIMIT, MEMLOCK_LIMIT),
            RLIMIT_SIGPENDING: (threads, threads),
            RLIMIT_MSGQUEUE: (MQ_BYTES_MAX, MQ_BYTES_MAX),
            RLIMIT_NICE: (0, 0),
            RLIMIT_RTPRIO: (0, 0),
        }
        return special.get(resource, (self.infinity, self.infinity))

    def get(self, task: Limited, resource: int) -> Limit:
        """Soft and hard limit of a task."""
        return task.rlimits.get(resource) or self.boot(resource)

    def soft(self, task: Limited, resource: int) -> int:
        """The limit in force (``rlimit()``)."""
        return self.get(task, resource)[0]

    def pages(self, task: Limited, resource: int) -> int:
        """The limit in force, in whole pages."""
        return self.soft(task, resource) >> PAGE_SHIFT

    def set(self, task: Limited, resource: int, soft: int, hard: int, *, privileged: bool) -> None:
        """Change a limit (``do_prlimit``). EINVAL for soft above hard, EPERM to raise the hard one without right."""
        if not 0 <= resource < RLIM_NLIMITS:
            raise KernelError(errno.EINVAL, f"no limit number {resource}")
        soft, hard = min(soft, self.infinity), min(hard, self.infinity)
        if soft > hard:
            raise KernelError(errno.EINVAL, f"the soft limit {soft} is above the hard limit {hard}")
        if resource == RLIMIT_NOFILE and hard > NR_OPEN:
            raise KernelError(errno.EPERM, f"no process opens more than {NR_OPEN} files (fs.nr_open)")
        if hard > self.get(task, resource)[1] and not privileged:
            raise KernelError(errno.EPERM, f"only root raises a hard limit above {self.get(task, resource)[1]}")
        task.rlimits[resource] = (soft, hard)

    def text(self, value: int) -> str:
        """A limit as /proc/PID/limits shows it."""
        return "unlimited" if value == self.infinity else str(value)
