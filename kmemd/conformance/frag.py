"""Fragmentation indices computed from a captured buddyinfo, compared with those that were captured beside it.

``NAME.buddyinfo`` goes with ``NAME.extfrag_index`` and ``NAME.unusable_index``; every zone's line must be
the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case
from kmemd.mm.vmstat import fragmentation_index, unusable_free_index
from kmemd.views.extfrag import Index, index_line

INDICES: tuple[tuple[str, Index, int], ...] = (
    ("extfrag_index", fragmentation_index, 2),
    ("unusable_index", unusable_free_index, 1),
)
_ZONE = re.compile(r"Node (\d+), zone +(\S+) +(.*)")


def run(folder: Path) -> Iterator[Case]:
    """One case per zone and index."""
    for info in sorted(folder.glob("*.buddyinfo")):
        zones = [parse_line(line) for line in info.read_text().splitlines() if line.strip()]
        for name, index, width in INDICES:
            captured = info.with_suffix(f".{name}")
            if captured.exists():
                lines = [index_line(nid, zone, nr_free, index, width) for nid, zone, nr_free in zones]
                yield from _compare(f"{info.stem}.{name}", captured.read_text().splitlines(), lines)


def parse_line(line: str) -> tuple[int, str, list[int]]:
    """Node, zone name and free blocks per order of a line of buddyinfo."""
    found = _ZONE.match(line)
    assert found is not None, f"not a line of buddyinfo: {line!r}"
    return int(found[1]), found[2], [int(count) for count in found[3].split()]


def _compare(name: str, captured: list[str], computed: list[str]) -> Iterator[Case]:
    if len(captured) != len(computed):
        yield Case(name, False, f"{len(captured)} zones captured, {len(computed)} in buddyinfo")
    for want, got in zip(captured, computed, strict=False):
        zone = " ".join(want.split()[:4]).replace(",", "")
        same = want.rstrip() == got.rstrip()
        yield Case(f"{name} {zone}", same, "" if same else f"{want} != {got}")
