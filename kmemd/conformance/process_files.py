"""Scenarios of huge page pools, files, swap and NUMA placement."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmemd.conformance.case import Case
from kmemd.conformance.uo import Capture, Slack, Uo, compare
from kmemd.mm.units import KIB_PER_PAGE, MIB
from kmemd.system import System

HUGE = 2 * MIB


def hugetlb(capture: Capture) -> Iterator[Case]:
    """``N_of_K[_surplusS]``: N huge pages are mapped, K in the pool and S that may be overcommitted; half are used."""
    system = capture.boot()
    wanted, pool = capture.number(0), capture.number(2)
    surplus = next((word.removeprefix("surplus") for word in capture.words if word.startswith("surplus")), "0")
    system.write("/proc/sys/vm/nr_hugepages", str(pool))
    system.write("/proc/sys/vm/nr_overcommit_hugepages", surplus)
    uo = Uo(system, capture)
    uo.show("/proc/meminfo")
    size = uo.system.kernel.hugetlb.default.size
    reply = uo.attempt("mmap", wanted * size, "flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB")
    uo.say(f"-- mmap {wanted} huge pages: {'FAIL' if reply else 'ok'} errno {reply}")
    if not reply:
        _use_huge(uo, wanted, size)
    yield from compare(capture.name, capture.text, uo.lines)


def _use_huge(uo: Uo, wanted: int, size: int) -> None:
    line = next(line for line in uo.read("/proc/self/maps").splitlines() if "anon_hugepage" in line)
    p = int(line.partition("-")[0], 16)
    uo.show("/proc/meminfo")
    if wanted // 2:
        uo.do("access", p, wanted // 2 * size, "w")
    uo.say("-- touched half")
    uo.show("/proc/meminfo")
    uo.entry(p)
    uo.numa_entry(p)
    uo.show("/proc/self/status")
    uo.do("munmap", p, wanted * size)
    uo.say("-- unmapped")
    uo.show("/proc/meminfo")


def hugetlb_sys(capture: Capture) -> Iterator[Case]:
    """The pool's files, with as many pages and as many that may be overcommitted as they say themselves."""
    system = capture.boot()
    wanted = dict(line.split(None, 1) for line in capture.text.splitlines())
    for path, text in wanted.items():
        if path.startswith("/sys/kernel/") and path.endswith(("/nr_hugepages", "/nr_overcommit_hugepages")):
            system.write(path, text)
    for path, text in wanted.items():
        have = system.read(path).decode().strip()
        yield Case(f"{capture.name} {path}", have == text, f"captured {text!r}, model {have!r}")


def mapfile(capture: Capture) -> Iterator[Case]:
    """A file of a disk, just written: mapped shared and read, written by half; mapped private, a quarter written."""
    uo = Uo(capture.boot(), capture)
    first = re.search(r"^Size: +(\d+) kB", capture.text, re.MULTILINE)
    size = int(first[1]) * 1024 if first else HUGE
    path = re.search(r"(/\S+)$", capture.text.partition("\n")[0])
    name = path[1] if path else "/mnt/f"
    uo.system.command(f"create {name} 0")
    uo.system.command(f"write_file {name} n={size}")
    p = uo.place(size, "MAP_SHARED", f"file={name}")
    uo.do("access", p, size, "r")
    uo.entry(p)
    uo.do("access", p, size // 2, "w")
    uo.say("-- shared wrote half")
    uo.entry(p)
    p = uo.place(size, "MAP_PRIVATE", f"file={name}")
    uo.do("access", p, size // 4, "w")
    uo.say("-- private wrote quarter")
    uo.entry(p)
    yield from compare(capture.name, capture.text, uo.lines)


SWAP_SIZE = 64


def swaptouch(capture: Capture) -> Iterator[Case]:
    """64 MiB are written, paged out, and half read back.

    SwapCached lags by what the counters of a CPU hold; slots that the CPUs keep in reserve count as used. Where chance
    placed heap, mapping and stack decides whether they share a page table or two.
    """
    system = capture.boot()
    swap = system.kernel.machine.swap[0]
    system.command(f"swapon {swap.path}")
    yield from _swaps(capture, "swaps", system, 0)
    uo = Uo(system, capture)
    size = capture.number(0, SWAP_SIZE) * MIB
    p = uo.mmap(size)
    uo.do("madvise", p, size, "MADV_NOHUGEPAGE")
    uo.do("access", p, size, "w")
    _show_memory(uo, "touched")
    uo.do("madvise", p, size, "MADV_PAGEOUT")
    _show_memory(uo, "paged out")
    uo.show("/proc/swaps")
    uo.do("access", p, size // 2, "r")
    _show_memory(uo, "half read back")
    uo.show("/proc/vmstat")
    uo.show("/proc/meminfo")
    kernel = system.kernel
    lag = max(zone.stat_threshold for zone in kernel.zones) * KIB_PER_PAGE * kernel.machine.cpus
    slots = SLOTS_CACHE * KIB_PER_PAGE * kernel.machine.cpus
    slack = Slack({"SwapCached": lag, "SwapFree": slots, swap.path: slots, "VmPTE": 2 * KIB_PER_PAGE})
    yield from compare(capture.name, capture.text, uo.lines, slack)
    uo.do("exit")
    yield from _swaps(capture, "swaps2", system, slots)


SLOTS_CACHE = 64


def _show_memory(uo: Uo, title: str) -> None:
    uo.say(f"-- {title}")
    for name in ("smaps_rollup", "statm", "status", "status"):
        uo.show(f"/proc/self/{name}")


def _swaps(capture: Capture, name: str, system: System, slots: int) -> Iterator[Case]:
    """/proc/swaps: the same areas, with as much used but for the slots that CPUs keep."""
    if name not in capture.others:
        return
    pairs = zip(capture.others[name].splitlines(), system.read("/proc/swaps").decode().splitlines(), strict=True)
    for want, have in pairs:
        wanted, found = want.split(), have.split()
        near = wanted[:3] + wanted[4:] == found[:3] + found[4:]
        if near and wanted[3] != found[3]:
            near = abs(int(wanted[3]) - int(found[3])) <= slots
        yield Case(f"{name}: {wanted[0]}", near, f"captured {want!r}, model {have!r}")


# -- NUMA --------------------------------------------------------------------------------------------------


def numa(capture: Capture) -> Iterator[Case]:
    """``SIZE_MODE_MASK``: mbind with a mode and a set of nodes, then all is written."""
    uo = Uo(capture.boot(), capture)
    size, mode, mask = capture.size, capture.number(1), capture.number(2)
    p = uo.small(size)
    found = uo.attempt("mbind", p, size, mode, f"{mask:#x}")
    uo.say(f"mbind mode {mode} mask {mask} = {-1 if found else 0} errno {found}")
    uo.do("access", p, size, "w")
    uo.numa_entry(p)
    yield from compare(capture.name, capture.text, uo.lines)
