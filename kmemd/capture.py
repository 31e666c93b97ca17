"""Reads the ``/proc`` and ``/sys`` of a real machine: what a twin is made from.

Every file is optional but ``proc/zoneinfo`` or ``proc/meminfo``; what is missing, unreadable or unknown (fields of
newer kernels) is passed over, with a note where the twin differs for it. Nothing is written, nothing is guessed
silently: ``Capture.notes`` says what stands in for what.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kmemd.core.mmzone import MAX_ORDER
from kmemd.machine import DEFAULT_CMDLINE, Machine, MachineError, SwapDevice
from kmemd.machine_file import parse_cpu_list
from kmemd.mm.firmware import BIOS_EBDA, E820Entry, Resource, iomem_resources, pc_memory_map
from kmemd.mm.memblock import Memblock
from kmemd.mm.mmzone_layout import ZONE_NAMES, NodeLayout, ZoneLayout
from kmemd.mm.setup import KERNEL_IMAGES, SECTION_PAGES, BootMemory, NodeMemory, late_pages
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.mm.zone_sizes import ZoneSpan, nr_kernel_pages

LOW_HOLE = (BIOS_EBDA >> 12, 256)
"""PFNs between the BIOS data area and 1 MiB, which are no memory."""
_ZONE_LINE = re.compile(r"Node\s+(\d+), zone\s+(\S+)")
_TYPE_LINE = re.compile(r"Node\s+(\d+), zone\s+(\S+), type\s+(\S+)((?:\s+>?\d+)+)\s*$")
_IOMEM_LINE = re.compile(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$")


@dataclass
class ZoneState:
    """One zone of zoneinfo, and its free lists: ``free[migratetype][order]``, ``blocks[migratetype]``."""

    nid: int
    name: str
    fields: dict[str, int] = field(default_factory=dict)
    pcp_counts: dict[int, int] = field(default_factory=dict)
    pcp_high: dict[int, int] = field(default_factory=dict)
    pcp_batch: dict[int, int] = field(default_factory=dict)
    node_stats: dict[str, int] = field(default_factory=dict)
    protection: tuple[int, ...] = ()
    free: dict[str, list[int]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)

    @property
    def populated(self) -> bool:
        """Whether the zone has memory."""
        return self.fields.get("present", 0) > 0

    @property
    def pagesets(self) -> tuple[tuple[int, int], ...]:
        """``(high, batch)`` of each CPU's page lists."""
        return tuple((high, self.pcp_batch[cpu]) for cpu, high in sorted(self.pcp_high.items()))


@dataclass(frozen=True)
class SlabRow:
    """One cache of slabinfo. Objects and slabs are counts, sizes are bytes."""

    name: str
    active_objects: int
    objects: int
    size: int
    per_slab: int
    pages_per_slab: int
    active_slabs: int
    slabs: int


class Capture:
    """A folder that holds ``proc`` and ``sys``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        if not (folder / "proc").is_dir():
            raise MachineError(f"{folder}: no machine here: a folder with proc/ and sys/ is needed")

    def text(self, path: str) -> str | None:
        """A file's text, or None when it is missing, unreadable or write-only."""
        try:
            return (self.folder / path).read_bytes().decode("utf-8", "replace")
        except (OSError, ValueError):
            return None

    def note(self, text: str) -> None:
        """Remember what stands in for what, once."""
        if text not in self.notes:
            self.notes.append(text)

    @cached_property
    def arch(self) -> str:
        """ "i386" when there is high memory, else "x86_64"."""
        zones = (self.text("proc/zoneinfo") or "") + (self.text("proc/buddyinfo") or "")
        return "i386" if "HighMem" in zones else "x86_64"

    @cached_property
    def zones(self) -> list[ZoneState]:
        """All zones in the order of zoneinfo, with their free lists."""
        text = self.text("proc/zoneinfo")
        if text is None:
            return []
        zones = list(parse_zoneinfo(text))
        unknown = [zone for zone in zones if zone.name not in ZONE_NAMES[self.arch]]
        for zone in unknown:
            if zone.populated:
                self.note(f"node {zone.nid} zone {zone.name} is not modelled and left out")
        zones = [zone for zone in zones if zone.name in ZONE_NAMES[self.arch]]
        self._read_free_lists(zones)
        return zones

    def _read_free_lists(self, zones: list[ZoneState]) -> None:
        by_name = {(zone.nid, zone.name): zone for zone in zones}
        _parse_pagetypeinfo(self.text("proc/pagetypeinfo") or "", by_name)
        totals = parse_buddyinfo(self.text("proc/buddyinfo") or "")
        for key, zone in by_name.items():
            if not zone.populated:
                continue
            counts = totals.get(key)
            if zone.free:
                if counts is not None:
                    _reconcile(zone, counts)
            elif counts is not None:
                zone.free["Movable"] = counts
                self.note("proc/pagetypeinfo: not readable: all free blocks of buddyinfo count as Movable")
            else:
                self.note("proc/buddyinfo: not readable: free pages come as one run per zone")

    @cached_property
    def slabs(self) -> list[SlabRow]:
        """slabinfo, in its order (newest cache first)."""
        text = self.text("proc/slabinfo")
        if text is None:
            self.note("proc/slabinfo: not readable: the slab caches are those of a fresh boot")
        return list(parse_slabinfo(text or ""))

    @cached_property
    def meminfo(self) -> dict[str, int]:
        """meminfo in kB."""
        fields = (line.partition(":") for line in (self.text("proc/meminfo") or "").splitlines())
        return {name: int(rest.split()[0]) for name, _, rest in fields if rest.split()[:1]}

    @cached_property
    def cpus(self) -> int:
        """Number of CPUs."""
        online = self.text("sys/devices/system/cpu/online")
        if online:
            return len(parse_cpu_list(online))
        lines = (self.text("proc/cpuinfo") or "").splitlines()
        count = sum(line.startswith("processor") for line in lines)
        if not count:
            lines = (self.text("proc/stat") or "").splitlines()
            count = sum(re.match(r"cpu\d", line) is not None for line in lines)
        return count or 1

    @cached_property
    def node_ids(self) -> list[int]:
        """Nodes of zoneinfo and of sysfs."""
        nodes = self.folder / "sys/devices/system/node"
        found = {int(path.name[4:]) for path in nodes.glob("node[0-9]*")} if nodes.is_dir() else set()
        return sorted(found | {zone.nid for zone in self.zones}) or [0]

    def node_cpus(self, nid: int) -> tuple[int, ...]:
        """The node's CPUs; all of them on node 0 where sysfs has no nodes."""
        text = self.text(f"sys/devices/system/node/node{nid}/cpulist")
        if text is None:
            self.note("sys/devices/system/node: missing: all CPUs are on node 0")
            return tuple(range(self.cpus)) if nid == self.node_ids[0] else ()
        return tuple(cpu for cpu in parse_cpu_list(text) if cpu < self.cpus)

    def node_distance(self, nid: int) -> tuple[int, ...]:
        """The node's distance to each node."""
        text = self.text(f"sys/devices/system/node/node{nid}/distance")
        distance = tuple(int(word) for word in (text or "").split())
        if len(distance) == len(self.node_ids):
            return distance
        return tuple(10 if other == nid else 20 for other in self.node_ids)

    @cached_property
    def iomem(self) -> tuple[Resource, ...]:
        """The resource tree; empty when the addresses were hidden from the reader."""
        resources = []
        for line in (self.text("proc/iomem") or "").splitlines():
            match = _IOMEM_LINE.match(line)
            if match:
                indent, start, last, name = match.groups()
                resources.append(Resource(int(start, 16), int(last, 16), name, len(indent) // 2))
        return tuple(resources) if any(resource.last for resource in resources) else ()

    @cached_property
    def ram_pfns(self) -> list[tuple[int, int]]:
        """System RAM of iomem in whole pages."""
        ranges = [
            (-(-resource.start >> 12), (resource.last + 1) >> 12)
            for resource in self.iomem
            if resource.name == "System RAM" and resource.depth == 0
        ]
        if not ranges:
            self.note("proc/iomem: not readable: each zone's memory is one run from its start")
        return [(max(lo, 1), hi) for lo, hi in ranges]

    @cached_property
    def swap(self) -> tuple[SwapDevice, ...]:
        """The active swap areas."""
        devices = []
        for line in (self.text("proc/swaps") or "").splitlines()[1:]:
            words = line.split()
            if len(words) == 5:
                size = int(words[2]) + 4 << 10  # with the header page, which swapon does not count
                devices.append(SwapDevice(words[0], size, words[1], int(words[4])))
        return tuple(devices)

    @cached_property
    def sysctls(self) -> dict[str, str]:
        """Readable files below proc/sys/vm, sys/kernel/mm by path, to be written to the twin after boot."""
        values = {}
        for top in ("proc/sys/vm", "sys/kernel/mm"):
            for path in sorted((self.folder / top).rglob("*")):
                name = str(path.relative_to(self.folder))
                if path.is_file() and not path.is_symlink():
                    text = self.text(name)
                    if text is not None and len(text) < 4096:
                        values[name] = text
        return values

    @cached_property
    def cmdline(self) -> str:
        """The kernel command line."""
        text = self.text("proc/cmdline")
        if text is None:
            self.note("proc/cmdline: not readable: the built-in command line is used")
        return (text or DEFAULT_CMDLINE).strip()

    @cached_property
    def boot_time_s(self) -> int | None:
        """btime of /proc/stat."""
        match = re.search(r"^btime (\d+)", self.text("proc/stat") or "", re.M)
        return int(match.group(1)) if match else None

    @cached_property
    def uptime_ns(self) -> int:
        """How long the machine had been up."""
        words = (self.text("proc/uptime") or "0").split()
        return int(float(words[0]) * 1e9)

    def note_memory_beyond_zones(self) -> None:
        """Say so when meminfo counts memory that no zone manages, as kernels do that initialise memory lazily."""
        managed = sum(zone.fields.get("managed", 0) for zone in self.zones) * KIB_PER_PAGE
        total = self.meminfo.get("MemTotal", managed)
        if total > managed * 1.01:
            self.note(f"proc/meminfo: {total - managed} kB of MemTotal are in no zone yet: the twin has {managed} kB")

    def present_ranges(self, zone: ZoneState) -> list[tuple[int, int]]:
        """Where the zone's present pages are: iomem's memory inside its span, cut or filled to the count."""
        start, present = zone.fields.get("start_pfn", 0), zone.fields["present"]
        end = start + zone.fields["spanned"]
        ranges = [(max(lo, start), min(hi, end)) for lo, hi in self.ram_pfns]
        ranges = [(lo, hi) for lo, hi in ranges if lo < hi]
        total = sum(hi - lo for lo, hi in ranges)
        if total < present:
            return _without_map(start, present)
        return _trim(ranges, total - present)

    def boot_memory(self) -> BootMemory:
        """Zones with the captured figures; which pages are reserved follows the kernel image, then the zone's end."""
        memblock = Memblock()
        nodes, spans = [], []
        for nid in self.node_ids:
            layouts = {zone.name: self._layout(memblock, zone) for zone in self.zones if zone.nid == nid}
            zones = tuple(layouts.get(name, ZoneLayout(nid, name)) for name in ZONE_NAMES[self.arch])
            nodes.append(NodeLayout(nid, self.node_cpus(nid), self.node_distance(nid), zones))
            spans.append([ZoneSpan(zone.name, zone.start_pfn, zone.spanned, zone.present) for zone in zones])
        kernel_pages, _ = nr_kernel_pages(self.arch, spans)
        return BootMemory(memblock, tuple(nodes), (), kernel_pages, late_pages(self.arch, memblock))

    def _layout(self, memblock: Memblock, zone: ZoneState) -> ZoneLayout:
        if not zone.populated:
            return ZoneLayout(zone.nid, zone.name)
        ranges = self.present_ranges(zone)
        for lo, hi in ranges:
            memblock.add(lo << 12, hi << 12, zone.nid)
        start, end = zone.fields.get("start_pfn", ranges[0][0]), ranges[-1][1]
        present, managed = zone.fields["present"], zone.fields["managed"]
        free = self._managed_ranges(ranges, present - managed)
        spanned = max(zone.fields["spanned"], end - start)
        for lo, hi in _gaps(ranges, free):
            memblock.reserve(lo << 12, hi << 12, "boot")
        online = self.online_ranges(zone, memblock.online_pfns(start, start + spanned, zone.nid, SECTION_PAGES))
        return ZoneLayout(zone.nid, zone.name, start, spanned, present, managed, tuple(free), online)

    def online_ranges(self, zone: ZoneState, sections: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """The zone's ranges with struct pages, cut to as many page blocks as pagetypeinfo counts.

        Newer kernels initialise struct pages late: what is not initialised counts nowhere.
        """
        blocks, size = sum(zone.blocks.values()), 1 << self.pageblock_order
        counted = sum(-(-(hi - lo) // size) for lo, hi in sections)
        if not blocks or counted <= blocks:
            return sections
        kept: list[tuple[int, int]] = []
        for lo, hi in sections:
            hi = min(hi, lo + blocks * size)
            blocks -= -(-(hi - lo) // size)
            if lo < hi:
                kept.append((lo, hi))
        return tuple(kept)

    @property
    def pageblock_order(self) -> int:
        """Order of a page block: that of a huge page."""
        match = re.search(r"^Page block order: (\d+)", self.text("proc/pagetypeinfo") or "", re.M)
        return int(match.group(1)) if match else 9 if self.arch == "x86_64" else 10

    def _managed_ranges(self, ranges: list[tuple[int, int]], reserved: int) -> list[tuple[int, int]]:
        """Take ``reserved`` pages out: low memory and the kernel image first, then from the end."""
        low = [(0, 256)] if reserved else []
        image = [(start >> 12, end >> 12) for start, end in KERNEL_IMAGES[self.arch].kept]
        for lo, hi in low + image:
            taken = [(max(lo, start), min(hi, end)) for start, end in ranges]
            taken = [(start, end) for start, end in taken if start < end]
            count = sum(end - start for start, end in taken)
            if count and count <= reserved:
                ranges = _gaps(ranges, taken)
                reserved -= count
        return _trim(ranges, reserved)


def _without_map(start: int, present: int) -> list[tuple[int, int]]:
    """A zone's memory when there is no map of it: one run, but for the hole that every PC has below 1 MiB."""
    if not start < LOW_HOLE[0] or start + present <= LOW_HOLE[0]:
        return [(start, start + present)]
    return [(start, LOW_HOLE[0]), (LOW_HOLE[1], LOW_HOLE[1] + present - (LOW_HOLE[0] - start))]


def _trim(ranges: list[tuple[int, int]], pages: int) -> list[tuple[int, int]]:
    """The ranges without their last ``pages`` pages."""
    kept = list(ranges)
    while pages and kept:
        lo, hi = kept.pop()
        if hi - lo > pages:
            kept.append((lo, hi - pages))
            break
        pages -= hi - lo
    return kept


def _gaps(ranges: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of ``ranges`` is not in ``taken``; both ascending."""
    left = []
    for lo, hi in ranges:
        for start, end in taken:
            if end <= lo or start >= hi:
                continue
            if start > lo:
                left.append((lo, start))
            lo = max(lo, end)
        if lo < hi:
            left.append((lo, hi))
    return left


def parse_zoneinfo(text: str) -> Iterator[ZoneState]:
    """The zones of a zoneinfo text; fields of other kernels are kept under their names."""
    zone: ZoneState | None = None
    cpu, in_node_stats = -1, False
    for line in text.splitlines():
        match = _ZONE_LINE.match(line)
        if match:
            if zone is not None:
                yield zone
            zone = ZoneState(int(match.group(1)), match.group(2))
            cpu, in_node_stats = -1, False
            continue
        if zone is None:
            continue
        words = line.replace(":", " ").split()
        if line.strip() == "per-node stats":
            in_node_stats = True
        elif words[:2] == ["pages", "free"]:
            in_node_stats = False
            zone.fields["free"] = int(words[2])
        elif words[:1] == ["protection"]:
            zone.protection = tuple(int(word) for word in re.findall(r"\d+", line))
        elif len(words) == 2 and words[1].isdigit():
            name, number = words[0], int(words[1])
            if name == "cpu":
                cpu = number
            elif cpu >= 0 and name in ("count", "high", "batch"):
                {"count": zone.pcp_counts, "high": zone.pcp_high, "batch": zone.pcp_batch}[name][cpu] = number
            elif cpu < 0 or name == "start_pfn":
                (zone.node_stats if in_node_stats else zone.fields)[name] = number
    if zone is not None:
        yield zone


def parse_buddyinfo(text: str) -> dict[tuple[int, str], list[int]]:
    """Free blocks per order, by node and zone name."""
    zones = {}
    for line in text.splitlines():
        match = _ZONE_LINE.match(line)
        if match:
            counts = [int(word) for word in line[match.end() :].split()][:MAX_ORDER]
            zones[int(match.group(1)), match.group(2)] = counts + [0] * (MAX_ORDER - len(counts))
    return zones


def _parse_pagetypeinfo(text: str, zones: dict[tuple[int, str], ZoneState]) -> None:
    """Fill in ``free`` and ``blocks``. A count such as ">100000" counts as its number."""
    names: list[str] = []
    for line in text.splitlines():
        match = _TYPE_LINE.match(line)
        if match:
            zone = zones.get((int(match.group(1)), match.group(2)))
            if zone is not None:
                counts = [int(word.lstrip(">")) for word in match.group(4).split()][:MAX_ORDER]
                zone.free[match.group(3)] = counts + [0] * (MAX_ORDER - len(counts))
        elif line.startswith("Number of blocks"):
            names = line.split()[4:]
        elif names and (match := _ZONE_LINE.match(line)):
            zone = zones.get((int(match.group(1)), match.group(2)))
            if zone is not None:
                zone.blocks = dict(zip(names, map(int, line[match.end() :].split()), strict=False))


def _reconcile(zone: ZoneState, counts: list[int]) -> None:
    """Make the free lists add up to buddyinfo, which was read at another moment: Movable takes the difference."""
    for order, wanted in enumerate(counts):
        difference = wanted - sum(lists[order] for lists in zone.free.values())
        for name in ("Movable", "Unmovable", "Reclaimable", *zone.free):
            if difference and name in zone.free:
                change = max(difference, -zone.free[name][order])
                zone.free[name][order] += change
                difference -= change


def parse_slabinfo(text: str) -> Iterator[SlabRow]:
    """The rows of a slabinfo text."""
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 14 and words[1].isdigit() and not line.startswith("#"):
            active, objects, size, per_slab, pages = (int(word) for word in words[1:6])
            yield SlabRow(words[0], active, objects, size, per_slab, pages, int(words[-3]), int(words[-2]))


def read_machine(folder: Path, *, shape_only: bool) -> Machine:
    """The machine of a captured folder. Raises MachineError when there is nothing to go by."""
    capture = Capture(folder)
    if not any(zone.populated for zone in capture.zones):
        return _from_meminfo(capture)
    capture.note_memory_beyond_zones()
    nodes = []
    memory = capture.boot_memory().memblock.memory
    for nid in capture.node_ids:
        ranges = tuple((region.start, region.end) for region in memory if region.nid == nid)
        nodes.append(NodeMemory(nid, ranges, capture.node_cpus(nid), capture.node_distance(nid)))
    e820 = tuple(E820Entry(region.start, region.end, "usable") for region in memory)
    return Machine(
        name=str(folder),
        arch=capture.arch,
        cpus=capture.cpus,
        nodes=tuple(nodes),
        e820=e820,
        iomem=capture.iomem or iomem_resources(capture.arch, e820),
        swap=capture.swap,
        cmdline=capture.cmdline,
        boot_time_s=capture.boot_time_s or Machine.boot_time_s,
        description=f"twin of {folder}",
        capture=capture,
        shape_only=shape_only,
        notes=tuple(capture.notes),
    )


def _from_meminfo(capture: Capture) -> Machine:
    """Without zoneinfo: a machine of the same size, laid out by the model's own rules."""
    total = capture.meminfo.get("MemTotal")
    if not total:
        raise MachineError(f"{capture.folder}: neither proc/zoneinfo nor proc/meminfo tells of any memory")
    size = max(64, -(-total // 1024)) << 20
    e820 = pc_memory_map(capture.arch, size)
    capture.note("proc/zoneinfo: not readable: zones and free lists are those of a fresh boot of this size")
    return Machine.of_memory(
        str(capture.folder),
        capture.arch,
        capture.cpus,
        (size,),
        (tuple(range(capture.cpus)),),
        ((10,),),
        cmdline=capture.cmdline,
        swap=capture.swap,
        e820=e820,
        notes=tuple(capture.notes),
    )
