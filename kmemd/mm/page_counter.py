"""Counters of pages with limits, in a tree (mm/page_counter.c).

A charge counts in a counter and in all above it. Models: limits, the highest mark, failed charges, and the usage below
the protections min and low, which parents share out among their children. Left out: the per-CPU error of Linux's
atomic counters, for no two things happen at once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.params import memparse
from kmemd.mm.units import PAGE_SIZE

PAGE_COUNTER_MAX = ((1 << 63) - 1) // PAGE_SIZE


def page_counter_memparse(text: str, highest: str) -> int:
    """Pages of a size in bytes; the word ``highest`` stands for no limit (``page_counter_memparse``). EINVAL."""
    data = kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text)))
    if data == highest.encode():
        return PAGE_COUNTER_MAX
    size, rest = memparse(data.decode("latin-1"))
    if rest:
        raise KernelError(errno.EINVAL, f"{data.decode('latin-1')!r} is neither a size nor {highest!r}")
    return min((size & kstrtox.ULLONG_MAX) // PAGE_SIZE, PAGE_COUNTER_MAX)


class PageCounter:
    """Pages charged to one group and those below it.

    Invariants: ``usage`` is at least the sum of the children's; ``children_min`` and ``children_low`` are the sums of
    the children's protected usage.
    """

    __slots__ = (
        *("parent", "usage", "max", "high", "min", "low", "watermark", "failcnt"),
        *("min_usage", "low_usage", "children_min", "children_low"),
    )

    def __init__(self, parent: PageCounter | None = None) -> None:
        self.parent = parent
        self.usage = self.watermark = self.failcnt = 0
        self.max = self.high = PAGE_COUNTER_MAX
        self.min = self.low = 0
        self.min_usage = self.low_usage = self.children_min = self.children_low = 0

    def upwards(self) -> Iterator[PageCounter]:
        """This counter and those above it."""
        counter: PageCounter | None = self
        while counter is not None:
            yield counter
            counter = counter.parent

    def try_charge(self, pages: int) -> PageCounter | None:
        """Charge, or nothing at all: then the counter whose limit is in the way is returned."""
        for counter in self.upwards():
            if counter.usage + pages > counter.max:
                counter.failcnt += 1
                return counter
        self.charge(pages)
        return None

    def charge(self, pages: int) -> None:
        """Charge, whatever the limits say; a negative number takes back."""
        counter: PageCounter | None = self
        while counter is not None:
            counter.usage += pages
            if counter.usage > counter.watermark:
                counter.watermark = counter.usage
            if counter.min or counter.min_usage or counter.low or counter.low_usage:
                counter.propagate()
            counter = counter.parent

    def room(self) -> int:
        """Pages that may be charged before a limit or a high mark, here or above, is met."""
        room, counter = PAGE_COUNTER_MAX, self
        while True:
            limit = counter.max if counter.max < counter.high else counter.high
            if limit - counter.usage < room:
                room = limit - counter.usage
            if counter.parent is None:
                return room
            counter = counter.parent

    def uncharge(self, pages: int) -> None:
        """Take pages back."""
        self.charge(-pages)

    def propagate(self) -> None:
        """Tell the parent how much of the usage is protected (``propagate_protected_usage``)."""
        parent = self.parent
        if parent is None:
            return
        for kind in ("min", "low"):
            protected = min(self.usage, getattr(self, kind))
            change = protected - getattr(self, f"{kind}_usage")
            setattr(self, f"{kind}_usage", protected)
            setattr(parent, f"children_{kind}", getattr(parent, f"children_{kind}") + change)

    def set_protection(self, kind: str, pages: int) -> None:
        """Set ``min`` or ``low``."""
        setattr(self, kind, pages)
        for counter in self.upwards():
            counter.propagate()

    def leave(self) -> None:
        """The group is gone: its parent protects nothing for it any more."""
        self.min = self.low = 0
        self.propagate()

    def margin(self) -> int:
        """Pages that may be charged before a limit here or above is met."""
        return max(0, min(counter.max - counter.usage for counter in self.upwards()))


def effective_protection(
    usage: int, parent_usage: int, setting: int, parent_effective: int, siblings: int, *, recursive: bool = False
) -> int:
    """The part of ``setting`` that holds, when the parent's protection has to do for all siblings.

    ``siblings`` is the protected usage of all children together. With ``recursive``, the mount option
    memory_recursiveprot, what the parent protects and nobody claims is shared out by the usage that is not protected.
    """
    protected = min(usage, setting)
    if siblings > parent_effective:
        return protected * parent_effective // siblings
    unclaimed = parent_effective - siblings
    if recursive and unclaimed and parent_usage > siblings and usage > protected:
        return protected + unclaimed * (usage - protected) // (parent_usage - siblings)
    return protected
