"""Scenarios of private anonymous memory: touching, fork, pagemap, protection, locking, lazy freeing, mremap."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kmemd.conformance.case import Case
from kmemd.conformance.uo import Capture, Slack, Uo, compare, number
from kmemd.mm.units import KIB, KIB_PER_PAGE, MIB, PAGE_SIZE


def anon(capture: Capture) -> Iterator[Case]:
    """Half of a mapping is read, a quarter written, an eighth dropped."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.small(size)
    for title, verb, part, op in (
        ("mapped", "", 0, ""),
        ("read half", "access", size // 2, "r"),
        ("wrote quarter", "access", size // 4, "w"),
        ("dontneed eighth", "madvise", size // 8, "MADV_DONTNEED"),
    ):
        if verb:
            uo.do(verb, p, part, op)
        uo.say(f"-- {title}")
        uo.entry(p)
    yield from compare(capture.name, capture.text, uo.lines)


def fork(capture: Capture) -> Iterator[Case]:
    """All is written, a child writes half of it and ends."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.small(size)
    uo.do("access", p, size, "w")
    child = number(uo.do("fork"), "pid")
    uo.say("-- child")
    uo.entry(p, child)
    uo.do("access", p, size // 2, "w", pid=child)
    uo.say("-- child wrote half")
    uo.entry(p, child)
    uo.do("exit", pid=child)
    uo.say("-- parent after")
    uo.entry(p)
    yield from compare(capture.name, capture.text, uo.lines)


PM_PFN = (1 << 55) - 1
PAGEMAP_PAGES, PAGEMAP_WRITTEN, PAGEMAP_READ = 16, 4, 4


def pagemap(capture: Capture) -> Iterator[Case]:
    """64 KiB, of which four pages are written and four read: pagemap without PFNs, and flags and count of each page."""
    uo = Uo(capture.boot(), capture)
    p = uo.mmap(PAGEMAP_PAGES * PAGE_SIZE)
    uo.do("access", p, PAGEMAP_WRITTEN * PAGE_SIZE, "w")
    uo.do("access", p + PAGEMAP_WRITTEN * PAGE_SIZE, PAGEMAP_READ * PAGE_SIZE, "r")
    for page in range(PAGEMAP_PAGES):
        entry = word(uo, "/proc/self/pagemap", (p >> 12) + page)
        pfn = entry & PM_PFN if entry >> 63 else 0
        flags, count = (word(uo, f"/proc/kpage{name}", pfn) if pfn else 0 for name in ("flags", "count"))
        uo.say(f"page {page} pagemap {entry & ~PM_PFN:016x} flags {flags:016x} count {count}")
    yield from compare(capture.name, capture.text, uo.lines)


def word(uo: Uo, path: str, place: int) -> int:
    """One of the 64-bit words of a binary file."""
    return int(struct.unpack("<Q", uo.piece(path, 8 * place, 8))[0])


def prot(capture: Capture) -> Iterator[Case]:
    """1 MiB, in which page 1 is made read-only and pages 4 and 5 r-x, and from which page 16 goes: the maps file."""
    uo = Uo(capture.boot(), capture)
    p = uo.mmap(MIB)
    uo.do("mprotect", p + PAGE_SIZE, PAGE_SIZE, "r")
    uo.do("mprotect", p + 4 * PAGE_SIZE, 2 * PAGE_SIZE, "r-x")
    uo.do("munmap", p + 16 * PAGE_SIZE, PAGE_SIZE)
    uo.show("/proc/self/maps")
    yield from compare(capture.name, capture.text, uo.lines)


def mlock(capture: Capture) -> Iterator[Case]:
    """Memory is locked. meminfo lags: a CPU hands its counts over when there are more than its threshold.

    The counts begin at nothing, and each page counts one: what meminfo shows is a multiple of the threshold plus one.
    """
    uo = Uo(capture.boot(), capture)
    p = uo.small(capture.size)
    uo.say(f"mlock {-uo.attempt('mlock', p, capture.size)}")
    uo.entry(p)
    uo.show("/proc/meminfo")
    uo.show("/proc/meminfo")
    yield from compare(capture.name, capture.text, [lagged(uo, line, p) for line in uo.lines])


def lagged(uo: Uo, line: str, address: int) -> str:
    """A line of meminfo as the counters of one CPU leave it."""
    name, colon, figure = line.partition(":")
    if name not in ("Mlocked", "Unevictable") or not colon:
        return line
    pages = int(figure.split()[0]) // (PAGE_SIZE // KIB)
    step = uo.threshold(address, node=name == "Unevictable") + 1
    return f"{name + ':':<16}{pages // step * step * (PAGE_SIZE // KIB):8d} kB"


def lazyfree(capture: Capture) -> Iterator[Case]:
    """Half is freed lazily, half of that is written again; then all is cold."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.small(size)
    uo.do("access", p, size, "w")
    uo.say(f"madvise FREE {-uo.attempt('madvise', p, size // 2, 'MADV_FREE')}")
    uo.entry(p)
    uo.do("access", p, size // 4, "w")
    uo.say("-- wrote a quarter again")
    uo.entry(p)
    uo.say(f"madvise COLD {-uo.attempt('madvise', p, size, 'MADV_COLD')}")
    uo.entry(p)
    yield from compare(capture.name, capture.text, uo.lines)


def mremap(capture: Capture) -> Iterator[Case]:
    """A written mapping grows to double its size and shrinks to half of it."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.small(size)
    uo.do("access", p, size, "w")
    p = number(uo.do("mremap", p, size, 2 * size, "flags=MREMAP_MAYMOVE"), "addr")
    uo.say("grown: ok")
    uo.entry(p)
    p = number(uo.do("mremap", p, 2 * size, size // 2), "addr")
    uo.say("-- shrunk")
    uo.entry(p)
    yield from compare(capture.name, capture.text, uo.lines)


def thp(capture: Capture) -> Iterator[Case]:
    """Memory of huge pages is written; then one small page of it is unmapped."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.place(size)
    uo.do("madvise", p, size, "MADV_HUGEPAGE")
    uo.do("access", p, size, "w")
    uo.say("-- thp")
    uo.entry(p)
    uo.show("/proc/vmstat")
    uo.do("munmap", p + PAGE_SIZE, PAGE_SIZE)
    uo.say("-- after unmapping one small page")
    uo.show("/proc/self/smaps_rollup")
    uo.show("/proc/vmstat")
    yield from compare(capture.name, capture.text, uo.lines)


SCAN_S = 100
SCAN_PAGES = 1 << 20


def khuge(capture: Capture) -> Iterator[Case]:
    """Small pages that khugepaged makes huge, and one of which is protected otherwise then."""
    system = capture.boot()
    uo = Uo(system, capture)
    size = capture.size
    p = uo.place(size)
    uo.do("madvise", p, size, "MADV_NOHUGEPAGE")
    uo.do("access", p, size, "w")
    uo.say("-- small pages")
    uo.entry(p)
    system.write("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", f"{SCAN_PAGES}")
    system.write("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "100")
    uo.do("madvise", p, size, "MADV_HUGEPAGE")
    system.advance(SCAN_S)
    uo.say("-- after khugepaged")
    uo.entry(p)
    uo.show("/proc/vmstat")
    uo.do("mprotect", p + PAGE_SIZE, PAGE_SIZE, "r")
    uo.say("-- mprotect of one small page")
    uo.show("/proc/self/smaps_rollup")
    uo.show("/proc/vmstat")
    yield from compare(capture.name, capture.text, uo.lines)


def shared(capture: Capture) -> Iterator[Case]:
    """Shared memory of parent and child, of which the child reads half."""
    uo = Uo(capture.boot(), capture)
    size = capture.size
    p = uo.place(size, "MAP_SHARED|MAP_ANONYMOUS")
    uo.do("access", p, size, "w")
    uo.say("-- parent")
    uo.entry(p)
    child = number(uo.do("fork"), "pid")
    uo.do("access", p, size // 2, "r", pid=child)
    uo.say("-- child read half")
    uo.entry(p, child)
    uo.show("/proc/meminfo")
    uo.show("/proc/self/status")
    uo.do("exit", pid=child)
    lag = max(zone.stat_threshold for zone in uo.system.kernel.zones) * KIB_PER_PAGE
    yield from compare(capture.name, capture.text, [unpacked(uo, line) for line in uo.lines], Slack({"Shmem": lag}))


def unpacked(uo: Uo, line: str) -> str:
    """A line of meminfo as if the program were one of the files that the model's initramfs has in any case."""
    name, colon, figure = line.partition(":")
    if name != "Shmem" or not colon:
        return line
    return f"{name + ':':<16}{int(figure.split()[0]) - uo.file_pages * KIB_PER_PAGE:8d} kB"
