"""Allocation sequences from a captured state of one zone: every PFN, and the free lists on the way.

``stateN.txt`` gives the free lists and per-cpu lists in list order; ``seqM.txt`` is what was allocated and freed, from
the last state before it: ``state1`` then ``seq2``, or a state of its own number. A report of the lists that is
repeated with no operation between shows them after the per-cpu lists were drained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kmemd.capture import ZoneState, parse_zoneinfo
from kmemd.conformance import frag
from kmemd.conformance.case import Case, guarded
from kmemd.core.buddy import Buddy
from kmemd.core.buddy_state import BuddyState
from kmemd.core.context import Context
from kmemd.core.mmzone import ALLOC_CMA, ALLOC_KSWAPD, ALLOC_WMARK_LOW, MIGRATE_MOVABLE, NR_MIGRATETYPES
from kmemd.core.pages import PageMap
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, F
from kmemd.mm.vmstat import BuddyStats, calculate_normal_threshold

GFP = GFP_HIGHUSER_MOVABLE | F.THISNODE | F.NORETRY
FAST = ALLOC_WMARK_LOW | ALLOC_CMA | ALLOC_KSWAPD
LISTS_PER_ORDER = 7


@dataclass
class Counters:
    """What one zone counts."""

    events: np.ndarray = field(default_factory=lambda: np.zeros(4, dtype=np.int64))
    zone_stat: np.ndarray = field(default_factory=lambda: np.zeros((1, 2), dtype=np.int64))
    numa_stat: np.ndarray = field(default_factory=lambda: np.zeros((1, 6), dtype=np.int64))


class OneZone:
    """A buddy system of a single zone, in a captured state."""

    def __init__(self, state: str, zone: ZoneState) -> None:
        lines = [line.split() for line in state.splitlines() if line]
        cpus = sum(words[0] == "pcp" for words in lines) or 1
        start = zone.fields["start_pfn"]
        end = start + zone.fields["spanned"]
        self.counters = Counters()
        c = self.counters
        stats = BuddyStats(c.events, c.zone_stat, c.numa_stat, [2], nr_free_pages=0, nr_free_cma=1, pgfree=0)
        rows = [(0, 0, start, end, zone.fields["managed"])]
        self.buddy = Buddy(PageMap(end), Context(), rows, [0] * cpus, 1, 9, (0, 0), stats)
        self.buddy.set_zonelist(0, [0])
        self._state = BuddyState(self.buddy)
        self.threshold = calculate_normal_threshold(zone.fields["managed"], cpus)
        for words in lines:
            self._load(words)

    def _load(self, words: list[str]) -> None:
        """``fl ORDER TYPE: PFN…``, ``pcp cpu=… high=…`` or ``pcpl CPU LIST: PFN…``."""
        b = self.buddy
        if words[0] == "fl":
            for pfn in words[3:]:
                self._state.load_free_block(0, int(words[1]), int(words[2].rstrip(":")), int(pfn))
        elif words[0] == "pcp":
            values = dict(word.split("=") for word in words[1:])
            b.pcp_high[0], b.pcp_batch[0] = int(values["high"]), int(values["batch"])
            b.pcp_factor[int(values["cpu"])] = int(values["free_factor"])
        elif words[0] == "pcpl":
            for pfn in words[3:]:
                self._state.load_pcp(0, int(words[1]), int(words[2].rstrip(":")), int(pfn))

    def counts(self, migratetype: int | None) -> list[int]:
        """Free blocks per order, of one type or in all."""
        if migratetype is None:
            return [sum(counts) for counts in zip(*map(self.counts, range(NR_MIGRATETYPES)), strict=True)]
        return [int(n) for n in self.buddy.nr_list[migratetype::LISTS_PER_ORDER]]


def run(folder: Path) -> Iterator[Case]:
    """A case per operation and report of each sequence, and the fragmentation indices."""
    for sequence in sorted(folder.glob("seq*.txt")):
        state = _state_before(sequence)
        if state is not None:
            name = f"{state.stem} {sequence.stem}"
            yield from guarded(name, _replay_file(name, state, sequence))
    yield from guarded("frag", frag.run(folder))


def _replay_file(name: str, state: Path, sequence: Path) -> Iterator[Case]:
    zones = list(parse_zoneinfo((sequence.parent / "zoneinfo.start").read_text()))
    yield from replay(name, state.read_text(), sequence.read_text(), zones)


def _state_before(sequence: Path) -> Path | None:
    """The state file that a sequence starts from."""
    number = sequence.stem.removeprefix("seq")
    if not number.isdigit():
        return None
    names = (f"state{int(number) - 1}.txt", f"state{number}.txt")
    return next((path for name in names if (path := sequence.parent / name).exists()), None)


def replay(name: str, state: str, sequence: str, zones: list[ZoneState]) -> Iterator[Case]:
    """Run one sequence from one state."""
    where = _zone_of(sequence)
    zone = next(z for z in zones if (z.nid, z.name) == where)
    model = OneZone(state, zone)
    slots: dict[str, tuple[int, int]] = {}
    reported, ours = False, False
    for number, line in enumerate(sequence.splitlines(), 1):
        words = line.split()
        if words[0] == "a":
            yield _allocate(f"{name} line {number}", model, words, slots)
            reported = False
        elif words[0] == "f":
            pfn, order = slots.pop(words[1])
            yield Case(f"{name} line {number}", model.buddy.free_pages(pfn, order), f"pfn {pfn} is not allocated")
            reported = False
        elif words[0] == "zone":
            ours = (int(words[1]), words[2]) == where
            if ours and reported:
                model.buddy.drain_all()
            reported = reported or ours
            if ours:
                yield from _compare(f"{name} line {number}", model, words)
        elif words[0].startswith("mt") and ours:
            have, wanted = model.counts(int(words[0][2:])), [int(word) for word in words[1:]]
            yield Case(f"{name} line {number}", have == wanted, f"captured {wanted}, model {have}")


def _zone_of(sequence: str) -> tuple[int, str]:
    """Node and name of the zone that the sequence allocates from."""
    line = next(line for line in sequence.splitlines() if line.startswith("a "))
    words = dict(word.split("=") for word in line.split()[3:])
    return int(words["node"]), words["zone"]


def _allocate(name: str, model: OneZone, words: list[str], slots: dict[str, tuple[int, int]]) -> Case:
    order, wanted = int(words[2]), int(words[3].partition("=")[2])
    pfn = model.buddy.alloc_pages(0, 0, 1, order, MIGRATE_MOVABLE, FAST, GFP)
    slots[words[1]] = (pfn, order)
    return Case(name, pfn == wanted, f"order {order}: captured pfn {wanted}, model {pfn}")


def _compare(name: str, model: OneZone, words: list[str]) -> Iterator[Case]:
    """``zone NID NAME free=N blocks…``: the counter may lag by the CPU's share, the lists may not."""
    have, wanted = model.counts(None), [int(word) for word in words[4:]]
    yield Case(f"{name} lists", have == wanted, f"captured {wanted}, model {have}")
    free, wanted_free = int(model.counters.zone_stat[0, 0]), int(words[3].partition("=")[2])
    near = abs(free - wanted_free) <= model.threshold
    yield Case(f"{name} free", near, f"captured {wanted_free}, model {free}, counter lag up to {model.threshold}")
