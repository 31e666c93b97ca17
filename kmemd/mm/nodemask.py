"""Sets of NUMA nodes (include/linux/nodemask.h): an int, bit ``n`` for node ``n``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def nodes_of(mask: int) -> Iterator[int]:
    """The members of a set, ascending."""
    nid = 0
    while mask:
        if mask & 1:
            yield nid
        mask >>= 1
        nid += 1


def mask_of(nodes: Iterable[int]) -> int:
    """The set of some nodes."""
    mask = 0
    for nid in nodes:
        mask |= 1 << nid
    return mask


def first_node(mask: int) -> int:
    """The lowest member of a set that is not empty."""
    return (mask & -mask).bit_length() - 1


def next_node_in(nid: int, mask: int) -> int:
    """The next member after ``nid``, from the beginning after the last."""
    above = mask >> (nid + 1) << (nid + 1)
    return first_node(above or mask)


def node_list(mask: int) -> str:
    """``0-1,3`` (``%*pbl``)."""
    runs: list[list[int]] = []
    for nid in nodes_of(mask):
        if runs and nid == runs[-1][1] + 1:
            runs[-1][1] = nid
        else:
            runs.append([nid, nid])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def relative_nodes(mask: int, allowed: int) -> int:
    """Node n of ``mask`` means the n-th of ``allowed``, counting round (mpol_relative_nodemask)."""
    members = list(nodes_of(allowed))
    return mask_of([members[nid % len(members)] for nid in nodes_of(mask)]) if members else 0
