"""Verbs of user memory: ``access``, ``read``, ``write``: what a program does with its mappings.

A bad access is a signal: the process catches it (``sigaction``) and the reply says which it was, or it dies of it, with
the kernel's line in the log, and the command fails.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from kmemd.control.language import Reply, Slices, WordType, invalid, quoted, verb
from kmemd.control.verbs_mm import run_as
from kmemd.control.words import Address, Count, Pid, Size, Text
from kmemd.core import access_stats
from kmemd.core import mmu as core
from kmemd.core.pte import PRESENT
from kmemd.errors import KernelError
from kmemd.mm.contents import FILLS
from kmemd.mm.sched import Task
from kmemd.mm.signals import SI_KERNEL, Signal
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

Vpns = npt.NDArray[np.int64]
OPS = {"r": core.READ, "w": core.WRITE, "x": core.EXEC}
PIECE = 1 << 13
"""Accesses before others may get in."""
SLOW_PIECE = 32
"""As many while they are faults on files, swapped or huge pages."""
SWAP_SHARE = 16
"""So many faults on pages of the swap cache take as long as one of these."""
FILL_PIECE = 64
"""Pages that are filled at once, before reclaim may take them."""
ZIPF_PAGES = 1 << 24
READ_MAX = 1024


def _op(text: str, kernel: Any) -> int:
    if text not in OPS:
        invalid(f"{quoted(text)} is not an access; write r, w or x")
    return OPS[text]


def _pattern(text: str, kernel: Any) -> tuple[str, float]:
    name, _, skew = text.partition(":")
    if name in ("seq", "random") and not skew:
        return name, 0.0
    try:
        value = float(skew) if name == "zipf" else -1.0
    except ValueError:
        value = -1.0
    if not 0 < value <= 10:
        invalid(f"{quoted(text)} is not a pattern; write seq, random or zipf:S with S above 0, at most 10")
    return name, value


def _show_pattern(value: tuple[str, float]) -> str:
    return value[0] if value[0] != "zipf" else f"zipf:{value[1]:g}"


Op = Annotated[int, WordType("r|w|x", "r, w or x", _op, lambda value: "rwx"[value])]
Pattern = Annotated[tuple[str, float], WordType("PATTERN", "seq, random or zipf:S", _pattern, _show_pattern)]


def pages(pattern: tuple[str, float], first: int, count: int, n: int, rng: np.random.Generator) -> Iterator[Vpns]:
    """The page numbers of ``n`` accesses to ``count`` pages from ``first`` on, a piece at a time."""
    kind, skew = pattern
    weights = None
    if kind == "zipf":
        if count > ZIPF_PAGES:
            raise KernelError(errno.EINVAL, f"zipf: at most {ZIPF_PAGES} pages")
        weights = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -skew)
        order = rng.permutation(count)
    for start in range(0, n, PIECE):
        size = min(PIECE, n - start)
        if weights is not None:
            ranks = np.searchsorted(weights, rng.random(size) * weights[-1])
            yield first + order[ranks].astype(np.int64)
        elif kind == "random":
            yield first + rng.integers(0, count, size, dtype=np.int64)
        else:
            yield first + np.arange(start, start + size, dtype=np.int64) % count


def _fill(text: str, kernel: Any) -> str:
    if text not in FILLS:
        invalid(f"{quoted(text)} is nothing to fill pages with; write {', '.join(FILLS)}")
    return text


Fill = Annotated[str, WordType("FILL", "zero, text or random: what is written", _fill, str)]


@verb
def access(
    kernel: Kernel,
    pid: Pid,
    addr: Address,
    length: Size,
    op: Op,
    *,
    pattern: Pattern = ("seq", 0.0),
    n: Count | None = None,
    fill: Fill = "",
) -> Slices:
    """Read, write or execute pages of a process: each page of the range in order, or n accesses by a pattern.

    fill= says what a write leaves in its pages, which is how well zswap and zram compress them. The reply tells how
    many accesses were page faults, how many of these were major ones, and how many were answered by the TLB. A bad
    access is a signal: see sigaction.
    """
    task = run_as(kernel, pid)
    first = addr.address >> PAGE_SHIFT
    count = ((addr.address + length - 1) >> PAGE_SHIFT) - first + 1 if length else 0
    if count <= 0:
        invalid("length: at least one byte")
    rng = np.random.default_rng(kernel.rng.getrandbits(64))
    before = _Tally.of(kernel, task)
    done, n = 0, n or count
    for vpns in _paced(kernel, pages(pattern, first, count, n, rng)):
        at = 0
        while at < len(vpns):
            part = vpns[at : at + FILL_PIECE] if fill else vpns[at:]
            try:
                moved = kernel.memory.access(task, part, op, kernel.user.spaces, (addr.address, length), patient=False)
            except Signal as signal:
                return (yield from _signalled(kernel, task, signal, addr.address))
            if fill and op == core.WRITE:
                kernel.contents.fill(_present(kernel, task, part[:moved]), fill)
            at += moved
            if task.killed:
                yield from _die(kernel, task, "killed")
            yield
            if task.mm is None:
                raise KernelError(errno.EFAULT, f"{task.comm} (pid {task.pid}) was killed meanwhile")
        done += len(vpns)
    return Reply({"pid": pid, "n": done, **before.since(kernel, task)})


def _present(kernel: Kernel, task: Task, vpns: Vpns) -> Iterator[int]:
    """The pages at some addresses, as far as they are still there."""
    assert task.mm is not None
    for vpn in dict.fromkeys(vpns.tolist()):
        slot, _ = kernel.mmu.leaf(task.mm.id, vpn)
        if slot >= 0 and int(kernel.mmu.words[slot]) & PRESENT:
            yield kernel.memory.page_at(task, vpn << PAGE_SHIFT)


def _paced(kernel: Kernel, accesses: Iterator[Vpns]) -> Iterator[Vpns]:
    """Accesses in parts: small ones while most of them are faults that take long."""
    size = SLOW_PIECE
    for vpns in accesses:
        done = 0
        while done < len(vpns):
            before = _slow_faults(kernel)
            yield vpns[done : done + size]
            done += size
            slow = _slow_faults(kernel) - before
            size = max(size // 4, SLOW_PIECE) if slow > SLOW_PIECE // 4 else min(2 * size, PIECE)


def _slow_faults(kernel: Kernel) -> int:
    """Faults that the core left to Python so far, and allocations that went into the slow path."""
    stats = kernel.mmu.stats
    slow = int(
        stats[access_stats.HUGE_FAULTS : access_stats.SWAP_FAULTS].sum()
        + stats[access_stats.SWAP_READS : access_stats.HINT_FAULTS + 1].sum()
    )
    slow += int(stats[access_stats.SWAP_FAULTS]) // SWAP_SHARE
    return slow + SLOW_PIECE * kernel.page_alloc.slow_paths


@verb
def read(kernel: Kernel, pid: Pid, addr: Address, size: Size = 16) -> Slices:
    """Read bytes of a process' memory, as the process itself: the reply has them as text, others than ASCII escaped."""
    task = run_as(kernel, pid)
    if not 0 < size <= READ_MAX:
        invalid(f"size: 1 to {READ_MAX} bytes")
    try:
        data = b"".join(
            kernel.contents.read(pfn, offset, length)
            for pfn, offset, length in places(kernel, task, addr.address, size, core.READ)
        )
    except Signal as signal:
        return (yield from _signalled(kernel, task, signal, addr.address))
    text = data.rstrip(b"\0").decode("latin-1").encode("unicode_escape").decode().replace(" ", "\\x20")
    return Reply({"pid": pid, "size": size, "data": text})


@verb
def write(kernel: Kernel, pid: Pid, addr: Address, text: Text) -> Slices:
    """Write the bytes of a word to a process' memory, as the process itself; escapes like \\x20 are understood."""
    task = run_as(kernel, pid)
    try:
        data = text.encode().decode("unicode_escape").encode("latin-1")
    except (UnicodeDecodeError, UnicodeEncodeError):
        invalid(f"{quoted(text)} has an escape that is none, or a letter that is no byte")
    try:
        parts = list(places(kernel, task, addr.address, len(data), core.WRITE))
    except Signal as signal:
        return (yield from _signalled(kernel, task, signal, addr.address))
    done = 0
    for pfn, offset, length in parts:
        kernel.contents.write(pfn, offset, data[done : done + length])
        done += length
    return Reply({"pid": pid, "n": done})


def places(kernel: Kernel, task: Task, address: int, size: int, op: int) -> Iterator[tuple[int, int, int]]:
    """Page, offset and length of the parts of a range, each accessed once. ``Signal``."""
    while size > 0:
        offset = address & (PAGE_SIZE - 1)
        length = min(size, PAGE_SIZE - offset)
        kernel.memory.access(task, np.array([address >> PAGE_SHIFT], dtype=np.int64), op, kernel.user.spaces)
        yield kernel.memory.page_at(task, address), offset, length
        address += length
        size -= length


class _Tally:
    """Counters that an access moves."""

    def __init__(self, faults: int, major: int, hits: int) -> None:
        self._figures = faults, major, hits

    @classmethod
    def of(cls, kernel: Kernel, task: Task) -> _Tally:
        """The counters now."""
        assert task.mm is not None
        stats = kernel.mmu.stats
        hits = int(stats[access_stats.L1_HITS] + stats[access_stats.L2_HITS])
        return cls(int(kernel.mmu.faults_of[task.mm.id]), task.maj_flt, hits)

    def since(self, kernel: Kernel, task: Task) -> dict[str, int | str]:
        """What came since."""
        now = _Tally.of(kernel, task)._figures
        names = ("faults", "major", "tlb_hits")
        return {name: after - before for name, after, before in zip(names, now, self._figures, strict=True)}


def _signalled(kernel: Kernel, task: Task, signal: Signal, start: int) -> Slices:
    """A handler took the signal: say which it was. Without one the process is gone: EFAULT.

    Faults tell pages apart; in the first one the byte is where the access began.
    """
    if signal.code != SI_KERNEL and signal.address >> PAGE_SHIFT == start >> PAGE_SHIFT:
        signal.address = start
    if kernel.bad_area.deliver(task, signal):
        return Reply({"pid": task.pid, "signal": signal.number, "code": signal.code, "addr": f"{signal.address:#x}"})
    yield from _die(kernel, task, str(signal))
    raise AssertionError("a task that dies raises")


def _die(kernel: Kernel, task: Task, reason: str) -> Steps[None]:
    """End the task that executes. EFAULT."""
    yield from kernel.do_exit.steps(task)
    raise KernelError(errno.EFAULT, f"{task.comm} (pid {task.pid}) died: {reason}")
