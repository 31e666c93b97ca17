"""Compaction of the captured occupation."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmemd.conformance import compaction
from kmemd.conformance.compaction_twin import machine_at, movable, occupied
from kmemd.core.mmzone import MIGRATE_MOVABLE
from kmemd.system import System

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "compaction"


NOT_MET = ["compacted node 0 DMA32 order 1"]
"""Between the captured states a per-cpu list was refilled by 31 blocks; what those lists held was not captured."""


def test_captured_compaction() -> None:
    cases = list(compaction.run(CAPTURES))
    assert len([case for case in cases if "index" in case.name]) == 7 * 2 * 2
    assert len(cases) == 7 * 2 * 2 + 2 * 2 * 12 + 11
    assert [case.name for case in cases if not case.passed] == NOT_MET


def test_the_twin_has_the_captured_blocks_and_pages_that_can_move() -> None:
    system = occupied(CAPTURES, "punched", "hog2")
    captured = movable((CAPTURES / "hog2.pagetypeinfo").read_text())
    zone = system.kernel.zones[1]
    free = list(zone.nr_free_type(MIGRATE_MOVABLE))
    assert free[4:] == captured[0, "DMA32"][4:]
    assert sum(count << order for order, count in enumerate(free[:4])) < 16
    hog = next(task for task in system.kernel.tasks if task.comm == "hog")
    assert system.kernel.mm_counters.rss(hog.mm) > 300 << 8
    system.check()


def test_free_blocks_beyond_a_tenth_fail() -> None:
    system = System.boot(machine_at(CAPTURES, "hog2"))
    text = (CAPTURES / "hog2.buddyinfo").read_text()
    assert all(case.passed for case in compaction.compare_free(system, "same", text))
    off = text.replace(" 19814 ", " 25000 ").replace(" 100 ", "  89 ")
    failed = [case.name for case in compaction.compare_free(system, "off", off) if not case.passed]
    assert failed == [f"off node 0 DMA32 {what}" for what in ("order 0", "order 10")]


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
