"""Pages of files that somebody works with stay where they are, however short memory becomes in the middle of it.

Reclaim of everything happens exactly where an allocation could cause it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kmemd.core.lru import ACTIVATE, DEACTIVATE_FILE
from kmemd.core.pages import PG_ACTIVE, PG_DIRTY, PG_RECLAIM, PG_REFERENCED
from kmemd.mm import gfp as g
from tests.mm.files_fixture import Box

ALL = 1 << 20


@pytest.fixture
def box() -> Iterator[Box]:
    found = Box()
    yield found
    found.system.check()


def reclaims_first(box: Box, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Everything that can be reclaimed is, each time before ``name`` is called; how many pages went each time."""
    original: Callable[..., Any] = getattr(owner, name)
    went: list[int] = []

    def squeezed(*args: Any, **words: Any) -> Any:
        reclaim = box.kernel.vmscan.reclaim
        assert reclaim is not None
        went.append(reclaim.of_cgroup(0, ALL, g.GFP_KERNEL, may_swap=True))
        return original(*args, **words)

    monkeypatch.setattr(owner, name, squeezed)
    return went


@pytest.mark.parametrize("access", ["r", "w"])
def test_the_page_of_a_fault_stays_while_its_page_table_is_made(
    box: Box, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    box.run("create /mnt/a 64K", "create /mnt/b 64K", "read_file /mnt/b", "spawn one")
    pid = box.run("spawn two")["pid"]
    address = box.run(f"mmap {pid} 64K flags=MAP_SHARED file=/mnt/a")["addr"]
    went = reclaims_first(box, monkeypatch, box.kernel.user.memory.tables, "ensure")
    box.run(f"access {pid} {address} 4K {access}")
    assert sum(went) >= 16  # those of the other file
    file = box.kernel.user.vfs.lookup("/mnt/a")
    pfn = box.kernel.user.page_cache.find_get_page(file, 0)
    assert pfn >= 0
    assert box.kernel.pages.mapcount[pfn] == 1
    assert bool(box.kernel.pages.flags[pfn] >> PG_DIRTY & 1) == (access == "w")


def test_pages_that_are_written_stay_while_others_are_allocated(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.run(
        "create /mnt/a 48K", "fadvise /mnt/a RANDOM", "read_file /mnt/a n=24K", "create /mnt/b 64K", "read_file /mnt/b"
    )
    io = box.kernel.user.file_io
    went = reclaims_first(box, monkeypatch, io, "alloc")
    box.run("write_file /mnt/a offset=0 n=48K")
    assert sum(went) >= 16
    assert box.run("fincore /mnt/a")["dirty"] == "12"


def test_the_edge_of_a_write_stays_until_it_is_written(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.run("create /mnt/a 8K", "write_file /mnt/a data=abcdefgh", "fsync /mnt/a", "fadvise /mnt/a DONTNEED")
    went = reclaims_first(box, monkeypatch, box.kernel.user.file_io, "map_blocks")
    box.run("write_file /mnt/a offset=4 data=XY")
    monkeypatch.undo()
    assert went
    assert bytes.fromhex(box.run("read_file /mnt/a n=8")["data"]) == b"abcdXYgh"


def test_what_cannot_be_dropped_is_the_next_to_go(box: Box) -> None:
    box.run("create /mnt/a 64K", "read_file /mnt/a", "read_file /mnt/a", "write_file /mnt/a n=64K")
    user, flags = box.kernel.user, box.kernel.pages.flags
    user.lru.drain_all()
    _, pfns = user.page_cache.find_get_pages(user.vfs.lookup("/mnt/a"))
    assert (flags[pfns] >> PG_ACTIVE & 1).all()
    before = box.vmstat("pgdeactivate", "pgrotated")
    user.files.io.try_invalidate(user.vfs.lookup("/mnt/a"), 0, 16)
    user.lru.drain_all()
    assert not (flags[pfns] >> PG_ACTIVE & 1 | flags[pfns] >> PG_REFERENCED & 1).any()
    assert (flags[pfns] >> PG_RECLAIM & 1).all()  # goes as soon as it has been written
    assert [new - old for new, old in zip(box.vmstat("pgdeactivate", "pgrotated"), before, strict=True)] == [16, 0]
    box.run("fsync /mnt/a")
    user.lru.drain_all()
    assert box.vmstat("pgrotated")[0] - before[1] == 16


def test_a_page_in_a_batch_is_dropped_at_the_second_try(box: Box) -> None:
    box.run("create /mnt/a 16K", "read_file /mnt/a")
    user, context = box.kernel.user, box.kernel.context
    context.cpu = 1
    assert not user.lru.pending(1, ACTIVATE)
    assert box.run("fadvise /mnt/a DONTNEED")["pages"] == "4"
    assert not user.lru.pending(1, DEACTIVATE_FILE)


def test_pages_of_several_files_go_in_the_order_of_their_list(box: Box) -> None:
    box.run("create /mnt/a 32K", "create /mnt/b 32K", "fadvise /mnt/a RANDOM", "fadvise /mnt/b RANDOM")
    user = box.kernel.user
    files = [user.vfs.lookup(f"/mnt/{name}") for name in "ab"]
    box.run(*(f"read_file /mnt/{name} offset={4 * page}K n=4K" for page in range(8) for name in "ab"))
    user.lru.drain_all()
    reclaim = box.kernel.vmscan.reclaim
    assert reclaim is not None
    assert reclaim.of_cgroup(0, ALL, g.GFP_KERNEL, may_swap=True) >= 16
    assert [file.nrpages for file in files] == [0, 0]
    shadows = [-1 - int(file.slots.get(page)) >> 27 for page in range(8) for file in files]
    assert shadows == sorted(set(shadows))  # each is older than the next
