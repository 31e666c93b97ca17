"""The facade: boots a ``Machine``, wires the subsystems by constructor, and owns clock, rng and log.

What Linux does in ``start_kernel`` and ``mm_init`` (init/main.c), in that order.
"""

from __future__ import annotations

from random import Random

from kmemd import kernel_check, kernel_guards, kernel_memory, kernel_oom, kernel_settings
from kmemd.boot import log as boot_log
from kmemd.boot import populate
from kmemd.command_state import CommandState
from kmemd.core.buddy import Buddy
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.mmzone import MIGRATE_UNMOVABLE
from kmemd.core.owner import OwnerTable
from kmemd.core.page_ranges import PageRanges
from kmemd.core.pages import PageMap
from kmemd.debug.check_wx import CheckWx
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.page_owner import PageOwner
from kmemd.debug.ptr_hash import chosen
from kmemd.debug.trace import Tracing
from kmemd.machine import Machine
from kmemd.mm.accounting import Accounting
from kmemd.mm.bad_area import BadArea
from kmemd.mm.cgroup import Cgroups
from kmemd.mm.clock import Clock
from kmemd.mm.cma import Cma, parse_option, reserved_line
from kmemd.mm.compaction import Compaction
from kmemd.mm.compaction_scan import Mover
from kmemd.mm.contig import Contig
from kmemd.mm.direct_compact import DirectCompaction
from kmemd.mm.direct_map import DirectMap, from_meminfo, map_memory
from kmemd.mm.do_exit import DoExit
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.file_table import FileTable
from kmemd.mm.fork import ThreadStacks
from kmemd.mm.handles import Handles
from kmemd.mm.highmem import Highmem
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.hugetlb import Hugetlb
from kmemd.mm.hugetlb_boot import PMD_ORDER, PUD_ORDER
from kmemd.mm.init_mm import rodata_enabled
from kmemd.mm.kcompactd import Kcompactd
from kmemd.mm.kernel_sysctl import KernelSysctl
from kmemd.mm.layout import Layout
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_limits import MemLimits
from kmemd.mm.memcontrol_stat import MemcgStat
from kmemd.mm.memcontrol_zswap import ZswapCharging
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.mm_check import MmCheck
from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mmap import Mmap, free_kb_at_init
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.node_reclaim import NodeReclaim
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.page_flags import PageFlags
from kmemd.mm.page_writeback import PageWriteback
from kmemd.mm.panic import Taint
from kmemd.mm.params import CommandLine
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.psi import Monitor, Psi
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.relief import MemoryPressure
from kmemd.mm.sched import Task, TaskTable
from kmemd.mm.set_memory import SetMemory
from kmemd.mm.show_mem import ShowMem, hugetlb_lines
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.swap import Swap
from kmemd.mm.swapfile import SwapFiles
from kmemd.mm.sysinfo import totalram_pages
from kmemd.mm.trace_writeback import watch_dirty_limits
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SHIFT
from kmemd.mm.user_regs import UserMode
from kmemd.mm.vmscan import Vmscan
from kmemd.mm.vmstat import VmStat
from kmemd.mm.watermarks import Watermarks
from kmemd.steps import Steps, finish
from kmemd.tunable import Tuned
from kmemd.user_memory import UserMemory

PSI_OFF = ("0", "n", "N", "no", "off")


class Kernel:
    """One running model of the memory manager."""

    def __init__(self, machine: Machine, seed: int = 0, cmdline: str = "") -> None:
        self.machine = machine
        self.seed = seed
        self.rng = Random(seed)
        self.cmdline: CommandLine = machine.command_line(cmdline)
        self.crng_ready = machine.crng_ready(self.cmdline)
        self.context = Context()
        self.clock = Clock(self.context, machine.boot_time_s)
        self.depot = StackDepot()
        self.printk = Printk(self.context)
        self.commands = CommandState()
        self.handles = Handles()
        self.tasks = TaskTable(self.context, machine.cpus)
        self._init_address_space()
        self.printk.log_all(boot_log.setup_arch(machine, self.cmdline, self.boot_memory))
        self._init_zones()
        self._init_page_alloc()
        zonelists, cma_pages = self.page_alloc.zonelists, self.cma.total_pages
        self.printk.log_all(boot_log.mm_init(machine, self.cmdline, self.boot_memory, zonelists, cma_pages))
        self._init_allocators()
        self.init_mm = kernel_memory.make_init_mm(self)
        self.oops = kernel_memory.make_oops(self)
        self.set_memory: SetMemory = SetMemory(self.init_mm, self.dump_stack)
        self.check_wx: CheckWx = kernel_memory.make_check_wx(self)
        self.modules, self.bpf = kernel_memory.make_code(self)
        self.fail_slab, self.fail_page_alloc = kernel_guards.make_fault_injection(self)
        self.kfence = kernel_guards.make_kfence(self)
        self.usercopy = kernel_guards.make_usercopy(self)
        self.kernel_write = kernel_guards.make_kernel_write(self)
        self._init_policies()
        self._init_huge_pages()
        self._init_limits()
        self._init_user_memory()
        self.memcg_limits: MemLimits = MemLimits(self.memcg, self.user.lru.drain_all)
        self.memcg_stat = MemcgStat(
            self.memcg, self.pages, self.zones, self.vmstat, self.user.page_reclaim.lruvecs, self.vmstat.hpage_pmd_nr
        )
        self._init_settings()
        self.watermarks.boot_finished()

    @classmethod
    def boot(cls, machine: Machine, seed: int = 0, cmdline: str = "") -> Kernel:
        """Boot a machine and let its kernel and first processes come up."""
        kernel = cls(machine, seed, cmdline)
        populate(kernel)
        kernel.kcompactd.start()
        kernel.device_memory.mapper.adopt()
        kernel.kmemleak.late_init()
        if not machine.is_twin:
            kernel.printk.log_all(boot_log.kernel_init(machine, kernel.cmdline, kernel.boot_memory))
            if rodata_enabled(kernel.cmdline):
                kernel.check_wx.boot()
            kernel.printk.log_all(boot_log.run_init())
        else:
            kernel.user.file_check.boot_finished()
        kernel.user.vma_objects.boot_finished()
        kernel.user.block.boot_finished()
        kernel.accounting.boot_finished(twin=machine.is_twin)
        return kernel

    # -- wiring ------------------------------------------------------------------------------------------

    def _init_address_space(self) -> None:
        """Which memory there is, and where the kernel has it and its text (setup_arch)."""
        self.boot_memory = self.machine.boot_memory(self.cmdline)
        max_pfn = max(zone.end_pfn for node in self.boot_memory.nodes for zone in node.zones)
        kaslr = None if self.cmdline.last("kaslr", "nokaslr") == "nokaslr" else self.rng
        self.layout = Layout(self.machine.arch, max_pfn, kaslr)
        self.direct_map = self._map_memory()
        plain = self.cmdline.has("no_hash_pointers") or self.cmdline.get("slub_debug", "-") != "-"
        hashed = chosen(self.cmdline, self.seed, self.layout.pointer_size, crng_ready=self.crng_ready)
        self.kallsyms = Kallsyms(
            self.layout,
            self.depot,
            no_hash_pointers=plain,
            reserve=lambda size: self.vmalloc.reserve_module(size),
            ptr_hash=hashed,
        )
        self.tracing = Tracing(
            self.context, self.depot, self.kallsyms, self.layout, self.machine.cpus, round(self.machine.cpu_model.mhz)
        )
        self.taint = Taint()
        self.user_mode = UserMode(self.machine.arch)
        self.dump_stack = DumpStack(
            self.context,
            self.depot,
            self.printk,
            self.kallsyms.frame_text,
            self.machine.release_and_build,
            self.taint,
            self.user_mode,
            self.layout.kernel_offset,
            lambda: self.kernel_sysctl.panic,
            lambda: (self.kernel_sysctl.panic_on_warn, self.kernel_sysctl.warn_limit),
            self.kallsyms.linked_in,
        )
        self.preempt = Preempt(self.context, self.tasks, self.printk, self.dump_stack)
        self.highmem = Highmem(self.layout, self.context, self.preempt, self.dump_stack, cpus=self.machine.cpus)

    def _map_memory(self) -> DirectMap:
        """The direct map: a twin has the one of its original."""
        capture = self.machine.capture
        found = from_meminfo(capture.meminfo) if capture is not None and self.machine.is_twin else None
        ranges = [(region.start, region.end) for region in self.boot_memory.memblock.memory]
        limit, rodata = self.layout.max_low_pfn << PAGE_SHIFT, rodata_enabled(self.cmdline)
        return found or map_memory(self.machine.arch, ranges, limit, gbpages=self.machine.gbpages, rodata=rodata)

    def _init_zones(self) -> None:
        """Page map, counters, nodes and zones, without a free page yet (free_area_init)."""
        machine, latency = self.machine, self.machine.latency
        layouts = self.boot_memory.nodes
        rows = [(zone, kind) for node in layouts for kind, zone in enumerate(node.zones)]
        names = [zone.name for zone in layouts[0].zones]
        end = self.layout.max_pfn + 1
        self.pageblock_order = PMD_ORDER[machine.long_bits]
        self.vmstat = VmStat(
            names,
            len(layouts),
            numa=machine.numa,
            pud_thp=machine.numa,
            hpage_pmd_nr=1 << self.pageblock_order,
            trace=self.context.trace,
        )
        self.pages = PageMap(end)
        self.owner = OwnerTable(end) if self.cmdline.get("page_owner") == "on" else None
        self.buddy = Buddy(
            self.pages,
            self.context,
            [(zone.nid, kind, zone.start_pfn, zone.end_pfn, zone.managed) for zone, kind in rows],
            machine.cpu_nodes,
            len(names),
            self.pageblock_order,
            (latency.pcp_alloc, latency.buddy_alloc),
            self.vmstat.buddy_stats(),
            self.owner,
        )
        highmem = "HighMem" in names
        self.zones = [
            Zone(i, kind, zone, self.buddy, self.vmstat, highmem=highmem) for i, (zone, kind) in enumerate(rows)
        ]
        self.nodes = [
            Node(layout, [zone for zone in self.zones if zone.nid == layout.nid], self.vmstat) for layout in layouts
        ]
        self.online_cpus = range(machine.cpus)
        self.page_flags = PageFlags(machine.arch, machine.cpus, self.pages, self.zones)

    def _init_page_alloc(self) -> None:
        """Watermarks, zonelists and the release of free memory (mem_init, init_per_zone_wmark_min)."""
        self.watermarks = Watermarks(self.zones, self.nodes, self.buddy, self.printk, self.boot_memory.late)
        self.show_mem = ShowMem(
            self.zones,
            self.nodes,
            self.vmstat,
            self.context,
            self.printk,
            lambda nid: hugetlb_lines(self.hugetlb.pools, nid),
            lambda: (self.swap.nr_swap_pages, self.swap.total_swap_pages),
        )
        self._init_oom()
        self._init_cgroups()
        direct_compact = DirectCompaction(
            lambda: self.compaction if self.movers is not None else None,
            lambda request: self.page_alloc.zones_of(request),
            lambda pfn: self.zones[self.buddy.zone_of(pfn)],
            self.vmstat,
        )
        self.movers: tuple[Lru, Mover] | None = None
        self.pressure = MemoryPressure(
            self.nodes,
            self.buddy,
            self.vmstat,
            self.clock,
            self.oom_kill,
            direct_compact,
            lambda: self.context.pid,
        )
        numa = self.machine.numa
        self.vmscan = Vmscan(numa=numa, lru_gen=numa, long_bits=self.machine.long_bits)
        self.page_alloc = PageAllocator(
            self.buddy,
            self.zones,
            self.nodes,
            self.context,
            self.depot,
            self.printk,
            self.dump_stack,
            self.pressure,
            self.show_mem,
            self.machine.latency.zero_page,
            self.preempt,
            NodeReclaim(
                self.nodes,
                self.vmstat,
                lambda: self.vmscan.zone_reclaim_mode,
                lambda: (self.watermarks.min_unmapped_ratio, self.watermarks.min_slab_ratio),
                lambda nid, order: self.pressure.node_reclaim(nid, order),
            ),
            self.memcg,
        )
        for pfn in self.boot_memory.memblock.headless_blocks(1 << self.pageblock_order):
            # memmap_init_range makes a page block Movable when it comes to its first page
            self.buddy.set_pageblock_type(pfn, MIGRATE_UNMOVABLE)
        ranges = PageRanges(self.buddy)
        for zone in self.zones:
            for low, high in zone.free_ranges:
                ranges.free_range(zone.index, low, high)
        self._init_cma()

    def _init_cma(self) -> None:
        """The area that ``cma=`` asks for (dma_contiguous_reserve); a twin has what its free lists say."""
        self.cma = Cma(self.buddy, self.vmstat)
        wanted = None if self.machine.is_twin else parse_option(self.cmdline.get("cma"))
        area = self.cma.reserve(wanted, self.zones) if wanted is not None else None
        if area is not None:
            self.printk.log(KERN_INFO, reserved_line(area))

    def _init_exit(self) -> None:
        """The end of tasks, and the counters of their memory."""
        self.mm_counters = MmCounters(lambda: self.user.mmu, self.context.trace)
        self.do_exit = DoExit(
            self.context,
            self.handles,
            lambda pid: self.user.fork.exit(pid),
            self.tasks.has,
            lambda pid: self.user.fork.empty(pid),
        )

    def _init_oom(self) -> None:
        """The OOM killer: it ends tasks by means that are made after the page allocator (oom_init)."""
        self._init_exit()
        self.oom_kill = kernel_oom.make_oom_kill(self, self._executing)
        self.oom_adj = kernel_oom.make_oom_adj(self)
        self.ratelimit = RateLimit(
            lambda: self.context.now,
            self.printk,
            lambda: self.kernel_sysctl.printk_ratelimit,
            lambda: self.kernel_sysctl.printk_ratelimit_burst,
        )
        self.bad_area: BadArea = kernel_oom.make_bad_area(self)

    def _init_cgroups(self) -> None:
        """Control groups, the memory controller and pressure accounting (cgroup_init, mem_cgroup_init, psi_init)."""
        self.psi = self._make_psi(whole=True)
        self.memcg = MemControl(
            self.pages,
            self.zones,
            self.layout.page_offset,
            self.context,
            self._executing,
            self.psi,
            self.machine.cpus,
            lambda memcg, pages, gfp, may_swap: self.user.page_reclaim.try_to_free_mem_cgroup_pages(
                memcg, pages, gfp, may_swap
            ),
            lambda memcg, pages, gfp: self.user.page_reclaim.mem_cgroup_steps(memcg, pages, gfp),
            self.oom_kill,
            lambda parent: self.cgroups.released(parent),
            lambda number: self.user.page_reclaim.forget(number),
            pointer=self.layout.pointer_size,
            kmem="nokmem" not in (self.cmdline.get("cgroup.memory") or "").split(","),
        )
        self.zswap_charging = ZswapCharging(self.memcg, self.pages.memcg)
        memory = None if "memory" in self.cgroups_disabled else self.memcg
        self.cgroups = Cgroups(self.tasks, memory, self._make_psi, self.do_exit)
        self.cgroups.root.psi = self.psi

    def _make_psi(self, *, whole: bool = False) -> Psi:
        """Pressure accounting of the system, or of a group; off with psi=0, for groups with cgroup_disable=pressure."""
        psi = Psi(self.clock, lambda: self.context.cpu, self.machine.cpus, Monitor(self.tasks), whole=whole)
        off = self.cmdline.get("psi") in PSI_OFF
        psi.enabled = not off and (whole or "pressure" not in self.cgroups_disabled)
        return psi

    @property
    def cgroups_disabled(self) -> list[str]:
        """What cgroup_disable= names."""
        return [name for value in self.cmdline.all("cgroup_disable") for name in value.split(",")]

    def _executing(self) -> Task | None:
        """The task that executes: the one whose memory is being accessed, if any is."""
        access = self.user_mode.access
        found: Task | None = access.task if access is not None else None
        return found or self.tasks.current()

    def _init_allocators(self) -> None:
        """What is built on pages, and the instruments that watch it (mm_init, fork_init)."""
        self.kmemleak = kernel_memory.make_kmemleak(self)
        self.page_poison = self.page_alloc.poison = kernel_guards.make_page_poison(self)
        self.percpu = kernel_memory.make_percpu(self)
        self.slub = kernel_memory.make_slub(self)
        kernel_memory.setup_percpu(self)
        self.page_owner = PageOwner(
            self.owner,
            self.pages,
            self.buddy,
            self.zones,
            self.context,
            self.kallsyms,
            self.page_flags,
            self.memcg.page_name,
        )
        self.vmalloc = kernel_memory.make_vmalloc(self)
        self.device_memory = kernel_memory.make_device_memory(self)
        contig = Contig(
            self.buddy,
            self.zones,
            self.page_alloc,
            lambda: self.compaction.scanner if self.movers is not None else None,
            lambda: self.user.migrate if self.movers is not None else None,
            self.context.trace,
        )
        self.cma.use(contig)
        self.contig = contig if self.machine.gbpages else None
        self.accounting = Accounting(
            self.buddy,
            self.pages,
            self.zones,
            self.vmstat,
            self.tasks,
            self.machine.arch,
            lambda: (self.contig.pages_taken if self.contig is not None else 0) + self.buddy.taken,
            lambda pfns, out: self.user.lru.active(pfns, out),
        )
        self.stacks = ThreadStacks(
            self.machine.arch, self.page_alloc, self.vmalloc, self.vmstat, self.layout, self.context, self.memcg
        )

    def _init_policies(self) -> None:
        """Memory policies, compaction, write-back (subsys_initcall and later)."""
        machine, bits = self.machine, self.machine.long_bits
        self.mempolicy = Mempolicy(
            self.page_alloc,
            self.zones,
            self.nodes,
            self.vmstat,
            self.buddy,
            self.tasks.current,
            numa=machine.numa,
            long_bits=bits,
            option=self.cmdline.get("numa_balancing"),
            memcg=self.memcg,
        )
        self.compaction = Compaction(
            self.zones,
            self.nodes,
            self.buddy,
            self.pages,
            self.vmstat,
            self.context,
            self.page_alloc.free_pages_bulk,
            lambda: self.movers,
            page_ns=machine.latency.compact_page,
            long_bits=bits,
        )
        self.page_writeback = PageWriteback(
            self.zones,
            self.nodes,
            lambda: self.watermarks.totalreserve_pages,
            highmem=not machine.numa,
            long_bits=bits,
            limit_changed=lambda: self.user.block.throttle.set_ratelimit(),
            interval_changed=lambda: self.user.block.flushers.wakeup_flusher_threads(),
            looked_at=watch_dirty_limits(self.vmstat, lambda: self.user.block.throttle.dirty_limit),
        )

    def _init_huge_pages(self) -> None:
        """Pools of huge pages, transparent huge pages."""
        bits = self.machine.long_bits
        self.hugetlb = Hugetlb(
            self.page_alloc,
            self.nodes,
            self.vmstat,
            self.context,
            self.depot,
            self.printk,
            self.cmdline,
            long_bits=bits,
            highmem_pfn=next((zone.start_pfn for zone in self.zones if zone.name == "HighMem"), None),
            contig=self.contig,
            bootmem=self.boot_memory.gigantic,
            writer_nodes=lambda: self.mempolicy.pool_nodes(self.tasks.current()),
        )
        self.watermarks.pages_came([(pfn, 1 << PUD_ORDER) for pfn in self.boot_memory.gigantic])
        self.huge_memory = HugeMemory(
            self.cmdline,
            self.totalram_pages(),
            self.vmstat.hpage_pmd_nr,
            self.watermarks.set_recommended_min_free_kbytes,
            long_bits=bits,
        )

    def _init_limits(self) -> None:
        """Swap, what may be promised, open files, pressure."""
        machine, bits = self.machine, self.machine.long_bits
        self.swap = Swap(
            machine.swap,
            SwapFiles(
                self.context,
                self.printk,
                self.rng,
                cpus=machine.cpus,
                long_bits=bits,
                memcg=self.memcg,
                cpu_nodes={cpu: node.nid for node in self.nodes for cpu in node.cpus},
            ),
            self.totalram_pages,
            long_bits=bits,
        )
        tables_kb = self.boot_memory.late_tables_kb(machine.arch)
        self.mmap = Mmap(
            free_kb_at_init(self.totalram_pages() * KIB_PER_PAGE, machine.cpus, tables_kb),
            self.totalram_pages,
            self.hugetlb.total_pages,
            lambda: self.swap.total_swap_pages,
            long_bits=bits,
        )
        self.file_table = FileTable(self.totalram_pages() * KIB_PER_PAGE, tables_kb, long_bits=bits)

    def _init_user_memory(self) -> None:
        """Page tables, files, mappings and programs."""
        user = self.user = UserMemory(self)
        self.movers = (user.lru, user.migrate)
        self.kcompactd = Kcompactd(
            self.compaction,
            self.nodes,
            self.vmstat,
            self.clock,
            self.context,
            self.tasks,
            user.run_as,
            lambda ns: self.psi.memstall(None, ns, elsewhere=True),
            self.pressure.kswapd_runs,
        )
        self.pressure.wake_kcompactd_by(self.kcompactd.kswapd_sleeps)
        self.lru, self.mmu, self.ptes, self.contents = user.lru, user.mmu, user.ptes, user.contents
        self.page_cache, self.rmap, self.memory, self.mms = user.page_cache, user.rmap, user.memory, user.mms
        self.fork = user.fork
        self.mm_check = MmCheck(user.memory, user.mms, self.vmstat, self.zones, self.accounting.used)
        self.accounting.also(self.mm_check.gauges)
        self.accounting.also(lambda: user.thp.gauges(user.mms.living.values()))
        self.tuned_by_user: list[Tuned] = [user.numa, user.memory.fault_around]
        self.perf = kernel_memory.make_perf(self)
        self.alloc_stacks = kernel_memory.make_alloc_stacks(self)

    def _init_settings(self) -> None:
        """Whoever has knobs, for ``views.sysctl`` to mount."""
        self.kernel_sysctl: KernelSysctl = kernel_settings.make_kernel_sysctl(self)
        self.sysrq = kernel_oom.make_sysrq(self)
        self.tuned: list[Tuned] = kernel_settings.make_tuned(self)

    # -- services ----------------------------------------------------------------------------------------

    def totalram_pages(self) -> int:
        """Pages that the allocator manages."""
        return totalram_pages(self.zones)

    def populated_zones(self) -> list[Zone]:
        """The zones that have memory."""
        return [zone for zone in self.zones if zone.populated]

    def step(self) -> None:
        """Let kernel threads and timers that are due run."""
        finish(self.step_steps())

    def step_steps(self) -> Steps[None]:
        """``step`` in slices."""
        if self.dump_stack.halt.reason:
            return
        yield from self.clock.due_steps()
        self.do_exit.deliver()

    def advance(self, ns: int) -> None:
        """Let ``ns`` of idle time pass; none passes after a panic."""
        finish(self.advance_steps(ns))

    def advance_steps(self, ns: int) -> Steps[None]:
        """``advance`` in slices."""
        if not self.dump_stack.halt.reason:
            yield from self.clock.advance_steps(ns)

    def check(self) -> None:
        """Recompute every cached number from the truth. AssertionError on a difference."""
        kernel_check.check(self)
