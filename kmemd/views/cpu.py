"""``/sys/devices/system/cpu`` (drivers/base/cpu.c, drivers/base/topology.c, drivers/base/cacheinfo.c).

Every CPU is a core of one package and is online: hotplug and frequency scaling are left out. Cache sizes are those
of the captured machines' CPU model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kmemd.kernel import Kernel
from kmemd.views.bitmap import format_list, format_mask
from kmemd.views.tree import Caller, sysfs

BASE = "devices/system/cpu"
CPU = f"{BASE}/cpu{{cpu}}"
NR_CPUS = 8
CACHES = ((1, "Data", 64, 2), (1, "Instruction", 64, 2), (2, "Unified", 512, 16))
"""Level, type, KiB, ways."""
CACHE_LINE = 64
VENDORS = {"GenuineIntel": 0, "AuthenticAMD": 2}
"""X86_VENDOR_*, arch/x86/include/asm/processor.h."""


def _cpus(kernel: Kernel) -> range:
    return range(kernel.machine.cpus)


def _list_file(name: str, what: str, members: Callable[[Kernel], Iterable[int]]) -> None:
    def show(kernel: Kernel) -> str:
        return format_list(members(kernel)) + "\n"

    show.__doc__ = what
    sysfs.file(f"{BASE}/{name}")(show)


_list_file("online", "CPUs that run.", _cpus)
_list_file("possible", "CPUs that could ever run.", _cpus)
_list_file("present", "CPUs that are in the machine.", _cpus)
_list_file("isolated", "CPUs kept from the scheduler: none.", lambda kernel: ())


@sysfs.file(f"{BASE}/offline")
def offline(kernel: Kernel) -> str:
    """CPUs the kernel could hold and the machine has not."""
    return format_list(range(kernel.machine.cpus, max(NR_CPUS, kernel.machine.cpus))) + "\n"


@sysfs.file(f"{BASE}/kernel_max")
def kernel_max(kernel: Kernel) -> str:
    """The highest CPU number the kernel was built for."""
    return f"{max(NR_CPUS, kernel.machine.cpus) - 1}\n"


@sysfs.keys(CPU, fixed=True)
def cpus(kernel: Kernel) -> Iterable[int]:
    """All CPUs."""
    return _cpus(kernel)


@sysfs.link(f"{CPU}/subsystem")
def subsystem(kernel: Kernel, cpu: int, caller: Caller) -> str:
    """The bus that CPUs are on."""
    return "../../../../bus/cpu"


@sysfs.file(f"{CPU}/uevent", mode=0o644)
def uevent(kernel: Kernel, cpu: int) -> str:
    """The driver that a CPU has, and what it is; the numbers of its features are left out."""
    model = kernel.machine.cpu_model
    vendor = VENDORS[model.vendor]
    alias = f"cpu:type:x86,ven{vendor:04X}fam{model.family:04X}mod{model.model:04X}:feature:"
    return f"DRIVER=processor\nMODALIAS={alias}\n"


@sysfs.keys(f"{CPU}/node{{nid}}", fixed=True)
def node_of(kernel: Kernel, cpu: int) -> Iterable[int]:
    """The CPU's node; i386 kernels know none."""
    return (kernel.machine.cpu_nodes[cpu],) if kernel.vmstat.numa else ()


@sysfs.link(f"{CPU}/node{{nid}}")
def node_link(kernel: Kernel, cpu: int, nid: int, caller: Caller) -> str:
    """The directory of the CPU's node."""
    return f"../../node/node{nid}"


def _topology(name: str, value: Callable[[Kernel, int], str]) -> None:
    def show(kernel: Kernel, cpu: int) -> str:
        return value(kernel, cpu) + "\n"

    show.__doc__ = f"topology/{name}: one package, one die, one thread per core."
    sysfs.file(f"{CPU}/topology/{name}")(show)


_topology("physical_package_id", lambda kernel, cpu: "0")
_topology("die_id", lambda kernel, cpu: "0")
_topology("core_id", lambda kernel, cpu: str(cpu))
for _name in ("core_cpus", "thread_siblings"):
    _topology(_name, lambda kernel, cpu: format_mask([cpu], kernel.machine.cpus))
    _topology(f"{_name}_list", lambda kernel, cpu: format_list([cpu]))
for _name in ("package_cpus", "core_siblings", "die_cpus"):
    _topology(_name, lambda kernel, cpu: format_mask(_cpus(kernel), kernel.machine.cpus))
    _topology(f"{_name}_list", lambda kernel, cpu: format_list(_cpus(kernel)))


@sysfs.keys(f"{CPU}/cache/index{{index}}", fixed=True)
def caches(kernel: Kernel, cpu: int) -> Iterable[int]:
    """The CPU's caches."""
    return range(len(CACHES))


def _cache(name: str, value: Callable[[Kernel, int, int], str]) -> None:
    def show(kernel: Kernel, cpu: int, index: int) -> str:
        return value(kernel, cpu, index) + "\n"

    show.__doc__ = f"cache/index/{name}."
    sysfs.file(f"{CPU}/cache/index{{index}}/{name}")(show)


def _sets(index: int) -> int:
    _, _, kib, ways = CACHES[index]
    return (kib << 10) // (CACHE_LINE * ways)


_cache("level", lambda kernel, cpu, index: str(CACHES[index][0]))
_cache("type", lambda kernel, cpu, index: CACHES[index][1])
_cache("size", lambda kernel, cpu, index: f"{CACHES[index][2]}K")
_cache("ways_of_associativity", lambda kernel, cpu, index: str(CACHES[index][3]))
_cache("number_of_sets", lambda kernel, cpu, index: str(_sets(index)))
_cache("coherency_line_size", lambda kernel, cpu, index: str(CACHE_LINE))
_cache("id", lambda kernel, cpu, index: str(cpu))
_cache("shared_cpu_list", lambda kernel, cpu, index: format_list([cpu]))
_cache("shared_cpu_map", lambda kernel, cpu, index: format_mask([cpu], kernel.machine.cpus))
