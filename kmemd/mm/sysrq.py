"""The magic SysRq keys that the memory manager and its processes answer to (drivers/tty/sysrq.c).

``echo m >/proc/sysrq-trigger`` logs what memory there is, ``f`` has the OOM killer kill somebody; ``c``, ``e``, ``i``,
``s`` and the digits do what they do on Linux. Left out: keys of what is not modelled (consoles, reboot, registers,
timers, frozen file systems); like keys that a kernel was built without, they answer with the list of those there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kmemd.core.context import Context
from kmemd.mm.do_exit import DoExit
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.kernel_sysctl import KernelSysctl
from kmemd.mm.oom_adj import INIT_PID
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.printk import KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.sched import WORKER_FRAMES, TaskTable, elsewhere
from kmemd.mm.signals import SIGKILL, SIGTERM
from kmemd.mm.stackdepot import StackDepot
from kmemd.steps import Steps

CONSOLE_LOGLEVEL_DEBUG = 10
WORKER = "kworker/0:1"
CRASH_FRAMES = (
    "sysrq_handle_crash",
    "__handle_sysrq",
    "write_sysrq_trigger",
    "proc_reg_write",
    "vfs_write",
    "ksys_write",
)


class ShowMem(Protocol):
    """The report on memory."""

    def __call__(self, highest: int) -> None: ...


Handler = Callable[["SysRq", str], Steps[None]]


class SysRq:
    """``sync()`` writes what is dirty; ``zones``: the highest of a node, and the highest that GFP_KERNEL may have."""

    def __init__(
        self,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        tasks: TaskTable,
        settings: Callable[[], KernelSysctl],
        show_mem: ShowMem,
        oom_kill: OomKill,
        do_exit: DoExit,
        sync: Callable[[], Steps[int]],
        zones: tuple[int, int],
    ) -> None:
        self._context = context
        self._depot = depot
        self._printk = printk
        self._dump_stack = dump_stack
        self._tasks = tasks
        self._settings = settings
        self._show_mem = show_mem
        self._oom_kill = oom_kill
        self._do_exit = do_exit
        self._sync = sync
        self._highest, self._normal = zones

    def __call__(self, key: str) -> Steps[None]:
        """Do what a key stands for (``__handle_sysrq`` without a look at kernel.sysrq, as root's writes have it)."""
        found = next((row for row in KEYS if key in row[0]), None)
        if found is None:
            self._say("HELP : " + "".join(f"{help_text} " for _, help_text, _, _ in KEYS))
            return
        _, _, action, handler = found
        self._say(action)
        yield from handler(self, key)

    def _say(self, text: str) -> None:
        self._printk.log(KERN_INFO, f"sysrq: {text}")

    @contextmanager
    def _as_worker(self) -> Iterator[None]:
        """What a key leaves to a worker, which runs beside whoever pressed it."""
        worker = next(task for task in self._tasks if task.comm == WORKER)
        start = self._context.now
        try:
            with elsewhere(self._context):
                self._context.switch(worker.pid, worker.tgid, worker.comm, worker.cpu)
                self._context.site = self._depot.save(WORKER_FRAMES)
                yield
        finally:
            worker.stime_ns += self._context.now - start

    # -- keys --------------------------------------------------------------------------------------------

    def _loglevel(self, key: str) -> Steps[None]:
        self._say(f"Loglevel set to {key}")
        self._settings().printk[0] = int(key)
        yield

    def _crash(self, key: str) -> Steps[None]:
        self._dump_stack.panic("sysrq triggered crash", CRASH_FRAMES, halts=True)
        yield

    def _terminate(self, key: str) -> Steps[None]:
        yield from self._signal_all(SIGTERM)

    def _kill(self, key: str) -> Steps[None]:
        yield from self._signal_all(SIGKILL)

    def _signal_all(self, signal: int) -> Steps[None]:
        """All programs but init get a signal (``send_sig_all``)."""
        for task in self._tasks.in_order_of_fork():
            if task.is_kthread or task.pid == INIT_PID or not task.signals.fatal(signal):
                continue
            task.killed = signal
            yield from self._do_exit.steps(task)
        self._settings().printk[0] = CONSOLE_LOGLEVEL_DEBUG

    def _oom(self, key: str) -> Steps[None]:
        """``moom_callback``."""
        with self._as_worker():
            if not self._oom_kill.manual(self._normal):
                self._say("OOM request ignored. No task eligible")
        yield

    def _memory(self, key: str) -> Steps[None]:
        self._show_mem(self._highest)
        yield

    def _emergency_sync(self, key: str) -> Steps[None]:
        """``do_sync_work``."""
        yield from self._sync()
        self._printk.log(KERN_WARNING, "Emergency Sync complete")


KEYS: tuple[tuple[str, str, str, Handler], ...] = (
    ("0123456789", "loglevel(0-9)", "Changing Loglevel", SysRq._loglevel),
    ("c", "crash(c)", "Trigger a crash", SysRq._crash),
    ("e", "terminate-all-tasks(e)", "Terminate All Tasks", SysRq._terminate),
    ("f", "memory-full-oom-kill(f)", "Manual OOM execution", SysRq._oom),
    ("i", "kill-all-tasks(i)", "Kill All Tasks", SysRq._kill),
    ("m", "show-memory-usage(m)", "Show Memory", SysRq._memory),
    ("s", "sync(s)", "Emergency Sync", SysRq._emergency_sync),
)
"""Keys, what the list says of them, what the log says, and what is done, in the order of sysrq_key_table."""
