"""Where free blocks of given orders and migratetypes can lie, so that the buddy system would keep them apart.

A captured machine tells how many free blocks of each order and type a zone has, not where they are. This
finds places: aligned, inside memory, no two buddies of one order both free (they would have merged), blocks smaller
than a page block inside page blocks of their own type where the captured counts allow it. There is no Linux
counterpart.

It works like a buddy allocator over the available pages that never hands out both halves of a block: what is split
off next to a block of the same order is *guarded*, which means that one of its pages stays allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kmemd.core.mmzone import MAX_ORDER, MIGRATE_MOVABLE

TOP_ORDER = MAX_ORDER - 1
Range = tuple[int, int]


@dataclass
class Placement:
    """The result: ``blocks`` are (order, migratetype, PFN), ``runs`` are (migratetype, low, high) of
    highest-order blocks, ``types`` the migratetype of page blocks by number, ``rest`` what is left over,
    ``missing`` how many blocks of each (order, migratetype) found no place.
    """

    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    types: dict[int, int] = field(default_factory=dict)
    rest: list[Range] = field(default_factory=list)
    missing: dict[tuple[int, int], int] = field(default_factory=dict)


class _Pool:
    """Available nodes by order, plain ones and guarded ones, each used from the lowest PFN."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.plain: list[list[int]] = [[] for _ in range(top + 1)]
        self.guarded: list[list[int]] = [[] for _ in range(top + 1)]

    def add(self, order: int, pfn: int, guarded: bool = False) -> None:
        """Make a node available."""
        (self.guarded if guarded else self.plain)[order].append(pfn)

    def take(self, order: int) -> int:
        """A place for a block of ``order``, from the smallest node that will do; -1 when there is none."""
        if self.plain[order]:
            return self.plain[order].pop()
        for larger in range(order + 1, self.top + 1):
            nodes = self.guarded[larger] or self.plain[larger]
            if nodes:
                return self._split(nodes.pop(), larger, order)
        return -1

    def _split(self, pfn: int, larger: int, order: int) -> int:
        while larger > order:
            larger -= 1
            self.add(larger, pfn + (1 << larger), guarded=larger == order)
        return pfn

    def nodes(self) -> Iterable[tuple[int, int, bool]]:
        """All available nodes: order, PFN, guarded."""
        for order in range(self.top + 1):
            yield from ((order, pfn, False) for pfn in self.plain[order])
            yield from ((order, pfn, True) for pfn in self.guarded[order])


def split_aligned(low: int, high: int, top: int = TOP_ORDER) -> Iterable[tuple[int, int]]:
    """The largest aligned blocks that ``[low, high)`` consists of: (order, PFN), ascending."""
    while low < high:
        order = min(top, (low & -low).bit_length() - 1 if low else top, (high - low).bit_length() - 1)
        yield order, low
        low += 1 << order


def place_free_blocks(
    available: Sequence[Range],
    free: Sequence[Sequence[int]],
    type_counts: Sequence[int],
    pageblock_order: int,
    counted: Sequence[int],
    fixed: Mapping[int, int],
) -> Placement:
    """Find places for ``free[migratetype][order]`` blocks in the ``available`` PFN ranges (ascending).

    ``type_counts`` is the wanted number of page blocks per migratetype among the ``counted`` ones;
    ``fixed`` gives the types of blocks that another zone shares and has settled.
    """
    placement = Placement(types=dict(fixed))
    pool = _Pool(TOP_ORDER)
    chunks: list[Range] = []
    for low, high in available:
        first, last = -(-low >> TOP_ORDER) << TOP_ORDER, high >> TOP_ORDER << TOP_ORDER
        if first < last:
            chunks.append((first, last))
            high_part, low = (last, high), min(low, first)
            parts = [(low, first), high_part]
        else:
            parts = [(low, high)]
        for part in parts:
            for order, pfn in split_aligned(*part):
                pool.add(order, pfn)
    _place_chunks(placement, chunks, free, pageblock_order)
    for low, high in chunks:
        for pfn in reversed(range(low, high, 1 << TOP_ORDER)):
            pool.add(TOP_ORDER, pfn)
    for order in range(TOP_ORDER - 1, pageblock_order - 1, -1):
        _place_large(placement, pool, free, order, pageblock_order)
    _place_small(placement, pool, free, type_counts, pageblock_order, counted)
    placement.rest = _subtract(available, placement)
    return placement


def _place_chunks(
    placement: Placement, chunks: list[Range], free: Sequence[Sequence[int]], pageblock_order: int
) -> None:
    """Blocks of the highest order, as runs: Movable from the end of memory, the others from its start."""
    for migratetype, counts in enumerate(free):
        wanted = counts[TOP_ORDER]
        while wanted and chunks:
            at = -1 if migratetype == MIGRATE_MOVABLE else 0
            low, high = chunks[at]
            taken = min(wanted, (high - low) >> TOP_ORDER)
            wanted -= taken
            size = taken << TOP_ORDER
            run = (high - size, high) if migratetype == MIGRATE_MOVABLE else (low, low + size)
            rest = (low, high - size) if migratetype == MIGRATE_MOVABLE else (low + size, high)
            if rest[0] < rest[1]:
                chunks[at] = rest
            else:
                del chunks[at]
            placement.runs.append((migratetype, *run))
            for block in range(run[0] >> pageblock_order, -(-run[1] >> pageblock_order)):
                placement.types[block] = migratetype
        if wanted:
            placement.missing[TOP_ORDER, migratetype] = wanted


def _place_large(
    placement: Placement, pool: _Pool, free: Sequence[Sequence[int]], order: int, pageblock_order: int
) -> None:
    """Blocks of one page block or more, below the highest order."""
    for migratetype, counts in enumerate(free):
        for done in range(counts[order]):
            pfn = pool.take(order)
            if pfn < 0:
                placement.missing[order, migratetype] = counts[order] - done
                break
            placement.blocks.append((order, migratetype, pfn))
            for block in range(pfn >> pageblock_order, (pfn + (1 << order)) >> pageblock_order):
                placement.types[block] = migratetype


def _place_small(
    placement: Placement,
    pool: _Pool,
    free: Sequence[Sequence[int]],
    type_counts: Sequence[int],
    pageblock_order: int,
    counted: Sequence[int],
) -> None:
    """Blocks smaller than a page block, in page blocks of their type; elsewhere when those are full."""
    room: dict[int, list[tuple[int, int, bool]]] = {}
    for order, pfn, guarded in pool.nodes():
        top = min(order, pageblock_order)
        for start in range(pfn, pfn + (1 << order), 1 << top):
            is_guarded = guarded and start + (1 << top) == pfn + (1 << order)
            room.setdefault(start >> pageblock_order, []).append((top, start, is_guarded))
    _choose_types(placement, room, counted, free, type_counts, pageblock_order)
    pools = [_Pool(pageblock_order) for _ in free]
    for block in sorted(room, reverse=True):
        target = pools[placement.types[block]] if block in placement.types else pools[MIGRATE_MOVABLE]
        for order, pfn, guarded in sorted(room[block], key=lambda node: -node[1]):
            target.add(order, pfn, guarded)
    for order in range(pageblock_order - 1, -1, -1):
        for migratetype, counts in enumerate(free):
            order_of_pools = [pools[migratetype], *(p for i, p in enumerate(pools) if i != migratetype)]
            for done in range(counts[order]):
                pfn = next((pfn for p in order_of_pools if (pfn := p.take(order)) >= 0), -1)
                if pfn < 0:
                    placement.missing[order, migratetype] = counts[order] - done
                    break
                placement.blocks.append((order, migratetype, pfn))


def _choose_types(
    placement: Placement,
    room: dict[int, list[tuple[int, int, bool]]],
    counted: Sequence[int],
    free: Sequence[Sequence[int]],
    type_counts: Sequence[int],
    pageblock_order: int,
) -> None:
    """Types for the page blocks that no large free block took: most room for the type that needs most per block."""
    quota = list(type_counts)
    for block in counted:
        if block in placement.types:
            quota[placement.types[block]] -= 1
    small = [sum(count << order for order, count in enumerate(c[:pageblock_order])) for c in free]
    space = {block: sum(1 << order for order, _, _ in nodes) for block, nodes in room.items()}
    untyped = [block for block in counted if block not in placement.types]
    untyped.sort(key=lambda block: (-space.get(block, 0), block))
    wanting = sorted(
        (mt for mt in range(len(quota)) if quota[mt] > 0),
        key=lambda mt: (-small[mt] / quota[mt], mt),
    )
    for migratetype in wanting:
        taken, untyped = untyped[: quota[migratetype]], untyped[quota[migratetype] :]
        placement.types.update(dict.fromkeys(taken, migratetype))
    placement.types.update(dict.fromkeys(untyped, MIGRATE_MOVABLE))


def _subtract(available: Sequence[Range], placement: Placement) -> list[Range]:
    """The available pages that hold no free block, as ascending ranges."""
    taken = [(pfn, pfn + (1 << order)) for order, _, pfn in placement.blocks]
    taken += [(low, high) for _, low, high in placement.runs]
    taken.sort()
    rest, at = [], 0
    for low, high in available:
        while at < len(taken) and taken[at][0] < high:
            start, end = taken[at]
            if start > low:
                rest.append((low, start))
            low = max(low, end)
            if end > high:
                break
            at += 1
        if low < high:
            rest.append((low, high))
    return rest
