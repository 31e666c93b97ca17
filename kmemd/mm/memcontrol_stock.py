"""What a CPU keeps in stock of charges (mm/memcontrol.c ``struct memcg_stock_pcp``).

Two kinds: pages that are charged to a memory cgroup and used by nobody yet, and bytes of charged pages that the objects
of a group have not used up. A CPU has stock of one group, and of one object group, at a time.

Invariants: the pages in stock are charged; a byte in stock lies in a page that is charged to its object group.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core.context import Context
from kmemd.mm.memcontrol_group import MemCgroup, ObjCgroup
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

MEMCG_CHARGE_BATCH = 64


class Stock:
    """The stocks of all CPUs. ``pages`` and ``bytes`` tell them: (whose, how many) for each CPU."""

    def __init__(self, context: Context, cpus: int) -> None:
        self._context = context
        self.pages: list[tuple[MemCgroup | None, int]] = [(None, 0)] * cpus
        self.bytes: list[tuple[ObjCgroup | None, int]] = [(None, 0)] * cpus

    # -- pages -------------------------------------------------------------------------------------------

    def take(self, memcg: MemCgroup, most: int) -> int:
        """Pages of the group out of the executing CPU's stock, up to ``most``."""
        cached, pages = self.pages[self._context.cpu]
        if cached is not memcg:
            return 0
        taken = min(pages, most)
        self.pages[self._context.cpu] = (memcg, pages - taken)
        return taken

    def take_all(self, memcg: MemCgroup, pages: int) -> bool:
        """All pages of a block, or none (``consume_stock``)."""
        cached, have = self.pages[self._context.cpu]
        if cached is not memcg or have < pages:
            return False
        return bool(self.take(memcg, pages))

    def refill(self, memcg: MemCgroup, pages: int) -> None:
        """Charged pages for the stock, which is not above a batch (``refill_stock``)."""
        self._refill(self._context.cpu, memcg, pages)

    def _refill(self, cpu: int, memcg: MemCgroup, pages: int) -> None:
        if memcg.is_root:
            return
        cached, have = self.pages[cpu]
        if cached is not memcg:
            if cached is not None:
                cached.memory.uncharge(have)
            have = 0
        have += pages
        if have > MEMCG_CHARGE_BATCH:
            memcg.memory.uncharge(have)
            have = 0
        self.pages[cpu] = (memcg, have)

    # -- bytes -------------------------------------------------------------------------------------------

    def take_bytes(self, objcg: ObjCgroup, size: int) -> bool:
        """Bytes for an object out of the CPU's stock, or none (``consume_obj_stock``)."""
        cached, have = self.bytes[self._context.cpu]
        if cached is not objcg or have < size:
            return False
        self.bytes[self._context.cpu] = (objcg, have - size)
        return True

    def refill_bytes(self, objcg: ObjCgroup, size: int, *, uncharge: bool) -> int:
        """Bytes that are not used any more, or not yet; the whole pages among them that are to be given back."""
        cpu = self._context.cpu
        cached, have = self.bytes[cpu]
        if cached is not objcg:
            self._drain_bytes(cpu)
            have, objcg.left, uncharge = objcg.left, 0, True
        have += size
        pages = have >> PAGE_SHIFT if uncharge and have > PAGE_SIZE else 0
        self.bytes[cpu] = (objcg, have - (pages << PAGE_SHIFT))
        return pages

    def _drain_bytes(self, cpu: int) -> None:
        """The CPU has no such stock: whole pages are the group's again, the rest waits (``drain_obj_stock``)."""
        objcg, have = self.bytes[cpu]
        if objcg is not None:
            objcg.account(-(have >> PAGE_SHIFT))
            self._refill(cpu, objcg.memcg, have >> PAGE_SHIFT)
            objcg.left += have & (PAGE_SIZE - 1)
        self.bytes[cpu] = (None, 0)

    def drain_objects(self, objcg: ObjCgroup) -> None:
        """No CPU has stock of an object group."""
        for cpu, (cached, _) in enumerate(self.bytes):
            if cached is objcg:
                self._drain_bytes(cpu)

    # -- all ---------------------------------------------------------------------------------------------

    def drain(self, root: MemCgroup) -> None:
        """Give back what the CPUs have in stock of a group and those below it (``drain_all_stock``)."""
        for cpu, (objcg, _) in enumerate(self.bytes):
            if objcg is not None and objcg.memcg.is_below(root):
                self._drain_bytes(cpu)
        for cpu, (memcg, pages) in enumerate(self.pages):
            if memcg is not None and memcg.is_below(root):
                memcg.memory.uncharge(pages)
                self.pages[cpu] = (None, 0)


Charge = Callable[[MemCgroup, int, int], bool]
"""``try_charge(group, gfp, pages)``: charge one block, fighting for it; whether it could be."""
