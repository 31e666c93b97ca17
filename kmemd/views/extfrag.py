"""``/sys/kernel/debug/extfrag``: how fragmented free memory is (mm/vmstat.c ``extfrag_show_print``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kmemd.kernel import Kernel
from kmemd.mm.vmstat import fragmentation_index, unusable_free_index
from kmemd.views.tree import debugfs

Index = Callable[[Sequence[int], int], int]


def thousandths(value: int, width: int) -> str:
    """A fraction in thousandths, as C prints quotient and remainder: both carry the sign of ``value``."""
    sign = -1 if value < 0 else 1
    quotient, remainder = divmod(abs(value), 1000)
    return f"{sign * quotient:{width}d}.{sign * remainder:03d} "


def index_line(nid: int, zone_name: str, nr_free: Sequence[int], index: Index, width: int) -> str:
    """One zone's index for each order."""
    values = "".join(thousandths(index(nr_free, order), width) for order in range(len(nr_free)))
    return f"Node {nid}, zone {zone_name:>8} {values}\n"


@debugfs.file("extfrag/unusable_index")
def unusable_index(kernel: Kernel) -> Iterator[str]:
    """The part of free memory that a request of each order cannot use."""
    for zone in kernel.zones:
        if zone.populated and kernel.nodes[zone.nid].has_memory:
            yield index_line(zone.nid, zone.name, zone.nr_free, unusable_free_index, 1)


@debugfs.file("extfrag/extfrag_index")
def extfrag_index(kernel: Kernel) -> Iterator[str]:
    """Whether a failing request would fail for lack of memory (0) or for fragmentation (1)."""
    for zone in kernel.zones:
        if zone.populated:
            yield index_line(zone.nid, zone.name, zone.nr_free, fragmentation_index, 2)
