"""Knobs as files: every row of the subsystems' tables, under /proc/sys and /sys.

What is common to all files of a tree is here: /proc/sys takes at most 4 MiB at once and ignores numbers that are
written at an offset (fs/proc/proc_sysctl.c, kernel/sysctl.c ``sysctl_writes_strict``); sysfs hands a store at
most a page and never an empty write (fs/kernfs/file.c, fs/sysfs/file.c). How a value parses and prints is in its row.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

from kmemd.errors import KernelError
from kmemd.mm.bad_area import BadArea
from kmemd.mm.compaction import Compaction
from kmemd.mm.drop_caches import DropCaches
from kmemd.mm.fault_around import FaultAround
from kmemd.mm.fault_inject import FailPageAlloc, FailSlab
from kmemd.mm.file_table import FileTable
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.hugetlb import Hugetlb
from kmemd.mm.kernel_sysctl import WRITES_STRICT, WRITES_WARN, KernelSysctl
from kmemd.mm.ksm import Ksm
from kmemd.mm.kstrtox import to_bytes
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.mmap import Mmap
from kmemd.mm.numa_balancing import NumaBalancing
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.page_writeback import PageWriteback
from kmemd.mm.printk import KERN_WARNING
from kmemd.mm.set_memory import SetMemory
from kmemd.mm.swap import Swap
from kmemd.mm.sysctl_handlers import KMALLOC_MAX_SIZE
from kmemd.mm.units import PAGE_SIZE
from kmemd.mm.vmscan import Vmscan
from kmemd.mm.vmstat_sysctl import VmStatSysctl
from kmemd.mm.watermarks import Watermarks
from kmemd.mm.zswap import Zswap
from kmemd.steps import Steps
from kmemd.tunable import Tunable, Tuned
from kmemd.views.tree import File, debugfs, kmemd, proc, sysfs

DEBUGFS = "sys/kernel/debug/"
TREES = {"proc": proc, "sys": sysfs, "kmemd": kmemd}
OWNERS: tuple[type[Tuned], ...] = (
    Watermarks,
    Vmscan,
    Compaction,
    PageWriteback,
    OomKill,
    Mmap,
    Hugetlb,
    HugeMemory,
    Ksm,
    Swap,
    Mempolicy,
    NumaBalancing,
    DropCaches,
    VmStatSysctl,
    KernelSysctl,
    BadArea,
    FileTable,
    Zswap,
    SetMemory,
    FailSlab,
    FaultAround,
    FailPageAlloc,
)


def _owner(kernel: Any, owner: type[Tuned]) -> Any:
    return next((tuned for tuned in kernel.tuned if isinstance(tuned, owner)), None)


def _exists(owner: type[Tuned], row: Tunable, kernel: Any) -> bool:
    found = _owner(kernel, owner)
    return found is not None and found.knob(row) is not None


def _show(owner: type[Tuned], row: Tunable, kernel: Any) -> str:
    return row.show(getattr(_owner(kernel, owner), row.attr))


def _store_sysctl(owner: type[Tuned], row: Tunable, kernel: Any, text: str, position: int = 0) -> Steps[int]:
    """A write to /proc/sys at a file offset. ENOMEM, and what the row's handler raises."""
    size = len(to_bytes(text))
    if size >= KMALLOC_MAX_SIZE:
        raise KernelError(errno.ENOMEM, f"{size} bytes at once are too many for /proc/sys")
    found = _owner(kernel, owner)
    here = found.knob(row)
    if position and _ignores_offset(kernel, here):
        found.changed(here)
        return size
    if position and row.text:
        _continue_string(kernel, found, here, text, position)
        return size
    taken: int = yield from found.tune_steps(here, text)
    return taken


def _continue_string(kernel: Any, owner: Any, row: Tunable, text: str, position: int) -> None:
    """A string goes on at the offset, unless it ended before; without strictness it starts anew."""
    current = getattr(owner, row.attr)
    if kernel.kernel_sysctl.sysctl_writes_strict != WRITES_STRICT:
        owner.tune(row, text)
    elif position <= len(to_bytes(current)):
        owner.tune(row, current[:position] + text)


def _ignores_offset(kernel: Any, row: Tunable) -> bool:
    """Whether numbers at an offset are dropped; in the mode between, the log says that it will come to that."""
    strict = kernel.kernel_sysctl.sysctl_writes_strict
    if strict == WRITES_WARN:
        name = row.path.rpartition("/")[2]
        text = f"{kernel.context.comm} wrote to {name} when file position was not 0!"
        kernel.printk.log(KERN_WARNING, text)
    return bool(strict == WRITES_STRICT) and not row.text


def _store_sysfs(owner: type[Tuned], row: Tunable, kernel: Any, text: str) -> Steps[int]:
    """A write to a sysfs attribute: the first page of it, if there is anything."""
    page = one_page(text)
    if not page:
        return 0
    found = _owner(kernel, owner)
    taken: int = yield from found.tune_steps(found.knob(row), page)
    return taken


def one_page(text: str) -> str:
    """What kernfs hands to a store: at most a page of what was written."""
    return to_bytes(text)[:PAGE_SIZE].decode("utf-8", "surrogateescape")


def _mount(owner: type[Tuned], row: Tunable) -> None:
    tree, name = row.path.split("/", 1)
    sysctl, debug = row.path.startswith("proc/sys/"), row.path.startswith(DEBUGFS)
    file = File(
        row.mode,
        0 if sysctl or debug else PAGE_SIZE,
        partial(_show, owner, row) if row.mode & 0o444 else None,
        exists=partial(_exists, owner, row),
    )
    if row.mode & 0o222:
        file.write = partial(_store_sysctl if sysctl else _store_sysfs, owner, row)
        file.takes_position = sysctl
    if debug:
        debugfs.add(row.path.removeprefix(DEBUGFS), file)
    else:
        TREES[tree].add(name, file)


def _listed(knob: tuple[type[Tuned], Tunable]) -> str:
    """/proc/sys lists its names in order; the rest stays as declared."""
    path = knob[1].path
    return path if path.startswith("proc/sys/") else ""


for _class, _row in sorted(((owner, row) for owner in OWNERS for row in owner.TUNABLES), key=_listed):
    _mount(_class, _row)

_SYS = proc.dir("sys")
_SYS.names = dict(sorted(_SYS.names.items()))  # other modules have declared files below it before
