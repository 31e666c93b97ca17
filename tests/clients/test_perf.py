"""kmemd perf on a mounted machine: what a program does there is counted, sampled and drawn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kmemd.perf import samples
from kmemd.perf.flamegraph import collapse, parse
from tests.clients.conftest import KMEMD, Mounted, program, run_clean
from tests.fs.mounting import ROOT

pytestmark = pytest.mark.mount


def perf(mounted: Mounted, command: str, *words: str) -> list[str]:
    """A command line of perf for the mounted machine."""
    return [*KMEMD, "perf", command, "--at", str(mounted.path), *words]


def allocate(n: int, name: str) -> list[str]:
    """A program that has the machine allocate pages and free them."""
    line = f"{name} = alloc_pages order=0 n={n} by=perf_probe"
    return [
        "--",
        "sh",
        "-c",
        f"echo '{line}' > $KMEMD_MOUNT/kmemd/ctl; echo free_pages {name} > $KMEMD_MOUNT/kmemd/ctl",
    ]


def test_stat(mounted: Mounted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    events = "cpu-clock,vmstat:pgfree,instructions"
    run_clean(perf(mounted, "stat", "-j", "-e", events, "-o", str(out), *allocate(700, "perf_a")))
    rows = {row["event"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert float(rows["vmstat:pgfree"]["counter-value"]) == 700
    assert float(rows["cpu-clock"]["counter-value"]) > 0
    assert rows["instructions"]["counter-value"] == "<not supported>"


def test_the_status_is_the_programs(mounted: Mounted) -> None:
    done = subprocess.run(perf(mounted, "stat", "--", "sh", "-c", "exit 3"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3
    assert "Performance counter stats for 'sh -c exit 3':" in done.stderr


def test_record_and_script(mounted: Mounted, tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    argv = perf(mounted, "record", "-c", "1", "-o", str(data), *allocate(500, "perf_b"))
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Captured and wrote" in done.stderr
    text = run_clean([*KMEMD, "perf", "script", "-i", str(data)])
    stacks = collapse(samples.parse(text.splitlines()))
    probed = sum(ns for stack, ns in stacks.items() if "perf_probe" in stack)
    assert probed >= 500 * 50
    script = shutil.which("stackcollapse-perf.pl")
    if script is not None:
        printed = tmp_path / "script"
        printed.write_text(text)
        folded = parse(run_clean([script, str(printed)]).splitlines())
        assert {stack: ns for stack, ns in stacks.items() if ns} == folded
    assert run_clean(perf(mounted, "script")) == text


def test_perf_reads_it(mounted: Mounted, tmp_path: Path) -> None:
    """perf itself: the same samples, and its report by functions."""
    data = str(tmp_path / "perf.data")
    words = ["-e", "cpu-clock,vmstat:pgfree", "-o", data, *allocate(500, "perf_c")]
    subprocess.run(perf(mounted, "record", *words), capture_output=True, check=True, cwd=ROOT)
    ours = run_clean([*KMEMD, "perf", "script", "-i", data]).splitlines()
    theirs = run_clean([program("perf"), "script", "-i", data]).splitlines()
    assert len(ours) > 10
    heads = [line.split() for line in theirs if line and not line.startswith("\t")]
    assert heads == [line.split() for line in ours if line and not line.startswith("\t")]
    frames = [line.split("+0x")[0].partition(" [") for line in theirs if line.startswith("\t")]
    assert [name for name, _, _ in frames] == [line.split("+0x")[0] for line in ours if line.startswith("\t")]
    report = run_clean([program("perf"), "report", "-i", data, "--stdio", "--no-children", "-g", "none"])
    assert re.search(r"^# Samples: \d+ +of event 'vmstat:pgfree'$", report, re.M), report
    assert "perf_probe" in run_clean([program("perf"), "report", "-i", data, "--stdio", "-g", "caller"])


def test_flamegraph(mounted: Mounted) -> None:
    picture = run_clean(perf(mounted, "flamegraph", "--by", "bytes"))
    titles = [title.text or "" for title in ET.fromstring(picture.encode()).iter("{http://www.w3.org/2000/svg}title")]
    assert [title for title in titles if title.startswith("fill (") and f"({20000 * 4096:,} bytes" in title]
    folded = parse(run_clean(perf(mounted, "flamegraph", "--by", "count", "--folded")).splitlines())
    assert sum(count for stack, count in folded.items() if stack[-1] != "" and "fill" in stack) == 20000
    assert parse(mounted.text("kmemd/perf/folded/page_owner-count").splitlines()) == folded


def test_an_event_that_is_none(mounted: Mounted) -> None:
    argv = perf(mounted, "record", "-e", "instructions", "--", "true")
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "kmemd perf: events: instructions is not counted by this machine\n")
