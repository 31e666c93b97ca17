"""The slab folder of the captures, through the whole kernel."""

from pathlib import Path

from kmemd import views
from kmemd.conformance import slab

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "slab"


def test_captures_agree():
    assert views.__all__
    cases = list(slab.run(CAPTURES))
    assert [case for case in cases if not case.passed and not case.absent] == []
    assert sum(case.kind == "exact" for case in cases) > 1900
    assert sum(case.kind == "format" and case.passed for case in cases) > 250


def test_a_difference_is_a_failure(tmp_path):
    line = (CAPTURES / "geometry-1cpu.txt").read_text().splitlines()[0].replace(" order=0", " order=1")
    (tmp_path / "geometry-1cpu.txt").write_text(line + "\n")
    (tmp_path / "kmalloc_sizes.txt").write_text("# DMA\nkmalloc 9 ksize=32 cache=dma-kmalloc-16\n")
    first, second = slab.run(tmp_path)
    assert (first.passed, first.detail) == (False, "order=1 is 0")
    assert (second.passed, second.name) == (False, "kmalloc(9, DMA)")
