"""Dirty page limits and the flusher's knobs (mm/page-writeback.c, fs/fs-writeback.c ``dirtytime``).

Models: the dirty_* sysctls, laptop_mode, and the thresholds that they give for the memory that could be dirty
now. Throttling by them is in mm/dirty_throttle.py, the flusher threads in mm/fs_writeback.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.mm.sysctl_handlers import (
    UINT_MAX,
    proc_dointvec_jiffies,
    proc_doulongvec_minmax,
    show_jiffies,
    vm_knob,
)
from kmemd.mm.units import PAGE_SIZE
from kmemd.tunable import Tunable, Tuned


class Zone(Protocol):
    """What is asked of a zone."""

    @property
    def name(self) -> str: ...
    @property
    def populated(self) -> bool: ...
    @property
    def free_pages(self) -> int: ...
    @property
    def watermark_high(self) -> int: ...
    def stat(self, item: int) -> int: ...


class Node(Protocol):
    """What is asked of a node."""

    def stat(self, item: int) -> int: ...


def _parse_bytes(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    value, taken = proc_doulongvec_minmax(text, current, tunable)
    if -(-value // PAGE_SIZE) > UINT_MAX:
        raise KernelError(errno.ERANGE, f"{tunable.path}: more than {UINT_MAX} pages")
    return value, taken


class PageWriteback(Tuned):
    """Dirty limits. ``totalreserve_pages()`` is what the allocator keeps back; ``highmem``: i386 with HIGHMEM.

    Invariants: of each ratio and its bytes, the one set last counts and the other is 0.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("dirty_background_ratio", min=0, max=100, on_change="on_background_ratio"),
        vm_knob("dirty_background_bytes", _parse_bytes, min=1, on_change="on_background_bytes"),
        vm_knob("dirty_ratio", min=0, max=100, on_change="on_limit"),
        vm_knob("dirty_bytes", _parse_bytes, min=2 * PAGE_SIZE, on_change="on_limit"),
        vm_knob("dirty_writeback_centisecs", on_change="on_interval"),
        vm_knob("dirty_expire_centisecs", min=0),
        vm_knob("dirtytime_expire_seconds", min=0),
        vm_knob("highmem_is_dirtyable", min=0, max=1, when="highmem"),
        vm_knob("laptop_mode", proc_dointvec_jiffies, show_jiffies),
    )

    def __init__(
        self,
        zones: Sequence[Zone],
        nodes: Sequence[Node],
        totalreserve_pages: Callable[[], int],
        *,
        highmem: bool = False,
        long_bits: int = 64,
        limit_changed: Callable[[], None] = lambda: None,
        interval_changed: Callable[[], None] = lambda: None,
        looked_at: Callable[[int, int], None] = lambda background, limit: None,
    ) -> None:
        """``limit_changed()`` and ``interval_changed()`` hear of a new dirty limit, and of a new interval but 0;
        ``looked_at(background, limit)`` of limits that somebody asked for.
        """
        self._looked_at = looked_at
        self._limit_changed, self._interval_changed = limit_changed, interval_changed
        self._interval = 500
        self._zones = zones
        self._nodes = nodes
        self._totalreserve_pages = totalreserve_pages
        self.highmem = highmem
        self.long_bits = long_bits
        self.dirty_background_ratio = 10
        self.dirty_background_bytes = 0
        self._dirty_ratio = 20
        self._dirty_bytes = 0
        self.dirty_writeback_centisecs = 500
        self.dirty_expire_centisecs = 3000
        self.dirtytime_expire_seconds = 12 * 60 * 60
        self.highmem_is_dirtyable = 0
        self.laptop_mode = 0

    @property
    def dirty_ratio(self) -> int:
        """Percent of dirtyable memory at which a writer is throttled; a change drops dirty_bytes."""
        return self._dirty_ratio

    @dirty_ratio.setter
    def dirty_ratio(self, percent: int) -> None:
        if percent != self._dirty_ratio:
            self._dirty_ratio = percent
            self._dirty_bytes = 0

    @property
    def dirty_bytes(self) -> int:
        """The same limit in bytes; a change drops dirty_ratio."""
        return self._dirty_bytes

    @dirty_bytes.setter
    def dirty_bytes(self, count: int) -> None:
        if count != self._dirty_bytes:
            self._dirty_bytes = count
            self._dirty_ratio = 0

    def on_background_ratio(self) -> None:
        """The ratio counts from now on."""
        self.dirty_background_bytes = 0

    def on_background_bytes(self) -> None:
        """The bytes count from now on."""
        self.dirty_background_ratio = 0

    def on_limit(self) -> None:
        """Writers look more or less often."""
        self._limit_changed()

    def on_interval(self) -> None:
        """Another interval wakes the flushers, so that they go by it."""
        if self.dirty_writeback_centisecs and self.dirty_writeback_centisecs != self._interval:
            self._interval_changed()
        self._interval = self.dirty_writeback_centisecs

    def dirtyable_memory(self) -> int:
        """Pages that the page cache could dirty (``global_dirtyable_memory``)."""
        pages = sum(zone.free_pages for zone in self._zones if zone.populated)
        pages -= min(pages, self._totalreserve_pages())
        file_lru = (stats.NR_INACTIVE_FILE, stats.NR_ACTIVE_FILE)
        pages += sum(node.stat(item) for node in self._nodes for item in file_lru)
        if self.highmem and not self.highmem_is_dirtyable:
            pages -= min(self._highmem_dirtyable(), pages)
        return pages + 1

    def _highmem_dirtyable(self) -> int:
        pages = 0
        for zone in self._zones:
            if zone.populated and zone.name == "HighMem":
                pages += max(zone.free_pages - zone.watermark_high, 0)
                pages += zone.stat(stats.NR_ZONE_INACTIVE_FILE) + zone.stat(stats.NR_ZONE_ACTIVE_FILE)
        return pages

    def global_dirty_limits(self) -> tuple[int, int]:
        """Pages at which the flusher starts, and at which writers are throttled (``domain_dirty_limits``)."""
        available = self.dirtyable_memory()
        limit = self._limit(self._dirty_bytes, self._dirty_ratio, available)
        background = self._limit(self.dirty_background_bytes, self.dirty_background_ratio, available)
        limit = min(limit, UINT_MAX)
        background = limit // 2 if background >= limit else background
        self._looked_at(background, limit)
        return background, limit

    @staticmethod
    def _limit(count: int, percent: int, available: int) -> int:
        if count:
            return -(-count // PAGE_SIZE)
        return percent * PAGE_SIZE // 100 * available // PAGE_SIZE
