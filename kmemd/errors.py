"""The one error type of the model: a Linux errno and the reason in words."""

from __future__ import annotations

import errno as _errno


class KernelError(Exception):
    """Raised by any layer below ``fs`` when Linux would return an errno.

    ``errno`` is the positive number (``errno.EINVAL``); ``reason`` says what was wrong,
    where, and what would be right. ``column`` is the offset of the offending word in a
    command line, if there is one.
    """

    def __init__(self, errno: int, reason: str, column: int | None = None) -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason
        self.column = column

    def __str__(self) -> str:
        return f"{_errno.errorcode.get(self.errno, self.errno)}: {self.reason}"
