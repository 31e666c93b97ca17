"""The tracing directory through a mount: shells, readers that wait, and trace-cmd."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import Mounted, program

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
