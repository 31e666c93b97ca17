"""What is executing now: the model's clock, CPU, task and call site, in one shared int64 array.

The compiled loops read the array; Python code uses the properties. It stands for Linux's
``current``, ``smp_processor_id()`` and ``local_clock()``.
"""

import numpy as np

from kmemd.core.trace import TraceLog

NOW = 0  # model time since boot, ns
CPU = 1  # the CPU the code runs on
PID = 2
TGID = 3
COMM = 4  # index into Context.comms
STACK = 5  # stack depot handle of the whole stack down to the allocation, 0 = none
SITE = 6  # stack depot handle of the caller of the allocator, without the allocator's own frames
UID = 7
WAITED = 8  # ns that executing tasks have waited for devices, or were made to wait, so far: no CPU time of theirs
WORDS = 16


class Context:
    """The executing context. ``words`` is the array the core shares."""

    def __init__(self) -> None:
        self.words = np.zeros(WORDS, dtype=np.int64)
        self.trace = TraceLog(self.words)
        self.comms: list[str] = ["swapper/0"]
        self._comm_index: dict[str, int] = {"swapper/0": 0}

    @property
    def now(self) -> int:
        """Model time since boot in ns."""
        return int(self.words[NOW])

    @now.setter
    def now(self, ns: int) -> None:
        self.words[NOW] = ns

    def charge(self, ns: int) -> None:
        """Let ``ns`` nanoseconds of work pass."""
        self.words[NOW] += ns

    @property
    def waited_ns(self) -> int:
        """How long executing tasks have waited so far, which is part of ``now``."""
        return int(self.words[WAITED])

    def wait(self, ns: int) -> None:
        """Let ``ns`` nanoseconds pass in which the executing task sleeps."""
        self.words[NOW] += ns
        self.words[WAITED] += ns

    @property
    def cpu(self) -> int:
        """The executing CPU."""
        return int(self.words[CPU])

    @cpu.setter
    def cpu(self, cpu: int) -> None:
        self.words[CPU] = cpu

    @property
    def pid(self) -> int:
        """The executing thread."""
        return int(self.words[PID])

    @property
    def tgid(self) -> int:
        """The executing thread's process."""
        return int(self.words[TGID])

    @property
    def comm(self) -> str:
        """The executing task's name."""
        return self.comms[int(self.words[COMM])]

    def comm_id(self, comm: str) -> int:
        """The number that stands for ``comm`` in the core's arrays."""
        index = self._comm_index.get(comm)
        if index is None:
            index = self._comm_index[comm] = len(self.comms)
            self.comms.append(comm)
        return index

    def switch(self, pid: int, tgid: int, comm: str, cpu: int) -> None:
        """Run as another task from here on."""
        self.words[PID] = pid
        self.words[TGID] = tgid
        self.words[COMM] = self.comm_id(comm)
        self.words[CPU] = cpu

    @property
    def site(self) -> int:
        """Stack depot handle of the code that calls into the memory manager."""
        return int(self.words[SITE])

    @site.setter
    def site(self, handle: int) -> None:
        self.words[SITE] = handle

    @property
    def stack(self) -> int:
        """Stack depot handle recorded with the next allocation."""
        return int(self.words[STACK])

    @stack.setter
    def stack(self, handle: int) -> None:
        self.words[STACK] = handle
