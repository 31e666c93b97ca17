"""perf.data files: what is written is what is read, and what is broken is refused."""

from __future__ import annotations

import struct

import pytest

from kmemd.debug.perf_events import KERNEL
from kmemd.perf.data import MAGIC, Event, Recording, Symbols, pack
from kmemd.perf.data_reader import unpack
from kmemd.perf.samples import Frame, Sample, parse

KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 T outer
ffffffff81000200 t inner
ffffffff81600000 T _etext
ffffffff82000000 B _end
"""
ABOUT = {
    "hostname": "(none)",
    "os release": "6.1.0",
    "perf version": "6.1.0",
    "arch": "x86_64",
    "cpudesc": "a CPU",
    "nrcpus online": "2",
    "nrcpus avail": "4",
    "total memory": "2045352 kB",
    "cmdline": "kmemd perf record",
}
OUTER = Frame(0xFFFFFFFF81000123, "outer", 0x23, KERNEL)
STACK = (
    Frame(0x400000, "Memory.access", 0, "[kmemd.mm.memory]"),
    Frame(0xFFFFFFFF81000210, "inner", 0x10, KERNEL),
    OUTER,
)
SAMPLES = (
    Sample("init", 1, 0, 5_000_000_000, 10_000, "cpu-clock", STACK),
    Sample("a shell", 34, 3, 5_000_010_000, 3, "vmstat:pgfree", (OUTER,)),
    Sample("renamed", 34, 3, 5_000_020_000, 10_000, "cpu-clock", STACK[1:]),
    Sample("init", 1, 1, 5_000_030_000, 1, "vmstat:pgfree", ()),
)
EVENTS = [Event("cpu-clock", 10_000), Event("vmstat:pgfree", 1)]


def packed() -> bytes:
    return pack(Recording(ABOUT, EVENTS, SAMPLES), Symbols(KALLSYMS))


def test_it_is_read_as_written() -> None:
    found = unpack(packed())
    assert (found.about, found.events, tuple(found.samples)) == (ABOUT, EVENTS, SAMPLES)


def test_text_is_read_as_written() -> None:
    text = "# a header\n" + "".join(sample.text() for sample in SAMPLES)
    assert tuple(parse(text.splitlines())) == SAMPLES
    assert tuple(parse(text.rstrip().splitlines())) == SAMPLES, "the last empty line is missing"


def test_functions_end_where_the_next_begin() -> None:
    symbols = Symbols(KALLSYMS)
    assert symbols.size(0xFFFFFFFF81000100) == 0x100
    assert symbols.size(0x400000) == Symbols.OTHER


@pytest.mark.parametrize("line", ["no head", "init 1 [000] 5.000000: 10 cpu-clock:\n\tno frame"])
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(ValueError, match=r"of perf script: "):
        list(parse(line.splitlines()))


def test_broken_files() -> None:
    content = packed()
    for size in (0, 7):
        with pytest.raises(ValueError, match=r"no perf\.data file"):
            unpack(content[:size])
    for size in range(len(MAGIC), len(content) - 64, 40):
        with pytest.raises(ValueError, match=r"."):
            list(unpack(content[:size]).samples)
    other = bytearray(content)
    struct.pack_into("<Q", other, 104 + 16 + 24, 0x7)
    with pytest.raises(ValueError, match="recorded by another program; perf script reads it"):
        unpack(bytes(other))
