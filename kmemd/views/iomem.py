"""``/proc/iomem`` and ``/proc/ioports`` (kernel/resource.c): the maps of physical addresses and of ports.

Without privilege the addresses read as zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYS_ADMIN
from kmemd.mm.firmware import Resource, ioport_resources, standard_ports
from kmemd.mm.resource import Region
from kmemd.views.tree import Caller, proc

ADDRESS_DIGITS, PORT_DIGITS = 8, 4


def _lines(resources: Iterable[tuple[int, Resource | Region]], digits: int, *, shown: bool) -> Iterator[str]:
    for depth, resource in resources:
        start, last = (resource.start, resource.last) if shown else (0, 0)
        yield f"{'  ' * depth}{start:0{digits}x}-{last:0{digits}x} : {resource.name}\n"


@proc.file("iomem", caller=True)
def iomem(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Each resource with its first and last byte, nested ones indented."""
    yield from _lines(kernel.device_memory.resources, ADDRESS_DIGITS, shown=caller.capable(CAP_SYS_ADMIN))


@proc.file("ioports", caller=True)
def ioports(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Ports likewise; of a machine that was read from a capture, what every PC has."""
    ports = ioport_resources() if kernel.machine.capture is None else standard_ports()
    rows = [(port.depth, port) for port in ports]
    yield from _lines(rows, PORT_DIGITS, shown=caller.capable(CAP_SYS_ADMIN))
