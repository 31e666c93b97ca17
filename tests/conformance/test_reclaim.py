"""What reclaim takes for each swappiness, on the captured machine."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from kmemd.conformance import reclaim
from kmemd.conformance.reclaim import Taken

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "reclaim"
KNOWN = {"swappiness 0 phase c pages"}
"""kcompactd moved 6,912 pages of the captured machine to the young ends of their lists before: a file that is read in
circles met some of its pages again. An exact LRU keeps none."""


def test_captured_runs() -> None:
    cases = list(reclaim.run(CAPTURES))
    assert len(cases) == 11
    assert {case.name for case in cases if not case.passed} <= KNOWN


def test_buffers_say_whether_a_disk_was_read(tmp_path: Path) -> None:
    assert reclaim.what_was_read(CAPTURES) == reclaim.DISK
    (tmp_path / "sw0.a.meminfo").write_text("MemFree:  1000 kB\nBuffers:  900 kB\nCached:  205000 kB\n")
    assert reclaim.what_was_read(tmp_path) == reclaim.FILE_PATH


@pytest.mark.parametrize("path", [reclaim.DISK, reclaim.FILE_PATH])
def test_what_went_to_swap_rises_with_swappiness_without_jumps(path: str) -> None:
    shares = []
    for swappiness in (0, 40, 80, 120, 160, 200):
        have, _ = reclaim.replay(reclaim.boot(CAPTURES), swappiness, path)
        taken = Taken.between(have["a"], have["c"])
        assert 25_000 < taken.pages < 90_000
        shares.append(taken.share)
    assert shares[0] == 0
    assert shares[-1] > 0.95
    steps = [after - before for before, after in pairwise(shares[:-1])]  # at 200 nothing weighs on files
    assert all(-0.02 < step < 0.25 for step in steps), shares


def test_tolerances() -> None:
    wanted = Taken(40000, 20000)
    for have, passed in ((Taken(31000, 15500), [True, True]), (Taken(29000, 20000), [False, False])):
        assert [case.passed for case in reclaim.compare("x", wanted, have, slack=500)] == passed
    assert [case.passed for case in reclaim.compare("x", Taken(0, 0), Taken(1000, 1000), slack=1000)] == [True]
    assert [case.passed for case in reclaim.compare("x", Taken(0, 0), Taken(1000, 1000), slack=999)] == [False]
    assert Taken.between({"pgsteal_anon": 1}, {"pgsteal_anon": 4, "pgsteal_file": 6}) == Taken(9, 3)
