"""The test program of the ``process`` captures, replayed on the model: what it does, and how its output is compared.

A scenario function does what the program did, through the command language, and prints what the model's files say.
Both transcripts are cut into blocks: one for each line that starts with ``--`` or ``==`` or shows a mapping, and one
line each of others. Of a file the capture shows some lines: the model's with the same labels are compared. Addresses
and inode numbers are the model's own: of a mapping's line its size, permissions, offset, device and name count.

What the program touches for itself is part of its image (``mm/exec.py``); showing a file for the first time takes a
page of its heap, and reading smaps line by line two more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kmemd.conformance.case import Case
from kmemd.machine import Machine, SwapDevice
from kmemd.mm.exec import IMAGES
from kmemd.mm.units import GIB, MIB, PAGE_SIZE
from kmemd.system import System, SystemCallError
from kmemd.views.tree import Caller

_NAME = re.compile(r"(x86_64|i386)(?:-(\d+)node)?-(\d+)([MG])(?:.*?-(\d+)cpu)?")
_MAP = re.compile(r"([0-9a-f]{8,16})-([0-9a-f]{8,16}) (\S{4}) (\S+) (\S+) (\d+) *(.*)")
_NUMA = re.compile(r"[0-9a-f]{8,16} ((?:default|prefer|bind|interleave|local|weighted)\b.*)")
_SMAPS = re.compile(r"\w+: +\d+ kB$|THPeligible:|VmFlags:")
_OUTPUT = re.compile(r" errno |^(mode|--|==|mlock|madvise) |^[0-9a-f]{8,16} (default|prefer|bind|interleave|local)\b")
_FIELD = re.compile(r"([^:=]+):")
PROGRAMS = ("uo", "uo2")
"""The program's builds: the second is one page longer."""
HUGE = 2 * MIB
PLAIN = "tiny"
"""The program of machines that have none of the builds."""
SMAPS_PAGES, SHOW_PAGES = 2, 1
"""Pages of its heap that the program needs when it first reads smaps, and when it first shows a file."""
WORD = "word"
IS_NUMA = " kernelpagesize_kB="
"""What each line of numa_maps has."""
SEEDS = 4


def machine_of(name: str, cpus: int = 2, swap: tuple[SwapDevice, ...] = ()) -> Machine:
    """The machine that a folder is named for: ``x86_64-2node-4G-4cpu``, ``x86_64-1500M``. ValueError."""
    match = _NAME.search(name)
    if match is None:
        raise ValueError(f"{name} names no machine")
    arch, nodes, number, unit, found = match.groups()
    count, cpus = int(nodes or 1), int(found or cpus)
    share = int(number) * (GIB if unit == "G" else MIB) // count
    cuts = [cpus * nid // count for nid in range(count + 1)]
    owners = tuple(tuple(range(cuts[nid], cuts[nid + 1])) for nid in range(count))
    distances = tuple(tuple(10 if a == b else 20 for b in range(count)) for a in range(count))
    return Machine.of_memory("captured", arch, cpus, (share,) * count, owners, distances, swap=swap)


@dataclass(frozen=True)
class Chance:
    """What a capture does not tell: the program's build, the CPU it ran on, the seed that its stack began by."""

    program: str = PROGRAMS[0]
    cpu: int = 0
    seed: int = 0


@dataclass
class Capture:
    """One scenario as captured: the machine's name, the file's, its words behind the scenario's, and its text."""

    machine: str
    name: str
    words: list[str]
    text: str
    swap: tuple[SwapDevice, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    chance: Chance = Chance()
    uo: Uo | None = None

    def number(self, place: int, default: int = 0) -> int:
        """A numeric word of the name."""
        return int(self.words[place]) if len(self.words) > place and self.words[place].isdigit() else default

    @property
    def size(self) -> int:
        """The scenario's size in bytes: its first word is in MiB."""
        return self.number(0, 16) * MIB

    def boot(self, cmdline: str = "") -> System:
        """A fresh machine of that shape."""
        return System.boot(machine=machine_of(self.machine, swap=self.swap), cmdline=cmdline, seed=self.chance.seed)

    @property
    def offset(self) -> int:
        """Where within a page table's reach the first mapping that is shown begins."""
        match = next((match for line in self.text.splitlines() if (match := _MAP.fullmatch(line))), None)
        return int(match[1], 16) % HUGE if match is not None else 0


def by_chance(capture: Capture, scenario: Callable[[Capture], Iterator[Case]]) -> Iterator[Case]:
    """The cases of a scenario: of the first run that chance allows in which all pass, or of the best one."""
    best: list[Case] = []
    for chance in chances(machine_of(capture.machine)):
        cases = list(once(dataclasses.replace(capture, chance=chance), scenario))
        if not best or _passed(cases) > _passed(best):
            best = cases
        if all(case.passed for case in cases):
            break
    yield from best


def once(capture: Capture, scenario: Callable[[Capture], Iterator[Case]]) -> Iterator[Case]:
    """The cases of one run, and of the counters that were read before and after it."""
    yield from scenario(capture)
    yield from vmstat_deltas(capture)


def _passed(cases: list[Case]) -> int:
    return sum(case.passed for case in cases)


def chances(machine: Machine) -> Iterator[Chance]:
    """The runs that may have been the captured one: each build, a CPU of each node, some seeds."""
    programs = [name for name in PROGRAMS if name in IMAGES[machine.arch]] or [PLAIN]
    for seed in range(SEEDS):
        for program in programs:
            for node in machine.nodes:
                if node.cpus:
                    yield Chance(program, node.cpus[0], seed)


class Uo:
    """The program at work: one process, and the transcript of what it prints."""

    def __init__(self, system: System, capture: Capture) -> None:
        self.system = system
        self.before = system.read("/proc/vmstat").decode()
        capture.uo = self
        self._offset, self._text = capture.offset, capture.text
        self.lines: list[str] = []
        self._shown: set[str] = set()
        self._touched: dict[int, int] = {}
        chance = capture.chance
        image = chance.program if chance.program in IMAGES[system.kernel.machine.arch] else PLAIN
        self.pid = number(system.command(f"uo = spawn uo image={image} cpu={chance.cpu}"), "pid")

    def do(self, verb: str, *rest: object, pid: int | None = None) -> str:
        """A command of the program."""
        words = (hex(item) if isinstance(item, int) and item > 0xFFFF else str(item) for item in rest)
        return self.system.command(" ".join((verb, str(pid or self.pid), *words)))

    def attempt(self, verb: str, *rest: object, pid: int | None = None) -> int:
        """The errno of a command that may fail."""
        try:
            self.do(verb, *rest, pid=pid)
        except SystemCallError as error:
            return error.errno or 0
        return 0

    def mmap(self, length: int, *rest: object) -> int:
        """Map memory; the address."""
        return number(self.do("mmap", length, *rest), "addr")

    def place(self, length: int, flags: str = "MAP_PRIVATE|MAP_ANONYMOUS", *rest: object) -> int:
        """Map memory that begins where the captured mapping did, within the reach of a page table."""
        spare = self.mmap(length + HUGE)
        self.do("munmap", spare, length + HUGE)
        address = spare + (self._offset - spare) % HUGE
        return self.mmap(length, f"addr={address:#x}", f"flags={flags}|MAP_FIXED", *rest)

    def small(self, length: int) -> int:
        """Memory that is never mapped by huge pages."""
        address = self.place(length)
        self.do("madvise", address, length, "MADV_NOHUGEPAGE")
        return address

    def read(self, path: str, pid: int | None = None) -> str:
        """A file as the program reads it."""
        return self.system.read(path.replace("/self/", f"/{pid or self.pid}/")).decode()

    def piece(self, path: str, offset: int, size: int) -> bytes:
        """Some bytes of a binary file."""
        tree, caller = self.system.tree, Caller()
        file = tree.open(tree.lookup(path.replace("/self/", f"/{self.pid}/"), caller), caller)
        try:
            return bytes(file.read(offset, size) or b"")
        finally:
            file.close()

    @property
    def file_pages(self) -> int:
        """Pages of the program's file."""
        mm = self.system.kernel.tasks.find(self.pid).mm
        return int(mm.exe.nrpages) if mm is not None and mm.exe is not None else 0

    def threshold(self, address: int, *, node: bool) -> int:
        """The threshold of a CPU's counts for the zone of a page, or the greatest of its node's zones."""
        kernel = self.system.kernel
        pfn = kernel.memory.page_at(kernel.tasks.find(self.pid), address)
        zone = next(zone for zone in kernel.zones if zone.start_pfn <= pfn < zone.end_pfn)
        zones = [other for other in kernel.zones if other.nid == zone.nid] if node else [zone]
        return max(other.stat_threshold for other in zones)

    # -- printing ----------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Print a line."""
        self.lines.append(line)

    def show(self, path: str, pid: int | None = None) -> None:
        """Print a file under its name."""
        self._first("show", SHOW_PAGES, pid)
        self.say(f"== {path}")
        self.lines += self.read(path, pid).splitlines()

    def entry(self, address: int, pid: int | None = None) -> None:
        """Print the smaps entry of the mapping at an address."""
        self._first("smaps", SMAPS_PAGES, pid)
        inside = False
        for line in self.read("/proc/self/smaps", pid).splitlines():
            match = _MAP.fullmatch(line)
            if match:
                inside = int(match[1], 16) <= address < int(match[2], 16)
            if inside:
                self.say(line)

    def numa_entry(self, address: int) -> None:
        """Print the numa_maps line of the mapping at an address, on kernels that have the file."""
        if IS_NUMA not in self._text:
            return
        start = f"{address:08x} "
        self.lines += [line for line in self.read("/proc/self/numa_maps").splitlines() if line.startswith(start)]

    def _first(self, what: str, pages: int, pid: int | None) -> None:
        """Pages of the heap that doing something for the first time takes."""
        if what in self._shown or pid not in (None, self.pid):
            return
        self._shown.add(what)
        heap = number(self.do("brk"), "start") + 8 * PAGE_SIZE + self._touched.setdefault(self.pid, 0) * PAGE_SIZE
        self._touched[self.pid] += pages
        self.do("access", heap, pages * PAGE_SIZE, "w")


def number(reply: str, key: str) -> int:
    """A ``key=`` word of a reply."""
    match = re.search(rf"\b{key}=(\S+)", reply)
    if match is None:
        raise ValueError(f"no {key}= in {reply!r}")
    return int(match[1], 0)


def figures(text: str) -> dict[str, int]:
    """The lines of vmstat."""
    return {words[0]: int(words[1]) for line in text.splitlines() if len(words := line.split()) == 2}


OVERHEAD = 120
"""Pages that the shell around the program may have taken more or fewer than the model's."""


def vmstat_deltas(capture: Capture) -> Iterator[Case]:
    """How far NUMA's counters moved while the program lived, but for what the shell around it took."""
    uo = capture.uo
    if uo is None or not {"vmstat0", "vmstat1"} <= capture.others.keys():
        return
    uo.do("exit")
    before, after = uo.before, uo.system.read("/proc/vmstat").decode()
    first, last = figures(capture.others["vmstat0"]), figures(capture.others["vmstat1"])
    old, new = figures(before), figures(after)
    for name in last:
        want, have = last[name] - first[name], new.get(name, 0) - old.get(name, 0)
        loose = name in ("numa_hit", "numa_local")
        near = abs(want - have) <= (OVERHEAD if loose else 0)
        yield Case(
            f"{capture.name}.vmstat {name}", near, f"captured {want}, model {have}", "shape" if loose else "exact"
        )


# -- comparing ---------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A piece of a transcript: its title, and the lines below it."""

    title: str
    lines: list[str] = field(default_factory=list)
    is_mapping: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it shows a file, of which some lines were picked."""
        return self.title.startswith("== ")

    @property
    def is_maps(self) -> bool:
        """Whether it shows all mappings."""
        return self.title.endswith("/maps")

    def takes(self, line: str) -> bool:
        """Whether a line belongs to it."""
        if self.is_mapping:
            return _SMAPS.match(line) is not None
        if is_mapping(line):
            return self.is_maps
        return self.is_file and _OUTPUT.search(line) is None


def is_mapping(line: str) -> bool:
    """Whether a line is that of a mapping, in maps or smaps."""
    return _MAP.fullmatch(line) is not None and not line.endswith("[rollup]")


def normal(line: str) -> str:
    """A line without what is the machine's own: addresses, inode numbers."""
    match = _MAP.fullmatch(line)
    if match is not None:
        if match[7] == "[rollup]":
            return "[rollup]"
        size = int(match[2], 16) - int(match[1], 16)
        return f"{size >> 10} kB {match[3]} {match[4]} {match[5]} {match[7]}".rstrip()
    match = _NUMA.fullmatch(line)
    return f"ADDRESS {match[1]}" if match is not None else line.rstrip()


def blocks(lines: list[str]) -> Iterator[Block]:
    """A transcript in pieces."""
    block = Block("")
    for line in lines:
        if block.takes(line):
            block.lines.append(normal(line))
            continue
        if block.title:
            yield block
        block = Block(normal(line), is_mapping=is_mapping(line))
    if block.title:
        yield block


def label(line: str) -> str:
    """What names a line of a file."""
    match = _FIELD.match(line)
    first = match[1] if match else line.split()[0] if line.split() else ""
    return WORD if first.isdigit() else first


def compare(name: str, captured: str, model: list[str], slack: Slack | None = None) -> Iterator[Case]:
    """A case for each piece of a transcript."""
    want, have = list(blocks(captured.splitlines())), list(blocks(model))
    section = ""
    for place, block in enumerate(want):
        if block.title.startswith("-- "):
            section = block.title[3:]
        title = (
            f"{name} {section}: {block.title}"
            if section and block.title != f"-- {section}"
            else f"{name}: {block.title}"
        )
        if place >= len(have):
            yield Case(title, False, "the model's transcript ends before")
            continue
        yield from _compare_block(title, block, have[place], slack)
    if len(have) > len(want):
        yield Case(f"{name}: end", False, f"the model prints more: {have[len(want)].title}")


class Slack:
    """How far figures may be from the captured ones: those that depend on what else the machine did.

    ``allowed(title, label)`` is the greatest difference, None for none.
    """

    def __init__(self, limits: dict[str, float]) -> None:
        self._limits = limits

    def allowed(self, name: str) -> float | None:
        """How much a line of that label may differ."""
        return self._limits.get(name)


def _compare_block(title: str, want: Block, have: Block, slack: Slack | None) -> Iterator[Case]:
    if want.title != have.title:
        yield Case(title, False, f"captured {want.title!r}, model {have.title!r}")
        return
    wrong: list[str] = []
    if want.is_file and not want.is_maps:
        found: dict[str, list[str]] = {}
        for line in have.lines:
            found.setdefault(label(line), []).append(line)
        pairs = [(line, (found.get(label(line)) or ["nothing"])[0]) for line in want.lines]
    else:
        pairs = list(zip(want.lines, have.lines, strict=False))
        if len(want.lines) != len(have.lines):
            wrong.append(f"{len(want.lines)} lines, model {len(have.lines)}")
    for line, other in pairs:
        if line != other and not _near(line, other, slack):
            wrong.append(f"captured {line!r}, model {other!r}")
    yield Case(title, not wrong, "; ".join(wrong))


def _near(line: str, other: str, slack: Slack | None) -> bool:
    allowed = slack.allowed(label(line)) if slack is not None else None
    if allowed is None or label(line) != label(other):
        return False
    mine, theirs = (re.findall(r"-?\b\d+", text) for text in (line, other))
    apart = [abs(int(a) - int(b)) for a, b in zip(mine, theirs, strict=False)]
    return len(mine) == len(theirs) and max(apart, default=0) <= allowed
