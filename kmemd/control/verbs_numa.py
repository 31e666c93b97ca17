"""Verbs of NUMA placement: policies of tasks and mappings, and moving pages (mm/mempolicy.c, mm/migrate.c)."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from kmemd.control.language import Reply, Slices, WordType, allocator, invalid, quoted, verb
from kmemd.control.verbs_mm import run_as
from kmemd.control.words import Address, Node, Number, Pid, Size, mask, number
from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.mm import mpol as m
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.mman import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from kmemd.mm.mmap_region import Request
from kmemd.mm.nodemask import node_list
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", re.ASCII)
MODES = {
    name: getattr(m, name)
    for name in ("MPOL_DEFAULT", "MPOL_PREFERRED", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED_MANY")
}
MODE_FLAGS = {
    name: getattr(m, name) for name in ("MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES", "MPOL_F_NUMA_BALANCING")
}
GET_FLAGS = {name: getattr(m, name) for name in ("MPOL_F_NODE", "MPOL_F_ADDR", "MPOL_F_MEMS_ALLOWED")}
MOVE_FLAGS = {name: getattr(m, name) for name in ("MPOL_MF_STRICT", "MPOL_MF_MOVE", "MPOL_MF_MOVE_ALL")}
MAX_PAGES = 4096
"""Pages that one move_pages names."""


def _mode(text: str, kernel: Any) -> int:
    return mask(text, {**MODES, **MODE_FLAGS})


def _get_flags(text: str, kernel: Any) -> int:
    return mask(text, GET_FLAGS)


def _move_flags(text: str, kernel: Any) -> int:
    return mask(text, MOVE_FLAGS)


def _nodes(text: str, kernel: Any) -> int:
    """A set of nodes as a list, ``0-1,3``, or as a mask, ``0x3``; ``none`` is the empty one."""
    if text == "none":
        return 0
    if text[:2].lower() == "0x":
        return number(text, (1 << 1024) - 1, "a mask")
    if _LIST.fullmatch(text) is None:
        invalid(f"{quoted(text)} is no set of nodes; write 0-1,3 or 0x3 or none")
    mask = 0
    for part in text.split(","):
        low, _, high = part.partition("-")
        if int(high or low) > 1023 or int(high or low) < int(low):
            invalid(f"{quoted(part)} is no range of nodes from 0 to 1023")
        mask |= (1 << int(high or low) + 1) - (1 << int(low))
    return mask


def _node_numbers(text: str, kernel: Any) -> tuple[int, ...]:
    """A node for all pages, or one for each: ``1`` or ``0,1,1``. A number that is no node's is the call's to refuse."""
    if re.fullmatch(r"-?[0-9]{1,5}(,-?[0-9]{1,5})*", text, re.ASCII) is None:
        invalid(f"{quoted(text)} is no node; write 1 or 0,1,1")
    return tuple(int(part) for part in text.split(","))


Mode = Annotated[int, WordType("MODE", "MPOL_BIND|MPOL_F_STATIC_NODES..., or a number", _mode)]
Nodes = Annotated[int, WordType("NODES", "a set of nodes: 0-1,3 or a mask 0x3, or none", _nodes, node_list)]
NodeNumbers = Annotated[tuple[int, ...], WordType("NODE", "a node, or one for each page: 0,1,1", _node_numbers)]
GetFlags = Annotated[int, WordType("FLAGS", "MPOL_F_NODE|MPOL_F_ADDR|MPOL_F_MEMS_ALLOWED", _get_flags)]
MoveFlags = Annotated[int, WordType("FLAGS", "MPOL_MF_STRICT|MPOL_MF_MOVE|MPOL_MF_MOVE_ALL", _move_flags)]


@verb
def set_mempolicy(
    kernel: Kernel, pid: Pid, mode: Mode, nodes: Nodes = 0, *, maxnode: Number = m.MAX_NUMNODES + 1
) -> Reply:
    """Set the policy by which a process gets pages where its mappings have none.

    The nodes are a list or a mask. EINVAL for a mode that takes none, or needs some that are there.
    """
    task = run_as(kernel, pid)
    kernel.mempolicy.set_mempolicy(task, mode, nodes, maxnode)
    return Reply({"pid": pid, "policy": _word(m.mpol_to_str(task.mm.policy if task.mm is not None else None))})


@verb
def get_mempolicy(kernel: Kernel, pid: Pid, addr: Address | None = None, *, flags: GetFlags = 0) -> Reply:
    """The policy of a process, or with flags=MPOL_F_ADDR of a mapping.

    MPOL_F_NODE asks for the node of the page at the address, which is faulted in, or for the next that an
    interleaving process uses.
    """
    task = run_as(kernel, pid)
    mode, nodes = kernel.user.mbind.get_mempolicy(task, addr.address if addr is not None else 0, flags)
    return Reply({"pid": pid, "node" if flags & m.MPOL_F_NODE else "mode": mode, "nodes": node_list(nodes) or "none"})


@verb
def mbind(
    kernel: Kernel,
    pid: Pid,
    addr: Address,
    length: Size,
    mode: Mode,
    nodes: Nodes = 0,
    *,
    maxnode: Number = m.MAX_NUMNODES + 1,
    flags: MoveFlags = 0,
) -> Slices:
    """Set the policy of a range of a process' memory.

    flags=MPOL_MF_MOVE moves pages that are elsewhere and that no one else maps, MPOL_MF_MOVE_ALL all; MPOL_MF_STRICT
    fails with EIO when some stay. EFAULT where nothing is mapped.
    """
    task = run_as(kernel, pid)
    moved = _migrated(kernel)
    yield from kernel.user.mbind.mbind(task, addr.address, length, mode, nodes, maxnode, flags)
    vma = task.mm.find(addr.address) if task.mm is not None else None
    policy = kernel.mempolicy.own_policy(vma, addr.address >> PAGE_SHIFT) if vma is not None else None
    return Reply({"pid": pid, "policy": _word(m.mpol_to_str(policy)), "moved": _migrated(kernel) - moved})


@verb
def set_mempolicy_home_node(kernel: Kernel, pid: Pid, addr: Address, length: Size, node: Number) -> Reply:
    """Where bound, or preferred-many, memory of a range comes from first."""
    task = run_as(kernel, pid)
    kernel.user.mbind.set_home_node(task, addr.address, length, node)
    return Reply({"pid": pid, "node": node})


@verb
def migrate_pages(kernel: Kernel, pid: Pid, old: Nodes, new: Nodes) -> Slices:
    """Move all pages of a process from some nodes to others, the first to the first and so on.

    The caller is the task that the line runs as (pid=); the superuser moves shared pages, too. left= counts pages that
    could not be moved.
    """
    task, caller = kernel.tasks.find(pid), kernel.tasks.current()
    moved = _migrated(kernel)
    left = yield from kernel.user.mbind.migrate_pages(caller, task, old, new)
    return Reply({"pid": pid, "moved": _migrated(kernel) - moved, "left": left})


@verb
def move_pages(
    kernel: Kernel,
    pid: Pid,
    addr: Address,
    nodes: NodeNumbers = (),
    *,
    n: Number = 1,
    flags: MoveFlags = m.MPOL_MF_MOVE,
) -> Slices:
    """Move n pages from an address on to a node, or each to its own; without a node, ask where they are.

    status= has for each page its node, or the error: EFAULT nothing or the zero page, ENOENT not in memory, EACCES
    shared and not moved without MPOL_MF_MOVE_ALL, EBUSY not on an LRU list. left= counts pages that stayed.
    """
    task, caller = kernel.tasks.find(pid), kernel.tasks.current()
    if not 0 < n <= MAX_PAGES:
        invalid(f"n= is 1 to {MAX_PAGES}")
    if len(nodes) not in (0, 1, n):
        invalid(f"{len(nodes)} nodes for {n} pages; give one, or one for each")
    addresses = [addr.address + (i << PAGE_SHIFT) for i in range(n)]
    targets = None if not nodes else list(nodes) * (n if len(nodes) == 1 else 1)
    left, status = yield from kernel.user.mbind.move_pages(caller, task, addresses, targets, flags if nodes else 0)
    words = ",".join(str(found) if found >= 0 else errno.errorcode[-found] for found in status)
    return Reply({"pid": pid, "left": left, "status": words})


@allocator
def numa_alloc_onnode(kernel: Kernel, pid: Pid, length: Size, node: Node) -> Slices:
    """Map memory that comes from one node alone: mmap and mbind, as libnuma does it."""
    task = run_as(kernel, pid)
    request = Request(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    address = kernel.user.spaces.mmap(task, request).address
    try:
        yield from kernel.user.mbind.mbind(task, address, length, m.MPOL_BIND, 1 << node)
    except KernelError:
        kernel.user.spaces.munmap(task, address, length)
        raise
    handle = Handle(Kind.MAPPING, addresses=np.array([address], dtype=np.uint64), size=length, pid=pid)
    return Reply({"pid": pid, "addr": f"{address:#x}", "size": length, "node": node}, handle)


def _word(text: str) -> str:
    """A policy's text as one word of a reply."""
    return text.replace(" ", "")


def _migrated(kernel: Kernel) -> int:
    return int(kernel.vmstat.events[stats.PGMIGRATE_SUCCESS])
