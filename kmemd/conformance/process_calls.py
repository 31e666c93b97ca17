"""Scenarios about what calls answer: errno, signals of bad accesses, overcommit, max_map_count, oom_score_adj."""

from __future__ import annotations

import ast
import dataclasses
import errno
import operator
import re
from collections.abc import Callable, Iterator

from kmemd.conformance.case import Case
from kmemd.conformance.uo import Capture, Uo, compare, number
from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.exec import IMAGES
from kmemd.mm.mmap_region import Request
from kmemd.mm.units import GIB, KIB, MIB, PAGE_SIZE
from kmemd.system import System

WORDS = {**mman.MAP_NAMES, **mman.MADV_NAMES, **mman.MS_NAMES, **mman.MREMAP_NAMES, **mman.PROT_NAMES}
_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.LShift: operator.lshift, ast.BitOr: operator.or_},
}
_CALL = re.compile(r"(\w+)\((.*)\) = (-1|ok) errno \d+")
_SUFFIX = re.compile(r"\b(0x[0-9a-f]+|\d+)[uUlL]+\b")
MASK = (1 << 64) - 1


def evaluate(text: str, p: int) -> int:
    """A C expression of numbers, constants and ``p``. ValueError."""
    tree = ast.parse(_SUFFIX.sub(r"\1", text.replace("(void *)", "")).strip(), mode="eval")

    def value(node: ast.AST) -> int:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int(found)):
                return found
            case ast.Name(id="p"):
                return p
            case ast.Name(id=name) if name in WORDS:
                return int(WORDS[name])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"{text!r} is not understood")

    return value(tree)


def errs(capture: Capture) -> Iterator[Case]:
    """Bad calls; ``p`` is a mapping of 64 KiB."""
    uo = Uo(capture.boot(), capture)
    p = uo.mmap(64 * KIB)
    for line in capture.text.splitlines():
        match = _CALL.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r} is no call")
        name, arguments = match[1], [evaluate(text, p) for text in match[2].split(",")]
        found = uo.attempt(name, *call_words(name, arguments))
        uo.say(f"{name}({match[2]}) = {'-1' if found else 'ok'} errno {found}")
    yield from compare(capture.name, capture.text, uo.lines)


def call_words(name: str, values: list[int]) -> list[object]:
    """A call's arguments as its command has them."""
    words = [f"{value & MASK:#x}" for value in values]
    if name == "mmap":
        hint = [f"addr={words[0]}"] if values[0] else []
        return [words[1], *hint, f"prot={words[2]}", f"flags={words[3]}"]
    if name == "mremap":
        return [*words[:3], f"flags={words[3]}"]
    if name in ("madvise", "mprotect"):
        return [*words[:2], values[2]]
    return list(words[:2]) if name == "mincore" else list(words)


# -- bad accesses ------------------------------------------------------------------------------------------

KERNEL_TEXT, DIRECT_MAP, NON_CANONICAL = 0xFFFFFFFF81000000, 0xFFFF888000000000, 0x8000_0000_0000_0000


def segv(capture: Capture) -> Iterator[Case]:
    """Signal and code of accesses, and mappings that Linux lets a program have."""
    uo = Uo(capture.boot(), capture)
    for signal in ("SEGV", "BUS"):
        uo.do("sigaction", signal, "catch")
    for line in capture.text.splitlines():
        what = line.partition(":")[0]
        uo.say(f"{what}: {_segv_line(uo, what)}")
    yield from compare(capture.name, capture.text, uo.lines)


def _segv_line(uo: Uo, what: str) -> str:
    """What came of one of the accesses. ValueError for one that is not known."""
    if what.startswith("mmap"):
        where = ["addr=0x0", "flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED"] if "fixed" in what else ["prot=rwx"]
        found = uo.attempt("mmap", PAGE_SIZE, *where)
        return f"{'FAIL' if found else 'ok'} errno {found}"
    reply = uo.do("access", f"{_target(uo, what):#x}", 1, {"r": "r", "w": "w", "e": "x"}[what[0]])
    return f"signal {number(reply, 'signal')} code {number(reply, 'code')}" if "signal=" in reply else "signal 0 code 0"


def _target(uo: Uo, what: str) -> int:
    """The address that an access goes to."""
    place = what.partition(" ")[2]
    fixed = {"null": 0, "kernel text": KERNEL_TEXT, "kernel direct map": DIRECT_MAP, "non-canonical": NON_CANONICAL}
    if place in fixed:
        return fixed[place]
    protections = {"PROT_NONE": "none", "PROT_READ": "r", "rw-": "rw"}
    if place in protections:
        return uo.mmap(PAGE_SIZE, f"prot={protections[place]}")
    if place == "unmapped":
        address = uo.mmap(PAGE_SIZE)
        uo.do("munmap", address, PAGE_SIZE)
        return address
    if place == "past the end of a file":
        uo.system.command(f"create /tmp/short {PAGE_SIZE}")
        return uo.mmap(2 * PAGE_SIZE, "prot=r", "flags=MAP_SHARED", "file=/tmp/short") + PAGE_SIZE
    raise ValueError(f"{what!r} is not known")


# -- oom_score_adj, mappings -------------------------------------------------------------------------------

_WRITE = re.compile(r"(\w+) <- '(.*)' = ")


def badadj(capture: Capture) -> Iterator[Case]:
    """Writes to a process' own oom_score_adj."""
    uo = Uo(capture.boot(), capture)
    for line in capture.text.splitlines():
        match = _WRITE.match(line)
        if match is None:
            raise ValueError(f"{line!r} is no write")
        try:
            taken, error = uo.system.write(f"/proc/{uo.pid}/{match[1]}", match[2]), 0
        except OSError as found:
            taken, error = -1, found.errno or 0
        uo.say(f"{match[0]}{taken} errno {error}")
    yield from compare(capture.name, capture.text, uo.lines)


def maxmap(capture: Capture) -> Iterator[Case]:
    """Mappings of a page that do not merge, until there are too many."""
    uo = Uo(capture.boot(), capture)
    kernel = uo.system.kernel
    task = kernel.tasks.find(uo.pid)
    found, count = 0, 0
    flags = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
    while not found:
        prot = mman.PROT_READ if count % 2 else mman.PROT_READ | mman.PROT_WRITE
        try:
            kernel.user.spaces.mmap(task, Request(PAGE_SIZE, prot, flags))
            count += 1
        except KernelError as error:
            found = error.errno
    uo.say(f"{count} mappings, errno {found}")
    yield from compare(capture.name, capture.text, uo.lines)


# -- overcommit --------------------------------------------------------------------------------------------

COMMITMENT = ("CommitLimit", "Committed_AS")
PIECE, MOST = 64 * MIB, 64 * GIB
_MODE = re.compile(r"mode (\d) ratio (\d+)")
_BIG = re.compile(r"bigmap (\d+) MiB")
_COMMITTED = re.compile(r"Committed_AS: +(\d+) kB")


def overcommit(capture: Capture) -> Iterator[Case]:
    """For each mode and ratio: as many mappings as there may be, then single ones.

    Committed_AS counts everything that runs: the first figure is the capture's, the others are compared by how far they
    are from it. The figures between are of a shell's grep, the others of the program.
    """
    system = capture.boot()
    Uo(system, capture).do("exit")  # the program's file is in memory as long as the machine runs
    lines: list[str] = []
    for line in capture.text.splitlines():
        if match := _MODE.fullmatch(line):
            system.write("/proc/sys/vm/overcommit_memory", match[1])
            system.write("/proc/sys/vm/overcommit_ratio", match[2])
            lines += [line, *_committed(system)]
        elif line.startswith("got "):
            lines += _reserve(system, capture)
        elif match := _BIG.match(line):
            uo = Uo(system, capture)
            found = uo.attempt("mmap", int(match[1]) * MIB)
            lines.append(f"{match[0]}: {'FAIL' if found else 'ok'} errno {found}")
            uo.do("exit")
    yield from compare(capture.name, capture.text, _from_first(capture.text, lines))


def _committed(system: System) -> list[str]:
    """The lines about commitment, while a grep reads them, which needs no buffer of its own."""
    image = dataclasses.replace(IMAGES[system.kernel.machine.arch]["busybox"], buffer=0)
    reader = system.kernel.fork.spawn("grep", image)
    text = system.read("/proc/meminfo").decode().splitlines()
    system.command(f"exit {reader.pid}")
    return [line for line in text if line.startswith(COMMITMENT)]


def _reserve(system: System, capture: Capture) -> list[str]:
    """Mappings of 64 MiB until one fails, or there are 64 GiB; errno is what was left of starting up then."""
    uo = Uo(system, capture)
    got = found = 0
    while got < MOST and not found:
        found = uo.attempt("mmap", PIECE)
        got += 0 if found else PIECE
    lines = [f"got {got // MIB} MiB errno {found or errno.EAGAIN}", "== /proc/meminfo"]
    lines += [line for line in uo.read("/proc/meminfo").splitlines() if line.startswith(COMMITMENT)]
    uo.do("exit")
    return lines


def _from_first(captured: str, lines: list[str]) -> list[str]:
    """The model's lines, with Committed_AS as far from the first captured figure as it is from its own first."""
    first = _COMMITTED.search(captured)
    own = _COMMITTED.search("\n".join(lines))
    if first is None or own is None:
        return lines
    shift = int(first[1]) - int(own[1])
    return [_COMMITTED.sub(lambda m: f"Committed_AS: {int(m[1]) + shift:10d} kB", line) for line in lines]
