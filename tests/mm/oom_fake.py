"""What the OOM killer's tests put in place of a machine: tasks with address spaces whose counters are given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, Mm
from kmemd.mm.signals import Dispositions

CAPTURE = Path(__file__).parent.parent / "captures/linux-6.1/oom/x86_64-1500M"
ROW = re.compile(r"\[ *(\d+)\] +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(-?\d+) (.*)")


@dataclass(eq=False)
class Task:
    """A task as far as the killer, its report and signals go."""

    pid: int
    comm: str = "uo"
    mm: Mm | None = None
    oom_score_adj: int = 0
    oom_score_adj_min: int = 0
    uid: int = 0
    ppid: int = 1
    cpu: int = 0
    state: str = "R"
    is_kthread: bool = False
    killed: int = 0
    oom_victim: bool = False
    oom_flag_origin: bool = False
    cgroup: Any = None
    signals: Dispositions = field(default_factory=Dispositions)

    @property
    def tgid(self) -> int:
        return self.pid


class Arrays:
    """The core's counters for up to 64 address spaces."""

    def __init__(self) -> None:
        self.rss = np.zeros(64 * 4, dtype=np.int64)
        self.tables = np.zeros(64, dtype=np.int64)
        self._last = 0

    @property
    def counters(self) -> MmCounters:
        return MmCounters(lambda: self)

    def mm(self, rss: int, table_bytes: int = 0, total_vm: int = 0, shmem: int = 0, file: int = 0) -> Mm:
        """An address space with ``rss`` resident pages in all."""
        self._last += 1
        mm = Mm(self._last, total_vm=total_vm)
        self.rss[mm.id * 4 + MM_ANONPAGES] = rss - shmem - file
        self.rss[mm.id * 4 + MM_SHMEMPAGES] = shmem
        self.rss[mm.id * 4 + MM_FILEPAGES] = file
        self.tables[mm.id] = table_bytes // 4096
        return mm


@dataclass(frozen=True)
class Table:
    """One task table of the captured log, with the lines of its report."""

    lines: list[str]
    tasks: list[Task]


def reports(arrays: Arrays) -> Iterator[Table]:
    """The captured reports, each with tasks that have what its table says."""
    text = (CAPTURE / "oom.dmesg").read_text()
    for part in text.split("uo invoked oom-killer")[1:]:
        lines = ("uo invoked oom-killer" + part).splitlines()
        tasks = []
        for line in lines:
            match = ROW.fullmatch(line)
            if match:
                pid, uid, _, vm, rss, tables, _, adj = (int(word) for word in match.groups()[:8])
                shmem, file = (158, 1) if rss > 1000 else (0, 0)
                mm = arrays.mm(rss, tables, vm, shmem, file)
                tasks.append(Task(pid, match[9], mm, adj, uid=uid))
        yield Table(lines, tasks)
