"""A machine: its architecture, memory map, NUMA nodes, CPUs, swap devices and speed, before anything boots on it.

A machine comes from a TOML file (the built-in ones are in ``machines/``) or from the ``/proc`` and ``/sys`` of a
real one (``Machine.from_capture``). It leaves out devices other than those that show in ``/proc/iomem``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kmemd.mm.firmware import E820Entry, Resource, iomem_resources, pc_memory_map, usable_ranges
from kmemd.mm.mmzone_layout import NodeLayout
from kmemd.mm.params import CommandLine
from kmemd.mm.setup import BootMemory, NodeMemory, setup_memory

if TYPE_CHECKING:
    from kmemd.capture import Capture

__all__ = ["CommandLine", "CpuModel", "DiskDevice", "Latency", "Machine", "MachineError", "SwapDevice"]

MACHINES = Path(__file__).parent / "machines"
DEFAULT_CMDLINE = "console=ttyS0 panic=-1 loglevel=4 nokaslr"
BOOT_TIME_S = 1_795_331_059
"""When the model's machines were switched on, in s since 1970: a constant, so that runs are repeatable."""

UTS_RELEASE = "6.1.192"
COMPILER = "gcc (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40"
BUILDS = {
    "x86_64": "#2 SMP Sun Nov 22 06:52:48 UTC 2026",
    "i386": "#1 SMP Sun Nov 22 07:07:37 UTC 2026",
}
"""The captured kernels' release, compiler and builds."""

MIN_MEMORY = 64 << 20
"""Bytes that a machine needs to boot: with less, what boot allocates does not fit."""


class MachineError(ValueError):
    """A machine that cannot be used: says which file and key, and what would be right."""


@dataclass(frozen=True)
class Latency:
    """What operations cost in model time, in ns; constants listed in docs/fidelity.md."""

    pcp_alloc: int = 60
    pcp_free: int = 50
    buddy_alloc: int = 180
    buddy_free: int = 150
    zero_page: int = 250
    slab_alloc: int = 25
    slab_free: int = 20
    slab_slow: int = 150
    vmalloc_area: int = 1500
    vmalloc_page: int = 90
    syscall: int = 150
    minor_fault: int = 600
    huge_fault: int = 60_000
    tlb_hit: int = 1
    tlb_walk: int = 30
    dram_local: int = 90
    dram_remote: int = 150
    reclaim_page: int = 900
    compact_page: int = 1200
    direct_reclaim: int = 5000
    swap_read: int = 90_000
    swap_write: int = 60_000
    disk_read: int = 100_000
    disk_write: int = 70_000
    disk_read_page: int = 8_000
    disk_write_page: int = 10_000
    page_owner: int = 120
    kmemleak_object: int = 200
    kmemleak_scan_page: int = 1000


@dataclass(frozen=True)
class SwapDevice:
    """A swap area that can be turned on: ``kind`` is "partition" or "file"; sizes in bytes."""

    path: str
    size: int
    kind: str = "partition"
    priority: int = -2
    active: bool = True


@dataclass(frozen=True)
class DiskDevice:
    """How fast a disk is: ns of a request, bytes a second. None: as the latency table says of all disks."""

    path: str
    read_latency: int | None = None
    write_latency: int | None = None
    read_bandwidth: int | None = None
    write_bandwidth: int | None = None


@dataclass(frozen=True)
class CpuModel:
    """What /proc/cpuinfo says of each CPU. The values are those of the captured machines."""

    vendor: str
    family: int
    model: int
    model_name: str
    stepping: int
    microcode: str
    mhz: float
    cache_kib: int
    bogomips: float
    flags: str
    bugs: str
    clflush: int
    cpuid_level: int
    address_sizes: str
    tlb_pages: int = 0


CPU_MODELS = {
    "x86_64": CpuModel(
        vendor="AuthenticAMD",
        family=15,
        model=107,
        model_name="QEMU Virtual CPU version 2.5+",
        stepping=1,
        microcode="0x1000065",
        mhz=2596.146,
        cache_kib=512,
        bogomips=5192.29,
        flags="fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht "
        "syscall nx lm rep_good nopl cpuid extd_apicid pni cx16 hypervisor lahf_lm cmp_legacy svm 3dnowprefetch "
        "vmmcall",
        bugs="fxsave_leak sysret_ss_attrs null_seg swapgs_fence amd_e400 spectre_v1 spectre_v2",
        clflush=64,
        cpuid_level=13,
        address_sizes="40 bits physical, 48 bits virtual",
        tlb_pages=1024,
    ),
    "i386": CpuModel(
        vendor="GenuineIntel",
        family=6,
        model=6,
        model_name="QEMU Virtual CPU version 2.5+",
        stepping=3,
        microcode="0x1",
        mhz=2596.12,
        cache_kib=16384,
        bogomips=5192.24,
        flags="fpu de pse tsc msr pae mce cx8 apic sep pge cmov mmx fxsr sse sse2 ht cpuid pni hypervisor",
        bugs="cpu_meltdown spectre_v1 spectre_v2 spec_store_bypass l1tf mds swapgs itlb_multihit mmio_unknown bhi its",
        clflush=32,
        cpuid_level=4,
        address_sizes="36 bits physical, 32 bits virtual",
    ),
}


@dataclass(frozen=True)
class Machine:
    """One machine. ``nodes`` hold byte ranges; zones follow from them and the command line at boot.

    ``capture`` is set for a twin, ``shape_only`` when just the zones of the capture are taken over. ``cpu_features``
    are flags that its CPUs have beyond those of the captured machines' CPU. ``soft_dirty`` is CONFIG_MEM_SOFT_DIRTY,
    which the captured kernels lack: whether /proc/PID/pagemap tells which pages were written. ``disks`` are those with
    a speed of their own.
    """

    name: str
    arch: str
    cpus: int
    nodes: tuple[NodeMemory, ...]
    e820: tuple[E820Entry, ...]
    iomem: tuple[Resource, ...]
    swap: tuple[SwapDevice, ...] = ()
    latency: Latency = field(default_factory=Latency)
    cmdline: str = DEFAULT_CMDLINE
    description: str = ""
    boot_time_s: int = BOOT_TIME_S
    capture: Capture | None = None
    shape_only: bool = False
    notes: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    soft_dirty: bool = False
    disks: tuple[DiskDevice, ...] = ()

    @classmethod
    def load(cls, name_or_path: str | Path) -> Machine:
        """A built-in machine by name, a TOML file, or a folder with ``proc`` and ``sys`` of a real machine."""
        from kmemd.machine_file import load_machine

        path = MACHINES / f"{name_or_path}.toml"
        if path.exists() and str(name_or_path) in cls.builtin_names():
            return load_machine(path)
        path = Path(name_or_path)
        if path.is_dir():
            return cls.from_capture(path)
        if path.is_file():
            return load_machine(path)
        known = ", ".join(cls.builtin_names())
        raise MachineError(f"{name_or_path}: no such machine; built in are {known}, or give a file or folder")

    @staticmethod
    def builtin_names() -> list[str]:
        """The names of the machines that come with kmemd, default first."""
        names = sorted(path.stem for path in MACHINES.glob("*.toml"))
        return sorted(names, key=lambda name: (name != "default", name))

    @classmethod
    def from_capture(cls, folder: str | Path, *, shape_only: bool = False) -> Machine:
        """The twin of a captured machine, or with ``shape_only`` a fresh boot on its zones."""
        from kmemd.capture import read_machine

        return read_machine(Path(folder), shape_only=shape_only)

    @classmethod
    def of_memory(
        cls,
        name: str,
        arch: str,
        cpus: int,
        node_sizes: tuple[int, ...],
        node_cpus: tuple[tuple[int, ...], ...],
        distances: tuple[tuple[int, ...], ...],
        **rest: object,
    ) -> Machine:
        """A PC with so many bytes of memory per node, laid out as QEMU's ``pc`` machine lays it out."""
        e820 = pc_memory_map(arch, sum(node_sizes))
        ranges = usable_ranges(e820, node_sizes)
        nodes = tuple(NodeMemory(nid, ranges[nid], node_cpus[nid], distances[nid]) for nid in range(len(node_sizes)))
        iomem = iomem_resources(arch, e820)
        return dataclasses.replace(cls(name, arch, cpus, nodes, e820, iomem), **rest)  # type: ignore[arg-type]

    def command_line(self, extra: str = "") -> CommandLine:
        """The machine's own command line and what the user adds to it, before init's arguments (behind ``--``)."""
        kernel, dashes, init = self.cmdline.partition(" -- ")
        return CommandLine(f"{kernel} {extra}".strip() + dashes + init)

    def boot_memory(self, cmdline: CommandLine) -> BootMemory:
        """Reservations and zones when the page allocator takes over. MachineError when ``mem=`` leaves too little."""
        if self.capture is not None:
            return self.capture.boot_memory()
        limit = cmdline.size("mem")
        if limit and limit < MIN_MEMORY:
            raise MachineError(f"mem={cmdline.get('mem')}: a machine needs {MIN_MEMORY >> 20}M to boot")
        return setup_memory(self.arch, self.nodes, cmdline, gbpages=self.gbpages)

    def layouts(self, cmdline: CommandLine) -> tuple[NodeLayout, ...]:
        """The nodes with their zones under a command line."""
        return self.boot_memory(cmdline).nodes

    @property
    def is_twin(self) -> bool:
        """Whether the state of a captured machine is taken over, not only its shape."""
        return self.capture is not None and not self.shape_only

    @cached_property
    def cpu_model(self) -> CpuModel:
        """What each CPU says of itself."""
        return CPU_MODELS[self.arch]

    @property
    def gbpages(self) -> bool:
        """Whether the CPUs map pages of 1 GiB."""
        return "pdpe1gb" in self.cpu_features and self.arch == "x86_64"

    def crng_ready(self, cmdline: CommandLine) -> bool:
        """Whether there are random numbers from boot on: RDRAND's, unless ``random.trust_cpu=off``."""
        return "rdrand" in self.cpu_features and cmdline.flag("random.trust_cpu", default=True)

    @property
    def cpu_flags(self) -> str:
        """The feature flags of each CPU; a machine of one CPU has no hyper-threading bits."""
        flags = self.cpu_model.flags.split()
        if self.gbpages:
            flags.insert(flags.index("lm"), "pdpe1gb")
        if "rdrand" in self.cpu_features and "rdrand" not in flags:
            flags.insert(flags.index("hypervisor"), "rdrand")
        flags += [flag for flag in ("smep", "smap") if flag in self.cpu_features]
        return " ".join(flag for flag in flags if self.cpus > 1 or flag not in ("ht", "cmp_legacy"))

    @cached_property
    def cpu_nodes(self) -> tuple[int, ...]:
        """The node of each CPU."""
        nodes = [0] * self.cpus
        for node in self.nodes:
            for cpu in node.cpus:
                nodes[cpu] = node.nid
        return tuple(nodes)

    @property
    def long_bits(self) -> int:
        """Bits of an ``unsigned long``."""
        return 64 if self.arch == "x86_64" else 32

    @property
    def numa(self) -> bool:
        """Whether the machine's kernel is built for NUMA: x86_64's is, i386's with HIGHMEM is not."""
        return self.arch == "x86_64"

    @property
    def release_and_build(self) -> str:
        """What stack dumps say of the kernel: its release, and the number of its build."""
        return f"{UTS_RELEASE} {self.build.split()[0]}"

    @property
    def build(self) -> str:
        """The kernel's build, as ``uname -v`` says it."""
        return BUILDS[self.arch]

    @property
    def banner(self) -> str:
        """The kernel's version line."""
        return f"Linux version {UTS_RELEASE} (root@vm) ({COMPILER}) {self.build}"

    @property
    def memory_bytes(self) -> int:
        """Bytes of usable memory in the firmware's map."""
        return sum(end - start for node in self.nodes for start, end in node.ranges)
