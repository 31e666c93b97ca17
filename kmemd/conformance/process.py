"""The folder ``process``: one small program's view of its memory, scenario by scenario.

A file ``uo_SCENARIO_WORDS`` is what the program printed; ``.vmstat0`` and ``.vmstat1`` beside it are counters from
before and after. Each scenario runs on a freshly booted machine of the shape that the folder is named for.
``dirty_thresholds``, ``dirty.zoneinfo`` and ``hugetlb.sys`` are files of their own. What a capture does not tell and
figures depend on (the build of the program, the node it ran on, how random its stack began) is tried out: see
``uo.by_chance``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from kmemd.conformance import process_anon, process_calls, process_dirty, process_files
from kmemd.conformance.case import Case, guarded
from kmemd.conformance.uo import Capture, by_chance, once
from kmemd.machine import SwapDevice

Scenario = Callable[[Capture], Iterator[Case]]
CHANCY: dict[str, Scenario] = {
    **{name: getattr(process_anon, name) for name in ("anon", "fork", "pagemap", "thp", "khuge", "lazyfree", "mremap")},
    **{name: getattr(process_anon, name) for name in ("shared", "prot", "mlock")},
    **{"numa": process_files.numa, "hugetlb": process_files.hugetlb, "mapfile": process_files.mapfile},
    "swaptouch": process_files.swaptouch,
}
"""Scenarios with figures that chance has a part in."""
CERTAIN: dict[str, Scenario] = {
    name: getattr(process_calls, name) for name in ("errs", "segv", "overcommit", "maxmap", "badadj")
}
FILES: dict[str, Scenario] = {
    "dirty_thresholds": process_dirty.dirty_thresholds,
    "dirty.zoneinfo": process_dirty.dirty_zoneinfo,
    "hugetlb.sys": process_files.hugetlb_sys,
}
_SWAP = re.compile(r"^(/\S+) +(partition|file)\s+(\d+)", re.MULTILINE)
SWAP_HEADER_KIB = 4
OTHERS = ("swaps", "swaps2")


def run(folder: Path) -> Iterator[Case]:
    """The cases of every machine's folder, or of this one where it is a machine's itself."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("uo_*")))
    for machine in below or [folder]:
        yield from run_machine(machine)


def run_machine(folder: Path) -> Iterator[Case]:
    """The cases of one machine's files."""
    texts = {path.name: path.read_text(errors="replace") for path in sorted(folder.iterdir()) if path.is_file()}
    for name in texts:
        scenario, words = parse(name)
        if scenario is not None:
            yield from guarded(name, run_scenario(folder.name, name, words, scenario, texts))


def parse(name: str) -> tuple[Scenario | None, list[str]]:
    """The scenario of a file and the words behind its name."""
    if name in FILES:
        return FILES[name], []
    head, *words = name.split("_")
    if head != "uo" or not words or ".vmstat" in name:
        return None, []
    return CHANCY.get(words[0]) or CERTAIN.get(words[0]) or unknown, words[1:]


def unknown(capture: Capture) -> Iterator[Case]:
    """A scenario that is not known here."""
    yield Case(capture.name, False, "no such scenario is known")


def run_scenario(
    machine: str, name: str, words: list[str], scenario: Scenario, texts: dict[str, str]
) -> Iterator[Case]:
    """One file of a folder."""
    others = {key: texts[key] for key in OTHERS if key in texts}
    for key in ("vmstat0", "vmstat1"):
        if f"{name}.{key}" in texts:
            others[key] = texts[f"{name}.{key}"]
    capture = Capture(machine, name, words, texts[name], swap_devices(texts[name] + others.get("swaps", "")), others)
    if scenario in CHANCY.values():
        return by_chance(capture, scenario)
    return once(capture, scenario)


def swap_devices(text: str) -> tuple[SwapDevice, ...]:
    """The swap areas that a listing names."""
    found = {match[1]: (match[2], int(match[3])) for match in _SWAP.finditer(text)}
    return tuple(
        SwapDevice(path, (size + SWAP_HEADER_KIB) << 10, kind, active=False) for path, (kind, size) in found.items()
    )
