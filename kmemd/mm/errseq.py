"""Errors that everybody who has a file open is told once (lib/errseq.c).

A value holds the last error, a counter, and whether somebody has seen it. Who opens a file samples the value, and is
told of what came later; an error that nobody has seen yet is told to the next one who asks.
"""

from __future__ import annotations

MAX_ERRNO = 4095
ERRSEQ_SEEN = 1 << 12
ERRSEQ_CTR_INC = 1 << 13


def errseq_set(value: int, number: int) -> int:
    """The value after an error; the counter moves only when somebody saw the last one."""
    new = value & ~(MAX_ERRNO | ERRSEQ_SEEN) | number
    return new + ERRSEQ_CTR_INC if value & ERRSEQ_SEEN else new


def errseq_sample(value: int) -> int:
    """What an opener remembers."""
    return value if value & ERRSEQ_SEEN else 0


def errseq_check_and_advance(value: int, since: int) -> tuple[int, int]:
    """The errno to tell, 0 for none, and the value, which is also what the asker remembers from now on."""
    if value == since:
        return 0, value
    seen = value | ERRSEQ_SEEN
    return seen & MAX_ERRNO, seen
