"""A NUMA policy and how it is made of what a program passes (include/linux/mempolicy.h, mm/mempolicy.c ``mpol_new``).

Models ``struct mempolicy`` with its modes and flags, its text, and the policies of ranges of tmpfs files. What obeys
them is ``mempolicy.py``.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from kmemd.errors import KernelError
from kmemd.mm.nodemask import first_node, node_list, relative_nodes
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SIZE

MAX_NUMNODES = 64
"""1 << CONFIG_NODES_SHIFT."""
MAX_MASK_BITS = PAGE_SIZE * 8
"""Longest mask that a program may pass, in bits."""

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED_MANY = range(6)
MPOL_MAX = 6
MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING = 1 << 15, 1 << 14, 1 << 13
MPOL_MODE_FLAGS = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING
MPOL_F_SHARED, MPOL_F_MOF, MPOL_F_MORON = 1 << 0, 1 << 3, 1 << 4
MPOL_F_NODE, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED = 1 << 0, 1 << 1, 1 << 2
MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_LAZY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MPOL_MF_VALID = MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL

MODE_NAMES = ("default", "prefer", "bind", "interleave", "local", "prefer (many)")


def user_mask(mask: int | None, maxnode: int) -> int:
    """The set that a program passes as an address and a number of bits, one too many (get_nodes). EINVAL."""
    bits = maxnode - 1
    if mask is None or bits == 0:
        return 0
    if not 0 <= bits <= MAX_MASK_BITS:
        raise KernelError(errno.EINVAL, f"maxnode={maxnode}: at most {MAX_MASK_BITS} bits")
    mask &= (1 << bits) - 1
    if mask >> MAX_NUMNODES:
        raise KernelError(errno.EINVAL, f"mask {mask:#x} has nodes beyond {MAX_NUMNODES - 1}")
    return mask


@dataclass(slots=True, eq=False)
class Policy:
    """One policy (``struct mempolicy``). ``nodes`` are those in force, ``user_nodes`` those that were asked for.

    Two are equal when they want the same (``mpol_equal``), wherever an interleaving task has got to.
    Invariants: never changed once in use, but for ``il_prev``, the node that the task's last page came from.
    """

    mode: int
    flags: int = 0
    nodes: int = 0
    user_nodes: int = 0
    home_node: int = NUMA_NO_NODE
    il_prev: int = MAX_NUMNODES - 1

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Policy):
            return False
        mine, theirs = (policy.user_nodes if policy.keeps_nodes else 0 for policy in (self, other))
        return (self.mode, self.flags, self.home_node, mine, self.nodes) == (
            *(other.mode, other.flags, other.home_node, theirs),
            other.nodes,
        )

    @property
    def keeps_nodes(self) -> bool:
        """Whether the nodes asked for are remembered and shown (mpol_store_user_nodemask)."""
        return bool(self.flags & MPOL_MODE_FLAGS)

    def dup(self, *, shared: bool = False) -> Policy:
        """A policy of its own for another task, mapping or part of a file (mpol_dup)."""
        flags = self.flags | (MPOL_F_SHARED if shared else 0)
        return Policy(self.mode, flags, self.nodes, self.user_nodes, self.home_node, self.il_prev)

    def __str__(self) -> str:
        return mpol_to_str(self)


def mpol_equal(a: Policy | None, b: Policy | None) -> bool:
    """Whether two mappings may be one, as far as their policies go."""
    return a is b or (a is not None and b is not None and a == b)


def mpol_dup(policy: Policy | None) -> Policy | None:
    """What a child or the other half of a mapping gets."""
    return policy.dup() if policy is not None else None


def mpol_to_str(policy: Policy | None) -> str:
    """``prefer:0``, ``bind=static:0-1``, ``default``: as numa_maps shows a policy."""
    if policy is None:
        return MODE_NAMES[MPOL_DEFAULT]
    text = MODE_NAMES[policy.mode]
    if policy.flags & MPOL_MODE_FLAGS:
        words = []
        if policy.flags & MPOL_F_STATIC_NODES:
            words.append("static")
        elif policy.flags & MPOL_F_RELATIVE_NODES:
            words.append("relative")
        if policy.flags & MPOL_F_NUMA_BALANCING:
            words.append("balancing")
        text += "=" + "|".join(words)
    return f"{text}:{node_list(policy.nodes)}" if policy.nodes and policy.mode != MPOL_LOCAL else text


def sanitize_mpol_flags(mode: int) -> tuple[int, int]:
    """The mode and the flags of what a program passes as a mode. EINVAL."""
    flags, mode = mode & MPOL_MODE_FLAGS, mode & ~MPOL_MODE_FLAGS
    if not 0 <= mode < MPOL_MAX:
        raise KernelError(errno.EINVAL, f"there is no policy mode {mode}")
    if flags & MPOL_F_STATIC_NODES and flags & MPOL_F_RELATIVE_NODES:
        raise KernelError(errno.EINVAL, "nodes are either static or relative")
    if flags & MPOL_F_NUMA_BALANCING:
        if mode != MPOL_BIND:
            raise KernelError(errno.EINVAL, "only MPOL_BIND takes MPOL_F_NUMA_BALANCING")
        flags |= MPOL_F_MOF | MPOL_F_MORON
    return mode, flags


def mpol_new(mode: int, flags: int, nodes: int, memory_nodes: int) -> Policy | None:
    """The policy that a mode, its flags and a set of nodes make (mpol_new, mpol_set_nodemask). EINVAL.

    ``memory_nodes`` is what there is (N_MEMORY). None is the default policy.
    """
    if mode == MPOL_DEFAULT:
        if nodes:
            raise KernelError(errno.EINVAL, "MPOL_DEFAULT takes no nodes")
        return None
    fixed = flags & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES)
    if mode == MPOL_LOCAL and (nodes or fixed):
        raise KernelError(errno.EINVAL, "MPOL_LOCAL takes neither nodes nor flags")
    if mode == MPOL_PREFERRED and not nodes and not fixed:
        mode = MPOL_LOCAL
    if mode == MPOL_LOCAL:
        return Policy(MPOL_LOCAL, flags)
    if not nodes:
        raise KernelError(errno.EINVAL, f"{MODE_NAMES[mode]} needs a set of nodes")
    there = relative_nodes(nodes, memory_nodes) if flags & MPOL_F_RELATIVE_NODES else nodes & memory_nodes
    if not there:
        raise KernelError(errno.EINVAL, f"no node of {node_list(nodes)} has memory")
    if mode == MPOL_PREFERRED:
        there = 1 << first_node(there)
    return Policy(mode, flags, there, nodes if flags & MPOL_MODE_FLAGS else 0)


class SharedPolicy:
    """The policies of ranges of a tmpfs file, whoever maps it (``struct shared_policy``).

    Invariants: the ranges ``[start, end)``, in pages of the file, are sorted and do not overlap.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, Policy]] = []

    def lookup(self, index: int) -> Policy | None:
        """The policy of one page of the file (mpol_shared_policy_lookup)."""
        return next((policy for start, end, policy in self._ranges if start <= index < end), None)

    def replace(self, start: int, end: int, policy: Policy | None) -> None:
        """Give a range another policy (mpol_set_shared_policy); what lies beside it keeps its own."""
        kept: list[tuple[int, int, Policy]] = []
        for low, high, old in self._ranges:
            parts = ((low, min(high, start)), (max(low, end), high))
            kept.extend((a, b, old) for a, b in parts if a < b)
        if policy is not None:
            insort(kept, (start, end, policy.dup(shared=True)), key=lambda item: item[0])
        self._ranges = kept

    def __iter__(self) -> Iterator[tuple[int, int, Policy]]:
        return iter(self._ranges)
