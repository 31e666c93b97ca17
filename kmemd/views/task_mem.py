"""``/proc/PID/mem`` (fs/proc/base.c ``mem_rw``): the bytes of a process' memory at the offset that is its address."""

from __future__ import annotations

import errno

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.sched import Task
from kmemd.steps import Steps
from kmemd.views.task_files import PROC, THREAD, check_memory_access, task_of
from kmemd.views.tree import Caller, proc


class OpenMem:
    """An open file; it stays with the address space, which may go away under it."""

    def __init__(self, kernel: Kernel, task: Task) -> None:
        self._kernel = kernel
        self._task = task
        self._mm = task.mm

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an address; nothing of kernel threads and of processes that have ended. EIO."""
        if not self._alive() or not size:
            return b""
        data: bytes = self._kernel.user.remote_vm.read(self._task, offset, size)
        if not data:
            raise KernelError(errno.EIO, f"process {self._task.pid} has nothing to read at {offset:#x}")
        return data

    def write(self, data: bytes) -> Steps[int]:
        """Bytes at address 0."""
        return self.write_at(0, data)

    def write_at(self, offset: int, data: bytes) -> Steps[int]:
        """Bytes to an address. EIO."""
        if not self._alive() or not data:
            return 0
        done: int = self._kernel.user.remote_vm.write(self._task, offset, data)
        if not done:
            raise KernelError(errno.EIO, f"process {self._task.pid} has nothing to write to at {offset:#x}")
        return done
        yield

    def close(self) -> None:
        """Nothing to let go."""

    def _alive(self) -> bool:
        return self._mm is not None and self._mm is self._task.mm


for _path in (PROC, THREAD):

    @proc.device(f"{_path}/mem", 0o600)
    def mem(kernel: Kernel, pid: int, *rest: int | Caller) -> OpenMem:
        """The memory of a process. EACCES for other users."""
        return OpenMem(kernel, task_of(kernel, pid))

    mem.may_open = check_memory_access
