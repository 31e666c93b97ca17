"""Making and ending mappings: mmap, munmap, brk, growing stacks, and what they are charged for (mm/mmap.c).

Models the checks and their order as programs see them by errno, limits per process, the commitment of private writable
memory, the sums of pages that /proc/PID/status shows, and merging. Files, shared anonymous memory and huge pages
are asked through the callables of ``Backing``. Left out: personalities, sealed and append-only files, protection keys.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap import OVERCOMMIT_NEVER, Mmap
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.ratelimit import RateLimit
from kmemd.mm.rlimit import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK, Limit, Rlimits, capable
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.unmapped_area import STACK_GUARD_GAP, UnmappedArea, page_align, start_gap
from kmemd.mm.vma import Content, VmaList
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.mm.filemap import File

VM_STACK_FLAGS = mt.VM_GROWSDOWN
VM_DATA_DEFAULT_FLAGS = mt.VM_READ | mt.VM_WRITE | mt.VM_MAYREAD | mt.VM_MAYWRITE | mt.VM_MAYEXEC
LONG_MAX_PAGES = 1 << 52
UNMAP_BYTES = 16 << 20
"""What munmap takes out before others may run."""


class Caller(Protocol):
    """The process that makes a call: what of a task matters here."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def comm(self) -> str:
        """Its name."""

    uid: int
    rlimits: dict[int, Limit]

    @property
    def mm(self) -> Mm | None:
        """Its address space; a kernel thread has none."""


class UserMemory(Protocol):
    """What the page tables do for mappings. Addresses are bytes, page aligned."""

    def unmap_region(self, mm: Mm, start: int, end: int, floor: int, ceiling: int) -> None:
        """Take the pages of a range out, and the tables that nothing between floor and ceiling needs any more."""

    def split_huge(self, mm: Mm, address: int) -> None:
        """Make small entries of a huge one that ``address`` lies inside of."""

    def change_protection(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """Give the entries of a range the protection of its mapping (``change_protection``)."""

    def move_page_tables(self, mm: Mm, vma: Vma, start: int, new: int, length: int) -> None:
        """Move entries to another address. ENOMEM when there are no pages for tables: nothing is moved then."""

    def clear_reserves(self, vma: Vma) -> None:
        """The promises of huge pages went with the entries (``clear_vma_resv_huge_pages``)."""

    def zap_range(self, mm: Mm, start: int, end: int) -> None:
        """Take the pages of a range out."""

    def unlink_anon(self, vma: Vma) -> None:
        """The mapping has no anonymous pages any more (``unlink_anon_vmas``)."""

    def prepare_anon(self, mm: Mm, vma: Vma) -> None:
        """The mapping gets an anon_vma when it has none (``anon_vma_prepare``). ENOMEM."""


@dataclass(frozen=True)
class Backing:
    """Who gives memory to mappings that are not private anonymous ones.

    ``zero_file(bytes, flags)`` makes the file behind shared anonymous memory, charged unless VM_NORESERVE (ENOMEM);
    ``huge_file(bytes, flags)`` the one of MAP_HUGETLB; ``map_file(mm, vma)`` is the file's own mmap, which may change
    flags or refuse; ``align(file)`` is the alignment that a file in memory wants for huge pages, None meaning shared
    anonymous memory (0: none); ``enter(mm, vma)`` tells khugepaged of a mapping; ``is_swapfile(file)`` says whether a
    file is swapped to.
    """

    zero_file: Callable[[int, int], File]
    huge_file: Callable[[int, int], File]
    map_file: Callable[[Mm, Vma], None]
    align: Callable[[File | None], int]
    enter: Callable[[Mm, Vma], None]
    is_swapfile: Callable[[File], bool]


class Mapped(NamedTuple):
    """Where a mapping is, its length, and how many bytes of it are to be populated."""

    address: int
    length: int
    populate: int


class Request(NamedTuple):
    """What mmap is asked for; ``length`` in bytes, ``pgoff`` in pages. ``writable`` says how the file was opened."""

    length: int
    prot: int
    flags: int
    address: int = 0
    file: File | None = None
    pgoff: int = 0
    writable: bool = True


def fail(number: int, reason: str) -> NoReturn:
    """Raise an error of a call."""
    raise KernelError(number, reason)


def mm_of(task: Caller) -> Mm:
    """The task's address space. EINVAL for a kernel thread."""
    if task.mm is None:
        fail(errno.EINVAL, f"{task.comm} is a kernel thread and has no address space")
    return task.mm


def huge_unit(file: File | None) -> int:
    """The size of a file's huge pages, 0 when it has none."""
    return file.huge_page_size if file is not None and file.is_hugetlb else 0


def is_data(flags: int) -> bool:
    """Private and writable, not a stack (``is_data_mapping``)."""
    return flags & (mt.VM_WRITE | mt.VM_SHARED | VM_STACK_FLAGS) == mt.VM_WRITE


def prot_flags(prot: int) -> int:
    """VM_READ, VM_WRITE, VM_EXEC of a protection (``calc_vm_prot_bits``); their numbers are the same."""
    return prot & (mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC)


class AddressSpaces:
    """The calls that make and end mappings, for any process."""

    def __init__(
        self,
        settings: Mmap,
        rlimits: Rlimits,
        vmas: VmaList,
        area: UnmappedArea,
        memory: UserMemory,
        backing: Backing,
        printk: Printk,
        ratelimit: RateLimit,
        execmem: Callable[[int], None] = lambda prot: None,
    ) -> None:
        """``execmem`` is asked whether a protection is allowed. EACCES."""
        self.settings = settings
        self.execmem = execmem
        self.rlimits = rlimits
        self.vmas = vmas
        self.area = area
        self.memory = memory
        self._backing = backing
        self.printk = printk
        self._ratelimit = ratelimit

    # -- limits and sums ---------------------------------------------------------------------------------

    def account(self, mm: Mm, flags: int, pages: int) -> None:
        """Count pages of address space that come, or go when negative (``vm_stat_account``)."""
        mm.total_vm += pages
        if flags & (mt.VM_EXEC | mt.VM_WRITE | VM_STACK_FLAGS) == mt.VM_EXEC:
            mm.exec_vm += pages
        elif flags & VM_STACK_FLAGS:
            mm.stack_vm += pages
        elif is_data(flags):
            mm.data_vm += pages

    def charge(self, task: Caller, pages: int) -> None:
        """Commit to ``pages`` (``security_vm_enough_memory_mm``). ENOMEM, with the kernel's line in the log."""
        mm = mm_of(task)
        if self.settings.enough_memory(pages, mm.total_vm, root=capable(task)):
            return
        if self._ratelimit("__vm_enough_memory"):
            text = f"__vm_enough_memory: pid: {task.pid}, comm: {task.comm}, no enough memory for the allocation"
            self.printk.log(KERN_WARNING, text)
        fail(errno.ENOMEM, f"{pages} pages are more than may be promised (overcommit_memory, CommitLimit)")

    def may_expand(self, task: Caller, flags: int, pages: int) -> bool:
        """Whether RLIMIT_AS and RLIMIT_DATA let the address space grow (``may_expand_vm``)."""
        mm = mm_of(task)
        if mm.total_vm + pages > self.rlimits.pages(task, RLIMIT_AS):
            return False
        if not is_data(flags) or mm.data_vm + pages <= self.rlimits.pages(task, RLIMIT_DATA):
            return True
        soft, hard = self.rlimits.get(task, RLIMIT_DATA)
        if soft == 0 and mm.data_vm + pages <= hard >> PAGE_SHIFT:
            return True
        if self.printk.once("may_expand_vm"):
            size = (mm.data_vm + pages) << PAGE_SHIFT
            rest = f"VmData {size} exceed data ulimit {soft}. Update limits or use boot option ignore_rlimit_data."
            self.printk.log(KERN_WARNING, f"mmap: {task.comm} ({task.pid}): {rest}")
        return False

    def check_expand(self, task: Caller, flags: int, pages: int) -> None:
        """``may_expand`` or ENOMEM."""
        if not self.may_expand(task, flags, pages):
            fail(errno.ENOMEM, "the limit of address space or data (RLIMIT_AS, RLIMIT_DATA) is reached")

    def check_mlock(self, task: Caller, flags: int, length: int) -> None:
        """RLIMIT_MEMLOCK for memory that is born locked (``mlock_future_check``). EAGAIN."""
        if not flags & mt.VM_LOCKED or capable(task):
            return
        if mm_of(task).locked_vm + (length >> PAGE_SHIFT) > self.rlimits.pages(task, RLIMIT_MEMLOCK):
            fail(errno.EAGAIN, "the limit of locked memory (RLIMIT_MEMLOCK) is reached")

    def can_mlock(self, task: Caller) -> bool:
        """Whether a task may lock memory at all (``can_do_mlock``)."""
        return self.rlimits.soft(task, RLIMIT_MEMLOCK) != 0 or capable(task)

    def check_map_count(self, mm: Mm) -> None:
        """max_map_count. ENOMEM."""
        if self.vmas.too_many(mm):
            fail(errno.ENOMEM, f"the limit of {self.settings.max_map_count} mappings (vm.max_map_count) is reached")

    # -- mmap --------------------------------------------------------------------------------------------

    def mmap(self, task: Caller, request: Request) -> Mapped:
        """Make a mapping (``ksys_mmap_pgoff``, ``do_mmap``). The caller populates what the result asks for."""
        mm, asked = mm_of(task), request
        if asked.flags & mman.MAP_ANONYMOUS:
            asked = asked._replace(file=None)
            if asked.flags & mman.MAP_HUGETLB:
                asked = asked._replace(file=self._backing.huge_file(asked.length, asked.flags))
        elif asked.file is None:
            fail(errno.EBADF, "a mapping is of a file (file=), or MAP_ANONYMOUS")
        elif asked.flags & mman.MAP_HUGETLB and not huge_unit(asked.file):
            fail(errno.EINVAL, "MAP_HUGETLB with a file that has no huge pages")
        if not asked.length:
            fail(errno.EINVAL, "the length is 0")
        flags = asked.flags | (mman.MAP_FIXED if asked.flags & mman.MAP_FIXED_NOREPLACE else 0)
        unit = huge_unit(asked.file) or PAGE_SIZE
        length = asked.length + unit - 1 & ~(unit - 1)
        if length >> PAGE_SHIFT >= LONG_MAX_PAGES:
            fail(errno.ENOMEM, "the length does not fit")
        self.check_map_count(mm)
        asked = asked._replace(flags=flags, length=length)
        address = self.get_unmapped_area(task, asked)
        if flags & mman.MAP_FIXED_NOREPLACE and any(mm.overlapping(address, address + length)):
            fail(errno.EEXIST, f"{address:#x} is mapped already")
        self._check_offset(asked)
        vm_flags = self._vm_flags(task, mm, asked)
        pgoff = asked.pgoff if asked.file is not None else 0
        if asked.file is None and not vm_flags & mt.VM_SHARED:
            pgoff = address >> PAGE_SHIFT
        self.region(task, asked.file, address, length, vm_flags, pgoff)
        wanted = flags & (mman.MAP_POPULATE | mman.MAP_NONBLOCK) == mman.MAP_POPULATE
        return Mapped(address, length, length if wanted or vm_flags & mt.VM_LOCKED else 0)

    def _vm_flags(self, task: Caller, mm: Mm, asked: Request) -> int:
        """The flags of a new mapping. EPERM, EAGAIN, EACCES, EINVAL, EOPNOTSUPP."""
        self.execmem(asked.prot)
        vm_flags = prot_flags(asked.prot) | mm.def_flags | mt.VM_MAYREAD | mt.VM_MAYWRITE | mt.VM_MAYEXEC
        vm_flags |= mt.VM_GROWSDOWN if asked.flags & mman.MAP_GROWSDOWN else 0
        vm_flags |= mt.VM_LOCKED if asked.flags & mman.MAP_LOCKED else 0
        if asked.flags & mman.MAP_LOCKED and not self.can_mlock(task):
            fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")
        self.check_mlock(task, vm_flags, asked.length)
        kind = asked.flags & mman.MAP_TYPE
        kinds = [mman.MAP_SHARED, mman.MAP_PRIVATE] + ([mman.MAP_SHARED_VALIDATE] if asked.file is not None else [])
        if kind not in kinds:
            fail(errno.EINVAL, "a mapping is MAP_SHARED or MAP_PRIVATE")
        if kind == mman.MAP_SHARED_VALIDATE and asked.flags & (mman.MAP_SYNC | mman.MAP_FIXED_NOREPLACE):
            fail(errno.EOPNOTSUPP, "no file system of this machine knows these flags (MAP_SYNC, MAP_FIXED_NOREPLACE)")
        if vm_flags & mt.VM_GROWSDOWN and (asked.file is not None or kind != mman.MAP_PRIVATE):
            fail(errno.EINVAL, "only private anonymous memory grows down")
        if kind != mman.MAP_PRIVATE:
            vm_flags |= mt.VM_SHARED | mt.VM_MAYSHARE
            if asked.file is not None and asked.prot & mman.PROT_WRITE:
                self._check_writable(asked.file, asked.writable)
            if asked.file is not None and not asked.writable:
                vm_flags &= ~(mt.VM_SHARED | mt.VM_MAYWRITE)
        overcommits = self.settings.overcommit_memory != OVERCOMMIT_NEVER or huge_unit(asked.file)
        if asked.flags & mman.MAP_NORESERVE and overcommits:
            vm_flags |= mt.VM_NORESERVE
        return vm_flags

    def _check_writable(self, file: File, writable: bool) -> None:
        """Whether a shared mapping may be written to. EACCES, ETXTBSY."""
        if not writable:
            fail(errno.EACCES, "the file is not open for writing")
        if self._backing.is_swapfile(file):
            fail(errno.ETXTBSY, "the file is a swap area that is on")

    def _check_offset(self, asked: Request) -> None:
        """Whether a file can have such an offset (``file_mmap_ok``). EOVERFLOW."""
        limit = self.area.layout.max_file_size
        if asked.file is not None and not asked.file.is_device and (asked.pgoff << PAGE_SHIFT) + asked.length > limit:
            fail(errno.EOVERFLOW, f"no file reaches {asked.length} bytes beyond page {asked.pgoff}")

    def get_unmapped_area(self, task: Caller, asked: Request) -> int:
        """Where a mapping goes, or whether it may go where it is told. ENOMEM, EINVAL, EPERM."""
        mm, length, size = mm_of(task), asked.length, self.area.layout.task_size
        least = self.settings.mmap_min_addr
        address = asked.address
        if not asked.flags & mman.MAP_FIXED:
            address &= PAGE_MASK
            address = page_align(least) if address and address < least else address
        if length > size:
            fail(errno.ENOMEM, f"{length} bytes are more than there are addresses")
        if not asked.flags & mman.MAP_FIXED:
            address = self._search(mm, asked, address)
        if address > size - length:
            fail(errno.ENOMEM, f"{address:#x} is beyond the end of the address space at {size:#x}")
        if address & ~PAGE_MASK:
            fail(errno.EINVAL, f"{address:#x} is not page aligned")
        if asked.flags & mman.MAP_FIXED and address & max(huge_unit(asked.file) - 1, 0):
            fail(errno.EINVAL, f"{address:#x} is not aligned to huge pages")
        if address < least and not capable(task):
            fail(errno.EPERM, f"{address:#x} is below vm.mmap_min_addr")
        return address

    def _search(self, mm: Mm, asked: Request, address: int) -> int:
        file, unit = asked.file, huge_unit(asked.file)
        if unit:
            return self.area.find(mm, address & ~(unit - 1), asked.length, asked.flags, unit)
        found = self.area.find(mm, address, asked.length, asked.flags)
        shared_anonymous = file is None and asked.flags & mman.MAP_TYPE == mman.MAP_SHARED
        align = self._backing.align(file) if file is not None or shared_anonymous else 0
        offset = (asked.pgoff << PAGE_SHIFT if file is not None else 0) % max(align, 1)
        if not align or found == address or asked.length < align or found % align == offset:
            return found
        if offset and offset + asked.length < 2 * align:
            return found
        # a place for huge pages is in a range that is longer; without room for that any other will do
        try:
            wider = self.area.find(mm, address, asked.length + align - PAGE_SIZE, asked.flags)
        except KernelError:
            return found
        return wider + (offset - wider) % align

    def region(self, task: Caller, file: File | None, address: int, length: int, vm_flags: int, pgoff: int) -> Vma:
        """Put a mapping at an address; what is there goes (``mmap_region``). ENOMEM, and what the file says."""
        mm, pages, end = mm_of(task), length >> PAGE_SHIFT, address + length
        if not self.may_expand(task, vm_flags, pages):
            self.check_expand(task, vm_flags, pages - _mapped_pages(mm, address, end))
        self.unmap(task, address, end)
        charged = 0
        private_writable = vm_flags & (mt.VM_NORESERVE | mt.VM_SHARED | mt.VM_WRITE) == mt.VM_WRITE
        if private_writable and not huge_unit(file):
            self.charge(task, pages)
            charged = pages
            vm_flags |= mt.VM_ACCOUNT
        try:
            vma = self._place(mm, file, address, end, vm_flags, pgoff)
        except KernelError:
            self.settings.unaccount(charged)
            raise
        self._backing.enter(mm, vma)
        self.account(mm, vma.flags, pages)
        if vma.flags & mt.VM_LOCKED:
            if vma.flags & (mt.VM_SPECIAL | mt.VM_HUGETLB):
                vma.flags &= ~mt.VM_LOCKED_MASK
            else:
                mm.locked_vm += pages
        vma.flags |= mt.VM_SOFTDIRTY
        mm.changed += 1
        return vma

    def _place(self, mm: Mm, file: File | None, address: int, end: int, vm_flags: int, pgoff: int) -> Vma:
        """The mapping that holds the range: a neighbour that grew, or a new one."""
        grown = self.vmas.grow(mm, address, end, Content(vm_flags, pgoff, file))
        if grown is not None:
            return grown
        vma = Vma(address, end, vm_flags, pgoff, file)
        if file is not None:
            self._backing.map_file(mm, vma)
            at = mm.position(address)
            prev = mm.vmas[at - 1] if at else None
            if vma.flags != vm_flags and prev is not None:
                merged = self.vmas.merge(mm, prev, address, end, Content(vma.flags, vma.pgoff, vma.file))
                if merged is not None:
                    return merged
        elif vm_flags & mt.VM_SHARED:
            vma.file = self._backing.zero_file(end - address, vm_flags)
        self.vmas.insert(mm, vma)
        return vma

    # -- munmap ------------------------------------------------------------------------------------------

    def munmap(self, task: Caller, address: int, length: int) -> None:
        """Unmap a range (``do_mas_munmap``). EINVAL, ENOMEM."""
        size = self.area.layout.task_size
        if address & ~PAGE_MASK or address > size or length > size - address:
            fail(errno.EINVAL, f"{address:#x} is not page aligned, or the range leaves the address space")
        if not length:
            fail(errno.EINVAL, "the length is 0")
        self.unmap(task, address, address + page_align(length))

    def munmap_steps(self, task: Caller, address: int, length: int) -> Steps[None]:
        """``munmap`` in slices: the pages go first, a part at a time."""
        mm, end = mm_of(task), address + page_align(length)
        size = self.area.layout.task_size
        if length > UNMAP_BYTES and not address & ~PAGE_MASK and length <= size - address:
            self.vmas.carve(mm, address, end)
            for vma in list(mm.overlapping(address, end)):
                unit = max(huge_unit(vma.file), UNMAP_BYTES)
                for start in range(vma.start, vma.end, unit):
                    self.memory.zap_range(mm, start, min(start + unit, vma.end))
                    yield
        self.munmap(task, address, length)

    def unmap(self, task: Caller, start: int, end: int) -> None:
        """Take ``[start, end)`` out of the address space; a range without mappings is nothing. ENOMEM."""
        mm = mm_of(task)
        at, count = self.vmas.carve(mm, start, end)
        if not count:
            return
        gone = mm.vmas[at : at + count]
        floor = mm.vmas[at - 1].end if at else 0
        ceiling = mm.vmas[at + count].start if at + count < len(mm.vmas) else 0
        self.memory.unmap_region(mm, gone[0].start, gone[-1].end, floor, ceiling)
        self.vmas.remove(mm, at, count)
        mm.locked_vm -= sum(vma.pages for vma in gone if vma.flags & mt.VM_LOCKED)
        mm.hiwater_vm = max(mm.hiwater_vm, mm.total_vm)
        self.settings.unaccount(sum(vma.pages for vma in gone if vma.flags & mt.VM_ACCOUNT))
        for vma in gone:
            self.account(mm, vma.flags, -vma.pages)

    # -- brk ---------------------------------------------------------------------------------------------

    def brk(self, task: Caller, wanted: int) -> Mapped:
        """Move the end of the heap (``sys_brk``). Like libc's brk: ENOMEM where the kernel leaves it as it is."""
        mm = mm_of(task)
        new, old = page_align(wanted), page_align(mm.brk)
        if wanted < mm.start_brk:
            fail(errno.ENOMEM, f"{wanted:#x} is below the heap, which begins at {mm.start_brk:#x}")
        data = wanted - mm.start_brk + mm.end_data - mm.start_data
        if data > self.rlimits.soft(task, RLIMIT_DATA):
            fail(errno.ENOMEM, "the limit of data (RLIMIT_DATA) is reached")
        if new < old:
            found = mm.find_vma(new)
            if found is None or found.start >= old:
                fail(errno.ENOMEM, f"there is no heap below {old:#x}")
            self.unmap(task, new, old)
        elif new > old:
            try:
                self._grow_heap(task, mm, old, new)
            except KernelError as error:
                fail(errno.ENOMEM, error.reason)
        mm.brk = wanted
        grown = max(new - old, 0)
        return Mapped(old, grown, grown if mm.def_flags & mt.VM_LOCKED else 0)

    def _grow_heap(self, task: Caller, mm: Mm, old: int, new: int) -> None:
        length, pages = new - old, (new - old) >> PAGE_SHIFT
        self.get_unmapped_area(task, Request(length, 0, mman.MAP_FIXED, old))
        self.check_mlock(task, mm.def_flags, length)
        following = mm.find_vma(old)
        if following is not None and new + PAGE_SIZE > start_gap(following):
            fail(errno.ENOMEM, f"the mapping at {following.start:#x} is in the way of the heap")
        flags = VM_DATA_DEFAULT_FLAGS | mt.VM_ACCOUNT | mm.def_flags
        self.check_expand(task, flags, pages)
        self.check_map_count(mm)
        self.charge(task, pages)
        at = mm.position(old)
        prev = mm.vmas[at - 1] if at and mm.vmas[at - 1].end > mm.start_brk else None
        fits = prev is not None and prev.end == old and prev.policy is None
        if prev is not None and fits and self.vmas.can_follow(prev, Content(flags, old >> PAGE_SHIFT)):
            prev.end = new
            prev.flags |= mt.VM_SOFTDIRTY
            self._backing.enter(mm, prev)
        else:
            self.vmas.insert(mm, Vma(old, new, flags | mt.VM_SOFTDIRTY, old >> PAGE_SHIFT), heap=True)
        mm.total_vm += pages
        mm.data_vm += pages
        if flags & mt.VM_LOCKED:
            mm.locked_vm += pages
        mm.changed += 1

    # -- growing stacks ----------------------------------------------------------------------------------

    def expand_stack(self, task: Caller, address: int) -> Vma:
        """Let the stack above an address grow down to it (``expand_downwards``). EFAULT, EPERM, ENOMEM."""
        mm = mm_of(task)
        vma = mm.find_vma(address)
        if vma is None or (vma.start > address and not vma.flags & mt.VM_GROWSDOWN):
            fail(errno.EFAULT, f"no mapping at {address:#x}, and no stack above it")
        if vma.start <= address:
            return vma
        address &= PAGE_MASK
        if address < self.settings.mmap_min_addr:
            fail(errno.EPERM, f"{address:#x} is below vm.mmap_min_addr")
        at = mm.position(vma.start)
        prev = mm.vmas[at - 1] if at else None
        guarded = prev is not None and not prev.flags & mt.VM_GROWSDOWN and prev.flags & mt.VM_ACCESS_FLAGS
        if prev is not None and guarded and address - prev.end < STACK_GUARD_GAP:
            fail(errno.ENOMEM, f"{address:#x} is in the stack's guard gap above {prev.end:#x}")
        self.memory.prepare_anon(mm, vma)
        grow = (vma.start - address) >> PAGE_SHIFT
        if grow > vma.pgoff:
            fail(errno.ENOMEM, "the stack cannot grow that far")
        self._account_stack(task, mm, vma, vma.end - address, grow)
        vma.start = address
        vma.pgoff -= grow
        self.vmas.stored(mm, vma)
        mm.changed += 1
        self._backing.enter(mm, vma)
        return vma

    def _account_stack(self, task: Caller, mm: Mm, vma: Vma, size: int, grow: int) -> None:
        """``acct_stack_growth``. ENOMEM."""
        self.check_expand(task, vma.flags, grow)
        if size > self.rlimits.soft(task, RLIMIT_STACK):
            fail(errno.ENOMEM, "the limit of the stack (RLIMIT_STACK) is reached")
        try:
            self.check_mlock(task, vma.flags, grow << PAGE_SHIFT)
        except KernelError as error:
            fail(errno.ENOMEM, error.reason)
        self.charge(task, grow)
        if vma.flags & mt.VM_LOCKED:
            mm.locked_vm += grow
        self.account(mm, vma.flags, grow)


def _mapped_pages(mm: Mm, start: int, end: int) -> int:
    """Pages of a range that are mapped (``count_vma_pages_range``)."""
    return sum((min(vma.end, end) - max(vma.start, start)) >> PAGE_SHIFT for vma in mm.overlapping(start, end))
