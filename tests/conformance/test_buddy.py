"""The captured allocation sequences: every page frame, every list."""

from __future__ import annotations

from pathlib import Path

from kmemd.conformance import buddy

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "buddy"


def test_every_page_frame_is_the_captured_one() -> None:
    cases = list(buddy.run(CAPTURES))
    assert sum("line" in case.name for case in cases) > 1000
    assert [case for case in cases if not case.passed] == []


def test_a_wrong_page_frame_is_found() -> None:
    state = (CAPTURES / "state0.txt").read_text()
    sequence = (CAPTURES / "seq1.txt").read_text().replace("pfn=1310506", "pfn=1310507", 1)
    zones = list(buddy.parse_zoneinfo((CAPTURES / "zoneinfo.start").read_text()))
    failures = [case for case in buddy.replay("changed", state, sequence, zones) if not case.passed]
    assert [case.detail for case in failures] == ["order 0: captured pfn 1310507, model 1310506"]
