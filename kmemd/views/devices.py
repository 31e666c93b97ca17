"""``/proc/devices``, ``consoles``, ``locks``, ``cgroups`` and ``sys/fs/file-nr``: tables that programs open at start.

fs/proc/{devices,consoles}.c, kernel/exec_domain.c, fs/locks.c, kernel/cgroup/cgroup-v1.c, fs/file_table.c. The model
has one serial port and no video terminal, as the captured machines, and the disks that it swaps to. Left out: file
locks, control groups but the root, drivers of anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.views.block import EXTENDED_MAJOR, drivers
from kmemd.views.tree import proc

CHARACTER = ((1, "mem"), (4, "ttyS"), (5, "/dev/tty"), (5, "/dev/console"))
"""dev/kmsg is one of mem's."""
SERIAL_PORT = re.compile(r"ttyS0*|0+")
"""The values of console= that mean the only port."""


@proc.file("devices")
def devices(kernel: Kernel) -> Iterator[str]:
    """Major numbers and who has them."""
    yield "Character devices:\n"
    for major, name in CHARACTER:
        yield f"{major:3} {name}\n"
    yield "\nBlock devices:\n"
    for major, name in sorted([*drivers(kernel), (EXTENDED_MAJOR, "blkext")]):
        yield f"{major:3} {name}\n"


@proc.file("consoles")
def consoles(kernel: Kernel) -> str:
    """The serial port, which writes at any time, when no console= names only other ones."""
    named = kernel.cmdline.all("console")
    if named and not any(SERIAL_PORT.fullmatch(value.split(",")[0]) for value in named):
        return ""
    return f"{'ttyS0':<21}-W- (EC p a)    4:64\n"


@proc.file("execdomains")
def execdomains(kernel: Kernel) -> str:
    """Whose programs run: Linux' own (kernel/exec_domain.c)."""
    return f"0-0\t{'Linux':<16}\t[kernel]\n"


@proc.file("locks")
def locks(kernel: Kernel) -> str:
    """File locks: the model's tasks hold none."""
    return ""


@proc.file("cgroups")
def cgroups(kernel: Kernel) -> str:
    """The memory controller: it is on the unified hierarchy."""
    disabled = [name for value in kernel.cmdline.all("cgroup_disable") for name in value.split(",")]
    enabled = int("memory" not in disabled)
    return f"#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t{kernel.cgroups.memory_groups}\t{enabled}\n"


@proc.file("sys/fs/file-nr")
def file_nr(kernel: Kernel) -> str:
    """Open files, as many as there are objects for them; none kept free; the limit."""
    filp = kernel.slub.names.get("filp")
    files = 0 if filp is None else kernel.slub.slab_counts(filp)[0]
    return f"{files}\t0\t{kernel.file_table.max_files}\n"
