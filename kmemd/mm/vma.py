"""The list of mappings of an address space: find, link, split, merge (mm/mmap.c: ``vma_merge``, ``__vma_adjust``,
``__split_vma``, ``do_mas_align_munmap``).

Models when Linux 6.1 makes one mapping of two and two of one: flags but ``VM_SOFTDIRTY``, file and offset, policy, and
the anon_vma rules, by which a mapping that has anonymous pages does not take in one that never had any unless it is
the other way round, and what a fork has shared does not grow. Left out: userfaultfd contexts, names that programs
give to anonymous memory.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from kmemd.core import trace_ids as ev
from kmemd.errors import KernelError
from kmemd.mm.mm_types import VM_HUGETLB, VM_SOFTDIRTY, VM_SPECIAL, Mm, Vma
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.core.trace import TraceLog
    from kmemd.mm.filemap import File
    from kmemd.mm.mpol import Policy
    from kmemd.mm.rmap import AnonVma

_START = attrgetter("start")


class VmaLinks(Protocol):
    """What knows which mappings a page may be in: the reverse map of files and of anonymous memory."""

    def reserve(self, source: Vma | None = None) -> None:
        """Have the slab objects of one more mapping ready, which shares the anon_vmas of ``source``. ENOMEM."""

    def link(self, mm: Mm, vma: Vma) -> None:
        """The mapping is there: its file, and its anon_vma when it has one, know it from now on."""

    def unlink(self, vmas: Iterable[Vma]) -> None:
        """Mappings go."""

    def clone(self, mm: Mm, vma: Vma, source: Vma) -> None:
        """``vma``, which is linked, gets the anon_vma of ``source`` (``anon_vma_clone``)."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a range is to be, as far as merging asks: ``pgoff`` is that of its first page."""

    flags: int
    pgoff: int
    file: File | None = None
    anon_vma: AnonVma | None = None
    policy: Policy | None = None

    @classmethod
    def of(cls, vma: Vma, start: int, flags: int | None = None) -> Content:
        """What ``vma`` holds from ``start`` on, with other flags."""
        pgoff = vma.pgoff + ((start - vma.start) >> PAGE_SHIFT)
        return cls(vma.flags if flags is None else flags, pgoff, vma.file, vma.anon_vma, vma.policy)


def mergeable(vma: Vma, content: Content) -> bool:
    """Whether a mapping is of the same kind, and not of huge pages (``is_mergeable_vma``, ``vm_ops->close``)."""
    if vma.flags & VM_HUGETLB:
        return False
    return not (vma.flags ^ content.flags) & ~VM_SOFTDIRTY and vma.file is content.file


class VmaList:
    """Changes the mappings of address spaces.

    ``max_map_count()`` is the limit in force; ``split_huge(mm, address)`` makes small entries of a huge one that
    crosses an address at which a mapping will end; ``trace`` hears of mappings that are new or have other bounds.

    Invariants of an address space: mappings are in order, disjoint and page aligned; ``mm.changed`` counts the changes;
    ``[mm.full_above, mm.mmap_base)`` has no gap of ``mm.full_length`` bytes.
    """

    def __init__(
        self,
        links: VmaLinks,
        max_map_count: Callable[[], int],
        split_huge: Callable[[Mm, int], None],
        trace: TraceLog | None = None,
    ) -> None:
        self._trace = trace
        self._links = links
        self._max_map_count = max_map_count
        self._split_huge = split_huge

    def too_many(self, mm: Mm, margin: int = 0) -> bool:
        """Whether there are more mappings than the limit allows with ``margin`` of them to spare."""
        return len(mm.vmas) + margin > self._max_map_count()

    # -- one mapping -------------------------------------------------------------------------------------

    def stored(self, mm: Mm, vma: Vma) -> None:
        """A mapping is in the tree with its bounds of now (``vma_mas_store``)."""
        if self._trace is not None:
            self._trace.emit(ev.VMA_STORE, mm.id, vma.object, vma.start, vma.end - 1)

    def insert(self, mm: Mm, vma: Vma, source: Vma | None = None, *, heap: bool = False) -> None:
        """Put a new mapping into the list; with ``source`` it shares that one's anon_vmas. ENOMEM.

        Preconditions: its range is free. ``heap``: for brk, which stores without telling.
        """
        self._links.reserve(source)
        mm.vmas.insert(bisect_left(mm.vmas, vma.start, key=_START), vma)
        self._links.link(mm, vma)
        if source is not None:
            self._links.clone(mm, vma, source)
        if not heap:
            self.stored(mm, vma)
        mm.changed += 1

    def remove(self, mm: Mm, first: int, count: int) -> list[Vma]:
        """Take ``count`` mappings out, from index ``first`` on."""
        gone = mm.vmas[first : first + count]
        del mm.vmas[first : first + count]
        self._links.unlink(gone)
        if mm.full_above:
            end = mm.vmas[first].start if first < len(mm.vmas) else mm.task_size
            mm.full_above = max(mm.full_above, end)
        mm.changed += 1
        return gone

    def split(self, mm: Mm, vma: Vma, address: int, *, below: bool) -> Vma:
        """Split a mapping; the new one is the part below ``address``, or the part above. ENOMEM at the limit."""
        if len(mm.vmas) >= self._max_map_count():
            raise KernelError(errno.ENOMEM, f"the limit of {self._max_map_count()} mappings is reached")
        return self.split_always(mm, vma, address, below=below)

    def split_always(self, mm: Mm, vma: Vma, address: int, *, below: bool) -> Vma:
        """Split without a look at the limit, for munmap (``__split_vma``). ENOMEM; EINVAL within a huge page of
        hugetlbfs.
        """
        if vma.flags & VM_HUGETLB and vma.file is not None and address & (vma.file.huge_page_size - 1):
            raise KernelError(errno.EINVAL, f"{address:#x} is within a huge page of hugetlbfs")
        self._links.reserve(vma)
        self._split_huge(mm, address)
        at = mm.position(vma.start)
        offset = (address - vma.start) >> PAGE_SHIFT
        if below:
            new = vma.copy(vma.start, address, vma.pgoff)
            vma.start, vma.pgoff = address, vma.pgoff + offset
            mm.vmas.insert(at, new)
        else:
            new = vma.copy(address, vma.end, vma.pgoff + offset)
            vma.end = address
            mm.vmas.insert(at + 1, new)
        self._links.link(mm, new)
        self._links.clone(mm, new, vma)
        if below:
            self.stored(mm, vma)
        self.stored(mm, new)
        mm.changed += 1
        return new

    def isolate(self, mm: Mm, vma: Vma, start: int, end: int) -> Vma:
        """Split so that a mapping is just ``[start, end)``, which it contains. ENOMEM at the limit."""
        if start != vma.start:
            self.split(mm, vma, start, below=True)
        if end != vma.end:
            self.split(mm, vma, end, below=False)
        return vma

    def set_flags(self, mm: Mm, vma: Vma, start: int, end: int, flags: int) -> Vma:
        """Give a part of a mapping other flags: it joins its neighbours, or becomes one of its own. The mapping that
        holds it now. ENOMEM at the limit.
        """
        at = mm.position(start)
        prev = vma if start > vma.start else mm.vmas[at - 1] if at else None
        holder = self.merge(mm, prev, start, end, Content.of(vma, start, flags))
        if holder is None:
            holder = self.isolate(mm, vma, start, end)
        holder.flags = flags
        mm.changed += 1
        return holder

    def carve(self, mm: Mm, start: int, end: int) -> tuple[int, int]:
        """Split what crosses the ends of a range: (index of the first mapping in it, how many). ENOMEM."""
        at = mm.position(start)
        if at == len(mm.vmas) or mm.vmas[at].start >= end:
            return at, 0
        first = mm.vmas[at]
        if start > first.start:
            if end < first.end and len(mm.vmas) >= self._max_map_count():
                raise KernelError(errno.ENOMEM, f"the limit of {self._max_map_count()} mappings is reached")
            self.split_always(mm, first, start, below=False)
            at += 1
        until = bisect_left(mm.vmas, end, key=_START)
        last = mm.vmas[until - 1]
        if last.end > end:
            self.split_always(mm, last, end, below=True)
        return at, until - at

    # -- merging -----------------------------------------------------------------------------------------

    def can_follow(self, vma: Vma, content: Content) -> bool:
        """Whether ``content`` may continue a mapping that ends where it begins (``can_vma_merge_after``)."""
        return (
            mergeable(vma, content)
            and self._same_anon(content.anon_vma, vma.anon_vma, vma)
            and vma.pgoff + vma.pages == content.pgoff
        )

    def can_precede(self, vma: Vma, content: Content, pages: int) -> bool:
        """Whether ``pages`` pages of content may come right before a mapping (``can_vma_merge_before``)."""
        return (
            mergeable(vma, content)
            and self._same_anon(content.anon_vma, vma.anon_vma, vma)
            and vma.pgoff == content.pgoff + pages
        )

    def _same_anon(self, one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
        """``is_mergeable_anon_vma``: memory without pages joins a mapping that hangs in just one anon_vma, its own."""
        if (one is None or other is None) and (vma is None or len(vma.chain) == 1):
            return True
        return one is other

    def merge(self, mm: Mm, prev: Vma | None, start: int, end: int, content: Content) -> Vma | None:
        """Let ``[start, end)`` become a part of its neighbours, when it may (``vma_merge``).

        The range is a hole after ``prev``, a whole mapping after it, or the beginning of one; or it is the end of
        ``prev`` itself. Returns the mapping that holds it now, None when nothing was merged.
        """
        if content.flags & VM_SPECIAL:
            return None
        at = mm.position(prev.end) if prev is not None else 0
        mid = mm.vmas[at] if at < len(mm.vmas) else None
        after = at + 1 if mid is not None and mid.end == end else at
        following = mm.vmas[after] if after < len(mm.vmas) else None
        pages = (end - start) >> PAGE_SHIFT
        before = prev is not None and prev.end == start and prev.policy == content.policy
        joins_prev = prev if prev is not None and before and self.can_follow(prev, content) else None
        behind = following is not None and following.start == end and following.policy == content.policy
        joins_next = following if following and behind and self.can_precede(following, content, pages) else None
        if joins_prev and joins_next and self._same_anon(joins_prev.anon_vma, joins_next.anon_vma, None):
            return self._swallow(mm, joins_prev, at, after + 1 - at, joins_next.end)
        if joins_prev:
            return self._extend_up(mm, joins_prev, mid, at, end)
        if joins_next:
            return self._extend_down(mm, prev, joins_next, at, after, start)
        return None

    def _swallow(self, mm: Mm, vma: Vma, at: int, count: int, end: int) -> Vma:
        """``vma`` takes the range up to ``end`` and the ``count`` mappings from ``at`` on (cases 1, 6, 7)."""
        self._drop(mm, at, count)
        vma.end = end
        self.stored(mm, vma)
        mm.changed += 1
        return vma

    def _extend_up(self, mm: Mm, vma: Vma, mid: Vma | None, at: int, end: int) -> Vma:
        """``vma`` grows to ``end``, over a hole, over all of ``mid``, or over its beginning (cases 2, 7, 5)."""
        if mid is not None and mid.end == end:
            return self._swallow(mm, vma, at, 1, end)
        shrinks = mid if mid is not None and mid.start < end else None
        if shrinks is not None:
            self._split_huge(mm, end)
            shrinks.pgoff += (end - shrinks.start) >> PAGE_SHIFT
            shrinks.start = end
        vma.end = end
        for changed in filter(None, (vma, shrinks)):
            self.stored(mm, changed)
        mm.changed += 1
        return vma

    def _extend_down(self, mm: Mm, prev: Vma | None, vma: Vma, at: int, after: int, start: int) -> Vma:
        """``vma`` grows down to ``start``: over the end of ``prev``, a hole, or a whole mapping (cases 4, 3, 8)."""
        if prev is not None and start < prev.end:
            self._split_huge(mm, start)
            prev.end = start
        elif after > at:
            self._drop(mm, at, after - at)
        vma.pgoff -= (vma.start - start) >> PAGE_SHIFT
        vma.start = start
        self.stored(mm, vma)
        mm.changed += 1
        return vma

    def _drop(self, mm: Mm, at: int, count: int) -> None:
        self._links.unlink(mm.vmas[at : at + count])
        del mm.vmas[at : at + count]

    def grow(self, mm: Mm, start: int, end: int, content: Content) -> Vma | None:
        """Let a hole that mmap fills become a part of its neighbours (``vma_expand`` in ``mmap_region``).

        Only neighbours without a policy grow, and the one before is asked whether it fits the one after.
        """
        if content.flags & VM_SPECIAL:
            return None
        at = mm.position(start)
        prev = mm.vmas[at - 1] if at else None
        following = mm.vmas[at] if at < len(mm.vmas) else None
        pages = (end - start) >> PAGE_SHIFT
        if following is not None and (
            following.start != end or following.policy is not None or not self.can_precede(following, content, pages)
        ):
            following = None
        if prev is not None and prev.end == start and prev.policy is None:
            known = content if following is None else replace(content, anon_vma=following.anon_vma)
            if self.can_follow(prev, known):
                if following is not None:
                    return self._swallow(mm, prev, at, 1, following.end)
                return self._extend_up(mm, prev, None, at, end)
        return None if following is None else self._extend_down(mm, None, following, at, at, start)
