"""The process folder of the captures: every scenario, and that a difference is a failure."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kmemd import views
from kmemd.conformance import process, uo
from kmemd.conformance.process_calls import evaluate
from kmemd.conformance.uo import Block, blocks, machine_of, normal
from kmemd.mm import mman

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "process"
SCENARIOS = sorted(
    path.relative_to(CAPTURES) for path in CAPTURES.glob("*/*") if process.parse(path.name)[0] is not None
)
SMALL, NODES = "x86_64-1G-2cpu", "x86_64-2node-4G-4cpu"


def cases_of(place: Path, texts: dict[str, str]):
    scenario, words = process.parse(place.name)
    assert scenario is not None
    return list(process.run_scenario(place.parent.name, place.name, words, scenario, texts))


def texts_of(machine: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in (CAPTURES / machine).iterdir()}


@pytest.mark.parametrize("place", SCENARIOS, ids=str)
def test_a_scenario_agrees(place: Path) -> None:
    assert views.__all__
    cases = cases_of(place, texts_of(place.parent.name))
    assert [case for case in cases if not case.passed] == []
    assert cases


def test_all_captures_are_compared() -> None:
    names = {place.name for place in SCENARIOS}
    assert len(SCENARIOS) == 34
    assert {"uo_maxmap", "uo_swaptouch", "dirty_thresholds", "dirty.zoneinfo", "hugetlb.sys"} <= names
    compared = {name.split(".vmstat")[0] for name in names}
    rest = {path.name for path in CAPTURES.glob("*/*") if path.name.split(".vmstat")[0] not in compared}
    assert rest == {"swaps", "swaps2", "hugetlb.buddyinfo"}


@pytest.mark.parametrize(
    ("machine", "name", "before", "after"),
    [
        (NODES, "uo_anon_16", "Rss:                4096 kB", "Rss:                4100 kB"),
        (NODES, "uo_anon_16", "VmFlags: rd wr mr mw me ac nh", "VmFlags: rd wr mr mw me ac"),
        (NODES, "uo_fork_16", "Pss:                8192 kB", "Pss:                8188 kB"),
        (NODES, "uo_pagemap", "flags 0000000400005808", "flags 0000000400005828"),
        (NODES, "uo_thp_16", "thp_split_pmd 1", "thp_split_pmd 2"),
        (NODES, "uo_thp_16", "Pss_Anon:          16448 kB", "Pss_Anon:          16460 kB"),
        (NODES, "uo_mlock_8", "Mlocked:            8100 kB", "Mlocked:            8096 kB"),
        (NODES, "uo_prot", " r-xp 00000000 00:00", " r--p 00000000 00:00"),
        (NODES, "uo_badadj", "= 3 errno 0", "= 4 errno 0"),
        (NODES, "uo_mapfile", " /mnt/f", " /mnt/g"),
        (NODES, "uo_numa_8_3_3", "N0=1024 N1=1024", "N0=1025 N1=1023"),
        (NODES, "uo_overcommit", "Committed_AS:     331656 kB", "Committed_AS:     331652 kB"),
        (NODES, "uo_swaptouch", "RssAnon:\t   65416 kB", "RssAnon:\t   65420 kB"),
        (SMALL, "uo_errs", "munmap(p, 0) = -1 errno 22", "munmap(p, 0) = -1 errno 12"),
        (SMALL, "uo_hugetlb_6_of_4_surplus3", "HugePages_Surp:        2", "HugePages_Surp:        3"),
        (SMALL, "uo_khuge_16", "thp_collapse_alloc 8", "thp_collapse_alloc 7"),
        (SMALL, "uo_lazyfree_16", "LazyFree:           8160 kB", "LazyFree:           8192 kB"),
        (SMALL, "uo_mremap_8", "Size:               4096 kB", "Size:               4092 kB"),
        (SMALL, "uo_segv", "code 128", "code 1"),
        (SMALL, "uo_shared_8", "RssShmem:\t    8708 kB", "RssShmem:\t    8712 kB"),
        (SMALL, "dirty.zoneinfo", "min      11092", "min      11093"),
        (SMALL, "hugetlb.sys", "surplus_hugepages 0", "surplus_hugepages 1"),
    ],
)
def test_a_difference_is_a_failure(
    machine: str, name: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uo, "SEEDS", 2)
    texts = texts_of(machine)
    assert before in texts[name]
    texts[name] = texts[name].replace(before, after, 1)
    assert any(not case.passed for case in cases_of(Path(machine, name), texts))


def test_counters_beside_a_scenario_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uo, "SEEDS", 1)
    texts = texts_of(NODES)
    old = re.search(r"numa_other (\d+)", texts["uo_anon_16.vmstat1"])
    assert old is not None
    texts["uo_anon_16.vmstat1"] = texts["uo_anon_16.vmstat1"].replace(old[0], f"numa_other {int(old[1]) + 1}")
    failed = [case.name for case in cases_of(Path(NODES, "uo_anon_16"), texts) if not case.passed]
    assert failed == ["uo_anon_16.vmstat numa_other"]


def test_other_parameters_are_taken_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uo, "SEEDS", 1)
    text = texts_of(NODES)["uo_anon_16"].replace("-7fe747b01000", "-7fe748b01000")
    doubled = re.sub(r"(?m)^((?!.*PageSize)\w+: *)(\d+) kB", lambda m: twice(m[1], m[2]), text)
    for machine in ("x86_64-3G-3cpu", NODES, "x86_64-512M"):
        cases = cases_of(Path(machine, "uo_anon_32"), {"uo_anon_32": doubled})
        assert [case for case in cases if not case.passed] == []
        assert any(not case.passed for case in cases_of(Path(machine, "uo_anon_32"), {"uo_anon_32": text}))


def twice(label: str, figure: str) -> str:
    """A line of smaps with twice as much."""
    return f"{label.rstrip():<16}{2 * int(figure):8d} kB"


def test_what_is_not_known_fails(tmp_path: Path) -> None:
    machine = tmp_path / SMALL
    machine.mkdir()
    (machine / "uo_newest_3").write_text("-- new\n")
    shutil.copy(CAPTURES / SMALL / "uo_mremap_8", machine / "uo_mremap")
    cases = list(process.run(tmp_path))
    assert [case.passed for case in cases if case.name.startswith("uo_newest")] == [False]
    assert any(not case.passed for case in cases if case.name.startswith("uo_mremap"))


def test_c_expressions() -> None:
    assert evaluate("1ul << 47", 0) == 1 << 47
    assert evaluate("(void *)0x10000", 0) == 0x10000
    assert evaluate("p + 1", 0x7000) == 0x7001
    assert evaluate("MAP_PRIVATE | MAP_ANONYMOUS", 0) == mman.MAP_PRIVATE | mman.MAP_ANONYMOUS
    assert evaluate("(void *)-1", 0) == -1
    with pytest.raises(ValueError, match="not understood"):
        evaluate("open('x')", 0)


def test_machines_of_names() -> None:
    two = machine_of("x86_64-2node-4G-4cpu")
    assert [node.cpus for node in two.nodes] == [(0, 1), (2, 3)]
    assert machine_of("x86_64-1500M").cpus == 2
    assert machine_of("i386-2G-highmem-3cpu").cpus == 3
    with pytest.raises(ValueError, match="names no machine"):
        machine_of("oom")


def test_blocks() -> None:
    lines = [
        "-- a",
        "7f000-7f001 rw-p 00000000 00:00 0 ",
        "Rss:   4 kB",
        "mlock 0",
        "== /proc/meminfo",
        "Mlocked: 1 kB",
        "-- b",
    ]
    lines[1] = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 "
    assert [(block.title, block.lines) for block in blocks(lines)] == [
        ("-- a", []),
        ("4 kB rw-p 00000000 00:00", ["Rss:   4 kB"]),
        ("mlock 0", []),
        ("== /proc/meminfo", ["Mlocked: 1 kB"]),
        ("-- b", []),
    ]
    assert Block("== /proc/self/maps").is_maps
    assert normal("7f7632628000 default anon=1 N0=1") == "ADDRESS default anon=1 N0=1"


@pytest.mark.parametrize("machine", ["x86_64-600M-1cpu", "x86_64-4node-4G-8cpu"])
def test_a_pool_of_which_half_is_nothing(machine: str) -> None:
    """One page is wanted: half of them is none, and nothing is touched."""
    text = (
        "== /proc/meminfo\nHugePages_Total:       0\n-- mmap 1 huge pages: ok errno 0\n"
        "== /proc/meminfo\nHugePages_Total:       1\nHugePages_Rsvd:        1\nHugePages_Surp:        1\n"
        "-- touched half\n== /proc/meminfo\nHugePages_Free:        1\n"
        "7feb22600000-7feb22800000 rw-p 00000000 00:0c 4645                       /anon_hugepage (deleted)\n"
        "Private_Hugetlb:       0 kB\n== /proc/self/status\nHugetlbPages:\t       0 kB\n"
        "-- unmapped\n== /proc/meminfo\nHugePages_Total:       0\n"
    )
    cases = cases_of(Path(machine) / "uo_hugetlb_1_of_0_surplus1", {"uo_hugetlb_1_of_0_surplus1": text})
    assert [case.name.partition(": ")[2] for case in cases if case.passed and "meminfo" in case.name]
    assert not [case for case in cases if "cannot be compared" in case.detail]
    assert not [case for case in cases if not case.passed and "rw-p" not in case.name]


def test_a_file_that_is_no_text_and_a_scenario_without_sense_are_failures(tmp_path: Path) -> None:
    folder = tmp_path / "process" / "x86_64-1G-2cpu"
    folder.mkdir(parents=True)
    (folder / "uo_errs").write_bytes(b"\xff\xfe\x00")
    (folder / "uo_anon_x").write_text("-- mapped\n")
    (folder / "uo_new_3").write_text("anything\n")
    (folder / "uo_maxmap").write_text("65521 mappings, errno 12\n")
    cases = list(process.run(tmp_path / "process"))
    assert {case.name for case in cases if case.passed} == {
        "uo_maxmap: 65521 mappings, errno 12",
        "uo_anon_x: -- mapped",
    }
    assert {case.name.partition(":")[0].split()[0] for case in cases if not case.passed} >= {"uo_errs", "uo_new_3"}
