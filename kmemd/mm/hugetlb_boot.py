"""hugepagesz=, default_hugepagesz= and hugepages= (mm/hugetlb.c ``hugepages_setup`` and its neighbours).

What they ask for, in the order in which they stand, and what the kernel says of nonsense. Left out: hugetlb_cma=.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.memblock import Memblock
from kmemd.mm.params import CommandLine, memparse
from kmemd.mm.printk import KERN_ERR, KERN_WARNING
from kmemd.mm.units import GIB, MIB, PAGE_SHIFT

PMD_ORDER = {64: 9, 32: 10}
PUD_ORDER = 18


@dataclass
class Wanted:
    """What is asked of one size: ``count`` pages in all, or so many of each node."""

    size: int
    count: int = 0
    per_node: dict[int, int] = field(default_factory=dict)


class BootParameters:
    """The parameters of one command line. ``sizes``: the sizes that the CPU has, in bytes, of a PMD's first.

    ``wanted`` are the pools in the order in which the kernel makes them, ``default`` is one of them; ``messages`` are
    what it says, as (level, text).
    """

    def __init__(self, cmdline: CommandLine, sizes: Sequence[int], nodes: Iterable[int]) -> None:
        self.wanted: list[Wanted] = []
        self.messages: list[tuple[int, str]] = []
        self._sizes = tuple(sizes)
        self._nodes = tuple(nodes)
        self._implicit = Wanted(self._sizes[0])
        self._default: Wanted | None = None
        self._parsed: Wanted | None = None
        self._last: Wanted | None = None
        self._valid_size = True
        for name, value in cmdline.pairs():
            if name == "hugepagesz":
                self._page_size(value)
            elif name == "default_hugepagesz":
                self._default_size(value)
            elif name == "hugepages":
                self._pages(value)
        for size in reversed(self._sizes):
            self._pool_of(size)
        self.default = self._default or self._settle_default()

    def gigantic(self) -> Iterable[Wanted]:
        """What must come from the boot memory allocator."""
        return (wanted for wanted in self.wanted if wanted.size >= GIB)

    def _find(self, size: int) -> Wanted | None:
        return next((wanted for wanted in self.wanted if wanted.size == size), None)

    def _pool_of(self, size: int) -> Wanted:
        found = self._find(size)
        if found is None:
            found = Wanted(size)
            self.wanted.append(found)
        return found

    def _settle_default(self) -> Wanted:
        """Without default_hugepagesz=, a hugepages= in front of any size is of the default one."""
        default = self._pool_of(self._sizes[0])
        if self._implicit.count:
            if default.count:
                self._warn(f"Ignoring hugepages={default.count} associated with {size_text(default.size)} page size")
                self._warn(f"Using hugepages={self._implicit.count} for number of default huge pages")
            default.count, default.per_node = self._implicit.count, self._implicit.per_node
        return default

    def _page_size(self, value: str) -> None:
        self._valid_size = False
        size = memparse(value)[0]
        if size not in self._sizes:
            self._say(KERN_ERR, f"unsupported hugepagesz={value}")
            return
        found = self._find(size)
        if found is not None and (found is not self._default or found.count):
            self._warn(f"hugepagesz={value} specified twice, ignoring")
            return
        self._parsed = self._pool_of(size)
        self._valid_size = True

    def _default_size(self, value: str) -> None:
        self._valid_size = False
        if self._default is not None:
            self._say(KERN_ERR, f"default_hugepagesz previously specified, ignoring {value}")
            return
        size = memparse(value)[0]
        if size not in self._sizes:
            self._say(KERN_ERR, f"unsupported default_hugepagesz={value}")
            return
        self._default = self._parsed = self._pool_of(size)
        self._valid_size = True
        if self._implicit.count:
            self._default.count, self._default.per_node = self._implicit.count, self._implicit.per_node
            self._implicit = Wanted(self._sizes[0])

    def _pages(self, value: str) -> None:
        if not self._valid_size:
            self._warn(f"hugepages={value} does not follow a valid hugepagesz, ignoring")
            self._valid_size = True
            return
        wanted = self._parsed or self._implicit
        if wanted is self._last:
            text = "hugepages= specified twice without interleaving hugepagesz=, ignoring"
            self._warn(f"{text} hugepages={value}")
            return
        try:
            self._take(wanted, value)
        except KernelError as error:
            wanted.count = 0
            wanted.per_node.clear()
            self._warn(f"Invalid hugepages parameter {error.reason}")
            return
        self._last = wanted

    def _take(self, wanted: Wanted, value: str) -> None:
        """``N``, or ``node:N,node:N``. EINVAL, with what could not be read."""
        rest = value
        while rest:
            number, tail = _leading_number(rest)
            if not tail.startswith(":"):
                if rest is not value:
                    raise KernelError(errno.EINVAL, rest)
                wanted.count = number
                return
            if number not in self._nodes:
                raise KernelError(errno.EINVAL, rest)
            count, tail = _leading_number(tail[1:])
            wanted.per_node[number] = count
            wanted.count += count
            if not tail.startswith(","):
                return
            rest = tail[1:]

    def _warn(self, text: str) -> None:
        self._say(KERN_WARNING, text)

    def _say(self, level: int, text: str) -> None:
        self.messages.append((level, f"HugeTLB: {text}"))


def reserve_gigantic(memblock: Memblock, parameters: BootParameters, nodes: Sequence[int]) -> tuple[int, ...]:
    """Take the pages that the page allocator could not give from memory that is free when boot begins: their PFNs
    (``alloc_bootmem_huge_page``). Nodes take turns, or give what is asked of each."""
    found: list[int] = []
    for wanted in parameters.gigantic():
        order = [nid for nid, count in sorted(wanted.per_node.items()) for _ in range(count)]
        order = order or [nodes[turn % len(nodes)] for turn in range(wanted.count)]
        for nid in order:
            address = memblock.alloc(wanted.size, "huge page", align=wanted.size, nid=nid)
            if address < 0:
                break
            found.append(address >> PAGE_SHIFT)
    return tuple(found)


def size_text(size: int) -> str:
    """A size as ``string_get_size`` writes it."""
    return f"{size // GIB}.00 GiB" if size >= GIB else f"{size // MIB}.00 MiB"


def _leading_number(text: str) -> tuple[int, str]:
    value, _, digits = kstrtox.parse_integer(text.encode(), 10)
    if not digits:
        raise KernelError(errno.EINVAL, text)
    return value, text[digits:]
