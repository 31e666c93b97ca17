"""Memory for code: modules, and what the BPF compiler makes (arch/x86/kernel/module.c ``module_alloc``, kernel/module/
main.c and strict_rwx.c, kernel/bpf/core.c ``bpf_prog_pack_alloc``).

Code is never writable and executable at once: it is written first, then read-only, then executable. A module is one
area: its text, constants behind it, data behind these. Programs of BPF share packs of 2 MiB for each node, in units of
64 bytes; an empty pack goes. Left out: init sections, which are gone when a module lives, ``ro_after_init``; of a
program all but its compiled image; the alias in the direct map, which change_page_attr makes read-only, too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.set_memory import SetMemory
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import MIB, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmalloc import Request, Vmalloc
from kmemd.mm.vmap_area import FreeSpace
from kmemd.steps import finish

LOAD = ("move_module", "layout_and_allocate", "load_module", "__do_sys_finit_module")
PACK = ("bpf_prog_pack_alloc", "bpf_jit_binary_pack_alloc", "bpf_int_jit_compile", "bpf_prog_select_runtime")
BINARY = ("bpf_jit_alloc_exec", "bpf_jit_binary_alloc", "bpf_int_jit_compile", "bpf_prog_select_runtime")
NAME = re.compile(r"[\w-]{1,55}")
CHUNK = 64
"""BPF_PROG_CHUNK_SIZE."""
HEADER, ILLEGAL, ILLEGAL_OWN = 8, 16, 128
"""Bytes of a program besides its instructions: its header, and illegal ones in a pack or in pages of its own."""
PACK_HEAD = 32
"""Bytes of a pack's descriptor in front of its bits."""


class CodeMemory:
    """``module_alloc``, and what becomes of its memory. ``kernel_data()`` marks what is made inside as the kernel's
    own; ``rodata``: code is protected (``rodata=``).
    """

    def __init__(
        self,
        vmalloc: Vmalloc,
        set_memory: SetMemory,
        context: Context,
        depot: StackDepot,
        kernel_data: Callable[[], AbstractContextManager[None]],
        *,
        rodata: bool,
    ) -> None:
        self._vmalloc = vmalloc
        self._set_memory = set_memory
        self._context = context
        self._depot = depot
        self._kernel_data = kernel_data
        self._rodata = rodata

    def alloc(self, size: int, frames: tuple[str, ...]) -> int:
        """An area of the modules' space, writable, for ``frames``. ENOMEM."""
        outer = self._context.site
        self._context.site = self._depot.extend(outer, frames)
        try:
            with self._kernel_data():
                steps = self._vmalloc.alloc_steps(size, Request(function="module_alloc", module=True))
                return finish(steps).address
        finally:
            self._context.site = outer

    def protect(self, start: int, text: int, rodata: int = 0) -> None:
        """Make bytes of code and of constants behind them read-only, and the code executable (``module_enable_x``).

        EACCES when the code is still writable and the policy does not allow that.
        """
        if self._rodata:
            self._set_memory.change("set_memory_ro", start, text + rodata >> PAGE_SHIFT)
        if text:
            self._set_memory.change("set_memory_x", start, text >> PAGE_SHIFT)

    def free(self, address: int) -> None:
        """Give an area back; its protections go with it (``module_memfree``)."""
        self._vmalloc.vfree(address)


@dataclass(frozen=True)
class Module:
    """A module that was loaded: where it is, and the bytes of its parts in whole pages."""

    name: str
    address: int
    text: int
    rodata: int
    data: int

    @property
    def size(self) -> int:
        """All of it."""
        return self.text + self.rodata + self.data

    def sections(self) -> Iterator[tuple[str, int]]:
        """Those that it has, and where they begin."""
        at = self.address
        for name, size in ((".text", self.text), (".rodata", self.rodata), (".data", self.data)):
            if size:
                yield name, at
            at += size


class Modules:
    """The modules that were loaded. ``place(name, start, end)`` tells the symbol table of one's text, ``drop(name)``
    that it is gone.
    """

    def __init__(self, memory: CodeMemory, place: Callable[[str, int, int], None], drop: Callable[[str], None]) -> None:
        self._memory = memory
        self._place, self._drop = place, drop
        self._modules: dict[str, Module] = {}

    def find(self, name: str) -> Module | None:
        """The module of a name, if it was loaded."""
        return self._modules.get(name)

    def load(self, name: str, text: int, rodata: int, data: int) -> Module:
        """Load a module with so many bytes of each kind (``load_module``).

        EINVAL for a name that is none, ENOEXEC without code, EEXIST for one that is there, ENOMEM.
        """
        if not NAME.fullmatch(name):
            raise KernelError(errno.EINVAL, f"{name} is no name of a module")
        if not text:
            raise KernelError(errno.ENOEXEC, f"{name} has no code")
        sizes = [size + PAGE_SIZE - 1 & PAGE_MASK for size in (text, rodata, data)]
        address = self._memory.alloc(sum(sizes), LOAD)
        try:
            self._place(name, address, address + sizes[0])
        except KernelError:
            self._memory.free(address)
            raise
        module = self._modules[name] = Module(name, address, *sizes)
        try:
            self._memory.protect(address, module.text, module.rodata)
        except KernelError:
            self.unload(name)
            raise
        return module

    def unload(self, name: str) -> Module:
        """Unload a module (``free_module``). ENOENT."""
        module = self._modules.pop(name, None)
        if module is None:
            raise KernelError(errno.ENOENT, f"no module {name} was loaded")
        self._drop(name)
        self._memory.free(module.address)
        return module


@dataclass
class Pack:
    """Memory that programs share."""

    start: int
    descriptor: int
    space: FreeSpace


class BpfPrograms:
    """The compiled programs by address of their image.

    ``pack_size`` is 0 where the compiler knows no packs, as on i386.

    Invariants: the programs of a pack are apart and take all of it that is not free.
    """

    def __init__(self, memory: CodeMemory, descriptors: Descriptors, rng: Random, pack_size: int) -> None:
        self._memory = memory
        self._descriptors = descriptors
        self._rng = rng
        self._pack_size = pack_size
        self._packs: list[Pack] = []
        self._programs: dict[int, tuple[int, int, Pack | None]] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def load(self, length: int) -> int:
        """The address of a program of ``length`` bytes, compiled (``bpf_int_jit_compile``). ENOMEM, EACCES.

        It begins at a place that the seed gives: behind the header are illegal instructions.
        """
        if self._pack_size:
            size = length + HEADER + ILLEGAL + CHUNK - 1 & -CHUNK
            start, pack = self._take(size)
            room = min(size - length - HEADER, CHUNK - HEADER)
        else:
            size = length + HEADER + ILLEGAL_OWN + PAGE_SIZE - 1 & PAGE_MASK
            start, pack = self._own(size, BINARY), None
            room = min(size - length - HEADER, PAGE_SIZE - HEADER)
        image = start + HEADER + (self._rng.randrange(room) & -(4 if self._pack_size else 1))
        self._programs[image] = (start, size, pack)
        return image

    def _take(self, size: int) -> tuple[int, Pack | None]:
        if size > self._pack_size:
            return self._own(size + PAGE_SIZE - 1 & PAGE_MASK, PACK), None
        for pack in self._packs:
            at = pack.space.allocate(size, CHUNK, 0, self._pack_size)
            if at >= 0:
                return pack.start + at, pack
        descriptor = self._descriptors.alloc(PACK_HEAD + self._pack_size // CHUNK // 8, PACK[0])
        try:
            start = self._own(self._pack_size, PACK)
        except KernelError:
            self._descriptors.free(descriptor)
            raise
        pack = Pack(start, descriptor, FreeSpace(0, self._pack_size))
        self._packs.append(pack)
        return start + pack.space.allocate(size, CHUNK, 0, self._pack_size), pack

    def _own(self, size: int, frames: tuple[str, ...]) -> int:
        start = self._memory.alloc(size, frames)
        try:
            self._memory.protect(start, size)
        except KernelError:
            self._memory.free(start)
            raise
        return start

    def free(self, image: int) -> None:
        """Give a program's memory back (``bpf_prog_pack_free``). EINVAL where none begins."""
        found = self._programs.pop(image, None)
        if found is None:
            raise KernelError(errno.EINVAL, f"no program begins at {image:#x}")
        start, size, pack = found
        if pack is None:
            self._memory.free(start)
            return
        pack.space.release(start - pack.start, start - pack.start + size)
        if list(pack.space) == [(0, self._pack_size)]:
            self._packs.remove(pack)
            self._memory.free(pack.start)
            self._descriptors.free(pack.descriptor)

    def check(self) -> None:
        """What is taken of packs is what programs have."""
        used = sum(size for _, size, pack in self._programs.values() if pack is not None)
        free = sum(end - start for pack in self._packs for start, end in pack.space)
        assert used + free == len(self._packs) * self._pack_size, (used, free)


def pack_size(nodes: int, *, long: bool) -> int:
    """BPF_PROG_PACK_SIZE: 2 MiB for each node; the compiler of i386 has none."""
    return 2 * MIB * nodes if long else 0
