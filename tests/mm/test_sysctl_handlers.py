"""How /proc/sys parses: kernel/sysctl.c's handlers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemd.errors import KernelError
from kmemd.mm import sysctl_handlers as sysctl
from kmemd.mm.page_alloc_tunables import parse_high_fraction, parse_lowmem_reserve_ratio
from kmemd.tunable import PartialWriteError, Tunable

INT = Tunable("proc/sys/vm/x", "x", sysctl.show_number, sysctl.proc_dointvec_minmax)
BOUNDED = Tunable("proc/sys/vm/x", "x", sysctl.show_number, sysctl.proc_dointvec_minmax, min=0, max=200)
LONG32 = Tunable("proc/sys/vm/x", "x", sysctl.show_number, sysctl.proc_doulongvec_minmax, long_bits=32)


@pytest.mark.parametrize(
    ("text", "value", "taken"),
    [
        ("60", 60, 2),
        ("60\n", 60, 3),
        (" \t\v60", 60, 5),
        ("-5", -5, 2),
        ("0x10", 16, 4),
        ("010", 8, 3),
        ("10 20", 10, 3),
        ("10 \n\n 20", 10, 6),
        ("", 7, 0),
        ("-2147483648", -(2**31), 11),
        ("1" + " " * 5000, 1, 5001),
    ],
)
def test_int(text: str, value: int, taken: int) -> None:
    assert sysctl.proc_dointvec_minmax(text, 7, INT) == (value, taken)


@pytest.mark.parametrize(
    "text",
    ["abc", "1x", "-", "+1", "- 1", "08", "0x", " ", "\n", "1\x00", "2147483648", "-2147483649", "9" * 20, "0" * 21],
)
def test_int_refuses(text: str) -> None:
    with pytest.raises(KernelError) as raised:
        sysctl.proc_dointvec_minmax(text, 7, INT)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize("text", ["201", "-1"])
def test_bounds(text: str) -> None:
    with pytest.raises(KernelError):
        sysctl.proc_dointvec_minmax(text, 7, BOUNDED)
    assert sysctl.proc_dointvec_minmax("200", 7, BOUNDED) == (200, 3)


def test_unsigned_long_is_as_wide_as_the_machine() -> None:
    wide = Tunable("x", "x", sysctl.show_number, sysctl.proc_doulongvec_minmax)
    assert sysctl.proc_doulongvec_minmax("4294967296", 0, wide) == (1 << 32, 10)
    with pytest.raises(KernelError):
        sysctl.proc_doulongvec_minmax("4294967296", 0, LONG32)
    with pytest.raises(KernelError):
        sysctl.proc_doulongvec_minmax("-1", 0, wide)


def test_unsigned_int_takes_the_whole_write() -> None:
    assert sysctl.proc_douintvec_minmax("10 20", 0, INT) == (10, 5)
    with pytest.raises(KernelError):
        sysctl.proc_douintvec_minmax("-1", 0, INT)


def test_jiffies_are_shown_as_seconds() -> None:
    value, taken = sysctl.proc_dointvec_jiffies("-3", 0, INT)
    assert (value, taken, sysctl.show_jiffies(value)) == (-750, 2, "-3\n")
    with pytest.raises(KernelError):
        sysctl.proc_dointvec_jiffies("8589935", 0, INT)


def test_bool() -> None:
    assert sysctl.proc_dobool("2", False, INT) == (True, 1)
    assert sysctl.proc_dobool("0", True, INT) == (False, 1)


def test_vector_keeps_what_was_read_before_an_error() -> None:
    assert sysctl.proc_dointvec_vector("1 2", [9, 9, 9], INT) == ([1, 2, 9], 3)
    with pytest.raises(PartialWriteError) as raised:
        sysctl.proc_dointvec_vector("1 x", [9, 9, 9], INT)
    assert raised.value.value == [1, 9, 9]


def test_lowmem_reserve_ratio_never_fails() -> None:
    assert parse_lowmem_reserve_ratio("100 x", [256, 256, 32, 0], INT) == ([100, 256, 32, 0], 5)
    assert parse_lowmem_reserve_ratio("abc", [256, 256, 32, 0], INT) == ([256, 256, 32, 0], 3)
    assert parse_lowmem_reserve_ratio("1 2 3 4 5", [0, 0, 0, 0], INT) == ([1, 2, 3, 4], 8)


def test_high_fraction_is_zero_or_at_least_eight() -> None:
    assert parse_high_fraction("8", 0, BOUNDED) == (8, 1)
    assert parse_high_fraction("0", 9, BOUNDED) == (0, 1)
    with pytest.raises(KernelError):
        parse_high_fraction("7", 0, BOUNDED)


def test_string_is_cut_at_newline_and_size() -> None:
    parse = sysctl.string_of(5)
    assert parse("host\nname", "", INT) == ("host", 9)
    assert parse("hostname", "", INT) == ("host", 8)
    assert parse("", "old", INT) == ("old", 0)


HANDLERS: list[Callable[[str, Any, Tunable], tuple[Any, int]]] = [
    sysctl.proc_dointvec_minmax,
    sysctl.proc_doulongvec_minmax,
    sysctl.proc_douintvec_minmax,
    sysctl.proc_dointvec_jiffies,
    sysctl.proc_dobool,
]


@given(st.text(max_size=60), st.sampled_from(HANDLERS))
def test_any_text_is_taken_or_refused(text: str, handler: Callable[[str, Any, Tunable], tuple[Any, int]]) -> None:
    reason = 0
    try:
        _, taken = handler(text, 0, INT)
        assert 0 <= taken <= len(text.encode())
    except KernelError as error:
        reason = error.errno
    assert reason in (0, errno.EINVAL)
