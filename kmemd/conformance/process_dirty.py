"""``dirty_thresholds``: nr_dirty_threshold and nr_dirty_background_threshold for ratios, and the zones behind them.

The model has hardly more free memory than the capture says, for the rest is taken first; thresholds are reckoned in
proportion to what is left of the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kmemd.conformance.case import Case
from kmemd.conformance.uo import Capture, figures
from kmemd.core import stats
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.system import System

_LINE = re.compile(
    r"dirty_ratio (\d+) background (\d+): nr_dirty_threshold (\d+) nr_dirty_background_threshold (\d+)"
    r" +free nr_free_pages (\d+)"
)
BLOCK_ORDER = 4
READ_APART = 12
"""Pages of free memory that may have come or gone between the two readings of a line; a ratio of them counts."""


def dirty_thresholds(capture: Capture) -> Iterator[Case]:
    """A line for each pair of ratios."""
    system = capture.boot()
    for line in capture.text.splitlines():
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"{line!r} is not understood")
        ratio, background, *want, free = (int(text) for text in match.groups())
        occupy(system, free)
        system.write("/proc/sys/vm/dirty_ratio", str(ratio))
        system.write("/proc/sys/vm/dirty_background_ratio", str(background))
        shown = figures(system.read("/proc/vmstat").decode())
        have = [shown["nr_dirty_threshold"], shown["nr_dirty_background_threshold"]]
        available = max(want[0] * 100 // ratio, 1) if ratio else 1
        here = available + system.kernel.vmstat.zone_total(stats.NR_FREE_PAGES) - free
        expected = [count * here // available for count in want]
        near = all(abs(a - b) <= 2 + READ_APART * ratio // 100 for a, b in zip(expected, have, strict=True))
        yield Case(f"dirty_ratio {ratio} background {background}", near, f"captured {want}, model {have}")


_SIZES = re.compile(r"^(Node .*)|^ +(min|low|high|spanned|present|managed|protection:|start_pfn:) +(.*)", re.MULTILINE)


def dirty_zoneinfo(capture: Capture) -> Iterator[Case]:
    """Sizes and watermarks of every zone, from which the memory that may be dirty is reckoned."""
    want, have = (zone_sizes(text) for text in (capture.text, capture.boot().read("/proc/zoneinfo").decode()))
    for zone, sizes in want.items():
        yield Case(f"zoneinfo {zone}", sizes == have.get(zone), f"captured {sizes}, model {have.get(zone)}")


def zone_sizes(text: str) -> dict[str, list[tuple[str, str]]]:
    """What of each zone in a zoneinfo does not change as memory is used."""
    found: dict[str, list[tuple[str, str]]] = {}
    for zone, name, value in _SIZES.findall(text):
        if zone:
            sizes = found.setdefault(" ".join(zone.split()), [])
        else:
            sizes.append((name, value))
    return found


def occupy(system: System, free: int) -> None:
    """Take memory until hardly more is free than that, in blocks that are not taken ahead for a CPU."""
    surplus = system.kernel.vmstat.zone_total(stats.NR_FREE_PAGES) - free
    if surplus >> BLOCK_ORDER > 0:
        system.kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, BLOCK_ORDER, surplus >> BLOCK_ORDER)
