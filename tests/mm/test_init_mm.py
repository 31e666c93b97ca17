"""The kernel's mappings: one list is kept, and made anew when what it shows has changed."""

from __future__ import annotations

import pytest

from kmemd import System
from kmemd.core.pte import NX, RW
from kmemd.mm.init_mm import InitMm, Leaf
from kmemd.mm.units import PAGE_SIZE


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many leaves each list had that was made."""
    sizes: list[int] = []
    original = InitMm._made

    def count(self: InitMm, windows: object) -> list[Leaf]:
        leaves = original(self, windows)  # type: ignore[arg-type]
        sizes.append(len(leaves))
        return leaves

    monkeypatch.setattr(InitMm, "_made", count)
    return sizes


def boot(machine: str = "default") -> System:
    return System.boot(machine=machine, seed=1, cmdline="nokaslr")


def test_looking_makes_no_list(made: list[int]) -> None:
    system = boot()
    system.command("a = vmalloc 1M")
    system.command("READ_ONCE a")
    made.clear()
    system.command("o = kmalloc 64 n=50000")
    system.command("WRITE_ONCE o 0")
    system.command("memset a 0 1M")
    system.read("/sys/kernel/debug/page_tables/kernel")
    assert len(made) <= 2, "the slab pages took none, the areas are the same"
    system.check()


def test_a_change_of_many_pages_makes_one_list(made: list[int]) -> None:
    system = boot()
    system.command("a = vmalloc 4M")
    made.clear()
    system.command("set_memory_ro a 1024")
    system.command("READ_ONCE a")
    assert len(made) == 2
    mm, start = system.kernel.init_mm, system.kernel.handles["a"].address
    assert not any(mm.lookup(start + page * PAGE_SIZE).flags & RW for page in range(1024))  # type: ignore[union-attr]
    system.check()


@pytest.mark.parametrize("machine", ["default", "highmem"])
def test_the_list_is_of_this_moment(machine: str) -> None:
    system = boot(machine)
    mm = system.kernel.init_mm
    system.command("a = vmalloc 8K")
    start = system.kernel.handles["a"].address
    assert mm.lookup(start) is not None
    system.command("vfree a")
    assert mm.lookup(start) is None
    if machine == "highmem":
        system.command("p = alloc_pages gfp=GFP_HIGHUSER")
        system.command("m = kmap p")
        window = system.kernel.handles["m"].address
        assert mm.lookup(window) is not None


def test_within_cuts_leaves_and_keeps_where_they_lead() -> None:
    system = boot()
    mm, base = system.kernel.init_mm, system.kernel.layout.page_offset
    (leaf,) = mm.mappings.within(base + (64 << 20) + PAGE_SIZE, base + (64 << 20) + 3 * PAGE_SIZE)
    assert (leaf.start - base, leaf.end - leaf.start, leaf.phys) == (leaf.phys, 2 * PAGE_SIZE, (64 << 20) + PAGE_SIZE)
    assert list(mm.mappings.within(0x1000, 0x2000)) == []


def test_what_is_around_a_changed_page_leads_where_it_led() -> None:
    system = boot()
    mm, base = system.kernel.init_mm, system.kernel.layout.page_offset
    page = (64 << 20) + 5 * PAGE_SIZE
    system.command(f"set_memory_ro {base + page:#x} 1")
    for offset, size in ((-PAGE_SIZE, PAGE_SIZE), (0, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE), (2 << 20, 2 << 20)):
        leaf = mm.lookup(base + page + offset)
        assert leaf is not None
        assert leaf.size == size
        assert leaf.phys + base == leaf.start
        assert bool(leaf.flags & RW) == (offset != 0)
        assert leaf.flags & NX
    system.check()
