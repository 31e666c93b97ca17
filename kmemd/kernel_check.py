"""Every number that the kernel keeps, against the truth: the checks of all subsystems, in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.mm.check import check_buddy
from kmemd.mm.memcontrol_check import MemcgCheck

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def check(kernel: Kernel) -> None:
    """Recompute every cached number of a kernel. AssertionError on a difference."""
    kernel.vmstat.check()
    kernel.kallsyms.check()
    kernel.kmemleak.check()
    kernel.page_owner.check()
    kernel.vmalloc.check()
    kernel.bpf.check()
    kernel.highmem.check()
    kernel.device_memory.check()
    kernel.user.pfn_map.check()
    kernel.hugetlb.check()
    kernel.fork.check()
    kernel.mms.check()
    kernel.rmap.check()
    kernel.lru.check()
    kernel.user.page_reclaim.replacement.generations.check()
    kernel.user.file_check.check()
    kernel.user.swap_storage.check()
    kernel.mm_check.check()
    kernel.user.thp.check(kernel.mms.living.values())
    kernel.user.hugetlb_vm.check(kernel.mms.living.values())
    kernel.slub.check()
    kernel.kfence.check()
    kernel.tasks.check()
    kernel.cgroups.check()
    MemcgCheck(kernel.memcg, kernel.pages)([area.memcg for area in kernel.swap.files.areas])
    kernel.watermarks.check()
    kernel.accounting.check()
    kernel.cma.check()
    kernel.percpu.check()
    check_buddy(kernel.buddy, kernel.zones)
