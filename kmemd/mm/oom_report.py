"""What the OOM killer says in the kernel log (mm/oom_kill.c ``dump_header``, ``dump_tasks``, ``dump_oom_summary``,
``__oom_kill_process``; mm/slab_common.c ``dump_unreclaimable_slab``).

Left out: cpusets, which the modelled kernels are built without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.memcontrol_group import MemCgroup
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
CHARGE_FRAMES = (
    *("out_of_memory", "mem_cgroup_out_of_memory", "try_charge_memcg", "try_charge", "charge_memcg"),
    "__mem_cgroup_charge",
)
SYSRQ_FRAMES = ("out_of_memory", "moom_callback")
SYSRQ_ORDER = -1
"""The order of a run that nothing but a person asked for (``is_sysrq_oom``)."""
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
    cgroup: Any

    @property
    def is_kthread(self) -> bool: ...


@dataclass(frozen=True)
class OomControl:
    """One run of the killer (struct oom_control): the request that failed and what bounds the choice.

    ``highest`` is the highest zone of the request, ``nodemask`` the nodes of a memory policy, None without one;
    ``memcg`` is the control group whose limit was met.
    """

    gfp: int
    order: int
    highest: int
    nodemask: int | None
    constraint: str
    total_pages: int
    memcg: MemCgroup | None = None


SlabUse = tuple[str, int, int]
"""Name of a cache, bytes of its objects in use and of all."""


class OomReport:
    """Writes the lines. ``slabs()`` gives what each cache that cannot be reclaimed uses, ``memcg_stat(group)`` the
    lines of a control group's memory.stat.
    """

    def __init__(
        self,
        context: Context,
        printk: Printk,
        dump_stack: DumpStack,
        show_mem: Callable[[int, int | None], None],
        counters: MmCounters,
        vmstat: VmStat,
        slabs: Callable[[], Iterable[SlabUse]] = lambda: (),
        memcg_stat: Callable[[MemCgroup], Iterable[str]] = lambda memcg: (),
    ) -> None:
        self._context = context
        self._printk = printk
        self._dump_stack = dump_stack
        self._show_mem = show_mem
        self._counters = counters
        self._vmstat = vmstat
        self._slabs = slabs
        self._memcg_stat = memcg_stat
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
        self._dump_stack(("dump_header", *frames, *_callers(control)))
        if control.memcg is not None:
            self._memcg_meminfo(control.memcg)
        else:
            self._show_mem(control.highest, control.nodemask)
            if self._mostly_slab():
                self._unreclaimable_slab()
        if tasks is not None:
            self._table(tasks)

    def _memcg_meminfo(self, memcg: MemCgroup) -> None:
        """What a control group uses, and its statistics (``mem_cgroup_print_oom_meminfo``)."""
        for name, counter in (("memory", memcg.memory), ("swap", memcg.swap)):
            usage, limit = counter.usage * KIB_PER_PAGE, counter.max * KIB_PER_PAGE
            text = f"{name}: usage {usage}kB, limit {limit}kB, failcnt {counter.failcnt}"
            self._printk.log(KERN_INFO, text)
        self._printk.log(KERN_INFO, f"Memory cgroup stats for {memcg.cgroup.path}:")
        for line in self._memcg_stat(memcg):
            self._printk.log(KERN_INFO, line)

    def oom_group(self, path: str) -> None:
        """All of a group go together (``mem_cgroup_print_oom_group``)."""
        self._printk.log(KERN_INFO, f"Tasks in {path} are going to be killed due to memory.oom.group set")

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
        where = "global_oom" if control.memcg is None else f"oom_memcg={control.memcg.cgroup.path}"
        own = victim.cgroup.memcg if victim.cgroup is not None else None
        path = own.cgroup.path if own is not None else "/"
        self._printk.log(KERN_INFO, f"oom-kill:{constraint},{where},task_memcg={path},{who}")

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

    def panic(self, message: str, frames: tuple[str, ...] = (), *, halts: bool = False) -> None:
        """The kernel gives up."""
        self._dump_stack.panic(message, (*frames, *ALLOCATOR_FRAMES), halts=halts)


def _callers(control: OomControl) -> tuple[str, ...]:
    """Who called the killer, innermost first."""
    if control.order == SYSRQ_ORDER:
        return SYSRQ_FRAMES
    return ALLOCATOR_FRAMES if control.memcg is None else CHARGE_FRAMES


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
