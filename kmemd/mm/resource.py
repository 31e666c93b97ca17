"""The tree of physical addresses that ``/proc/iomem`` shows (kernel/resource.c).

Drivers claim ranges in it (``request_mem_region``), inside the bus windows and device registers that the firmware told
of; a range that is busy is nobody else's. Left out: I/O ports, muxed and exclusive regions, memory hot-plug. Who was
busy at boot follows from the names (arch/x86/kernel/{e820,setup}.c, drivers/pci/setup-res.c): memory, ROMs,
interrupt controllers and drivers are, windows, registers and what the firmware keeps above 1 MiB are not.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kmemd.errors import KernelError
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.firmware import Resource
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.units import MIB, PAGE_SIZE

SYSTEM_RAM = "System RAM"
FREE_NAMES = re.compile(
    r"PCI Bus .*|PCI MMCONFIG .*|[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|PNP\w+:\w+|HPET \d+|pnp .*"
)
PCI_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
RESERVED = "Reserved"
MAX_IORES_LEVEL = 5
DESCRIPTOR_SIZE = {16: 64, 8: 32}
"""sizeof(struct resource) by the digits of a physical address."""


@dataclass(eq=False)
class Region:
    """One resource: bytes ``start`` to ``last``.

    ``busy`` ones belong to a driver or the kernel; ``boot``: it was found at boot.
    """

    start: int
    last: int
    name: str
    busy: bool
    boot: bool = False
    descriptor: int = 0
    children: list[Region] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.last - self.start + 1


def _busy(resource: Resource) -> bool:
    """Whether a resource of boot is somebody's."""
    if resource.name == RESERVED:
        return resource.start < MIB
    return FREE_NAMES.fullmatch(resource.name) is None


class Resources:
    """The resource tree of one kernel.

    Invariants: children are sorted, apart, and inside their parent.
    """

    def __init__(
        self,
        boot: Sequence[Resource],
        last: int,
        printk: Printk,
        digits: int = 16,
        descriptors: Descriptors | None = None,
    ) -> None:
        """``boot``: the resources depth first; ``last`` is the highest physical address, ``digits`` its width."""
        self._printk = printk
        self._digits = digits
        self._descriptors = descriptors
        self.root = Region(0, last, "PCI mem", busy=False)
        path = [self.root]
        for resource in boot:
            region = Region(resource.start, resource.last, resource.name, _busy(resource), boot=True)
            del path[resource.depth + 1 :]
            path[-1].children.append(region)
            path.append(region)

    # -- looking ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[int, Region]]:
        """Depth and region, depth first, in order of address."""
        yield from self._below(self.root, 0)

    def _below(self, parent: Region, depth: int) -> Iterator[tuple[int, Region]]:
        for region in parent.children:
            yield min(depth, MAX_IORES_LEVEL - 1), region
            yield from self._below(region, depth + 1)

    def pci_devices(self) -> list[str]:
        """The PCI devices that have registers here, by address."""
        return sorted({region.name for _, region in self if PCI_DEVICE.fullmatch(region.name)})

    def system_ram(self, start: int, last: int) -> bool:
        """Whether a whole page of memory lies in a range (``__ioremap_check_ram``)."""
        for region in self.root.children:
            if region.name == SYSTEM_RAM and region.start <= last and start <= region.last:
                low, high = max(start, region.start), min(last, region.last)
                if -(-low // PAGE_SIZE) < (high + 1) // PAGE_SIZE:
                    return True
        return False

    def map_sanity_check(self, start: int, size: int) -> bool:
        """Whether a mapping keeps to one device's registers, with the kernel's warning when it does not."""
        last = start + size - 1
        for _, region in self:
            apart = region.start > last or region.last < start
            inside = region.start // PAGE_SIZE <= start // PAGE_SIZE and last // PAGE_SIZE <= region.last // PAGE_SIZE
            if not (apart or inside or region.busy):
                asked = f"requesting [mem {self.phys(start)}-{self.phys(last)}]"
                text = f"resource sanity check: {asked}, which spans more than {region.name} {_span(region)}"
                self._printk.log(KERN_WARNING, text)
                return False
        return True

    def phys(self, address: int) -> str:
        """``%pa``: a physical address, as wide as they are."""
        return f"{address:#0{self._digits + 2}x}"

    # -- claiming --------------------------------------------------------------------------------------------

    def request_mem_region(self, start: int, size: int, name: str) -> Region:
        """Claim bytes for a driver, inside what is not busy. EBUSY; EINVAL for no bytes at all."""
        if size <= 0 or start < 0:
            raise KernelError(errno.EINVAL, f"a region of {size} bytes at {start:#x}")
        new = Region(start, start + size - 1, name, busy=True)
        parent = self.root
        while True:
            conflict = self._insert(parent, new)
            if conflict is None:
                return self._describe(new)
            if conflict is parent:
                raise KernelError(errno.EBUSY, f"{_span(new)} goes beyond {conflict.name} {_span(conflict)}")
            if conflict.busy:
                raise KernelError(errno.EBUSY, f"{_span(new)} overlaps {conflict.name} {_span(conflict)}")
            parent = conflict

    def _describe(self, new: Region) -> Region:
        """Allocate a region's descriptor (``alloc_resource``). ENOMEM, with the region taken out again."""
        if self._descriptors is not None:
            try:
                new.descriptor = self._descriptors.alloc(DESCRIPTOR_SIZE[self._digits], "__request_region")
            except KernelError:
                next(parent for _, parent in [(0, self.root), *self] if new in parent.children).children.remove(new)
                raise
        return new

    def _drop(self, region: Region) -> None:
        if self._descriptors is not None:
            self._descriptors.free(region.descriptor)

    def _insert(self, parent: Region, new: Region) -> Region | None:
        """Put a region into its parent; the parent when it does not fit, or the first child in its way."""
        if new.start < parent.start or new.last > parent.last:
            return parent
        place = len(parent.children)
        for index, child in enumerate(parent.children):
            if child.start > new.last:
                place = index
                break
            if child.last >= new.start:
                return child
        parent.children.insert(place, new)
        return None

    def release_mem_region(self, start: int, size: int) -> None:
        """Give a driver's claim back. EINVAL, and the kernel's warning, when there is none of just these bytes."""
        last = start + size - 1
        children = self.root.children
        found = self._holder(children, start, last)
        while found is not None and not found.busy:
            children = found.children
            found = self._holder(children, start, last)
        if found is None or (found.start, found.last) != (start, last):
            text = f"Trying to free nonexistent resource <{self.phys(start)}-{self.phys(last)}>"
            self._printk.log(KERN_WARNING, text)
            raise KernelError(errno.EINVAL, f"no driver claimed {start:#x}-{last:#x}")
        children.remove(found)
        self._drop(found)

    def _holder(self, children: list[Region], start: int, last: int) -> Region | None:
        return next((child for child in children if child.start <= start and last <= child.last), None)

    def allocate(self, size: int, align: int, name: str, *, busy: bool = False) -> Region:
        """A free range of a PCI window below 4 GiB for a device's registers (``allocate_resource``). EBUSY."""
        if size <= 0 or align <= 0 or align & (align - 1):
            raise KernelError(errno.EINVAL, f"a region of {size} bytes, aligned to {align}")
        for window in self.root.children:
            if window.name.startswith("PCI Bus") and MIB <= window.start < 1 << 32:
                start = self._gap(window, size, align)
                if start >= 0:
                    region = Region(start, start + size - 1, name, busy)
                    assert self._insert(window, region) is None
                    return self._describe(region)
        raise KernelError(errno.EBUSY, f"no window of a PCI bus has {size} free bytes")

    def _gap(self, window: Region, size: int, align: int) -> int:
        start = window.start
        for child in [*window.children, None]:
            start = -(-start // align) * align
            last = child.start - 1 if child is not None else window.last
            if start + size - 1 <= last:
                return start
            start = child.last + 1 if child is not None else start
        return -1

    def remove(self, region: Region) -> None:
        """Take a device's registers out. EBUSY when a driver still claims some of them."""
        claimed = next((child for child in region.children if child.busy), None)
        if claimed is not None:
            raise KernelError(errno.EBUSY, f"{claimed.name} still claims {_span(claimed)}")
        for _, parent in [(0, self.root), *self]:
            if region in parent.children:
                parent.children.remove(region)
                self._drop(region)
                return
        raise KernelError(errno.EINVAL, f"{region.name} is not in the tree")

    def check(self) -> None:
        """What drivers claimed is inside its parent, and apart from what stands beside it."""
        for _, parent in [(0, self.root), *self]:
            for before, after in pairwise(parent.children):
                assert (before.boot and after.boot) or before.last < after.start, f"{after.name} overlaps {before.name}"
            for child in parent.children:
                assert child.boot or parent.start <= child.start <= child.last <= parent.last, (
                    f"{child.name} is outside"
                )


def _span(region: Region) -> str:
    return f"[mem {region.start:#010x}-{region.last:#010x}]"
