"""The start of the kernel log: what Linux says of the memory that it finds, until its first process runs.

The lines of ``setup_arch`` (arch/x86/kernel/setup.c, e820.c, arch/x86/mm/numa.c), ``free_area_init`` and
``mem_init_print_info`` (mm/page_alloc.c) and ``start_kernel`` that tell of memory, in their order, from the
machine that boots. Lines about devices, clocks, ACPI, CPU features and the text of SRAT are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kmemd.machine import Machine
from kmemd.mm import page_poison, pti
from kmemd.mm.init_mm import IMAGE, rodata_enabled
from kmemd.mm.layout import MAX_LOW_PFN_32, STRUCT_PAGE_SIZE
from kmemd.mm.mmzone_layout import NodeLayout, ZoneLayout
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import KERN_DEBUG, KERN_INFO, KERN_NOTICE, KERN_WARNING
from kmemd.mm.setup import INITRD_PAGES, KERNEL_IMAGES, BootMemory, HashTable
from kmemd.mm.units import MIB, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.zone_sizes import zone_limits

Lines = Iterator[tuple[int, str]]
SWAPACCOUNT = (
    "The swapaccount=0 commandline option is deprecated in favor of configuring swap control via cgroupfs. "
    "Please report your usecase to linux-mm@kvack.org if you depend on this functionality."
)

PAGE_KB = PAGE_SIZE >> 10
MAX_ARCH_PFN = {"x86_64": 1 << 34, "i386": 1 << 20}
LOW_4G_PFN = 1 << 20
SECTION_PAGES = {"x86_64": 128 * MIB // PAGE_SIZE, "i386": 64 * MIB // PAGE_SIZE}
VMALLOC_TABLES = {"x86_64": 64, "i386": 0}
"""Page tables of the vmalloc area that are made before the free pages are counted (preallocate_vmalloc_pages)."""
ALTERNATIVES_KB = {"x86_64": 16, "i386": 12}
"""Notes on instructions that depend on the number of CPUs, freed when that is known."""
INIT_KB = {"x86_64": 796, "i386": 372}
GAPS_KB = {"x86_64": (("text/rodata", 2040), ("rodata/data", 312)), "i386": ()}
"""Init code and the gaps between the captured kernels' sections."""
READ_ONLY = {
    "x86_64": ("the kernel read-only data", IMAGE["x86_64"][1][1] + 2 * MIB - 1 & -2 * MIB),
    "i386": ("kernel text and read-only data", IMAGE["i386"][0][1]),
}
"""From _text to the end of constants, which have whole large pages on x86_64 (``mark_rodata_ro``)."""


def setup_arch(machine: Machine, cmdline: CommandLine, memory: BootMemory) -> Lines:
    """From the first line to the zones."""
    isolation = pti.check_boottime_disable(machine.arch, machine.cpu_model.bugs, cmdline)
    yield KERN_NOTICE, machine.banner
    if machine.arch == "x86_64":
        yield KERN_INFO, f"Command line: {cmdline.text}"
    yield KERN_INFO, "BIOS-provided physical RAM map:"
    yield from _firmware_map(machine)
    if "nx" in machine.cpu_flags.split():
        yield KERN_INFO, "NX (Execute Disable) protection: active"
    else:
        yield KERN_NOTICE, "Notice: NX (Execute Disable) protection missing in CPU!"
    yield KERN_DEBUG, "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved"
    yield KERN_DEBUG, "e820: remove [mem 0x000a0000-0x000fffff] usable"
    yield from _last_pfns(machine.arch, memory)
    if isolation.why:
        yield KERN_INFO, isolation.why
    yield from (_highmem(memory) if machine.arch == "i386" else _numa(memory))
    yield from _zones(machine.arch, memory)
    yield KERN_INFO, f"smpboot: Allowing {machine.cpus} CPUs, 0 hotplug CPUs"


def _firmware_map(machine: Machine) -> Lines:
    """A twin's is what its iomem shows: memory in pieces, which the firmware told of in one."""
    pieces: list[tuple[int, int, str]] = []
    for entry in machine.e820:
        start = entry.start
        if pieces and pieces[-1][1:] == (start, entry.kind):
            start = pieces.pop()[0]
        pieces.append((start, entry.end, entry.kind))
    for start, end, kind in pieces:
        yield KERN_INFO, f"BIOS-e820: {_mem(start, end)} {kind}"


def _mem(start: int, end: int, width: int = 16) -> str:
    return f"[mem 0x{start:0{width}x}-0x{end - 1:0{width}x}]"


def _end_pfn(memory: BootMemory, limit: int = 1 << 52) -> int:
    ends = [high for node in memory.nodes for low, high in memory.memblock.node_pfn_ranges(node.nid) if low < limit]
    return min(max(ends), limit)


def _last_pfns(arch: str, memory: BootMemory) -> Lines:
    """The end of memory, and again the end of what lies below 4 GiB if there is more (e820_end_pfn)."""
    last = _end_pfn(memory)
    for pfn in (last, _end_pfn(memory, LOW_4G_PFN)) if last > LOW_4G_PFN else (last,):
        yield KERN_INFO, f"last_pfn = {pfn:#x} max_arch_pfn = {MAX_ARCH_PFN[arch]:#x}"


def _highmem(memory: BootMemory) -> Lines:
    last = _end_pfn(memory)
    low = min(last, MAX_LOW_PFN_32)
    yield KERN_NOTICE, f"{(last - low) >> (20 - PAGE_SHIFT)}MB HIGHMEM available."
    yield KERN_NOTICE, f"{low >> (20 - PAGE_SHIFT)}MB LOWMEM available."
    yield KERN_INFO, f"  mapped low ram: 0 - {low << PAGE_SHIFT:08x}"
    yield KERN_INFO, f"  low ram: 0 - {low << PAGE_SHIFT:08x}"


def _numa(memory: BootMemory) -> Lines:
    if len(memory.nodes) == 1:
        yield KERN_INFO, "No NUMA configuration found"
        yield KERN_INFO, f"Faking a node at {_mem(0, _end_pfn(memory) << PAGE_SHIFT)}"
    block = memory.memblock
    for node in memory.nodes:
        for data in (region for region in block.reserved if region.owner == "node data"):
            if any(own.start <= data.start < own.end for own in block.memory if own.nid == node.nid):
                yield KERN_INFO, f"NODE_DATA({node.nid}) allocated {_mem(data.start, data.end, 0)}"


def _zones(arch: str, memory: BootMemory) -> Lines:
    """free_area_init."""
    names = [zone.name for zone in memory.nodes[0].zones]
    yield KERN_INFO, "Zone ranges:"
    for name, (low, high) in zip(names, zone_limits(arch, _end_pfn(memory)), strict=False):
        low = max(low, 1)  # the first page is the BIOS'
        text = _mem(low << PAGE_SHIFT, high << PAGE_SHIFT) if low < high else "empty"
        yield KERN_INFO, f"  {name:<8} {text}"
    yield KERN_INFO, "Movable zone start for each node"
    for node in memory.nodes:
        for zone in node.zones:
            if zone.name == "Movable" and zone.spanned:
                yield KERN_INFO, f"  Node {node.nid}: 0x{zone.start_pfn << PAGE_SHIFT:016x}"
    yield KERN_INFO, "Early memory node ranges"
    ranges = {node.nid: _merged(memory.memblock.node_pfn_ranges(node.nid)) for node in memory.nodes}
    for low, high, nid in sorted((low, high, nid) for nid, own in ranges.items() for low, high in own):
        yield KERN_INFO, f"  node {nid:3}: {_mem(low << PAGE_SHIFT, high << PAGE_SHIFT)}"
    for nid, own in ranges.items():
        if own:
            where = _mem(own[0][0] << PAGE_SHIFT, own[-1][1] << PAGE_SHIFT)
            yield KERN_INFO, f"Initmem setup node {nid} {where}"
        else:
            yield KERN_INFO, f"Initmem setup node {nid} as memoryless"
    yield from _unavailable(SECTION_PAGES[arch], memory.nodes, ranges)


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch, as one: a twin's are cut at the kernel image."""
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if merged and merged[-1][1] == low:
            low = merged.pop()[0]
        merged.append((low, high))
    return merged


def _unavailable(section: int, nodes: Sequence[NodeLayout], ranges: dict[int, list[tuple[int, int]]]) -> Lines:
    """Holes that have a struct page because their section holds memory (memmap_init, init_unavailable_range)."""
    pieces = [
        (max(low, zone.start_pfn), min(high, zone.start_pfn + zone.spanned), zone)
        for node in nodes
        for zone in node.zones
        for low, high in ranges[node.nid]
        if zone.start_pfn < high and low < zone.start_pfn + zone.spanned
    ]
    mapped = {n for own in ranges.values() for low, high in own for n in range(low // section, -(-high // section))}
    done = 0
    zone = nodes[0].zones[0]
    for low, high, zone in sorted(pieces, key=lambda piece: piece[0]):
        yield from _hole(done, low, section, mapped, zone)
        done = high
    yield from _hole(done, -(-done // section) * section, section, mapped, zone)


def _hole(low: int, high: int, section: int, mapped: set[int], zone: ZoneLayout) -> Lines:
    pages = 0
    while low < high:
        end = min(high, (low // section + 1) * section)
        pages += end - low if low // section in mapped else 0
        low = end
    if pages:
        yield KERN_INFO, f"On node {zone.nid}, zone {zone.name}: {pages} pages in unavailable ranges"


def mm_init(
    machine: Machine,
    cmdline: CommandLine,
    memory: BootMemory,
    zonelists: Sequence[Sequence[int]],
    cma_pages: int = 0,
) -> Lines:
    """From the zonelists to the memory that the page allocator starts with, which ``cma_pages`` are no part of yet."""
    zones = [zone for node in memory.nodes for zone in node.zones]
    if machine.arch == "x86_64":
        for nid, order in enumerate(zonelists):
            yield KERN_INFO, f"Fallback order for Node {nid}: " + "".join(f"{other} " for other in order)
    total = sum(_usable(machine.arch, zone) for zone in zones)
    yield KERN_INFO, f"Built {len(memory.nodes)} zonelists, mobility grouping on.  Total pages: {total}"
    if machine.arch == "x86_64":
        kinds = [zone.name for node in memory.nodes for zone in node.zones if zone.present and zone.name != "Movable"]
        names = [zone.name for zone in memory.nodes[0].zones]
        yield KERN_INFO, f"Policy zone: {max(kinds, key=names.index)}"
    yield KERN_NOTICE, f"Kernel command line: {cmdline.text}"
    if not cmdline.flag("swapaccount", True):
        yield KERN_WARNING, SWAPACCOUNT
    if machine.crng_ready(cmdline):
        yield KERN_NOTICE, "random: crng init done"
    for table in memory.hash_tables:
        if table.early and table.name == "stackdepot":
            yield from page_poison.lines(cmdline)
        if table.early:
            yield KERN_INFO, _hash_table(table, "linear")
    yield KERN_INFO, _memory(machine.arch, memory, zones, cma_pages)
    if pti.check_boottime_disable(machine.arch, machine.cpu_model.bugs, cmdline).enabled:
        yield KERN_INFO, f"{pti.TITLE}enabled"


def _usable(arch: str, zone: ZoneLayout) -> int:
    """What free_area_init_core thinks a zone has, before anything is freed: without its memory map.

    On x86_64 the DMA zone is also without what the first MiB reserves (memblock_find_dma_reserve).
    """
    if zone.name == "HighMem":
        return zone.present
    pages = zone.present if zone.spanned > zone.present + (zone.present >> 4) else zone.spanned
    usable = zone.present - -(-pages * STRUCT_PAGE_SIZE[arch] // PAGE_SIZE)
    reserved = zone.present - zone.managed if arch == "x86_64" and zone.name == "DMA" else 0
    return usable - reserved


def _hash_table(table: HashTable, place: str) -> str:
    order = max(0, (table.size // PAGE_SIZE).bit_length() - 1)
    return f"{table.name} hash table entries: {table.entries} (order: {order}, {table.size} bytes, {place})"


def _memory(arch: str, memory: BootMemory, zones: Sequence[ZoneLayout], cma_pages: int) -> str:
    """mem_init_print_info. Init code, initrd and areas of CMA are not free yet."""
    present = sum(zone.present for zone in zones) * PAGE_KB
    late, cma = sum(pages for _, pages in memory.late) + cma_pages, cma_pages * PAGE_KB
    given = (sum(zone.managed for zone in zones) - late) * PAGE_KB - ALTERNATIVES_KB[arch]
    free = given - VMALLOC_TABLES[arch] * PAGE_KB
    code, rodata, data, bss = ((last + 1 - start) >> 10 for _, start, last in KERNEL_IMAGES[arch].parts)
    high = sum(zone.managed for zone in zones if zone.name == "HighMem") * PAGE_KB
    return (
        f"Memory: {free}K/{present}K available ({code}K kernel code, {data}K rwdata, {rodata}K rodata, "
        f"{INIT_KB[arch]}K init, {bss}K bss, {present - given - cma}K reserved, {cma}K cma-reserved"
        + (f", {high}K highmem)" if arch == "i386" else ")")
    )


def kernel_init(machine: Machine, cmdline: CommandLine, memory: BootMemory) -> Lines:
    """The end of boot: the VFS' tables, the other CPUs, and what is given back; the search for pages that are writable
    and executable follows it, and then ``run_init``.
    """
    yield KERN_INFO, f"Freeing SMP alternatives memory: {ALTERNATIVES_KB[machine.arch]}K"
    nodes = len(memory.nodes)
    for table in memory.hash_tables:
        if not table.early:
            yield KERN_INFO, _hash_table(table, _late_place(table, nodes))
    yield KERN_INFO, f"smp: Brought up {_counted(nodes, 'node')}, {_counted(machine.cpus, 'CPU')}"
    yield KERN_INFO, f"Freeing initrd memory: {INITRD_PAGES[machine.arch] * PAGE_KB}K"
    if cmdline.get("page_owner") != "on":
        yield KERN_INFO, "page_owner is disabled"
    yield KERN_INFO, f"Freeing unused kernel image (initmem) memory: {INIT_KB[machine.arch]}K"
    if not rodata_enabled(cmdline):
        yield KERN_INFO, "Kernel memory protection disabled."
        return
    what, size = READ_ONLY[machine.arch]
    yield KERN_INFO, f"Write protecting {what}: {size >> 10}k"
    for name, size in GAPS_KB[machine.arch]:
        yield KERN_INFO, f"Freeing unused kernel image ({name} gap) memory: {size}K"


def run_init() -> Lines:
    """The last line of boot: the first process."""
    yield KERN_INFO, "Run /init as init process"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _late_place(table: HashTable, nodes: int) -> str:
    if nodes == 1:
        return "linear"
    return "vmalloc hugepage" if table.size // nodes >= 2 * MIB else "vmalloc"
