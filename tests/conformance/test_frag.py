"""conformance.frag against the captured indices, and against indices that are wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmemd.conformance import frag

BUDDY = Path(__file__).parent.parent / "captures" / "linux-6.1" / "buddy"


def test_captured_indices_are_matched() -> None:
    cases = list(frag.run(BUDDY))
    assert len(cases) == 2 * len((BUDDY / "frag.buddyinfo").read_text().splitlines())
    assert [case for case in cases if not case.passed] == []


def test_a_wrong_index_is_found(tmp_path: Path) -> None:
    for path in BUDDY.glob("frag.*"):
        shutil.copy(path, tmp_path)
    wrong = tmp_path / "frag.unusable_index"
    wrong.write_text(wrong.read_text().replace("0.200", "0.201"))
    failures = [case for case in frag.run(tmp_path) if not case.passed]
    assert [case.name for case in failures] == ["frag.unusable_index Node 0 zone DMA"]
    assert "0.201" in failures[0].detail


def test_a_missing_zone_is_found(tmp_path: Path) -> None:
    for path in BUDDY.glob("frag.*"):
        shutil.copy(path, tmp_path)
    info = tmp_path / "frag.buddyinfo"
    info.write_text("".join(info.read_text().splitlines(keepends=True)[:-1]))
    assert any("zones captured" in case.detail for case in frag.run(tmp_path))
