"""kmemd perf stat: perf's columns, and counts that are the model's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kmemd.cli import main
from kmemd.debug.perf_counters import ALIASES, NOT_COUNTED
from kmemd.perf.stat import Count, counts, csv_line, json_line, text_line

SCRIPT = """\
t = spawn comm=worker
m = mmap t 1M
access t m 64K op=w
sleep 1
"""

# perf 6.1 printed these lines on a real machine
REAL = """\
               102      page-faults                      #   71.808 K/sec                  
                 0      major-faults                     #    0.000 /sec                   
              1.42 msec task-clock                       #    0.520 CPUs utilized          
   <not supported>      cycles                                                      
         1,234,567      context-switches                                                   
"""  # noqa: W291
REAL_CSV = "102,,page-faults,1390224,100.00,58.357,K/sec\n"
REAL_JSON = (
    '{"counter-value" : "1.757403", "unit" : "msec", "event" : "task-clock", "event-runtime" : 1757403, '
    '"pcnt-running" : 100.00, "metric-value" : 0.151192, "metric-unit" : "CPUs utilized"}\n'
)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script"
    path.write_text(SCRIPT)
    return str(path)


def test_lines_are_those_of_perf() -> None:
    lines = [
        Count("page-faults", 102, (71808.0, "  71.808", "K/sec")),
        Count("major-faults", 0, (0.0, "   0.000", "/sec")),
        Count("task-clock", 1_420_000, (0.52, "   0.520", "CPUs utilized")),
        Count("cycles", None),
        Count("context-switches", 1234567),
    ]
    assert "".join(map(text_line, lines)) == REAL
    assert csv_line(Count("page-faults", 102, (58.357, "  58.357", "K/sec")), 1390224, ",") == REAL_CSV
    assert json_line(Count("task-clock", 1757403, (0.151192, "0.151", "CPUs utilized")), 1757403) == REAL_JSON
    assert csv_line(Count("cycles", None), 5, ",") == "<not supported>,,cycles,0,100.00,,\n"
    assert json.loads(json_line(Count("cycles", None), 5))["counter-value"] == "<not supported>"


def test_proportions() -> None:
    values = {
        "task-clock": 2_000_000,
        "page-faults": 10,
        "dTLB-loads": 400,
        "dTLB-load-misses": 100,
        "cycles": 5_000_000,
    }
    found = {count.name: count.metric for count in counts([*values, "instructions"], values, 8_000_000)}
    assert found["task-clock"] == (0.25, "   0.250", "CPUs utilized")
    assert found["page-faults"] == (5.0, "   5.000", "K/sec")
    assert found["dTLB-load-misses"] == (25.0, "  25.00%", "of all dTLB cache accesses")
    assert found["cycles"] == (2.5, "   2.500", "GHz")
    assert found["instructions"] is None
    without = {count.name: count.metric for count in counts(["page-faults"], values, 8_000_000)}
    assert without == {"page-faults": None}, "no rate without a clock"


def test_what_a_script_does_is_counted(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "stat", "-x", ";", "-e", "task-clock,faults,major-faults,mmu:accesses,cycles", script]) == 0
    out, err = capsys.readouterr()
    assert "comm=worker" in out
    rows = {line.split(";")[2]: line.split(";") for line in err.splitlines()}
    assert int(rows["mmu:accesses"][0]) >= 16
    assert int(rows["faults"][0]) >= 16
    assert rows["major-faults"][0] == "0"
    assert rows["task-clock"][1] == "msec"
    assert float(rows["task-clock"][0]) < 1000, "idle time is not on the clock"
    ghz = int(rows["cycles"][0]) / int(rows["cycles"][3])
    assert ghz == pytest.approx(2.596, abs=0.01)


def test_the_report(script: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["perf", "stat", "-a", "-o", str(out), "--", script]) == 0
    text = out.read_text()
    assert text.startswith("\n Performance counter stats for 'system wide':\n\n")
    elapsed = re.search(r"^ +(\d+\.\d{9}) seconds time elapsed$", text, re.M)
    assert elapsed is not None
    assert float(elapsed[1]) > 1
    assert re.search(r"^ +\d+\.\d{9} seconds sys$", text, re.M)


def test_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script"
    path.write_text("m = mmap 1 1M\naccess 1 m 64K op=w\nt = spawn comm=other\nn = mmap t 1M\naccess t n 512K op=w\n")
    assert main(["perf", "stat", "-j", "-e", "page-faults,minor-faults", "-p", "1", str(path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [row["event"] for row in rows] == ["page-faults", "minor-faults"]
    assert [float(row["counter-value"]) for row in rows] == [16, 16]


def test_events_that_are_none(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "stat", "-e", "page-fautls", script]) == 1
    assert "event syntax error: 'page-fautls'" in capsys.readouterr().err
    assert main(["perf", "stat", "-x,", "-e", "instructions,cs", script]) == 0
    assert capsys.readouterr().err.startswith("<not supported>,,instructions,0,100.00,,\n")
    assert not NOT_COUNTED & {*ALIASES}
