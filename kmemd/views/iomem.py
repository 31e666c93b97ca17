"""``/proc/iomem`` (kernel/resource.c): the physical address map. Without privilege the addresses read as zeros."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYS_ADMIN
from kmemd.views.tree import Caller, proc

ADDRESS_DIGITS = 8


@proc.file("iomem", caller=True)
def iomem(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Each resource with its first and last byte, nested ones indented."""
    shown = caller.capable(CAP_SYS_ADMIN)
    for depth, resource in kernel.device_memory.resources:
        start, last = (resource.start, resource.last) if shown else (0, 0)
        indent = "  " * depth
        yield f"{indent}{start:0{ADDRESS_DIGITS}x}-{last:0{ADDRESS_DIGITS}x} : {resource.name}\n"
