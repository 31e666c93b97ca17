"""Filters: what they let pass, and what Linux says to those it does not understand."""

from __future__ import annotations

import struct

import pytest

from kmemd.debug.trace_events import EVENTS
from kmemd.debug.trace_filter import FilterError, Sample, make_filter, with_error

LAYOUTS = {event.name: event.layout(8) for event in EVENTS}


def sample(order: int = 0, mt: int = 0, comm: str = "sh", cpu: int = 0) -> Sample:
    record = struct.pack("<HBBiQI4xQi", 238, 0, 0, 47, 0x100, order, 0xCC0, mt)
    return Sample(record, cpu, 47, comm, 0)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("order == 3", True),
        ("order != 3", False),
        ("order > 2 && migratetype == -1", True),
        ("order > 3 || migratetype < 0", True),
        ("order > 3 || migratetype < 0 && order == 1", False),
        ("(order > 3 || migratetype < 0) && !(order == 1)", True),
        ("!order == 3", False),
        ("gfp_flags & 0x40", True),
        ("gfp_flags & 0x1", False),
        ("pfn == 0x100", True),
        ("common_pid == 47", True),
        ("CPU == 1", True),
        ('comm == "walker"', True),
        ('COMM ~ "walk*"', True),
        ('comm ~ "?alker"', True),
        ('comm != "walker"', False),
        ('comm ~ "*[k]er" && order >= 3', True),
        ("order<=3", True),
    ],
)
def test_filters(text: str, passes: bool) -> None:
    assert make_filter(text, LAYOUTS["mm_page_alloc"]).matches(sample(3, -1, "walker", 1)) is passes


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("foo == 1", "Field not found", 4),
        ("order = 1", "Invalid operator", 7),
        ("order == x", "Invalid value (did you forget quotes)?", 10),
        ('order == "x"', "Expecting numeric field", 10),
        ("comm == 1", "Expecting string field", 9),
        ('comm == "x', "Missing matching quote", 8),
        ('comm > "x"', "Illegal operation for field type", 8),
        ("order == 1 migratetype == 2", "Too many terms in predicate expression", 11),
        ("(order == 1", "Too many '('", 0),
        ("order == 1)", "Too few '('", 10),
        ("order == 99999999999999999999", "Illegal integer value", 10),
    ],
)
def test_errors(text: str, message: str, position: int) -> None:
    with pytest.raises(FilterError) as caught:
        make_filter(text, LAYOUTS["mm_page_alloc"])
    assert (caught.value.message, caught.value.position) == (message, position)


def test_the_file_points_at_the_place() -> None:
    shown = with_error("foo == 1", FilterError("Field not found", 4))
    assert shown == "foo == 1\n    ^\nparse_error: Field not found\n"
