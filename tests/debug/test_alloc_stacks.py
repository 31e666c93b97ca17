"""Who holds memory: the sums are those of the instruments."""

from __future__ import annotations

import pytest

from kmemd import System


def folded(system: System, name: str) -> dict[str, int]:
    lines = system.read(f"/kmemd/perf/folded/{name}").decode().splitlines()
    numbers = [int(line.rpartition(" ")[2]) for line in lines]
    assert numbers == sorted(numbers, reverse=True)
    found = {line.rpartition(" ")[0]: number for line, number in zip(lines, numbers, strict=True)}
    assert len(found) == len(lines)
    return found


def test_pages_are_those_of_page_owner() -> None:
    system = System.boot(cmdline="page_owner=on")
    system.command("p = alloc_pages order=2 n=100 by=fill_probe+0x10[drv]")
    records = system.read("/sys/kernel/debug/page_owner").decode().split("\n\n")[:-1]
    orders = [int(record.split("order ")[1].split(",")[0]) for record in records]
    assert sum(folded(system, "page_owner-count").values()) == len(records)
    assert sum(folded(system, "page_owner-bytes").values()) == sum(4096 << order for order in orders)
    mine = {stack: size for stack, size in folded(system, "page_owner-bytes").items() if ";fill_probe[drv];" in stack}
    assert list(mine.values()) == [100 * 4 * 4096]
    system.command("free_pages p")
    assert not [stack for stack in folded(system, "page_owner-bytes") if "fill_probe" in stack]


def test_objects_are_those_of_kmemleak() -> None:
    system = System.boot(cmdline="kmemleak=on")
    before = sum(folded(system, "kmemleak-count").values())
    system.command("o = kmalloc 100 n=70 by=leaky_init")
    assert sum(folded(system, "kmemleak-count").values()) == before + 70 == system.kernel.kmemleak.table.live
    assert [n for stack, n in folded(system, "kmemleak-bytes").items() if "leaky_init" in stack] == [70 * 128]


def test_tracks_are_those_of_slub() -> None:
    system = System.boot(cmdline="slub_debug=U")
    system.command("o = kmalloc 100 n=70 by=leaky_init")
    assert [n for stack, n in folded(system, "slab-count").items() if "leaky_init" in stack] == [70]


@pytest.mark.parametrize("source", ["page_owner", "slab"])
def test_what_is_off_knows_nothing(source: str) -> None:
    assert folded(System.boot(), f"{source}-bytes") == {}
