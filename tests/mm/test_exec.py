"""What starting a program touches, against what the captured one had when it had started."""

from __future__ import annotations

import re

import pytest

from kmemd.core.pages import PG_LRU
from kmemd.machine import Machine
from kmemd.mm.units import GIB
from kmemd.system import System

NOT_ANON = 13
"""Faults of starting up that bring no page of the program's own: of its file, and of the vdso."""


def started(seed: int, image: str = "uo") -> tuple[System, int]:
    machine = Machine.of_memory("exec", "x86_64", 2, (GIB,), ((0, 1),), ((10,),))
    system = System.boot(machine=machine, seed=seed)
    found = re.search(r"pid=(\d+)", system.command(f"p = spawn uo image={image}"))
    assert found is not None
    return system, int(found[1])


def rollup(system: System, pid: int) -> dict[str, int]:
    text = system.read(f"/proc/{pid}/smaps_rollup").decode()
    return {name: int(figure) // 4 for name, figure in re.findall(r"(\w+): +(\d+) kB", text)}


@pytest.mark.parametrize(("image", "shared"), [("uo", 158), ("uo2", 159)])
@pytest.mark.parametrize("seed", range(4))
def test_a_started_program_has_the_captured_pages(seed: int, image: str, shared: int) -> None:
    system, pid = started(seed, image)
    mm = system.kernel.tasks.find(pid).mm
    assert mm is not None
    pages = rollup(system, pid)
    assert pages["Anonymous"] in (13, 14)
    assert pages["Rss"] == pages["Anonymous"] + shared + 1
    assert system.kernel.mmu.faults_of[mm.id] == pages["Anonymous"] + NOT_ANON


def test_chance_decides_how_far_down_the_stack_begins() -> None:
    found = {rollup(*started(seed))["Anonymous"] for seed in range(4)}
    assert found == {13, 14}


@pytest.mark.parametrize("seed", range(3))
def test_the_lru_batch_begins_behind_the_page_of_the_arguments(seed: int) -> None:
    system, pid = started(seed)
    own = rollup(system, pid)["Anonymous"] - 1
    system.command("m = mmap p 64K")
    system.command("access p m 64K w")
    task, kernel = system.kernel.tasks.find(pid), system.kernel
    found = re.search(r"addr=(\S+)", system.command("madvise p m 64K MADV_NORMAL"))
    assert found is not None
    pfns = [kernel.memory.page_at(task, int(found[1], 16) + (page << 12)) for page in range(16)]
    listed = [bool(kernel.pages.flags[pfn] >> PG_LRU & 1) for pfn in pfns]
    assert listed == [True] * (15 - own) + [False] * (1 + own)
