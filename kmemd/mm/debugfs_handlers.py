"""How simple files of debugfs parse and print (fs/libfs.c ``simple_attr_write``, fs/debugfs/file.c).

Rows of tunables use them, as those of sysfs use sysfs_handlers.py and those of sysctl sysctl_handlers.py.
"""

from __future__ import annotations

from typing import Any

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.tunable import Tunable

DEBUGFS = "sys/kernel/debug"
ATTR_BUFFER = 23
"""Bytes of a write that a simple attribute looks at."""


def simple_number(text: str) -> int:
    """An unsigned number of any base, of 64 bits (``simple_attr_write``). EINVAL, ERANGE."""
    return kstrtox.kstrtoull(kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text)[:ATTR_BUFFER])), 0)


class SimpleAttr:
    """A number of any base, cut to the width of what it is kept in, and within the row's bounds."""

    def __init__(self, bits: int = 64, *, signed: bool = False) -> None:
        self._bits, self._signed = bits, signed

    def __call__(self, text: str, _current: Any, tunable: Tunable) -> tuple[int, int]:
        """EINVAL, ERANGE."""
        data = kstrtox.to_bytes(text)
        digits = kstrtox.strip(kstrtox.c_string(data[:ATTR_BUFFER]))
        negative = self._signed and digits.startswith(b"-")
        value = kstrtox.kstrtoull(digits[1:] if negative else digits, 0)
        value = (-value if negative else value) & (1 << self._bits) - 1
        if self._signed and value >> self._bits - 1:
            value -= 1 << self._bits
        return tunable.bounded(value), len(data)


def flag(text: str, current: bool, _tunable: Tunable) -> tuple[bool, int]:
    """``debugfs_write_file_bool``: what is no boolean changes nothing."""
    data = kstrtox.to_bytes(text)
    try:
        return kstrtox.kstrtobool(data), len(data)
    except KernelError:
        return current, len(data)


def show_number(value: int) -> str:
    """``%llu``, or ``%lld``."""
    return f"{value}\n"


def show_flag(value: bool) -> str:
    """``debugfs_read_file_bool``."""
    return "Y\n" if value else "N\n"
