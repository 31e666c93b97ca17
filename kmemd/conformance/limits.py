"""How far each GFP mask may dig: blocks of one order are allocated until the first failure, then given back.

Order 0 is compared by the pages that each zone has left, within one per-cpu batch per CPU: what was free at
the start of each probe is not captured. Of other orders the number got may differ by 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.conformance.shape import machine_from_zoneinfo
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.gfp import ALIASES, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, F

MIN_FREE_KBYTES = 8192
TOLERANCE = 0.02
ZONE_MASKS = {"MOVABLE": GFP_HIGHUSER_MOVABLE, "DMA": GFP_KERNEL | F.DMA, "DMA32": GFP_KERNEL | F.DMA32}
"""Words that stand for a whole mask: the zone's, as a driver would use it."""


@dataclass
class Probe:
    """One probe: its mask, order, blocks got, and ``free[node, zone]`` in pages at its end."""

    flags: str
    order: int
    nid: int = 0
    got: int = 0
    free: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def gfp(self) -> int:
        """The mask; names stand without their prefix."""
        mask = 0
        for word in self.flags.split("|"):
            mask |= _flag(word)
        return mask


def _flag(word: str) -> int:
    if word in ZONE_MASKS:
        return ZONE_MASKS[word]
    for name in (f"GFP_{word}", f"__GFP_{word}", word):
        if name in ALIASES:
            return ALIASES[name]
    raise KernelError(22, f"{word} is no GFP flag")


def run(folder: Path) -> Iterator[Case]:
    """One case per probe (and zone, for order 0)."""
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from guarded(machine.name, compare_machine(machine))


def compare_machine(folder: Path) -> Iterator[Case]:
    """The probes of one machine; without a captured buddyinfo they start from a fresh boot."""
    zoneinfo = (folder / "zoneinfo.start").read_text()
    start = folder / "buddyinfo.start"
    files = {"buddyinfo": start.read_text()} if start.exists() else {}
    kernel = Kernel.boot(machine_from_zoneinfo(zoneinfo, folder.name, **files))
    kernel.watermarks.min_free_kbytes = MIN_FREE_KBYTES
    kernel.watermarks.on_min_free_kbytes()
    for probe in parse((folder / "limits.txt").read_text()):
        yield from compare(folder.name, kernel, probe)


def parse(text: str) -> list[Probe]:
    """The probes in the order in which they ran."""
    probes: list[Probe] = []
    for line in text.splitlines():
        words = line.split()
        if words[0] == "##":
            probes.append(Probe(words[1], int(words[3])))
        elif words[0] == "probe":
            values = dict(word.split("=") for word in words[1:])
            probes[-1].nid, probes[-1].got = int(values["nid"]), int(values["got"])
        elif words[0] == "zone":
            probes[-1].free[int(words[1]), words[2]] = int(words[3].partition("=")[2])
    return probes


def compare(machine: str, kernel: Kernel, probe: Probe) -> Iterator[Case]:
    """Run a probe on the model and give everything back."""
    most = kernel.totalram_pages() >> probe.order
    blocks = kernel.page_alloc.alloc_pages_bulk(probe.gfp, probe.order, most, probe.nid)
    free = {(zone.nid, zone.name): zone.free_pages for zone in kernel.zones}
    kernel.page_alloc.free_pages_bulk(blocks, probe.order)
    kernel.page_alloc.drain_all_pages()  # as the captured totals show: nothing stayed on the per-cpu lists
    kernel.step()
    name = f"{machine} {probe.flags} order {probe.order}"
    near = abs(len(blocks) - probe.got) <= TOLERANCE * probe.got
    yield Case(f"{name} got", near, f"captured {probe.got} blocks, model {len(blocks)}")
    if probe.order:
        return
    batch = {(zone.nid, zone.name): zone.pageset(0)[2] * len(kernel.online_cpus) for zone in kernel.zones}
    for key, wanted in probe.free.items():
        near = abs(free[key] - wanted) <= batch[key]
        detail = f"captured {wanted} pages left, model {free[key]}, batch {batch[key]}"
        yield Case(f"{name} node {key[0]} {key[1]}", near, detail, "exact")
