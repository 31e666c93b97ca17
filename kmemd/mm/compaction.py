"""Memory compaction: its knobs and triggers (mm/compaction.c).

Models: the sysctls, ``compact_memory`` and each node's ``compact``, which give back what the per-cpu lists
hold, as Linux does before it scans a zone. Left out: migration, for which there are no movable user pages
until processes exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from kmemd.mm.sysctl_handlers import take_all, vm_knob
from kmemd.tunable import Tunable, Tuned


class Compaction(Tuned):
    """``drain_all_pages`` empties the per-cpu lists of every zone into the free lists."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("compact_memory", take_all, mode=0o200, on_change="compact_nodes"),
        vm_knob("compaction_proactiveness", min=0, max=100),
        vm_knob("extfrag_threshold", min=0, max=1000),
        vm_knob("compact_unevictable_allowed", min=0, max=1),
    )

    def __init__(self, drain_all_pages: Callable[[], None], *, long_bits: int = 64) -> None:
        self._drain_all_pages = drain_all_pages
        self.long_bits = long_bits
        self.compact_memory = 0
        self.compaction_proactiveness = 20
        self.extfrag_threshold = 500
        self.compact_unevictable_allowed = 1

    def compact_nodes(self) -> None:
        """Compact every node (``echo 1 > /proc/sys/vm/compact_memory``)."""
        self._drain_all_pages()

    def compact_node(self, _nid: int) -> None:
        """Compact one node (``echo 1 > /sys/devices/system/node/nodeN/compact``)."""
        self._drain_all_pages()
