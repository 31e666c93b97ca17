"""The kinds of words that verbs take: orders, GFP masks, sizes, nodes, addresses, handles, durations.

Each is an annotation (``Order``, ``Size``...) made of the Python type and a ``WordType`` that reads one word.
Numbers are decimal or ``0x`` hexadecimal and fit 64 bits, as with kstrtoull(..., 0) less its octal.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from kmemd.control import callsite
from kmemd.control.language import Parameter, WordType, invalid, quoted, suggestion, word_type
from kmemd.core.mmzone import MAX_ORDER
from kmemd.errors import KernelError
from kmemd.mm import gfp as gfp_names
from kmemd.mm import slab_flags
from kmemd.mm.handles import Handle, Kind

COUNT_MAX = 1 << 28
DURATION_MAX_S = 10 * 365 * 86400
TASK_COMM_LEN = 16
FLAGS_LISTED = 24
"""As many names a message lists."""

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32}", re.ASCII)
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32})([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(ns|us|ms|s|m|h)?", re.ASCII)
_POINTER = re.compile(
    r"(?:(?P<hex>(?:0[xX])?[0-9a-fA-F]{1,16})|(?P<name>[A-Za-z_][A-Za-z0-9_.]{0,127})(?:\[(?P<index>[0-9]{1,10})\])?)"
    r"(?:\+(?P<offset>0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}[KMGTkmgt]?))?",
    re.ASCII,
)
_CACHE_NAME = re.compile(r"[!-~]{1,127}")
_UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def number(text: str, maximum: int, what: str) -> int:
    """A number from 0 to ``maximum``. EINVAL."""
    if _NUMBER.fullmatch(text) is None:
        invalid(f"{quoted(text)} is not a number" if text else f"{what} is missing")
    value = int(text, 16 if text[:2].lower() == "0x" else 10)
    if value > maximum:
        invalid(f"{quoted(text)} is beyond {maximum}")
    return value


def _order(text: str, kernel: Any) -> int:
    return number(text, MAX_ORDER - 1, "an order")


def _count(text: str, kernel: Any) -> int:
    value = number(text, COUNT_MAX, "a count")
    if value == 0:
        invalid("a count is 1 or more")
    return value


def _number(text: str, kernel: Any) -> int:
    return number(text, (1 << 64) - 1, "a number")


def _size(text: str, kernel: Any) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        invalid(f"{quoted(text)} is not a size; write bytes, or a number with K, M, G or T")
    value = number(match[1], (1 << 63) - 1, "a size") << (10 * " KMGT".index(match[2].upper() or " "))
    if value >= 1 << 63:
        invalid(f"{quoted(text)} does not fit 63 bits")
    return value


def _duration(text: str, kernel: Any) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        invalid(f"{quoted(text)} is not a duration; write 5, 0.25, 10ms, 3us, 2m")
    unit = _UNITS_NS[match[3] or "s"]
    fraction = match[2] or ""
    value = int(match[1]) * unit + int(fraction.ljust(9, "0")) * unit // 10**9
    if value > DURATION_MAX_S * 10**9:
        invalid(f"{quoted(text)} is longer than ten years")
    return value


def _gfp(text: str, kernel: Any) -> int:
    return mask(text, gfp_names.ALIASES, gfp_names.ALL_FLAGS)


def _slab_flags(text: str, kernel: Any) -> int:
    return mask(text, slab_flags.FLAG_NAMES, (1 << 32) - 1)


def mask(text: str, names: Mapping[str, int], maximum: int = (1 << 32) - 1) -> int:
    """Flags by name or number, joined by ``|``. EINVAL with the column of the wrong one."""
    value, column = 0, 0
    for part in text.split("|"):
        if part[:1].isdigit():
            value |= number(part, maximum, "a mask")
        elif part in names:
            value |= names[part]
        else:
            invalid(_no_flag(part, names), column)
        column += len(part) + 1
    return value


def _no_flag(part: str, names: Mapping[str, int]) -> str:
    """What is wrong with a flag: the one that may be meant, else all there are when they are few."""
    if not part:
        return "a flag is missing"
    hint = suggestion(part, names)
    if not hint and len(names) <= FLAGS_LISTED:
        hint = f"; there are {', '.join(names)}"
    return f"no flag {quoted(part)}{hint}"


def _node(text: str, kernel: Any) -> int:
    nids = [node.nid for node in kernel.nodes]
    nid = number(text, 1023, "a node")
    if nid not in nids:
        invalid(f"no node {nid}; there is {', '.join(map(str, nids))}")
    return nid


def _cpu(text: str, kernel: Any) -> int:
    cpus = sorted(cpu for node in kernel.nodes for cpu in node.cpus)
    cpu = number(text, 8191, "a CPU")
    if cpu not in cpus:
        invalid(f"no CPU {cpu}; there are {len(cpus)}")
    return cpu


def _pid(text: str, kernel: Any) -> int:
    handle = kernel.handles.get(text)
    if handle is not None:
        if handle.kind is not Kind.TASK:
            invalid(f"{quoted(text)} is {handle.kind}, not a task")
        return int(handle.pid)
    if _NUMBER.fullmatch(text) is None:
        hint = suggestion(text, kernel.handles) or "; the name of a process goes when it ends"
        raise KernelError(errno.ENOENT, f"no handle {quoted(text)}{hint}")
    return number(text, (1 << 22) - 1, "a pid")


def _comm(text: str, kernel: Any) -> str:
    if not text or not text.isascii() or not text.isprintable():
        invalid("a task's name is printable ASCII")
    return text[: TASK_COMM_LEN - 1]


def _word(text: str, kernel: Any) -> str:
    return text


def _cache_name(text: str, kernel: Any) -> str:
    if _CACHE_NAME.fullmatch(text) is None or "/" in text:
        invalid(f"{quoted(text)} is not a cache name")
    return text


def _cache(text: str, kernel: Any) -> str:
    handle = kernel.handles.get(text)
    if handle is None:
        return _cache_name(text, kernel)
    if handle.kind is not Kind.CACHE:
        invalid(f"{quoted(text)} is {handle.kind}, not a cache")
    return str(handle.cache)


def _name(text: str, kernel: Any) -> str:
    if text not in kernel.handles:
        hint = suggestion(text, kernel.handles)
        raise KernelError(errno.ENOENT, f"no handle {quoted(text)}{hint}")
    return text


def _by(text: str, kernel: Any) -> tuple[str, ...]:
    return callsite.frames(text)


@dataclass(frozen=True)
class Reference:
    """What an address word stands for: a number, or items of a handle.

    ``index`` is the item of ``NAME[index]``; None with a handle means all its items. ``offset`` is what was
    added to the address of the item.
    """

    text: str
    address: int
    handle: Handle | None = None
    name: str = ""
    index: int | None = None
    offset: int = 0

    def positions(self, every: int = 1, n: int | None = None) -> range:
        """Which items of the handle are meant: each ``every``-th, at most ``n``."""
        assert self.handle is not None
        if self.index is not None:
            return range(self.index, self.index + 1)
        return range(0, len(self.handle), every)[:n]


def _reference(text: str, kernel: Any) -> Reference:
    match = _POINTER.fullmatch(text)
    if match is None:
        invalid(f"{quoted(text)} is not an address; write 0x..., NAME, NAME[3], NAME+16 or NAME+4K")
    offset = _size(match["offset"], kernel) if match["offset"] else 0
    base = text.split("+")[0]
    digits = match["hex"]
    if digits and base not in kernel.handles and (digits[:2].lower() == "0x" or len(digits) >= 8 or digits == "0"):
        return Reference(text, (int(digits, 16) + offset) & (1 << 64) - 1, offset=offset)
    name, _, index = base.rstrip("]").partition("[")
    handle = kernel.handles.get(name)
    if handle is None:
        raise KernelError(errno.ENOENT, f"no handle {quoted(name)}{suggestion(name, kernel.handles)}")
    return _item(text, name, handle, int(index) if index else None, offset, kernel)


def _item(text: str, name: str, handle: Handle, index: int | None, offset: int, kernel: Any) -> Reference:
    if handle.kind in (Kind.CACHE, Kind.TASK):
        invalid(f"{name} is {handle.kind} and has no address")
    if (index or 0) >= len(handle):
        raise KernelError(errno.ENOENT, f"{name} has {len(handle)} items, no [{index}]")
    if handle.kind is Kind.PAGES:
        base = kernel.layout.page_address(int(handle.pfns[index or 0]))
    else:
        base = int(handle.addresses[index or 0])
    return Reference(text, (base + offset) & (1 << 64) - 1, handle, name, index, offset)


Order = Annotated[int, WordType("ORDER", "0 to 10: a block of 2^order pages", _order)]
Gfp = Annotated[
    int, WordType("GFP", "GFP_KERNEL|__GFP_ZERO..., names or numbers joined by |", _gfp, gfp_names.format_gfp)
]
SlabFlags = Annotated[int, WordType("FLAGS", "SLAB_HWCACHE_ALIGN|... or a number", _slab_flags)]
Size = Annotated[int, WordType("SIZE", "bytes, or with K, M, G, T", _size)]
Node = Annotated[int, WordType("NODE", "a NUMA node; the nearest to the CPU when not given", _node)]
Cpu = Annotated[int, WordType("CPU", "a CPU", _cpu)]
Pid = Annotated[int, WordType("PID", "a process, or the name of a task handle", _pid)]
Count = Annotated[int, WordType("COUNT", "a number, 1 or more", _count)]
Number = Annotated[int, WordType("NUMBER", "a number, decimal or 0x hexadecimal", _number)]
Duration = Annotated[int, WordType("DURATION", "seconds, or with ns, us, ms, s, m, h", _duration)]
Address = Annotated[Reference, WordType("ADDRESS", "0x..., NAME, NAME[3], NAME+16, NAME+4K", _reference)]
Comm = Annotated[str, WordType("COMM", "a task's name, 15 characters are kept", _comm)]
Text = Annotated[str, WordType("TEXT", "any word", _word)]
CacheName = Annotated[str, WordType("NAME", "the name of a new slab cache", _cache_name)]
Cache = Annotated[str, WordType("CACHE", "a slab cache, by its name or its handle", _cache)]
Name = Annotated[str, WordType("NAME", "a handle", _name)]
CallSite = Annotated[tuple[str, ...], WordType("SITE", "symbol+0x2a[module], innermost first, joined by commas", _by)]


def _generic(name: str, annotation: Any) -> Parameter:
    return Parameter(name, word_type(annotation), required=False)


GENERIC = {
    "by": _generic("by", CallSite),
    "cpu": _generic("cpu", Cpu),
    "comm": _generic("comm", Comm),
    "pid": _generic("pid", Pid),
}
"""Keys that every verb takes: the call site, the CPU, the task's name, the task."""
