"""How far each GFP mask digs, on the captured machine."""

from __future__ import annotations

from pathlib import Path

from kmemd.conformance import limits
from kmemd.mm.gfp import GFP_ATOMIC, GFP_KERNEL, F

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "limits"


def test_captured_limits() -> None:
    cases = list(limits.run(CAPTURES))
    assert len(cases) == 48
    assert [case for case in cases if not case.passed] == []


def test_masks_are_named_as_in_the_table() -> None:
    assert limits.Probe("ATOMIC|NOWARN", 0).gfp == GFP_ATOMIC | F.NOWARN
    assert limits.Probe("KERNEL|NORETRY|NOWARN|THISNODE", 0).gfp == GFP_KERNEL | F.NORETRY | F.NOWARN | F.THISNODE
    assert limits.Probe("HIGH|NOMEMALLOC", 0).gfp == F.HIGH | F.NOMEMALLOC
    assert limits.Probe("DMA|NORETRY", 0).gfp == GFP_KERNEL | F.DMA | F.NORETRY


def test_a_probe_of_another_depth_fails() -> None:
    probes = limits.parse("## KERNEL|NORETRY|NOWARN order 0\nprobe order=0 nid=0 got=5\nzone 0 DMA free=7 0 0\n")
    assert (probes[0].got, probes[0].free) == (5, {(0, "DMA"): 7})
