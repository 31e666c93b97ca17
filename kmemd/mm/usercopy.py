"""Hardened usercopy: what kernel memory may be copied to and from programs (mm/usercopy.c, mm/slub.c
``__check_heap_object``).

``hardened_usercopy=off`` turns it off. Left out: frames of the stack, which the model does not keep, addresses of kmap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kmemd.core.pages import ALLOCATED, PageMap
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.kfence import Kfence
from kmemd.mm.layout import Layout
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import KERN_EMERG, Printk
from kmemd.mm.slab_common import ZERO_SIZE_PTR
from kmemd.mm.slub import Slub
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmalloc import Vmalloc

BUG_PLACE = "mm/usercopy.c:101"
FRAMES = ("usercopy_abort",)
HEAP_FRAMES = (*FRAMES, "__check_heap_object", "__check_object_size")


class Usercopy:
    """The check of one kernel. ``text`` is where its code begins and ends; ``bug(where, frames)`` is BUG()."""

    def __init__(
        self,
        cmdline: CommandLine,
        layout: Layout,
        pages: PageMap,
        slub: Slub,
        kfence: Kfence,
        vmalloc: Vmalloc,
        printk: Printk,
        text: tuple[int, int],
        bug: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self.enabled = cmdline.flag("hardened_usercopy", True)
        self._layout, self._pages, self._slub, self._kfence = layout, pages, slub, kfence
        self._vmalloc, self._printk, self._text, self._bug = vmalloc, printk, text, bug

    def check_object_size(self, address: int, size: int, *, to_user: bool) -> None:
        """Whether a range may be copied (``__check_object_size``). EFAULT and a BUG where it may not."""
        if not self.enabled or not size:
            return
        if address <= ZERO_SIZE_PTR:
            self._abort("null address", "", address, size, to_user)
        layout = self._layout
        if layout.vmalloc_start <= address < layout.vmalloc_end:
            self._check_vmalloc(address, size, to_user)
        elif layout.virt_addr_valid(address):
            self._check_heap(address, size, to_user)
        low, high = self._text
        if address < high and address + size > low:
            self._abort("kernel text", "", address - low, size, to_user)

    def _check_vmalloc(self, address: int, size: int, to_user: bool) -> None:
        area = next((area for area in self._vmalloc.areas() if area.address <= address < area.end), None)
        if area is None:
            self._abort("vmalloc", "no area", 0, size, to_user)
        elif size > area.end - address:
            self._abort("vmalloc", "", address - area.address, size, to_user)

    def _check_heap(self, address: int, size: int, to_user: bool) -> None:
        guarded = self._kfence.object_at(address) if self._kfence.covers(address) else None
        if guarded is not None and guarded.cache is not None:
            if address < guarded.address or address + size > guarded.address + guarded.size:
                self._abort("SLUB object", guarded.cache.name, address - guarded.address, size, to_user)
            return
        slab = self._slub.lists.slab_at(address)
        if slab:
            self._check_slab(slab, address, size, to_user)
            return
        for order in range(1, 11):
            head = address - self._layout.page_offset >> PAGE_SHIFT & -(1 << order)
            compound = int(self._pages.kind[head]) == ALLOCATED and int(self._pages.order[head]) == order
            offset = address - self._layout.page_offset - (head << PAGE_SHIFT)
            if compound and size > (PAGE_SIZE << order) - offset:
                self._abort("page alloc", "", offset, size, to_user)

    def _check_slab(self, slab: int, address: int, size: int, to_user: bool) -> None:
        """``__check_heap_object``: the range must be in the part of one object that its cache lets go."""
        cache = self._slub.bytes.cache_of(slab)
        offset = (address - self._slub.lists.base(slab)) % cache.size
        if cache.flags & sf.SLAB_RED_ZONE:
            if offset < cache.geometry.red_left_pad:
                self._abort("SLUB object in left red zone", cache.name, offset, size, to_user)
            offset -= cache.geometry.red_left_pad
        inside = offset >= cache.useroffset and offset + size <= cache.useroffset + cache.usersize
        if not inside:
            self._abort("SLUB object", cache.name, offset, size, to_user)

    def _abort(self, name: str, detail: str, offset: int, size: int, to_user: bool) -> None:
        """``usercopy_abort``."""
        what = "exposure attempt detected from" if to_user else "overwrite attempt detected to"
        quoted = f" '{detail}'" if detail else ""
        text = f"usercopy: Kernel memory {what} {name}{quoted} (offset {offset}, size {size})!"
        self._printk.log(KERN_EMERG, text)
        self._bug(BUG_PLACE, HEAP_FRAMES if name.startswith("SLUB") else (*FRAMES, "__check_object_size"))
        raise KernelError(errno.EFAULT, text)
