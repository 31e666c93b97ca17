"""Compaction of the captured occupation."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmemd.conformance import compaction

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "compaction"


def test_captured_compaction() -> None:
    cases = list(compaction.run(CAPTURES))
    assert len([case for case in cases if "index" in case.name]) == 7 * 2 * 2
    assert len(cases) == 7 * 2 * 2 + 2 * 2 * 12 + 11
    assert [case for case in cases if not case.passed] == []


def test_another_index_fails(tmp_path: Path) -> None:
    shutil.copy(CAPTURES / "punched.buddyinfo", tmp_path)
    text = (CAPTURES / "punched.unusable").read_text()
    (tmp_path / "punched.unusable").write_text(text.replace("0.099", "0.097"))
    failed = [case for case in compaction.run(tmp_path) if not case.passed]
    assert [case.name for case in failed] == ["punched.unusable_index Node 0 zone DMA32"]


def test_without_compaction_the_counters_fail(tmp_path: Path) -> None:
    for name in ("hog2.vmstat", "compacted.vmstat"):
        shutil.copy(CAPTURES / name, tmp_path)
    start = compaction.parse_vmstat((CAPTURES / "hog2.vmstat").read_text())
    failed = {case.name for case in compaction.compare_counters(start, start, tmp_path) if not case.passed}
    assert failed == {"compacted pgmigrate_success", "compacted compact_isolated", "compacted pgmigrate_fail"}
