"""Verbs that write memory: pointers that objects hold, which kmemleak follows (include/asm-generic/rwonce.h)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, Slices, verb
from kmemd.control.words import Address, Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Kind, Pointers
from kmemd.mm.oops import PF_PROT, KernelAccess
from kmemd.mm.pace import pieces
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

STORES = 1 << 14
"""Words written before others may get in."""
GUARDED_STORES = 64
"""As many while a guard keeps bytes."""


@verb
def WRITE_ONCE(kernel: Kernel, where: Address, value: Address) -> Slices:
    """Store a pointer into memory: one word at an object and an offset, ``WRITE_ONCE a+8 b``.

    kmemleak follows the pointers that objects hold, so b may then be dropped with forget and is found as long as
    a is. A handle of several items stands for all of them: item i of where gets item i of value, or the one value
    there is. 0 is NULL. EINVAL for an address that is no multiple of a pointer's size; EFAULT, and the kernel's
    report of a page fault, where nothing is mapped: behind a vmalloc area is a guard page.
    """
    targets = _words(where)
    values = _words(value)
    if len(values) not in (1, len(targets)):
        reason = f"{where.name} has {len(targets)} items, {value.name} has {len(values)}"
        raise KernelError(errno.EINVAL, reason)
    yield from _check(kernel, where, targets)
    values = np.broadcast_to(values, targets.shape)
    for start in range(0, len(targets) if kernel.kmemleak.enabled else 0, STORES):
        kernel.kmemleak.store_bulk(targets[start : start + STORES], 0, values[start : start + STORES])
        yield
    if kernel.kernel_write.watching:
        for number, (target, word) in enumerate(zip(targets.tolist(), values.tolist(), strict=True)):
            kernel.kernel_write.store(target, word.to_bytes(8, "little")[: kernel.layout.pointer_size], keep=False)
            if number % GUARDED_STORES == 0:
                yield
    return Reply({"addr": f"{int(targets[0]):#x}", "value": f"{int(values[0]):#x}", "n": len(targets)})


def _check(kernel: Kernel, where: Reference, targets: Pointers) -> Steps[None]:
    """Nothing is written unless all targets are aligned and mapped. EINVAL, EFAULT."""
    size = kernel.layout.pointer_size
    for part in pieces(targets, STORES):
        if (part % np.uint64(size)).any():
            raise KernelError(errno.EINVAL, f"{where.text} is not aligned to {size} bytes")
        yield
    for part in pieces(targets, STORES):
        fault = kernel.init_mm.first_unwritable(part)
        if fault is not None:
            access = KernelAccess(fault, write=True)
            code = kernel.oops.fault(access)
            kernel.oops.page_fault(access, max(code, 0))
            reason = "may not be written" if code & PF_PROT else "is not mapped"
            raise KernelError(errno.EFAULT, f"{fault:#x} {reason}")
        yield


def _words(what: Reference) -> Pointers:
    """The addresses an address word stands for: all items of a handle (the first block of pages), or one address."""
    if what.handle is None or what.index is not None or what.handle.kind is Kind.PAGES:
        return np.array([what.address], dtype=np.uint64)
    return what.handle.addresses + np.uint64(what.offset)
