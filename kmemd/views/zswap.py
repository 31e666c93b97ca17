"""debugfs ``zswap``, ``frontswap`` and ``zsmalloc`` (mm/zswap.c, mm/frontswap.c, ``zs_stats_size_show``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kmemd.kernel import Kernel
from kmemd.mm.units import PAGE_SIZE
from kmemd.mm.zsmalloc import Zsmalloc
from kmemd.mm.zswap import Zswap
from kmemd.views.tree import debugfs

COUNTED = (
    *("pool_limit_hit", "reject_reclaim_fail", "reject_alloc_fail", "reject_kmemcache_fail"),
    *("reject_compress_poor", "written_back_pages", "duplicate_entry"),
)
FRONTSWAP = ("loads", "succ_stores", "failed_stores", "invalidates")
COLUMNS = (5, 5, 11, 12, 13, 10, 10, 16, 8)
TITLES = ("class", "size", "almost_full", "almost_empty", "obj_allocated", "obj_used", "pages_used", "pages_per_zspage",
          "freeable")  # fmt: skip


def _zswap(kernel: Kernel) -> Zswap:
    return kernel.user.swap_storage.zswap


def _counter(name: str) -> Callable[[Kernel], str]:
    """One counter of zswap or frontswap."""

    def show(kernel: Kernel) -> str:
        return f"{getattr(_zswap(kernel).counters, name)}\n"

    return show


for _name in COUNTED:
    debugfs.file(f"zswap/{_name}")(_counter(_name))
for _name in FRONTSWAP:
    debugfs.file(f"frontswap/{_name}")(_counter(_name))


@debugfs.file("zswap/pool_total_size")
def pool_total_size(kernel: Kernel) -> str:
    """Bytes of memory that all pools take."""
    return f"{_zswap(kernel).pool_pages * PAGE_SIZE}\n"


@debugfs.file("zswap/stored_pages")
def stored_pages(kernel: Kernel) -> str:
    """Pages that are stored."""
    return f"{_zswap(kernel).stored_pages}\n"


@debugfs.file("zswap/same_filled_pages")
def same_filled_pages(kernel: Kernel) -> str:
    """Those of them that repeat one word."""
    return f"{_zswap(kernel).same_filled}\n"


# -- zsmalloc ------------------------------------------------------------------------------------------------


@debugfs.keys("zsmalloc/{pool}")
def zsmalloc_pools(kernel: Kernel) -> list[str]:
    """A directory for each pool."""
    return [pool.name for pool in kernel.user.swap_storage.pools()]


def _pool(kernel: Kernel, name: str) -> Zsmalloc:
    return next(pool for pool in kernel.user.swap_storage.pools() if pool.name == name)


@debugfs.file("zsmalloc/{pool}/classes")
def classes(kernel: Kernel, pool: str) -> Iterator[str]:
    """How full the zspages of each size class are, and what all of them hold."""
    yield _row(TITLES)
    totals = [0] * len(COLUMNS)
    for row in _pool(kernel, pool).rows():
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        yield _row(row)
    yield "\n" + _row(("Total", "", *totals[2:7], "", totals[8]))


def _row(values: tuple[object, ...]) -> str:
    return "".join(f" {value!s:>{width}}" for value, width in zip(values, COLUMNS, strict=True)) + "\n"
