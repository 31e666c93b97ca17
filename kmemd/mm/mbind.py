"""The system calls of NUMA placement: policies of mappings, and moving pages (mm/mempolicy.c, mm/migrate.c).

Models mbind(2) with the pages that it moves or complains of, get_mempolicy(2), set_mempolicy_home_node(2),
migrate_pages(2) and move_pages(2). set_mempolicy(2) is ``Mempolicy``'s. Left out: MPOL_MF_LAZY, which programs may not
pass. What a call does to many pages is a generator that yields between batches of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PG_HEAD, PageMap
from kmemd.core.pte import PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE, SPECIAL
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.hugetlb_migrate import HugetlbMigrate
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.mbind_queue import Queue, queue_small, vma_migratable
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.migrate import MR_MEMPOLICY_MBIND, MR_SYSCALL, Migrate
from kmemd.mm.mm_types import VM_HUGETLB, Mm, Vma
from kmemd.mm.mpol import (
    MAX_NUMNODES,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_MF_VALID,
    MPOL_MODE_FLAGS,
    MPOL_PREFERRED_MANY,
    Policy,
    SharedPolicy,
    mpol_dup,
    mpol_equal,
    mpol_new,
    sanitize_mpol_flags,
    user_mask,
)
from kmemd.mm.nodemask import nodes_of
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.pages_move import PagesMove
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vma import Content, VmaList
from kmemd.steps import Steps

PFNS = npt.NDArray[np.int64]
MOVES = MPOL_MF_MOVE | MPOL_MF_MOVE_ALL
BATCH = 512
"""Pages that are collected between two yields."""
MOVED_AT_ONCE = 32
"""Pages that are moved between two yields."""
ADDRESS_SPACE = 1 << 64
GFP_NEW_PAGE = g.GFP_HIGHUSER_MOVABLE | g.F.RETRY_MAYFAIL | g.F.COMP
GFP_TARGET = g.GFP_HIGHUSER_MOVABLE | g.F.THISNODE | g.F.COMP


class Task(Protocol):
    """A process."""

    uid: int
    mm: Mm | None


class Tables(Protocol):
    """Page tables."""

    words: npt.NDArray[np.uint64]

    def leaf(self, mm: int, vpn: int) -> tuple[int, int]: ...
    def extents(self, mm: int, start: int, end: int) -> npt.NDArray[np.int64]: ...


def node_remap(nid: int, old: int, new: int) -> int:
    """The node that takes the place of ``nid`` when the set ``old`` becomes ``new``, by their order."""
    members, targets = list(nodes_of(old)), list(nodes_of(new))
    return targets[members.index(nid) % len(targets)] if nid in members and targets else nid


def _length(start: int, length: int) -> int:
    """The end of a range whose length is rounded up to pages, as the kernel's arithmetic has it. EINVAL."""
    if start & ~PAGE_MASK:
        raise KernelError(errno.EINVAL, f"address {start:#x} is not page aligned")
    end = (start + ((length + PAGE_SIZE - 1) % ADDRESS_SPACE & PAGE_MASK)) % ADDRESS_SPACE
    if end < start:
        raise KernelError(errno.EINVAL, f"{length:#x} bytes from {start:#x} on wrap around")
    return end


class Mbind:
    """The calls. ``fault_in(task, vpn)`` makes a page present, for who asks where it is. ENOSYS without CONFIG_NUMA."""

    def __init__(
        self,
        mempolicy: Mempolicy,
        migrate: Migrate,
        vmas: VmaList,
        mmu: Tables,
        pages: PageMap,
        page_alloc: PageAllocator,
        fault_in: Callable[[Task, int], None],
        hugetlb: HugetlbMigrate,
    ) -> None:
        self._mempolicy = mempolicy
        self._migrate = migrate
        self._vmas = vmas
        self._mmu = mmu
        self._pages = pages
        self._page_alloc = page_alloc
        self._fault_in = fault_in
        self._hugetlb = hugetlb

    # -- mbind -------------------------------------------------------------------------------------------

    def mbind(
        self,
        task: Task,
        start: int,
        length: int,
        mode: int,
        mask: int | None,
        maxnode: int = MAX_NUMNODES + 1,
        flags: int = 0,
    ) -> Steps[None]:
        """Set the policy of a range. EINVAL, EPERM, EFAULT for a hole, EIO for pages that are elsewhere, ENOMEM."""
        self._mempolicy.require_numa()
        mode, mode_flags = sanitize_mpol_flags(mode)
        nodes = user_mask(mask, maxnode)
        if flags & ~MPOL_MF_VALID:
            raise KernelError(errno.EINVAL, f"flags {flags:#x}: there are MPOL_MF_STRICT, _MOVE and _MOVE_ALL")
        if flags & MPOL_MF_MOVE_ALL and task.uid:
            raise KernelError(errno.EPERM, "MPOL_MF_MOVE_ALL takes CAP_SYS_NICE")
        end = _length(start, length)
        if end == start:
            return
        flags &= ~MPOL_MF_STRICT if mode == MPOL_DEFAULT else -1
        policy = mpol_new(mode, mode_flags, nodes, self._mempolicy.memory_nodes)
        mm = _mm_of(task)
        queue = Queue(nodes, flags, invert=True, discontiguous=policy is None)
        if not flags & MOVES:
            yield from self._bind(mm, start, end, policy, queue)
            return
        with self._migrate.lru_cache_disabled():
            yield from self._bind(mm, start, end, policy, queue)
            failed = yield from self._move(
                queue,
                lambda pfn: self._new_page(task, mm, queue.vpns[pfn], pfn),
                lambda pfns: self._new_pages(task, mm, np.array([queue.vpns[pfn] for pfn in pfns.tolist()])),
                lambda pfn, pool: self._huge_node(task, mm, queue.vpns[pfn], pool),
                MR_MEMPOLICY_MBIND,
            )
        if (failed or queue.unmovable) and flags & MPOL_MF_STRICT:
            raise KernelError(errno.EIO, "some pages are not where the policy wants them, and cannot be moved")

    def _bind(self, mm: Mm, start: int, end: int, policy: Policy | None, queue: Queue) -> Steps[None]:
        """Collect the pages of a range that are in the wrong place, and set its policy."""
        yield from self._queue_pages_range(mm, start, end, queue)
        try:
            self._set_range(mm, start, end, policy)
        except KernelError:
            self._migrate.putback(queue.pages)
            raise

    def _set_range(self, mm: Mm, start: int, end: int, policy: Policy | None) -> None:
        """Give every mapping in a range a policy, splitting and merging them. ENOMEM at the limit of mappings."""
        at = start
        while at < end and (vma := mm.find_vma(at)) is not None and vma.start < end:
            at = self._mbind_range(mm, vma, max(start, vma.start), min(end, vma.end), policy)

    def _mbind_range(self, mm: Mm, vma: Vma, start: int, end: int, policy: Policy | None) -> int:
        """One mapping's part (mbind_range): where the next begins."""
        if mpol_equal(vma.policy, policy):
            return end
        position = mm.position(vma.start)
        prev = vma if start > vma.start else mm.vmas[position - 1] if position else None
        pgoff = vma.pgoff + (start - vma.start >> PAGE_SHIFT)
        content = Content(vma.flags, pgoff, vma.file, vma.anon_vma, policy)
        merged = self._vmas.merge(mm, prev, start, end, content)
        self._replace(mm, merged or self._vmas.isolate(mm, vma, start, end), policy)
        return max(end, merged.end if merged is not None else end)

    def _replace(self, mm: Mm, vma: Vma, policy: Policy | None) -> None:
        """The mapping, and the part of a tmpfs file that it shows, get a policy of their own (vma_replace_policy)."""
        file = vma.file
        if file is not None and file.is_shmem:
            if file.shared_policy is None:
                file.shared_policy = SharedPolicy()
            file.shared_policy.replace(vma.pgoff, vma.pgoff + vma.pages, policy)
        vma.policy = mpol_dup(policy)
        mm.changed += 1

    def set_home_node(self, task: Task, start: int, length: int, home_node: int, flags: int = 0) -> None:
        """Where bound memory comes from first (set_mempolicy_home_node). EINVAL, ENOENT, EOPNOTSUPP."""
        self._mempolicy.require_numa()
        if flags or not self._mempolicy.online_nodes >> home_node & 1:
            raise KernelError(errno.EINVAL, f"there is no node {home_node}" if not flags else "flags must be 0")
        end = _length(start, length)
        if end == start:
            return
        mm, at, found = _mm_of(task), start, False
        while at < end and (vma := mm.find_vma(at)) is not None and vma.start < end:
            low, at = max(start, vma.start), min(end, vma.end)
            if vma.policy is None:
                continue
            if vma.policy.mode not in (MPOL_BIND, MPOL_PREFERRED_MANY):
                raise KernelError(errno.EOPNOTSUPP, "only bound and preferred-many mappings have a home node")
            policy, found = vma.policy.dup(), True
            policy.home_node = home_node
            at = self._mbind_range(mm, vma, low, at, policy)
        if not found:
            raise KernelError(errno.ENOENT, "no mapping there has a policy")

    # -- collecting pages --------------------------------------------------------------------------------

    def _queue_pages_range(self, mm: Mm, start: int, end: int, queue: Queue) -> Steps[None]:
        """Walk a range for pages that are on the wrong nodes, and isolate them if they are to move. EFAULT, EIO."""
        found: Vma | None = None
        error: KernelError | None = None
        for vma in list(mm.overlapping(start, end)):
            hole = start < vma.start if found is None else False
            found = found or vma
            above = mm.find_vma(vma.end)
            hole = hole or (vma.end < end and (above is None or vma.end < above.start))
            if hole and not queue.discontiguous:
                error = KernelError(errno.EFAULT, f"nothing is mapped at one end of {vma.start:#x}-{vma.end:#x}")
                break
            if not queue.flags or not (vma_migratable(vma) or queue.flags & MPOL_MF_STRICT):
                continue
            right = yield from self._queue_vma(mm, vma, max(start, vma.start), min(end, vma.end), queue)
            if not right:
                error = KernelError(errno.EIO, "a page is on a node that the policy does not have")
                break
        if found is None:
            error = KernelError(errno.EFAULT, f"nothing is mapped in {start:#x}-{end:#x}")
        elif queue.unmovable:
            error = None
        if error is not None:
            self._migrate.putback(queue.pages)
            queue.pages.clear()
            raise error

    def _queue_vma(self, mm: Mm, vma: Vma, start: int, end: int, queue: Queue) -> Steps[bool]:
        """One mapping's pages; False when one is in the wrong place and may not be moved (queue_folios_pte_range)."""
        at, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        while at < last:
            enough = len(queue.pages) + BATCH
            for vpn, count, slot, level in self._mmu.extents(mm.id, at, last).tolist():
                if not self._queue_table(vma, vpn, slot, 1 if level else count, queue):
                    return False
                at = vpn + count
                if len(queue.pages) >= enough:
                    break
            else:
                return True
            yield
        return True

    def _queue_table(self, vma: Vma, vpn: int, slot: int, count: int, queue: Queue) -> bool:
        """The pages of ``count`` entries of one table; False as above."""
        entries = self._mmu.words[slot : slot + count]
        here = np.flatnonzero((entries & np.uint64(PRESENT | PROTNONE) != 0) & (entries & np.uint64(SPECIAL) == 0))
        pfns = ((entries[here] & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)
        inside = np.array([queue.nodes >> nid & 1 for nid in range(MAX_NUMNODES)], dtype=bool)
        wrong = (inside[self._mempolicy.nid_of(pfns)] != queue.invert) & self._owned(pfns)
        if wrong.any() and not queue.flags & MOVES:
            return False
        small = not vma.flags & VM_HUGETLB
        if small and queue_small(queue, vma, pfns[wrong], vpn + here[wrong], self._pages, self._migrate):
            return True
        for pfn, at in zip(pfns[wrong].tolist(), here[wrong].tolist(), strict=True):
            self._queue_page(vma, pfn, vpn + at, queue)
        return True

    def _owned(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether pages belong to somebody's memory: not zero pages and what the kernel maps into programs."""
        owned: npt.NDArray[np.bool_] = self._pages.mapping[self._migrate.heads(pfns)] != 0
        return owned

    def _queue_page(self, vma: Vma, pfn: int, vpn: int, queue: Queue) -> None:
        """Isolate a page that only this process maps, or any (migrate_folio_add)."""
        head = self._migrate.head(pfn)
        queue.unmovable |= not vma_migratable(vma)
        if not queue.flags & MPOL_MF_MOVE_ALL and self._sharers(head) != 1:
            return
        movable = self._hugetlb.pool_of(head) is not None if vma.flags & VM_HUGETLB else self._migrate.isolate(head)
        if not movable:
            queue.unmovable |= bool(queue.flags & MPOL_MF_STRICT)
            return
        queue.add([head], [vpn - (pfn - head)])

    def _sharers(self, head: int) -> int:
        """How often the first page of a block is mapped (folio_estimated_sharers)."""
        whole = int(self._pages.mapping[head + 1]) if int(self._pages.flags[head]) >> PG_HEAD & 1 else 0
        return int(self._pages.mapcount[head]) + whole

    # -- moving pages ------------------------------------------------------------------------------------

    def _move(
        self,
        queue: Queue,
        new_page: Callable[[int], int],
        new_pages: Callable[[PFNS], PFNS],
        huge_node: Callable[[int, Pool], tuple[int, int]],
        reason: int,
    ) -> Steps[int]:
        """Move what was collected, in batches: how many pages stayed, or a negative errno; those are put back.

        ``new_page(pfn)`` gives a frame, ``new_pages`` some of those for small pages, ``huge_node(pfn, pool)`` the node
        and nodes for a page of a pool.
        """
        failed = 0
        queue.begin()
        while queue.pages and failed >= 0:
            batch = queue.take(BATCH)
            small = self._of_no_pool(batch)
            rest = self._migrate.move_many(np.array(small, dtype=np.int64), new_pages, reason) if small else []
            yield
            failed = yield from self._move_each(rest, new_page, reason, failed)
            if failed >= 0 and len(small) < len(batch):
                failed = self._move_huge(batch, huge_node) or failed
            yield
        self._migrate.putback(self._of_no_pool(queue.pages[::-1]))
        return failed

    def _of_no_pool(self, pages: list[int]) -> list[int]:
        """Pages that are not hugetlb's."""
        compound = self._pages.flags[pages] >> np.uint32(PG_HEAD) & np.uint32(1)
        return [pfn for pfn, huge in zip(pages, compound.tolist(), strict=True) if not huge or not self._pooled(pfn)]

    def _pooled(self, pfn: int) -> bool:
        return self._hugetlb.pool_of(pfn) is not None

    def _move_each(self, pages: list[int], new_page: Callable[[int], int], reason: int, failed: int) -> Steps[int]:
        """Move pages that others have an interest in, too: ``failed`` and what stayed, or a negative errno."""
        done = 0
        while done < len(pages) and failed >= 0:
            outcome = self._migrate.migrate_pages(pages[done : done + MOVED_AT_ONCE], new_page, reason)
            done += MOVED_AT_ONCE
            failed = outcome.failed if outcome.failed < 0 else failed + outcome.failed
            self._migrate.putback(outcome.left)
            yield
        self._migrate.putback(pages[done:])
        return failed

    def _move_huge(self, batch: list[int], huge_node: Callable[[int, Pool], tuple[int, int]]) -> int:
        """The pages of pools among some: 0, or a negative errno for want of a page."""
        for pfn in batch:
            pool = self._hugetlb.pool_of(pfn)
            if pool is not None:
                try:
                    self._hugetlb.migrate(pfn, *huge_node(pfn, pool))
                except KernelError as error:
                    return -error.errno
        return 0

    def _huge_node(self, task: Task, mm: Mm, vpn: int, pool: Pool) -> tuple[int, int]:
        """Where the policy of the mapping wants a page of a pool."""
        vma = mm.find(vpn << PAGE_SHIFT)
        assert vma is not None, "the mapping was there when its pages were collected"
        return self._mempolicy.huge_node(vma, vpn, task, pool.order)

    def _new_page(self, task: Task, mm: Mm, vpn: int, pfn: int) -> int:
        """A page where the policy of the mapping wants it. ENOMEM."""
        order, vma = self._migrate.order(pfn), mm.find(vpn << PAGE_SHIFT)
        if order and vma is not None:
            return self._mempolicy.alloc_hugepage(vma, task, vpn, g.GFP_TRANSHUGE, order)
        return self._mempolicy.alloc_pages_vma(vma, task, vpn, GFP_NEW_PAGE)

    def _new_pages(self, task: Task, mm: Mm, vpns: PFNS) -> PFNS:
        """``_new_page`` of several small pages; as many as lie in the mapping of the first, fewer without memory."""
        vma = mm.find(int(vpns[0]) << PAGE_SHIFT)
        if vma is None:
            return vpns[:0]
        inside = int(np.argmin((vpns >= vma.vpn) & (vpns < vma.end >> PAGE_SHIFT))) or len(vpns)
        return self._mempolicy.alloc_bulk(vma, task, vpns[:inside], GFP_NEW_PAGE)

    def _on_node(self, nid: int) -> Callable[[int], int]:
        """Pages of one node and no other (alloc_migration_target)."""

        def new_page(pfn: int) -> int:
            order = self._migrate.order(pfn)
            gfp = GFP_TARGET & ~g.F.RECLAIM | g.GFP_TRANSHUGE if order else GFP_TARGET
            return self._page_alloc.alloc_pages(gfp, order, nid)

        return new_page

    def migrate_pages(self, caller: Task | None, task: Task, old: int, new: int) -> Steps[int]:
        """Move all pages of a process from some nodes to others, by their order: how many stayed (migrate_pages(2)).

        ``caller`` is None for the superuser. EPERM, EINVAL, ENOMEM.
        """
        self._mempolicy.require_numa()
        self._may_look(caller, task)
        new &= self._mempolicy.online_nodes
        if not new:
            raise KernelError(errno.EINVAL, "none of the nodes to move to is there")
        mm = _mm_of(task)
        flags = MPOL_MF_MOVE_ALL if caller is None or not caller.uid else MPOL_MF_MOVE
        busy, left = 0, old
        with self._migrate.lru_cache_disabled():
            while (pair := _next_pair(left, old, new)) is not None:
                source, dest = pair
                left &= ~(1 << source)
                queue = Queue(1 << source, flags, discontiguous=True)
                if mm.vmas:
                    yield from self._queue_pages_range(mm, mm.vmas[0].start, mm.vmas[-1].end, queue)
                failed = yield from self._move_to_node(queue, dest)
                if failed < 0:
                    raise KernelError(-failed, f"node {dest} has no page left")
                busy += failed
        return busy

    def _may_look(self, caller: Task | None, task: Task) -> None:
        """EPERM for the memory of somebody else (ptrace_may_access)."""
        if caller is not None and caller.uid and caller.uid != task.uid:
            raise KernelError(errno.EPERM, "the process belongs to somebody else")

    # -- move_pages --------------------------------------------------------------------------------------

    def move_pages(
        self,
        caller: Task | None,
        task: Task,
        addresses: Sequence[int],
        nodes: Sequence[int] | None,
        flags: int,
    ) -> Steps[tuple[int, list[int]]]:
        """Move single pages, or without ``nodes`` ask where they are (move_pages(2)).

        The call's result, which counts pages that stayed, and for each page its node or a negative errno. EINVAL,
        EPERM; ENODEV for a node without memory, after what came before it was moved.
        """
        self._mempolicy.require_numa()
        if flags & ~MOVES:
            raise KernelError(errno.EINVAL, f"flags {flags:#x}: there are MPOL_MF_MOVE and MPOL_MF_MOVE_ALL")
        if flags & MPOL_MF_MOVE_ALL and caller is not None and caller.uid:
            raise KernelError(errno.EPERM, "MPOL_MF_MOVE_ALL takes CAP_SYS_NICE")
        self._may_look(caller, task)
        mm = _mm_of(task)
        if nodes is None:
            return 0, [self._node_at(mm, address) for address in addresses]
        with self._migrate.lru_cache_disabled():
            return (yield from PagesMove(self, mm, addresses, nodes, flags).run())

    def follow_page(self, mm: Mm, address: int) -> int:
        """The page that an address maps, or a negative errno, as for a core dump (follow_page, FOLL_DUMP)."""
        vma = mm.find(address)
        if vma is None:
            return -errno.EFAULT
        slot, _level = self._mmu.leaf(mm.id, address >> PAGE_SHIFT)
        entry = int(self._mmu.words[slot]) if slot >= 0 else 0
        if not entry:
            return -errno.EFAULT if vma.is_anon else -errno.ENOENT
        if not entry & PRESENT:
            return -errno.ENOENT
        pfn = (entry & PFN_MASK) >> PFN_SHIFT
        inside = (address >> PAGE_SHIFT) & ((1 << self._migrate.order(pfn)) - 1) if _level else 0
        return -errno.EFAULT if entry & SPECIAL else pfn + inside

    def _node_at(self, mm: Mm, address: int) -> int:
        pfn = self.follow_page(mm, address)
        return pfn if pfn < 0 else self._migrate.nid(pfn)

    def isolate_at(self, mm: Mm, address: int, nid: int, *, every: bool) -> tuple[int, int]:
        """``(1, page)`` for an isolated page, 0 where it is on the node, a negative errno (add_page_for_migration)."""
        vma = mm.find(address)
        if vma is None or not vma_migratable(vma):
            return -errno.EFAULT, 0
        pfn = self.follow_page(mm, address)
        if pfn < 0:
            return pfn, 0
        if self._migrate.nid(pfn) == nid:
            return 0, pfn
        head = self._migrate.head(pfn)
        whole = int(self._pages.mapping[head + 1]) if self._migrate.order(head) else 0
        if int(self._pages.mapcount[pfn]) + whole > 1 and not every:
            return -errno.EACCES, 0
        movable = self._hugetlb.pool_of(head) is not None if vma.flags & VM_HUGETLB else self._migrate.isolate(head)
        if not movable:
            return -errno.EBUSY, 0
        return 1, head

    def move_to(self, pages: list[int], nid: int) -> Steps[int]:
        """Move isolated pages to a node: how many stayed, or a negative errno (do_move_pages_to_node)."""
        return (yield from self._move_to_node(Queue(0, 0, pages=pages), nid))

    def _move_to_node(self, queue: Queue, nid: int) -> Steps[int]:
        return (
            yield from self._move(
                queue,
                self._on_node(nid),
                lambda pfns: self._page_alloc.alloc_pages_bulk(GFP_TARGET, 0, len(pfns), nid),
                lambda pfn, pool: (nid, 1 << nid),
                MR_SYSCALL,
            )
        )

    def has_memory(self, nid: int) -> bool:
        """Whether a page can be moved to a node."""
        return 0 <= nid < MAX_NUMNODES and bool(self._mempolicy.memory_nodes >> nid & 1)

    # -- get_mempolicy -----------------------------------------------------------------------------------

    def get_mempolicy(self, task: Task, address: int = 0, flags: int = 0) -> tuple[int, int]:
        """``(mode with its flags, or a node; set of nodes)``. EINVAL, EFAULT."""
        self._mempolicy.require_numa()
        if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
            raise KernelError(errno.EINVAL, f"flags {flags:#x}: there are MPOL_F_NODE, _ADDR and _MEMS_ALLOWED")
        if flags & MPOL_F_MEMS_ALLOWED:
            if flags & (MPOL_F_NODE | MPOL_F_ADDR):
                raise KernelError(errno.EINVAL, "MPOL_F_MEMS_ALLOWED stands alone")
            return 0, self._mempolicy.memory_nodes
        mm = _mm_of(task)
        policy = mm.policy
        if flags & MPOL_F_ADDR:
            vma = mm.find(address)
            if vma is None:
                raise KernelError(errno.EFAULT, f"nothing is mapped at {address:#x}")
            policy = self._mempolicy.own_policy(vma, address >> PAGE_SHIFT)
        elif address:
            raise KernelError(errno.EINVAL, "an address goes with MPOL_F_ADDR")
        nodes = 0
        if policy is not None:
            nodes = policy.user_nodes if policy.keeps_nodes else 0 if policy.mode == MPOL_LOCAL else policy.nodes
        if not flags & MPOL_F_NODE:
            return (policy.mode | policy.flags & MPOL_MODE_FLAGS if policy is not None else MPOL_DEFAULT), nodes
        if flags & MPOL_F_ADDR:
            return self._lookup_node(task, mm, address), nodes
        if policy is None or policy.mode != MPOL_INTERLEAVE:
            raise KernelError(errno.EINVAL, "MPOL_F_NODE without an address is for tasks that interleave")
        return self._mempolicy.interleave_next(policy), nodes

    def _lookup_node(self, task: Task, mm: Mm, address: int) -> int:
        """The node of the page at an address, which is faulted in (lookup_node). EFAULT."""
        self._fault_in(task, address >> PAGE_SHIFT)
        slot, _ = self._mmu.leaf(mm.id, address >> PAGE_SHIFT)
        return self._migrate.nid((int(self._mmu.words[slot]) & PFN_MASK) >> PFN_SHIFT)


def _next_pair(left: int, old: int, new: int) -> tuple[int, int] | None:
    """The next node to empty and the one to fill, preferably one that is not emptied itself (do_migrate_pages)."""
    found: tuple[int, int] | None = None
    uneven = old.bit_count() != new.bit_count()
    for nid in nodes_of(left):
        dest = node_remap(nid, old, new)
        if (uneven and new >> nid & 1) or dest == nid:
            continue
        found = nid, dest
        if not left >> dest & 1:
            break
    return found


def _mm_of(task: Task) -> Mm:
    """A process' address space. EINVAL for kernel threads."""
    if task.mm is None:
        raise KernelError(errno.EINVAL, "a kernel thread has no memory of its own")
    return task.mm
