"""The clock driver."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from kmemd.daemon.clock import SLICE_NS, catch_up, follow
from kmemd.steps import Steps, finish


class Kernel:
    def __init__(self, now: int = 0) -> None:
        self.clock = SimpleNamespace(now=now, next_timer_ns=None)
        self.advances: list[int] = []

    def advance_steps(self, ns: int) -> Steps[None]:
        self.advances.append(ns)
        self.clock.now += ns
        yield


class Runner:
    async def run(self, steps: Steps[int]) -> int:
        return finish(steps)


def test_idle_time_passes_up_to_the_target() -> None:
    kernel = Kernel(now=500)
    assert finish(catch_up(kernel, 1700)) == 1200
    assert kernel.clock.now == 1700


def test_a_long_time_passes_in_slices() -> None:
    kernel = Kernel()
    assert finish(catch_up(kernel, 3 * SLICE_NS + 1)) == 3 * SLICE_NS + 1
    assert kernel.advances == [SLICE_NS] * 3 + [1]


def test_time_passes_from_timer_to_timer() -> None:
    kernel = Kernel()
    kernel.clock.next_timer_ns = 400
    assert finish(catch_up(kernel, 402)) == 402
    assert kernel.advances == [400, 1, 1]


def test_a_model_that_is_ahead_does_not_go_back() -> None:
    kernel = Kernel(now=5000)
    assert finish(catch_up(kernel, 1700)) == 0
    assert kernel.clock.now == 5000


@pytest.mark.parametrize("work_ns", [0, 40_000_000_000])
async def test_the_model_follows_the_wall(work_ns: int, autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel(now=7_000_000_000)
    with trio.move_on_after(30.05):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, kernel, Runner(), lambda: round(trio.current_time() * 1e9), 0.1)
            await trio.sleep(10.05)
            kernel.clock.now += work_ns
    passed = kernel.clock.now - 7_000_000_000
    if work_ns:
        assert passed == pytest.approx(10e9 + work_ns, rel=0.01)
    else:
        assert passed == pytest.approx(30e9, rel=0.01)


async def test_a_timer_that_fails_does_not_stop_the_clock(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Kernel):
        def advance_steps(self, ns: int) -> Steps[None]:
            yield from super().advance_steps(ns)
            if len(self.advances) < 4:
                raise RuntimeError("a bug of the model")

    kernel = Failing()
    with trio.move_on_after(5.05):
        await follow(kernel, Runner(), lambda: round(trio.current_time() * 1e9), 0.1)
    assert kernel.clock.now == pytest.approx(5e9, rel=0.01)
    assert caplog.text.count("the model failed while time passed") == 1
