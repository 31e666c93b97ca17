"""The physical memory map of a PC (arch/x86/kernel/e820.c) and its resource tree (kernel/resource.c).

Models QEMU's ``pc`` machine, as the captured machines were: memory below the PCI hole and, from 4 GiB, above it, and
the devices of the captures. It leaves out ports of ACPI and plug and play, and other
firmware.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmemd.mm.setup import KERNEL_IMAGES
from kmemd.mm.units import GIB, MIB, PAGE_SIZE

LOW_MEMORY_LIMIT = 3 * GIB + 512 * MIB
"""With this much memory or more, the PCI hole begins at 3 GiB, else at the end of memory."""
SPLIT_LOW_MEMORY = 3 * GIB
ACPI_TABLES = 0x26000
"""What the firmware keeps at the end of low memory."""
HYPERTRANSPORT = (0xFD_0000_0000, 0x100_0000_0000)
PCI_64BIT_WINDOW = 2 * GIB
BIOS_EBDA = 0x9FC00


@dataclass(frozen=True)
class E820Entry:
    """One line of the firmware's map: bytes ``[start, end)``, "usable" or "reserved"."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Resource:
    """One line of ``/proc/iomem`` or ``/proc/ioports``: first and last byte, and how deep it is nested."""

    start: int
    last: int
    name: str
    depth: int = 0


def pc_memory_map(arch: str, size: int) -> tuple[E820Entry, ...]:
    """The map of a PC with ``size`` bytes of memory. Preconditions: at least 16 MiB."""
    low = SPLIT_LOW_MEMORY if size >= LOW_MEMORY_LIMIT else size
    entries = [
        E820Entry(0, BIOS_EBDA, "usable"),
        E820Entry(BIOS_EBDA, 0xA0000, "reserved"),
        E820Entry(0xF0000, MIB, "reserved"),
        E820Entry(MIB, low - ACPI_TABLES, "usable"),
        E820Entry(low - ACPI_TABLES, low, "reserved"),
        E820Entry(0xFFFC0000, 4 * GIB, "reserved"),
    ]
    if size > low:
        entries.append(E820Entry(4 * GIB, 4 * GIB + size - low, "usable"))
    if arch == "x86_64" and entries[-1].end <= HYPERTRANSPORT[0]:
        entries.append(E820Entry(*HYPERTRANSPORT, "reserved"))
    return tuple(entries)


def usable_ranges(e820: Sequence[E820Entry], node_sizes: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Each node's memory: the nodes follow each other through physical memory, around its holes.

    The first page is not used, as in ``trim_bios_range``; what the firmware keeps counts for the node
    that it lies in.
    """
    blocks = _memory_blocks(e820)
    usable = [(max(entry.start, PAGE_SIZE), entry.end) for entry in e820 if entry.kind == "usable"]
    nodes = []
    for size in node_sizes:
        ranges: list[tuple[int, int]] = []
        while size and blocks:
            start, end = blocks.pop(0)
            taken = min(size, end - start)
            if start + taken < end:
                blocks.insert(0, (start + taken, end))
            size -= taken
            ranges += _intersections(usable, start, start + taken)
        nodes.append(tuple(ranges))
    return tuple(nodes)


def _memory_blocks(e820: Sequence[E820Entry]) -> list[tuple[int, int]]:
    """Memory as it is soldered in: low memory with what the firmware keeps of it, and memory above 4 GiB."""
    low_end = max((entry.end for entry in e820 if entry.start < 0xC0000000 and entry.start >= MIB), default=0)
    blocks = [(0, low_end)]
    blocks += [(entry.start, entry.end) for entry in e820 if entry.kind == "usable" and entry.start >= 4 * GIB]
    return blocks


def _intersections(ranges: Iterable[tuple[int, int]], lo: int, hi: int) -> list[tuple[int, int]]:
    return [(max(start, lo), min(end, hi)) for start, end in ranges if max(start, lo) < min(end, hi)]


_LEGACY = (
    Resource(0xC0000, 0xC9BFF, "Video ROM"),
    Resource(0xCA000, 0xCADFF, "Adapter ROM"),
    Resource(0xCB000, 0xCB5FF, "Adapter ROM"),
)
_PCI_DEVICES = (
    Resource(0xFD000000, 0xFDFFFFFF, "0000:00:02.0", 1),
    Resource(0xFE000000, 0xFE003FFF, "0000:00:04.0", 1),
    Resource(0xFE000000, 0xFE003FFF, "virtio-pci-modern", 2),
    Resource(0xFE004000, 0xFE007FFF, "0000:00:05.0", 1),
    Resource(0xFE004000, 0xFE007FFF, "virtio-pci-modern", 2),
    Resource(0xFEB80000, 0xFEBBFFFF, "0000:00:03.0", 1),
    Resource(0xFEBC0000, 0xFEBDFFFF, "0000:00:03.0", 1),
    Resource(0xFEBE0000, 0xFEBEFFFF, "0000:00:02.0", 1),
    Resource(0xFEBF0000, 0xFEBF0FFF, "0000:00:02.0", 1),
    Resource(0xFEBF1000, 0xFEBF1FFF, "0000:00:04.0", 1),
    Resource(0xFEBF2000, 0xFEBF2FFF, "0000:00:05.0", 1),
)
_IOAPIC = Resource(0xFEC00000, 0xFEC003FF, "IOAPIC 0")
_LOCAL_APIC = Resource(0xFEE00000, 0xFEE00FFF, "Local APIC")


def iomem_resources(arch: str, e820: Sequence[E820Entry]) -> tuple[Resource, ...]:
    """The resource tree, depth first, in order of address."""
    top = [Resource(0, PAGE_SIZE - 1, "Reserved"), Resource(0xA0000, 0xBFFFF, "PCI Bus 0000:00"), *_LEGACY]
    for entry in e820:
        name = "System RAM" if entry.kind == "usable" else "Reserved"
        top.append(Resource(max(entry.start, PAGE_SIZE if name == "System RAM" else 0), entry.end - 1, name))
    low_end = _memory_blocks(e820)[0][1]
    top += [Resource(low_end, 0xFEBFFFFF, "PCI Bus 0000:00"), _IOAPIC, _LOCAL_APIC, _hpet(arch)]
    if arch == "x86_64":
        start = max([4 * GIB, *(entry.end for entry in e820 if entry.kind == "usable")])
        top.append(Resource(start, start + PCI_64BIT_WINDOW - 1, "PCI Bus 0000:00"))
    top.sort(key=lambda resource: resource.start)
    tree: list[Resource] = []
    for resource in top:
        tree.append(resource)
        tree += _children(arch, resource)
    return tuple(tree)


_PORTS = (
    Resource(0x0000, 0x001F, "dma1"),
    Resource(0x0020, 0x0021, "pic1"),
    Resource(0x0040, 0x0043, "timer0"),
    Resource(0x0050, 0x0053, "timer1"),
    Resource(0x0060, 0x0060, "keyboard"),
    Resource(0x0064, 0x0064, "keyboard"),
    Resource(0x0080, 0x008F, "dma page reg"),
    Resource(0x00A0, 0x00A1, "pic2"),
    Resource(0x00C0, 0x00DF, "dma2"),
    Resource(0x00F0, 0x00FF, "fpu"),
)
"""What the kernel reserves on every PC (arch/x86/kernel/setup.c ``standard_io_resources``)."""
_DEVICE_PORTS = (
    Resource(0x0170, 0x0177, "0000:00:01.1", 1),
    Resource(0x01F0, 0x01F7, "0000:00:01.1", 1),
    Resource(0x0376, 0x0376, "0000:00:01.1", 1),
    Resource(0x03F6, 0x03F6, "0000:00:01.1", 1),
    Resource(0x03F8, 0x03FF, "serial", 1),
)
_PCI_PORTS = (
    Resource(0xC000, 0xC07F, "0000:00:04.0", 1),
    Resource(0xC080, 0xC0FF, "0000:00:05.0", 1),
    Resource(0xC100, 0xC13F, "0000:00:03.0", 1),
    Resource(0xC140, 0xC14F, "0000:00:01.1", 1),
)


def ioport_resources() -> tuple[Resource, ...]:
    """The tree of ports, depth first, in order of port: those of the PC and of the captures' PCI devices."""
    below = [*(Resource(port.start, port.last, port.name, 1) for port in _PORTS), *_DEVICE_PORTS]
    return (
        Resource(0x0000, 0x0CF7, "PCI Bus 0000:00"),
        *below,
        Resource(0x0CF8, 0x0CFF, "PCI conf1"),
        Resource(0x0D00, 0xFFFF, "PCI Bus 0000:00"),
        *_PCI_PORTS,
    )


def standard_ports() -> tuple[Resource, ...]:
    """What is known of the ports of a machine that nobody described."""
    return _PORTS


def _hpet(arch: str) -> Resource:
    return Resource(0xFED00000, 0xFED003FF, "HPET 0" if arch == "x86_64" else "PNP0103:00")


def _children(arch: str, parent: Resource) -> list[Resource]:
    """What is nested in a top-level resource."""
    if parent.name == "HPET 0":
        return [Resource(parent.start, parent.last, "PNP0103:00", 1)]
    if parent.start == 0xF0000:
        return [Resource(0xF0000, 0xFFFFF, "System ROM", 1)]
    if parent.name == "System RAM":
        parts = KERNEL_IMAGES[arch].parts
        return [Resource(start, last, name, 1) for name, start, last in parts if parent.start <= start <= parent.last]
    if parent.start == 0xA0000 and arch == "i386":
        return [Resource(0xA0000, 0xBFFFF, "Video RAM area", 1)]
    if parent.name.startswith("PCI Bus") and MIB <= parent.start < 4 * GIB:
        return list(_PCI_DEVICES)
    return []


FILESYSTEMS = {
    "x86_64": (
        *("sysfs", "tmpfs", "proc", "cgroup", "cgroup2", "devtmpfs", "debugfs", "tracefs", "sockfs", "pipefs"),
        *("ramfs", "hugetlbfs", "ext3", "ext4"),
    ),
    "i386": (
        *("sysfs", "tmpfs", "proc", "cgroup", "cgroup2", "devtmpfs", "debugfs", "tracefs", "sockfs", "pipefs"),
        *("ramfs", "hugetlbfs"),
    ),
}
FREED_AFTER_ROOTFS = {"x86_64": 4580 // 4, "i386": 1856 // 4}
"""Pages of the initrd and of init code, which boot gives back after the root file system was sized."""


def mounts_of(arch: str, total_pages: int, high_pages: int) -> list[tuple[str, str, str, str]]:
    """What a booted machine has mounted: (device, mount point, type, options).

    A tmpfs may hold half of the memory there is when it is mounted (shmem_default_max_blocks, _max_inodes).
    """
    pages = total_pages - FREED_AFTER_ROOTFS[arch]
    size = f"size={pages // 2 * 4}k,nr_inodes={min(pages - high_pages, pages // 2)}"
    return [
        ("rootfs", "/", "rootfs", f"rw,{size}"),
        ("proc", "/proc", "proc", "rw,relatime"),
        ("sysfs", "/sys", "sysfs", "rw,relatime"),
        ("dev", "/dev", "devtmpfs", f"rw,relatime,{size},mode=755"),
        ("debugfs", "/sys/kernel/debug", "debugfs", "rw,relatime"),
        ("tracefs", "/sys/kernel/tracing", "tracefs", "rw,relatime"),
    ]
