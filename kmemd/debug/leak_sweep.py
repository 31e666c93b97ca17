"""The sweep of kmemleak: which objects changed, which are leaks, and which the file shows (mm/kmemleak.c).

The mark phase leaves the number of references found beside the number needed (``core.leak``); an object
with too few is white. Everything here is vectorised over the rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core.leak import BLACK, OBJECT_ALLOCATED, OBJECT_NO_SCAN, OBJECT_REPORTED, LeakTable

Rows = npt.NDArray[np.int64]


def white(table: LeakTable) -> Rows:
    """The rows of objects with too few references (``color_white``), in the order of creation."""
    rows = slice(0, table.rows)
    found: Rows = np.flatnonzero(
        (table.count[rows] < table.min_count[rows]) & (table.flags[rows] & OBJECT_ALLOCATED != 0)
    )
    return found


def recheck(table: LeakTable, checksum_of: Callable[[int], int], fill_checksum: Callable[[int, int], int]) -> None:
    """Queue the white objects that changed since the last scan, as grey for this one.

    ``checksum_of(row)`` is the checksum of an object's bytes, ``fill_checksum(size, fill)`` that of an object
    which holds nothing but its fill.
    """
    rows = white(table)
    pointers = table.record[2::4][rows] != 0
    sums = np.zeros(len(rows), dtype=np.uint32)
    plain = np.flatnonzero(~pointers)
    kinds = table.size[rows[plain]] << 16 | table.fill[rows[plain]].astype(np.int64)
    values, which = np.unique(kinds, return_inverse=True)
    known = [fill_checksum(kind >> 16, kind & 0xFFFF) for kind in values.tolist()]
    sums[plain] = np.array(known, dtype=np.uint32)[which]
    for index in np.flatnonzero(pointers).tolist():
        sums[index] = checksum_of(int(rows[index]))
    changed = rows[sums != table.checksum[rows]]
    table.checksum[rows] = sums
    table.requeue(changed)


def unreferenced(table: LeakTable, newest: int) -> Rows:
    """White objects born at jiffy ``newest`` or before (``unreferenced_object``)."""
    rows = white(table)
    found: Rows = rows[table.born[rows] <= newest]
    return found


def report(table: LeakTable, newest: int) -> int:
    """Mark the unreferenced objects as reported. How many are new."""
    rows = unreferenced(table, newest)
    new = rows[table.flags[rows] & OBJECT_REPORTED == 0]
    table.flags[new] |= OBJECT_REPORTED
    return len(new)


def shown(table: LeakTable, newest: int) -> Rows:
    """The rows that the file shows: reported, and still unreferenced."""
    rows = unreferenced(table, newest)
    found: Rows = rows[table.flags[rows] & OBJECT_REPORTED != 0]
    return found


def shown_pieces(table: LeakTable, newest: Callable[[], int], size: int) -> Iterator[list[int]]:
    """The rows that the file shows, ``size`` at a time, by the state at each piece.

    Objects may come and go between pieces. When that gave the rows new numbers, as many are passed over as
    have been given.
    """
    rows = shown(table, newest())
    given, compactions = 0, table.compactions
    while given < len(rows):
        if compactions != table.compactions:
            rows, compactions = shown(table, newest()), table.compactions
        piece = rows[given : given + size]
        given += len(piece)
        yield shown_among(table, piece, newest()).tolist()


def shown_among(table: LeakTable, rows: Rows, newest: int) -> Rows:
    """Those of ``rows`` that the file shows."""
    flags = table.flags[rows]
    wanted = OBJECT_ALLOCATED | OBJECT_REPORTED
    keep = (flags & wanted == wanted) & (table.count[rows] < table.min_count[rows]) & (table.born[rows] <= newest)
    found: Rows = rows[keep]
    return found


def clear(table: LeakTable, newest: int) -> None:
    """Paint what the file shows grey (``kmemleak_clear``)."""
    table.min_count[shown(table, newest)] = 0


def paint(table: LeakTable, row: int, colour: int) -> None:
    """Set an object's colour for good: GREY or BLACK (``__paint_it``)."""
    table.min_count[row] = colour
    if colour == BLACK:
        table.flags[row] |= OBJECT_NO_SCAN


def check(table: LeakTable) -> None:
    """Raise AssertionError where an invariant of the table does not hold."""
    rows = np.flatnonzero(table.flags[: table.rows] & OBJECT_ALLOCATED)
    assert len(rows) == table.live
    assert int(np.count_nonzero(table.hash[1::2])) == table.live
    used = 0
    for row in rows.tolist():
        assert table.find(int(table.pointer[row])) == row
        if table.record[4 * row + 2]:
            used += len(table.pointers_in(row))
    free = table.edge_free
    while free:
        used += 1
        free = int(table.edge[3 * free - 1])
    assert used == table.edges
