"""Pages that zswap keeps, charged to control groups (mm/memcontrol.c ``obj_cgroup_charge_zswap`` and its kind).

A compressed page is kernel memory of the object group of the group that the page was charged to, for as long as zswap
has it. Models: the limit memory.zswap.max, for a group and all above it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.mm.gfp import F
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import MemCgroup
from kmemd.mm.page_counter import PAGE_COUNTER_MAX
from kmemd.mm.units import PAGE_SIZE

NAMES = {stats.ZSWPIN: "zswpin", stats.ZSWPOUT: "zswpout"}


class ZswapCharging:
    """What zswap asks the memory controller. Groups are numbers of object groups, 0 for none."""

    def __init__(self, memcg: MemControl, pages_memcg: npt.NDArray[np.int16]) -> None:
        self._memcg, self._pages = memcg, pages_memcg

    def owners(self, pfns: npt.NDArray[np.int64]) -> list[int]:
        """Who pays when pages are compressed (``get_obj_cgroup_from_page``): a group that was not removed."""
        numbers: list[int] = self._pages[pfns].tolist()
        if not self._memcg.kernel.active:
            return [0] * len(numbers)
        found = {number: self._owner(number) for number in set(numbers)}
        return [found[number] for number in numbers]

    def _owner(self, number: int) -> int:
        group: MemCgroup | None = self._memcg.of_number(number)
        while group is not None and not group.online:
            group = group.parent
        return group.id if group is not None else 0

    def may_zswap(self, number: int) -> bool:
        """Whether no limit, of the group or above it, is met (``obj_cgroup_may_zswap``)."""
        for group in self._memcg.kernel.owner(number).upwards():
            limit = group.zswap_max
            if limit != PAGE_COUNTER_MAX and (not limit or zswap_bytes(group) // PAGE_SIZE >= limit):
                return False
        return True

    def charge_zswap(self, number: int, size: int) -> None:
        """A page was compressed to so many bytes. It always can be charged: it makes room."""
        self._memcg.kernel.charge_bytes(number, F.NOFAIL, size)
        group = self._memcg.kernel.owner(number)
        group.zswap += size
        group.zswapped += 1

    def uncharge_zswap(self, number: int, size: int) -> None:
        """zswap has the page no longer."""
        group = self._memcg.kernel.owner(number)
        group.zswap -= size
        group.zswapped -= 1
        self._memcg.kernel.uncharge_bytes(number, size)

    def count_zswap(self, number: int, event: int) -> None:
        """zswpin or zswpout of a page (``count_objcg_event``)."""
        self._memcg.kernel.owner(number).counts[NAMES[event]] += 1


def zswap_bytes(memcg: MemCgroup) -> int:
    """Bytes that zswap holds of a group and those below it."""
    return sum(group.zswap for group in memcg.descendants())
