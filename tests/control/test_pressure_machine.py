"""Random memory pressure: whatever runs short, books agree after each step, and each page keeps what was put into it.

The oracle is a dictionary of what the test wrote where. A page that is read back holds that, whatever swap, migration,
write-back, collapse and the disks did meanwhile; only what a disk refused may be older, and then somebody was told.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kmemd import System
from kmemd.machine import Machine
from kmemd.system import SystemCallError

PAGE = 4096
GROUPS = "/sys/fs/cgroup"
FILES = ("/mnt/a", "/mnt/b", "/mnt/deep/down/c", "/tmpfile")
DISK, SWAP, SWAPFILE = "ram0", "/dev/vdb", "/mnt/swapfile"
REFUSED = {
    *(errno.ENOMEM, errno.EAGAIN, errno.EINVAL, errno.EACCES, errno.EFAULT, errno.EPERM, errno.EIO, errno.EBUSY),
    *(errno.ENOENT, errno.ENOSPC, errno.ETXTBSY, errno.ESRCH, errno.ENODATA, errno.EINTR, errno.EEXIST, errno.ENOTDIR),
}
"""What Linux answers to calls that are wrong, or too much; anything else is a defect."""
TOML = """
arch = "x86_64"
cpus = 4
[[node]]
memory = "96M"
cpus = "0-1"
[[node]]
memory = "64M"
cpus = "2-3"
[[swap]]
path = "/dev/vdb"
size = "48M"
"""
KNOBS = st.sampled_from(
    [
        *(("vm/swappiness", value) for value in (0, 1, 60, 100, 200)),
        *(("vm/vfs_cache_pressure", value) for value in (0, 100, 1000)),
        *(("vm/dirty_bytes", value) for value in (8192, 1 << 20, 32 << 20)),
        *(("vm/dirty_background_bytes", value) for value in (4096, 1 << 20)),
        *(("vm/dirty_expire_centisecs", value) for value in (0, 100, 3000)),
        *(("vm/laptop_mode", value) for value in (0, 5)),
        *(("vm/page-cluster", value) for value in (0, 3, 5)),
        *(("vm/min_free_kbytes", value) for value in (512, 2000, 8000)),
        *(("vm/watermark_boost_factor", value) for value in (0, 15000)),
        *(("vm/zone_reclaim_mode", value) for value in (0, 1, 7)),
        *(("vm/compaction_proactiveness", value) for value in (0, 20, 100)),
        *(("vm/overcommit_memory", value) for value in (0, 1)),
    ]
)
SYSFS_KNOBS = st.sampled_from(
    [
        *(("kernel/mm/lru_gen/enabled", value) for value in ("y", "n", "7")),
        *(("kernel/mm/transparent_hugepage/enabled", value) for value in ("always", "madvise", "never")),
        *(("kernel/mm/swap/vma_ra_enabled", value) for value in ("true", "false")),
    ]
)
LIMITS = st.sampled_from(
    [
        *(("memory.max", value) for value in ("2M", "8M", "24M", "max")),
        *(("memory.high", value) for value in ("1M", "8M", "max")),
        *(("memory.min", value) for value in ("0", "4M")),
        *(("memory.low", value) for value in ("0", "16M", "max")),
        *(("memory.swap.max", value) for value in ("0", "4M", "max")),
        *(("memory.oom.group", value) for value in ("0", "1")),
        *(("memory.reclaim", value) for value in ("1M", "16M")),
    ]
)
START = ((14_000, False), (10_000, True), (6_000, False))
"""Pages of the first processes, and whether they are shared: together nearly all that there is."""
WHO, WHERE = st.integers(0, 7), st.integers(0, 5000)


@dataclass
class Area:
    """A mapping. Those of a process and its children share ``tags`` when the mapping is shared."""

    address: int
    pages: int
    tags: dict[int, str]
    shared: bool


@dataclass
class Process:
    """A process of the run."""

    pid: int
    areas: list[Area] = field(default_factory=list)


@dataclass
class OnDisk:
    """A file's tags: by page, all that may be found there, the newest last."""

    tags: dict[int, list[str]] = field(default_factory=dict)


def small_machine() -> Machine:
    """Two uneven nodes, together too small for what the processes want."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.toml"
        path.write_text(TOML)
        return Machine.load(path)


MACHINE = small_machine()


class Pressure(RuleBasedStateMachine):
    """What runs short, who is in its way, and what breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.system = System.boot(MACHINE, seed=11, clock="manual")
        self.system.write("/proc/sys/kernel/panic", "0")
        self.processes: list[Process] = []
        self.files: dict[str, OnDisk] = {}
        self.groups: list[str] = []
        self.refusing = False
        self.count = 0
        self.system.write(f"{GROUPS}/cgroup.subtree_control", "+memory")
        for number, (pages, shared) in enumerate(START):
            self.spawn(number)
            self.mmap(number, pages, shared)
            self.put_tags(number, 0, 5, pages // 5)
            self.use_memory(number, 0, 0, "w", "seq")
            self.put_tags(number, 0, 7, pages // 7)

    # -- what the rules are made of ------------------------------------------------------------------------

    def command(self, line: str) -> dict[str, str] | None:
        """Run a line: its reply's words, None when Linux refuses it."""
        return self.attempt(line, lambda: self.system.command(line))

    def attempt(self, what: str, call) -> dict[str, str] | None:
        try:
            reply = call()
        except SystemCallError as error:
            refused, reason = error.errno, f"{what}: {errno.errorcode[error.errno]} {error}"
        else:
            return dict(word.split("=", 1) for word in reply.split()) if isinstance(reply, str) else {}
        assert refused in REFUSED, reason
        return None

    def write(self, path: str, text: str) -> None:
        self.attempt(f"echo {text} > {path}", lambda: self.system.write(path, text))

    def living(self) -> list[Process]:
        self.processes = [process for process in self.processes if process.pid in self.system.kernel.tasks]
        return self.processes

    def pick(self, who: int, which: int) -> tuple[Process, Area] | None:
        """A living process and an area of it."""
        found = [process for process in self.living() if process.areas]
        if not found:
            return None
        process = found[who % len(found)]
        return process, process.areas[which % len(process.areas)]

    def tag(self) -> str:
        self.count += 1
        return f"tag{self.count}"

    # -- processes -----------------------------------------------------------------------------------------

    @rule(cpu=st.integers(0, 3))
    def spawn(self, cpu: int) -> None:
        if len(self.living()) < 6:
            reply = self.command(f"spawn worker cpu={cpu}")
            if reply is not None:
                self.processes.append(Process(int(reply["pid"])))

    @rule(who=WHO)
    def fork(self, who: int) -> None:
        if 0 < len(self.living()) < 6:
            parent = self.processes[who % len(self.processes)]
            reply = self.command(f"fork {parent.pid}")
            if reply is not None:
                areas = [
                    Area(area.address, area.pages, area.tags if area.shared else dict(area.tags), area.shared)
                    for area in parent.areas
                ]
                self.processes.append(Process(int(reply["pid"]), areas))

    @rule(who=WHO)
    def exit(self, who: int) -> None:
        if len(self.living()) > 2:
            self.command(f"exit {self.processes.pop(who % len(self.processes)).pid}")

    @rule(who=WHO, pages=st.integers(500, 20_000), shared=st.booleans())
    def mmap(self, who: int, pages: int, shared: bool) -> None:
        if self.living():
            process = self.processes[who % len(self.processes)]
            flags = "MAP_SHARED|MAP_ANONYMOUS" if shared else "MAP_PRIVATE|MAP_ANONYMOUS"
            reply = self.command(f"mmap {process.pid} {pages * 4}K flags={flags}")
            if reply is not None:
                process.areas.append(Area(int(reply["addr"], 16), pages, {}, shared))

    @rule(who=WHO, which=WHERE)
    def munmap(self, who: int, which: int) -> None:
        found = self.pick(who, which)
        if found is not None:
            process, area = found
            if self.command(f"munmap {process.pid} {area.address:#x} {area.pages * 4}K") is not None:
                process.areas.remove(area)

    @rule(who=WHO, which=WHERE, place=WHERE, step=st.integers(1, 700))
    def put_tags(self, who: int, which: int, place: int, step: int) -> None:
        found = self.pick(who, which)
        for number in range(4 if found is not None else 0):
            process, area = found
            page, tag = (place + number * step) % area.pages, self.tag()
            if self.command(f"write {process.pid} {area.address + page * PAGE:#x} {tag}") is not None:
                area.tags[page] = tag
            elif process.pid not in self.system.kernel.tasks:
                return

    @rule(who=WHO, which=WHERE)
    def look_at_tags(self, who: int, which: int) -> None:
        found = self.pick(who, which)
        if found is not None:
            self.compare(*found)

    def compare(self, process: Process, area: Area) -> None:
        """What the process reads in an area is what was written there."""
        for page, tag in area.tags.items():
            reply = self.command(f"read {process.pid} {area.address + page * PAGE:#x}")
            if reply is None:
                return
            if "data" in reply:
                assert reply["data"] == tag, f"page {page} of {process.pid} holds {reply['data']!r}, not {tag!r}"

    @rule(who=WHO, which=WHERE, place=WHERE, op=st.sampled_from("rww"), pattern=st.sampled_from(["seq", "random"]))
    def use_memory(self, who: int, which: int, place: int, op: str, pattern: str) -> None:
        found = self.pick(who, which)
        if found is not None:
            process, area = found
            place %= area.pages
            where = f"{area.address + place * PAGE:#x} {(area.pages - place) * 4}K"
            self.command(f"access {process.pid} {where} {op} pattern={pattern}")

    @rule(
        who=WHO,
        which=WHERE,
        advice=st.sampled_from(["PAGEOUT", "PAGEOUT", "COLD", "HUGEPAGE", "NOHUGEPAGE", "WILLNEED", "COLLAPSE"]),
    )
    def madvise(self, who: int, which: int, advice: str) -> None:
        found = self.pick(who, which)
        if found is not None:
            process, area = found
            self.command(f"madvise {process.pid} {area.address:#x} {area.pages * 4}K MADV_{advice}")

    @rule(who=WHO, nodes=st.sampled_from(["0 1", "1 0"]))
    def migrate(self, who: int, nodes: str) -> None:
        if self.living():
            self.command(f"migrate_pages {self.processes[who % len(self.processes)].pid} {nodes}")

    # -- files and disks -----------------------------------------------------------------------------------

    @rule(path=st.sampled_from(FILES), size=st.sampled_from(["1M", "16M", "70M"]))
    def write_file(self, path: str, size: str) -> None:
        if path not in self.files and self.command(f"create {path}") is not None:
            self.files[path] = OnDisk()
        if path in self.files:
            self.command(f"write_file {path} n={size} offset={PAGE * 64}")

    @rule(path=st.sampled_from(FILES), page=st.integers(0, 63))
    def put_tag_in_file(self, path: str, page: int) -> None:
        if path in self.files:
            tag = self.tag()
            known = self.files[path].tags.setdefault(page, [""])
            if self.command(f"write_file {path} offset={page * PAGE} data={tag}") is not None:
                self.files[path].tags[page] = [*known, tag] if path.startswith("/mnt") else [tag]
            else:
                known.append(tag)

    @rule(path=st.sampled_from(FILES))
    def look_into_file(self, path: str) -> None:
        for page, tags in self.files[path].tags.items() if path in self.files else ():
            reply = self.command(f"read_file {path} offset={page * PAGE} n=16")
            if reply is None or "data" not in reply:
                continue
            data = bytes.fromhex(reply["data"]).rstrip(b"\0").decode()
            allowed = tags if self.refused_once(path) else tags[-1:]
            assert data in allowed, f"page {page} of {path} holds {data!r}, not {tags[-1]!r}"

    def refused_once(self, path: str) -> bool:
        """Whether the disk did not take something of a file: an error of the file says so, or said so."""
        return path.startswith("/mnt") and self.system.kernel.user.vfs.lookup(path).wb_err != 0

    @rule(path=st.sampled_from(FILES), advice=st.sampled_from(["", "DONTNEED", "WILLNEED"]))
    def read_file(self, path: str, advice: str) -> None:
        if path in self.files:
            self.command(f"fadvise {path} {advice}" if advice else f"read_file {path}")

    @rule(path=st.sampled_from(FILES))
    def fsync(self, path: str) -> None:
        if path in self.files:
            written = self.command(f"fsync {path}") is not None
            if written and not self.refused_once(path):
                for page, tags in self.files[path].tags.items():
                    self.files[path].tags[page] = tags[-1:]

    @rule(path=st.sampled_from(FILES))
    def unlink(self, path: str) -> None:
        if path in self.files and self.command(f"unlink {path}") is not None:
            del self.files[path]

    @rule()
    def sync(self) -> None:
        self.command("sync")

    @rule(what=st.sampled_from(["write", "read", "off", "off"]), disk=st.sampled_from([DISK, DISK, "vdb"]))
    def disk_error(self, what: str, disk: str) -> None:
        self.command(f"disk_error {disk} {what}" + ("" if what == "off" else " sectors=20000-60000"))

    @rule(n=st.integers(1, 3000), missing=st.booleans())
    def look_up(self, n: int, missing: bool) -> None:
        self.command(f"lookup /mnt/names n={n} missing={int(missing)}")

    # -- swap ----------------------------------------------------------------------------------------------

    @rule(off=st.booleans(), priority=st.integers(0, 3))
    def swap_device(self, off: bool, priority: int) -> None:
        self.command(f"swapoff {SWAP}" if off else f"swapon {SWAP} priority={priority}")

    @rule(off=st.booleans())
    def swap_file(self, off: bool) -> None:
        if off:
            self.command(f"swapoff {SWAPFILE}")
        elif self.command(f"create {SWAPFILE} 8M") is not None:
            self.command(f"mkswap {SWAPFILE}")
        self.command(f"swapon {SWAPFILE} priority=2")

    # -- groups --------------------------------------------------------------------------------------------

    @rule(which=WHO, name=st.sampled_from("abc"))
    def mkdir(self, which: int, name: str) -> None:
        above = ["", *self.groups][which % (len(self.groups) + 1)]
        path = f"{above}/{name}"
        if above and not self.inhabited(above):
            self.write(f"{GROUPS}{above}/cgroup.subtree_control", "+memory")
        if self.attempt(f"mkdir {path}", lambda: self.system.mkdir(GROUPS + path)) is not None:
            self.groups.append(path)

    def inhabited(self, group: str) -> bool:
        return bool(self.system.read(f"{GROUPS}{group}/cgroup.procs"))

    @rule(which=WHO)
    @precondition(lambda self: self.groups)
    def rmdir(self, which: int) -> None:
        path = self.groups[which % len(self.groups)]
        if self.attempt(f"rmdir {path}", lambda: self.system.rmdir(GROUPS + path)) is not None:
            self.groups.remove(path)

    @rule(which=WHO, limit=LIMITS)
    @precondition(lambda self: self.groups)
    def limit(self, which: int, limit: tuple[str, str]) -> None:
        self.write(f"{GROUPS}{self.groups[which % len(self.groups)]}/{limit[0]}", limit[1])

    @rule(which=WHO, who=WHO)
    def move(self, which: int, who: int) -> None:
        if self.living():
            group = ["", *self.groups][which % (len(self.groups) + 1)]
            self.write(f"{GROUPS}{group}/cgroup.procs", str(self.processes[who % len(self.processes)].pid))

    # -- the machine ---------------------------------------------------------------------------------------

    @rule(sysctl=KNOBS, attribute=SYSFS_KNOBS)
    def knobs(self, sysctl: tuple[str, int], attribute: tuple[str, str]) -> None:
        self.write(f"/proc/sys/{sysctl[0]}", str(sysctl[1]))
        self.write(f"/sys/{attribute[0]}", attribute[1])

    @rule()
    def compact(self) -> None:
        self.write("/proc/sys/vm/compact_memory", "1")

    @rule(what=st.integers(1, 3))
    def drop_caches(self, what: int) -> None:
        self.write("/proc/sys/vm/drop_caches", str(what))

    @rule(order=st.integers(0, 9), n=st.integers(1, 40))
    def take_pages(self, order: int, n: int) -> None:
        self.command(f"pages{self.tag()} = alloc_pages order={order} n={n} gfp=GFP_KERNEL|__GFP_NORETRY")

    @rule(seconds=st.sampled_from([0.1, 3, 30]))
    def sleep(self, seconds: float) -> None:
        self.system.advance(seconds)

    # -- the oracle ----------------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.system.check()

    def teardown(self) -> None:
        self.command(f"disk_error {DISK} off")
        self.command("disk_error vdb off")
        for path in FILES:
            self.look_into_file(path)
        for process, area in self.everything():
            if process.pid in self.system.kernel.tasks:
                self.compare(process, area)
        for process in self.living():
            self.command(f"exit {process.pid}")
        self.system.advance(60)
        self.system.check()

    def everything(self) -> Iterator[tuple[Process, Area]]:
        for process in list(self.living()):
            for area in process.areas:
                yield process, area


TestPressure = Pressure.TestCase
TestPressure.settings = settings(max_examples=8, stateful_step_count=25, deadline=None, derandomize=True)
