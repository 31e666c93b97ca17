"""The boot comparison passes on the captures, and fails where a capture differs."""

import shutil
from pathlib import Path

import pytest

from kmemd.conformance.boot import compare_format, field_names, page_sets, run, same_line

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"


def test_all_captured_machines():
    cases = list(run(CAPTURES))
    assert [(case.name, case.detail) for case in cases if not case.passed and not case.absent] == []
    assert sum(case.kind == "exact" for case in cases) > 400
    assert sum(case.kind == "format" for case in cases) > 200


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("proc/zoneinfo", "high     ", "high     1", "high"),
        ("proc/zoneinfo", "batch: 63", "batch: 31", "page sets"),
        ("proc/meminfo", "CommitLimit:     1", "CommitLimit:     2", "CommitLimit"),
        ("proc/meminfo", "Slab: ", "Slob: ", "fields"),
        ("proc/sys/vm/swappiness", "60", "61", "swappiness"),
        ("proc/buddyinfo", "zone    DMA32 ", "zone   DMA32 ", "buddyinfo"),
        ("sys/devices/system/node/online", "0", "0-1", "online"),
    ],
)
def test_a_difference_is_found(tmp_path, file, old, new, name):
    shutil.copytree(CAPTURES / "x86_64-2G-2cpu", tmp_path / "machine")
    target = tmp_path / "machine" / file
    text = target.read_text()
    assert old in text
    target.write_text(text.replace(old, new))
    assert any(name in case.name for case in run(tmp_path) if not case.passed and not case.absent)


def test_paths_that_do_not_exist_are_named(tmp_path):
    shutil.copytree(CAPTURES / "x86_64-256M-1cpu", tmp_path / "machine")
    (tmp_path / "machine/proc/nosuch").write_text("1\n")
    absent = [case.name for case in run(tmp_path) if case.absent]
    assert "machine/proc/nosuch" in absent


def test_lines_of_the_same_form():
    assert same_line("MemFree:         1979520 kB", "MemFree:              20 kB")
    assert not same_line("MemFree:         1979520 kB", "MemFree:        20 kB")
    assert not same_line("MemFree:  1 kB", "MemFree:  1 MB")
    assert same_line("cpu  6 0 619 0", "cpu  0 0 61000 100")
    assert same_line("1.000 -1.000", "0.125 0.500")
    assert not same_line("zone1 5", "zone2 5")


def test_field_names():
    assert field_names("Node 0, zone      DMA\n  pages free     3840\n        min      30\nMemTotal:  5 kB\n") == [
        "Node",
        "pages free",
        "min",
        "MemTotal",
    ]


def test_page_sets():
    text = (
        "Node 0, zone      DMA\n    cpu: 0\n      count: 1\n      high:  5\n      batch: 2\n  vm stats threshold: 4\n"
    )
    assert page_sets(text) == {(0, "DMA"): [(5, 2, 4)]}


def test_lines_of_unknown_kind_are_found():
    assert compare_format("proc/self/maps", "x\n", "")[0] is False
