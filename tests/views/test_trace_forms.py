"""What ``trace`` shows with the options raw, hex and bin, and of bytes that are no text."""

from __future__ import annotations

import struct

import pytest

from tests.views.tracefs import KMALLOC, TRACING, Tracefs


@pytest.fixture
def fs() -> Tracefs:
    fs = Tracefs()
    fs.write(KMALLOC + "enable", "1")
    fs.command("a = kmalloc 64")
    fs.write("trace_marker", "hello")
    return fs


def place(fs: Tracefs) -> tuple[int, int]:
    """Task and time of the first record, by the raw form."""
    fs.write("options/raw", "1")
    pid, _, ns = fs.lines()[0].split()[:3]
    fs.write("options/raw", "0")
    return int(pid), int(ns)


def test_raw_is_numbers(fs: Tracefs) -> None:
    seconds = float(fs.lines()[0].split()[3].rstrip(":"))
    fs.write("options/raw", "1")
    event, message = fs.lines()
    pid, cpu, ns, *rest = event.split()
    assert (cpu, rest) == ("0", ["type:", "243"])
    assert int(ns) / 1e9 == pytest.approx(seconds, abs=1e-6)
    assert message.split()[3] == "#"
    assert message.endswith(" hello")
    assert fs.read("trace").startswith("# tracer: nop\n#\n# entries-in-buffer")
    fs.write("trace_options", "nocontext-info")
    assert fs.read("trace").startswith("type: 243\n# ")
    assert pid.isdigit()


def test_hex_is_words(fs: Tracefs) -> None:
    pid, ns = place(fs)
    fs.write("options/hex", "1")
    assert fs.lines()[0] == f"{pid:08x} 00000000 {ns:016x} type: 243"
    assert "type: 243\n\n" in fs.read("trace")


def test_bin_is_bytes_and_comes_first(fs: Tracefs) -> None:
    pid, ns = place(fs)
    for form in ("raw", "hex", "bin"):
        fs.write(f"options/{form}", "1")
    data = fs.system.read(TRACING + "trace")
    assert struct.pack("<iiQ", pid, 0, ns) + b"type: 243\n" in data
    assert fs.system.read(TRACING + "trace_pipe").startswith(struct.pack("<iiQ", pid, 0, ns) + b"type: 243\n")


def test_functions_are_addresses() -> None:
    fs = Tracefs()
    fs.write("current_tracer", "function")
    fs.command("w = spawn walker")
    fs.write("tracing_on", "0")
    fs.write("options/raw", "1")
    ip, parent = (int(word, 16) for word in fs.lines()[0].split()[3:])
    fs.write("options/hex", "1")
    assert fs.lines()[0].split()[3:] == [f"{ip:016x}", f"{parent:016x}"]
    fs.write("options/bin", "1")
    assert struct.pack("<QQ", ip, parent) in fs.system.read(TRACING + "trace")
    fs.write("current_tracer", "nop")


def test_a_message_of_bytes_that_are_no_text(fs: Tracefs) -> None:
    fs.system.write(TRACING + "trace_marker", b"caf\xe9")
    assert b": tracing_mark_write: caf\xe9\n" in fs.system.read(TRACING + "trace")


def test_messages_have_the_words_of_the_machine() -> None:
    fs = Tracefs("highmem")
    fs.write("events/ftrace/print/trigger", 'hist:keys=common_pid if buf == "start"')
    fs.write("trace_marker", "start")
    assert "hitcount:          1\n" in fs.read("events/ftrace/print/hist")
    assert fs.lines()[0].endswith(": tracing_mark_write: start")
