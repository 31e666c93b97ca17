"""Scores: exactly those that the captured machine showed."""

from __future__ import annotations

import re

from kmemd.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, MMF_OOM_SKIP
from kmemd.mm.oom_adj import oom_adj
from kmemd.mm.oom_score import oom_badness, oom_score
from tests.mm.oom_fake import CAPTURE, Arrays, Task, reports

SCORES = re.compile(r"(\d+) uo hog .*rss=(\d+) adj=(-?\d+) score=(\d+) oom_adj=(-?\d+)")
TOTAL = 1492392 // 4


def test_the_captured_scores() -> None:
    """Exact for tasks that had all their memory; of those still growing, rss was read before the score."""
    arrays = Arrays()
    tables = {task.pid: task for task in next(reports(arrays)).tasks}
    exact = 0
    for line in (CAPTURE / "oom_scores").read_text().splitlines():
        match = SCORES.match(line)
        if match is None:
            continue
        pid, rss, adj, score, old = (int(word) for word in match.groups())
        task = tables[pid]
        assert task.mm is not None
        assert (task.oom_score_adj, oom_adj(task.oom_score_adj)) == (adj, old)
        most = oom_score(task, arrays.counters, TOTAL)
        missing = arrays.counters.rss(task.mm) - rss
        arrays.rss[task.mm.id * 4 + MM_ANONPAGES] -= missing
        arrays.tables[task.mm.id] -= missing // 512
        assert oom_score(task, arrays.counters, TOTAL) <= score <= most, line
        exact += not missing
    assert exact == 3


def test_badness_counts_rss_swap_and_page_tables() -> None:
    arrays = Arrays()
    mm = arrays.mm(1000, 10 * 4096)
    arrays.rss[mm.id * 4 + MM_SWAPENTS] = 77
    task = Task(40, mm=mm)
    assert oom_badness(task, arrays.counters, 100_000) == 1087
    task.oom_score_adj = -500
    assert oom_badness(task, arrays.counters, 100_000) == 1087 - 500 * 100
    assert oom_score(task, arrays.counters, 100_000) == (1000 - 48913 * 1000 // 100_000) * 2 // 3


def test_a_counter_below_zero_reads_as_zero() -> None:
    arrays = Arrays()
    mm = arrays.mm(5)
    arrays.rss[mm.id * 4] = -3
    assert arrays.counters.rss(mm) == 5


def test_who_must_not_be_killed_has_no_badness() -> None:
    arrays = Arrays()
    mm = arrays.mm(1000)
    for task in (Task(1, mm=mm), Task(2, mm=mm, is_kthread=True), Task(3), Task(4, mm=mm, oom_score_adj=-1000)):
        assert oom_badness(task, arrays.counters, 1000) is None
        assert oom_score(task, arrays.counters, 1000) == 0
    mm.flags |= MMF_OOM_SKIP
    assert oom_badness(Task(5, mm=mm), arrays.counters, 1000) is None
