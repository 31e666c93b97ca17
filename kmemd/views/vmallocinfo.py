"""``/proc/vmallocinfo``: the areas of the vmalloc range (mm/vmalloc.c ``s_show``)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm import vmalloc as v
from kmemd.mm.capability import CAP_SYSLOG
from kmemd.views.tree import Caller, proc

FLAG_WORDS = (
    (v.VM_IOREMAP, " ioremap"),
    (v.VM_ALLOC, " vmalloc"),
    (v.VM_MAP, " vmap"),
    (v.VM_USERMAP, " user"),
    (v.VM_DMA_COHERENT, " dma-coherent"),
)


@proc.file("vmallocinfo", mode=0o400, caller=True)
def vmallocinfo(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """A line per area by address, then the ranges that wait for a purge."""
    restrict, trusted = kernel.kernel_sysctl.kptr_restrict, caller.capable(CAP_SYSLOG)
    last = False

    def span(start: int, end: int) -> str:
        low, high = (kernel.kallsyms.pK(address, restrict, trusted=trusted) for address in (start, end))
        return f"0x{low}-0x{high} {end - start:7d}"

    for area in kernel.vmalloc.areas():
        last = True
        yield f"{span(area.address, area.end)}{_details(kernel, area)}\n"
    if last:
        for start, end in kernel.vmalloc.unpurged():
            yield f"{span(start, end)} unpurged vm_area\n"


def _details(kernel: Kernel, area: v.VmStruct) -> str:
    """What follows the size on an area's line."""
    frame, callee = area.caller
    words = f" {kernel.kallsyms.frame_text(frame, callee)}" if frame else ""
    if area.nr_pages:
        words += f" pages={area.nr_pages}"
    if area.phys:
        words += f" phys=0x{area.phys:0{2 * kernel.layout.pointer_size}x}"
    words += "".join(word for flag, word in FLAG_WORDS if area.flags & flag)
    if kernel.layout.is_vmalloc_addr(area.page_array):
        words += " vpages"
    if kernel.vmalloc.numa:
        words += "".join(f" N{nid}={pages}" for nid, pages in area.node_pages.items())
    return words
