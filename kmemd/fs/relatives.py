"""Which process a thread belongs to, and who its ancestors are, by the host's ``/proc``.

FUSE tells the thread that asks. A program asks for its process (``os.getpid()`` in a thread), a program in a shell
script for the shell (``/proc/$$``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_IDS = re.compile(rb"^(Tgid|PPid):\s+(\d+)$", re.MULTILINE)
DEPTH = 64


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
