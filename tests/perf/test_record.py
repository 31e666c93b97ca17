"""kmemd perf record and script: what perf prints, and what stackcollapse-perf.pl makes of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from kmemd.cli import main
from kmemd.perf.flamegraph import collapse
from kmemd.perf.samples import parse

SCRIPT = """\
t = spawn comm=worker
m = mmap t 1M
access t m 64K op=w
p = alloc_pages order=0 n=200 by=fill_probe+0x10[drv] comm=modprobe
"""
EVENT = re.compile(r"(\S.*?)\s+(\d+) \[(\d{3})\]\s+(\d+)\.(\d{6}):\s+(\d+) (\S+): $")
FRAME = re.compile(r"\t\s*([0-9a-f]+) (\S+)\+0x[0-9a-f]+ \((\[[\w.]+\])\)$")


def documented(text: str) -> Counter[str]:
    """Stacks by period: blocks of an event line and frames, innermost first, as perf-script(1) has them."""
    found: Counter[str] = Counter()
    for block in text.split("\n\n"):
        head, *frames = [line for line in block.split("\n") if line and not line.startswith("#")] or [""]
        if not head:
            continue
        event = EVENT.fullmatch(head)
        assert event is not None, head
        names = []
        for line in frames:
            frame = FRAME.fullmatch(line)
            assert frame is not None, line
            names.append(frame[2])
        found[";".join([event[1], *reversed(names)])] += int(event[6])
    return found


@pytest.fixture
def recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    script, data = tmp_path / "script", tmp_path / "perf.data"
    script.write_text(SCRIPT)
    assert main(["perf", "record", "-g", "-e", "page-faults,cpu-clock", "-o", str(data), str(script)]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^\[ perf record: Captured and wrote \d+\.\d{3} MB \S+ \(\d+ samples\) \]$", said, re.M)
    return data


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["perf", "script", *words]) == 0
    return capsys.readouterr().out


def test_it_reads_as_perf_script_does(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "-i", str(recorded), "-e", "page-faults")
    stacks = documented(text)
    assert sum(n for stack, n in stacks.items() if "Exec." not in stack) == 16, "besides what spawn touches"
    assert all(stack.startswith("worker;") for stack in stacks)
    assert any("asm_exc_page_fault" in stack and "Memory.access" in stack for stack in stacks)
    assert {tuple(key.split(";")): value for key, value in stacks.items()} == collapse(parse(text.splitlines()))


def test_time_goes_to_the_call_site(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stacks = documented(printed(capsys, "-i", str(recorded), "-e", "cpu-clock"))
    at = {stack: ns for stack, ns in stacks.items() if ";fill_probe;" in stack}
    assert all(stack.startswith("modprobe;entry_SYSCALL_64_after_hwframe;do_syscall_64;") for stack in at)
    assert sum(at.values()) >= 200 * 50, "taking a page from a per-CPU list costs some 60 ns"
    assert all(ns % 10_000 == 0 for ns in stacks.values())


def test_the_header(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not printed(capsys, "-i", str(recorded)).startswith("#")
    lines = printed(capsys, "--header", "-i", str(recorded)).splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert head[0] == head[-2] == "# ========"
    keys = [line[2:].partition(" :")[0].strip() for line in head[1:-2]]
    assert keys[:3] == ["captured on", "header version", "hostname"]
    assert "# event : name = cpu-clock, , sample_period = 10000, " in "\n".join(head)


def test_one_task(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pid = re.search(r"^worker +(\d+)", printed(capsys, "-i", str(recorded)), re.M)
    assert pid is not None
    only = [EVENT.fullmatch(line) for line in printed(capsys, "-i", str(recorded), "-p", pid[1]).splitlines()]
    assert {head[2] for head in only if head is not None} == {pid[1]}


def test_periods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, data = tmp_path / "script", tmp_path / "data"
    script.write_text(SCRIPT)
    words = ["perf", "record", "-o", str(data)]
    assert main([*words, "-F", "1000000", str(script)]) == 0
    assert "sample_period = 1000," in printed(capsys, "--header", "-i", str(data))
    assert main([*words, "-F", "10", "-c", "10", str(script)]) == 1
    assert main([*words, "-F", "10", "-e", "page-faults", str(script)]) == 1
    assert "-F is for cpu-clock" in capsys.readouterr().err
    assert main(["perf", "script", "-i", str(tmp_path / "none")]) == 1


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  page-faults +\[Software event\]$", out, re.M)
    assert re.search(r"^  vmstat:pgscan_direct +\[Counter of /proc/vmstat\]$", out, re.M)
    assert "elapsed-ns" not in out
