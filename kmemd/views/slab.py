"""/proc/slabinfo and /sys/kernel/slab (mm/slab_common.c ``cache_show``, mm/slub.c ``slab_attrs``).

A cache that can be merged has a directory such as ``:a-0000192`` and a link for each of its names; any other has a
directory of its own name. The captured kernels showed nothing for ``skip_kfence``, which they lack.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kmemd.core.slab_layout import (
    CPU_COLUMNS,
    META,
    NR_OBJECTS,
    NR_PARTIAL,
    NR_SLABS,
    PARTIAL,
    SLAB,
    SLAB_COLUMNS,
    SLABS,
    STAT_NAMES,
)
from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm import slab_flags as sf
from kmemd.mm.slab_common import KmemCache
from kmemd.views.tree import proc, sysfs

if TYPE_CHECKING:
    from kmemd.kernel import Kernel
    from kmemd.mm.slub import Slub
    from kmemd.views.tree import Caller

Show = Callable[["Kernel", KmemCache], str]
Store = Callable[["Kernel", KmemCache, bytes], None]

HEADER = (
    "slabinfo - version: 2.1\n"
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    " : tunables <limit> <batchcount> <sharedfactor>"
    " : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
)
_BASE = "kernel/slab/{directory}"


@proc.file("slabinfo", mode=0o400)
def slabinfo(kernel: Kernel) -> Iterator[str]:
    """Every cache, the newest first: objects in use and in all, size, slabs."""
    slub = kernel.slub
    yield HEADER
    for cache in slub.caches:
        active, objects, slabs = slub.slab_counts(cache)
        yield (
            f"{cache.name:<17} {active:6d} {objects:6d} {cache.size:6d} {cache.objects:4d} {1 << cache.order:4d}"
            " : tunables    0    0    0"
            f" : slabdata {slabs:6d} {slabs:6d}      0\n"
        )


@slabinfo.store
def slabinfo_store(kernel: Kernel, text: str) -> None:
    """SLUB has no tunables here (``slabinfo_write``)."""
    raise KernelError(errno.EIO, "/proc/slabinfo takes no writes")


# Directories


def _has_directory(kernel: Kernel, text: str) -> str | None:
    return text if text in kernel.slub.directories else None


@sysfs.keys(_BASE, has=_has_directory)
def _directories(kernel: Kernel) -> list[str]:
    return list(kernel.slub.directories)


def _has_link(kernel: Kernel, text: str) -> str | None:
    return text if text in kernel.slub.links else None


@sysfs.link("kernel/slab/{alias}")
def _alias(kernel: Kernel, alias: str, caller: Caller) -> str:
    """One of the names of a mergeable cache."""
    return kernel.slub.links[alias].directory


@sysfs.keys("kernel/slab/{alias}", has=_has_link)
def _aliases(kernel: Kernel) -> list[str]:
    return list(kernel.slub.links)


# Numbers per node


def _by_node(slub: Slub, counts: dict[int, int]) -> str:
    """``total N0=… N1=…``, without the nodes that have none; without NUMA the total alone."""
    total = sum(counts.values())
    if not slub.machine.numa:
        return f"{total}\n"
    return f"{total}" + "".join(f" N{nid}={counts[nid]}" for nid in sorted(counts) if counts[nid]) + "\n"


def _counter(column: int) -> Show:
    def show(kernel: Kernel, cache: KmemCache) -> str:
        slub = kernel.slub
        return _by_node(slub, {nid: slub.node_count(cache, nid, column) for nid in slub.slab_nodes})

    return show


def _objects(kernel: Kernel, cache: KmemCache) -> str:
    slub = kernel.slub
    counts = {}
    for nid in slub.slab_nodes:
        inuse, total = slub.core.count_partial(cache.index, nid)
        counts[nid] = slub.node_count(cache, nid, NR_OBJECTS) - (total - inuse)
    return _by_node(slub, counts)


def _objects_partial(kernel: Kernel, cache: KmemCache) -> str:
    slub = kernel.slub
    return _by_node(slub, {nid: slub.core.count_partial(cache.index, nid)[0] for nid in slub.slab_nodes})


def _cpu_slabs(kernel: Kernel, cache: KmemCache) -> str:
    """Slabs of CPUs, and those on their partial lists where a CPU has a slab."""
    slub = kernel.slub
    counts: dict[int, int] = {}
    for slab, partial in _cpu_rows(slub, cache):
        if not slab:
            continue
        counts[_nid(slub, slab)] = counts.get(_nid(slub, slab), 0) + 1
        if partial:
            nid = _nid(slub, partial)
            counts[nid] = counts.get(nid, 0) + _slab_field(slub, partial, SLABS)
    return _by_node(slub, counts)


def _cpu_rows(slub: Slub, cache: KmemCache) -> Iterator[tuple[int, int]]:
    """Each CPU's slab and the first of its partial list."""
    width = slub.core.ncpus * CPU_COLUMNS
    rows = slub.core.arrays["cpu"][cache.index * width : (cache.index + 1) * width].tolist()
    return zip(rows[SLAB::CPU_COLUMNS], rows[PARTIAL::CPU_COLUMNS], strict=True)


def _slab_field(slub: Slub, slab: int, column: int) -> int:
    return int(slub.core.arrays["slab"][slab * SLAB_COLUMNS + column])


def _nid(slub: Slub, slab: int) -> int:
    return _slab_field(slub, slab, META) >> 16


def _slabs_cpu_partial(kernel: Kernel, cache: KmemCache) -> str:
    """Partial slabs of CPUs as ``objects(slabs)``, taken to be half full."""
    slub = kernel.slub
    slabs = [_slab_field(slub, partial, SLABS) if partial else 0 for _, partial in _cpu_rows(slub, cache)]
    text = f"{sum(slabs) * cache.objects // 2}({sum(slabs)})"
    for cpu, count in enumerate(slabs):
        if count:
            text += f" C{cpu}={count * cache.objects // 2}({count})"
    return text + "\n"


# Attributes: name, show, store


def _ctor(kernel: Kernel, cache: KmemCache) -> str:
    return f"{kernel.kallsyms.frame_text(f'{cache.ctor}+0x0')}\n" if cache.ctor else ""


def _flag(flag: int) -> Show:
    return lambda kernel, cache: f"{int(bool(cache.flags & flag))}\n"


def _nothing(kernel: Kernel, cache: KmemCache) -> str:
    return ""


def _store_min_partial(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
    kernel.slub.set_min_partial(cache, kstrtox.kstrtoul(data, 10, kernel.slub.machine.word * 8))


def _store_cpu_partial(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
    kernel.slub.set_cpu_partial(cache, kstrtox.kstrtouint(data))


def _store_defrag_ratio(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
    kernel.slub.set_defrag_ratio(cache, kstrtox.kstrtouint(data))


def _store_shrink(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
    if data[:1] != b"1":
        raise KernelError(errno.EINVAL, "shrink takes 1")
    kernel.slub.kmem_cache_shrink(cache)


def _store_validate(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
    if data[:1] != b"1" or not cache.debugged:
        raise KernelError(errno.EINVAL, "validate takes 1, on a cache booted with slub_debug")
    kernel.slub.validate(cache)


ATTRIBUTES: dict[str, tuple[Show, Store | None]] = {
    "slab_size": (lambda kernel, cache: f"{cache.size}\n", None),
    "object_size": (lambda kernel, cache: f"{cache.object_size}\n", None),
    "objs_per_slab": (lambda kernel, cache: f"{cache.objects}\n", None),
    "order": (lambda kernel, cache: f"{cache.order}\n", None),
    "min_partial": (lambda kernel, cache: f"{cache.min_partial}\n", _store_min_partial),
    "cpu_partial": (lambda kernel, cache: f"{cache.cpu_partial}\n", _store_cpu_partial),
    "objects": (_objects, None),
    "objects_partial": (_objects_partial, None),
    "partial": (_counter(NR_PARTIAL), None),
    "cpu_slabs": (_cpu_slabs, None),
    "ctor": (_ctor, None),
    "aliases": (lambda kernel, cache: f"{cache.aliases}\n", None),
    "align": (lambda kernel, cache: f"{cache.align}\n", None),
    "hwcache_align": (_flag(sf.SLAB_HWCACHE_ALIGN), None),
    "reclaim_account": (_flag(sf.SLAB_RECLAIM_ACCOUNT), None),
    "destroy_by_rcu": (_flag(sf.SLAB_TYPESAFE_BY_RCU), None),
    "shrink": (_nothing, _store_shrink),
    "slabs_cpu_partial": (_slabs_cpu_partial, None),
    "total_objects": (_counter(NR_OBJECTS), None),
    "slabs": (_counter(NR_SLABS), None),
    "sanity_checks": (_flag(sf.SLAB_CONSISTENCY_CHECKS), None),
    "trace": (_flag(sf.SLAB_TRACE), None),
    "red_zone": (_flag(sf.SLAB_RED_ZONE), None),
    "poison": (_flag(sf.SLAB_POISON), None),
    "store_user": (_flag(sf.SLAB_STORE_USER), None),
    "validate": (_nothing, _store_validate),
    "cache_dma": (_flag(sf.SLAB_CACHE_DMA), None),
    "failslab": (_flag(sf.SLAB_FAILSLAB), None),
    "usersize": (lambda kernel, cache: f"{cache.usersize}\n", None),
}


def _declare(name: str, show: Show, store: Store | None, exists: Callable[..., bool] | None = None) -> None:
    """One attribute of every cache. An empty write reaches no store."""

    def showing(kernel: Kernel, directory: str) -> str:
        return show(kernel, kernel.slub.directories[directory])

    declared = sysfs.file(f"{_BASE}/{name}", 0o600 if store else 0o400, exists=exists)(showing)
    if store is not None:

        def storing(kernel: Kernel, directory: str, text: str) -> None:
            if text:
                store(kernel, kernel.slub.directories[directory], kstrtox.to_bytes(text))

        declared.store(storing)


def _statistic(item: int) -> tuple[Show, Store]:
    """A statistic as ``sum C0=… C1=…``; writing 0 clears it."""

    def values(kernel: Kernel, cache: KmemCache) -> slice:
        width = kernel.slub.core.ncpus * len(STAT_NAMES)
        return slice(cache.index * width + item, (cache.index + 1) * width, len(STAT_NAMES))

    def show(kernel: Kernel, cache: KmemCache) -> str:
        counts: list[int] = kernel.slub.core.arrays["stats"][values(kernel, cache)].tolist()
        each = "".join(f" C{cpu}={count}" for cpu, count in enumerate(counts) if count)
        return f"{sum(counts)}{each}\n"

    def store(kernel: Kernel, cache: KmemCache, data: bytes) -> None:
        if data[:1] != b"0":
            raise KernelError(errno.EINVAL, "a statistic takes 0")
        kernel.slub.core.arrays["stats"][values(kernel, cache)] = 0

    return show, store


for _name, (_show, _store) in ATTRIBUTES.items():
    _declare(_name, _show, _store)
for _item, _name in enumerate(STAT_NAMES):
    _declare(_name, *_statistic(_item))
_declare(
    "remote_node_defrag_ratio",
    lambda kernel, cache: f"{cache.defrag_ratio // 10}\n",
    _store_defrag_ratio,
    exists=lambda kernel, directory: kernel.slub.machine.numa,
)
