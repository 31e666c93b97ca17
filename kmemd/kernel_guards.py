"""The guards of the kernel's memory, wired: poisoned pages, KFENCE, copies to programs, the bytes that they look at.

A part of ``kernel.py`` in a module of its own: what Linux sets up in ``init_mem_debugging_and_hardening`` and
``kfence_init``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.debug.kallsyms import ETEXT
from kmemd.mm.fault_inject import FailPageAlloc, FailSlab
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.kernel_write import KernelWrite
from kmemd.mm.kfence import POOL_ORDER, Kfence
from kmemd.mm.page_poison import PagePoison
from kmemd.mm.printk import KERN_WARNING
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.usercopy import Usercopy

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def make_page_poison(kernel: Kernel) -> PagePoison:
    """What is done with pages that are freed and allocated."""

    def dump_page(pfn: int, reason: str) -> None:
        """``dump_page`` without the words of struct page."""
        address, count = kernel.layout.page_struct(pfn), int(kernel.pages.mapcount[pfn])
        say = kernel.printk.log
        mapping = f"mapping:{kernel.kallsyms.p(0)} index:{int(kernel.pages.index[pfn]):#x} pfn:{pfn:#x}"
        say(KERN_WARNING, f"page:{kernel.kallsyms.p(address)} refcount:0 mapcount:{count} {mapping}")
        say(KERN_WARNING, f"flags: {kernel.page_flags.of_page(pfn)}")
        say(KERN_WARNING, f"page dumped because: {reason}")

    return PagePoison(
        kernel.cmdline,
        kernel.context,
        kernel.printk,
        kernel.dump_stack,
        dump_page,
        kernel.layout.page_offset,
        kernel.layout.pointer_size,
        kernel.machine.latency.zero_page,
    )


def make_kfence(kernel: Kernel) -> Kfence:
    """KFENCE; with ``kfence.sample_interval=`` it has a pool."""
    interval = kernel.cmdline.get("kfence.sample_interval") or ""
    kfence = Kfence(
        kernel.context,
        kernel.depot,
        kernel.printk,
        kernel.dump_stack,
        kernel.rng,
        kernel.kallsyms.frame_text,
        kernel.kallsyms.p,
        len(kernel.nodes),
        int(interval) if interval.isdigit() else 0,
        plain=kernel.kallsyms.no_hash_pointers,
    )
    if kfence.interval_ms:
        pfn = kernel.page_alloc.alloc_pages(GFP_KERNEL, POOL_ORDER)
        kfence.start(kernel.layout.page_offset + (pfn << PAGE_SHIFT))
        kernel.slub.kfence = kfence
    return kfence


def make_usercopy(kernel: Kernel) -> Usercopy:
    """The check of what is copied to and from programs (set_hardened_usercopy)."""
    text = kernel.layout.text_base
    return Usercopy(
        kernel.cmdline,
        kernel.layout,
        kernel.pages,
        kernel.slub,
        kernel.kfence,
        kernel.vmalloc,
        kernel.printk,
        (text, text + ETEXT),
        kernel.oops.invalid_op,
    )


def make_kernel_write(kernel: Kernel) -> KernelWrite:
    """Who keeps the bytes that kernel code writes."""
    return KernelWrite(
        kernel.layout, kernel.pages, lambda: kernel.contents, kernel.slub, kernel.kfence, kernel.page_poison
    )


def make_fault_injection(kernel: Kernel) -> tuple[FailSlab, FailPageAlloc]:
    """Failures made on purpose (fault_create_debugfs_attr)."""
    parts = (kernel.context, kernel.tasks, kernel.rng, kernel.printk, kernel.dump_stack, kernel.cmdline)
    slab, pages = FailSlab(*parts), FailPageAlloc(*parts)
    kernel.slub.fail, kernel.page_alloc.fail = slab, pages
    return slab, pages
