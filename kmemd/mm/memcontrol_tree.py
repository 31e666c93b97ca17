"""The tree of memory cgroups, as reclaim and statistics see it (mm/memcontrol.c).

Models: groups by number, walks over them that stand that groups go meanwhile, events by group, and how much of a group
reclaim spares: memory.min and memory.low, which groups above share out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kmemd.mm.memcontrol_group import LOW, MemCgroup
from kmemd.mm.page_counter import effective_protection


class MemcgTree:
    """All memory cgroups by number; 0 is the root. ``active``: there are others.

    ``recursive_protection`` is the mount option memory_recursiveprot.
    """

    def __init__(self) -> None:
        self.groups: list[MemCgroup | None] = []
        self.active = False
        self.recursive_protection = False

    @property
    def root(self) -> MemCgroup:
        """The root."""
        found = self.groups[0]
        assert found is not None, "the root is made at boot"
        return found

    def by_id(self, number: int) -> MemCgroup:
        """The group of a number."""
        found = self.groups[number]
        assert found is not None, f"there is no memory cgroup {number}"
        return found

    def mount_options(self, options: Collection[str]) -> None:
        """The options of the hierarchy's mount."""
        self.recursive_protection = "memory_recursiveprot" in options
        for group in filter(None, self.groups):
            group.only_local = "memory_localevents" in options

    def count(self, number: int, name: str, n: int = 1) -> None:
        """Something happened to pages of a group, or by its tasks (``count_memcg_events``). 0, the root, as well."""
        if self.groups:
            self.by_id(number).counts[name] += n

    # -- the tree, as reclaim sees it --------------------------------------------------------------------

    def subtree(self, memcg: int) -> Iterator[int]:
        """A group and all below it, parents first. Those that go while others run are left out."""
        if not self.active:
            return iter((memcg,))
        top = self.groups[memcg]
        below = [group.id for group in top.descendants()] if top is not None else []
        return (number for number in below if self.groups[number] is not None)

    def parents(self, memcg: int) -> list[int]:
        """The groups above one, up to the root."""
        above: list[int] = []
        own = self.groups[memcg] if memcg else None
        group = own.parent if own is not None else None
        while group is not None:
            above.append(group.id)
            group = group.parent
        return above

    def protection(self, target: int, memcg: int) -> tuple[int, int, int]:
        """min and low as they are in force for reclaim of ``target``, and the usage, in pages."""
        group, top = self.groups[memcg] if memcg else None, self.groups[target] if self.groups else None
        if group is None or top is None or group is top:
            return 0, 0, 0
        least, low = self.calculate_protection(top, group)
        return least, low, group.memory.usage

    def low_event(self, memcg: int) -> None:
        """A group was reclaimed below its memory.low."""
        self.by_id(memcg).event(LOW)

    def swap_left(self, memcg: int) -> int:
        """Swap slots that a group may still take."""
        group = self.groups[memcg] if memcg else None
        return group.swap.margin() if group is not None else 1 << 62

    def online(self, memcg: int) -> bool:
        """Whether a group was not removed."""
        found = self.groups[memcg] if memcg < len(self.groups) else None
        return found is not None and found.online

    def calculate_protection(self, root: MemCgroup | None, memcg: MemCgroup) -> tuple[int, int]:
        """The pages of a group that reclaim of ``root`` spares: (min, low), kept in ``emin`` and ``elow``."""
        top = root or self.root
        if memcg is top or not memcg.memory.usage:
            return 0, 0
        parent = memcg.parent
        assert parent is not None
        own, usage = memcg.memory, memcg.memory.usage
        if parent is top:
            memcg.emin, memcg.elow = own.min, own.low
            return memcg.emin, memcg.elow
        above = parent.memory
        on = self.recursive_protection
        memcg.emin = effective_protection(usage, above.usage, own.min, parent.emin, above.children_min, recursive=on)
        memcg.elow = effective_protection(usage, above.usage, own.low, parent.elow, above.children_low, recursive=on)
        return memcg.emin, memcg.elow
