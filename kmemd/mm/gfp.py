"""GFP flags: their bits, names and text, and what they mean for zones and mobility.

include/linux/gfp_types.h and gfp.h of Linux 6.1 without KASAN_HW_TAGS, and the order in which ``%pGg``
names flags (include/trace/events/mmflags.h).
"""

from __future__ import annotations

import errno

from kmemd.errors import KernelError


class F:
    """The bits: ``F.ZERO`` is ``__GFP_ZERO``, a name that Python would mangle inside a class."""

    DMA = 0x01
    HIGHMEM = 0x02
    DMA32 = 0x04
    MOVABLE = 0x08
    RECLAIMABLE = 0x10
    HIGH = 0x20
    IO = 0x40
    FS = 0x80
    ZERO = 0x100
    ATOMIC = 0x200
    DIRECT_RECLAIM = 0x400
    KSWAPD_RECLAIM = 0x800
    WRITE = 0x1000
    NOWARN = 0x2000
    RETRY_MAYFAIL = 0x4000
    NOFAIL = 0x8000
    NORETRY = 0x10000
    MEMALLOC = 0x20000
    COMP = 0x40000
    NOMEMALLOC = 0x80000
    HARDWALL = 0x100000
    THISNODE = 0x200000
    ACCOUNT = 0x400000
    ZEROTAGS = 0x800000
    RECLAIM = DIRECT_RECLAIM | KSWAPD_RECLAIM


GFP_ZONEMASK = F.DMA | F.HIGHMEM | F.DMA32 | F.MOVABLE
GFP_MOVABLE_MASK = F.RECLAIMABLE | F.MOVABLE
GFP_RECLAIM_MASK = (
    F.RECLAIM | F.HIGH | F.IO | F.FS | F.NOWARN | F.RETRY_MAYFAIL | F.NOFAIL | F.NORETRY | F.MEMALLOC
    | F.NOMEMALLOC | F.ATOMIC
)  # fmt: skip
"""What an allocation on behalf of another one takes over from it (mm/internal.h)."""

GFP_ATOMIC = F.HIGH | F.ATOMIC | F.KSWAPD_RECLAIM
GFP_KERNEL = F.RECLAIM | F.IO | F.FS
GFP_KERNEL_ACCOUNT = GFP_KERNEL | F.ACCOUNT
GFP_NOWAIT = F.KSWAPD_RECLAIM
GFP_NOIO = F.RECLAIM
GFP_NOFS = F.RECLAIM | F.IO
GFP_USER = GFP_KERNEL | F.HARDWALL
GFP_DMA = F.DMA
GFP_DMA32 = F.DMA32
GFP_HIGHUSER = GFP_USER | F.HIGHMEM
GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | F.MOVABLE
GFP_TRANSHUGE_LIGHT = (GFP_HIGHUSER_MOVABLE | F.COMP | F.NOMEMALLOC | F.NOWARN) & ~F.RECLAIM
GFP_TRANSHUGE = GFP_TRANSHUGE_LIGHT | F.DIRECT_RECLAIM

FLAG_NAMES: dict[str, int] = {
    "GFP_TRANSHUGE": GFP_TRANSHUGE,
    "GFP_TRANSHUGE_LIGHT": GFP_TRANSHUGE_LIGHT,
    "GFP_HIGHUSER_MOVABLE": GFP_HIGHUSER_MOVABLE,
    "GFP_HIGHUSER": GFP_HIGHUSER,
    "GFP_USER": GFP_USER,
    "GFP_KERNEL_ACCOUNT": GFP_KERNEL_ACCOUNT,
    "GFP_KERNEL": GFP_KERNEL,
    "GFP_NOFS": GFP_NOFS,
    "GFP_ATOMIC": GFP_ATOMIC,
    "GFP_NOIO": GFP_NOIO,
    "GFP_NOWAIT": GFP_NOWAIT,
    "GFP_DMA": GFP_DMA,
    "__GFP_HIGHMEM": F.HIGHMEM,
    "GFP_DMA32": GFP_DMA32,
    "__GFP_HIGH": F.HIGH,
    "__GFP_ATOMIC": F.ATOMIC,
    "__GFP_IO": F.IO,
    "__GFP_FS": F.FS,
    "__GFP_NOWARN": F.NOWARN,
    "__GFP_RETRY_MAYFAIL": F.RETRY_MAYFAIL,
    "__GFP_NOFAIL": F.NOFAIL,
    "__GFP_NORETRY": F.NORETRY,
    "__GFP_COMP": F.COMP,
    "__GFP_ZERO": F.ZERO,
    "__GFP_NOMEMALLOC": F.NOMEMALLOC,
    "__GFP_MEMALLOC": F.MEMALLOC,
    "__GFP_HARDWALL": F.HARDWALL,
    "__GFP_THISNODE": F.THISNODE,
    "__GFP_RECLAIMABLE": F.RECLAIMABLE,
    "__GFP_MOVABLE": F.MOVABLE,
    "__GFP_ACCOUNT": F.ACCOUNT,
    "__GFP_WRITE": F.WRITE,
    "__GFP_RECLAIM": F.RECLAIM,
    "__GFP_DIRECT_RECLAIM": F.DIRECT_RECLAIM,
    "__GFP_KSWAPD_RECLAIM": F.KSWAPD_RECLAIM,
    "__GFP_ZEROTAGS": F.ZEROTAGS,
}
"""Names in the order in which ``%pGg`` takes them out of a mask."""

ALL_FLAGS = 0xFFFFFF
ALIASES: dict[str, int] = {**FLAG_NAMES, "__GFP_DMA": F.DMA, "__GFP_DMA32": F.DMA32}


def format_gfp(gfp: int) -> str:
    """``GFP_KERNEL|F.ZERO``: the text of ``%pGg``, "none" for 0 and hex for what has no name."""
    if not gfp:
        return "none"
    words = []
    for name, bits in FLAG_NAMES.items():
        if gfp & bits == bits:
            words.append(name)
            gfp &= ~bits
    if gfp:
        words.append(f"{gfp:#x}")
    return "|".join(words)


def gfp_migratetype(gfp: int) -> int:
    """The free lists that a request is served from."""
    return (gfp & GFP_MOVABLE_MASK) >> 3


def gfp_zone(gfp: int, zone_names: tuple[str, ...]) -> int:
    """The highest zone a request may use, as a place in ``zone_names`` (GFP_ZONE_TABLE).

    EINVAL for zone modifiers that contradict each other, which Linux calls a bug.
    """
    normal = zone_names.index("Normal")
    bits = gfp & GFP_ZONEMASK
    if bits & F.DMA and bits & ~(F.DMA | F.MOVABLE):
        raise KernelError(errno.EINVAL, f"{format_gfp(gfp)} names two zones")
    if bits & F.DMA32 and bits & F.HIGHMEM:
        raise KernelError(errno.EINVAL, f"{format_gfp(gfp)} names two zones")
    if bits & F.DMA:
        return zone_names.index("DMA")
    if bits & F.DMA32:
        return zone_names.index("DMA32") if "DMA32" in zone_names else normal
    if bits & F.HIGHMEM and bits & F.MOVABLE:
        return zone_names.index("Movable")
    if bits & F.HIGHMEM:
        return zone_names.index("HighMem") if "HighMem" in zone_names else normal
    return normal
