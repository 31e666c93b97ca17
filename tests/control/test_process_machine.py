"""Random processes: after each call page tables, reverse map, counts and statistics agree; at the end every page is
back.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmemd import System
from kmemd.core import stats
from kmemd.core.pages import PG_SLAB
from kmemd.system import SystemCallError

KIB = 1024
REFUSED = {errno.ENOMEM, errno.EAGAIN, errno.EINVAL, errno.EACCES, errno.EFAULT, errno.EPERM, errno.EIO, errno.EBUSY}
"""What Linux answers to calls that are wrong, or too much; anything else is a defect."""
PROTS = st.sampled_from(["rw", "r", "rx", "rwx", "none"])
ADVICE = st.sampled_from(
    [
        *("MADV_DONTNEED", "MADV_FREE", "MADV_COLD", "MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_WILLNEED"),
        *("MADV_DONTFORK", "MADV_DOFORK", "MADV_PAGEOUT", "MADV_SEQUENTIAL", "MADV_NORMAL", "MADV_WIPEONFORK"),
    ]
)
OPS = st.sampled_from(["r", "w", "x"])
PAGES = st.integers(1, 700)
PLACES = st.integers(0, 600)


@dataclass
class Area:
    """A mapping as it was made: the model may have changed any part of it since."""

    address: int
    pages: int


@dataclass
class Process:
    """A process of the run."""

    pid: int
    areas: list[Area] = field(default_factory=list)


class Processes(RuleBasedStateMachine):
    """What programs do to their memory, right or wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.system = System.boot("two-node", seed=5, cmdline="page_owner=on", clock="manual")
        self.processes: list[Process] = []

    @initialize()
    def settle(self) -> None:
        """The pages in use before anything runs; a first process has its program brought into the page cache."""
        self.command("p = spawn first")
        self.command("exit p")
        self.system.kernel.lru.drain_all()
        self.free_before = self.available()

    def available(self) -> int:
        kernel = self.system.kernel
        free = sum(zone.free_pages + zone.pcp_pages for zone in kernel.zones)
        slabs = kernel.vmstat.node_total(stats.NR_SLAB_RECLAIMABLE_B) + kernel.vmstat.node_total(
            stats.NR_SLAB_UNRECLAIMABLE_B
        )
        return free + slabs

    def command(self, line: str) -> dict[str, str] | None:
        """Run a line: its reply's words, None when Linux refuses it."""
        try:
            reply = self.system.command(line)
        except SystemCallError as error:
            refused, reason = error.errno, f"{line}: {errno.errorcode[error.errno]} {error}"
        else:
            return dict(word.split("=", 1) for word in reply.split())
        assert refused in REFUSED, reason
        return None

    def pick(self, who: int, which: int) -> tuple[Process, Area] | None:
        """A living process and an area of it."""
        self.processes = [process for process in self.processes if process.pid in self.system.kernel.tasks]
        if not self.processes:
            return None
        process = self.processes[who % len(self.processes)]
        return (process, process.areas[which % len(process.areas)]) if process.areas else None

    def on_part(self, verb: str, who: int, which: int, place: int, pages: int, rest: str = "") -> None:
        """A call on a part of an area."""
        found = self.pick(who, which)
        if found is not None:
            process, area = found
            place %= area.pages
            length = min(pages, area.pages - place + 2) * 4 * KIB
            self.command(f"{verb} {process.pid} {area.address + (place << 12):#x} {length} {rest}")

    @rule(image=st.sampled_from(["tiny", "busybox"]), cpu=st.integers(0, 3))
    @precondition(lambda self: len(self.processes) < 6)
    def spawn(self, image: str, cpu: int) -> None:
        reply = self.command(f"spawn worker image={image} cpu={cpu}")
        if reply is not None:
            self.processes.append(Process(int(reply["pid"])))

    @rule(who=st.integers(0, 7))
    @precondition(lambda self: 0 < len(self.processes) < 6)
    def fork(self, who: int) -> None:
        parent = self.processes[who % len(self.processes)]
        if parent.pid in self.system.kernel.tasks:
            reply = self.command(f"fork {parent.pid}")
            if reply is not None:
                self.processes.append(Process(int(reply["pid"]), list(parent.areas)))

    @rule(who=st.integers(0, 7))
    def exit(self, who: int) -> None:
        if self.processes:
            process = self.processes.pop(who % len(self.processes))
            if process.pid in self.system.kernel.tasks:
                self.command(f"exit {process.pid}")

    @rule(who=st.integers(0, 7))
    def exec(self, who: int) -> None:
        if self.processes:
            process = self.processes[who % len(self.processes)]
            if process.pid in self.system.kernel.tasks and self.command(f"exec {process.pid} other") is not None:
                process.areas = []

    @rule(
        who=st.integers(0, 7),
        pages=st.integers(1, 1500),
        prot=PROTS,
        flags=st.sampled_from(
            [
                *("MAP_PRIVATE|MAP_ANONYMOUS", "MAP_SHARED|MAP_ANONYMOUS", "MAP_PRIVATE|MAP_ANONYMOUS|MAP_POPULATE"),
                *("MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE", "MAP_PRIVATE|MAP_ANONYMOUS|MAP_LOCKED"),
                "MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB",
            ]
        ),
    )
    def mmap(self, who: int, pages: int, prot: str, flags: str) -> None:
        if not self.processes:
            return
        process = self.processes[who % len(self.processes)]
        if process.pid in self.system.kernel.tasks:
            reply = self.command(f"mmap {process.pid} {pages * 4}K prot={prot} flags={flags}")
            if reply is not None:
                process.areas.append(Area(int(reply["addr"], 16), pages))

    @rule(who=st.integers(0, 7), which=PLACES, place=PLACES, pages=PAGES)
    def munmap(self, who: int, which: int, place: int, pages: int) -> None:
        self.on_part("munmap", who, which, place, pages)

    @rule(who=st.integers(0, 7), which=PLACES, place=PLACES, pages=PAGES, prot=PROTS)
    def mprotect(self, who: int, which: int, place: int, pages: int, prot: str) -> None:
        self.on_part("mprotect", who, which, place, pages, prot)

    @rule(who=st.integers(0, 7), which=PLACES, place=PLACES, pages=PAGES, advice=ADVICE)
    def madvise(self, who: int, which: int, place: int, pages: int, advice: str) -> None:
        self.on_part("madvise", who, which, place, pages, advice)

    @rule(who=st.integers(0, 7), which=PLACES, place=PLACES, pages=PAGES, op=OPS, random=st.booleans())
    def access(self, who: int, which: int, place: int, pages: int, op: str, random: bool) -> None:
        self.on_part("access", who, which, place, pages, f"{op} pattern={'random' if random else 'seq'}")

    @rule(who=st.integers(0, 7), which=PLACES, place=PLACES, pages=PAGES, lock=st.sampled_from(["mlock", "munlock"]))
    def mlock(self, who: int, which: int, place: int, pages: int, lock: str) -> None:
        self.on_part(lock, who, which, place, pages)

    @rule(
        who=st.integers(0, 7),
        which=PLACES,
        place=PLACES,
        pages=PAGES,
        mode=st.sampled_from(["bind", "preferred", "interleave", "default", "local"]),
        nodes=st.sampled_from(["0", "1", "0-1"]),
    )
    def mbind(self, who: int, which: int, place: int, pages: int, mode: str, nodes: str) -> None:
        rest = f"MPOL_{mode.upper()}" + ("" if mode in ("default", "local") else f" nodes={nodes}")
        self.on_part("mbind", who, which, place, pages, rest)

    @rule(who=st.integers(0, 7), which=PLACES, pages=PAGES, grow=st.integers(1, 1500))
    def mremap(self, who: int, which: int, pages: int, grow: int) -> None:
        found = self.pick(who, which)
        if found is not None:
            process, area = found
            size = min(pages, area.pages) * 4 * KIB
            reply = self.command(f"mremap {process.pid} {area.address:#x} {size} {grow * 4}K flags=MREMAP_MAYMOVE")
            if reply is not None:
                process.areas.append(Area(int(reply["addr"], 16), grow))

    @rule(pages=st.integers(0, 20))
    def hugetlb_pool(self, pages: int) -> None:
        self.system.write("/proc/sys/vm/nr_hugepages", f"{pages}\n".encode())

    @rule(seconds=st.sampled_from([0.1, 3, 30]))
    def sleep(self, seconds: float) -> None:
        self.system.advance(seconds)

    @invariant()
    def books_agree(self) -> None:
        self.system.check()

    def teardown(self) -> None:
        for process in self.processes:
            if process.pid in self.system.kernel.tasks:
                self.command(f"exit {process.pid}")
        self.system.write("/proc/sys/vm/nr_hugepages", b"0\n")
        self.system.advance(1)
        self.system.check()
        kernel = self.system.kernel
        kernel.lru.drain_all()
        kernel.user.swap_io.wait()
        used = np.concatenate([kernel.accounting.used(zone) for zone in kernel.zones])
        used = used[kernel.pages.flags[used] & np.uint32(1 << PG_SLAB) == 0]
        owners = kernel.pages.mapping[used]
        orphans = [anon for anon in set(owners[owners > 0].tolist()) if kernel.rmap.anon_vma(anon) is None]
        assert not orphans, f"{len(orphans)} pages of anon_vmas that ended"
        if hasattr(self, "free_before"):
            assert self.available() >= self.free_before - self.kept(), "a page was not given back"

    def kept(self) -> int:
        """What may stay in use: programs that were run for the first time are in the page cache now, and zero pages."""
        kernel = self.system.kernel
        return int(kernel.vmstat.node_total(stats.NR_FILE_PAGES)) + kernel.vmstat.hpage_pmd_nr


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(max_examples=12, stateful_step_count=30, deadline=None, derandomize=True)
