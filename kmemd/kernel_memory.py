"""The kernel's own allocators, wired: slabs, per-CPU memory, vmalloc, memory of devices, the leak detector.

A part of ``kernel.py`` in a module of its own: what Linux sets up in ``mm_init`` and ``kmemleak_init``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.boot.areas import PERCPU_ATOM, PERCPU_UNIT, percpu_groups
from kmemd.core import stats
from kmemd.debug.alloc_stacks import AllocStacks
from kmemd.debug.check_wx import CheckWx
from kmemd.debug.kmemleak import Kmemleak
from kmemd.debug.perf_counters import Counters
from kmemd.debug.perf_events import PerfEvents
from kmemd.mm import memtype
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.device_memory import DeviceMemory
from kmemd.mm.fork import INIT_PID
from kmemd.mm.init_mm import InitMm, rodata_enabled
from kmemd.mm.ioremap import FUNCTIONS
from kmemd.mm.layout import PHYSICAL_START, X86_64
from kmemd.mm.module import BpfPrograms, CodeMemory, Modules, pack_size
from kmemd.mm.oops import KernelAccess, Oops
from kmemd.mm.percpu import POPULATED_BY_BOOT, Percpu, Units
from kmemd.mm.pti import check_boottime_disable
from kmemd.mm.signals import SIGSEGV
from kmemd.mm.slub import Slub
from kmemd.mm.slub_harden import Hardening
from kmemd.mm.slub_machine import SlubCosts, SlubMachine
from kmemd.mm.slub_report import ReportTools
from kmemd.mm.swiotlb import region_of
from kmemd.mm.units import GIB, KIB_PER_PAGE, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmalloc import Vmalloc, VmStruct

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def make_slub(kernel: Kernel) -> Slub:
    """The slab allocator with its first caches (kmem_cache_init)."""
    machine, latency = kernel.machine, kernel.machine.latency

    def faults(address: int, frames: tuple[str, ...]) -> bool:
        """Look at the flags of an address' page: their word is the second for the head of a compound page."""
        access = KernelAccess(kernel.layout.virt_to_page(address) + kernel.layout.pointer_size, frames=frames)
        code = kernel.oops.fault(access)
        if code >= 0:
            kernel.oops.page_fault(access, code)
        return code >= 0

    tools = ReportTools(
        kernel.dump_stack,
        kernel.kallsyms.frame_text,
        kernel.page_flags.of_page,
        kernel.layout.page_struct,
        faults,
    )
    facts = SlubMachine(
        machine.cpu_nodes,
        kernel.nodes,
        kernel.page_alloc.zonelists,
        tuple(zone.name for zone in kernel.nodes[0].zones),
        kernel.layout.page_offset,
        kernel.layout.pointer_size,
        machine.cpu_model.clflush,
        numa=machine.numa,
        costs=SlubCosts(latency.slab_alloc, latency.slab_free, latency.slab_slow),
    )
    return Slub(
        kernel.page_alloc,
        kernel.pages,
        kernel.vmstat.node_stat,
        kernel.context,
        kernel.depot,
        kernel.printk,
        tools,
        facts,
        kernel.cmdline,
        kernel.kmemleak,
        kernel.preempt,
        kernel.memcg.kernel,
        Hardening(
            kernel.cmdline,
            kernel.rng,
            lambda where, frames: kernel.oops.invalid_op(where, frames),
            init_on_alloc=kernel.page_poison.init_on_alloc,
            init_on_free=kernel.page_poison.init_on_free,
        ),
        kernel.percpu,
    )


def make_kmemleak(kernel: Kernel) -> Kmemleak:
    """The leak detector; its roots are module data (the handles) and the list of vmalloc areas."""
    latency = kernel.machine.latency
    return Kmemleak(
        kernel.context,
        kernel.clock,
        kernel.printk,
        kernel.kallsyms,
        kernel.layout,
        kernel.dump_stack,
        enabled=kernel.cmdline.get("kmemleak") != "off",
        roots=(kernel.handles.pieces, lambda: kernel.vmalloc.roots()),
        tasks=kernel.tasks,
        alloc_ns=latency.kmemleak_object,
        scan_ns=latency.kmemleak_scan_page,
    )


def make_perf(kernel: Kernel) -> PerfEvents:
    """What ``kmemd perf`` counts and samples (perf_event_init)."""
    counters = Counters(kernel.vmstat, kernel.mmu, kernel.context, kernel.clock, kernel.machine.cpu_model.mhz)
    return PerfEvents(counters, kernel.context, kernel.depot, kernel.kallsyms)


def make_alloc_stacks(kernel: Kernel) -> AllocStacks:
    """Who holds memory, by what the instruments of the allocators know."""
    return AllocStacks(
        kernel.depot, kernel.owner, lambda: kernel.kmemleak.table, lambda: kernel.slub.reports.allocated.values()
    )


def make_device_memory(kernel: Kernel) -> DeviceMemory:
    """What drivers use: registers, ioremap, DMA (ioresources_init, swiotlb_init)."""
    return DeviceMemory(
        kernel.machine.iomem,
        kernel.layout,
        kernel.context,
        kernel.depot,
        kernel.printk,
        kernel.dump_stack,
        kernel.page_alloc,
        kernel.vmalloc,
        Descriptors(kernel.slub, kernel.kmemleak.kernel_data, kernel.context, kernel.depot),
        kernel.kallsyms.frame_text,
        kernel.kallsyms.p,
        pat="pat" in kernel.machine.cpu_flags.split(),
        cpus=kernel.machine.cpus,
        swiotlb=region_of(kernel.boot_memory.memblock.reserved),
        zero_ns=kernel.machine.latency.zero_page,
        mapped=lambda: kernel.user.pfn_map.ranges(),
        cma=kernel.cma,
    )


def make_vmalloc(kernel: Kernel) -> Vmalloc:
    """Memory that is contiguous in virtual addresses alone (vmalloc_init)."""
    latency = kernel.machine.latency
    return Vmalloc(
        kernel.layout,
        kernel.page_alloc,
        kernel.zones,
        kernel.context,
        kernel.depot,
        kernel.printk,
        kernel.dump_stack,
        cpus=kernel.machine.cpus,
        slab=kernel.slub,
        observer=kernel.kmemleak,
        show_pointer=kernel.kallsyms.p,
        area_ns=latency.vmalloc_area,
        page_ns=latency.vmalloc_page,
        preempt=kernel.preempt,
        charged=kernel.memcg.kernel.account_vmalloc,
    )


def make_percpu(kernel: Kernel) -> Percpu:
    """Per-CPU memory, as far as it is there before the page allocator is (setup_per_cpu_areas)."""
    machine, atom = kernel.machine, PERCPU_ATOM[kernel.machine.arch]
    units = Units(percpu_groups(kernel)[0], atom, max(atom, PERCPU_UNIT[machine.arch]))
    return Percpu(machine.arch, machine.cpu_nodes, units, kernel.page_alloc, kernel.context, kernel.depot)


def setup_percpu(kernel: Kernel) -> None:
    """Pages of further chunks, which a twin has already; data of zones, nodes and the memory controller."""
    machine, capture, percpu = kernel.machine, kernel.machine.capture, kernel.percpu
    taken = capture.meminfo.get("Percpu", 0) // KIB_PER_PAGE if capture is not None and machine.is_twin else None
    percpu.boot(taken)
    percpu.setup_pageset(
        sum(zone.populated for zone in kernel.zones),
        len(kernel.nodes),
        kernel.layout.pointer_size,
        machine.cpu_model.clflush,
        numa=machine.numa,
    )
    kernel.memcg.kernel.use(percpu)


def make_init_mm(kernel: Kernel) -> InitMm:
    """The kernel's page tables (paging_init, mark_rodata_ro)."""
    machine, memtypes = kernel.machine, kernel.device_memory.memtypes
    unit, groups = percpu_groups(kernel)

    def cached(area: VmStruct) -> int:
        """The memory type of what ioremap maps: what is tracked, or what was asked for."""
        asked = FUNCTIONS.get(area.caller[1], memtype.UC_MINUS)
        return memtypes.lookup(area.phys) if memtypes.enabled and area.phys is not None else asked

    def split(size: int) -> None:
        """A large page of memory was made into small ones."""
        kernel.direct_map = kernel.direct_map.split(size)
        if kernel.machine.arch == X86_64:
            kernel.vmstat.count(stats.DIRECT_MAP_LEVEL3_SPLIT if size >= GIB else stats.DIRECT_MAP_LEVEL2_SPLIT)

    return InitMm(
        kernel.layout,
        [(region.start, region.end) for region in kernel.boot_memory.memblock.memory],
        kernel.vmalloc.areas,
        lambda: kernel.vmalloc.version,
        kernel.vmalloc.tables,
        kernel.vmalloc.changed,
        split,
        cached,
        kernel.highmem.mapped_pages,
        lambda: [(start, end - PAGE_SIZE) for start, end in kernel.vmalloc.reserved],
        cpus=machine.cpus,
        percpu=(unit, POPULATED_BY_BOOT[machine.arch], groups),
        gbpages=machine.gbpages,
        pti=check_boottime_disable(machine.arch, machine.cpu_model.bugs, kernel.cmdline).enabled,
        rodata=rodata_enabled(kernel.cmdline),
    )


def make_code(kernel: Kernel) -> tuple[Modules, BpfPrograms]:
    """Modules, and programs of BPF."""
    descriptors = Descriptors(kernel.slub, kernel.kmemleak.kernel_data, kernel.context, kernel.depot)
    memory = CodeMemory(
        kernel.vmalloc,
        kernel.set_memory,
        kernel.context,
        kernel.depot,
        kernel.kmemleak.kernel_data,
        rodata=rodata_enabled(kernel.cmdline),
    )
    modules = Modules(memory, kernel.kallsyms.place_module, kernel.kallsyms.drop_module)
    size = pack_size(len(kernel.nodes), long=kernel.init_mm.long)
    return modules, BpfPrograms(memory, descriptors, kernel.rng, size)


def make_check_wx(kernel: Kernel) -> CheckWx:
    """The search for memory that is writable and executable (debug_checkwx)."""
    return CheckWx(
        kernel.init_mm,
        kernel.printk,
        kernel.dump_stack,
        kernel.kallsyms.symbolize,
        nx="nx" in kernel.machine.cpu_flags.split(),
    )


def make_oops(kernel: Kernel) -> Oops:
    """Faults of the kernel (trap_init)."""
    features = kernel.machine.cpu_features

    def pgd() -> int:
        task = kernel.tasks.current()
        own = task.mm if task is not None else None
        return PHYSICAL_START if own is None else kernel.mmu.pgd(own.id) << PAGE_SHIFT

    def stack() -> int:
        """Of the executing task; the shell that writes commands is no task of the model, and shows init's."""
        task = kernel.tasks.current() or kernel.tasks.find(INIT_PID)
        return task.stack_addr

    def die() -> None:
        """End the executing task, if it is a process that commands began (``make_task_dead``)."""
        task = kernel.tasks.current()
        if task is not None and not task.is_kthread and task.pid != INIT_PID:
            task.killed = SIGSEGV

    def uid() -> int:
        task = kernel.tasks.current()
        return 0 if task is None else task.uid

    return Oops(
        kernel.init_mm,
        kernel.context,
        kernel.depot,
        kernel.printk,
        kernel.dump_stack,
        kernel.kallsyms.frame_text,
        stack,
        pgd,
        lambda: (bool(kernel.kernel_sysctl.panic_on_oops), kernel.kernel_sysctl.oops_limit),
        die,
        uid,
        smep="smep" in features and not kernel.cmdline.has("nosmep"),
        smap="smap" in features and not kernel.cmdline.has("nosmap"),
    )
