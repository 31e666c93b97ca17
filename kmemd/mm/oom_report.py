"""What the OOM killer says in the kernel log (mm/oom_kill.c ``dump_header``, ``dump_tasks``, ``dump_oom_summary``,
``__oom_kill_process``; mm/slab_common.c ``dump_unreclaimable_slab``).

Left out: the memory of a control group, and cpusets, which the modelled kernels are built without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, Mm
from kmemd.mm.printk import KERN_ERR, KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.mm.vmstat import VmStat

TABLE_HEADER = "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name"
LRU_ITEMS = (
    stats.NR_ACTIVE_ANON,
    stats.NR_INACTIVE_ANON,
    stats.NR_ACTIVE_FILE,
    stats.NR_INACTIVE_FILE,
    stats.NR_ISOLATED_ANON,
    stats.NR_ISOLATED_FILE,
    stats.NR_UNEVICTABLE,
)
ALLOCATOR_FRAMES = ("out_of_memory", "__alloc_pages_slowpath.constprop.0", "__alloc_pages")


class OomTask(Protocol):
    """A task as the OOM killer sees it."""

    pid: int
    tgid: int
    ppid: int
    uid: int
    comm: str
    cpu: int
    state: str
    mm: Mm | None
    oom_score_adj: int
    killed: int
    oom_victim: bool
    oom_flag_origin: bool

    @property
    def is_kthread(self) -> bool: ...


@dataclass(frozen=True)
class OomControl:
    """One run of the killer (struct oom_control): the request that failed and what bounds the choice.

    ``highest`` is the highest zone of the request, ``nodemask`` the nodes of a memory policy, None without one.
    """

    gfp: int
    order: int
    highest: int
    nodemask: int | None
    constraint: str
    total_pages: int


SlabUse = tuple[str, int, int]
"""Name of a cache, bytes of its objects in use and of all."""


class OomReport:
    """Writes the lines. ``slabs()`` gives what each cache that cannot be reclaimed uses."""

    def __init__(
        self,
        context: Context,
        printk: Printk,
        dump_stack: DumpStack,
        show_mem: Callable[[int, int | None], None],
        counters: MmCounters,
        vmstat: VmStat,
        slabs: Callable[[], Iterable[SlabUse]] = lambda: (),
    ) -> None:
        self._context = context
        self._printk = printk
        self._dump_stack = dump_stack
        self._show_mem = show_mem
        self._counters = counters
        self._vmstat = vmstat
        self._slabs = slabs
        self.limit = RateLimit(lambda: context.now, printk)

    def header(
        self, control: OomControl, adj: int, tasks: Iterable[OomTask] | None, frames: tuple[str, ...] = ()
    ) -> None:
        """Who asked for what, where, how memory is used, and the table of ``tasks`` when it is wanted.

        ``adj`` is the oom_score_adj of who asked, ``frames`` who in the killer reports.
        """
        gfp = control.gfp
        mask = f"{gfp:#x}({g.format_gfp(gfp)})"
        comm = self._context.comm
        text = f"{comm} invoked oom-killer: gfp_mask={mask}, order={control.order}, oom_score_adj={adj}"
        self._printk.log(KERN_WARNING, text)
        self._dump_stack(("dump_header", *frames, *ALLOCATOR_FRAMES))
        self._show_mem(control.highest, control.nodemask)
        if self._mostly_slab():
            self._unreclaimable_slab()
        if tasks is not None:
            self._table(tasks)

    def _mostly_slab(self) -> bool:
        """Whether the kernel's own objects take more than all that programs have."""
        total = self._vmstat.node_total
        return total(stats.NR_SLAB_UNRECLAIMABLE_B) > sum(total(item) for item in LRU_ITEMS)

    def _unreclaimable_slab(self) -> None:
        self._printk.log(KERN_INFO, "Unreclaimable slab info:")
        self._printk.log(KERN_INFO, "Name                      Used          Total")
        for name, used, total in self._slabs():
            if total:
                self._printk.log(KERN_INFO, f"{name:<17} {used // 1024:10d}KB {total // 1024:10d}KB")

    def _table(self, tasks: Iterable[OomTask]) -> None:
        self._printk.log(KERN_INFO, "Tasks state (memory values in pages):")
        self._printk.log(KERN_INFO, TABLE_HEADER)
        for task in tasks:
            if task.mm is not None:
                self._printk.log(KERN_INFO, self._row(task, task.mm))

    def _row(self, task: OomTask, mm: Mm) -> str:
        counters = self._counters
        return (
            f"[{task.pid:7d}] {task.uid:5d} {task.tgid:5d} {mm.total_vm:8d} {counters.rss(mm):8d} "
            f"{counters.pgtables_bytes(mm):8d} {counters.swap(mm):8d}         {task.oom_score_adj:5d} {task.comm}"
        )

    def summary(self, control: OomControl, victim: OomTask) -> None:
        """The one line that names the victim."""
        nodes = "(null)" if control.nodemask is None else format_nodes(control.nodemask)
        constraint = f"constraint={control.constraint},nodemask={nodes}"
        who = f"task={victim.comm},pid={victim.pid},uid={victim.uid}"
        self._printk.log(KERN_INFO, f"oom-kill:{constraint},global_oom,task_memcg=/,{who}")

    def killed(self, message: str, victim: OomTask, mm: Mm) -> None:
        """A task was killed: what it had."""
        kinds = (("anon", MM_ANONPAGES), ("file", MM_FILEPAGES), ("shmem", MM_SHMEMPAGES))
        rss = ", ".join(f"{name}-rss:{self._counters.counter(mm, kind) * KIB_PER_PAGE}kB" for name, kind in kinds)
        tables = self._counters.pgtables_bytes(mm) >> 10
        text = (
            f"{message}: Killed process {victim.pid} ({victim.comm}) total-vm:{mm.total_vm * KIB_PER_PAGE}kB, {rss}, "
            f"UID:{victim.uid} pgtables:{tables}kB oom_score_adj:{victim.oom_score_adj}"
        )
        self._printk.log(KERN_ERR, text)

    def reaped(self, task: OomTask, mm: Mm) -> None:
        """The oom_reaper took a victim's memory."""
        kinds = (("anon", MM_ANONPAGES), ("file", MM_FILEPAGES), ("shmem", MM_SHMEMPAGES))
        rss = ", ".join(f"{name}-rss:{self._counters.counter(mm, kind) * KIB_PER_PAGE}kB" for name, kind in kinds)
        self._printk.log(KERN_INFO, f"oom_reaper: reaped process {task.pid} ({task.comm}), now {rss}")

    def pinned(self, victim: OomTask, holder: OomTask) -> None:
        """The victim's memory stays: init shares it."""
        text = f"oom killer {victim.pid} ({victim.comm}) has mm pinned by {holder.pid} ({holder.comm})"
        self._printk.log(KERN_INFO, text)

    def already_exiting(self, message: str, victim: OomTask) -> None:
        """The victim had no memory left when it was to be killed."""
        text = f"{message}: OOM victim {victim.pid} ({victim.comm}) is already exiting. Skip killing the task"
        self._printk.log(KERN_INFO, text)

    def nobody(self) -> None:
        """There is no task to kill."""
        self._printk.log(KERN_WARNING, "Out of memory and no killable processes...")

    def panic(self, message: str, frames: tuple[str, ...] = ()) -> None:
        """The kernel gives up."""
        self._dump_stack.panic(message, (*frames, *ALLOCATOR_FRAMES))


def format_nodes(mask: int) -> str:
    """Bits as ``%*pbl`` prints them: ``0-1,3``."""
    spans: list[str] = []
    bit = 0
    while mask >> bit:
        if mask >> bit & 1:
            first = bit
            while mask >> bit + 1 & 1:
                bit += 1
            spans.append(str(first) if first == bit else f"{first}-{bit}")
        bit += 1
    return ",".join(spans)
