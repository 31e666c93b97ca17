"""The first processes: init, a getty and a shell, all of one static executable in the initramfs (init/main.c).

The initramfs is a tmpfs: its pages are shared memory, on the anonymous LRU lists. Its files hold ``ROOTFS_PAGES``, as
the captured ones did; the executable is mapped, the others are only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.boot.threads import give_stack
from kmemd.mm.sched import PF_RANDOMIZE, Task
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

ROOTFS_PAGES = {"x86_64": 678, "i386": 694}
"""Pages of the files in the initramfs."""
EXECUTABLE = "busybox"
UNPACKING = (
    *("__folio_alloc", "vma_alloc_folio", "shmem_alloc_folio", "shmem_get_folio_gfp", "shmem_get_folio"),
    *("shmem_write_begin", "generic_perform_write", "__generic_file_write_iter", "generic_file_write_iter"),
    *("__kernel_write_iter", "__kernel_write", "kernel_write", "xwrite", "do_copy", "write_buffer", "flush_buffer"),
    *("unpack_to_rootfs", "do_populate_rootfs", "async_run_entry_fn", "process_one_work", "worker_thread"),
    *("kthread", "ret_from_fork"),
)
"""Who writes the files of the initramfs, innermost first."""
FIRST = (("getty", ("getty", "0", "ttyS0")), ("sh", ("-sh",)))
"""What init starts: names and arguments."""


def spawn_processes(kernel: Kernel, init: Task) -> None:
    """Give init its memory and start the others. ENOMEM."""
    init.argv = ("init",)
    _unpack_initramfs(kernel)
    tasks = [init]
    for comm, argv in FIRST:
        tasks.append(kernel.tasks.spawn(comm, init.pid, argv=argv, flags=PF_RANDOMIZE))
    image = kernel.user.exec.image(EXECUTABLE)
    assert image is not None, "the first program is built in"
    for task in tasks:
        kernel.context.switch(task.pid, task.tgid, task.comm, task.cpu)
        give_stack(kernel, task)
        kernel.user.exec.exec(task, image)
        assert task.mm is not None
        kernel.mmu.sync_rss(task.mm.id)  # they have been up for longer than the 66 faults that counts are kept back for
    kernel.lru.drain_all()


def _unpack_initramfs(kernel: Kernel) -> None:
    """The files of the initramfs: the executable, and the rest as one (init/initramfs.c ``do_populate_rootfs``).

    A worker unpacks them while boot goes on.
    """
    context = kernel.context
    worker = next(task for task in kernel.tasks if task.comm.startswith("kworker/u"))
    site, context.site = context.site, kernel.depot.save(UNPACKING)
    context.switch(worker.pid, worker.tgid, worker.comm, worker.cpu)
    image = kernel.user.exec.image(EXECUTABLE)
    assert image is not None
    executable = kernel.user.executable(image.path)
    rest = ROOTFS_PAGES[kernel.machine.arch] - executable.nrpages
    others = kernel.user.initramfs_file("/lib", rest << PAGE_SHIFT)
    assert others.nrpages == rest, "boot has the memory for its initramfs"
    context.site = site
