"""What reclaim takes for each swappiness, on the captured machine."""

from __future__ import annotations

from pathlib import Path

from kmemd.conformance import reclaim
from kmemd.conformance.reclaim import Taken

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "reclaim"
KNOWN = {"swappiness 0 phase c pages"}
"""The real machine kept a quarter of a file that is read in circles; the model, as an exact LRU, keeps nothing."""


def test_captured_runs() -> None:
    cases = list(reclaim.run(CAPTURES))
    assert len(cases) == 11
    assert {case.name for case in cases if not case.passed} <= KNOWN


def test_tolerances() -> None:
    wanted = Taken(40000, 20000)
    for have, passed in ((Taken(31000, 15500), [True, True]), (Taken(29000, 20000), [False, False])):
        assert [case.passed for case in reclaim.compare("x", wanted, have, slack=500)] == passed
    assert [case.passed for case in reclaim.compare("x", Taken(0, 0), Taken(1000, 1000), slack=1000)] == [True]
    assert [case.passed for case in reclaim.compare("x", Taken(0, 0), Taken(1000, 1000), slack=999)] == [False]
    assert Taken.between({"pgsteal_anon": 1}, {"pgsteal_anon": 4, "pgsteal_file": 6}) == Taken(9, 3)
