"""What is noted of the executing task's I/O (include/linux/task_io_accounting_ops.h), and of its dirty pages.

Linux counts a task's reads when they go to a disk, its writes when pages become dirty, and takes back those that are
thrown away unwritten.
"""

from __future__ import annotations

from kmemd.core.context import Context
from kmemd.mm.dirty_throttle import TaskDirty
from kmemd.mm.sched import IoAccounting, TaskTable
from kmemd.mm.units import PAGE_SIZE


class TaskIo:
    """The executing task's figures; the idle task and what is no task share one set."""

    def __init__(self, tasks: TaskTable, context: Context) -> None:
        self._tasks, self._context = tasks, context
        self._nobody = IoAccounting()
        self._nobody_dirty = TaskDirty()

    def _current(self) -> IoAccounting:
        task = self._tasks.current()
        return self._nobody if task is None else task.ioac

    @property
    def opener(self) -> int:
        """Who has files open: the executing process."""
        return self._context.tgid

    def dirty(self) -> TaskDirty:
        """How far the executing task is from being throttled."""
        task = self._tasks.current()
        if task is None:
            return self._nobody_dirty
        if task.dirty is None:
            task.dirty = TaskDirty()
        found: TaskDirty = task.dirty
        return found

    def read(self, count: int, calls: int = 1) -> None:
        """A read(2), or several, gave so many bytes."""
        figures = self._current()
        figures.rchar += count
        figures.syscr += calls

    def write(self, count: int) -> None:
        """A write(2) took so many bytes."""
        figures = self._current()
        figures.wchar += count
        figures.syscw += 1

    def read_from_disk(self, pages: int) -> None:
        """Pages are read for the task (``task_io_account_read``)."""
        self._current().read_bytes += pages * PAGE_SIZE

    def dirtied(self, pages: int) -> None:
        """The task made pages dirty (``task_io_account_write``)."""
        self._current().write_bytes += pages * PAGE_SIZE

    def cancelled(self, pages: int) -> None:
        """It threw dirty pages away (``task_io_account_cancelled_write``)."""
        self._current().cancelled_write_bytes += pages * PAGE_SIZE
