"""``/sys/devices/system/memory`` (drivers/base/memory.c): memory in blocks that could be switched on and off.

All blocks are online and stay so: hotplug is left out, and the files that would ask for it refuse with EINVAL or EBUSY.
i386 kernels are built without memory hotplug and do not have the directory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.setup import memory_block_size
from kmemd.mm.units import PAGE_SIZE
from kmemd.views.tree import Caller, sysfs

BASE = "devices/system/memory"
BLOCK = f"{BASE}/memory{{block}}"


def _has_blocks(kernel: Kernel) -> bool:
    return kernel.machine.numa


sysfs.dir(BASE, exists=_has_blocks)


def block_size(kernel: Kernel) -> int:
    """Bytes of a block."""
    return memory_block_size(max(zone.end_pfn for zone in kernel.zones))


@sysfs.file(f"{BASE}/block_size_bytes")
def block_size_bytes(kernel: Kernel) -> str:
    """The size of a block, in hexadecimal."""
    return f"{block_size(kernel):x}\n"


@sysfs.file(f"{BASE}/auto_online_blocks", mode=0o644)
def auto_online_blocks(kernel: Kernel) -> str:
    """What would become of memory that is plugged in."""
    return "offline\n"


@auto_online_blocks.store
def auto_online_blocks_store(kernel: Kernel, text: str) -> None:
    """No memory is ever plugged in: only the present setting is taken."""
    if text.strip() != "offline":
        raise KernelError(errno.EINVAL, "memory hotplug is not modelled; only offline is taken")


@sysfs.keys(BLOCK, fixed=True)
def blocks(kernel: Kernel) -> Iterable[int]:
    """Blocks that hold any memory, ascending."""
    return sorted({block for nid in range(len(kernel.nodes)) for block in node_blocks(kernel, nid)})


def node_blocks(kernel: Kernel, nid: int) -> list[int]:
    """The blocks that hold memory of one node."""
    pages = block_size(kernel) // PAGE_SIZE
    found: set[int] = set()
    for zone in kernel.nodes[nid].zones:
        for low, high in zone.online:
            found |= set(range(low // pages, -(-high // pages)))
    return sorted(found)


def block_nodes(kernel: Kernel, block: int) -> list[int]:
    """The nodes that have memory in a block."""
    return [node.nid for node in kernel.nodes if block in node_blocks(kernel, node.nid)]


@sysfs.file(f"{BLOCK}/state", mode=0o644)
def state(kernel: Kernel, block: int) -> str:
    """Whether the block is in use."""
    return "online\n"


@state.store
def state_store(kernel: Kernel, block: int, text: str) -> None:
    """A block that is online can be told so; offline is refused as when pages cannot move."""
    if text.strip() == "offline":
        raise KernelError(errno.EBUSY, "memory hotplug is not modelled: the block stays online")
    if text.strip() not in ("online", "online_kernel", "online_movable"):
        raise KernelError(errno.EINVAL, "state takes online, online_kernel, online_movable or offline")


@sysfs.file(f"{BLOCK}/online", mode=0o644)
def online(kernel: Kernel, block: int) -> str:
    """1: the block is in use."""
    return "1\n"


@online.store
def online_store(kernel: Kernel, block: int, text: str) -> None:
    """1 changes nothing; 0 is refused."""
    if text.strip() in ("0", "n", "N", "off"):
        raise KernelError(errno.EBUSY, "memory hotplug is not modelled: the block stays online")
    if text.strip() not in ("1", "y", "Y", "on"):
        raise KernelError(errno.EINVAL, "online takes 0 or 1")


@sysfs.file(f"{BLOCK}/phys_index")
def phys_index(kernel: Kernel, block: int) -> str:
    """The block's number, in hexadecimal."""
    return f"{block:08x}\n"


@sysfs.file(f"{BLOCK}/phys_device")
def phys_device(kernel: Kernel, block: int) -> str:
    """A number that other architectures use."""
    return "0\n"


@sysfs.file(f"{BLOCK}/removable")
def removable(kernel: Kernel, block: int) -> str:
    """Whether the kernel knows how to take memory out at all: it does not."""
    return "0\n"


@sysfs.file(f"{BLOCK}/valid_zones")
def valid_zones(kernel: Kernel, block: int) -> str:
    """The zone that the whole block is in, or none."""
    pages = block_size(kernel) // PAGE_SIZE
    zones = {
        zone.index: zone.name
        for zone in kernel.zones
        if any(low < (block + 1) * pages and high > block * pages for low, high in zone.online)
    }
    return (next(iter(zones.values())) if len(zones) == 1 else "none") + "\n"


@sysfs.file(f"{BLOCK}/uevent", mode=0o644)
def uevent(kernel: Kernel, block: int) -> str:
    """Nothing to tell."""
    return ""


@sysfs.link(f"{BLOCK}/subsystem")
def subsystem(kernel: Kernel, block: int, caller: Caller) -> str:
    """The bus that memory blocks are on."""
    return "../../../../bus/memory"


@sysfs.link(f"{BLOCK}/node{{nid}}")
def block_node(kernel: Kernel, block: int, nid: int, caller: Caller) -> str:
    """The node that the block belongs to."""
    return f"../../node/node{nid}"


@sysfs.keys(f"{BLOCK}/node{{nid}}", fixed=True)
def block_node_keys(kernel: Kernel, block: int) -> Iterable[int]:
    """The nodes of a block."""
    return block_nodes(kernel, block)


@sysfs.link("devices/system/node/node{nid}/memory{block}")
def node_memory(kernel: Kernel, nid: int, block: int, caller: Caller) -> str:
    """The block's own directory."""
    return f"../../memory/memory{block}"


@sysfs.keys("devices/system/node/node{nid}/memory{block}", fixed=True)
def node_memory_keys(kernel: Kernel, nid: int) -> Iterable[int]:
    """The node's blocks."""
    return node_blocks(kernel, nid) if _has_blocks(kernel) else ()
