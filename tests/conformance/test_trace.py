"""The captured tracing directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmemd.conformance import trace

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "trace"


def test_captured_trace() -> None:
    cases = list(trace.run(CAPTURES))
    assert [case for case in cases if not case.passed] == []
    names = [case.name for case in cases]
    assert sum(name.endswith("/format") for name in names) == 105
    assert {"available_events", "set_event", "trace header", "text of page_fault_user", "cpu0.stats"} <= set(names)
    assert sum(name.startswith("cpu0 mm_page_alloc") for name in names) > 10


def test_another_format_fails(tmp_path: Path) -> None:
    (tmp_path / "fmt").mkdir()
    text = (CAPTURES / "fmt/kmem.mm_page_free").read_text()
    (tmp_path / "fmt/kmem.mm_page_free").write_text(text.replace("order=%d", "order=%u"))
    shutil.copy(CAPTURES / "fmt/kmem.kfree", tmp_path / "fmt")
    (tmp_path / "fmt/kmem.no_such_event").write_text(text)
    cases = list(trace.run(tmp_path))
    assert [case.name.split("/")[-2] for case in cases if case.name.endswith("format") and not case.passed] == [
        "mm_page_free",
        "no_such_event",
    ]
    assert [case.absent for case in cases if "no_such_event" in case.name] == [True]


def test_other_words_in_a_text_fail(tmp_path: Path) -> None:
    text = (CAPTURES / "trace").read_text().replace("bytes_req=", "bytes=")
    (tmp_path / "trace").write_text(text)
    assert "text of kmalloc" in [case.name for case in trace.run(tmp_path) if not case.passed]
