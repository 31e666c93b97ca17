"""SLUB's complaints, and who allocated what (mm/slub.c ``object_err``, ``slab_err``, ``set_track``).

A debugged kernel reports what it finds; another would corrupt its lists without a word. The model knows every
object, so it reports in either case, refuses, and goes on. Addresses are printed as they are, as with
no_hash_pointers, which ``slub_debug`` turns on. Bytes are those that the allocator wrote, and that kernel code wrote
over them (mm/slub_bytes.py). The checks that find something to complain about are in mm/slub_debugging.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.core.slab_layout import FREE_OBJECT, MISALIGNED, NO_SLAB
from kmemd.core.slab_lists import SlabLists
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.gfp import format_gfp
from kmemd.mm.panic import TAINT_BAD_PAGE
from kmemd.mm.printk import KERN_ERR, KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slub_bytes import SlabBytes, metadata_end
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SIZE

_RULE = "=" * 77
_LINE = "-" * 77


@dataclass(frozen=True)
class ReportTools:
    """What reports are made with.

    ``symbolize`` gives ``name+0x../0x..`` for a frame; ``page_flags`` the text of ``%pGp`` for a PFN;
    ``page_struct`` the address of a frame's struct page; ``faults(address, frames)`` whether there is none for an
    address: the fault of looking at it, in ``frames``, is reported then.
    """

    dump_stack: DumpStack
    symbolize: Callable[[str], str]
    page_flags: Callable[[int], str]
    page_struct: Callable[[int], int]
    faults: Callable[[int, tuple[str, ...]], bool]


@dataclass(frozen=True, slots=True)
class Track:
    """Who did something to an object (struct track). ``size`` is what was asked for, in bytes."""

    handle: int
    cpu: int
    pid: int
    when_ns: int
    size: int = 0


class SlubReports:
    """Complaints, and the tracks of caches with SLAB_STORE_USER by object address."""

    def __init__(
        self,
        lists: SlabLists,
        stored: SlabBytes,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        tools: ReportTools,
        word: int,
    ) -> None:
        self._lists = lists
        self._bytes = stored
        self.taking = 0
        """The slab whose first free object is being taken: its list and counts show it gone already."""
        self._context = context
        self._depot = depot
        self._printk = printk
        self._tools = tools
        self._word = word
        self.allocated: dict[int, Track] = {}
        self.freed: dict[int, Track] = {}

    # -- tracks ------------------------------------------------------------------------------------------

    def _track(self, handle: int, size: int = 0) -> Track:
        at = self._context
        return Track(handle, at.cpu, at.pid, at.now, size)

    def track_alloc(self, addresses: npt.NDArray[np.uint64], frames: tuple[str, ...], size: int) -> None:
        """Remember who allocated objects."""
        track = self._track(self._depot.extend(self._context.site, frames), size)
        self.allocated.update(dict.fromkeys(addresses.tolist(), track))

    def track_free(self, addresses: npt.NDArray[np.uint64], frames: tuple[str, ...]) -> None:
        """Remember who freed objects, those that are tracked."""
        if not self.allocated:
            return
        track = self._track(self._depot.extend(self._context.site, frames))
        self.freed.update((address, track) for address in addresses.tolist() if address in self.allocated)

    def forget(self, first: int, end: int) -> None:
        """The pages of a slab are gone, and the tracks that stood in them."""
        if self.allocated:
            for address in range(first, end, self._word):
                self.allocated.pop(address, None)
                self.freed.pop(address, None)

    # -- complaints --------------------------------------------------------------------------------------

    def say(self, text: str, level: int = KERN_ERR) -> None:
        """Log a line."""
        self._printk.log(level, text)

    def warn(self, text: str) -> None:
        """A line and the stack."""
        self.say(text, KERN_WARNING)
        self._tools.dump_stack()

    def warn_once(self, frames: tuple[str, ...], text: str = "") -> None:
        """``WARN_ONCE`` in ``frames[0]``: said a single time."""
        self._tools.dump_stack.warn_once(f"{frames[0]}: {text}", frames, text)

    def duplicate_directory(self, directory: str) -> None:
        """sysfs has such a directory already (``sysfs_warn_dup``)."""
        self.warn(f"sysfs: cannot create duplicate filename '/kernel/slab/{directory}'")
        self.say(
            f"kobject_add_internal failed for {directory} with -EEXIST, "
            "don't try to register things with the same name in the same directory."
        )

    def fix_flags(self, gfp: int, bad: int) -> int:
        """Zone modifiers that no slab can obey are taken off (``kmalloc_fix_flags``)."""
        wrong, fixed = gfp & bad, gfp & ~bad
        self.warn(
            f"Unexpected gfp: {wrong:#x} ({format_gfp(wrong)}). Fixing up to gfp: {fixed:#x} ({format_gfp(fixed)}). "
            "Fix your code!"
        )
        return fixed

    def still_has_objects(self, cache: KmemCache) -> None:
        """A cache that cannot be destroyed."""
        caller = self._caller()
        text = f"kmem_cache_destroy {cache.name}: Slab cache still has objects when called from {caller}"
        self._tools.dump_stack.warn(("kmem_cache_destroy",), text)

    def objects_remaining(self, cache: KmemCache, slab: int) -> None:
        """The objects that keep a slab from going (``list_slab_objects``)."""
        frames = ("slab_err", "list_slab_objects", "__kmem_cache_shutdown", "kmem_cache_destroy")
        self.slab_err(cache, slab, f"Objects remaining in {cache.name} on __kmem_cache_shutdown()", frames)
        for index in self._lists.used(slab):
            address = self._lists.address(slab, index)
            self.say(f"Object {self.pointer(address)} @offset={address - self._lists.base(slab)}")
            self._print_tracking(cache, address)

    def refuse_free(
        self, address: int, kind: int, slab: int, owner: KmemCache | None, cache: KmemCache | None
    ) -> KernelError:
        """Report an address that cannot be freed. ``cache`` is the one it was freed to, None for kfree."""
        text = f"{address:#x}"
        caller = ("__kmem_cache_free", "kfree") if cache is None else ("kmem_cache_free",)
        if kind == NO_SLAB or owner is None:
            return self._not_slab(address, cache)
        if kind == MISALIGNED:
            self.slab_err(owner, slab, f"Invalid object pointer {self.pointer(address)}", ("slab_err", *caller))
            self.fix(owner, f"Object at {self.pointer(address)} not freed")
            return KernelError(errno.EINVAL, f"{text} is not the start of an object of {owner.name}")
        if kind == FREE_OBJECT:
            self._already_free(owner, slab, address, caller)
            return KernelError(errno.EINVAL, f"{text} of {owner.name} is free already")
        name = cache.name if cache is not None else "kmalloc"
        message = f"cache_from_obj: Wrong slab cache. {name} but object is from {owner.name}"
        self._tools.dump_stack.warn(("kmem_cache_free",), message)
        self._print_tracking(owner, address)
        return KernelError(errno.EINVAL, f"{text} is an object of {owner.name}, not of {name}")

    def _not_slab(self, address: int, cache: KmemCache | None) -> KernelError:
        if self._tools.faults(address, ("kfree",) if cache is None else ("kmem_cache_free",)):
            return KernelError(errno.EFAULT, f"{address:#x} is no address of kernel memory")
        if cache is not None:
            text = "virt_to_cache: Object is not a Slab page!"
            self.warn_once(("kmem_cache_free",), text)
            return KernelError(errno.EINVAL, f"{address:#x} is in no slab")
        self.warn_once(("free_large_kmalloc", "kfree"))
        if self._printk.once("free_large_kmalloc pointer"):
            self.say(f"object pointer: {self.pointer(address)}", KERN_WARNING)
        return KernelError(errno.EINVAL, f"{address:#x} was not allocated by kmalloc")

    def _already_free(self, cache: KmemCache, slab: int, address: int, caller: tuple[str, ...]) -> None:
        frames = ("object_err", "free_to_partial_list", "__slab_free", *caller)
        self.object_err(cache, slab, address, "Object already free", frames[1:])
        self.fix(cache, f"Object at {self.pointer(address)} not freed")

    def object_err(self, cache: KmemCache, slab: int, address: int, text: str, frames: tuple[str, ...]) -> None:
        """A report about an object."""
        self.object_report(cache, slab, address, text, ("print_trailer", "object_err", *frames))

    def object_report(
        self, cache: KmemCache, slab: int, address: int, text: str, frames: tuple[str, ...], detail: str = ""
    ) -> None:
        """A report with an object, what is around it, who used it, and the stack (``print_trailer``)."""
        self._bug(cache, text)
        if detail:
            self.say(detail)
        self._print_trailer(cache, slab, address)
        self._tools.dump_stack(frames)
        self._tools.dump_stack.taint.add(TAINT_BAD_PAGE)

    def trace(self, cache: KmemCache, slab: int, address: int, what: str, frames: tuple[str, ...]) -> None:
        """One object of a cache with SLAB_TRACE is allocated or freed (``trace``)."""
        chain = self._lists.freelist(slab)
        first = self.pointer(self._lists.address(slab, chain[0]) if chain else 0)
        self.say(
            f"TRACE {cache.name} {what} {self.pointer(address)} inuse={self._lists.inuse(slab)} fp={first}", KERN_INFO
        )
        if what == "free":
            self.dump("Object ", address, self._bytes.read(slab, address, cache.object_size), KERN_INFO)
        self._tools.dump_stack(("trace", *frames))

    def slab_err(self, cache: KmemCache, slab: int, text: str, frames: tuple[str, ...]) -> None:
        """A report about a slab as a whole."""
        self._bug(cache, text)
        self._print_slab_info(slab)
        self._tools.dump_stack(frames)
        self._tools.dump_stack.taint.add(TAINT_BAD_PAGE)

    # -- parts of a report -------------------------------------------------------------------------------

    def _bug(self, cache: KmemCache, text: str) -> None:
        self.say(_RULE)
        self.say(f"BUG {cache.name} ({self._tools.dump_stack.taint.text}): {text}")
        self.say(_LINE)
        self.say("")

    def fix(self, cache: KmemCache, text: str) -> None:
        """What was done about it."""
        self.say(f"FIX {cache.name}: {text}")

    def pointer(self, address: int) -> str:
        """A pointer as it is."""
        return f"0x{address:0{self._word * 2}x}"

    def _caller(self) -> str:
        frames = self._depot.frames(self._context.site)
        return self._tools.symbolize(frames[0]) if frames else "0x0"

    def _print_slab_info(self, slab: int) -> None:
        lists = self._lists
        pfn = lists.pfn(slab)
        taking = int(slab == self.taking)
        chain = lists.freelist(slab)[taking:]
        first = lists.address(slab, chain[0]) if chain else 0
        self.say(
            f"Slab {self.pointer(self._tools.page_struct(pfn))} objects={lists.objects(slab)} "
            f"used={lists.inuse(slab) + taking} fp={self.pointer(first)} flags={self._tools.page_flags(pfn)}"
        )

    def _print_tracking(self, cache: KmemCache, address: int) -> None:
        if not cache.flags & sf.SLAB_STORE_USER:
            return
        for word, track in (("Allocated", self.allocated.get(address)), ("Freed", self.freed.get(address))):
            if track is not None:
                self._print_track(word, track)

    def _print_track(self, word: str, track: Track) -> None:
        now = self._context.now * HZ // NSEC_PER_SEC
        age = now - track.when_ns * HZ // NSEC_PER_SEC
        frames = self._depot.frames(track.handle)
        self.say(f"{word} in {self._tools.symbolize(caller_of(frames))} age={age} cpu={track.cpu} pid={track.pid}")
        for frame in frames:
            self.say(f" {self._tools.symbolize(frame)}")

    def _print_trailer(self, cache: KmemCache, slab: int, address: int) -> None:
        """The object, what is around it and who used it (``print_trailer`` without the stack)."""
        self._print_tracking(cache, address)
        self._print_slab_info(slab)
        following = self._bytes.free_pointer(cache, slab, address)
        offset = address - self._lists.base(slab)
        self.say(f"Object {self.pointer(address)} @offset={offset} fp={self.pointer(following)}")
        self.say("")
        for label, start, size in self._sections(cache, slab, address):
            if size > 0:
                self.dump(label, start, self._bytes.read(slab, start, size))

    def dump(self, label: str, start: int, data: bytes, level: int = KERN_ERR) -> None:
        """Bytes (``print_section``)."""
        for line in hex_dump(label, start, data, self._word):
            self.say(line, level)

    def _sections(self, cache: KmemCache, slab: int, address: int) -> Iterable[tuple[str, int, int]]:
        """``(label, address, bytes)`` of what a report shows."""
        pad = cache.geometry.red_left_pad
        zoned = bool(cache.flags & sf.SLAB_RED_ZONE)
        if zoned:
            yield "Redzone  ", address - pad, pad
        elif address > self._lists.base(slab) + 16:
            yield "Bytes b4 ", address - 16, 16
        yield "Object   ", address, min(cache.object_size, PAGE_SIZE)
        if zoned:
            yield "Redzone  ", address + cache.object_size, cache.inuse - cache.object_size
        end = metadata_end(cache, self._word)
        yield "Padding  ", address + end, cache.size - pad - end


_ENTRY = frozenset(
    ("__kmalloc", "kmalloc_trace", "kmem_cache_alloc", "__kmem_cache_free", "kfree", "kmem_cache_free", "krealloc")
)


def caller_of(frames: tuple[str, ...]) -> str:
    """The frame that called the allocator; ``frames`` must not be empty."""
    return next((frame for frame in frames if frame not in _ENTRY), frames[-1])


def hex_dump(label: str, address: int, data: bytes, word: int) -> Iterable[str]:
    """Lines of sixteen bytes in hexadecimal and as text (``print_hex_dump`` with DUMP_PREFIX_ADDRESS)."""
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        hexadecimal = " ".join(f"{byte:02x}" for byte in row)
        yield f"{label}{address + start:0{word * 2}x}: {hexadecimal:<49}{text}"
