"""Any order of hist triggers, synthetic events and snapshots leaves nothing behind, and no command breaks the model."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from tests.views.tracefs import Tracefs

STEPS = 500
EVENTS = ("kmem/kmalloc", "kmem/kfree", "kmem/mm_page_alloc", "ftrace/print", "synthetic/ev", "synthetic/other")
WORDS = (
    *("hist:", "!hist:", "keys=", "vals=", "sort=", "size=", "name=foo", "clock=mono", "x=", "ptr", "bytes_req"),
    *("common_pid", "stacktrace", "common_timestamp", ".usecs", ".log2", ".buckets=5", ".sym-offset", ".execname"),
    *(".percent", "$x", "+", "-", "*", "/", "(", ")", ",", ":", "onmatch(", "kmem.kfree", ").", "save(", "snapshot()"),
    *(
        "trace(",
        "ev",
        "onmax(",
        "onchange(",
        " if ",
        "bytes_req > 5",
        "pause",
        "clear",
        "128",
        "0",
        ".",
        "ftrace.print",
    ),
)
VARIABLES = (
    "x=bytes_req",
    "y=common_timestamp.usecs",
    "z=$x+1",
    "w=common_timestamp.usecs-$y",
    "q=common_pid.execname",
)
OPTIONS = (
    *("vals=$x", "sort=hitcount", "onmax($x).save(ptr)", "onchange($x).snapshot()", "onmatch(kmem.kmalloc).ev($x)"),
    *("onmatch(kmem.kmalloc).trace(ev,bytes_alloc)", "onmax($w).ev($w)", "pause", "clear", "name=foo"),
)
SYNTHETIC = (
    "ev u64 a",
    "!ev",
    "other char c[16]; long[] s",
    "!other",
    "ev",
    "ev unsigned",
    "s:ev u8 b",
    "-:other",
    "-:",
)


def command(choose: random.Random) -> str:
    """Something that may be a trigger."""
    if choose.random() < 0.4:
        return "".join(choose.choice(WORDS) for _ in range(choose.randint(1, 14)))
    keys = choose.choice(["ptr", "common_pid", "bytes_req", "common_cpu", "order"])
    parts = [*choose.sample(VARIABLES, choose.randint(0, 3)), *choose.sample(OPTIONS, choose.randint(0, 2))]
    return choose.choice(["", "", "!"]) + ":".join([f"hist:keys={keys}", *parts])


def step(fs: Tracefs, choose: random.Random) -> None:
    """One write or read by chance."""
    event, kind = choose.choice(EVENTS), choose.random()
    if kind < 0.6:
        fs.append(f"events/{event}/trigger", command(choose))
    elif kind < 0.7:
        fs.append(choose.choice(["synthetic_events", "dynamic_events"]), choose.choice(SYNTHETIC))
    elif kind < 0.75:
        fs.write("snapshot", choose.choice("012"))
    elif kind < 0.85:
        fs.command("k = kmalloc 64 n=2")
        fs.command("kfree k")
        fs.write("trace_marker", "message")
    else:
        for name in (f"events/{event}/hist", f"events/{event}/trigger", "trace", "snapshot", "error_log"):
            fs.read(name)
        fs.write("events/synthetic/enable", choose.choice("01"))


def remove_all(fs: Tracefs, name: str) -> None:
    """Take each trigger of an event away by what its file shows of it."""
    with suppress(OSError):
        for line in fs.lines(name):
            with suppress(OSError):
                fs.append(name, "!" + line.rpartition(" [" if line.startswith("hist") else ":")[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_left(seed: int) -> None:
    fs, choose = Tracefs(), random.Random(seed)
    for _ in range(STEPS):
        with suppress(OSError):
            step(fs, choose)
    for _ in range(20):  # a histogram whose variables are in use goes after those that use it
        for event in EVENTS:
            remove_all(fs, f"events/{event}/trigger")
    assert list(fs.system.kernel.tracing.top.histograms()) == []
    with suppress(OSError):
        fs.write("events/synthetic/enable", "0")
    fs.write("synthetic_events", "\n")
    fs.write("snapshot", "0")
    assert fs.read("dynamic_events") == ""
    states = [fs.read(f"events/{event}/enable") for event in EVENTS[:3]]
    assert states == ["0\n"] * 3
    fs.system.check()
