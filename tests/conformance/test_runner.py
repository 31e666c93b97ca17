"""The conformance report: tallies per folder and class, and the JSON that goes with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kmemd.cli import main
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


def test_chosen_folders_alone_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(CAPTURES / "buddy", tmp_path / "buddy")
    (tmp_path / "writes").mkdir()
    assert [tally.folder for tally in runner.run_tree(tmp_path, ["buddy"])] == ["buddy"]
    assert main(["conformance", str(tmp_path), "buddy"]) == 0
    assert "writes" not in capsys.readouterr().out


@pytest.mark.parametrize(("folder", "reason"), [("budy", "they are boot, watermarks, "), ("slab", "no such folder")])
def test_a_folder_that_cannot_be_compared_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, reason: str
) -> None:
    (tmp_path / "buddy").mkdir()
    assert main(["conformance", str(tmp_path), folder]) == 1
    error = capsys.readouterr().err
    assert folder in error
    assert reason in error


def entries(tree: Path, out: Path) -> dict[tuple[str, str], dict[str, object]]:
    runner.main(tree, out)
    return {(entry["folder"], entry["class"]): entry for entry in json.loads(out.read_text())}


def test_a_tree_of_other_machines_and_fewer_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(CAPTURES / "boot/x86_64-256M-1cpu", tree / "boot/renamed")
    (tree / "boot/renamed/proc/vmallocinfo").unlink()
    shutil.rmtree(tree / "boot/renamed/sys")
    shutil.copytree(CAPTURES / "buddy", tree / "buddy/machine")
    shutil.copy(CAPTURES / "buddy/state3.txt", tree / "buddy/machine/state4.txt")
    shutil.copy(CAPTURES / "buddy/seq4.txt", tree / "buddy/machine/seq5.txt")
    for name in ("one-1cpu", "two-1cpu"):
        shutil.copytree(CAPTURES / "limits/x86_64-1G-1cpu", tree / "limits" / name)
    found = entries(tree, tmp_path / "out.json")
    assert all(entry["failures"] == [] for entry in found.values())
    assert all(set(entry) == {"folder", "class", "cases", "passed", "failures"} for entry in found.values())
    assert found["limits", "exact"]["cases"] == 96
    assert found["buddy", "exact"]["cases"] == 1900
    assert set(found) == {("boot", "exact"), ("boot", "format"), ("limits", "exact"), ("buddy", "exact")}


def test_a_capture_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("a-1cpu", "b-1cpu"):
        shutil.copytree(CAPTURES / "limits/x86_64-1G-1cpu", tree / "limits" / name)
    (tree / "limits/a-1cpu/zoneinfo.start").unlink()
    (tree / "watermarks/m").mkdir(parents=True)
    (tree / "watermarks/m/min").write_text("min_free_kbytes=x\nNode 0, zone nonsense\n")
    found = entries(tree, tmp_path / "out.json")
    limits = found["limits", "exact"]
    assert (limits["cases"], limits["passed"]) == (49, 48)
    (failure,) = limits["failures"]  # type: ignore[misc]
    assert failure.startswith("a-1cpu: cannot be compared: FileNotFoundError")
    assert len(found["watermarks", "exact"]["failures"]) == 1  # type: ignore[arg-type]
