"""Random calls against a dictionary of pages: what is mapped, as what, and that what belongs together is together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_WRITE,
    Vma,
)
from kmemd.mm.mman import MAP_FIXED, MAP_SHARED
from tests.mm.vma_fake import ANON, FakeFile, Space

PAGE = 4096
BASE = 0x10000000
PAGES = 16
VM_MAY = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC

starts = st.integers(0, PAGES - 1)
lengths = st.integers(1, 6)
protections = st.sampled_from([0, mman.PROT_READ, 3, 5])


@dataclass(frozen=True)
class Page:
    """What is mapped at a page. ``index`` is the page's place in its file, -1 for anonymous memory."""

    flags: int
    file: Any = None
    index: int = -1
    content: int = 0


class Mappings(RuleBasedStateMachine):
    """The model is a dictionary; ``touched`` is the pages beside which the last call must have merged."""

    @initialize()
    def start(self) -> None:
        self.space = Space(uid=0)
        self.file: Any = FakeFile()
        self.model: dict[int, Page] = {}
        self.next_content = 1

    def address(self, page: int) -> int:
        return BASE + page * PAGE

    def merged_around(self, start: int, end: int) -> None:
        """Neighbours that are alike and have no pages yet are one mapping."""
        vmas = [vma for vma in self.space.mm.vmas if vma.start <= self.address(end) and vma.end >= self.address(start)]
        for first, second in pairwise(vmas):
            alike = (
                first.end == second.start
                and not (first.flags ^ second.flags) & ~VM_SOFTDIRTY
                and first.file is second.file
                and first.pgoff + first.pages == second.pgoff
                and first.anon_vma is second.anon_vma
            )
            assert not alike, f"{first} and {second} belong together"

    @rule(start=starts, pages=lengths, prot=protections, locked=st.booleans())
    def map_anonymous(self, start: int, pages: int, prot: int, locked: bool) -> None:
        flags = ANON | MAP_FIXED | (mman.MAP_LOCKED if locked else 0)
        self.space.mmap(pages * PAGE, prot, flags, self.address(start))
        account = VM_ACCOUNT if prot & 2 else 0
        page = Page(prot | VM_MAY | account | (VM_LOCKED if locked else 0))
        self.model |= {start + n: page for n in range(pages)}
        self.merged_around(start, start + pages)

    @rule(start=starts, pages=lengths, prot=protections, shift=st.sampled_from([0, 0, 0, 5]), shared=st.booleans())
    def map_file(self, start: int, pages: int, prot: int, shift: int, shared: bool) -> None:
        pgoff = start + shift
        kind = MAP_SHARED if shared else mman.MAP_PRIVATE
        self.space.mmap(pages * PAGE, prot, kind | MAP_FIXED, self.address(start), file=self.file, pgoff=pgoff)
        flags = prot | VM_MAY | (VM_SHARED | VM_MAYSHARE if shared else VM_ACCOUNT if prot & 2 else 0)
        self.model |= {start + n: Page(flags, self.file, pgoff + n) for n in range(pages)}
        self.merged_around(start, start + pages)

    @rule(start=starts, pages=lengths)
    def unmap(self, start: int, pages: int) -> None:
        self.space.munmap(self.address(start), pages * PAGE)
        for page in range(start, start + pages):
            self.model.pop(page, None)

    @rule(start=starts, pages=lengths, prot=protections)
    def protect(self, start: int, pages: int, prot: int) -> None:
        mapped = 0
        while mapped < pages and start + mapped in self.model:
            mapped += 1
        before = [self.model[page].flags for page in range(start, start + mapped)]
        for page in range(start, start + mapped):
            old = self.model[page]
            flags = old.flags & ~VM_ACCESS_FLAGS | prot
            if prot & 2 and not old.flags & (VM_ACCOUNT | VM_WRITE | VM_SHARED):
                flags |= VM_ACCOUNT
            self.model[page] = replace(old, flags=flags)
        try:
            self.space.mprotect(self.address(start), pages * PAGE, prot)
            assert mapped == pages
            if all(self.model[start + n].flags != flags for n, flags in enumerate(before)):
                self.merged_around(start, start + pages)  # a mapping that stays as it is is left alone
        except KernelError:
            assert mapped < pages

    @rule(start=starts, pages=lengths, on=st.booleans(), kind=st.sampled_from(["copy", "lock"]))
    def mark(self, start: int, pages: int, on: bool, kind: str) -> None:
        space, bit = self.space, VM_DONTCOPY if kind == "copy" else VM_LOCKED
        hole = next((page for page in range(start, start + pages) if page not in self.model), start + pages)
        reached = range(start, hole if kind == "lock" else start + pages)
        for page in reached:
            if page in self.model:
                old = self.model[page]
                self.model[page] = replace(old, flags=old.flags | bit if on else old.flags & ~bit)
        address, length = self.address(start), pages * PAGE
        try:
            if kind == "copy":
                space.madvise(address, length, mman.MADV_DONTFORK if on else mman.MADV_DOFORK)
            elif on:
                space.locks.mlock(space.task, address, length)
            else:
                space.locks.munlock(space.task, address, length)
            assert hole == start + pages
            self.merged_around(start, start + pages)
        except KernelError:
            assert hole < start + pages

    @rule(start=starts)
    def fault(self, start: int) -> None:
        page = self.model.get(start)
        if page is not None and not page.flags & VM_SHARED and page.flags & VM_WRITE:
            self.space.fault(self.address(start), self.next_content)
            self.model[start] = replace(page, content=self.next_content)
            self.next_content += 1

    @rule(start=starts, old=lengths, new=lengths, to=starts, keep=st.booleans())
    def move(self, start: int, old: int, new: int, to: int, keep: bool) -> None:
        flags = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | (mman.MREMAP_DONTUNMAP if keep else 0)
        vma = self.space.mm.find(self.address(start))
        new = old if keep else new
        apart = start + old <= to or to + new <= start
        fits = vma is not None and apart
        if fits:
            for page in range(to, to + new):
                self.model.pop(page, None)
            if old > new:
                for page in range(start + new, start + old):
                    self.model.pop(page, None)
        least = min(old, new)
        try:
            self.space.mremap(self.address(start), old * PAGE, new * PAGE, flags, self.address(to))
        except KernelError:
            still = self.space.mm.find(self.address(start))
            assert not fits or still is None or still.end < self.address(start + least)
            return
        self.moved(start, least, new, to, keep)

    def moved(self, start: int, least: int, new: int, to: int, keep: bool) -> None:
        first = self.model[start]
        taken = {page: self.model.pop(page) for page in range(start, start + least)}
        for n in range(new):
            index = first.index + n if first.file else -1
            content = taken[start + n].content if n < least else 0
            self.model[to + n] = replace(first, index=index, content=content)
        if keep:
            vma = self.space.mm.find(self.address(start))
            assert vma is not None
            # all of the mapping that it was moved out of loses its lock, as in Linux
            self.model |= {page: replace(old, content=0) for page, old in taken.items()}
            for page, old in self.model.items():
                if vma.start <= self.address(page) < vma.end:
                    self.model[page] = replace(old, flags=old.flags & ~VM_LOCKED)

    @rule(start=starts, old=lengths, more=lengths)
    def grow(self, start: int, old: int, more: int) -> None:
        vma = self.space.mm.find(self.address(start))
        fits = vma is not None and vma.end == self.address(start + old)
        fits = fits and not any(page in self.model for page in range(start + old, start + old + more))
        try:
            self.space.mremap(self.address(start), old * PAGE, (old + more) * PAGE)
        except KernelError:
            assert not fits
            return
        assert fits
        last = self.model[start + old - 1]
        for n in range(more):
            index = last.index + n + 1 if last.file else -1
            self.model[start + old + n] = replace(last, index=index, content=0)
        self.merged_around(start, start + old + more)

    @invariant()
    def the_same_pages(self) -> None:
        if not hasattr(self, "space"):
            return
        self.space.check()
        found: dict[int, Page] = {}
        for vma in self.space.mm.vmas:
            for n in range(vma.pages):
                found[(vma.start - BASE) // PAGE + n] = self.shown(vma, n)
        assert found == self.model

    def shown(self, vma: Vma, n: int) -> Page:
        content = self.space.memory.pages.get(vma.vpn + n, 0)
        index = vma.pgoff + n if vma.file else -1
        if vma.is_anon and vma.anon_vma is None:
            assert vma.pgoff == vma.vpn, "memory without pages is numbered by its address"
        return Page(vma.flags & ~VM_SOFTDIRTY, vma.file, index, content)


Mappings.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, derandomize=True)
TestMappings = Mappings.TestCase
