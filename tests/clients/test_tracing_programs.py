"""The tracing directory through a mount: shells, readers that wait, and trace-cmd."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import KMEMD, PROGRAM_DEADLINE_S, Mounted, program
from tests.fs.mounting import ROOT, end, start

pytestmark = pytest.mark.mount
KMALLOC = "events/kmem/kmalloc"


@pytest.fixture
def tracing(mounted: Mounted) -> Path:
    path = mounted.path / "sys/kernel/tracing"
    (path / "set_event").write_text("\n")
    (path / "trace").write_text("\n")
    return path


def test_a_reader_of_trace_pipe_waits_and_can_be_killed(mounted: Mounted, tracing: Path) -> None:
    (tracing / KMALLOC / "enable").write_text("1")
    with subprocess.Popen(
        ["cat", tracing / "trace_pipe"],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    ) as reader:
        assert reader.stdout is not None
        mounted.command("kmalloc 64")
        line = reader.stdout.readline()
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(10) == -signal.SIGTERM
    assert b": kmalloc: call_site=" in line


def test_redirection_empties_the_trace(tracing: Path) -> None:
    (tracing / "trace_marker").write_text("noise\n")
    assert "tracing_mark_write: noise" in (tracing / "trace").read_text()
    subprocess.run(["bash", "-c", "echo > $0", tracing / "trace"], check=True)
    assert "noise" not in (tracing / "trace").read_text()


def test_set_event_is_replaced_by_one_arrow_and_grows_by_two(tracing: Path) -> None:
    for command in ("echo kmem:kfree > $0", "echo kmem:kmalloc >> $0"):
        subprocess.run(["bash", "-c", command, tracing / "set_event"], check=True)
    assert (tracing / "set_event").read_text() == "kmem:kfree\nkmem:kmalloc\n"
    subprocess.run(["bash", "-c", "echo oom:mark_victim > $0", tracing / "set_event"], check=True)
    assert (tracing / "set_event").read_text() == "oom:mark_victim\n"


def test_instances_are_directories(tracing: Path) -> None:
    (tracing / "instances/mine").mkdir()
    assert "kmem" in os.listdir(tracing / "instances/mine/events")
    assert (tracing / "instances/mine/tracing_on").read_text() == "1\n"
    (tracing / "instances/mine").rmdir()
    assert os.listdir(tracing / "instances") == []


def test_trace_cmd_lists_and_shows(mounted: Mounted, tracing: Path) -> None:
    program("trace-cmd")
    listed = mounted.bound("trace-cmd", "list", "-e").split()
    assert {"kmem:kmalloc", "vmscan:mm_vmscan_kswapd_wake", "compaction:mm_compaction_begin"} <= set(listed)
    fields = mounted.bound("trace-cmd", "list", "-e", "kmem:kmalloc", "-F")
    assert "field:size_t bytes_req;\toffset:24;\tsize:8;\tsigned:0;" in fields
    (tracing / KMALLOC / "enable").write_text("1")
    mounted.command("kmalloc 77")
    shown = mounted.bound("trace-cmd", "show")
    assert re.search(r": kmalloc: call_site=\S+ .*bytes_req=77 bytes_alloc=96 ", shown)


def test_trace_cmd_extracts_and_reports(mounted: Mounted, tracing: Path, tmp_path: Path) -> None:
    program("trace-cmd")
    (tracing / KMALLOC / "enable").write_text("1")
    mounted.command("kmalloc 77 n=300")
    (tracing / "tracing_on").write_text("0")
    data = tmp_path / "trace.dat"
    run = [*KMEMD, "run", "--at", str(mounted.path), "--", "trace-cmd", "extract", "-o", str(data)]
    subprocess.run(run, capture_output=True, check=True, timeout=PROGRAM_DEADLINE_S)
    report = subprocess.run(["trace-cmd", "report", str(data)], capture_output=True, text=True, check=True).stdout
    (tracing / "tracing_on").write_text("1")
    assert len(re.findall(r"kmalloc: .*bytes_req=77 bytes_alloc=96 ", report)) == 300
    assert (tracing / "per_cpu/cpu0/stats").read_text().startswith("entries: 0\n")


def test_trace_cmd_takes_and_shows_snapshots(mounted: Mounted, tracing: Path) -> None:
    program("trace-cmd")
    (tracing / KMALLOC / "enable").write_text("1")
    mounted.command("kmalloc 77 n=3")
    mounted.bound("trace-cmd", "snapshot", "-s")
    assert mounted.bound("trace-cmd", "snapshot").count(": kmalloc: ") == 3
    assert ": kmalloc: " not in (tracing / "trace").read_text()
    mounted.bound("trace-cmd", "snapshot", "-f")
    assert "# * Snapshot is freed *" in (tracing / "snapshot").read_text()


def test_a_descriptor_that_was_made_nonblocking_later_does_not_wait(tracing: Path) -> None:
    with (tracing / "per_cpu/cpu1/trace_pipe_raw").open("rb", buffering=0) as file:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_NONBLOCK)
        assert file.read(4096) is None


def test_the_histogram_of_latencies_in_the_docs_runs_as_written(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    chapter = (ROOT / "docs/tracing.md").read_text().partition("## How long it takes")[2].partition("\n## ")[0]
    script, shown = ("".join(part) for part in _blocks(chapter))
    path = tmp_path / "M"
    path.mkdir()
    daemon = start(path, ["kmemd", "mount", "--machine", "default", "--seed", "1", "--clock", "manual", str(path)])
    try:
        command = ["bash", "-e", "-c", "T=M/sys/kernel/tracing\n" + script]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    finally:
        end(path, daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shown


def _blocks(chapter: str) -> list[list[str]]:
    """The two indented blocks of a chapter: what is typed, and what is shown."""
    blocks: list[list[str]] = [[]]
    for line in chapter.splitlines(keepends=True):
        if line.startswith("    "):
            blocks[-1].append(line[4:])
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]
