"""``/sys/kernel/debug/percpu_stats`` (mm/percpu-stats.c): per-CPU memory and the areas in its chunks, in bytes."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.percpu_chunk import MIN_ALLOC, Chunk
from kmemd.views.tree import debugfs

RULE = "-" * 40


def _row(name: str, value: int) -> str:
    return f"  {name:<20}: {value:12}\n"


def _section(title: str, rows: dict[str, int]) -> Iterator[str]:
    yield f"{title}:\n{RULE}\n"
    for name, value in rows.items():
        yield _row(name, value)
    yield "\n"


def _chunk(chunk: Chunk) -> Iterator[str]:
    """One chunk; what is behind its last area is not fragmented (``chunk_map_stats``)."""
    sizes = chunk.sizes()
    holes = [-size for size in sizes if size < 0]
    rows = {
        "nr_alloc": len(chunk.areas),
        "max_alloc_size": chunk.max_alloc_size,
        "empty_pop_pages": len(chunk.empty_populated()),
        "first_bit": chunk.first_free // MIN_ALLOC,
        "free_bytes": chunk.free_bytes,
        "contig_bytes": chunk.contig_bytes,
        "sum_frag": sum(holes),
        "max_frag": max(holes, default=0),
        "cur_min_alloc": sizes[len(holes)] if sizes else 0,
        "cur_med_alloc": sizes[(len(holes) + len(sizes) - 1) // 2] if sizes else 0,
        "cur_max_alloc": sizes[-1] if sizes else 0,
    }
    for name, value in rows.items():
        yield _row(name, value)
    yield "\n"


@debugfs.file("percpu_stats")
def percpu_stats(kernel: Kernel) -> Iterator[str]:
    """How units are laid out, what was ever allocated, and each chunk."""
    percpu = kernel.percpu
    units = percpu.units
    yield "Percpu Memory Statistics\n"
    yield from _section(
        "Allocation Info",
        {
            "unit_size": units.size,
            "static_size": percpu.static_size,
            "reserved_size": percpu.reserved_size,
            "dyn_size": percpu.dyn_size,
            "atom_size": units.atom,
            "alloc_size": units.alloc,
        },
    )
    yield from _section(
        "Global Stats",
        {
            "nr_alloc": percpu.nr_alloc,
            "nr_dealloc": percpu.nr_dealloc,
            "nr_cur_alloc": percpu.nr_alloc - percpu.nr_dealloc,
            "nr_max_alloc": percpu.nr_max_alloc,
            "nr_chunks": percpu.nr_chunks,
            "nr_max_chunks": percpu.nr_max_chunks,
            "min_alloc_size": percpu.min_alloc_size,
            "max_alloc_size": percpu.max_alloc_size,
            "empty_pop_pages": percpu.empty_populated,
        },
    )
    yield f"Per Chunk Stats:\n{RULE}\n"
    if percpu.reserved is not None:
        yield "Chunk: <- Reserved Chunk\n"
        yield from _chunk(percpu.reserved)
    for chunk in percpu.chunks():
        yield "Chunk: <- First Chunk\n" if chunk is percpu.first else "Chunk:\n"
        yield from _chunk(chunk)
