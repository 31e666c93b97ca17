"""Readers that wait: when to look again, and when to give up because of a signal.

FUSE tells a file system nothing that pyfuse3 passes on when a waiting program gets a signal (the request
stays, and the program cannot even be killed until it is answered). So whoever waits looks at the
program that opened the file: a signal that is pending there and not blocked, or a program that is
gone, ends the wait with EINTR, as ``wait_event_interruptible`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

POLL_S = 0.05
STATUS_SIZE = 4096


class Change:
    """Something to wait for: the model has changed."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def announce(self) -> None:
        """Wake everyone who waits."""
        if self._event.statistics().tasks_waiting:
            self._event.set()
            self._event = trio.Event()

    async def wait(self, seconds: float) -> None:
        """Return at the next announcement, or when ``seconds`` have passed."""
        with trio.move_on_after(seconds):
            await self._event.wait()


class Waiter:
    """A program of the host, watched while one of its reads waits. Use as a context manager.

    FUSE says who opened the file, not who reads. A child that reads what its parent opened
    (``exec 3< kmsg; cat <&3``) is known by its state: a pending signal does not end its sleep.
    ``pid`` 0 is a program in a pid namespace that cannot be seen from here; it is never interrupted.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status = -1
        self._gone = False

    def __enter__(self) -> Waiter:
        if self._pid:
            try:
                self._status = os.open(f"/proc/{self._pid}/status", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._gone = True
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status >= 0:
            os.close(self._status)

    def interrupted(self) -> bool:
        """Whether a signal is pending that the reader does not block, or the program is gone."""
        if self._status < 0:
            return self._gone
        try:
            status = os.pread(self._status, STATUS_SIZE, 0)
        except ProcessLookupError:
            return True
        return pending_signals(status) != 0 or any(map(_is_stuck, _descendants(self._pid)))


def _descendants(pid: int) -> Iterator[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            children = [int(child) for child in file.read().split()]
    except OSError:
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _is_stuck(pid: int) -> bool:
    """Whether a program sleeps in spite of a signal that it does not block."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return False
    return b"\nState:\tD" in status and pending_signals(status) != 0


def pending_signals(status: bytes) -> int:
    """The pending, unblocked and not ignored signals in the text of ``/proc/PID/status``, as a bit mask."""
    masks = {}
    for line in status.splitlines():
        name, _, value = line.partition(b":")
        if name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn"):
            masks[name] = int(value, 16)
    pending = masks.get(b"SigPnd", 0) | masks.get(b"ShdPnd", 0)
    return pending & ~masks.get(b"SigBlk", 0) & ~masks.get(b"SigIgn", 0)


def never_waits(pid: int, path: str) -> bool:
    """Whether all descriptors that a program has of a file are O_NONBLOCK.

    fcntl(2) may have made them so since they were opened (``trace-cmd extract`` does); the requests do not say it.
    ``path`` is the file's within the model.
    """
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    flags = [_flags_of(pid, number) for number in numbers if _leads_to(pid, number, path)]
    return bool(flags) and all(flag & os.O_NONBLOCK for flag in flags)


def _leads_to(pid: int, number: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}").endswith(path)
    except OSError:
        return False


def _flags_of(pid: int, number: str) -> int:
    """The flags of an open file; as if none were set when it is gone."""
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    except OSError:
        return 0
    return int(fields.get(b"flags", b"0"), 8)
