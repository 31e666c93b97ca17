"""What is done with pages when they are freed and allocated: ``page_poison=``, ``init_on_alloc=``, ``init_on_free=``
(mm/page_poison.c, mm/page_alloc.c ``init_mem_debugging_and_hardening``, init/main.c ``report_meminit``).

Poisoned pages hold 0xaa from free to allocation, which finds what was written between. The bytes of poison are not
kept, what was written over them is. Pages that are cleared cost the time of it; their bytes read as zero with or
without, for the model forgets a page's bytes when it is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import KERN_ERR, KERN_INFO, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.slub_bytes import SparseBytes
from kmemd.mm.slub_report import hex_dump
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

PAGE_POISON = 0xAA


def lines(cmdline: CommandLine) -> Iterator[tuple[int, str]]:
    """What boot says of it."""
    poison = cmdline.flag("page_poison")
    on_alloc, on_free = cmdline.flag("init_on_alloc"), cmdline.flag("init_on_free")
    if poison and (on_alloc or on_free):
        text = "CONFIG_PAGE_POISONING is on, will take precedence over init_on_alloc and init_on_free"
        yield KERN_INFO, f"mem auto-init: {text}"
    alloc, free = ("on" if on and not poison else "off" for on in (on_alloc, on_free))
    yield KERN_INFO, f"mem auto-init: stack:all(zero), heap alloc:{alloc}, heap free:{free}"
    if free == "on":
        yield KERN_INFO, "mem auto-init: clearing system memory may take some time..."


class PagePoison:
    """What the allocator writes into pages on its own account. ``zero_ns`` is the time that a page takes."""

    def __init__(
        self,
        cmdline: CommandLine,
        context: Context,
        printk: Printk,
        dump_stack: DumpStack,
        dump_page: Callable[[int, str], None],
        page_offset: int,
        word: int,
        zero_ns: int,
    ) -> None:
        self.enabled = cmdline.flag("page_poison")
        self.init_on_alloc = cmdline.flag("init_on_alloc") and not self.enabled
        self.init_on_free = cmdline.flag("init_on_free") and not self.enabled
        self._context, self._printk, self._dump_stack = context, printk, dump_stack
        self._dump_page = dump_page
        self._page_offset, self._word, self._zero_ns = page_offset, word, zero_ns
        self._written: dict[int, SparseBytes] = {}
        self._limit = RateLimit(lambda: context.now, printk)

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return self.enabled or self.init_on_alloc or self.init_on_free

    def write(self, pfn: int, offset: int, data: bytes) -> None:
        """Code writes into a page that is free."""
        if self.enabled:
            self._written.setdefault(pfn, SparseBytes()).write(offset, data)

    def read(self, pfn: int, offset: int, size: int) -> bytes:
        """What stands in a page that is free."""
        data = bytearray([PAGE_POISON if self.enabled else 0]) * size
        if pfn in self._written:
            self._written[pfn].overlay(offset, data)
        return bytes(data)

    def freed(self, pages: int) -> None:
        """Pages are freed: filled with poison or zeros (``free_pages_prepare``)."""
        if self.enabled or self.init_on_free:
            self._context.charge(self._zero_ns * pages)

    def allocated(self, heads: int | npt.NDArray[np.int64], order: int, *, zero: bool) -> None:
        """Blocks are allocated: looked at or cleared (``post_alloc_hook``). ``zero``: they were asked to be zero."""
        blocks = [heads] if isinstance(heads, int) else heads
        if self.enabled or (self.init_on_alloc and not zero):
            self._context.charge(self._zero_ns * len(blocks) << order)
        if not self._written:
            return
        for head in map(int, blocks):
            for pfn in [pfn for pfn in self._written if head <= pfn < head + (1 << order)]:
                self._check(pfn)

    def _check(self, pfn: int) -> None:
        """Look at a page that leaves the free lists (``check_poison_mem``)."""
        data = self.read(pfn, 0, PAGE_SIZE)
        del self._written[pfn]
        pattern = bytes([PAGE_POISON])
        start, end = PAGE_SIZE - len(data.lstrip(pattern)), len(data.rstrip(pattern))
        if start == PAGE_SIZE or not self._limit("check_poison_mem"):
            return
        flipped = data[start] ^ PAGE_POISON
        single = end - start == 1 and flipped & flipped - 1 == 0
        self._printk.log(KERN_ERR, f"pagealloc: {'single bit error' if single else 'memory corruption'}")
        address = self._page_offset + (pfn << PAGE_SHIFT) + start
        for line in hex_dump("", address, data[start:end], self._word):
            self._printk.log(KERN_ERR, line)
        self._dump_stack(("__kernel_unpoison_pages", "post_alloc_hook", "get_page_from_freelist", "__alloc_pages"))
        self._dump_page(pfn, "pagealloc: corrupted page details")
