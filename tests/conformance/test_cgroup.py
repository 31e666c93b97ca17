"""The captured control group: its files, the writes to them, and the group at its limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kmemd import views
from kmemd.conformance import cgroup
from kmemd.conformance.runner import FOLDERS, places

CAPTURE = Path(__file__).parents[1] / "captures" / "linux-6.1" / "cgroup"


@pytest.fixture(scope="module")
def cases() -> list[cgroup.Case]:
    assert views.__all__
    return list(cgroup.run(CAPTURE))


def test_everything_captured_is_so(cases: list[cgroup.Case]) -> None:
    assert [case for case in cases if not case.passed] == []


def test_every_write_is_compared(cases: list[cgroup.Case]) -> None:
    writes = (CAPTURE / "cgroup_writes").read_text().splitlines()
    compared = [case for case in cases if " <- " in case.name]
    assert len(compared) == len(writes) == 8 * 16
    assert {case.kind for case in compared} == {"exact"}


def test_the_stages_run_in_their_order(cases: list[cgroup.Case]) -> None:
    seen = list(dict.fromkeys(case.name.split()[0] for case in cases if case.kind == "shape"))
    assert seen == ["hog20", "after20", "max30_hog50_noswap", "max30_hog50_swap", "reclaimed10", "high20_hog40"]


def test_other_facts_fail(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup"
    shutil.copytree(CAPTURE, folder)
    writes = (folder / "cgroup_writes").read_text()
    writes = writes.replace("'1.5M' = -1 errno 22 reads 4194304", "'1.5M' = 4 errno 0 reads 1572864", 1)
    (folder / "cgroup_writes").write_text(writes)
    (folder / "fresh" / "memory.high").write_text("0\n")
    events = folder / "max30_hog50_noswap" / "memory.events"
    events.write_text(events.read_text().replace("oom_kill 1", "oom_kill 2"))
    stat = folder / "hog20" / "memory.stat"
    stat.write_text(stat.read_text().replace("kernel_stack ", "kernel_heap "))
    failed = {case.name for case in cgroup.run(folder) if not case.passed}
    assert failed == {
        "memory.max <- '1.5M'",
        "memory.max after '1.5M'",
        "fresh memory.high",
        "max30_hog50_noswap oom_kill",
        "hog20 memory.stat",
    }


def test_it_is_registered() -> None:
    assert FOLDERS["cgroup"] == "cgroup"
    assert list(places(CAPTURE)) == [CAPTURE]
