"""Growing, shrinking and moving mappings (mm/mremap.c).

Models mremap with all its flags, the copy that shared memory gives for an old length of 0, how page tables and the
promise of memory move along, and which parts lose VM_ACCOUNT on the way. Left out: userfaultfd, what drivers do.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import AddressSpaces, Caller, Mapped, Request, fail, huge_unit, mm_of
from kmemd.mm.printk import KERN_WARNING
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT
from kmemd.mm.unmapped_area import page_align
from kmemd.mm.vma import Content

KNOWN = mman.MREMAP_MAYMOVE | mman.MREMAP_FIXED | mman.MREMAP_DONTUNMAP
DUPLICATION = "attempted to duplicate a private mapping with mremap.  This is not supported."


class Mremap:
    """The mremap call. What it returns is to be populated by the caller where the mapping is locked."""

    def __init__(self, spaces: AddressSpaces) -> None:
        self._spaces = spaces

    def mremap(self, task: Caller, address: int, old: int, new: int, flags: int, to: int = 0) -> Mapped:
        """Resize or move ``old`` bytes at ``address`` to ``new`` bytes. EINVAL, EFAULT, EAGAIN, ENOMEM."""
        mm = mm_of(task)
        fixed, keep = flags & mman.MREMAP_FIXED, flags & mman.MREMAP_DONTUNMAP
        alone = (fixed or keep) and not flags & mman.MREMAP_MAYMOVE
        if flags & ~KNOWN or alone or (keep and old != new):
            fail(errno.EINVAL, "these flags do not go together")
        if address & ~PAGE_MASK:
            fail(errno.EINVAL, f"{address:#x} is not page aligned")
        old, new = page_align(old), page_align(new)
        if not new:
            fail(errno.EINVAL, "the new length is 0")
        vma = self._lookup(mm, address)
        if vma.flags & mt.VM_HUGETLB:
            old, new = self._huge_lengths(vma, address, old, new, to)
        if fixed or keep:
            found, locked = self._to(task, address, old, new, flags, to)
        elif old >= new:
            if old > new:
                self._spaces.munmap(task, address + new, old - new)
            found, locked = address, False
        else:
            found, locked = self._grow(task, address, old, new, flags)
        grown = new - old if locked and new > old else 0
        return Mapped(found, new, grown)

    @staticmethod
    def _lookup(mm: Mm, address: int) -> Vma:
        vma = mm.find(address)
        if vma is None:
            fail(errno.EFAULT, f"nothing is mapped at {address:#x}")
        return vma

    def _huge_lengths(self, vma: Vma, address: int, old: int, new: int, to: int) -> tuple[int, int]:
        unit = huge_unit(vma.file)
        old, new = old + unit - 1 & -unit, new + unit - 1 & -unit
        if address & (unit - 1) or to & (unit - 1) or new > old:
            fail(errno.EINVAL, "huge pages are moved whole, and do not become more")
        return old, new

    def _warn_once(self, task: Caller) -> None:
        if self._spaces.printk.once("vma_to_resize"):
            self._spaces.printk.log(KERN_WARNING, f"{task.comm} ({task.pid}): {DUPLICATION}")

    def _resizable(self, task: Caller, address: int, old: int, new: int, flags: int) -> Vma:
        """The mapping, when it may be resized (``vma_to_resize``). EFAULT, EINVAL, EAGAIN, ENOMEM."""
        vma = self._lookup(mm_of(task), address)
        if not old and not vma.flags & (mt.VM_SHARED | mt.VM_MAYSHARE):
            self._warn_once(task)
            fail(errno.EINVAL, "a private mapping cannot be duplicated")
        stiff = vma.flags & (mt.VM_DONTEXPAND | mt.VM_PFNMAP)
        if flags & mman.MREMAP_DONTUNMAP and stiff:
            fail(errno.EINVAL, "this mapping does not move")
        if old > vma.end - address:
            fail(errno.EFAULT, "the old range is more than one mapping")
        if new == old:
            return vma
        if stiff:
            fail(errno.EFAULT, "this mapping does not change its size")
        try:
            self._spaces.check_mlock(task, vma.flags, new - old)
        except KernelError as error:
            fail(errno.EAGAIN, error.reason)
        self._spaces.check_expand(task, vma.flags, (new - old) >> PAGE_SHIFT)
        return vma

    def _to(self, task: Caller, address: int, old: int, new: int, flags: int, to: int) -> tuple[int, bool]:
        """MREMAP_FIXED and MREMAP_DONTUNMAP (``mremap_to``): where it is, and whether it is locked."""
        spaces, mm, size = self._spaces, mm_of(task), self._spaces.area.layout.task_size
        if to & ~PAGE_MASK or new > size or to > size - new:
            fail(errno.EINVAL, f"{to:#x} is not page aligned, or the new range leaves the address space")
        if address + old > to and to + new > address:
            fail(errno.EINVAL, "the old and the new range overlap")
        if len(mm.vmas) + 2 >= spaces.settings.max_map_count - 3:
            fail(errno.ENOMEM, "too few mappings are left to move one")
        if flags & mman.MREMAP_FIXED:
            spaces.munmap(task, to, new)
        if old > new:
            spaces.munmap(task, address + new, old - new)
            old = new
        vma = self._resizable(task, address, old, new, flags)
        if flags & mman.MREMAP_DONTUNMAP:
            spaces.check_expand(task, vma.flags, old >> PAGE_SHIFT)
        found = self._room(task, vma, address, new, to, fixed=bool(flags & mman.MREMAP_FIXED))
        return self._move(task, vma, address, old, new, to if flags & mman.MREMAP_FIXED else found, flags)

    def _room(self, task: Caller, vma: Vma, address: int, length: int, to: int, *, fixed: bool) -> int:
        pgoff = vma.pgoff + ((address - vma.start) >> PAGE_SHIFT)
        flags = (mman.MAP_FIXED if fixed else 0) | (mman.MAP_SHARED if vma.flags & mt.VM_MAYSHARE else 0)
        return self._spaces.get_unmapped_area(task, Request(length, 0, flags, to, vma.file, pgoff))

    def _grow(self, task: Caller, address: int, old: int, new: int, flags: int) -> tuple[int, bool]:
        """Grow where it is, or elsewhere with MREMAP_MAYMOVE: where it is, and whether it is locked."""
        spaces, mm = self._spaces, mm_of(task)
        vma = self._resizable(task, address, old, new, flags)
        pages = (new - old) >> PAGE_SHIFT
        if old == vma.end - address and self._expandable(task, mm, vma, new - old):
            if vma.flags & mt.VM_ACCOUNT:
                spaces.charge(task, pages)
            end = address + old
            grown = spaces.vmas.merge(mm, vma, end, end + new - old, Content.of(vma, end))
            if grown is None:
                spaces.settings.unaccount(pages)
                fail(errno.ENOMEM, "this mapping does not grow")
            spaces.account(mm, grown.flags, pages)
            if grown.flags & mt.VM_LOCKED:
                mm.locked_vm += pages
            return address, bool(grown.flags & mt.VM_LOCKED)
        if not flags & mman.MREMAP_MAYMOVE:
            fail(errno.ENOMEM, "there is no room to grow, and MREMAP_MAYMOVE is not given")
        found = self._room(task, vma, address, new, 0, fixed=False)
        return self._move(task, vma, address, old, new, found, flags)

    def _expandable(self, task: Caller, mm: Mm, vma: Vma, delta: int) -> bool:
        """``vma_expandable``: nothing is in the way, and the end of the address space neither."""
        if any(mm.overlapping(vma.end, vma.end + delta)):
            return False
        try:
            self._spaces.get_unmapped_area(task, Request(vma.end + delta - vma.start, 0, mman.MAP_FIXED, vma.start))
        except KernelError:
            return False
        return True

    # -- moving ------------------------------------------------------------------------------------------

    def _move(self, task: Caller, vma: Vma, address: int, old: int, new: int, to: int, flags: int) -> tuple[int, bool]:
        """Move a range of a mapping (``move_vma``): where it is, and whether it is locked. ENOMEM."""
        spaces, mm = self._spaces, mm_of(task)
        keep = bool(flags & mman.MREMAP_DONTUNMAP)
        if len(mm.vmas) >= spaces.settings.max_map_count - 3:
            fail(errno.ENOMEM, "too few mappings are left to move one")
        if vma.flags & mt.VM_HUGETLB or (keep and vma.flags & mt.VM_LOCKED):
            vma = spaces.vmas.isolate(mm, vma, address, address + old)
        vm_flags = vma.flags
        charged = (new if keep else new - old) >> PAGE_SHIFT if vm_flags & mt.VM_ACCOUNT else 0
        if charged:
            spaces.charge(task, charged)
        copy, vma = self._copy_vma(mm, vma, address, new, to, keep=keep)
        try:
            spaces.memory.move_page_tables(mm, copy, address, to, old)
        except KernelError:
            self._give_up(task, mm, copy, new, to, charged)
            raise
        if vma.flags & mt.VM_HUGETLB:
            spaces.memory.clear_reserves(vma)
        spaces.account(mm, vma.flags, new >> PAGE_SHIFT)
        if keep:
            self._leave_behind(mm, vma, address, old)
            return to, False
        self._unmap_old(task, mm, vma, address, old)
        if vm_flags & mt.VM_LOCKED:
            mm.locked_vm += new >> PAGE_SHIFT
        return to, bool(vm_flags & mt.VM_LOCKED)

    def _give_up(self, task: Caller, mm: Mm, copy: Vma, new: int, to: int, charged: int) -> None:
        """The entries could not be moved: the new range goes, with what was promised for it."""
        spaces, flags = self._spaces, copy.flags
        spaces.account(mm, flags, new >> PAGE_SHIFT)
        if flags & mt.VM_LOCKED:
            mm.locked_vm += new >> PAGE_SHIFT
        spaces.unmap(task, to, to + new)
        if flags & mt.VM_ACCOUNT:
            spaces.settings.committed += (new >> PAGE_SHIFT) - charged

    def _unmap_old(self, task: Caller, mm: Mm, vma: Vma, address: int, old: int) -> None:
        """Take the old range away without taking its promise back, which went with the pages."""
        begin, end, accounted = vma.start, vma.end, vma.flags & mt.VM_ACCOUNT
        vma.flags &= ~mt.VM_ACCOUNT
        hiwater = mm.hiwater_vm
        self._spaces.unmap(task, address, address + old)
        mm.hiwater_vm = hiwater
        for left, remains in ((begin, begin < address), (address + old, address + old < end)):
            rest = mm.find(left) if remains and accounted else None
            if rest is not None:
                rest.flags |= mt.VM_ACCOUNT

    def _leave_behind(self, mm: Mm, vma: Vma, address: int, old: int) -> None:
        """MREMAP_DONTUNMAP: the old range stays, empty and not locked."""
        vma.flags &= ~mt.VM_LOCKED_MASK
        if (vma.start, vma.end) == (address, address + old):
            self._spaces.memory.unlink_anon(vma)
            if vma.is_anon:
                vma.pgoff = vma.start >> PAGE_SHIFT
        mm.changed += 1

    def _copy_vma(self, mm: Mm, vma: Vma, address: int, length: int, to: int, *, keep: bool) -> tuple[Vma, Vma]:
        """A mapping for the new range (``copy_vma``), and the old one, which may have become a part of it."""
        content = Content.of(vma, address)
        fresh = vma.is_anon and vma.anon_vma is None
        if fresh:
            content = replace(content, pgoff=to >> PAGE_SHIFT)
        start = vma.start
        at = mm.position(to)
        prev = mm.vmas[at - 1] if at else None
        copy = None
        if not (fresh and keep and (to == vma.end or vma.start == to + length)):
            copy = self._spaces.vmas.merge(mm, prev, to, to + length, content)
        if copy is not None:
            return copy, copy if copy.start <= start < copy.end else vma
        copy = vma.copy(to, to + length, content.pgoff)
        self._spaces.vmas.insert(mm, copy, source=vma)
        return copy, vma
