"""``/sys/devices/system/node`` (drivers/base/node.c): each NUMA node's memory, counters, CPUs and distances.

i386 kernels are built without NUMA and do not have the directory. What acts below a node, ``compact`` and
``hugepages``, is in ``mm_sysfs``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.mmzone import Node
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views.bitmap import format_list, format_mask
from kmemd.views.meminfo import show_val_kb
from kmemd.views.tree import Caller, sysfs

BASE = "devices/system/node"
NODE = f"{BASE}/node{{nid}}"


def _has_nodes(kernel: Kernel) -> bool:
    return kernel.vmstat.numa


sysfs.dir(BASE, exists=_has_nodes)


@sysfs.keys(NODE, fixed=True)
def nodes(kernel: Kernel) -> Iterable[int]:
    """The online nodes."""
    return [node.nid for node in kernel.nodes]


@sysfs.file(f"{BASE}/has_cpu")
def has_cpu(kernel: Kernel) -> str:
    """Nodes with CPUs."""
    return format_list(node.nid for node in kernel.nodes if node.has_cpu) + "\n"


@sysfs.file(f"{BASE}/has_generic_initiator")
def has_generic_initiator(kernel: Kernel) -> str:
    """Nodes with devices that access memory and have neither CPUs nor memory: no modelled machine has one."""
    return "\n"


@sysfs.file(f"{BASE}/has_memory")
def has_memory(kernel: Kernel) -> str:
    """Nodes with memory of any kind."""
    return format_list(node.nid for node in kernel.nodes if node.has_memory) + "\n"


@sysfs.file(f"{BASE}/has_normal_memory")
def has_normal_memory(kernel: Kernel) -> str:
    """Nodes with memory that the kernel itself can use."""
    return format_list(node.nid for node in kernel.nodes if _has_normal_memory(node)) + "\n"


def _has_normal_memory(node: Node) -> bool:
    return any(zone.populated for zone in node.zones if zone.name not in ("HighMem", "Movable"))


@sysfs.file(f"{BASE}/online")
def online(kernel: Kernel) -> str:
    """Nodes that are in use."""
    return format_list(nodes(kernel)) + "\n"


@sysfs.file(f"{BASE}/possible")
def possible(kernel: Kernel) -> str:
    """Nodes that could ever be: memory hotplug is not modelled, so the same."""
    return format_list(nodes(kernel)) + "\n"


@sysfs.file(f"{BASE}/uevent", mode=0o644)
def subsystem_uevent(kernel: Kernel) -> str:
    """Nothing to tell."""
    return ""


@sysfs.file(f"{NODE}/uevent", mode=0o644)
def node_uevent(kernel: Kernel, nid: int) -> str:
    """Nothing to tell."""
    return ""


@subsystem_uevent.store
def subsystem_uevent_store(kernel: Kernel, text: str) -> None:
    """The name of an action to announce."""
    _uevent_action(text)


@node_uevent.store
def node_uevent_store(kernel: Kernel, nid: int, text: str) -> None:
    """The name of an action to announce."""
    _uevent_action(text)


def _uevent_action(text: str) -> None:
    """Check an action's name; there is nobody to hear of it (lib/kobject_uevent.c)."""
    words = text.split()
    if not words or words[0] not in (
        "add",
        "remove",
        "change",
        "move",
        "online",
        "offline",
        "bind",
        "unbind",
    ):
        raise KernelError(errno.EINVAL, f"{text.strip()!r} is not a uevent action")


@sysfs.file(f"{NODE}/cpumap")
def cpumap(kernel: Kernel, nid: int) -> str:
    """The node's CPUs as a mask."""
    return format_mask(kernel.nodes[nid].cpus, kernel.machine.cpus) + "\n"


@sysfs.file(f"{NODE}/cpulist")
def cpulist(kernel: Kernel, nid: int) -> str:
    """The node's CPUs as a list."""
    return format_list(kernel.nodes[nid].cpus) + "\n"


@sysfs.file(f"{NODE}/distance")
def distance(kernel: Kernel, nid: int) -> str:
    """How far each online node is; 10 is the node itself."""
    return " ".join(str(value) for value in kernel.nodes[nid].distance) + "\n"


@sysfs.file(f"{NODE}/numastat")
def numastat(kernel: Kernel, nid: int) -> Iterator[str]:
    """Allocations by where they were wanted and where they came from."""
    for item, name in (
        (stats.NUMA_HIT, "numa_hit"),
        (stats.NUMA_MISS, "numa_miss"),
        (stats.NUMA_FOREIGN, "numa_foreign"),
        (stats.NUMA_INTERLEAVE_HIT, "interleave_hit"),
        (stats.NUMA_LOCAL, "local_node"),
        (stats.NUMA_OTHER, "other_node"),
    ):
        yield f"{name} {kernel.vmstat.sum_zone_numa_event_state(nid, item)}\n"


@sysfs.file(f"{NODE}/vmstat")
def vmstat(kernel: Kernel, nid: int) -> Iterator[str]:
    """The node's counters, as in ``/proc/vmstat``."""
    for item, name in enumerate(stats.ZONE_STAT_NAMES):
        yield f"{name} {kernel.vmstat.sum_zone_node_page_state(nid, item)}\n"
    for item, name in enumerate(stats.NUMA_STAT_NAMES):
        yield f"{name} {kernel.vmstat.sum_zone_numa_event_state(nid, item)}\n"
    for name, value in kernel.vmstat.node_lines(nid):
        yield f"{name} {value}\n"


@sysfs.file(f"{NODE}/meminfo")
def node_meminfo(kernel: Kernel, nid: int) -> Iterator[str]:
    """Where the node's memory is."""
    total = sum(zone.managed for zone in kernel.nodes[nid].zones)
    free = kernel.vmstat.sum_zone_node_page_state(nid, stats.NR_FREE_PAGES)
    for label, pages in (("MemTotal", total), ("MemFree", free), ("MemUsed", total - free)):
        yield f"Node {nid} {show_val_kb(label, pages * KIB_PER_PAGE)}"
    for label, width, kib in _node_lines(kernel, nid):
        yield f"Node {nid} {show_val_kb(label, kib, width)}"
    pool = kernel.hugetlb.default
    for label, pages in (
        ("HugePages_Total", pool.nr_node[nid]),
        ("HugePages_Free", pool.free_node(nid)),
        ("HugePages_Surp", pool.surplus_node[nid]),
    ):
        yield f"Node {nid} {label + ':':<16} {pages:>5}\n"


def _node_lines(kernel: Kernel, nid: int) -> Iterator[tuple[str, int, int]]:
    """Label, width of the label and KiB of the lines after MemUsed."""

    def node(*items: int) -> int:
        return sum(kernel.vmstat.node_page_state(nid, item) for item in items) * KIB_PER_PAGE

    def zones(item: int) -> int:
        return kernel.vmstat.sum_zone_node_page_state(nid, item) * KIB_PER_PAGE

    slab = (stats.NR_SLAB_RECLAIMABLE_B, stats.NR_SLAB_UNRECLAIMABLE_B)
    yield "SwapCached", 16, node(stats.NR_SWAPCACHE)
    yield "Active", 16, node(stats.NR_ACTIVE_ANON, stats.NR_ACTIVE_FILE)
    yield "Inactive", 16, node(stats.NR_INACTIVE_ANON, stats.NR_INACTIVE_FILE)
    yield "Active(anon)", 16, node(stats.NR_ACTIVE_ANON)
    yield "Inactive(anon)", 16, node(stats.NR_INACTIVE_ANON)
    yield "Active(file)", 16, node(stats.NR_ACTIVE_FILE)
    yield "Inactive(file)", 16, node(stats.NR_INACTIVE_FILE)
    yield "Unevictable", 16, node(stats.NR_UNEVICTABLE)
    yield "Mlocked", 16, zones(stats.NR_MLOCK)
    yield "Dirty", 16, node(stats.NR_FILE_DIRTY)
    yield "Writeback", 16, node(stats.NR_WRITEBACK)
    yield "FilePages", 16, node(stats.NR_FILE_PAGES)
    yield "Mapped", 16, node(stats.NR_FILE_MAPPED)
    yield "AnonPages", 16, node(stats.NR_ANON_MAPPED)
    yield "Shmem", 16, node(stats.NR_SHMEM)
    yield "KernelStack", 16, kernel.vmstat.node_page_state(nid, stats.NR_KERNEL_STACK_KB)
    yield "PageTables", 16, node(stats.NR_PAGETABLE)
    yield "SecPageTables", 16, node(stats.NR_SECONDARY_PAGETABLE)
    yield "NFS_Unstable", 16, 0
    yield "Bounce", 16, zones(stats.NR_BOUNCE)
    yield "WritebackTmp", 16, node(stats.NR_WRITEBACK_TEMP)
    yield "KReclaimable", 16, node(stats.NR_SLAB_RECLAIMABLE_B, stats.NR_KERNEL_MISC_RECLAIMABLE)
    yield "Slab", 16, node(*slab)
    yield "SReclaimable", 16, node(slab[0])
    yield "SUnreclaim", 16, node(slab[1])
    yield "AnonHugePages", 16, node(stats.NR_ANON_THPS)
    yield "ShmemHugePages", 16, node(stats.NR_SHMEM_THPS)
    yield "ShmemPmdMapped", 16, node(stats.NR_SHMEM_PMDMAPPED)
    yield "FileHugePages", 15, node(stats.NR_FILE_THPS)
    yield "FilePmdMapped", 15, node(stats.NR_FILE_PMDMAPPED)


@sysfs.link(f"{NODE}/cpu{{cpu}}")
def node_cpu(kernel: Kernel, nid: int, cpu: int, caller: Caller) -> str:
    """The CPU's own directory."""
    return f"../../cpu/cpu{cpu}"


@sysfs.keys(f"{NODE}/cpu{{cpu}}", fixed=True)
def node_cpus(kernel: Kernel, nid: int) -> Iterable[int]:
    """The node's CPUs."""
    return kernel.nodes[nid].cpus


@sysfs.link(f"{NODE}/subsystem")
def node_subsystem(kernel: Kernel, nid: int, caller: Caller) -> str:
    """The bus that nodes are on."""
    return "../../../../bus/node"
