"""The facade: boots a ``Machine``, wires the subsystems by constructor, and owns clock, rng and log.

What Linux does in ``start_kernel`` and ``mm_init`` (init/main.c), in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from kmemd.boot import populate
from kmemd.boot.threads import alloc_stack, free_stack
from kmemd.command_state import CommandState
from kmemd.core import stats
from kmemd.core.buddy import MIGRATE_UNMOVABLE, Buddy
from kmemd.core.context import Context
from kmemd.core.owner import OwnerTable
from kmemd.core.pages import PageMap
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.kmemleak import Kmemleak
from kmemd.debug.page_owner import PageFlags, PageOwner
from kmemd.machine import Machine
from kmemd.mm.check import check_buddy
from kmemd.mm.clock import Clock
from kmemd.mm.compaction import Compaction
from kmemd.mm.direct_map import DirectMap, from_meminfo, map_memory
from kmemd.mm.drop_caches import DropCaches
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.fork import Fork
from kmemd.mm.handles import Handles
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.hugetlb import Hugetlb
from kmemd.mm.kernel_sysctl import KernelSysctl
from kmemd.mm.ksm import Ksm
from kmemd.mm.layout import PAGE_SHIFT, Layout
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.mmap import Mmap, free_kb_at_init
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.page_writeback import PageWriteback
from kmemd.mm.params import CommandLine
from kmemd.mm.percpu import Percpu
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.psi import Psi
from kmemd.mm.relief import MemoryPressure
from kmemd.mm.sched import TaskTable
from kmemd.mm.setup import hash_tables
from kmemd.mm.show_mem import show_mem, show_ram
from kmemd.mm.slub import Slub
from kmemd.mm.slub_machine import SlubCosts, SlubMachine
from kmemd.mm.slub_report import ReportTools
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.swap import Swap
from kmemd.mm.sysinfo import totalram_pages
from kmemd.mm.vmalloc import Vmalloc
from kmemd.mm.vmscan import Vmscan
from kmemd.mm.vmstat import VmStat
from kmemd.mm.vmstat_sysctl import VmStatSysctl
from kmemd.mm.watermarks import Watermarks
from kmemd.tunable import Tuned

UTS_RELEASE = "6.1.192"
UTS_BANNER = f"{UTS_RELEASE} #2"
UTS_VERSION = "#2 SMP Sun Nov 22 06:52:48 UTC 2026"


@dataclass
class BuddyStats:
    """The counters and their numbers as the buddy core takes them."""

    events: object
    zone_stat: object
    numa_stat: object
    pgalloc: list[int]
    nr_free_pages: int = stats.NR_FREE_PAGES
    nr_free_cma: int = stats.NR_FREE_CMA_PAGES
    pgfree: int = stats.PGFREE


class Kernel:
    """One running model of the memory manager."""

    def __init__(self, machine: Machine, seed: int = 0, cmdline: str = "") -> None:
        self.machine = machine
        self.seed = seed
        self.rng = Random(seed)
        self.cmdline: CommandLine = machine.command_line(cmdline)
        self.context = Context()
        self.clock = Clock(self.context, machine.boot_time_s)
        self.depot = StackDepot()
        self.printk = Printk(self.context)
        self.commands = CommandState()
        self.handles = Handles()
        self._init_memory()
        self._init_page_alloc()
        self.tasks = TaskTable(self.context, machine.cpus)
        self.kmemleak = self._make_kmemleak()
        self.slub = self._make_slub()
        self.percpu = self._make_percpu()
        self.page_owner = self._make_page_owner()
        self.vmalloc = self._make_vmalloc()
        self.fork = self._make_fork()
        self._init_knobs()
        self.watermarks.boot_finished()

    @classmethod
    def boot(cls, machine: Machine, seed: int = 0, cmdline: str = "") -> Kernel:
        """Boot a machine and let its kernel and first processes come up."""
        kernel = cls(machine, seed, cmdline)
        populate(kernel)
        kernel.kmemleak.late_init()
        return kernel

    # -- wiring ------------------------------------------------------------------------------------------

    def _init_memory(self) -> None:
        """Address space, zones, page map and counters (setup_arch, free_area_init)."""
        machine = self.machine
        self.boot_memory = machine.boot_memory(self.cmdline)
        layouts = self.boot_memory.nodes
        rows = [(zone, kind) for node in layouts for kind, zone in enumerate(node.zones)]
        max_pfn = max(zone.end_pfn for zone, _ in rows)
        kaslr = None if self.cmdline.has("nokaslr") else self.rng
        self.layout = Layout(machine.arch, max_pfn, kaslr)
        plain = self.cmdline.has("no_hash_pointers") or self.cmdline.get("slub_debug", "-") != "-"
        self.kallsyms = Kallsyms(self.layout, self.depot, no_hash_pointers=plain)
        self.direct_map = self._map_memory()
        self.pageblock_order = 9 if machine.arch == "x86_64" else 10
        names = [zone.name for zone in layouts[0].zones]
        numa = machine.arch == "x86_64"
        self.vmstat = VmStat(names, len(layouts), numa=numa, pud_thp=numa, hpage_pmd_nr=1 << self.pageblock_order)
        self.pages = PageMap(max_pfn + 1)
        self.owner = OwnerTable(max_pfn + 1) if self.cmdline.get("page_owner") == "on" else None
        latency = machine.latency
        self.buddy = Buddy(
            self.pages,
            self.context,
            [(zone.nid, kind, zone.start_pfn, zone.end_pfn, zone.managed) for zone, kind in rows],
            machine.cpu_nodes,
            len(names),
            self.pageblock_order,
            (latency.pcp_alloc, latency.buddy_alloc),
            BuddyStats(
                self.vmstat.events,
                self.vmstat.zone_stat,
                self.vmstat.numa_stat,
                [stats.PGALLOC + kind for _, kind in rows],
            ),
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

    def _map_memory(self) -> DirectMap:
        """The direct map: a twin has the one of its original."""
        capture = self.machine.capture
        found = from_meminfo(capture.meminfo) if capture is not None and self.machine.is_twin else None
        ranges = [(region.start, region.end) for region in self.boot_memory.memblock.memory]
        return found or map_memory(self.machine.arch, ranges, self.layout.max_low_pfn << PAGE_SHIFT)

    def _init_page_alloc(self) -> None:
        """Watermarks, zonelists and the release of free memory (mem_init, init_per_zone_wmark_min)."""
        self.dump_stack = DumpStack(
            self.context, self.depot, self.printk, lambda frame: self.kallsyms.frame(frame)[1], UTS_BANNER
        )
        late = self.boot_memory.late
        self.watermarks = Watermarks(self.zones, self.nodes, self.buddy, self.printk, late)
        self.pressure = MemoryPressure(self.nodes, self.buddy, self.vmstat, self.clock)
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
        )
        for pfn in self.boot_memory.memblock.headless_blocks(1 << self.pageblock_order):
            # memmap_init_range makes a page block Movable when it comes to its first page
            self.buddy.set_pageblock_type(pfn, MIGRATE_UNMOVABLE)
        for zone in self.zones:
            for low, high in zone.free_ranges:
                self.buddy.free_range(zone.index, low, high)

    def _make_slub(self) -> Slub:
        """The slab allocator with its first caches (kmem_cache_init)."""
        machine, latency = self.machine, self.machine.latency
        show = PageFlags(self.layout, machine.cpus).show

        def page_flags(pfn: int) -> str:
            zone = next(zone for zone in self.zones if zone.start_pfn <= pfn < zone.end_pfn)
            return show(int(self.pages.flags[pfn]), zone.nid, zone.kind)

        tools = ReportTools(
            self.dump_stack,
            lambda frame: self.kallsyms.frame(frame)[1],
            page_flags,
            self.layout.page_struct,
            self.layout.virt_addr_valid,
        )
        facts = SlubMachine(
            machine.cpu_nodes,
            self.nodes,
            self.page_alloc.zonelists,
            tuple(zone.name for zone in self.nodes[0].zones),
            self.layout.page_offset,
            self.layout.pointer_size,
            machine.cpu_model.clflush,
            numa=machine.arch == "x86_64",
            costs=SlubCosts(latency.slab_alloc, latency.slab_free, latency.slab_slow),
        )
        return Slub(
            self.page_alloc,
            self.pages,
            self.vmstat.node_stat,
            self.context,
            self.depot,
            self.printk,
            tools,
            facts,
            self.cmdline,
            self.kmemleak,
        )

    def _make_kmemleak(self) -> Kmemleak:
        """The leak detector; its roots are module data (the handles) and the list of vmalloc areas."""
        latency = self.machine.latency
        return Kmemleak(
            self.context,
            self.clock,
            self.printk,
            self.kallsyms,
            self.layout,
            self.dump_stack,
            enabled=self.cmdline.get("kmemleak") != "off",
            roots=(self.handles.pointers, lambda: self.vmalloc.roots()),
            tasks=self.tasks,
            alloc_ns=latency.kmemleak_object,
            scan_ns=latency.kmemleak_scan_page,
        )

    def _make_page_owner(self) -> PageOwner:
        return PageOwner(
            self.owner,
            self.pages,
            self.buddy,
            self.zones,
            self.context,
            self.kallsyms,
            self.layout,
            self.machine.cpus,
        )

    def _make_vmalloc(self) -> Vmalloc:
        latency = self.machine.latency
        return Vmalloc(
            self.layout,
            self.page_alloc,
            self.zones,
            self.context,
            self.depot,
            self.printk,
            self.dump_stack,
            cpus=self.machine.cpus,
            slab=self.slub,
            observer=self.kmemleak,
            symbolize=lambda frame: self.kallsyms.frame(frame)[1],
            show_pointer=self.kallsyms.p,
            area_ns=latency.vmalloc_area,
            page_ns=latency.vmalloc_page,
        )

    def _make_fork(self) -> Fork:
        return Fork(
            self.tasks,
            self.slub,
            self.context,
            self.depot,
            self.machine.cpu_nodes,
            partial(alloc_stack, self),
            partial(free_stack, self),
            self.kmemleak.kernel_data,
            self.machine.arch,
        )

    def _make_percpu(self) -> Percpu:
        """Per-CPU memory: a twin's is in what its free lists lack."""
        machine, capture = self.machine, self.machine.capture
        if capture is not None and machine.is_twin:
            return Percpu(capture.meminfo.get("Percpu", 0) >> 2)
        percpu = Percpu()
        percpu.boot(machine.arch, machine.cpu_nodes, self.page_alloc, self.context, self.depot)
        return percpu

    def _init_knobs(self) -> None:
        """Reclaim, compaction, write-back, huge pages, swap and their settings (subsys_initcall and later)."""
        x86_64 = self.machine.arch == "x86_64"
        bits = 64 if x86_64 else 32
        zones, nodes, cmdline = self.zones, self.nodes, self.cmdline
        self.vmscan = Vmscan(numa=x86_64, lru_gen=x86_64, long_bits=bits)
        self.compaction = Compaction(self.page_alloc.drain_all_pages, long_bits=bits)
        self.page_writeback = PageWriteback(
            zones, nodes, lambda: self.watermarks.totalreserve_pages, highmem=not x86_64, long_bits=bits
        )
        self.oom_kill = OomKill(long_bits=bits)
        self.huge_memory = HugeMemory(
            cmdline,
            self.totalram_pages(),
            self.vmstat.hpage_pmd_nr,
            self.watermarks.set_recommended_min_free_kbytes,
            long_bits=bits,
        )
        self.hugetlb = self._make_hugetlb(bits)
        self.swap = Swap(self.machine.swap, self.totalram_pages, long_bits=bits)
        free_kb = free_kb_at_init(self.totalram_pages() * 4, self.machine.cpus, self._late_tables_kb())
        self.mmap = Mmap(
            free_kb, self.totalram_pages, self.hugetlb.total_pages, lambda: self.swap.total_pages, long_bits=bits
        )
        self.psi = Psi(self.clock)
        self.tuned: list[Tuned] = [
            self.huge_memory,
            self.watermarks,
            self.vmscan,
            self.compaction,
            self.page_writeback,
            self.oom_kill,
            self.hugetlb,
            self.swap,
            self.mmap,
            Ksm(numa=x86_64, long_bits=bits),
            Mempolicy(len(nodes), numa=x86_64, long_bits=bits),
            DropCaches(self.context, self.vmstat, self.printk, long_bits=bits),
            VmStatSysctl(long_bits=bits),
            self._make_kernel_sysctl(bits),
        ]
        self._restore_settings()

    def _restore_settings(self) -> None:
        """A twin has the settings of its original."""
        if self.machine.capture is not None and self.machine.is_twin:
            for tuned in self.tuned:
                tuned.restore(self.machine.capture.sysctls)

    def _late_tables_kb(self) -> int:
        """KiB of the VFS hash tables that a machine with several nodes takes from the page allocator."""
        if len(self.nodes) == 1:
            return 0
        pages = self.boot_memory.kernel_pages
        tables = hash_tables(self.machine.arch, pages, pages, numa=True)
        return sum(table.size for table in tables if not table.early) >> 10

    def _make_hugetlb(self, bits: int) -> Hugetlb:
        highmem = next((zone.start_pfn for zone in self.zones if zone.name == "HighMem"), None)
        return Hugetlb(
            self.page_alloc,
            self.nodes,
            self.vmstat,
            self.context,
            self.depot,
            self.printk,
            self.cmdline,
            long_bits=bits,
            highmem_pfn=highmem,
        )

    def _make_kernel_sysctl(self, bits: int) -> KernelSysctl:
        return KernelSysctl(
            UTS_RELEASE,
            UTS_VERSION,
            self.cmdline,
            self.tasks,
            self.machine.cpus,
            self.totalram_pages,
            self.rng,
            long_bits=bits,
        )

    def totalram_pages(self) -> int:
        """Pages that the allocator manages."""
        return totalram_pages(self.zones)

    # -- services ----------------------------------------------------------------------------------------

    def show_mem(self, highest: int) -> None:
        """Log the memory report of allocation failures."""
        cpu = self.context.cpu
        for line in show_mem(self.zones, self.nodes, self.vmstat, cpu, highest):
            self.printk.log(KERN_WARNING, line)
        for line in show_ram(self.zones, 0):
            self.printk.log(KERN_WARNING, line)

    def populated_zones(self) -> list[Zone]:
        """The zones that have memory."""
        return [zone for zone in self.zones if zone.populated]

    def step(self) -> None:
        """Let kernel threads and timers that are due run."""
        self.clock.run_due()

    def advance(self, ns: int) -> None:
        """Let ``ns`` of idle time pass."""
        self.clock.advance(ns)

    def check(self) -> None:
        """Recompute every cached number from the truth. AssertionError on a difference."""
        self.vmstat.check()
        self.kallsyms.check()
        self.kmemleak.check()
        self.page_owner.check()
        self.vmalloc.check()
        self.hugetlb.check()
        self.fork.check()
        self.slub.check()
        self._check_free_lists()

    def _check_free_lists(self) -> None:
        """Free lists, their counts and NR_FREE_PAGES agree, and no block is on a list twice."""
        check_buddy(self.buddy, self.zones)
