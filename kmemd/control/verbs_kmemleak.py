"""Verbs by which code tells kmemleak of objects: ``kmemleak_not_leak`` and its likes (include/linux/kmemleak.h)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, Slices, verb
from kmemd.control.words import Address, Reference, Size
from kmemd.errors import KernelError
from kmemd.mm.handles import Pointers

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

TOLD = 1024
"""Objects told of before others may get in."""


@verb
def kmemleak_not_leak(kernel: Kernel, where: Address) -> Slices:
    """Never report an object, and scan it: grey. A handle of several items stands for all of them.

    An address where no object begins gets the kernel's warning. EPERM after echo off > kmemleak, or kmemleak=off.
    """
    return (yield from _tell(kernel, where, kernel.kmemleak.not_leak))


@verb
def kmemleak_ignore(kernel: Kernel, where: Address) -> Slices:
    """Neither report nor scan an object: black. EPERM when kmemleak is off."""
    return (yield from _tell(kernel, where, kernel.kmemleak.ignore))


@verb
def kmemleak_no_scan(kernel: Kernel, where: Address) -> Slices:
    """An object holds no pointers; it can leak all the same. EPERM when kmemleak is off."""
    return (yield from _tell(kernel, where, kernel.kmemleak.no_scan))


@verb
def kmemleak_scan_area(kernel: Kernel, where: Address, size: Size | None = None) -> Slices:
    """Only size bytes from an address in an object on hold pointers, and areas told of before: to its end without size.

    The kernel warns of an area that is larger than its object, and of one in no object. EPERM when kmemleak is off.
    """
    return (yield from _tell(kernel, where, lambda address: kernel.kmemleak.scan_area(address, size)))


@verb
def kmemleak_update_trace(kernel: Kernel, where: Address) -> Slices:
    """The call site of this line (by=) stands in reports of the object from now on. EPERM when kmemleak is off."""
    return (yield from _tell(kernel, where, kernel.kmemleak.update_trace))


def _tell(kernel: Kernel, where: Reference, function: Callable[[int], None]) -> Slices:
    """Call a function of kmemleak for every item of an address word."""
    if not kernel.kmemleak.enabled:
        raise KernelError(errno.EPERM, "kmemleak was turned off, which cannot be undone")
    addresses = _addresses(where)
    for start in range(0, len(addresses), TOLD):
        for address in addresses[start : start + TOLD].tolist():
            function(address)
        yield
    return Reply({"addr": f"{int(addresses[0]):#x}", "n": len(addresses)})


def _addresses(what: Reference) -> Pointers:
    if what.handle is None or what.index is not None:
        return np.array([what.address], dtype=np.uint64)
    return what.handle.addresses + np.uint64(what.offset)
