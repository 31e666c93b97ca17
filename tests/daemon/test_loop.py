"""The wait for requests: nothing is missed, and trio gets its turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from kmemd.daemon.loop import BURST, Lock, Reader


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_what_is_there_is_found_without_a_turn_of_trio(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await Reader(lambda: False).wait_readable(pipe[0])
    assert not scope.cancelled_caught


async def test_trio_gets_its_turn_after_a_burst(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    reader = Reader(lambda: False)
    turns = 0

    async def other() -> None:
        nonlocal turns
        turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(BURST):
            await reader.wait_readable(pipe[0])
        assert turns == 0
        for _ in range(2 * BURST):
            await reader.wait_readable(pipe[0])
        assert turns == 1


async def test_an_idle_wait_ends_with_the_first_byte(pipe: tuple[int, int]) -> None:
    reader = Reader(lambda: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        os.write(pipe[1], b"x")


async def test_the_lock_excludes_and_wakes() -> None:
    lock = Lock()
    inside = 0
    order: list[int] = []

    async def worker(number: int) -> None:
        nonlocal inside
        for _ in range(5):
            async with lock:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
                order.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(worker, number)
    assert sorted(order) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


async def test_a_cancelled_waiter_does_not_lose_the_wakeup() -> None:
    lock = Lock()
    entered: list[str] = []

    async def waiter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                entered.append(name)

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery, lock:
        nursery.start_soon(waiter, "first", first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(waiter, "second", second)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
    assert entered == ["second"]
