"""Verbs of kernel code that moves bytes: ``memset``, ``print_hex_dump``, ``copy_to_user``, ``copy_from_user``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, Slices, invalid, verb
from kmemd.control.verbs_access import places
from kmemd.control.verbs_mm import run_as
from kmemd.control.words import Address, Number, Pid, Size
from kmemd.core import mmu as core
from kmemd.errors import KernelError
from kmemd.mm.oops import KernelAccess
from kmemd.mm.printk import KERN_DEBUG
from kmemd.mm.signals import Signal
from kmemd.mm.slub_report import hex_dump
from kmemd.mm.units import PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

DUMPED = 4096
COPIED = 1 << 20
SET_MAX = 1 << 26


@verb
def memset(kernel: Kernel, where: Address, byte: Number, length: Size) -> Slices:
    """Fill kernel memory with a byte, as code does that may be wrong about the length.

    What is written past an object, or into one that is free, is found by the guards that are on (slub_debug=, KFENCE,
    page_poison=) when they look. EFAULT, and the kernel's report of a page fault, where nothing may be written.
    """
    if not length or length > SET_MAX:
        invalid(f"length: 1 to {SET_MAX} bytes")
    start, done, until = where.address, 0, 0
    while done < length:
        at = start + done
        count = min(length - done, PAGE_SIZE - at % PAGE_SIZE)
        until = _must_be_mapped(kernel, at, write=True) if at >= until else until
        kernel.kernel_write.store(at, bytes([byte & 0xFF]) * count)
        if kernel.kmemleak.enabled:
            _overwrite_pointers(kernel, at, byte & 0xFF, count)
        done += count
        yield
    if kernel.kmemleak.enabled:
        kernel.kmemleak.memset(start, byte, length)
    return Reply({"addr": f"{start:#x}", "n": length})


def _overwrite_pointers(kernel: Kernel, start: int, byte: int, count: int) -> None:
    """Words that objects hold are gone: kmemleak finds a pattern in their place."""
    word = kernel.layout.pointer_size
    words = np.arange(-(-start // word) * word, start + count - word + 1, word, dtype=np.uint64)
    pattern = int.from_bytes(bytes([byte]) * word, "little")
    kernel.kmemleak.store_bulk(words, 0, np.full(len(words), pattern, dtype=np.uint64))


@verb
def print_hex_dump(kernel: Kernel, where: Address, length: Size = 64) -> Reply:
    """Log bytes of kernel memory, as print_hex_dump(KERN_DEBUG, …, DUMP_PREFIX_ADDRESS) does; the reply has them, too.

    EFAULT, and the kernel's report of a page fault, where nothing is mapped.
    """
    if not 0 < length <= DUMPED:
        invalid(f"length: 1 to {DUMPED} bytes")
    for at in range(where.address & -PAGE_SIZE, where.address + length, PAGE_SIZE):
        _must_be_mapped(kernel, max(at, where.address), write=False)
    data = kernel.kernel_write.load(where.address, length)
    for line in hex_dump("", where.address, data, kernel.layout.pointer_size):
        kernel.printk.log(KERN_DEBUG, line)
    return Reply({"addr": f"{where.address:#x}", "size": length, "data": data.hex()})


@verb
def copy_to_user(kernel: Kernel, pid: Pid, target: Address, source: Address, length: Size) -> Reply:
    """Copy bytes of the kernel to a program's memory. EFAULT, and a BUG, when they are not all of one object.

    A system call that gives away more than an object holds is stopped (hardened_usercopy=). EFAULT also when the
    program's memory may not be written.
    """
    return _copy(kernel, pid, target.address, source.address, length, to_user=True)


@verb
def copy_from_user(kernel: Kernel, pid: Pid, target: Address, source: Address, length: Size) -> Reply:
    """Copy bytes of a program's memory into the kernel's. EFAULT, and a BUG, when they do not fit one object.

    EFAULT also when the program's memory may not be read.
    """
    return _copy(kernel, pid, source.address, target.address, length, to_user=False)


def _copy(kernel: Kernel, pid: int, user: int, address: int, length: int, *, to_user: bool) -> Reply:
    if not 0 < length <= COPIED:
        invalid(f"length: 1 to {COPIED} bytes")
    task = run_as(kernel, pid)
    kernel.usercopy.check_object_size(address, length, to_user=to_user)
    done = 0
    try:
        for pfn, offset, count in places(kernel, task, user, length, core.WRITE if to_user else core.READ):
            _must_be_mapped(kernel, address + done, write=not to_user)
            _move(kernel, pfn, offset, address + done, count, to_user)
            done += count
    except Signal:
        raise KernelError(errno.EFAULT, f"{length - done} bytes of the program are left, at {user + done:#x}") from None
    return Reply({"pid": pid, "n": done})


def _move(kernel: Kernel, pfn: int, offset: int, address: int, count: int, to_user: bool) -> None:
    if to_user:
        kernel.contents.write(pfn, offset, kernel.kernel_write.load(address, count))
    else:
        kernel.kernel_write.store(address, kernel.contents.read(pfn, offset, count))


def _must_be_mapped(kernel: Kernel, address: int, *, write: bool) -> int:
    """Where the mapping of an address ends. EFAULT and an oops where the kernel may not go."""
    access = KernelAccess(address, write=write)
    code = kernel.oops.fault(access)
    if code >= 0:
        kernel.oops.page_fault(access, code)
        raise KernelError(errno.EFAULT, f"{address:#x} is not mapped, or may not be written")
    leaf = kernel.init_mm.lookup(address)
    return address if leaf is None else leaf.end
