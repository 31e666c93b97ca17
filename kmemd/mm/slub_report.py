"""SLUB's complaints, and who allocated what (mm/slub.c ``object_err``, ``slab_err``, ``set_track``).

A debugged kernel reports what it finds; another would corrupt its lists without a word. The model knows every
object, so it reports in either case, refuses, and goes on. Addresses are printed as they are, as with
no_hash_pointers, which ``slub_debug`` turns on. Bytes of objects are those that poisoning wrote: nothing in the
model writes into a slab object. Left out: red zone and poison checks, which could find nothing.
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
from kmemd.mm.printk import KERN_ERR, KERN_WARNING, Printk
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.stackdepot import StackDepot

POISON_FREE, POISON_END, POISON_INUSE = 0x6B, 0xA5, 0x5A
RED_INACTIVE = 0xBB
_RULE = "=" * 77
_LINE = "-" * 77


@dataclass(frozen=True)
class ReportTools:
    """What reports are made with.

    ``symbolize`` gives ``name+0x../0x..`` for a frame; ``page_flags`` the text of ``%pGp`` for a PFN;
    ``page_struct`` the address of a frame's struct page; ``valid`` whether an address is in the direct map.
    """

    dump_stack: DumpStack
    symbolize: Callable[[str], str]
    page_flags: Callable[[int], str]
    page_struct: Callable[[int], int]
    valid: Callable[[int], bool]


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
        self, lists: SlabLists, context: Context, depot: StackDepot, printk: Printk, tools: ReportTools, word: int
    ) -> None:
        self._lists = lists
        self._context = context
        self._depot = depot
        self._printk = printk
        self._tools = tools
        self._word = word
        self._warned: set[tuple[str, str]] = set()
        self._said_pointer = False
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

    def _say(self, text: str, level: int = KERN_ERR) -> None:
        self._printk.log(level, text)

    def warn(self, text: str) -> None:
        """A line and the stack."""
        self._say(text, KERN_WARNING)
        self._tools.dump_stack()

    def warn_once(self, frames: tuple[str, ...], text: str = "") -> None:
        """``WARN_ONCE`` in ``frames[0]``: said a single time."""
        if (frames[0], text) not in self._warned:
            self._warned.add((frames[0], text))
            self._tools.dump_stack.warn(frames, text)

    def duplicate_directory(self, directory: str) -> None:
        """sysfs has such a directory already (``sysfs_warn_dup``)."""
        self.warn(f"sysfs: cannot create duplicate filename '/kernel/slab/{directory}'")
        self._say(
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
            self._say(f"Object {self._pointer(address)} @offset={address - self._lists.base(slab)}")
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
            self.slab_err(owner, slab, f"Invalid object pointer {self._pointer(address)}", ("slab_err", *caller))
            self._fix(owner, f"Object at {self._pointer(address)} not freed")
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
        if not self._tools.valid(address):
            frames = ("kfree",) if cache is None else ("kmem_cache_free",)
            self._tools.dump_stack.oops(address, self._word, frames, write=False)
            return KernelError(errno.EFAULT, f"{address:#x} is no address of kernel memory")
        if cache is not None:
            text = "virt_to_cache: Object is not a Slab page!"
            self.warn_once(("kmem_cache_free",), text)
            return KernelError(errno.EINVAL, f"{address:#x} is in no slab")
        self.warn_once(("free_large_kmalloc", "kfree"))
        if not self._said_pointer:
            self._said_pointer = True
            self._say(f"object pointer: {self._pointer(address)}", KERN_WARNING)
        return KernelError(errno.EINVAL, f"{address:#x} was not allocated by kmalloc")

    def _already_free(self, cache: KmemCache, slab: int, address: int, caller: tuple[str, ...]) -> None:
        self._bug(cache, "Object already free")
        frames = ("print_trailer", "object_err", "free_to_partial_list", "__slab_free", *caller)
        self._print_trailer(cache, slab, address, RED_INACTIVE)
        self._tools.dump_stack(frames)
        self._tools.dump_stack.taint.add(TAINT_BAD_PAGE)
        self._fix(cache, f"Object at {self._pointer(address)} not freed")

    def slab_err(self, cache: KmemCache, slab: int, text: str, frames: tuple[str, ...]) -> None:
        """A report about a slab as a whole."""
        self._bug(cache, text)
        self._print_slab_info(slab)
        self._tools.dump_stack(frames)
        self._tools.dump_stack.taint.add(TAINT_BAD_PAGE)

    # -- parts of a report -------------------------------------------------------------------------------

    def _bug(self, cache: KmemCache, text: str) -> None:
        self._say(_RULE)
        self._say(f"BUG {cache.name} ({self._tools.dump_stack.taint.text}): {text}")
        self._say(_LINE)
        self._say("")

    def _fix(self, cache: KmemCache, text: str) -> None:
        self._say(f"FIX {cache.name}: {text}")

    def _pointer(self, address: int) -> str:
        return f"0x{address:0{self._word * 2}x}"

    def _caller(self) -> str:
        frames = self._depot.frames(self._context.site)
        return self._tools.symbolize(frames[0]) if frames else "0x0"

    def _print_slab_info(self, slab: int) -> None:
        lists = self._lists
        pfn = lists.pfn(slab)
        chain = lists.freelist(slab)
        first = lists.address(slab, chain[0]) if chain else 0
        self._say(
            f"Slab {self._pointer(self._tools.page_struct(pfn))} objects={lists.objects(slab)} "
            f"used={lists.inuse(slab)} fp={self._pointer(first)} flags={self._tools.page_flags(pfn)}"
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
        self._say(f"{word} in {self._tools.symbolize(caller_of(frames))} age={age} cpu={track.cpu} pid={track.pid}")
        for frame in frames:
            self._say(f" {self._tools.symbolize(frame)}")

    def _print_trailer(self, cache: KmemCache, slab: int, address: int, red: int) -> None:
        """The object, what is around it and who used it (``print_trailer`` without the stack)."""
        self._print_tracking(cache, address)
        self._print_slab_info(slab)
        chain = self._lists.freelist(slab)
        index = self._lists.index(slab, address)
        after = chain[chain.index(index) + 1 :] if index in chain else []
        following = self._lists.address(slab, after[0]) if after else 0
        offset = address - self._lists.base(slab)
        self._say(f"Object {self._pointer(address)} @offset={offset} fp={self._pointer(following)}")
        self._say("")
        for label, start, data in self._sections(cache, address, red):
            for line in hex_dump(label, start, data, self._word):
                self._say(line)

    def _sections(self, cache: KmemCache, address: int, red: int) -> Iterable[tuple[str, int, bytes]]:
        """``(label, address, bytes)`` of the parts that debugging wrote."""
        pad = cache.geometry.red_left_pad
        zoned = bool(cache.flags & sf.SLAB_RED_ZONE)
        if zoned:
            yield "Redzone  ", address - pad, bytes([red]) * pad
        if cache.flags & sf.OBJECT_POISON:
            body = bytes([POISON_FREE]) * (cache.object_size - 1) + bytes([POISON_END])
            yield "Object   ", address, body[:4096]
        if zoned:
            yield "Redzone  ", address + cache.object_size, bytes([red]) * (cache.inuse - cache.object_size)
        end = self._metadata_end(cache)
        rest = cache.size - pad - end
        if rest and cache.flags & sf.SLAB_POISON:
            yield "Padding  ", address + end, bytes([POISON_INUSE]) * rest

    def _metadata_end(self, cache: KmemCache) -> int:
        end = cache.info_end(self._word)
        if cache.flags & sf.SLAB_STORE_USER:
            end += 2 * (-(-(self._word + 12) // self._word) * self._word + self._word)
            if cache.flags & sf.SLAB_KMALLOC:
                end += 4
        return end


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
