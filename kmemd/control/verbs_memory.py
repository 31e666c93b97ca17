"""Verbs that write memory: pointers that objects hold, which kmemleak follows (include/asm-generic/rwonce.h)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, verb
from kmemd.control.words import Address, Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Kind, Pointers

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


@verb
def WRITE_ONCE(kernel: Kernel, where: Address, value: Address) -> Reply:
    """Store a pointer into memory: one word at an object and an offset, ``WRITE_ONCE a+8 b``.

    kmemleak follows the pointers that objects hold, so b may then be dropped with forget and is found as long as
    a is. A handle of several items stands for all of them: item i of where gets item i of value, or the one value
    there is. 0 is NULL. EINVAL for an address that is no multiple of a pointer's size, EFAULT outside of the
    kernel's memory.
    """
    targets = _words(where)
    values = _words(value)
    if len(values) not in (1, len(targets)):
        reason = f"{where.name} has {len(targets)} items, {value.name} has {len(values)}"
        raise KernelError(errno.EINVAL, reason)
    size = kernel.layout.pointer_size
    if (targets % np.uint64(size)).any():
        raise KernelError(errno.EINVAL, f"{where.text} is not aligned to {size} bytes")
    for address in (int(targets.min()), int(targets.max())):
        if not (kernel.layout.virt_addr_valid(address) or kernel.layout.is_vmalloc_addr(address)):
            raise KernelError(errno.EFAULT, f"{address:#x} is not memory of the kernel")
    values = np.broadcast_to(values, targets.shape)
    if kernel.kmemleak.enabled:
        for target, pointer in zip(targets.tolist(), values.tolist(), strict=True):
            kernel.kmemleak.store(target, pointer)
    return Reply({"addr": f"{int(targets[0]):#x}", "value": f"{int(values[0]):#x}", "n": len(targets)})


def _words(what: Reference) -> Pointers:
    """The addresses an address word stands for: all items of a handle (the first block of pages), or one address."""
    if what.handle is None or what.index is not None or what.handle.kind is Kind.PAGES:
        return np.array([what.address], dtype=np.uint64)
    return what.handle.addresses + np.uint64(what.offset)
