"""Pressure averages and triggers."""

from __future__ import annotations

import errno

import pytest

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.psi import FIXED_1, Psi, parse_trigger


@pytest.fixture
def clock() -> Clock:
    return Clock(Context(), 0)


def test_nothing_waited(clock: Clock) -> None:
    psi = Psi(clock)
    clock.advance(60 * NSEC_PER_SEC)
    assert psi.report("memory") == [("some", (0, 0, 0), 0), ("full", (0, 0, 0), 0)]


def test_averages_rise_and_fall(clock: Clock) -> None:
    psi = Psi(clock)
    for _ in range(20):
        psi.stall("memory", NSEC_PER_SEC, full=False)
        clock.advance(2 * NSEC_PER_SEC)
        psi.update_averages()
    (_, some, total), (_, full, _) = psi.report("memory")
    assert total == 20_000_000
    assert 45 * FIXED_1 < some[0] <= 50 * FIXED_1
    assert some[0] > some[1] > some[2] > 0
    assert full == (0, 0, 0)
    clock.advance(600 * NSEC_PER_SEC)
    assert psi.report("memory")[0][1][0] == 0


def test_cpu_has_no_full(clock: Clock) -> None:
    psi = Psi(clock)
    psi.stall("cpu", NSEC_PER_SEC, full=True)
    clock.advance(3 * NSEC_PER_SEC)
    assert psi.report("cpu")[1] == ("full", (0, 0, 0), 0)


def test_trigger() -> None:
    assert parse_trigger("some 150000 1000000\n") == ("some", 150_000, 1_000_000)
    assert parse_trigger("full 1 2000000\0", privileged=False) == ("full", 1, 2_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "some 150000 1000000",  # the last byte is not looked at: a window of 0.1 s
        "bogus\n",
        "some\n",
        "some 1\n",
        "some 0 1000000\n",
        "some 2000000 1000000\n",
        "full 1 10000001\n",
        " some 1 1000000\n",
        "\n",
    ],
)
def test_trigger_refused(text: str) -> None:
    with pytest.raises(KernelError) as raised:
        parse_trigger(text)
    assert raised.value.errno == errno.EINVAL


def test_users_need_windows_of_two_seconds() -> None:
    with pytest.raises(KernelError):
        parse_trigger("some 1 1000000\n", privileged=False)
