"""Booted machines: what each captured machine's files say, against a fresh boot of the same shape.

The model takes the zones (spanned, present, managed), nodes and CPUs of a capture and boots on them. Exact: watermarks,
protection, page sets, sysctl defaults, CommitLimit, node distances and CPU lists, and the order of the fields of
meminfo, vmstat and zoneinfo. Format: every other captured file has the same lines, labels, columns and units.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.capture import ZoneState, parse_zoneinfo
from kmemd.conformance.case import Case, guarded
from kmemd.machine import Machine
from kmemd.system import System

EXACT_FILES = re.compile(
    r"proc/sys/vm/.*|proc/cmdline|proc/filesystems|sys/devices/system/node/"
    r"(has_\w+|online|possible|node\d+/(distance|cpulist|cpumap))"
)
FIELD_ORDER = ("proc/meminfo", "proc/vmstat", "proc/zoneinfo")
_NUMBER = re.compile(r"( +|(?<!\w))(-?(?:0x[0-9a-f]+|\d+(?:\.\d+)?))(?![0-9a-zA-Z_])")
_SYMBOL = r"[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+"
_ADDRESS = r"0x(?:[0-9a-f]{8,16}|\((?:____)?ptrval(?:____)?\))"
_KIB = r" +\d+ kB"
_MAP = r"[0-9a-f]{8,16}-[0-9a-f]{8,16} [r-][w-][x-][ps] [0-9a-f]{8} [0-9a-f]{2}:[0-9a-f]{2} \d+ +\S*"
LINE_PATTERNS: dict[str, str] = {
    "proc/vmallocinfo": rf"{_ADDRESS}-{_ADDRESS} +\d+ (unpurged vm_area|{_SYMBOL}( \S+)*( pages=\d+)?"
    r"( phys=0x[0-9a-f]{8,16})?( (ioremap|vmalloc|vmap|user|dma-coherent|vpages))*( N\d+=\d+)* ?)",
    "proc/self/maps": _MAP,
    "proc/self/smaps": rf"{_MAP}|\w+: +\d+ kB|THPeligible: +[01]|VmFlags: ([a-z]{{2}} )+",
    "proc/self/smaps_rollup": rf"{_MAP}|\w+: +\d+ kB",
    "proc/self/numa_maps": r"[0-9a-f]{8,16} default( file=\S+| heap| stack)?( \w+=\d+)*",
    "proc/self/stat": r"\d+ \(.*\) [RSDZTI]( -?\d+){49}",
    "proc/self/status": r"\w+:\t.*",
    "proc/mounts": r"\S+ \S+ \w+ rw(,\S+)? 0 0",
    "sys/kernel/debug/kmemleak": r"unreferenced object .*|  .*|    .*",
    "sys/kernel/debug/page_tables/kernel": r"---\[ .* \]---|0x[0-9a-f]+-0x[0-9a-f]+ +\d+[KMGTPE] .*",
}
"""Files whose lines depend on what the reader is or on addresses: every line, captured or not, is of these kinds."""
LABELS = re.compile(r"\w+(?=:)")
LABELLED = ("proc/self/status", "proc/self/smaps", "proc/self/smaps_rollup")


def run(folder: Path) -> Iterator[Case]:
    """All cases of every machine below ``folder`` (which may be a machine itself)."""
    machines = sorted(path.parent for path in folder.glob("*/proc"))
    for machine in [folder] if (folder / "proc").is_dir() else machines:
        yield from guarded(machine.name, compare_machine(machine))


def compare_machine(folder: Path) -> Iterator[Case]:
    """Boot a machine of the captured shape and compare every captured file."""
    machine = Machine.from_capture(folder, shape_only=True)
    system = System.boot(machine)
    yield from _zones(folder, system)
    yield from _commit_limit(folder, system)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = str(file.relative_to(folder))
        if path.startswith(("proc/", "sys/")):
            yield from _compare_file(folder.name, system, path, file.read_text(errors="replace"))


def _compare_file(machine: str, system: System, path: str, captured: str) -> Iterator[Case]:
    if not captured:
        return  # what could not be read when the capture was made says nothing
    name = f"{machine}/{path}"
    exact = EXACT_FILES.fullmatch(path) is not None
    kind = "exact" if exact else "format"
    try:
        model = system.read(f"/{path}").decode(errors="replace")
    except OSError as error:
        if error.errno == errno.ENOENT:
            yield Case(name, False, "no such file", kind, absent=True)
            return
        yield Case(name, not captured.strip(), f"cannot be read: {error}", kind)
        return
    if exact:
        yield Case(name, model == captured, f"captured {captured!r}, model {model!r}")
        return
    if path in FIELD_ORDER:
        order, ours = field_names(captured), field_names(model)
        yield Case(f"{name} fields", order == ours, _first_difference(order, ours))
    yield Case(name, *compare_format(path, captured, model), kind)


def field_names(text: str) -> list[str]:
    """The label of each line: its first word, or its first two (``pages free``)."""
    names = []
    for line in text.splitlines():
        words = re.split(r"[\s:]+", line.strip())
        names.append(" ".join(words[:2]) if len(words) > 1 and not words[1][:1].isdigit() else words[0])
    return names


def compare_format(path: str, captured: str, model: str) -> tuple[bool, str]:
    """Whether two texts have the same form, and the first difference."""
    if "\0" in captured:
        return len(captured) == len(model), f"captured {len(captured)} bytes, model {len(model)}"
    pattern = LINE_PATTERNS.get(path)
    if pattern is None:
        return _same_shape(captured, model)
    for who, text in (("captured", captured), ("model", model)):
        for line in text.splitlines():
            if not re.fullmatch(pattern, line):
                return False, f"{who}: {line!r} is of no known kind"
    if path in LABELLED:
        wanted, ours = _labels(captured), _labels(model)
        return wanted == ours, _first_difference(wanted, ours)
    return True, ""


def _labels(text: str) -> list[str]:
    """Labels in order of first appearance; headers of mappings have none."""
    found = (LABELS.match(line) for line in text.splitlines())
    return list(dict.fromkeys(match.group() for match in found if match))


def _same_shape(captured: str, model: str) -> tuple[bool, str]:
    wanted, ours = captured.splitlines(), model.splitlines()
    for number, (theirs, mine) in enumerate(zip(wanted, ours, strict=False), start=1):
        if not same_line(theirs, mine):
            return False, f"line {number}: captured {theirs!r}, model {mine!r}"
    if len(wanted) != len(ours):
        longer = (wanted if len(wanted) > len(ours) else ours)[min(len(wanted), len(ours))]
        return False, f"captured {len(wanted)} lines, model {len(ours)}, from {longer!r} on"
    return captured.endswith("\n") == model.endswith("\n"), "the last line's end differs"


def same_line(captured: str, model: str) -> bool:
    """Whether two lines differ in nothing but numbers, and those stand in columns of the same width.

    A column is either as wide, or stands as many spaces after what is before it.
    """
    if _NUMBER.sub("#", captured) != _NUMBER.sub("#", model):
        return False
    pairs = zip(_NUMBER.finditer(captured), _NUMBER.finditer(model), strict=True)
    for theirs, mine in pairs:
        spaces, ours = len(theirs.group(1)), len(mine.group(1))
        if spaces != ours and len(theirs.group()) != len(mine.group()):
            return False
    return True


def _first_difference(wanted: list[str], ours: list[str]) -> str:
    for theirs, mine in zip(wanted, ours, strict=False):
        if theirs != mine:
            return f"captured {theirs}, model {mine}"
    if len(wanted) != len(ours):
        return f"captured {len(wanted)} fields, model {len(ours)}"
    return ""


def _zones(folder: Path, system: System) -> Iterator[Case]:
    """Every zone's watermarks, protection and page sets."""
    captured = (folder / "proc/zoneinfo").read_text()
    states = {(zone.nid, zone.name): zone for zone in parse_zoneinfo(system.read("/proc/zoneinfo").decode())}
    model_sets = page_sets(system.read("/proc/zoneinfo").decode())
    captured_sets = page_sets(captured)
    for zone in parse_zoneinfo(captured):
        ours = states.get((zone.nid, zone.name))
        name = f"{folder.name} node {zone.nid} {zone.name}"
        if ours is None:
            yield Case(name, False, "no such zone")
            continue
        for label, value in _facts(zone).items():
            mine = _facts(ours).get(label)
            yield Case(f"{name} {label}", value == mine, f"captured {value}, model {mine}")
        key = (zone.nid, zone.name)
        theirs, mine_sets = captured_sets.get(key, []), model_sets.get(key, [])
        yield Case(f"{name} page sets", theirs == mine_sets, f"captured {theirs}, model {mine_sets}")


def _facts(zone: ZoneState) -> dict[str, object]:
    names = ("min", "low", "high", "spanned", "present", "managed", "boost", "start_pfn")
    facts: dict[str, object] = {name: zone.fields[name] for name in names if name in zone.fields}
    facts["protection"] = zone.protection
    return facts


def page_sets(zoneinfo: str) -> dict[tuple[int, str], list[tuple[int, int, int]]]:
    """(high, batch, stat threshold) of each CPU, by zone."""
    sets: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
    for part in re.split(r"^(?=Node )", zoneinfo, flags=re.M)[1:]:
        match = re.match(r"Node (\d+), zone +(\S+)", part)
        assert match is not None
        rows = re.findall(r"high: +(\d+)\s+batch: +(\d+)(?:\s+vm stats threshold: +(\d+))?", part)
        sets[int(match.group(1)), match.group(2)] = [(int(h), int(b), int(t or 0)) for h, b, t in rows]
    return sets


def _commit_limit(folder: Path, system: System) -> Iterator[Case]:
    captured = (folder / "proc/meminfo").read_text()
    model = system.read("/proc/meminfo").decode()
    for label in ("CommitLimit", "MemTotal", "SwapTotal", "VmallocTotal", "Hugepagesize"):
        wanted, ours = _kib(captured, label), _kib(model, label)
        yield Case(f"{folder.name} {label}", wanted == ours, f"captured {wanted} kB, model {ours} kB")


def _kib(meminfo: str, label: str) -> int | None:
    match = re.search(rf"^{label}: +(\d+)", meminfo, re.M)
    return int(match.group(1)) if match else None
