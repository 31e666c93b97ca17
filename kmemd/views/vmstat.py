"""``/proc/vmstat``: every counter of the memory manager, a line each (mm/vmstat.c ``vmstat_show``)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.views.tree import proc


@proc.file("vmstat")
def vmstat(kernel: Kernel) -> Iterator[str]:
    """Zone, NUMA and node gauges, the dirty thresholds, and the VM events since boot."""
    storage = kernel.user.swap_storage
    for name, value in kernel.vmstat.global_lines():
        if name == "nr_free_cma" and storage.zsmalloc_loaded:
            yield f"nr_zspages {sum(storage.zspages())}\n"
        yield f"{name} {value}\n"
    background, dirty = kernel.page_writeback.global_dirty_limits()
    yield f"nr_dirty_threshold {dirty}\nnr_dirty_background_threshold {background}\n"
    for name, value in kernel.vmstat.event_lines():
        yield f"{name} {value}\n"
    yield "nr_unstable 0\n"
