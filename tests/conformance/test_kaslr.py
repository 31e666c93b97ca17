"""The comparison of randomised address spaces passes on the captures, and fails where a base is out of range."""

import shutil
from pathlib import Path

import pytest

from kmemd.conformance.kaslr import Bases, ranges, run
from kmemd.mm.layout import PAGE_OFFSET_BASE, START_KERNEL_MAP, VMALLOC_BASE, VMEMMAP_BASE

CAPTURE = Path(__file__).parents[1] / "captures" / "linux-6.1" / "kaslr"


def test_the_captured_boots():
    cases = list(run(CAPTURE))
    assert [case for case in cases if not case.passed] == []
    assert len(cases) > 200
    assert {case.name.split("/")[0].split()[0] for case in cases} >= {"boot1", "boot2", "boot3", "spread", "nokaslr"}


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("syms", "D __start_rodata", "D __end_of_rodata", "boot1 __end_of_rodata"),
        ("va0.a", "7ffff7efa000-7ffff7efb000", "7ffff7ef9000-7ffff7efa000", "boot1/va0.a addresses"),
        ("va2.a", "r-xp 00000000 00:00 0 \n", "rwxp 00000000 00:00 0 \n", "boot1/va2.a forms"),
        ("va1.a", "[stack]", "", "boot1/va1.a forms"),
    ],
)
def test_differences_are_found(tmp_path, file, old, new, name):
    folder = tmp_path / "kaslr"
    shutil.copytree(CAPTURE / "boot1", folder / "boot1")
    text = (folder / "boot1" / file).read_text()
    assert old in text
    (folder / "boot1" / file).write_text(text.replace(old, new))
    assert any(case.name.startswith(name) for case in run(folder) if not case.passed)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"text": START_KERNEL_MAP}, "text"),
        ({"text": START_KERNEL_MAP + (17 << 20)}, "text"),
        ({"page_offset": PAGE_OFFSET_BASE - (1 << 30)}, "direct map"),
        ({"vmalloc": PAGE_OFFSET_BASE}, "vmalloc"),
        ({"vmemmap": VMEMMAP_BASE + 4096}, "vmemmap"),
    ],
)
def test_bases_out_of_range_are_found(changed, name):
    plain = {
        "text": START_KERNEL_MAP + (16 << 20),
        "page_offset": PAGE_OFFSET_BASE,
        "vmalloc": VMALLOC_BASE,
        "vmemmap": VMEMMAP_BASE,
    }
    assert all(passed for _, passed, _ in ranges(Bases(**plain)))
    assert next(found for found, passed, _ in ranges(Bases(**plain | changed)) if not passed) == name
