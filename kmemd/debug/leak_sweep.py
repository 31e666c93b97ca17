"""The sweep of kmemleak: which objects changed, which are leaks, and which the file shows (mm/kmemleak.c).

The mark phase leaves the number of references found beside the number needed (``core.leak``); an object
with too few is white. Everything here is vectorised over the rows of the table, a piece of them at a time where a
scan must let others in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core.leak import BLACK, OBJECT_ALLOCATED, OBJECT_NO_SCAN, OBJECT_REPORTED, LeakTable

Rows = npt.NDArray[np.int64]

PIECE = 1 << 15
"""Rows of the table per piece, which take about a millisecond."""
SUMS = 256
"""Checksums per piece of objects that pointers were stored in, which are made one by one."""


def pieces(table: LeakTable) -> Iterator[slice]:
    """The rows in pieces; those that are added meanwhile are not of the scan."""
    end = int(table.rows)
    for start in range(0, end, PIECE):
        yield slice(start, min(start + PIECE, end))


def white(table: LeakTable, part: slice = slice(None)) -> Rows:
    """The rows of objects with too few references (``color_white``)."""
    start = part.start or 0
    rows = slice(start, table.rows if part.stop is None else part.stop)
    found: Rows = np.flatnonzero(
        (table.count[rows] < table.min_count[rows]) & (table.flags[rows] & OBJECT_ALLOCATED != 0)
    )
    found += start
    return found


def recheck(
    table: LeakTable, checksum_of: Callable[[int], int], fill_checksum: Callable[[int, int], int]
) -> Iterator[int]:
    """Queue the white objects that changed since the last scan, as grey for this one, a piece at a time.

    ``checksum_of(row)`` is the checksum of an object's bytes, ``fill_checksum(size, fill)`` that of an object
    which holds nothing but its fill. Gives the rows looked at.
    """
    for part in pieces(table):
        rows = white(table, part)
        pointers = table.first_edge[rows] != 0
        plain, written = rows[~pointers], rows[pointers]
        kinds = table.size[plain] << 16 | table.fill[plain].astype(np.int64)
        values, which = np.unique(kinds, return_inverse=True)
        known = [fill_checksum(kind >> 16, kind & 0xFFFF) for kind in values.tolist()]
        _compare(table, plain, np.array(known, dtype=np.uint32)[which])
        yield part.stop - part.start
        for start in range(0, len(written), SUMS):
            some = written[start : start + SUMS]
            some = some[table.flags[some] & OBJECT_ALLOCATED != 0]
            _compare(table, some, np.array([checksum_of(row) for row in some.tolist()], dtype=np.uint32))
            yield PIECE


def _compare(table: LeakTable, rows: Rows, sums: npt.NDArray[np.uint32]) -> None:
    changed = rows[sums != table.checksum[rows]]
    table.checksum[rows] = sums
    table.requeue(changed)


def unreferenced(table: LeakTable, newest: int, part: slice = slice(None)) -> Rows:
    """White objects born at jiffy ``newest`` or before (``unreferenced_object``)."""
    rows = white(table, part)
    found: Rows = rows[table.born[rows] <= newest]
    return found


def report(table: LeakTable, newest: int, part: slice = slice(None)) -> Rows:
    """Mark the unreferenced objects as reported. Those that are new."""
    rows = unreferenced(table, newest, part)
    new = rows[table.flags[rows] & OBJECT_REPORTED == 0]
    table.flags[new] |= OBJECT_REPORTED
    found: Rows = new
    return found


def shown(table: LeakTable, newest: int) -> Rows:
    """The rows that the file shows, reported and still unreferenced, in the order of the objects' creation."""
    rows = unreferenced(table, newest)
    rows = rows[table.flags[rows] & OBJECT_REPORTED != 0]
    found: Rows = rows[np.argsort(table.seq[rows], kind="stable")]
    return found


def shown_pieces(table: LeakTable, newest: Callable[[], int], size: int) -> Iterator[list[int]]:
    """The rows that the file shows, ``size`` at a time. Objects may be freed between pieces."""
    rows = shown(table, newest())
    for start in range(0, len(rows), size):
        yield shown_among(table, rows[start : start + size], newest()).tolist()


def shown_among(table: LeakTable, rows: Rows, newest: int) -> Rows:
    """Those of ``rows`` that the file shows."""
    flags = table.flags[rows]
    wanted = OBJECT_ALLOCATED | OBJECT_REPORTED
    keep = (flags & wanted == wanted) & (table.count[rows] < table.min_count[rows]) & (table.born[rows] <= newest)
    found: Rows = rows[keep]
    return found


def clear(table: LeakTable, newest: int, part: slice = slice(None)) -> None:
    """Paint what the file shows grey (``kmemleak_clear``)."""
    rows = unreferenced(table, newest, part)
    table.min_count[rows[table.flags[rows] & OBJECT_REPORTED != 0]] = 0


def paint(table: LeakTable, row: int, colour: int) -> None:
    """Set an object's colour for good: GREY or BLACK (``__paint_it``)."""
    table.min_count[row] = colour
    if colour == BLACK:
        table.flags[row] |= OBJECT_NO_SCAN


def check(table: LeakTable) -> None:
    """Raise AssertionError where an invariant of the table does not hold."""
    rows = np.flatnonzero(table.flags[: table.rows] & OBJECT_ALLOCATED)
    assert len(rows) == table.live
    used = 0
    for row in rows.tolist():
        start, size = int(table.pointer[row]), int(table.size[row])
        assert table.find(start) == row
        assert table.find_containing(start + max(size, 1) - 1) == row
        if table.first_edge[row]:
            used += len(table.pointers_in(row))
    assert table.covered() == table.live, "the address table leads to an object that is gone"
    free = table.edge_free
    while free:
        used += 1
        free = int(table.edge[3 * free - 1])
    assert used == table.edges
