"""/sys/kernel/debug/slab/CACHE: who allocated the objects in use, and who last freed them (mm/slub.c).

``slab_debug_trace_open`` and ``slab_debugfs_show``. A cache has the two files when it is booted with ``slub_debug=U``.
Objects of one caller, stack and waste make one entry; entries with as many objects stand in the order of their stacks,
where Linux's sort keeps no order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kmemd.core.slab_layout import NR_SLABS
from kmemd.mm import slab_flags as sf
from kmemd.mm.clock import HZ, INITIAL_JIFFIES, NSEC_PER_SEC
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slub_report import Track, caller_of
from kmemd.views.bitmap import format_list
from kmemd.views.sliced import Sliced
from kmemd.views.tree import debugfs

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

_NEVER = Track(0, 0, 0, -INITIAL_JIFFIES * NSEC_PER_SEC // HZ)
"""The track of an object that was never freed: all zero, at jiffy 0."""
_BASE = "slab/{traced}"

debugfs.dir("slab", 0o755)


@dataclass
class Location:
    """One entry. ``waste`` is bytes per object that were not asked for, ages are jiffies."""

    handle: int
    waste: int
    count: int = 0
    total_age: int = 0
    ages: list[int] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    cpus: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)

    def add(self, track: Track, age: int, nid: int) -> None:
        """Count an object (``add_location``)."""
        self.count += 1
        self.total_age += age
        low, high = self.ages or (age, age)
        self.ages = [age if age < low else low, age if age > high else high]
        self.pids.add(track.pid)
        self.cpus.add(track.cpu)
        self.nodes.add(nid)


def _traced(kernel: Kernel, text: str) -> str | None:
    cache = kernel.slub.names.get(text)
    return text if cache is not None and cache.name == text and cache.flags & sf.SLAB_STORE_USER else None


@debugfs.keys(_BASE, has=_traced)
def _caches(kernel: Kernel) -> list[str]:
    return [cache.name for cache in kernel.slub.caches if cache.flags & sf.SLAB_STORE_USER]


@debugfs.file(f"{_BASE}/alloc_traces", mode=0o400)
def alloc_traces(kernel: Kernel, traced: str) -> Sliced:
    """Who allocated the objects in use."""
    return Sliced(_show(kernel, kernel.slub.cache(traced), kernel.slub.reports.allocated, waste=True))


@debugfs.file(f"{_BASE}/free_traces", mode=0o400)
def free_traces(kernel: Kernel, traced: str) -> Sliced:
    """Who freed the objects in use before they were allocated again."""
    return Sliced(_show(kernel, kernel.slub.cache(traced), kernel.slub.reports.freed, waste=False))


def _slabs(kernel: Kernel, cache: KmemCache) -> Iterator[tuple[int, int]]:
    """The slabs of a cache that are on lists, with their nodes."""
    slub = kernel.slub
    for nid in slub.slab_nodes:
        if slub.node_count(cache, nid, NR_SLABS):
            for slab in [*slub.lists.partial(cache.index, nid), *slub.lists.full(cache.index, nid)]:
                yield nid, slab


def _locate(
    kernel: Kernel, cache: KmemCache, tracks: dict[int, Track], found: dict[tuple[int, int], Location], *, waste: bool
) -> Iterator[str]:
    """Sort the objects in use into entries, slab by slab: each gives no text."""
    lists, now = kernel.slub.lists, kernel.context.now
    for nid, slab in _slabs(kernel, cache):
        for index in lists.used(slab):
            track = tracks.get(lists.address(slab, index), _NEVER)
            over = cache.object_size - track.size if waste and track is not _NEVER else 0
            location = found.get((track.handle, over))
            if location is None:
                location = found[track.handle, over] = Location(track.handle, over)
            location.add(track, (now - track.when_ns) * HZ // NSEC_PER_SEC, nid)
        yield ""


def _show(kernel: Kernel, cache: KmemCache, tracks: dict[int, Track], *, waste: bool) -> Iterator[str]:
    """The entries, most objects first (``slab_debugfs_show``)."""
    found: dict[tuple[int, int], Location] = {}
    yield from _locate(kernel, cache, tracks, found, waste=waste)
    locations = sorted(found.values(), key=lambda location: (-location.count, location.handle, location.waste))
    if not locations:
        yield "No data\n"
    for location in locations:
        frames = kernel.depot.frames(location.handle)
        caller = kernel.kallsyms.frame_text(caller_of(frames)) if frames else "<not-available>"
        yield f"{location.count:7d} {caller}{_details(kernel, location)}\n"
        if frames:
            yield "".join(f"        {text}\n" for text in kernel.kallsyms.stack(location.handle))
        yield "\n" if frames else ""


def _details(kernel: Kernel, location: Location) -> str:
    text = f" waste={location.count * location.waste}/{location.waste}" if location.waste else ""
    low, high = location.ages
    if location.total_age != low:
        text += f" age={low}/{location.total_age // location.count}/{high}"
    else:
        text += f" age={low}"
    first, last = min(location.pids), max(location.pids)
    text += f" pid={first}-{last}" if first != last else f" pid={first}"
    if kernel.slub.core.ncpus > 1:
        text += f" cpus={format_list(location.cpus)}"
    if len(kernel.slub.slab_nodes) > 1:
        text += f" nodes={format_list(location.nodes)}"
    return text
