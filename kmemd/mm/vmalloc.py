"""vmalloc, vmap and ioremap: memory that is contiguous in the kernel's address space only (mm/vmalloc.c).

Areas with a guard page, taken from below; lazily freed ranges that a purge gives back when more than
``lazy_max_pages`` have gathered or space runs out; pages in bulk, the array of page pointers itself from the
slab allocator or, above a page, from vmalloc; huge mappings where the caller allows them.
What takes long is a generator of slices (``alloc_steps``, ``vfree_steps``); an area's pages come and go in between,
and it is told which node they are on once it is complete, as in Linux.

Left out: the page tables themselves, vm_map_ram's per-CPU blocks, KASAN, deferred vfree from interrupts;
blocks of a huge mapping are not split, and are freed whole.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.direct_map import LARGE_PAGE
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.layout import X86_64, Layout
from kmemd.mm.leak_observer import LeakObserver, NullObserver
from kmemd.mm.mmzone import Zone
from kmemd.mm.pace import Pace, pieces, room
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.patience import attempt
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import KERN_ERR, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import NUMA_NO_NODE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmap_area import FreeSpace, Ranges
from kmemd.steps import Steps, finish

VM_IOREMAP, VM_ALLOC, VM_MAP, VM_USERMAP, VM_DMA_COHERENT = 0x1, 0x2, 0x4, 0x8, 0x10
PMD_ORDER = 9
PMD_SIZE = PAGE_SIZE << PMD_ORDER
IOREMAP_MAX_SHIFT = {"x86_64": 30, "i386": 22}
LAZY_UNIT_PAGES = (32 << 20) >> PAGE_SHIFT
VM_STRUCT_SIZE = 64
VM_STRUCT_ADDR, VM_STRUCT_PAGES = 8, 32
VM_STRUCT_SIZE_32 = 36
VM_STRUCT_ADDR_32, VM_STRUCT_PAGES_32 = 4, 16
FRAMES = ("__vmalloc_node_range", "__vmalloc_node")
PERCPU_CALLER = "pcpu_get_vm_areas"
AREA_FRAMES = ("__get_vm_area_node", *FRAMES)

SLICE_PAGES = 512
"""Pages that an area gets or gives back before others may get in."""
FREED_PAGES = 1 << 13
COUNTED_BLOCKS = 1 << 15
SLICE_RANGES = 128
"""Lazily freed ranges that a purge gives back before others may get in."""

PFNs = npt.NDArray[np.int64]


class SlabAllocator(Protocol):
    """Where an area's ``vm_struct`` and its page array come from."""

    def kmalloc(self, size: int, gfp: int, nid: int) -> int:
        """The address of an object. ENOMEM."""

    def kfree(self, address: int) -> None:
        """Give it back."""


@dataclass(frozen=True)
class Request:
    """How an area is wanted.

    ``align`` in bytes; ``function`` is the entry point that the caller used ("" for ``__vmalloc_node`` itself);
    ``interleave``: the nodes that an interleaving policy spreads the pages over, as at boot; ``module``: where code
    goes (``module_alloc``).
    """

    gfp: int = g.GFP_KERNEL
    nid: int = NUMA_NO_NODE
    align: int = 1
    function: str = "vmalloc"
    interleave: tuple[int, ...] = ()
    module: bool = False

    @property
    def frames(self) -> tuple[str, ...]:
        """The functions in here that the entry point calls."""
        return FRAMES[:1] if self.module else FRAMES


@dataclass
class VmStruct:
    """One area. ``size`` includes the guard page; ``caller`` is the frame that asked, and what it called.

    ``struct`` and ``page_array`` are the addresses of the ``vm_struct`` and of the array of page pointers,
    0 when they have none; ``blocks`` are the first PFNs of blocks of ``order``.
    """

    address: int
    size: int
    flags: int
    caller: tuple[str, str]
    struct: int = 0
    phys: int | None = None
    order: int = 0
    blocks: PFNs = field(default_factory=lambda: np.zeros(0, np.int64))
    page_array: int = 0
    node_pages: dict[int, int] = field(default_factory=dict)
    charged: bool = False

    @property
    def end(self) -> int:
        """The first byte behind the area and its guard page."""
        return self.address + self.size

    @property
    def nr_pages(self) -> int:
        """Pages that were allocated for the area."""
        return len(self.blocks) << self.order


class Vmalloc:
    """The vmalloc area of one kernel.

    ``observer`` hears of areas; ``slab`` gives the descriptors (none: they take no memory); ``show_pointer``
    turns an address into ``%p``; ``area_ns`` and ``page_ns`` are
    what an area and a page of it cost in model time.

    Invariants: busy, lazily freed and free ranges are apart and together are the whole area; ``nr_pages`` is
    the sum of the areas' pages.
    """

    def __init__(
        self,
        layout: Layout,
        page_alloc: PageAllocator,
        zones: Sequence[Zone],
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        *,
        cpus: int = 1,
        slab: SlabAllocator | None = None,
        observer: LeakObserver | None = None,
        show_pointer: Callable[[int], str] = hex,
        area_ns: int = 0,
        page_ns: int = 0,
        preempt: Preempt | None = None,
        charged: Callable[[PFNs, int, int], None] = lambda pfns, order, sign: None,
    ) -> None:
        """``charged(blocks, order, sign)`` hears of blocks that come and go and may be charged to control groups."""
        self._charged = charged
        self._layout = layout
        self._page_alloc = page_alloc
        self._zones = [zone for zone in zones if zone.managed]
        self._context = context
        self._depot = depot
        self._printk = printk
        self._dump_stack = dump_stack
        self._slab = slab
        self._observer: LeakObserver = observer or NullObserver()
        self._show_pointer = show_pointer
        self._area_ns, self._page_ns = area_ns, page_ns
        self._preempt = preempt
        self.lazy_max_pages = cpus.bit_length() * LAZY_UNIT_PAGES
        self.nr_lazy = 0
        self.nr_pages = 0
        self._lost_pages = 0
        self._free = FreeSpace(layout.vmalloc_start, layout.vmalloc_end)
        self._spaces = [(layout.vmalloc_start, layout.vmalloc_end)]
        if not layout.is_vmalloc_addr(layout.modules_start):
            self._spaces.append((layout.modules_start, layout.modules_end))
            self._free.release(*self._spaces[1])
        self.reserved: list[tuple[int, int]] = []
        """Ranges, with their guard pages, of modules' code that nobody loaded: it takes no memory."""
        self._lazy = Ranges()
        self._areas: dict[int, VmStruct] = {}
        self.tables: set[int] = set()
        """Regions that have a page table, by the number of the region: tables stay when areas go."""
        self._table_size = LARGE_PAGE[layout.arch]
        self.changed: dict[int, int] = {}
        """Bits of pages whose protection was changed (``InitMm.change``): an area's go with it."""
        self.version = 0
        """Grows whenever an area comes, is complete, or goes."""
        self.numa = layout.arch == X86_64

    # -- allocation ------------------------------------------------------------------------------------------

    def vmalloc(self, size: int, gfp: int = g.GFP_KERNEL, nid: int = NUMA_NO_NODE) -> int:
        """The address of ``size`` bytes, page-aligned. ENOMEM, EINVAL for a size of 0."""
        return self.alloc(size, gfp, nid).address

    def alloc(
        self,
        size: int,
        gfp: int = g.GFP_KERNEL,
        nid: int = NUMA_NO_NODE,
        *,
        align: int = 1,
        huge: bool = False,
        function: str = "vmalloc",
        interleave: Sequence[int] = (),
    ) -> VmStruct:
        """``alloc_steps`` in one go."""
        request = Request(gfp, nid, align, function, tuple(interleave))
        return finish(self.alloc_steps(size, request, huge=huge))

    def alloc_steps(self, size: int, request: Request, *, huge: bool = False) -> Steps[VmStruct]:
        """An area with pages (``__vmalloc_node_range``). ENOMEM, EINVAL for a size of 0.

        ``huge``: the caller allows PMD mappings (VM_ALLOW_HUGE_VMAP).
        """
        if size <= 0:
            function = request.function
            self._dump_stack.warn(FRAMES, f"{function} of {size} bytes")
            raise KernelError(errno.EINVAL, f"{function} of {size} bytes")
        if size >> PAGE_SHIFT > sum(zone.managed for zone in self._zones):
            self._warn_alloc(request.gfp, f"vmalloc error: size {size}, exceeds total pages")
            raise KernelError(errno.ENOMEM, f"{size} bytes are more than the memory of the machine")
        if huge and self._huge_fits(size, request.nid):
            try:
                whole = -(-size // PMD_SIZE) * PMD_SIZE
                wide = replace(request, align=max(request.align, PMD_SIZE))
                return (yield from self._alloc(whole, wide, PMD_ORDER))
            except KernelError:
                pass  # small pages are tried instead, as in Linux
        return (yield from self._alloc(size, request, 0))

    def _huge_fits(self, size: int, nid: int) -> bool:
        nodes = len({zone.nid for zone in self._zones}) if nid == NUMA_NO_NODE else 1
        return self._layout.arch == X86_64 and size // nodes >= PMD_SIZE

    def _alloc(self, size: int, request: Request, order: int) -> Steps[VmStruct]:
        stack = self._stack(request.frames, request.function)
        try:
            wanted = (request.align, request.gfp, request.nid, request.function)
            area = self._get_vm_area(size, VM_ALLOC, *wanted, module=request.module)
        except KernelError:
            self._warn_alloc(request.gfp, f"vmalloc error: size {size}, vm_struct allocation failed")
            raise
        try:
            yield from self._populate(area, request, order, stack)
        except KernelError:
            yield from self._remove(area)
            raise
        self._observer.vmalloc(area.address, -(-size // PAGE_SIZE) * PAGE_SIZE, area.struct, stack)
        return area

    def _populate(self, area: VmStruct, request: Request, order: int, stack: int) -> Steps[None]:
        """Page array and pages (``__vmalloc_area_node``). ENOMEM, with nothing kept but the area."""
        count = (area.size >> PAGE_SHIFT) - 1
        yield from self._make_page_array(area, count * self._layout.pointer_size, request)
        gfp = request.gfp | g.F.NOWARN
        if not gfp & (g.F.DMA | g.F.DMA32):
            gfp |= g.F.HIGHMEM
        area.order = order
        if order < PMD_ORDER:
            self._make_tables(area)
        yield from self._take_pages(area, gfp, count >> order, request, stack)
        if area.nr_pages < count:
            yield from self._drop_pages(area)
            raise KernelError(errno.ENOMEM, f"no memory for {count} pages of a vmalloc area")
        self.version += 1
        area.node_pages = yield from self._count_nodes(area)
        self._context.charge(self._area_ns + self._page_ns * count)

    def _make_page_array(self, area: VmStruct, size: int, request: Request) -> Steps[None]:
        nested = request.gfp & g.GFP_RECLAIM_MASK | g.F.ZERO
        if size > PAGE_SIZE:
            array = yield from self.alloc_steps(size, Request(nested, request.nid, function=area.caller[1]))
            area.page_array = array.address
        elif self._slab is not None:
            self._context.stack = self._stack(request.frames, area.caller[1])
            area.page_array = self._slab.kmalloc(size, nested, request.nid)
        if area.struct:
            offset = VM_STRUCT_PAGES if self._layout.pointer_size == 8 else VM_STRUCT_PAGES_32
            self._observer.store(area.struct + offset, area.page_array)

    def _take_pages(self, area: VmStruct, gfp: int, count: int, request: Request, stack: int) -> Steps[None]:
        """``count`` blocks for an area; fewer when memory ran out (``vm_area_alloc_pages``)."""
        shares = [(request.nid, count)]
        nodes = request.interleave
        if len(nodes) > 1 and request.nid == NUMA_NO_NODE:
            each, more = divmod(count, len(nodes))
            shares = [(node, each + (index < more)) for index, node in enumerate(nodes)]
        blocks = room(count, np.int64)
        pace = Pace(lambda: self._page_alloc.slow_paths, SLICE_PAGES >> area.order)
        got = 0
        for node, share in shares:
            end = got + share
            while got < end:
                want = pace.next(end - got)
                self._context.stack = stack
                take = partial(self._page_alloc.alloc_pages_bulk, gfp, area.order, want, node)
                found, again = attempt(self._page_alloc, take)
                blocks[got : got + len(found)] = found
                got += len(found)
                area.blocks = blocks[:got]
                self.nr_pages += len(found) << area.order
                if gfp & g.F.ACCOUNT and request.function:
                    self._charged(found, area.order, 1)
                    area.charged = True
                if len(found) < want and not again:
                    break
                if got < end:
                    yield

    def _count_nodes(self, area: VmStruct) -> Steps[dict[int, int]]:
        """Pages of an area per node."""
        counts: dict[int, int] = {}
        for part in pieces(area.blocks, COUNTED_BLOCKS):
            for zone in self._zones:
                inside = (part >= zone.start_pfn) & (part < zone.start_pfn + zone.spanned)
                found = int(np.count_nonzero(inside)) << area.order
                if found:
                    counts[zone.nid] = counts.get(zone.nid, 0) + found
            if len(part) == COUNTED_BLOCKS:
                yield
        return dict(sorted(counts.items()))

    def _get_vm_area(
        self, size: int, flags: int, align: int, gfp: int, nid: int, function: str, *, module: bool = False
    ) -> VmStruct:
        """A descriptor and a range with its guard page (``__get_vm_area_node``). ENOMEM."""
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        if flags & VM_IOREMAP:
            top = IOREMAP_MAX_SHIFT[self._layout.arch]
            align = 1 << min(max((size - 1).bit_length(), PAGE_SHIFT), top)
        struct = self._make_struct(gfp, nid, function)
        size += PAGE_SIZE
        address = self._alloc_range(size, align, module=module)
        if address < 0:
            if self._slab is not None:
                self._slab.kfree(struct)
            if not gfp & g.F.NOWARN:
                text = f"vmap allocation for size {size} failed: use vmalloc=<size> to increase size"
                self._printk.log(KERN_WARNING, text)
            raise KernelError(errno.ENOMEM, f"no room for {size} bytes in the vmalloc area")
        return self._insert(VmStruct(address, size, flags, (self._caller(), function), struct))

    def _insert(self, area: VmStruct) -> VmStruct:
        self._areas[area.address] = area
        self.version += 1
        if area.flags & (VM_MAP | VM_IOREMAP):
            self._make_tables(area)
        if area.struct:
            offset = VM_STRUCT_ADDR if self._layout.pointer_size == 8 else VM_STRUCT_ADDR_32
            self._observer.store(area.struct + offset, area.address)
        return area

    def _make_tables(self, area: VmStruct) -> None:
        """Note the tables that small pages of an area need (``vmap_small_pages_range_noflush``)."""
        last = area.end - PAGE_SIZE - 1
        self.tables.update(range(area.address // self._table_size, last // self._table_size + 1))
        self.version += 1

    def _make_struct(self, gfp: int, nid: int, function: str) -> int:
        if self._slab is None:
            return 0
        size = VM_STRUCT_SIZE if self._layout.pointer_size == 8 else VM_STRUCT_SIZE_32
        self._context.stack = self._stack(AREA_FRAMES, function)
        return self._slab.kmalloc(size, gfp & g.GFP_RECLAIM_MASK | g.F.ZERO, nid)

    def reserve_module(self, size: int) -> int:
        """A range for the code of a module that nobody loaded, with its guard page. ENOMEM."""
        address = self._alloc_range(size + PAGE_SIZE, PAGE_SIZE, module=True)
        if address < 0:
            raise KernelError(errno.ENOMEM, f"no room for {size} bytes of code")
        self.reserved.append((address, address + size + PAGE_SIZE))
        self.version += 1
        return address

    def _alloc_range(self, size: int, align: int, *, module: bool = False) -> int:
        """A free range, after a purge if need be; -1 when there is none (``alloc_vmap_area``)."""
        layout = self._layout
        low, high = (layout.modules_start, layout.modules_end) if module else self._spaces[0]
        align = max(align, PAGE_SIZE)
        address = self._free.allocate(size, align, low, high)
        if address < 0 and self.purge():
            address = self._free.allocate(size, align, low, high)
        return address

    def _stack(self, inner: tuple[str, ...], function: str) -> int:
        """The stack depot handle of frames in here, called through an entry point ("": called directly)."""
        return self._depot.extend(self._context.site, (*inner, function) if function else inner)

    def _caller(self) -> str:
        """The frame that called into vmalloc."""
        frames = self._depot.frames(self._context.site)
        return frames[0] if frames else ""

    # -- mappings without pages of their own -----------------------------------------------------------------

    def vmap(self, pfns: PFNs) -> int:
        """Map pages that the caller owns. ENOMEM."""
        size = len(pfns) << PAGE_SHIFT
        return self._get_vm_area(size, VM_MAP, 1, g.GFP_KERNEL, NUMA_NO_NODE, "vmap").address

    def ioremap(self, phys: int, size: int, *, function: str = "ioremap") -> int:
        """Map device memory; the address keeps the offset of ``phys`` in its page. ENOMEM, EINVAL."""
        if size <= 0 or phys < 0:
            raise KernelError(errno.EINVAL, f"ioremap of {size} bytes at {phys:#x}")
        offset = phys & (PAGE_SIZE - 1)
        area = self._get_vm_area(size + offset, VM_IOREMAP, 1, g.GFP_KERNEL, NUMA_NO_NODE, function)
        area.phys = phys - offset
        return area.address + offset

    def pcpu_get_vm_areas(self, offsets: Sequence[int], sizes: Sequence[int], align: int) -> list[int]:
        """The ranges of a percpu chunk, without guard pages: the last one at the top of the area, the others as far
        below it as ``offsets``, which ascend, say. ENOMEM.
        """
        last = self._free.allocate_top(sizes[-1], align, self._layout.vmalloc_end)
        places = [last - (offsets[-1] - offset) for offset in offsets[:-1]]
        for address, size in zip(places, sizes, strict=False):
            if last < 0 or self._free.allocate(size, PAGE_SIZE, address, address + size) < 0:
                raise KernelError(errno.ENOMEM, f"no room for {sum(sizes)} bytes of percpu memory")
        caller = (f"{PERCPU_CALLER}+0x0", "")
        for address, size in zip([*places, last], sizes, strict=True):
            struct = self._make_struct(g.GFP_KERNEL, NUMA_NO_NODE, PERCPU_CALLER)
            self._insert(VmStruct(address, size, VM_ALLOC, caller, struct))
        return [*places, last]

    # -- freeing ---------------------------------------------------------------------------------------------

    def vfree(self, address: int) -> None:
        """Give an area and its pages back. EFAULT and a warning when none begins there."""
        finish(self.vfree_steps(address))

    def vfree_steps(self, address: int) -> Steps[None]:
        """``vfree`` in slices."""
        self._might_sleep("mm/vmalloc.c:2858", "vfree")
        self._observer.free(address)
        area = self._find(address, "vfree")
        self._context.charge(self._area_ns + self._page_ns * area.nr_pages)
        failed = yield from self._drop_pages(area)
        yield from self._remove(area)
        if failed is not None:
            raise failed

    def vunmap(self, address: int, *, function: str = "vunmap") -> None:
        """Give a mapping back, not its pages: those of a vmalloc area, and the array of them, are lost for good.

        EFAULT and a warning when none begins there.
        """
        if function == "vunmap":
            self._might_sleep("mm/vmalloc.c:2879", "vunmap")
        area = self._find(address & PAGE_MASK if function == "iounmap" else address, function)
        self._lost_pages += area.nr_pages
        area.page_array = 0
        finish(self._remove(area))

    def iounmap(self, address: int) -> None:
        """Give back what ``ioremap`` returned."""
        self.vunmap(address, function="iounmap")

    def _might_sleep(self, where: str, function: str) -> None:
        if self._preempt is not None:
            self._preempt.might_sleep(where, function)

    def _find(self, address: int, function: str) -> VmStruct:
        if address & (PAGE_SIZE - 1):
            text = f"Trying to vfree() bad address ({self._show_pointer(address)})"
            self._dump_stack.warn(("__vunmap", function), text)
            raise KernelError(errno.EFAULT, f"{address:#x} is not page-aligned")
        area = self._areas.get(address)
        if area is None:
            text = f"Trying to vfree() nonexistent vm area ({self._show_pointer(address)})"
            self._dump_stack.warn(("__vunmap", function), text, KERN_ERR)
            raise KernelError(errno.EFAULT, f"no vmalloc area begins at {address:#x}")
        return area

    def _drop_pages(self, area: VmStruct) -> Steps[KernelError | None]:
        """Free an area's pages; one that was freed behind its back does not keep the others. The first error."""
        failed: KernelError | None = None
        piece = max(FREED_PAGES >> area.order, 1)
        area.node_pages = {}
        while len(area.blocks):
            part, area.blocks = area.blocks[:piece], area.blocks[piece:]
            self.nr_pages -= len(part) << area.order
            if area.charged:
                self._charged(part, area.order, -1)
            try:
                self._page_alloc.free_pages_bulk(part, area.order)
            except KernelError as error:
                failed = failed or error
            if len(area.blocks):
                yield
        return failed

    def _remove(self, area: VmStruct) -> Steps[None]:
        """Take an area out; its range waits for a purge (``free_vmap_area_noflush``)."""
        del self._areas[area.address]
        self.version += 1
        if self.changed:
            for page in range(area.address, area.end, PAGE_SIZE):
                self.changed.pop(page, None)
        self._lazy.add(area.address, area.end)
        self.nr_lazy += area.size >> PAGE_SHIFT
        if area.page_array and self._layout.is_vmalloc_addr(area.page_array):
            yield from self.vfree_steps(area.page_array)
        elif area.page_array and self._slab is not None:
            self._slab.kfree(area.page_array)
        if area.struct and self._slab is not None:
            self._slab.kfree(area.struct)
        if self.nr_lazy > self.lazy_max_pages:
            yield from self._purge()

    def purge(self) -> bool:
        """Give the lazily freed ranges back (``__purge_vmap_area_lazy``). Whether there were any."""
        found = len(self._lazy) > 0
        finish(self._purge())
        return found

    def _purge(self) -> Steps[None]:
        """``purge`` of the ranges that wait now, from below, in slices."""
        left = len(self._lazy)
        while left > 0 and len(self._lazy):
            ranges = self._lazy.take(min(left, SLICE_RANGES))
            left -= len(ranges)
            for start, end in ranges:
                self._free.release(start, end)
                self.nr_lazy -= (end - start) >> PAGE_SHIFT
            if left:
                yield

    # -- looking ---------------------------------------------------------------------------------------------

    def find_vm_area(self, address: int) -> VmStruct | None:
        """The area that begins at ``address``."""
        return self._areas.get(address)

    def areas(self) -> Iterator[VmStruct]:
        """The areas by address."""
        return iter([self._areas[address] for address in sorted(self._areas)])

    def unpurged(self) -> Iterator[tuple[int, int]]:
        """The lazily freed ranges by address."""
        return iter(self._lazy)

    def roots(self) -> npt.NDArray[np.uint64]:
        """Pointers that the list of areas holds, which is the kernel's own data: every ``vm_struct``."""
        return np.array([area.struct for area in self._areas.values() if area.struct], dtype=np.uint64)

    def _warn_alloc(self, gfp: int, text: str) -> None:
        if not gfp & g.F.NOWARN:
            mode = f"mode:{gfp:#x}({g.format_gfp(gfp)}), nodemask=(null)"
            self._printk.log(KERN_WARNING, f"{self._context.comm}: {text}, {mode}")
            self._dump_stack(("warn_alloc", *FRAMES))

    def check(self) -> None:
        """Ranges are apart and complete, and the counters are right."""
        self._free.check()
        busy = [(area.address, area.end) for area in self._areas.values()]
        ranges = sorted([*busy, *self.reserved, *self._lazy, *self._free])
        firsts = {start for start, _ in self._spaces}
        assert ranges[0][0] in firsts
        assert ranges[-1][1] == self._spaces[-1][1]
        for (_, end), (start, _) in pairwise(ranges):
            assert end == start or start in firsts, f"{end:#x} is not {start:#x}"
        assert sum(end - start for start, end in ranges) == sum(end - start for start, end in self._spaces)
        assert self.nr_lazy == sum(end - start for start, end in self._lazy) >> PAGE_SHIFT
        assert self.nr_pages == self._lost_pages + sum(area.nr_pages for area in self._areas.values())
