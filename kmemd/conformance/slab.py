"""Compares the folder ``slab`` of a capture tree: cache geometry, kmalloc sizes, attributes of caches.

``geometry-Ncpu.txt`` and ``kmalloc_sizes.txt`` are exact; of ``attributes`` the numbers that follow from a cache's
definition are compared, of the others the form. A 32-bit machine shows in offsets that are odd multiples of four.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import ALIASES
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.units import GIB
from kmemd.views.tree import Caller, Namespace

FIXED = frozenset(
    [
        "align",
        "aliases",
        "cache_dma",
        "cpu_partial",
        "destroy_by_rcu",
        "failslab",
        "hwcache_align",
        "min_partial",
        "object_size",
        "objs_per_slab",
        "order",
        "poison",
        "reclaim_account",
        "red_zone",
        "remote_node_defrag_ratio",
        "sanity_checks",
        "slab_size",
        "store_user",
        "trace",
        "usersize",
    ]
)
"""Attributes that follow from the cache's definition."""
FORM = re.compile(r"(\d+( [NC]\d+=\d+)*|\d+\(\d+\)( C\d+=\d+\(\d+\))*|\w+\+0x0/0x[0-9a-f]+)?\n?")
_GEOMETRY = re.compile(r"geometry-(\d+)cpu.*\.txt")


def run(folder: Path) -> Iterator[Case]:
    """Every comparison that the folder allows."""
    for path in sorted(folder.glob("geometry-*cpu*.txt")):
        yield from guarded(path.name, geometry(path))
    sizes = folder / "kmalloc_sizes.txt"
    if sizes.exists():
        yield from guarded(sizes.name, kmalloc_sizes(sizes))
    if (folder / "attributes").is_dir():
        yield from guarded("attributes", attributes(folder / "attributes"))


def _boot(cpus: int, arch: str = "x86_64") -> Kernel:
    """A machine of 1 GiB with so many CPUs."""
    return Kernel.boot(Machine.of_memory("capture", arch, cpus, (GIB,), (tuple(range(cpus)),), ((10,),)))


def _words(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def geometry(path: Path) -> Iterator[Case]:
    """``kmem_cache_create`` on N CPUs: the lines ``kc kmo_I_SIZE_ALIGN_FLAGS key=value…``."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("kc ")]
    match = _GEOMETRY.fullmatch(path.name)
    assert match is not None, path.name
    narrow = any(int(_words(line).get("offset", "0")) % 8 for line in lines)
    slub = _boot(int(match.group(1)), "i386" if narrow else "x86_64").slub
    for line in lines:
        name = line.split()[1]
        *_, size, align, flags = name.split("_")
        try:
            cache = slub.kmem_cache_create(name, int(size), int(align), int(flags, 0))
        except KernelError as error:
            yield Case(f"{path.name} {name}", False, str(error))
            continue
        want, got = _words(line), _shown(cache)
        differ = [f"{key}={want[key]} is {got.get(key)}" for key in want if want[key] != got.get(key)]
        yield Case(f"{path.name} {name}", not differ, ", ".join(differ))
        slub.kmem_cache_destroy(cache)


def _shown(cache: KmemCache) -> dict[str, str]:
    """A cache as the captured lines show it."""
    made = cache.geometry
    numbers = {
        "object_size": cache.object_size,
        "size": cache.size,
        "align": cache.align,
        "order": made.order,
        "objs": made.objects,
        "min_order": made.min_order,
        "min_objs": made.min_objects,
        "min_partial": cache.min_partial,
        "cpu_partial": cache.cpu_partial,
        "inuse": cache.inuse,
        "offset": made.offset,
    }
    return {key: str(value) for key, value in numbers.items()} | {"flags": f"{cache.flags:x}"}


def kmalloc_sizes(path: Path) -> Iterator[Case]:
    """For each request at which ``ksize`` changes: ksize and cache; they hold until the next one."""
    slub = _boot(1).slub
    gfp, title, previous = 0, "", ""
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            title, previous = line[1:].strip(), ""
            gfp = _mask(title)
            continue
        request = int(line.split()[1])
        shown = " ".join(line.split()[2:])
        for size, want in ((request - 1, previous), (request, shown)):
            if not want:
                continue
            address = slub.kmalloc(size, gfp)
            cache = slub.cache_of(address)
            got = f"ksize={slub.ksize(address)} cache={cache.name if cache else '(large)'}"
            slub.kfree(address)
            yield Case(f"kmalloc({size}, {title})", got == want, "" if got == want else f"{want} is {got}")
        previous = shown


def _mask(title: str) -> int:
    """``KERNEL|RECLAIMABLE`` as a GFP mask."""
    gfp = 0
    for word in title.split("|"):
        gfp |= ALIASES.get(f"GFP_{word}") or ALIASES[f"__GFP_{word}"]
    return gfp


def attributes(folder: Path) -> Iterator[Case]:
    """The files of some caches under /sys/kernel/slab: the same names, the same form, the same definition."""
    kernel = _boot(2)
    tree = Namespace(kernel)
    for cache in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            node = tree.lookup(f"/sys/kernel/slab/{cache.name}")
        except KernelError:
            yield Case(f"attributes/{cache.name}", False, "no such cache", "format", absent=True)
            continue
        mine = {child.path.rsplit("/", 1)[1]: child for child in tree.children(node)}
        names = {path.name for path in cache.iterdir()}
        yield Case(f"attributes/{cache.name}", names == set(mine), f"differ: {sorted(names ^ set(mine))}", "format")
        for path in sorted(cache.iterdir()):
            if path.name not in mine:
                continue
            got = (tree.open(mine[path.name], Caller()).read(0, 4096) or b"").decode()
            yield _attribute(f"attributes/{cache.name}/{path.name}", path.name, path.read_text(), got)


def _attribute(case: str, name: str, want: str, got: str) -> Case:
    same = want.strip() == got.strip() if name in FIXED else bool(FORM.fullmatch(want) and FORM.fullmatch(got))
    same = same and bool(want.strip()) == bool(got.strip())
    return Case(case, same, "" if same else f"{want.strip()!r} is {got.strip()!r}", "format")
