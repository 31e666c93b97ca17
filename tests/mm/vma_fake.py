"""Address spaces without page tables: the pages that tests put in are a dictionary."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.madvise import Madvise
from kmemd.mm.mlock import Mlock
from kmemd.mm.mm_types import VM_ACCESS_FLAGS, VM_ACCOUNT, VM_LOCKED, Mm, Vma
from kmemd.mm.mman import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from kmemd.mm.mmap import Mmap
from kmemd.mm.mmap_region import AddressSpaces, Backing, Mapped, Request
from kmemd.mm.mprotect import Mprotect
from kmemd.mm.mremap import Mremap
from kmemd.mm.printk import Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.rlimit import Rlimits
from kmemd.mm.rmap import Rmap
from kmemd.mm.unmapped_area import UnmappedArea, UserLayout
from kmemd.mm.vma import VmaList
from kmemd.mm.vma_slab import VmaObjects
from kmemd.steps import finish

TOTALRAM = 1 << 20
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS


class FakeFile:
    """A file that maps without ceremony."""

    is_hugetlb = False
    is_device = False
    huge_page_size = 4096

    def __init__(self, name: str = "f") -> None:
        self.name = name
        self.maps: set[Vma] = set()

    def link(self, mm: Mm, vma: Vma) -> None:
        self.maps.add(vma)

    def unlink(self, vma: Vma) -> None:
        self.maps.discard(vma)


@dataclass
class FakeTask:
    mm: Mm
    uid: int = 1000
    pid: int = 7
    comm: str = "test"
    rlimits: dict[int, tuple[int, int]] = field(default_factory=dict)


class FakeMemory:
    """Pages by page number; ``calls`` notes what was asked for."""

    def __init__(self, rmap: Rmap) -> None:
        self.rmap = rmap
        self.pages: dict[int, Any] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.tables_left = 1 << 30

    def unmap_region(self, mm: Mm, start: int, end: int, floor: int, ceiling: int) -> None:
        self.calls.append(("unmap", start, end, floor, ceiling))
        self.zap(start, end)

    def zap(self, start: int, end: int) -> None:
        for vpn in [vpn for vpn in self.pages if start <= vpn << 12 < end]:
            del self.pages[vpn]

    def zap_range(self, mm: Mm, start: int, end: int) -> None:
        self.zap(start, end)

    def clear_reserves(self, vma: Vma) -> None:
        self.calls.append(("clear_reserves", vma.start))

    def split_huge(self, mm: Mm, address: int) -> None:
        self.calls.append(("split", address))

    def prepare_anon(self, mm: Mm, vma: Vma) -> None:
        self.rmap.prepare(mm, vma)

    def unlink_anon(self, vma: Vma) -> None:
        self.rmap.unlink_anon([vma])

    def change_protection(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        self.calls.append(("protect", start, end, vma.flags & VM_ACCESS_FLAGS))

    def move_page_tables(self, mm: Mm, vma: Vma, start: int, new: int, length: int) -> None:
        if self.tables_left < 1:
            raise KernelError(errno.ENOMEM, "no page for a table")
        moved = {vpn: self.pages.pop(vpn) for vpn in list(self.pages) if start <= vpn << 12 < start + length}
        self.pages.update({vpn + ((new - start) >> 12): page for vpn, page in moved.items()})

    def lock_pages(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        self.calls.append(("lock" if vma.flags & VM_LOCKED else "unlock", start, end))


class FakeAdvice:
    """Notes advice about pages."""

    def __init__(self, memory: FakeMemory) -> None:
        self.memory = memory

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **keys: self.memory.calls.append((name, *words[2:], *keys.values()))

    def drop(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        self.memory.zap(start, end)


class Finished:
    """An object whose sliced calls run to their end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **keys: finish(getattr(self._inner, name)(*words, **keys))


class Space:
    """One process, and all the calls it can make."""

    def __init__(self, *, uid: int = 1000, arch: str = "x86_64", la57: bool = False) -> None:
        layout = UserLayout.of(arch, la57=la57)
        self.mm = Mm(1, mmap_base=layout.mmap_base(8 << 20), task_size=layout.task_size)
        self.task = FakeTask(self.mm, uid)
        self.settings = Mmap(1 << 20, lambda: TOTALRAM, lambda: 0, lambda: 0)
        context = Context()
        self.printk = Printk(context)
        nothing: Any = None
        self.rmap = Rmap(nothing, nothing, [], nothing, nothing, VmaObjects(nothing, nothing))
        self.memory = FakeMemory(self.rmap)
        self.vmas = VmaList(self.rmap, lambda: self.settings.max_map_count, self.memory.split_huge)
        self.files: list[Any] = []
        self.align = 0
        backing = Backing(
            zero_file=lambda size, flags: self._file("/dev/zero"),
            huge_file=lambda size, flags: self._huge_file(),
            map_file=lambda mm, vma: None,
            align=lambda file: self.align,
            enter=lambda mm, vma: None,
            is_swapfile=lambda file: False,
        )
        self.spaces = AddressSpaces(
            self.settings,
            Rlimits(1000),
            self.vmas,
            UnmappedArea(layout),
            self.memory,
            backing,
            self.printk,
            RateLimit(lambda: context.now, self.printk),
        )
        self.populated: list[tuple[int, int]] = []
        self._mprotect = Mprotect(self.spaces, lambda task, start, end: self.populated.append((start, end)))
        self._mremap = Mremap(self.spaces)
        self.locks: Any = Finished(Mlock(self.spaces, self.memory.lock_pages))
        self._madvise = Madvise(self.spaces, FakeAdvice(self.memory), thp=True)

    def _file(self, name: str) -> Any:
        self.files.append(FakeFile(name))
        return self.files[-1]

    def _huge_file(self) -> Any:
        return SimpleNamespace(
            is_hugetlb=True, is_device=False, huge_page_size=2 << 20, link=lambda mm, vma: None, unlink=lambda vma: None
        )

    def mmap(self, length: int, prot: int = RW, flags: int = ANON, address: int = 0, **rest: Any) -> int:
        return self.mapped(length, prot, flags, address, **rest).address

    def mapped(self, length: int, prot: int = RW, flags: int = ANON, address: int = 0, **rest: Any) -> Mapped:
        return self.spaces.mmap(self.task, Request(length, prot, flags, address, **rest))

    def munmap(self, address: int, length: int) -> None:
        self.spaces.munmap(self.task, address, length)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self._mprotect.mprotect(self.task, address, length, prot)

    def mremap(self, address: int, old: int, new: int, flags: int = 0, to: int = 0) -> Mapped:
        return self._mremap.mremap(self.task, address, old, new, flags, to)

    def madvise(self, address: int, length: int, advice: int) -> None:
        finish(self._madvise.madvise(self.task, address, length, advice))

    def fault(self, address: int, value: Any = 1) -> None:
        """Put a page there, as a write does."""
        vma = self.mm.find(address)
        assert vma is not None
        self.rmap.prepare(self.mm, vma)
        self.memory.pages[address >> 12] = value

    def ranges(self) -> list[tuple[int, int]]:
        return [(vma.start, vma.end) for vma in self.mm.vmas]

    def check(self) -> None:
        """The sums and the list's order."""
        mm = self.mm
        for first, second in zip(mm.vmas, mm.vmas[1:], strict=False):
            assert first.end <= second.start
        assert all(vma.start < vma.end and not (vma.start | vma.end) & 4095 for vma in mm.vmas)
        assert mm.total_vm == sum(vma.pages for vma in mm.vmas)
        assert mm.locked_vm == sum(vma.pages for vma in mm.vmas if vma.flags & VM_LOCKED)
        assert self.settings.committed == sum(vma.pages for vma in mm.vmas if vma.flags & VM_ACCOUNT)
        linked = {vma for anon in self.rmap._anon.values() for vma in anon.vmas}
        assert linked == {vma for vma in mm.vmas if vma.chain}
        self.rmap.check()
