"""Who waits, and what ends the wait."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import trio
import trio.testing

from kmemd.fs.waiting import Change, Waiter, pending_signals

STATUS = """Name:\tcat
SigQ:\t1/2
SigPnd:\t{pending:016x}
ShdPnd:\t{shared:016x}
SigBlk:\t{blocked:016x}
SigIgn:\t{ignored:016x}
SigCgt:\t0000000000000000
"""


def bit(number: int) -> int:
    return 1 << (number - 1)


def status(pending: int = 0, shared: int = 0, blocked: int = 0, ignored: int = 0) -> bytes:
    return STATUS.format(pending=pending, shared=shared, blocked=blocked, ignored=ignored).encode()


def test_signals_of_the_thread_and_of_the_process_count() -> None:
    kill, term = bit(signal.SIGKILL), bit(signal.SIGTERM)
    assert pending_signals(status()) == 0
    assert pending_signals(status(pending=kill)) == kill
    assert pending_signals(status(shared=term)) == term
    assert pending_signals(status(pending=kill, shared=term)) == kill | term


def test_blocked_and_ignored_signals_do_not_count() -> None:
    term, hup = bit(signal.SIGTERM), bit(signal.SIGHUP)
    assert pending_signals(status(shared=term | hup, blocked=term)) == hup
    assert pending_signals(status(shared=term, ignored=term)) == 0


def test_a_quiet_program_is_not_interrupted() -> None:
    with Waiter(os.getpid()) as waiter:
        assert not waiter.interrupted()


def test_a_blocked_signal_does_not_interrupt_a_program() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        with Waiter(os.getpid()) as waiter:
            assert not waiter.interrupted()
        assert signal.sigtimedwait({signal.SIGUSR1}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_program_that_ends_is_noticed() -> None:
    program = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with Waiter(program.pid) as waiter:
        assert not waiter.interrupted()
        program.communicate()
        assert waiter.interrupted()
    with Waiter(program.pid) as waiter:
        assert waiter.interrupted()


def test_a_program_that_cannot_be_seen_is_never_interrupted() -> None:
    with Waiter(0) as waiter:
        assert not waiter.interrupted()


async def test_an_announcement_wakes_all(autojump_clock: trio.testing.MockClock) -> None:
    change = Change()
    woken: list[float] = []

    async def wait() -> None:
        await change.wait(100)
        woken.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        change.announce()
    assert woken == [start] * 3


async def test_without_announcement_the_wait_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    await Change().wait(2)
    assert trio.current_time() - start == 2
