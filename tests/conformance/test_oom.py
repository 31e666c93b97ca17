"""The captured scenario of running out of memory, and that a difference is seen."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmemd import views
from kmemd.conformance import oom

CAPTURE = Path(__file__).parents[1] / "captures" / "linux-6.1" / "oom" / "x86_64-1500M"
REPORTS = 6


def test_the_captured_scenario() -> None:
    assert views.__all__
    cases = list(oom.run(CAPTURE))
    assert [case for case in cases if not case.passed] == []
    kinds = [case.kind for case in cases]
    assert (kinds.count("exact"), kinds.count("format")) == (127, 55 * REPORTS)


def failures(folder: Path) -> set[str]:
    return {case.name for case in oom.run(folder) if not case.passed}


def test_other_facts_fail(tmp_path: Path) -> None:
    folder = tmp_path / CAPTURE.name
    shutil.copytree(CAPTURE, folder)
    log = (folder / "oom.dmesg").read_text()
    log = log.replace("oom_score_adj:500", "oom_score_adj:400").replace("lowmem_reserve[]:", "lowmem:")
    (folder / "oom.dmesg").write_text(log)
    scores = (folder / "oom_scores").read_text().replace("score=1356", "score=1357")
    (folder / "oom_scores").write_text(scores)
    failed = failures(tmp_path)
    assert {"hog 50 1000 score", "report 2: victim"} <= failed
    lowmem = {name for name in failed if "lowmem" in name}
    assert len(lowmem) == 2 * REPORTS
    assert len(failed) == 2 + len(lowmem)


def test_another_order_of_victims_fails(tmp_path: Path) -> None:
    folder = tmp_path / CAPTURE.name
    shutil.copytree(CAPTURE, folder)
    log = (folder / "oom.dmesg").read_text()
    log = log.replace("Killed process 45 ", "Killed process XX ").replace("Killed process 43 ", "Killed process 45 ")
    (folder / "oom.dmesg").write_text(log.replace("Killed process XX ", "Killed process 43 "))
    (folder / "oom_left").write_text((folder / "oom_left").read_text().replace("42 uo hog 200 0 \n", ""))
    assert {"victims in order", "left"} <= failures(folder)


def test_forms_keep_words() -> None:
    assert oom.form("Node 0 DMA: 2*4kB (UM) 1*8kB (U) 0*16kB = 16kB") == oom.form(
        "Node 0 DMA: 0*4kB 7*8kB (E) 1*16kB (M) = 72kB"
    )
    assert oom.form("free:1 free_pcp:2 free_cma:3") != oom.form("free:1 free_pcp:2")
    assert oom.form(" dump_stack+0x10/0x12") != oom.form(" dump_stack_lvl+0x10/0x12")
    assert oom.form("RAX: 0000000009be3000 RBX: 00007f3ecbb80000") == oom.form("RAX: 1 RBX: 00000000000000ff")
