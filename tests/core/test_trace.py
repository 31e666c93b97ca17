"""The ring and the log in three builds: layout of pages, overwriting, losses, and what comes out in which order."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kmemd.core import trace as installed
from kmemd.core import trace_ids as ev
from kmemd.core.trace_pages import MISSED_EVENTS, PAGE, decode
from tests.core import builds


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def build(request: pytest.FixtureRequest) -> ModuleType:
    return installed if request.param == "installed" else getattr(builds, request.param)("trace")


def events(ring: Any, cpu: int = 0) -> list[tuple[int, bytes]]:
    """Times and payloads of what a CPU's buffer holds."""
    rows, data = ring.snapshot(cpu)
    return [(int(ts), data[at : at + n].tobytes()) for ts, at, n in rows.T.tolist()]


def test_what_was_written_is_read(build: ModuleType) -> None:
    ring = build.Ring([3, 3])
    assert ring.write(1, 1000, b"abcdefgh")
    assert ring.write(1, 5_000_000_000, b"x" * 200)
    assert events(ring, 0) == []
    assert events(ring, 1) == [(1000, b"abcdefgh"), (5_000_000_000, b"x" * 200)]


def test_a_page_is_linux_own(build: ModuleType) -> None:
    ring = build.Ring([2])
    ring.write(0, 77, b"12345678")
    ring.write(0, 80, b"12345678")
    page = ring.read_page(0)
    assert len(page) == PAGE
    assert int.from_bytes(page[:8], "little") == 77
    assert int.from_bytes(page[8:16], "little") == 24
    assert int.from_bytes(page[16:20], "little") == 2
    assert int.from_bytes(page[28:32], "little") == 2 | 3 << 5
    assert ring.read_page(0) is None


def test_the_oldest_page_is_overwritten_and_counted(build: ModuleType) -> None:
    ring = build.Ring([2])
    for number in range(1000):
        ring.write(0, number, number.to_bytes(8, "little"))
    kept = [int.from_bytes(payload, "little") for _, payload in events(ring)]
    assert kept == list(range(340, 1000))
    written, overrun = ring.state[0, 6:8].tolist()
    assert (written, overrun, len(kept)) == (1000, 340, 660)
    ts, payload, lost = ring.peek(0)
    assert (ts, payload, lost) == (340, (340).to_bytes(8, "little"), 340)
    page = ring.read_page(0)
    assert int.from_bytes(page[8:16], "little") & MISSED_EVENTS


def test_without_overwrite_the_newest_are_dropped(build: ModuleType) -> None:
    ring = build.Ring([2])
    ring.overwrite = False
    taken = [ring.write(0, number, b"12345678") for number in range(700)]
    assert taken.count(True) == 680
    assert ring.state[0, 8] == 20


def test_reading_takes_records_out_and_leaves_the_rest(build: ModuleType) -> None:
    ring = build.Ring([4])
    for number in range(5):
        ring.write(0, number, bytes(8))
    assert ring.peek(0)[0] == 0
    ring.consume(0)
    ring.write(0, 9, bytes(8))
    assert [ts for ts, _ in events(ring)] == [1, 2, 3, 4, 9]
    assert ring.state[0, 9] == 1
    rest = decode(np.frombuffer(ring.read_page(0), dtype=np.uint8).copy())
    assert rest[0].tolist() == [1, 2, 3, 4]


def test_a_smaller_buffer_keeps_the_newest(build: ModuleType) -> None:
    ring = build.Ring([8])
    for number in range(1000):
        ring.write(0, number, bytes(8))
    ring.resize([2])
    assert events(ring)[-1][0] == 999
    assert len(events(ring)) + int(ring.state[0, 7]) == 1000


def test_nothing_is_taken_while_it_is_off(build: ModuleType) -> None:
    ring = build.Ring([2])
    ring.on = False
    assert not ring.write(0, 1, bytes(8))
    assert events(ring) == []


def test_rows_become_records_by_the_layout(build: ModuleType) -> None:
    words = np.zeros(16, dtype=np.int64)
    words[:5] = 12345, 1, 42, 42, 7
    log, ring = build.TraceLog(words), build.Ring([2, 2])
    heads = np.zeros((build.EVENTS, 4), dtype=np.int64)
    fields = np.zeros((build.EVENTS, 17, 3), dtype=np.int64)
    heads[ev.KMEM_CACHE_FREE] = 241, 1, 28, 3
    fields[ev.KMEM_CACHE_FREE, :3] = (8, 8, build.CALLER), (16, 8, build.WORD), (24, 4, build.DATA_LOC)
    ring.lay_out(heads, fields)
    log.attach(ring, None, lambda handle: 0xFFFF_FFFF_8100_0000 + handle, None)
    log.emit_objects(ev.KMEM_CACHE_FREE, np.array([1 << 63], dtype=np.uint64), 0, "widget")
    log.drain()
    assert events(ring, 1) == []
    log.set_mode(ev.KMEM_CACHE_FREE, build.PLAIN)
    words[6] = 5
    log.emit_objects(ev.KMEM_CACHE_FREE, np.array([1 << 63], dtype=np.uint64), 0, "widget")
    log.drain()
    ((ts, record),) = events(ring, 1)
    assert ts == 12345
    assert record[:8] == (241).to_bytes(2, "little") + b"\1\0" + (42).to_bytes(4, "little")
    assert int.from_bytes(record[8:16], "little") == 0xFFFF_FFFF_8100_0005
    assert int.from_bytes(record[16:24], "little") == 1 << 63
    assert int.from_bytes(record[24:28], "little") == 28 | 7 << 16
    assert record[28:35] == b"widget\0"
    assert log.comm_of == {42: 7}


def test_a_full_log_is_delivered_by_itself(build: ModuleType) -> None:
    words = np.zeros(16, dtype=np.int64)
    log, ring = build.TraceLog(words), build.Ring([100])
    heads = np.zeros((build.EVENTS, 4), dtype=np.int64)
    fields = np.zeros((build.EVENTS, 17, 3), dtype=np.int64)
    heads[ev.MM_PAGE_FREE_BATCHED] = 239, 0, 16, 1
    fields[ev.MM_PAGE_FREE_BATCHED, 0] = 8, 8, build.WORD
    ring.lay_out(heads, fields)
    log.attach(ring, None, None, None)
    log.set_mode(ev.MM_PAGE_FREE_BATCHED, build.PLAIN)
    words[0] = 5000
    log.emit_pages(ev.MM_PAGE_FREE_BATCHED, np.arange(2500), 2)
    log.drain()
    found = events(ring)
    assert [int.from_bytes(record[8:16], "little") for _, record in found] == list(range(2500))
    assert (found[0][0], found[-1][0]) == (5000 - 2499 * 2, 5000)
