"""The kernel's symbol table (kernel/kallsyms.c): names to addresses and back, and how a pointer is printed.

The names are real, the layout is made: functions follow one another from ``_text`` in the order of
``symbols.py``, each as long as ``symbol_size`` says; sections lie where a real 6.1 had them relative to
``_text``. A function that is not in the table gets the next free address when it is first used, one of a
module (``leaky_probe+0x2a[leaky_drv]``) a place in that module's text, which its first function makes.
Left out: data symbols other than the section marks, per-cpu symbols, compressed names.

A frame of a stack is ``symbol`` or ``symbol+0x2a`` or ``symbol+0x2a[module]``. Without an offset it means
the return address behind the call of the frame inside it, which ``return_offset`` places by a rule.
"""

from __future__ import annotations

import errno
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from kmemd.debug.symbols import TEXT
from kmemd.errors import KernelError
from kmemd.mm.errseq import MAX_ERRNO
from kmemd.mm.layout import Layout
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_MASK, PAGE_SIZE

MIN_SYMBOL_SIZE = 16
CALL_SIZE = 5
MODULE_TEXT_SIZE = 16 * PAGE_SIZE
PTR_HASHES = 1 << 16
"""Hashes of pointers that are kept: texts of traces show the same ones again and again."""

# where the sections of the captured x86_64 kernel lie, from _text
ETEXT = 0x6011C8
SECTIONS = (
    (0x800000, "D", "__start_rodata"),
    (0x9B2000, "D", "__end_rodata"),
    (0xA00000, "D", "_sdata"),
    (0xA0FA40, "D", "init_task"),
    (0xB22180, "D", "_edata"),
    (0xBF6000, "B", "__bss_start"),
    (0x101C000, "B", "_end"),
)

_FRAME = re.compile(r"^([A-Za-z_$][\w.$]*)(?:\+(0[xX][0-9a-fA-F]+|\d+))?(?:/0[xX][0-9a-fA-F]+)?(?: ?\[([\w-]+)\])?$")


@dataclass(frozen=True, slots=True)
class Symbol:
    """One function: its address, its length in bytes, ``T`` or ``t``, and its module ("" for the kernel)."""

    address: int
    size: int
    kind: str
    name: str
    module: str = ""

    def show(self, offset: int) -> str:
        """``%pS`` of an address in it."""
        where = f"{self.name}+{offset:#x}/{self.size:#x}"
        return f"{where} [{self.module}]" if self.module else where


def symbol_size(name: str) -> int:
    """A function's length in bytes, from its name alone: 16 to about 2 KiB, most of them short."""
    crc = crc32(name.encode())
    return MIN_SYMBOL_SIZE + (crc & 0x3F) * ((crc >> 6 & 0x1F) + 1) + (crc >> 11 & 0xF)


def return_offset(symbol: Symbol, callee: str) -> int:
    """Where in ``symbol`` the call of ``callee`` returns to, in bytes from its start."""
    crc = crc32(f"{symbol.name}>{callee}".encode())
    return CALL_SIZE + crc % (symbol.size - CALL_SIZE)


def split_frame(frame: str) -> tuple[str, int | None, str]:
    """Name, offset (None when not given) and module of a frame. EINVAL."""
    found = _FRAME.match(frame)
    if found is None:
        raise KernelError(errno.EINVAL, f"not a call site: {frame}; symbol, symbol+0x2a or symbol+0x2a[module]")
    name, offset, module = found.groups()
    return name, None if offset is None else int(offset, 0), module or ""


def show_values(syslog: bool, kptr_restrict: int, perf_event_paranoid: int) -> bool:
    """Whether /proc/kallsyms shows addresses to who has CAP_SYSLOG or not (``kallsyms_show_value``)."""
    if kptr_restrict == 0 and perf_event_paranoid <= 1:
        return True
    return kptr_restrict <= 1 and syslog


class Kallsyms:
    """The symbols of one booted kernel.

    ``no_hash_pointers`` is the command line's, which ``slub_debug`` also turns on; ``ptr_hash`` makes 32 bits of an
    address, None while there is no key for it.

    Invariants: addresses of the kernel's functions ascend without gaps; a symbol never moves.
    """

    def __init__(
        self,
        layout: Layout,
        depot: StackDepot,
        *,
        no_hash_pointers: bool = False,
        reserve: Callable[[int], int] | None = None,
        ptr_hash: Callable[[int], int] | None = None,
    ) -> None:
        """``reserve(size)`` gives room for code of a module that nobody loaded; without, it is behind the last."""
        self._layout = layout
        self._ptr_hash = lru_cache(PTR_HASHES)(ptr_hash) if ptr_hash is not None else None
        self._depot = depot
        self.no_hash_pointers = no_hash_pointers
        self._symbols: dict[tuple[str, str], Symbol] = {}
        self._order: list[Symbol] = []
        self._starts: list[int] = []
        self._modules: dict[str, tuple[int, int]] = {}
        self._last_unloaded = ""
        self._next = layout.text_base
        self._next_module = layout.modules_start
        self._reserve = reserve or self._behind
        self._texts: dict[int, tuple[str, ...]] = {}
        self._addresses: dict[int, tuple[int, ...]] = {}

    def load(self) -> None:
        """Lay the table out. Done when it is first needed, so that a boot need not wait for it."""
        if not self._order:
            for word in TEXT.split():
                self._append(word.lstrip("-"), "t" if word.startswith("-") else "T", 0)

    def _append(self, name: str, kind: str, room: int) -> Symbol:
        size = max(symbol_size(name), room)
        if self._next + size > self._layout.text_base + ETEXT:
            return self._append_to_module(name, "", room)
        symbol = Symbol(self._next, size, kind, name)
        self._next += size
        self._symbols[name, ""] = symbol
        self._order.append(symbol)
        self._starts.append(symbol.address)
        return symbol

    def _append_to_module(self, name: str, module: str, room: int) -> Symbol:
        """A place in the module's text, which grows by another chunk when it is full."""
        size = max(symbol_size(name), room)
        start, end = self._modules.get(module, (0, 0))
        if start + size > end:
            room = max(MODULE_TEXT_SIZE, size + PAGE_SIZE - 1 & PAGE_MASK)
            start = self._reserve(room)
            end = start + room
        symbol = Symbol(start, size, "t", name, module)
        self._modules[module] = (start + size, end)
        self._symbols[name, module] = symbol
        return symbol

    def _behind(self, size: int) -> int:
        start = self._next_module
        self._next_module += size
        return start

    def place_module(self, module: str, start: int, end: int) -> None:
        """Functions of a module that is loaded now go to ``[start, end)``. EEXIST when it has some."""
        if module in self._modules:
            raise KernelError(errno.EEXIST, f"module {module} is loaded")
        self._modules[module] = (start, end)

    def drop_module(self, module: str) -> None:
        """A module's functions are gone. Stacks that were shown keep their names."""
        self._modules.pop(module, None)
        self._last_unloaded = module
        for key in [key for key in self._symbols if key[1] == module]:
            del self._symbols[key]

    def symbol(self, name: str, module: str = "", offset: int = 0) -> Symbol:
        """The function ``name``, made when it is not known yet, at least ``offset`` bytes long."""
        self.load()
        found = self._symbols.get((name, module))
        if found is not None:
            return found
        room = offset + MIN_SYMBOL_SIZE & -MIN_SYMBOL_SIZE
        return self._append_to_module(name, module, room) if module else self._append(name, "T", room)

    def lookup(self, name: str, module: str = "") -> tuple[int, int]:
        """Address and size of a known symbol. ENOENT."""
        self.load()
        found = self._symbols.get((name, module))
        if found is None:
            raise KernelError(errno.ENOENT, f"no symbol {name}")
        return found.address, found.size

    def symbolize(self, address: int) -> str:
        """``%pS``: symbol+offset/size, or the bare address where there is no symbol."""
        self.load()
        beyond = address >= self._next
        for symbol in self._symbols.values() if beyond else self._near(address):
            if symbol.address <= address < symbol.address + symbol.size:
                return symbol.show(address - symbol.address)
        return f"0x{address:x}"

    def _near(self, address: int) -> tuple[Symbol, ...]:
        index = bisect_right(self._starts, address) - 1
        return (self._order[index],) if index >= 0 else ()

    def frame(self, frame: str, callee: str = "") -> tuple[int, str]:
        """Address and ``%pS`` text of one frame; ``callee`` is the frame inside it. EINVAL."""
        name, offset, module = split_frame(frame)
        symbol = self.symbol(name, module, offset or 0)
        if offset is None:
            offset = return_offset(symbol, split_frame(callee)[0] if callee else "")
        return symbol.address + offset, symbol.show(offset)

    def frame_text(self, frame: str, callee: str = "") -> str:
        """``%pS`` of one frame. EINVAL."""
        return self.frame(frame, callee)[1]

    def stack(self, handle: int) -> tuple[str, ...]:
        """The ``%pS`` texts of a stack, innermost first."""
        self._render(handle)
        return self._texts[handle]

    def addresses(self, handle: int) -> tuple[int, ...]:
        """The return addresses of a stack, innermost first."""
        self._render(handle)
        return self._addresses[handle]

    def _render(self, handle: int) -> None:
        if handle in self._texts:
            return
        frames = self._depot.frames(handle)
        pairs = [self.frame(frame, callee) for frame, callee in zip(frames, ("", *frames), strict=False)]
        self._texts[handle] = tuple(text for _, text in pairs)
        self._addresses[handle] = tuple(address for address, _ in pairs)

    def modules(self) -> list[str]:
        """The modules whose functions were used, in the order of loading."""
        return [module for module in self._modules if module]

    def linked_in(self) -> str:
        """How reports list the modules: the newest first, then who was unloaded last (``print_modules``)."""
        gone = f" [last unloaded: {self._last_unloaded}]" if self._last_unloaded else ""
        return "".join(["Modules linked in:", *(f" {name}" for name in reversed(self.modules())), gone])

    def sections(self) -> Iterator[Symbol]:
        """The marks between sections, ``_text`` to ``_end``."""
        base = self._layout.text_base
        yield Symbol(base, 0, "T", "_stext")
        yield Symbol(base, 0, "T", "_text")
        yield Symbol(base + ETEXT, 0, "T", "_etext")
        for offset, kind, name in SECTIONS:
            yield Symbol(base + offset, 0, kind, name)

    def symbols(self) -> Iterator[Symbol]:
        """Everything in /proc/kallsyms: the kernel by address, then the modules."""
        self.load()
        marks = list(self.sections())
        yield from marks[:2]
        yield from self._order
        yield from marks[2:]
        yield from (symbol for symbol in self._symbols.values() if symbol.address > marks[-1].address)

    def p(self, address: int) -> str:
        """``%p``: an address that is not given away, but its hash (``default_pointer``, ``ptr_to_id``).

        NULL and error numbers are no addresses. ``no_hash_pointers`` prints the address.
        """
        width = self._layout.pointer_size
        if self.no_hash_pointers or address == 0 or address >= (1 << 8 * width) - MAX_ERRNO:
            return self._layout.format_address(address)
        if self._ptr_hash is not None:
            return self._layout.format_address(self._ptr_hash(address))
        return "(____ptrval____)" if width == 8 else "(ptrval)"

    def pK(self, address: int, kptr_restrict: int, *, trusted: bool) -> str:
        """``%pK``: what the sysctl lets a reader see; ``trusted``: it has CAP_SYSLOG."""
        if kptr_restrict == 0:
            return self.p(address)
        return self._layout.format_address(address if kptr_restrict == 1 and trusted else 0)

    def check(self) -> None:
        """Symbols neither overlap nor leave the text."""
        self.load()
        for symbol, following in zip(self._order, self._order[1:], strict=False):
            assert symbol.address + symbol.size == following.address, symbol
        assert self._next <= self._layout.text_base + ETEXT
