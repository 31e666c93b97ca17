"""Files of huge pages (fs/hugetlbfs/inode.c): what is behind MAP_HUGETLB, on the kernel's own mounts of hugetlbfs.

Models: an inode with its page cache, whose pages are counted in huge pages, its map of reservations, and its end, when
the last mapping goes. Left out: mounts that programs make, reading, holes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kmemd.mm.filemap import File
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.hugetlb_reserve import ResvMap, Subpool
from kmemd.mm.mm_types import Mm, Vma

HUGETLB_ANON_FILE = "/anon_hugepage"


class HugetlbOperations:
    """What the page cache asks of such a file. ``punch_hole(file, start, end)`` frees pages."""

    def __init__(self, punch_hole: Callable[[HugetlbFile, int, int], int]) -> None:
        self._punch_hole = punch_hole

    def fault(self, file: File, memory: Any, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> Any:
        """Faults of such mappings are not the page cache's."""
        raise AssertionError("a mapping of huge pages has VM_HUGETLB")

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """Huge pages have no disk to be written to."""

    def unused(self, file: File) -> None:
        """The file ends itself, once its promises are back."""

    def remove(self, file: File, start: int, end: int) -> int:
        """MADV_REMOVE: the file loses pages."""
        assert isinstance(file, HugetlbFile)
        return self._punch_hole(file, start, end)


@dataclass(eq=False, slots=True)
class HugetlbFile(File):
    """A file of huge pages of one pool. ``cache`` has its pages by their number in the file, in huge pages.

    ``opened`` and ``closed`` are called when a mapping of it comes and goes, ``evict`` with the last.

    Invariants: a page of ``cache`` is in ``resv`` too, unless a hole was made in it.
    """

    pool: Pool = field(kw_only=True)
    subpool: Subpool | None = None
    resv: ResvMap = field(default_factory=ResvMap)
    cache: dict[int, int] = field(default_factory=dict)
    opened: Callable[[Mm, Vma], None] = field(kw_only=True)
    closed: Callable[[HugetlbFile, Mm, Vma], None] = field(kw_only=True)
    evict: Callable[[HugetlbFile], None] = field(kw_only=True)

    @property
    def is_hugetlb(self) -> bool:
        """Whether it is of huge pages (``is_file_hugepages``)."""
        return True

    @property
    def huge_page_size(self) -> int:
        """Bytes of a page."""
        return self.pool.size

    def link(self, mm: Mm, vma: Vma) -> None:
        """A mapping shows the file from now on."""
        File.link(self, mm, vma)
        self.opened(mm, vma)

    def unlink(self, vma: Vma) -> None:
        """A mapping shows it no longer: its promises go, and with the last mapping a nameless file."""
        found = self.maps.get(id(vma))
        File.unlink(self, vma)
        if found is not None:
            self.closed(self, *found)
        if not self.maps and self.deleted:
            self.evict(self)

    def fault(self, memory: Any, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> Any:
        """Faults of such mappings never come here: ``mm/hugetlb_vm.py`` handles them."""
        raise AssertionError("a mapping of huge pages has VM_HUGETLB")
