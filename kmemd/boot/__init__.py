"""Boot populates a machine: what Linux 6.1 has allocated by the time its first processes wait for work.

``populate`` runs after the subsystems exist. A fresh machine gets the kernel's slab caches with objects, vmalloc
areas, kernel threads with their stacks, and a few processes with memory; the rules stand in docs/fidelity.md.
A twin gets the captured slabs and then the captured free lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.boot.areas import map_areas
from kmemd.boot.processes import spawn_processes
from kmemd.boot.slabs import create_caches, fill_boot_slabs
from kmemd.boot.threads import spawn_kthreads
from kmemd.boot.twin import Twin
from kmemd.mm.clock import NSEC_PER_SEC

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

BOOT_NS = 5 * NSEC_PER_SEC
"""Model time at which a fresh machine has booted."""


def populate(kernel: Kernel) -> None:
    """Bring up the kernel's own users of memory, and the first processes. ENOMEM when the machine is too small."""
    capture = kernel.machine.capture
    twin = Twin(kernel, capture) if capture is not None and kernel.machine.is_twin else None
    if twin is not None:
        twin.create_caches()
    else:
        create_caches(kernel)
        map_areas(kernel)
    init = kernel.tasks.spawn("init")
    spawn_kthreads(kernel)
    if twin is not None:
        twin.load()
        kernel.context.now = max(kernel.context.now, twin.uptime_ns)
    else:
        spawn_processes(kernel, init)
        fill_boot_slabs(kernel)
        kernel.context.now = max(kernel.context.now, BOOT_NS)
    shell = next((task for task in kernel.tasks.processes if task.comm == "sh"), init)
    kernel.context.switch(shell.pid, shell.tgid, shell.comm, 0)  # commands come from a shell
    kernel.context.site = 0
