"""Huge pages of user memory and the thread that makes them, wired (hugepage_init, hugetlb_init).

A part of ``user_memory.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmemd.errors import KernelError
from kmemd.mm.huge_pmd import TransparentHuge
from kmemd.mm.huge_split import HugeSplit
from kmemd.mm.hugetlb_vm import HugetlbVm
from kmemd.mm.khugepaged import Khugepaged
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.signals import Signal
from kmemd.mm.split_huge_pages import SplitHugePages

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def make_khugepaged(kernel: Kernel, user: Any) -> Khugepaged:
    """khugepaged. ``user`` is the ``UserMemory`` that is being made."""

    def swap_in(mm: Mm, vma: Vma, vpn: int) -> bool:
        """Bring a page back; whether it could be."""
        entry = int(user.mmu.words[user.mmu.slot(mm.id, vpn)])
        try:
            user.swap_state.do_swap_page(user.memory, None, mm, vma, vpn, entry, False)
        except (KernelError, Signal):
            return False
        return True

    def charge(mm: Mm, head: int, gfp: int) -> bool:
        """Charge the new page to the control group of the process that it is for."""
        memcg = kernel.memcg
        if not memcg.active:
            return True
        group = memcg.of(next((task for task in kernel.tasks if task.mm is mm), None))
        if group is None:
            return True
        charged: bool = memcg.charge_block(group, head, int(kernel.pages.order[head]), gfp)
        memcg.count(group.id, "thp_collapse_alloc", int(charged))
        return charged

    return Khugepaged(
        kernel.huge_memory,
        user.khugepaged_slots,
        kernel.clock,
        kernel.context,
        kernel.depot,
        user.huge_pages,
        user.mmu,
        kernel.pages,
        user.rmap,
        user.lru,
        kernel.page_alloc,
        kernel.vmstat,
        user.thp,
        user.zap.zap_range,
        swap_in,
        user.run_as,
        charge,
    )


def make_huge_split(kernel: Kernel, user: Any) -> HugeSplit:
    """Huge pages that are made into small ones."""
    return HugeSplit(
        kernel.pages,
        user.huge_pages,
        user.lru,
        kernel.page_alloc,
        kernel.vmstat,
        kernel.owner,
        len(kernel.nodes),
        lambda head: user.thp.split_mappings(head),
    )


def make_split_huge_pages(kernel: Kernel, user: Any) -> SplitHugePages:
    """The file that splits huge pages on demand."""
    return SplitHugePages(
        kernel.pages,
        user.mmu,
        user.huge_pages,
        user.huge_split,
        user.page_cache,
        kernel.tasks,
        lambda path: user.vfs.lookup(path),
    )


def make_thp(kernel: Kernel, user: Any) -> TransparentHuge:
    """Transparent huge pages."""
    return TransparentHuge(
        kernel.huge_memory,
        user.huge_pages,
        user.huge_split,
        user.khugepaged_slots,
        user.mmu,
        user.tables,
        kernel.pages,
        user.rmap,
        user.lru,
        kernel.page_alloc,
        kernel.mempolicy,
        kernel.vmstat,
    )


def make_hugetlb_vm(kernel: Kernel, user: Any) -> HugetlbVm:
    """Mappings of hugetlb's."""
    return HugetlbVm(
        kernel.hugetlb,
        user.page_cache,
        user.mmu,
        user.tables,
        user.rmap,
        kernel.mempolicy,
        kernel.printk,
        user.huge_pages,
    )
