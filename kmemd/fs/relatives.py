"""Which process a thread belongs to, who its ancestors are and what it may do, by the host's ``/proc``.

FUSE tells the thread that asks. A program asks for its process (``os.getpid()`` in a thread), a program in a shell
script for the shell (``/proc/$$``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_IDS = re.compile(rb"^(Tgid|PPid):\s+(\d+)$", re.MULTILINE)
_EFFECTIVE = re.compile(rb"^CapEff:\s+([0-9a-f]+)$", re.MULTILINE)
DEPTH = 64
ALL = (1 << 64) - 1


def relatives(pid: int, proc: str = "/proc") -> Iterator[int]:
    """The process of thread ``pid``, its parent, and so on up to init; nothing when it is not known."""
    for _ in range(DEPTH):
        try:
            with open(f"{proc}/{pid}/status", "rb") as file:
                ids = {name: int(value) for name, value in _IDS.findall(file.read())}
        except OSError:
            return
        yield ids[b"Tgid"]
        pid = ids[b"PPid"]
        if pid == 0:
            return


class Capabilities:
    """The effective set of a thread that opens a file, as bits; looked up once, when a file asks.

    Capabilities that it has in another user namespace than the daemon's count for nothing, as in a file system that is
    mounted in the daemon's. What the daemon itself lacks a root has all the same: a container keeps something from
    everybody in it. None when nobody knows: the thread is gone, or another user's while the daemon is not root's.
    """

    __slots__ = ("_bits", "_known", "_pid", "_proc", "_root")

    def __init__(self, pid: int, *, root: bool, proc: str = "/proc") -> None:
        self._pid = pid
        self._proc = proc
        self._root = root
        self._known = False
        self._bits: int | None = None

    def __call__(self) -> int | None:
        """The set."""
        if not self._known:
            self._bits, self._known = self._look(), True
        return self._bits

    def _look(self) -> int | None:
        try:
            if self._namespace(str(self._pid)) != self._namespace("self"):
                return 0
            held = self._effective(str(self._pid))
            return held | ALL & ~self._effective("self") if self._root else held
        except OSError:
            return None

    def _namespace(self, pid: str) -> str:
        return os.readlink(f"{self._proc}/{pid}/ns/user")

    def _effective(self, pid: str) -> int:
        with open(f"{self._proc}/{pid}/status", "rb") as file:
            found = _EFFECTIVE.search(file.read())
        return int(found.group(1), 16) if found is not None else 0
