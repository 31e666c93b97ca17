"""The first page of a swap area (include/linux/swap.h ``union swap_header``, mm/swapfile.c ``read_swap_header``).

Left out: other byte orders, bad pages, labels.
"""

from __future__ import annotations

import errno
import struct
from typing import NoReturn

from kmemd.errors import KernelError
from kmemd.mm.printk import KERN_ERR, KERN_WARNING, Printk
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

MAGIC = b"SWAPSPACE2"
SIGNATURE_AT = PAGE_SIZE - len(MAGIC)
_INFO = struct.Struct("<1024xIII")
VERSION = 1
MIN_PAGES = 10
"""mkswap(8) makes no smaller area."""


def make_header(size: int) -> bytes:
    """What mkswap writes to an area of ``size`` bytes. EINVAL when it is too small."""
    pages = size >> PAGE_SHIFT
    if pages < MIN_PAGES:
        raise KernelError(errno.EINVAL, f"a swap area has at least {MIN_PAGES * PAGE_SIZE >> 10} KiB")
    return _INFO.pack(VERSION, pages - 1, 0).ljust(SIGNATURE_AT, b"\0") + MAGIC


def check_header(page: bytes, size: int, printk: Printk) -> int:
    """How many bytes of a file of ``size`` bytes are a swap area. EINVAL, with the kernel's line."""

    def refuse(level: int, text: str) -> NoReturn:
        printk.log(level, text)
        raise KernelError(errno.EINVAL, text)

    if page[SIGNATURE_AT : SIGNATURE_AT + len(MAGIC)] != MAGIC:
        refuse(KERN_ERR, "Unable to find swap-space signature")
    version, last_page, _ = _INFO.unpack_from(page)
    if version != VERSION:
        refuse(KERN_WARNING, f"Unable to handle swap header version {version}")
    if not last_page:
        refuse(KERN_WARNING, "Empty swap-file")
    if last_page + 1 > size >> PAGE_SHIFT:
        refuse(KERN_WARNING, "Swap area shorter than signature indicates")
    return int(last_page + 1) << PAGE_SHIFT
