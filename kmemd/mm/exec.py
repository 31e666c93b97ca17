"""Programs: what execve makes of an address space, and what starting up touches (fs/exec.c, fs/binfmt_elf.c).

Models the mapping of an executable's segments, bss, heap, stack, [vvar] and [vdso] at the addresses that
``randomize_va_space`` lets chance pick, and the pages a statically linked program touches before it waits. A program is
an ``Image``; the built-in ones are those of the captured machines' initramfs. Left out: interpreters, shared libraries,
argument lists of more than a page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import numpy as np

from kmemd.core.mmu import EXEC, READ, WRITE
from kmemd.mm.contents import Contents
from kmemd.mm.elf_tables import ElfTables
from kmemd.mm.filemap import File
from kmemd.mm.layout import X86_64
from kmemd.mm.memory import Memory
from kmemd.mm.mm_struct import MmStructs
from kmemd.mm.mm_types import (
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_IO,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.mman import PROT_READ
from kmemd.mm.mmap_region import AddressSpaces
from kmemd.mm.mpol import Policy
from kmemd.mm.rlimit import RLIMIT_STACK
from kmemd.mm.sched import PF_FORKNOEXEC, PF_RANDOMIZE
from kmemd.mm.units import MIB, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.unmapped_area import UserLayout

VM_MAY = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
VM_DATA = VM_READ | VM_WRITE | VM_MAY
VM_VVAR = VM_READ | VM_MAYREAD | VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP
VM_VDSO = VM_READ | VM_EXEC | VM_MAY | VM_DONTEXPAND
STACK_PAGES = 33
"""What setup_arg_pages makes: 128 KiB to grow into, and the page of the arguments."""
HEAP_RANDOM = {X86_64: 1 << 30, "i386": 32 * MIB}
FAULT_AROUND = 16
VVAR_PAGES, VDSO_PAGES = 4, 1
STACK_RANDOM_BITS = {X86_64: 22, "i386": 11}
STACK_TOP = {X86_64: 0x7FFFFFFFF000, "i386": 0xBFFFF000}
PMD_SIZE = 2 * MIB
ENVIRONMENT = ("HOME=/", "TERM=linux")
"""What the kernel gives init, and the others inherit."""


class Segment(NamedTuple):
    """A loadable segment: bytes, permissions, offset in the file, and how many of its first pages starting up writes.

    ``relro`` segments lose the right to be written after that. ``read``: pages that are read, before any is written;
    None for one in each window of fault-around, afterwards.
    """

    start: int
    end: int
    perms: str
    offset: int
    written: int = 0
    relro: bool = False
    read: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Image:
    """A program. Sizes in pages; ``bss_written`` and so on are the pages that starting up writes.

    ``buffer`` is a mapping that it makes; ``stack_chance``: how many more pages of the stack may be written, as far
    down as chance has the first frame (arch_align_stack). ``end_code`` and ``data`` say where code ends and where data
    are, in bytes, if that is known; else the segments do.
    """

    path: str
    segments: tuple[Segment, ...]
    bss: int = 0
    bss_written: int = 0
    heap: int = 0
    heap_written: int = 0
    stack_written: int = 3
    buffer: int = 0
    stack_chance: int = 0
    end_code: int = 0
    data: tuple[int, int] | None = None


_BUSYBOX_64 = (
    Segment(0x400000, 0x401000, "r--p", 0),
    Segment(0x401000, 0x585000, "r-xp", 0x1000, read=(0, *range(15, 255, 16), 383)),
    Segment(0x585000, 0x5DB000, "r--p", 0x185000),
    Segment(0x5DB000, 0x5E2000, "r--p", 0x1DA000, 2, relro=True),
    Segment(0x5E2000, 0x5E5000, "rw-p", 0x1E1000, 3),
)
_BUSYBOX_32 = (
    Segment(0x8048000, 0x8049000, "r--p", 0),
    Segment(0x8049000, 0x81CD000, "r-xp", 0x1000, read=(0, *range(7, 247, 16), 375)),
    Segment(0x81CD000, 0x823A000, "r--p", 0x185000, read=(3, 19, 35, 51)),
    Segment(0x823A000, 0x823E000, "r--p", 0x1F2000, 2, relro=True),
    Segment(0x823E000, 0x8240000, "rw-p", 0x1F6000, 2),
)
_UO_64 = (
    Segment(0x400000, 0x401000, "r--p", 0),
    Segment(0x401000, 0x47C000, "r-xp", 0x1000),
    Segment(0x47C000, 0x4A4000, "r--p", 0x7C000, read=(0, 20)),
    Segment(0x4A4000, 0x4A8000, "r--p", 0xA4000, 2, relro=True, read=(0,)),
    Segment(0x4A8000, 0x4AB000, "rw-p", 0xA8000, 3),
)
_UO2_64 = (
    Segment(0x400000, 0x401000, "r--p", 0),
    Segment(0x401000, 0x47D000, "r-xp", 0x1000),
    Segment(0x47D000, 0x4A5000, "r--p", 0x7D000, read=(0, 20)),
    Segment(0x4A5000, 0x4A9000, "r--p", 0xA5000, 2, relro=True, read=(0,)),
    Segment(0x4A9000, 0x4AC000, "rw-p", 0xA9000, 3),
)
_TINY_64 = (
    Segment(0x400000, 0x401000, "r--p", 0),
    Segment(0x401000, 0x405000, "r-xp", 0x1000),
    Segment(0x405000, 0x406000, "rw-p", 0x5000, 1),
)
_TINY_32 = (
    Segment(0x8048000, 0x8049000, "r--p", 0),
    Segment(0x8049000, 0x804D000, "r-xp", 0x1000),
    Segment(0x804D000, 0x804E000, "rw-p", 0x5000, 1),
)
IMAGES: dict[str, dict[str, Image]] = {
    X86_64: {
        "busybox": Image("/bin/busybox", _BUSYBOX_64, 7, 3, 34, 2, 3, 16, end_code=0x584989, data=(0x5DB708, 0x5E4710)),
        "uo": Image("/bin/uo", _UO_64, 22, 4, 34, 2, 2, stack_chance=1),
        "uo2": Image("/bin/uo2", _UO2_64, 22, 4, 34, 2, 2, stack_chance=1),
        "tiny": Image("/bin/tiny", _TINY_64, 1, 1, 33, 1, 2),
    },
    "i386": {
        "busybox": Image(
            "/bin/busybox",
            _BUSYBOX_32,
            4,
            3,
            34,
            2,
            3,
            16,
            end_code=0x81CCD88,
            data=(0x823A324, 0x823F598),
        ),
        "tiny": Image("/bin/tiny", _TINY_32, 1, 1, 33, 1, 2),
    },
}
IMAGE_SEGMENTS = {image.path: image.segments for images in IMAGES.values() for image in images.values()}
"""What the file of each program holds."""


class Exec:
    """Starts programs in address spaces.

    ``executable(path)`` is the file of a program; ``randomize()`` gives kernel.randomize_va_space.
    """

    def __init__(
        self,
        memory: Memory,
        contents: Contents,
        mms: MmStructs,
        spaces: AddressSpaces,
        mprotect: Callable[[Any, int, int, int], None],
        layout: UserLayout,
        executable: Callable[[str], File],
        randomize: Callable[[], int],
        rng: Random,
        arch: str,
    ) -> None:
        self._memory = memory
        self._contents = contents
        self._mms = mms
        self._spaces = spaces
        self._mprotect = mprotect
        self._user_layout = layout
        self._executable = executable
        self._randomize = randomize
        self._rng = rng
        self._arch = arch

    def image(self, name: str) -> Image | None:
        """A built-in program."""
        return IMAGES[self._arch].get(name)

    def exec(self, task: Any, image: Image, policy: Policy | None = None) -> None:
        """Replace a task's memory by a program that has started up (bprm_execve). ENOMEM leaves the task without any.

        The task keeps its NUMA policy; ``policy`` is that of a new one.
        """
        old, task.mm = task.mm, None
        if old is not None:
            task.min_flt = task.minor_faults(int(self._memory.mmu.faults_of[old.id]))
            task.mm_maj_flt = task.maj_flt
            self._mms.exit(old)
            policy = old.policy
        task.flags &= ~(PF_FORKNOEXEC | PF_RANDOMIZE)
        if self._randomize():
            task.flags |= PF_RANDOMIZE
        file = self._executable(image.path)
        mm = task.mm = self._mms.alloc()
        mm.policy, mm.exe = policy, file
        self._layout(task, mm)
        for segment in image.segments:
            self._map_segment(task, file, segment)
        self._code_and_data(mm, image)
        self._special(task, mm)
        self._heap(task, mm, image)
        buffer = self._buffer(task, mm, image)
        self._arguments(task, mm, image)
        self._start_up(task, mm, image, buffer)

    # -- layout ------------------------------------------------------------------------------------------

    def _random(self, bits: int) -> int:
        return self._rng.getrandbits(bits) << PAGE_SHIFT if self._randomize() else 0

    def _layout(self, task: Any, mm: Mm) -> None:
        """Stack, with the arguments in its last page, and the top of mappings (setup_arg_pages,
        arch_pick_mmap_layout).
        """
        mm.task_size = self._user_layout.task_size
        random_bits = STACK_RANDOM_BITS[self._arch]
        top = STACK_TOP[self._arch] - self._random(random_bits)
        stack_limit = self._spaces.rlimits.soft(task, RLIMIT_STACK)
        spread = ((1 << random_bits) - 1) << PAGE_SHIFT if self._randomize() else 0
        shift = self._random(self._spaces.settings.mmap_rnd_bits)
        mm.mmap_base = self._user_layout.mmap_base(stack_limit, shift, spread)
        flags = VM_DATA | VM_GROWSDOWN
        vma = self._place(task, mm, top - STACK_PAGES * PAGE_SIZE, top, flags, "[stack]")
        self._touch(task, vma.end - PAGE_SIZE, 1, WRITE)
        self._memory.lru.drain_local()  # shift_arg_pages

    def _arguments(self, task: Any, mm: Mm, image: Image) -> None:
        """The arguments and what else a program finds on its stack (create_elf_tables)."""
        top = next(vma.end for vma in mm.vmas if vma.name == "[stack]")
        rng = self._rng if self._randomize() else None
        tables = ElfTables.make(self._arch, top, task.argv, ENVIRONMENT, image.path, rng)
        mm.arg_start, mm.arg_end = tables.arg_start, tables.arg_end
        mm.env_start, mm.env_end = tables.arg_end, tables.env_end
        mm.start_stack, mm.platform, mm.random = tables.start_stack, tables.platform, tables.random
        pfn = self._memory.page_at(task, top - 1)
        in_page = tables.strings[-PAGE_SIZE:]
        self._contents.write(pfn, PAGE_SIZE - len(in_page), in_page)

    def _place(self, task: Any, mm: Mm, start: int, end: int, flags: int, name: str = "") -> Vma:
        vma = self._spaces.region(task, None, start, end - start, flags, start >> PAGE_SHIFT)
        vma.name = name or vma.name
        mm.changed += 1
        return vma

    def _map_segment(self, task: Any, file: File, segment: Segment) -> None:
        """A segment of the file, private (elf_map). What is relocated is writable until then."""
        perms = segment.perms if not segment.relro else "rw-p"
        flags = VM_MAY
        for letter, bit in zip("rwx", (VM_READ, VM_WRITE, VM_EXEC), strict=True):
            flags |= bit if letter in perms else 0
        length = segment.end - segment.start
        self._spaces.region(task, file, segment.start, length, flags, segment.offset >> PAGE_SHIFT)

    def _code_and_data(self, mm: Mm, image: Image) -> None:
        code = next(s for s in image.segments if "x" in s.perms)
        last = image.segments[-1]
        mm.start_code, mm.end_code = code.start, image.end_code or code.end
        mm.start_data, mm.end_data = image.data or (last.start, last.end)

    def _heap(self, task: Any, mm: Mm, image: Image) -> None:
        """bss behind the data, then the heap at a distance (set_brk, arch_randomize_brk)."""
        end = image.segments[-1].end
        if image.bss:
            self._place(task, mm, end, end + image.bss * PAGE_SIZE, VM_DATA)
            end += image.bss * PAGE_SIZE
        if self._randomize() == 2:
            end += PAGE_SIZE + self._rng.randrange(HEAP_RANDOM[self._arch] >> PAGE_SHIFT) * PAGE_SIZE
        mm.start_brk = mm.brk = end
        if image.heap:
            self._spaces.brk(task, end + image.heap * PAGE_SIZE)

    def _special(self, task: Any, mm: Mm) -> None:
        """[vvar] and [vdso] (map_vdso): above the stack on x86_64, where there is room."""
        length = (VVAR_PAGES + VDSO_PAGES) * PAGE_SIZE
        hint = self._vdso_addr(mm, length) if self._arch == X86_64 else 0
        start = self._spaces.area.find(mm, hint, length, 0)
        middle = start + VVAR_PAGES * PAGE_SIZE
        self._place(task, mm, start, middle, VM_VVAR, "[vvar]")
        self._place(task, mm, middle, middle + VDSO_PAGES * PAGE_SIZE, VM_VDSO, "[vdso]")

    def _vdso_addr(self, mm: Mm, length: int) -> int:
        """Somewhere between the stack and the next border of page tables (vdso_addr)."""
        start = next(vma.end for vma in mm.vmas if vma.name == "[stack]")
        end = min(start + length + PMD_SIZE - 1 & -PMD_SIZE, STACK_TOP[self._arch]) - length
        return start + self._rng.randrange((end - start >> PAGE_SHIFT) + 1) * PAGE_SIZE if end > start else start

    def _buffer(self, task: Any, mm: Mm, image: Image) -> Vma | None:
        """What the program maps for itself."""
        if not image.buffer:
            return None
        length = image.buffer * PAGE_SIZE
        start = self._spaces.area.find(mm, 0, length, 0)
        return self._place(task, mm, start, start + length, VM_DATA)

    # -- starting up -------------------------------------------------------------------------------------

    def _start_up(self, task: Any, mm: Mm, image: Image, buffer: Vma | None) -> None:
        """What runs before the program waits: it relocates, sets up its heap, and has walked through its text."""
        for segment in image.segments:
            for page in segment.read or ():
                self._touch(task, segment.start + page * PAGE_SIZE, 1, READ)
            self._touch(task, segment.start, segment.written, WRITE)
            if segment.read is None:
                pages = (segment.end - segment.start) >> PAGE_SHIFT
                op = EXEC if "x" in segment.perms else READ
                self._touch(task, segment.start, pages, op, FAULT_AROUND)
            if segment.relro:
                self._protect(task, segment)
        stack = next(vma for vma in mm.vmas if vma.name == "[stack]")
        self._touch(task, image.segments[-1].end, image.bss_written, WRITE)
        self._touch(task, mm.start_brk, image.heap_written, WRITE)
        spread = self._rng.randrange(image.stack_chance + 1) if image.stack_chance and self._randomize() else 0
        written = image.stack_written + spread
        self._touch(task, stack.end - written * PAGE_SIZE, written, WRITE)
        vdso = next(vma for vma in mm.vmas if vma.name == "[vdso]")
        self._touch(task, vdso.start, 1, EXEC)

    def _touch(self, task: Any, start: int, pages: int, op: int, step: int = 1) -> None:
        if pages:
            vpns = (start >> PAGE_SHIFT) + np.arange(0, pages, step, dtype=np.int64)
            self._memory.access(task, vpns, op)

    def _protect(self, task: Any, segment: Segment) -> None:
        self._mprotect(task, segment.start, segment.end - segment.start, PROT_READ)
