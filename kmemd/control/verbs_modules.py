"""Verbs of memory for code: modules, and programs of BPF (kernel/module/main.c, kernel/bpf/core.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kmemd.control.bulk import Batch, gather, release
from kmemd.control.language import Reply, Slices, allocator, verb
from kmemd.control.words import Address, Count, Size, Text
from kmemd.errors import KernelError
from kmemd.mm.handles import Handle, Kind
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PROGRAMS_PER_CHUNK = 32
KIB_64, KIB_16, KIB_8 = 64 << 10, 16 << 10, 8 << 10


@verb
def init_module(kernel: Kernel, name: Text, *, text: Size = KIB_64, rodata: Size = KIB_16, data: Size = KIB_8) -> Reply:
    """Load a module: an area for its code, its constants and its data, in whole pages.

    Code is then read-only and executable, constants are read-only. EEXIST for a module that is there, also for one that
    is there because a call site named it (by=probe+0x2a[drv]).
    """
    module = kernel.modules.load(name, text, rodata, data)
    return Reply({"addr": f"{module.address:#x}", "size": module.size, **{k: f"{v:#x}" for k, v in module.sections()}})


@verb
def delete_module(kernel: Kernel, name: Text) -> Reply:
    """Unload a module that init_module loaded. ENOENT."""
    module = kernel.modules.unload(name)
    return Reply({"addr": f"{module.address:#x}", "size": module.size})


@allocator
def bpf_prog_load(kernel: Kernel, length: Size, *, n: Count = 1) -> Slices:
    """Load a program of BPF, or n of them, whose compiled code has so many bytes.

    Programs share areas of read-only, executable memory; on i386 each has pages of its own. Memory that runs out in the
    midst of n= is EAGAIN, as with alloc_pages.
    """

    def load(count: int) -> Steps[list[int]]:
        found: list[int] = []
        try:
            for _ in range(count):
                found.append(kernel.bpf.load(length))
                yield
        except KernelError as error:
            if error.errno != errno.ENOMEM or not found:
                raise
        return found

    reason = f"no room for programs of {length} bytes"
    batch = Batch(n, kernel.layout.max_pfn, reason, PROGRAMS_PER_CHUNK, lambda: kernel.page_alloc.slow_paths)
    got = yield from gather(batch, np.uint64, load)
    handle = Handle(Kind.BPF, got.items, size=length)
    return Reply({"addr": f"{handle.address:#x}", "size": length, "n": len(handle)}, handle, got.partial(n))


@verb
def bpf_prog_free(kernel: Kernel, program: Address, *, every: Count = 1, n: Count | None = None) -> Slices:
    """Give back programs of a handle, or the one at an address. every= and n= choose items as with free_pages."""
    handle = program.handle
    if handle is None or program.offset:
        kernel.bpf.free(program.address)
        return Reply({"addr": f"{program.address:#x}", "n": 1})
    if handle.kind is not Kind.BPF:
        raise KernelError(errno.EINVAL, f"{program.name} is {handle.kind}; bpf_prog_free takes programs")

    def free(positions: NDArray[np.int64]) -> Steps[None]:
        for address in handle.addresses[positions].tolist():
            kernel.bpf.free(address)
            yield

    first = int(handle.addresses[program.index or 0])
    positions = program.positions(every, n)
    done = yield from release(kernel.handles, program, positions, free, PROGRAMS_PER_CHUNK)
    return Reply({"addr": f"{first:#x}", "n": done})
