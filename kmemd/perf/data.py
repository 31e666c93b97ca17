"""perf.data files: samples in the format that perf itself reads (tools/perf/util/header.c, perf.data-file-format.txt).

A file is a header, the attributes of its events, records, and sections of features (who recorded, the events' names).
Functions of the model and of the modelled kernel are nowhere on the reader's machine, so each is announced by a record
of its own (PERF_RECORD_KSYMBOL), with its module behind its name as an oops has it: no symbol file is needed.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kmemd.debug.perf_events import KERNEL
from kmemd.perf.samples import Frame, Sample

MAGIC = b"PERFILE2"
SECTION = struct.Struct("<QQ")
HEADER = struct.Struct("<8sQQ16s16s16s32s")
RECORD = struct.Struct("<IHH")
ATTR = struct.Struct("<IIQQQQQ80x")
IDS = struct.Struct("<QQ")
KSYMBOL = struct.Struct("<QIHH")
MMAP = struct.Struct("<IIQQQ")
TASK = struct.Struct("<II")
TRAILER = struct.Struct("<IIQIIQ")
SAMPLE = struct.Struct("<QQIIQIIQQQ")
"""Identifier, address, process, thread, time, CPU, period, how many words of stack, the mark before them."""
WORD = struct.Struct("<I")

RECORD_MMAP, RECORD_COMM, RECORD_SAMPLE, RECORD_KSYMBOL = 1, 3, 9, 17
KERNEL_PID = 0xFFFFFFFF
MISC_KERNEL = 1
KSYMBOL_OUT_OF_LINE = 2
CONTEXT_KERNEL = (1 << 64) - 128
TYPE_SOFTWARE, TYPE_TRACEPOINT = 1, 2
COUNT_SW = {
    "cpu-clock": 0,
    "task-clock": 1,
    "page-faults": 2,
    "context-switches": 3,
    "minor-faults": 5,
    "major-faults": 6,
}
COUNT_SW_DUMMY = 9
SAMPLE_TYPE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 16
"""IP, TID, TIME, CALLCHAIN, CPU, PERIOD, IDENTIFIER."""
SAMPLE_ID_ALL = 1 << 18
HOSTNAME, OSRELEASE, VERSION, ARCH, NRCPUS, CPUDESC, TOTAL_MEM, CMDLINE, EVENT_DESC = 3, 4, 5, 6, 7, 8, 10, 11, 12
TEXTS = {HOSTNAME: "hostname", OSRELEASE: "os release", VERSION: "perf version", ARCH: "arch", CPUDESC: "cpudesc"}
NAME_ALIGN = 64
STACK_MAX = 4096
"""Words of a stack that fit a record, whose size has 16 bits."""


class Event(NamedTuple):
    """One event that was sampled, and every how many of it."""

    name: str
    period: int


class Recording(NamedTuple):
    """All of a file. ``about``: hostname, os release, perf version, arch, nrcpus online, nrcpus avail, cpudesc,
    total memory, cmdline, as ``perf script --header`` names them."""

    about: dict[str, str]
    events: Sequence[Event]
    samples: Iterable[Sample]


# -- writing ---------------------------------------------------------------------------------------------------


def pack(recording: Recording, symbols: Symbols) -> bytes:
    """The bytes of a file."""
    events = {event.name: number for number, event in enumerate(recording.events, 1)}
    attributes = _attributes(recording.events)
    records = b"".join(_records(recording.samples, events, symbols))
    start = HEADER.size + len(attributes)
    features = dict(sorted(_features(recording).items()))
    bits = sum(1 << feature for feature in features).to_bytes(32, "little")
    ids = 8 * len(events)
    head = HEADER.pack(
        MAGIC,
        HEADER.size,
        ATTR.size + IDS.size,
        SECTION.pack(HEADER.size + ids, len(attributes) - ids),
        SECTION.pack(start, len(records)),
        bytes(SECTION.size),
        bits,
    )
    return b"".join((head, attributes, records, *_sections(features, start + len(records))))


def _attributes(events: Sequence[Event]) -> bytes:
    """The identifiers of the events, then an attribute for each, with where its identifier is."""
    ids = b"".join(number.to_bytes(8, "little") for number in range(1, len(events) + 1))
    return ids + b"".join(
        _attribute(event) + IDS.pack(HEADER.size + 8 * number, 8) for number, event in enumerate(events)
    )


def _attribute(event: Event) -> bytes:
    """struct perf_event_attr. What perf has no number for is a dummy; its name is in EVENT_DESC."""
    config = COUNT_SW.get(event.name, COUNT_SW_DUMMY)
    return ATTR.pack(TYPE_SOFTWARE, ATTR.size, config, event.period, SAMPLE_TYPE, 0, SAMPLE_ID_ALL)


def _records(samples: Iterable[Sample], events: dict[str, int], symbols: Symbols) -> Iterator[bytes]:
    """A record for each sample; before it, those that name its functions and its task, where they are new."""
    comms: dict[int, str] = {}
    known: set[tuple[Frame, ...]] = set()
    named: set[int] = set()
    yield _kernel_map(symbols)
    for sample in samples:
        trailer = TRAILER.pack(sample.tid, sample.tid, sample.when_ns, sample.cpu, 0, events[sample.event])
        if comms.get(sample.tid) != sample.comm:
            comms[sample.tid] = sample.comm
            yield _record(RECORD_COMM, 0, TASK.pack(sample.tid, sample.tid) + _padded(sample.comm, 8) + trailer)
        if sample.frames not in known:
            known.add(sample.frames)
            yield from _symbols(sample.frames, named, symbols, trailer)
        yield _record(RECORD_SAMPLE, MISC_KERNEL, _sample(sample, events[sample.event]))


def _kernel_map(symbols: Symbols) -> bytes:
    """Where the kernel is, without which perf warns; but for its text, whose functions have a map each."""
    place = MMAP.pack(KERNEL_PID, 0, symbols.etext, symbols.end - symbols.etext, symbols.text)
    return _record(RECORD_MMAP, MISC_KERNEL, place + _padded(f"{KERNEL}_text", 8) + bytes(TRAILER.size))


def _symbols(frames: tuple[Frame, ...], seen: set[int], symbols: Symbols, trailer: bytes) -> Iterator[bytes]:
    for frame in frames:
        start = frame.address - frame.offset
        if start in seen:
            continue
        seen.add(start)
        name = frame.name if frame.where == KERNEL else f"{frame.name} {frame.where}"
        symbol = KSYMBOL.pack(start, symbols.size(start), KSYMBOL_OUT_OF_LINE, 0)
        yield _record(RECORD_KSYMBOL, 0, symbol + _padded(name, 8) + trailer)


def _sample(sample: Sample, event: int) -> bytes:
    addresses = [frame.address for frame in sample.frames[:STACK_MAX]]
    top = addresses[0] if addresses else 0
    tid, when, count = sample.tid, sample.when_ns, len(addresses) + 1
    head = SAMPLE.pack(event, top, tid, tid, when, sample.cpu, 0, sample.period, count, CONTEXT_KERNEL)
    return head + struct.pack(f"<{len(addresses)}Q", *addresses)


def _record(kind: int, misc: int, body: bytes) -> bytes:
    return RECORD.pack(kind, misc, RECORD.size + len(body)) + body


def _padded(text: str, align: int) -> bytes:
    """A string with its 0, in whole units of ``align`` bytes."""
    data = text.encode() + b"\0"
    return data + bytes(-len(data) % align)


def _text(text: str) -> bytes:
    data = _padded(text, NAME_ALIGN)
    return WORD.pack(len(data)) + data


def _features(recording: Recording) -> dict[int, bytes]:
    """The sections of features by number."""
    about, events = recording.about, recording.events
    found = {feature: _text(about[key]) for feature, key in TEXTS.items()}
    found[NRCPUS] = TASK.pack(int(about["nrcpus avail"]), int(about["nrcpus online"]))
    found[TOTAL_MEM] = int(about["total memory"].split()[0]).to_bytes(8, "little")
    words = about["cmdline"].split()
    found[CMDLINE] = WORD.pack(len(words)) + b"".join(map(_text, words))
    found[EVENT_DESC] = TASK.pack(len(events), ATTR.size) + b"".join(
        _attribute(event) + WORD.pack(1) + _text(event.name) + number.to_bytes(8, "little")
        for number, event in enumerate(events, 1)
    )
    return found


def _sections(features: dict[int, bytes], at: int) -> Iterator[bytes]:
    """The table of the features' places, which begins at ``at``, and the features."""
    at += SECTION.size * len(features)
    for data in features.values():
        yield SECTION.pack(at, len(data))
        at += len(data)
    yield from features.values()


class Symbols:
    """``/proc/kallsyms``. A function ends where the next one begins, as perf takes it.

    A function that is not there, as those of the model, has ``OTHER`` bytes.
    """

    OTHER = 0x100

    def __init__(self, kallsyms: str) -> None:
        rows = [line.split() for line in kallsyms.splitlines()]
        self._starts = sorted({int(row[0], 16) for row in rows})
        marks = {row[2]: int(row[0], 16) for row in rows if row[2] in ("_text", "_etext", "_end")}
        self.text, self.etext, self.end = marks["_text"], marks["_etext"], marks["_end"]

    def size(self, start: int) -> int:
        """Bytes of the function at ``start``."""
        at = bisect.bisect_left(self._starts, start)
        if self._starts[at : at + 1] != [start] or at + 1 == len(self._starts):
            return self.OTHER
        return self._starts[at + 1] - start
