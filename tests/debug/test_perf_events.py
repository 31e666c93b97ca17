"""Sampling: what was counted is what the samples stand for, and a recording changes nothing."""

from __future__ import annotations

import sys

import pytest

from kmemd import System
from kmemd.debug import perf_events

WORK = (
    "t = spawn comm=worker",
    "m = mmap t 2M",
    "access t m 256K op=w",
    "p = alloc_pages order=0 n=5000 by=fill_probe",
    "o = kmalloc 64 n=500",
    "sleep 2",
    "free_pages p",
)


def run(system: System) -> None:
    for line in WORK:
        system.command(line)


def counter(system: System, name: str) -> int:
    lines = dict(line.split() for line in system.read("/kmemd/perf/counters").decode().splitlines())
    return int(lines[name])


def test_samples_add_up_to_what_was_counted() -> None:
    system = System.boot()
    before = {name: counter(system, name) for name in ("cpu-clock", "page-faults", "vmstat:pgfree")}
    system.command("perf_record cpu-clock,page-faults,vmstat:pgfree period=1")
    run(system)
    system.command("perf_stop")
    for name, start in before.items():
        sampled = sum(sample.period for sample in system.kernel.perf.samples if sample.event == name)
        assert sampled == counter(system, name) - start > 0
    assert counter(system, "cpu-clock") == counter(system, "elapsed-ns") - 2_000_000_000, "idle time is no event"
    assert sys.getprofile() is None


def test_a_recording_changes_nothing() -> None:
    plain, watched = System.boot(cmdline="page_owner=on"), System.boot(cmdline="page_owner=on")
    watched.command("perf_record cpu-clock,cycles,dTLB-load-misses period=7")
    run(plain)
    run(watched)
    watched.command("perf_stop")
    for path in ("/proc/vmstat", "/sys/kernel/debug/page_owner", "/kmemd/clock", "/kmemd/perf/counters"):
        assert plain.read(path) == watched.read(path), path
    watched.check()


def test_a_sample_is_of_whoever_ran() -> None:
    system = System.boot()
    system.command("perf_record cpu-clock period=1")
    system.command("p = alloc_pages order=0 n=10 comm=painter cpu=1 by=paint_probe")
    system.command("perf_stop")
    text = system.read("/kmemd/perf/script").decode()
    painted = [block for block in text.rpartition("#\n")[2].split("\n\n") if "paint_probe" in block]
    assert painted
    assert all(block.splitlines()[0].startswith("painter ") and " [001] " in block for block in painted)


def test_timers_have_stacks_of_their_own() -> None:
    system = System.boot(cmdline="kmemleak=on")
    system.write("/sys/kernel/debug/kmemleak", "scan=on")
    system.command("perf_record cpu-clock period=1")
    system.command("sleep 70")
    system.command("perf_stop")
    text = system.read("/kmemd/perf/script").decode()
    assert "Kmemleak._run_slice+0x0 ([kmemd.debug.kmemleak])" in text
    assert not {name for name in ("Interpreter.", "System.", "PerfEvents.", "Context.", "finish") if f" {name}" in text}


def test_the_buffer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_events, "SAMPLES_MAX", 3)
    system = System.boot()
    system.command("perf_record page-faults")
    run(system)
    system.command("perf_stop")
    totals = dict(line.split() for line in system.read("/kmemd/perf/totals").decode().splitlines())
    assert int(totals["samples"]) == 3
    assert int(totals["lost"]) > 0
    assert int(totals["page-faults"]) >= 3 + int(totals["lost"]), "what has no sample is counted all the same"


def test_what_cannot_be_watched() -> None:
    system = System.boot()
    with pytest.raises(OSError, match="not counted by this machine"):
        system.command("perf_record instructions")
    with pytest.raises(OSError, match="is no event"):
        system.command("perf_record cpu-clock,page-folts")
    with pytest.raises(OSError, match="nothing is being recorded"):
        system.command("perf_stop")
    with pytest.raises(OSError, match="no process"):
        system.command("perf_record cycles task=4711")


def test_a_new_recording_ends_the_old() -> None:
    system = System.boot()
    system.command("perf_record page-faults")
    run(system)
    system.command("perf_record cs")
    system.command("perf_stop")
    assert system.read("/kmemd/perf/totals").decode().startswith("cs ")
    assert "samples 0\n" in system.read("/kmemd/perf/totals").decode()
