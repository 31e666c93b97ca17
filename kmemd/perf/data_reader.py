"""Reading perf.data files that ``kmemd perf record`` wrote (tools/perf/util/header.c, session.c)."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kmemd.debug.perf_events import KERNEL
from kmemd.perf import data
from kmemd.perf.data import Event, Recording
from kmemd.perf.samples import Frame, Sample


def unpack(content: bytes) -> Recording:
    """All of a file; its samples are read while they are taken. ValueError for one that is not of kmemd."""
    with _whole():
        return _Reader(content).recording()


@contextmanager
def _whole() -> Iterator[None]:
    """What a part that is missing leads to, as ValueError."""
    try:
        yield
    except (struct.error, LookupError) as error:
        raise ValueError(f"the file is cut short ({error})") from None


class _Reader:
    """One file in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        if content[: len(data.MAGIC)] != data.MAGIC:
            raise ValueError("no perf.data file")
        _, _, attribute, attributes, records, _, bits = data.HEADER.unpack_from(content)
        self._records = data.SECTION.unpack(records)
        self._attributes = data.SECTION.unpack(attributes)
        self._attribute_size = attribute
        self._features = self._places(int.from_bytes(bits, "little"))

    def recording(self) -> Recording:
        """What the file holds."""
        at, size = self._attributes
        for start in range(at, at + size, self._attribute_size):
            if data.ATTR.unpack_from(self._content, start)[4] != data.SAMPLE_TYPE:
                raise ValueError("recorded by another program; perf script reads it")
        events = dict(self._events())
        return Recording(self._about(), list(events.values()), self._samples(events))

    def _places(self, bits: int) -> dict[int, int]:
        """Where each feature's section begins."""
        table = sum(self._records)
        numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
        return {
            number: data.SECTION.unpack_from(self._content, table + place * data.SECTION.size)[0]
            for place, number in enumerate(numbers)
        }

    def _text(self, at: int) -> tuple[str, int]:
        """A string of a feature, and where the next field is."""
        (size,) = data.WORD.unpack_from(self._content, at)
        at += data.WORD.size
        return _string(self._content[at : at + size]), at + size

    def _events(self) -> Iterator[tuple[int, Event]]:
        """The events by their identifiers."""
        at = self._features[data.EVENT_DESC]
        count, size = data.TASK.unpack_from(self._content, at)
        at += data.TASK.size
        for _ in range(count):
            period = data.ATTR.unpack_from(self._content, at)[3]
            name, at = self._text(at + size + data.WORD.size)
            yield int.from_bytes(self._content[at : at + 8], "little"), Event(name, period)
            at += 8

    def _about(self) -> dict[str, str]:
        about = {key: self._text(self._features[feature])[0] for feature, key in data.TEXTS.items()}
        available, online = data.TASK.unpack_from(self._content, self._features[data.NRCPUS])
        at = self._features[data.TOTAL_MEM]
        memory = int.from_bytes(self._content[at : at + 8], "little")
        return about | {
            "nrcpus online": str(online),
            "nrcpus avail": str(available),
            "total memory": f"{memory} kB",
            "cmdline": " ".join(self._words(self._features[data.CMDLINE])),
        }

    def _words(self, at: int) -> Iterator[str]:
        (count,) = data.WORD.unpack_from(self._content, at)
        at += data.WORD.size
        for _ in range(count):
            word, at = self._text(at)
            yield word

    def _samples(self, events: dict[int, Event]) -> Iterator[Sample]:
        comms: dict[int, str] = {}
        functions = _Functions()
        with _whole():
            for kind, body in self._bodies():
                if kind == data.RECORD_COMM:
                    _, tid = data.TASK.unpack_from(body)
                    comms[tid] = _string(body[data.TASK.size : -data.TRAILER.size])
                elif kind == data.RECORD_KSYMBOL:
                    start = data.KSYMBOL.unpack_from(body)[0]
                    functions.add(start, _string(body[data.KSYMBOL.size : -data.TRAILER.size]))
                elif kind == data.RECORD_SAMPLE:
                    event, _, _, tid, when, cpu, _, period, words, _ = data.SAMPLE.unpack_from(body)
                    frames = functions.stack(struct.unpack_from(f"<{words - 1}Q", body, data.SAMPLE.size))
                    yield Sample(comms[tid], tid, cpu, when, period, events[event].name, frames)

    def _bodies(self) -> Iterator[tuple[int, bytes]]:
        """The records: what they are, and what is in them."""
        at, size = self._records
        end = at + size
        while at < end:
            kind, _, size = data.RECORD.unpack_from(self._content, at)
            if size < data.RECORD.size:
                raise ValueError(f"a record of {size} bytes at {at:#x}")
            yield kind, self._content[at + data.RECORD.size : at + size]
            at += size


class _Functions:
    """The functions that the records so far have named."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._names: dict[int, tuple[str, str]] = {}
        self._stacks: dict[tuple[int, ...], tuple[Frame, ...]] = {}

    def add(self, start: int, symbol: str) -> None:
        """``symbol``: the name, and the module behind it."""
        name, _, module = symbol.partition(" ")
        bisect.insort(self._starts, start)
        self._names[start] = name, module or KERNEL

    def stack(self, addresses: tuple[int, ...]) -> tuple[Frame, ...]:
        """The frames of a stack, innermost first."""
        found = self._stacks.get(addresses)
        if found is None:
            found = self._stacks[addresses] = tuple(map(self._frame, addresses))
        return found

    def _frame(self, address: int) -> Frame:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            raise ValueError(f"no function is named for {address:#x}")
        start = self._starts[at]
        name, where = self._names[start]
        return Frame(address, name, address - start, where)


def _string(field: bytes) -> str:
    """Text up to its 0."""
    return field.partition(b"\0")[0].decode("utf-8", "replace")
