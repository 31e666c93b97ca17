"""How pyfuse3 waits for the next request: first a short look at the device, then trio.

pyfuse3's session loop takes its event loop from one name of its module, which ``pyfuse3.asyncio`` replaces to
run under asyncio. ``install`` puts trio back there with two members changed. Stock trio costs two passes of
its scheduler for each request, more than the request itself:

- ``lowlevel.wait_readable`` first waits up to ``WINDOW_MS`` in poll(2), in which the next request of a busy
  program arrives. After ``BURST`` requests in a row trio gets its turn, and it gets one at once whenever
  ``busy()`` says that other work is under way. So timers and signals are late by a millisecond at most.
- ``Lock`` makes no pass of the scheduler when it is free, and whoever runs may take it before the task
  that waited for it.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from types import SimpleNamespace

import pyfuse3
import trio

WINDOW_MS = 1
BURST = 16


class Lock:
    """A lock that is taken without a checkpoint when it is free. Not fair.

    Invariants: whenever the lock is free and a task waits for it, one of the waiting tasks has been woken.
    """

    def __init__(self) -> None:
        self._held = False
        self._woken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
            self._woken = False
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False
        if self._waiting and not self._woken:
            self._woken = True
            self._waiting.unpark()


class Reader:
    """Waits for the FUSE device to become readable."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._burst = 0
        self._poll = select.poll()
        self._watched = -1

    async def wait_readable(self, fd: int) -> None:
        """Return when ``fd`` can be read."""
        if fd != self._watched:
            self._poll.register(fd, select.POLLIN)
            self._watched = fd
        if self._burst < BURST and self._poll.poll(0 if self._busy() else WINDOW_MS):
            self._burst += 1
            return
        self._burst = 0
        await trio.lowlevel.wait_readable(fd)


def install(busy: Callable[[], bool]) -> None:
    """Make pyfuse3 wait as described above. ``busy`` tells whether other tasks want to run."""
    lowlevel = SimpleNamespace(**vars(trio.lowlevel))
    lowlevel.wait_readable = Reader(busy).wait_readable
    changed = {**vars(trio), "lowlevel": lowlevel, "Lock": Lock}
    vars(pyfuse3)["trio"] = SimpleNamespace(**changed)
