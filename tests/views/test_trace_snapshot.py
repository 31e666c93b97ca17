"""Snapshots of the trace buffers: the files, the trigger, and who may take one."""

from __future__ import annotations

import errno

import pytest

from tests.views.tracefs import KMALLOC, TRACING, Tracefs


@pytest.fixture
def fs() -> Tracefs:
    return Tracefs()


def test_a_snapshot_holds_what_was_recorded_and_the_trace_begins_anew(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64 n=3")
    fs.write("snapshot", "1")
    assert fs.events() == []
    assert fs.events("snapshot") == ["kmalloc"] * 3
    assert "# entries-in-buffer/entries-written: 3/3   #P:4\n" in fs.read("snapshot")
    fs.command("b = kmalloc 64 n=2")
    assert (len(fs.events()), len(fs.events("snapshot"))) == (2, 3)
    fs.write("snapshot", "1")
    assert (len(fs.events()), len(fs.events("snapshot"))) == (3, 2)
    fs.system.check()


def test_help_says_whether_there_is_a_buffer(fs: Tracefs) -> None:
    freed = fs.read("snapshot")
    assert freed.startswith(
        "# tracer: nop\n#\n#\n# * Snapshot is freed *\n#\n# Snapshot commands:\n# echo 0 > snapshot : C"
    )
    assert freed.endswith("works with any number that\n#                       is not a '0' or '1')\n")
    fs.write("snapshot", "1")
    assert "# * Snapshot is allocated *\n" in fs.read("snapshot")
    assert "# echo 1 > snapshot : Not supported with this kernel.\n" in fs.read("per_cpu/cpu0/snapshot")
    fs.write("snapshot", "0")
    assert fs.read("snapshot") == freed


def test_two_empties_and_cpus_are_only_emptied(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64 n=3")
    fs.write("snapshot", "1")
    assert fs.refused("per_cpu/cpu0/snapshot", "0") == errno.EINVAL
    assert fs.refused("per_cpu/cpu0/snapshot", "1") == errno.EINVAL
    assert fs.refused("snapshot", "yes") == errno.EINVAL
    fs.write("per_cpu/cpu1/snapshot", "2")
    assert len(fs.events("per_cpu/cpu0/snapshot")) == 3
    fs.write("snapshot", "2")
    assert fs.events("snapshot") == []
    assert "# * Snapshot is allocated *\n" in fs.read("snapshot")


def test_raw_pages_of_a_snapshot(fs: Tracefs) -> None:
    assert fs.system.read(TRACING + "per_cpu/cpu1/snapshot_raw", 0, 4096) == b""
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64 n=2")
    fs.write("snapshot", "1")
    page = fs.system.read(TRACING + "per_cpu/cpu0/snapshot_raw", 0, 4096)
    assert int.from_bytes(page[8:16], "little") == 2 * (4 + 52)
    assert int.from_bytes(page[20:22], "little") == 243


def test_the_trigger_takes_one_before_the_event_and_with_a_filter_behind_it(fs: Tracefs) -> None:
    fs.write(KMALLOC + "enable", "1")
    fs.write("events/kmem/kfree/enable", "1")
    fs.command("a = kmalloc 64 n=2")
    fs.write("events/kmem/kfree/trigger", "snapshot:1")
    assert fs.read("events/kmem/kfree/trigger") == "snapshot:count=1\n"
    assert "# * Snapshot is allocated *\n" in fs.read("snapshot")
    fs.command("kfree a")
    assert fs.events("snapshot") == ["kmalloc"] * 2
    assert fs.events() == ["kfree"] * 2
    fs.write("events/kmem/kfree/trigger", "!snapshot")
    fs.write(KMALLOC + "trigger", "snapshot if bytes_req == 500")
    fs.command("b = kmalloc 500")
    assert fs.events("snapshot") == ["kfree", "kfree", "kmalloc"]
    assert fs.events() == ["kmalloc"] * 2  # the buffer of the snapshot before goes on


def test_a_freed_buffer_ends_tracing_at_the_trigger(fs: Tracefs) -> None:
    fs.write(KMALLOC + "trigger", "snapshot")
    fs.write("snapshot", "0")
    fs.command("a = kmalloc 64")
    assert fs.read("tracing_on") == "0\n"
    words = [line.partition(": tracing_snapshot_instance_cond: ")[2] for line in fs.lines()]
    assert words == ["*** SNAPSHOT NOT ALLOCATED ***", "*** stopping trace here!   ***"]


def test_instances_and_clocks(fs: Tracefs) -> None:
    fs.system.mkdir(TRACING + "instances/mine")
    fs.write("instances/mine/" + KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64")
    fs.write("instances/mine/snapshot", "1")
    assert fs.events("instances/mine/snapshot") == ["kmalloc"]
    assert "freed" in fs.read("snapshot")
    fs.write("instances/mine/trace_clock", "mono")
    assert fs.events("instances/mine/snapshot") == []


def test_onmax_takes_snapshots_alone(fs: Tracefs) -> None:
    hist = "hist:keys=common_pid:wanted=bytes_req:onmax($wanted).save(bytes_alloc):onmax($wanted).snapshot()"
    fs.write(KMALLOC + "trigger", hist)
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64 n=2")
    fs.command("b = kmalloc 32")
    assert fs.events("snapshot") == ["kmalloc"]
    text = fs.read(KMALLOC + "hist")
    assert "hitcount:          3\n\tmax:         64  bytes_alloc:         64\n" in text
    assert (
        "\nSnapshot taken (see tracing/snapshot).  Details:\n\ttriggering value { onmax($wanted) }:         64\t"
        in text
    )
    assert fs.refused("snapshot", "1") == errno.EBUSY
    other = hist.replace("common_pid", "node")
    assert (
        fs.refused("events/kmem/mm_page_alloc/trigger", "hist:keys=order:x=order:onmax($x).snapshot()") == errno.EBUSY
    )
    assert fs.refused(KMALLOC + "trigger", other, append=True) == errno.EINVAL  # the variable has its name already
    fs.append(KMALLOC + "trigger", "!" + hist)
    fs.write("snapshot", "1")
