"""The slab objects that mappings take and give back."""

from __future__ import annotations

import errno

import pytest

from kmemd import KernelError, System
from kmemd.mm.vma_slab import CACHES


@pytest.fixture(params=["default", "highmem"])
def system(request: pytest.FixtureRequest) -> System:
    return System.boot(request.param, seed=1)


def objects(system: System) -> tuple[int, int, int]:
    """Objects in use: vm_area_struct, anon_vma, anon_vma_chain, CPU slabs flushed."""
    counts = []
    for name in CACHES:
        cache = system.kernel.slub.cache(name)
        system.kernel.slub.flush_all(cache)
        counts.append(system.kernel.slub.slab_counts(cache)[0])
    return counts[0], counts[1], counts[2]


def change(system: System, *lines: str) -> tuple[int, ...]:
    """How the counts change by commands."""
    before = objects(system)
    for line in lines:
        system.command(line)
    return tuple(after - was for after, was in zip(objects(system), before, strict=True))


def test_a_mapping_has_an_object_and_its_first_page_an_anon_vma(system: System) -> None:
    system.command("p = spawn p")
    assert change(system, "m = mmap p 1M prot=rw") == (1, 0, 0)
    assert change(system, "access p m 4K w") == (0, 1, 1)
    assert change(system, "mprotect p m+64K 64K r") == (2, 0, 2)
    assert change(system, "mprotect p m+64K 64K rw") == (-2, 0, -2)
    assert change(system, "munmap p m 1M") == (-1, -1, -1)


def test_a_child_has_a_link_to_each_ancestor(system: System) -> None:
    start = objects(system)
    system.command("p = spawn p")
    own = system.kernel.tasks.find(system.kernel.handles["p"].pid).mm
    assert own is not None
    anon = sum(vma.anon_vma is not None for vma in own.vmas)
    assert change(system, "q = fork p") == (len(own.vmas), anon, 2 * anon)
    assert change(system, "r = fork q") == (len(own.vmas), anon, 3 * anon)
    assert change(system, "exit q") == (-len(own.vmas), 0, -2 * anon)
    system.check()
    for name in "rp":
        system.command(f"exit {name}")
    assert objects(system) == start
    system.check()


def test_no_object_is_enomem_and_changes_nothing(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.command("p = spawn p")
    system.command("m = mmap p 64K")
    path = f"/proc/{system.kernel.handles['p'].pid}/maps"
    maps = system.read(path)

    def refuse(*words: object) -> None:
        raise KernelError(errno.ENOMEM, "no slab")

    monkeypatch.setattr(system.kernel.slub, "kmem_cache_alloc_bulk", refuse)
    for line in ("mmap p 4K prot=r", "mprotect p m+4K 4K r", "munmap p m+4K 4K", "fork p"):
        with pytest.raises(KernelError) as caught:
            system.command(line)
        assert caught.value.errno == errno.ENOMEM
    monkeypatch.undo()
    assert system.read(path) == maps
    system.kernel.mms.check()
