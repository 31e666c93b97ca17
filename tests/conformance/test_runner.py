"""The conformance report: tallies per folder and class, and the JSON that goes with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kmemd.conformance import runner
from kmemd.conformance.case import Case

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1"


def test_report_and_json_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree" / "other").mkdir(parents=True)
    shutil.copytree(CAPTURES / "buddy", tmp_path / "tree" / "buddy")
    out = tmp_path / "out.json"
    assert runner.main(tmp_path / "tree", out) == 0
    (entry,) = json.loads(out.read_text())
    assert (entry["folder"], entry["class"]) == ("buddy", "exact")
    assert entry["cases"] == entry["passed"] > 1000
    assert entry["failures"] == []
    assert "other        not compared" in capsys.readouterr().out


def test_a_failure_is_counted_and_named(tmp_path: Path) -> None:
    tally = runner.Tally("buddy", "exact")
    tally.add(Case("one", True))
    tally.add(Case("two", False, "captured 1, model 2"))
    tally.add(Case("/proc/none", False, absent=True))
    assert (tally.cases, tally.passed) == (2, 1)
    assert tally.as_json()["failures"] == ["two: captured 1, model 2"]
    assert "paths that do not exist: /proc/none" in "\n".join(runner.report(tally))


def test_a_folder_without_captures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(runner.run_tree(tmp_path))
