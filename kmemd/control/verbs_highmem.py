"""Verbs of high memory: ``kmap``, ``kmap_local_page``, ``kmap_atomic`` and what undoes them (mm/highmem.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, Slices, allocator, invalid, verb
from kmemd.control.words import Address, Count, Number, Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Handle, Kind, no_pointers
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

CHUNK = 256


@allocator
def kmap(
    kernel: Kernel,
    pages: Address | None = None,
    *,
    pfn: Number | None = None,
    every: Count = 1,
    n: Count | None = None,
) -> Slices:
    """Map pages of a handle, or the page frame pfn=, into the kernel; the address stays until kunmap.

    The first page of each block; NAME[3]+4096 is the second page of one block. A low page has its address for good.
    When all slots are in use the task sleeps: the line fails with EAGAIN, and the kunmap that wakes the task maps
    the page, which NAME then holds.
    """
    handle = Handle(Kind.KMAP, size=1 << PAGE_SHIFT)
    wanted = list(_pfns(kernel, pages, pfn, every, n))
    got: list[int] = []
    partial = ""
    for done, frame in enumerate(wanted, 1):
        try:
            got.append(kernel.highmem.kmap(frame, lambda address: _add(handle, address)))
        except KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
            partial = f"{error.reason}; mapped {len(got)} of {len(wanted)}"
            break
        if done % CHUNK == 0:
            yield
    handle.addresses = np.array(got, dtype=np.uint64)
    words: dict[str, int | str] = {"pfn": wanted[0], "addr": f"{handle.address:#x}", "n": len(got)}
    return Reply(words, handle, partial)


def _add(handle: Handle, address: int) -> None:
    """A task that slept in kmap has its mapping: the handle holds it."""
    handle.addresses = np.append(handle.addresses, np.uint64(address))


def _pfns(
    kernel: Kernel, pages: Reference | None, pfn: int | None, every: int = 1, n: int | None = None
) -> Iterator[int]:
    """The page frames that are meant. EINVAL for a handle of anything else, or for none."""
    if (pages is None) == (pfn is None):
        invalid("a handle of pages, an address or pfn=, one of them")
    if pages is None:
        yield int(pfn or 0)
    elif pages.handle is None:
        yield _pfn_at(kernel, pages.address)
    elif pages.handle.kind is Kind.PAGES:
        inner = pages.offset >> PAGE_SHIFT
        if inner >> pages.handle.order:
            invalid(f"{pages.name} has blocks of order {pages.handle.order}, no page {inner}")
        for position in pages.positions(every, n):
            yield int(pages.handle.pfns[position]) + inner
    elif pages.handle.kind is Kind.KMAP:
        for position in pages.positions(every, n):
            yield _pfn_at(kernel, int(pages.handle.addresses[position]))
    else:
        raise KernelError(errno.EINVAL, f"{pages.name} is {pages.handle.kind}, not pages")


def _pfn_at(kernel: Kernel, address: int) -> int:
    """The page frame behind an address: of kmap, of a local mapping, or of the direct map. EFAULT."""
    pfn = kernel.highmem.to_pfn(address)
    return pfn if pfn >= 0 else kernel.layout.virt_to_pfn(address)


@verb
def kunmap(
    kernel: Kernel,
    pages: Address | None = None,
    *,
    pfn: Number | None = None,
    every: Count = 1,
    n: Count | None = None,
) -> Slices:
    """Undo kmap, once for each page: of a handle of pages or of what kmap gave, of an address, or pfn=.

    A page that is not mapped, or was unmapped as often as it was mapped, is the kernel's "kernel BUG at mm/highmem.c"
    report.
    """
    frames = list(_pfns(kernel, pages, pfn, every, n))
    done = 0
    try:
        for frame in frames:
            kernel.highmem.kunmap(frame)
            done += 1
            if done % CHUNK == 0:
                yield
    finally:
        if pages is not None and pages.handle is not None and pages.handle.kind is Kind.KMAP:
            _let_go(kernel, pages, pages.positions(every, n)[:done])
    return Reply({"pfn": frames[0], "n": done})


def _let_go(kernel: Kernel, where: Reference, positions: range) -> None:
    """A handle of mappings drops those that were undone; one without items is gone."""
    handle = where.handle
    assert handle is not None
    handle.addresses = np.delete(handle.addresses, np.array(positions, dtype=np.int64))
    if len(handle) == 0 and where.name in kernel.handles:
        kernel.handles.forget(where.name)


@allocator
def kmap_local_page(kernel: Kernel, pages: Address | None = None, *, pfn: Number | None = None) -> Reply:
    """Map one page for the task that runs, on its CPU. Undo such mappings in reverse order.

    16 at once are the kernel's "kernel BUG at mm/highmem.c" report.
    """
    return _local(kernel, pages, pfn, atomic=False)


@allocator
def kmap_atomic(kernel: Kernel, pages: Address | None = None, *, pfn: Number | None = None) -> Reply:
    """Map one page for a task that must not sleep until kunmap_atomic.

    An allocation that may wait, kmap and sleep are then reported, as the kernel does: "BUG: sleeping function called
    from invalid context", "BUG: scheduling while atomic".
    """
    return _local(kernel, pages, pfn, atomic=True)


def _local(kernel: Kernel, pages: Reference | None, pfn: int | None, *, atomic: bool) -> Reply:
    frame = next(_pfns(kernel, pages, pfn))
    address = kernel.highmem.kmap_atomic(frame) if atomic else kernel.highmem.kmap_local_page(frame)
    handle = Handle(Kind.KMAP, np.array([address], dtype=np.uint64), size=1 << PAGE_SHIFT)
    return Reply({"pfn": frame, "addr": f"{address:#x}", "cpu": kernel.context.cpu}, handle)


@verb
def kunmap_local(kernel: Kernel, mapping: Address) -> Reply:
    """Undo kmap_local_page, by its handle or any address in the page.

    Out of order, the kernel warns and takes away the mapping that was made last.
    """
    return _undo(kernel, mapping, atomic=False)


@verb
def kunmap_atomic(kernel: Kernel, mapping: Address) -> Reply:
    """Undo kmap_atomic, by its handle or any address in the page; the task may sleep again after the last one."""
    return _undo(kernel, mapping, atomic=True)


def _undo(kernel: Kernel, mapping: Reference, *, atomic: bool) -> Reply:
    if mapping.handle is not None and (mapping.handle.kind is not Kind.KMAP or len(mapping.handle) != 1):
        raise KernelError(errno.EINVAL, f"{mapping.name} is no single mapping of kmap_local_page or kmap_atomic")
    undo = kernel.highmem.kunmap_atomic if atomic else kernel.highmem.kunmap_local
    undo(mapping.address)
    if mapping.handle is not None:
        mapping.handle.addresses = no_pointers()
        kernel.handles.forget(mapping.name)
    return Reply({"addr": f"{mapping.address:#x}", "preempt_count": kernel.preempt.current().preempt_count})
