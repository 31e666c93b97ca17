"""What SLUB asks of the control groups that its objects are charged to (mm/slab.h ``memcg_slab_pre_alloc_hook``)."""

from __future__ import annotations

from typing import Any, Protocol

from kmemd.mm.leak_observer import Addresses


class SlabCharging(Protocol):
    """Charges objects to control groups. ``active``: there are groups; ``objects``: so many are charged."""

    active: bool
    objects: int

    def pre_alloc(self, size: int, gfp: int, n: int) -> tuple[Any, int]: ...
    def post_alloc(self, objcg: Any, objects: Addresses, charged: int, size: int, *, reclaimable: bool) -> None: ...
    def free_objects(self, objects: Addresses) -> None: ...
