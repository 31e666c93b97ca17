"""Pressure averages and triggers."""

from __future__ import annotations

import errno

import pytest

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.psi import FIXED_1, Monitor, Psi, parse_trigger
from kmemd.mm.sched import TaskTable


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
    (_, some, total), (_, full, _) = psi.report("memory")
    assert total == 20_000_000
    assert 45 * FIXED_1 < some[0] <= 50 * FIXED_1
    assert some[0] > some[1] > some[2] > 0
    assert full == (0, 0, 0)
    clock.advance(600 * NSEC_PER_SEC)
    assert psi.report("memory")[0][1][0] == 0


def test_cpu_has_no_full(clock: Clock) -> None:
    whole, group = Psi(clock, whole=True), Psi(clock)
    for psi in (whole, group):
        psi.stall("cpu", NSEC_PER_SEC, full=True)
    clock.advance(3 * NSEC_PER_SEC)
    assert whole.report("cpu")[1] == ("full", (0, 0, 0), 0)
    assert group.report("cpu")[1][2] == 1_000_000


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


class Group:
    """A control group, as far as pressure goes."""

    def __init__(self, clock: Clock, parent: Group | None = None) -> None:
        self.psi, self.parent = Psi(clock), parent


class Member:
    def __init__(self, cgroup: Group) -> None:
        self.cgroup = cgroup


def test_a_stall_counts_in_every_group_above(clock: Clock) -> None:
    system = Psi(clock)
    top = Group(clock)
    inner = Group(clock, top)
    system.memstall(Member(inner), 5_000)
    system.memstall(Member(top), 2_000)
    system.iostall(None, 1_000)
    assert [row[2] for row in inner.psi.report("memory")] == [5, 5]
    assert [row[2] for row in top.psi.report("memory")] == [7, 7]
    assert [row[2] for row in system.report("memory")] == [7, 7]
    assert [row[2] for row in system.report("io")] == [1, 1]


def test_a_group_that_is_switched_off_counts_nothing(clock: Clock) -> None:
    psi = Psi(clock)
    psi.enabled = False
    psi.stall("memory", 5_000, full=True)
    psi.enabled = True
    psi.restart()
    assert psi.report("memory")[0][2] == 0


def test_cpus_count_as_long_as_they_are_busy(clock: Clock) -> None:
    psi = Psi(clock, cpus=2)
    clock.advance(NSEC_PER_SEC)
    psi.ran(None, 600_000_000)
    psi.memstall(None, 300_000_000, elsewhere=True)
    assert [row[2] for row in psi.report("memory")] == [100_000, 100_000], "0.3 s of a CPU that was busy a third"


def test_who_thrashes_waits_for_both(clock: Clock) -> None:
    psi = Psi(clock, cpus=2)
    clock.advance(NSEC_PER_SEC)
    psi.thrashing(None, 300_000_000)
    psi.memstall(None, 300_000_000, elsewhere=True)
    assert [row[2] for row in psi.report("io")] == [150_000, 150_000], "the CPU was busy with it once, not twice"
    assert [row[2] for row in psi.report("memory")] == [300_000, 300_000]


def test_a_long_stall_is_in_every_sample_that_it_lasted(clock: Clock) -> None:
    psi = Psi(clock)
    clock.advance(10 * NSEC_PER_SEC)
    psi.memstall(None, 9 * NSEC_PER_SEC)
    some = psi.report("memory")[0]
    assert some[2] == 9_000_000
    # the first sample has three missed periods and most of one in it, three full ones follow
    load = 0
    for percent in (100, 100, 100, 100):
        load = (load * 1677 + percent * FIXED_1 * (FIXED_1 - 1677) + FIXED_1 - 1) // FIXED_1
    assert abs(some[1][0] - load) < 5 * FIXED_1


def test_what_users_watch_goes_with_the_averages(clock: Clock) -> None:
    started: list[bool] = []
    psi = Psi(clock, watch=started.append)
    clock.advance(10 * NSEC_PER_SEC)
    trigger = psi.add_trigger("memory", "some", 150_000, 2_000_000, privileged=False)
    psi.memstall(None, 200_000_000)
    clock.advance(NSEC_PER_SEC)
    assert not trigger.event
    clock.advance(2 * NSEC_PER_SEC)
    assert trigger.event
    psi.remove_trigger(trigger)
    assert not started, "no thread watches for them"


def test_a_thread_watches_for_root(clock: Clock) -> None:
    tasks = TaskTable(Context(), 1)
    tasks.spawn("init")
    psi = Psi(clock, watch=Monitor(tasks))
    first = psi.add_trigger("memory", "some", 150_000, 1_000_000)
    second = psi.add_trigger("io", "full", 150_000, 1_000_000)
    assert [task.comm for task in tasks] == ["init", "psimon"]
    psi.remove_trigger(first)
    assert len(tasks) == 2
    psi.remove_trigger(second)
    assert len(tasks) == 1


def test_a_trigger_goes_off_once_in_a_window(clock: Clock) -> None:
    psi = Psi(clock)
    clock.advance(NSEC_PER_SEC)
    trigger = psi.add_trigger("memory", "some", 150_000, 1_000_000)
    psi.stall("memory", 100_000_000, full=False)
    clock.advance(NSEC_PER_SEC // 10)
    assert not trigger.event
    psi.stall("memory", 60_000_000, full=False)
    clock.advance(NSEC_PER_SEC // 10)
    assert trigger.event
    trigger.event = False
    psi.stall("memory", 200_000_000, full=False)
    clock.advance(NSEC_PER_SEC // 2)
    assert not trigger.event
    clock.advance(NSEC_PER_SEC)
    assert trigger.event
    psi.remove_trigger(trigger)
    psi.stall("memory", NSEC_PER_SEC, full=True)
    assert clock.next_timer_ns is None or not trigger.pending


def test_a_stall_below_the_threshold_is_nothing(clock: Clock) -> None:
    psi = Psi(clock)
    trigger = psi.add_trigger("io", "full", 150_000, 1_000_000)
    for _ in range(20):
        psi.stall("io", 100_000_000, full=False)
        psi.stall("io", 10_000_000, full=True)
        clock.advance(NSEC_PER_SEC // 5)
    assert not trigger.event
