"""Parameters of modules, ``/sys/module/*/parameters`` (kernel/params.c ``param_set_bool`` and friends)."""

from __future__ import annotations

import errno
from typing import Any

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.tunable import Tunable

CHARP_MAX = 1024


def show_param_bool(value: bool) -> str:
    """``param_get_bool``."""
    return "Y\n" if value else "N\n"


def show_param(value: Any) -> str:
    """Numbers and strings."""
    return f"{value}\n"


def param_bool(text: str, _current: bool, _tunable: Tunable) -> tuple[bool, int]:
    """``param_set_bool``. EINVAL."""
    data = kstrtox.to_bytes(text)
    return kstrtox.kstrtobool(data), len(data)


def param_uint(text: str, _current: int, tunable: Tunable) -> tuple[int, int]:
    """``param_set_uint``: the base follows from the prefix. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(text)
    return tunable.bounded(kstrtox.kstrtouint(data, 0)), len(data)


def param_charp(text: str, _current: str, tunable: Tunable) -> tuple[str, int]:
    """``param_set_charp``, without the blanks around. ENOSPC."""
    data = kstrtox.to_bytes(text)
    word = kstrtox.c_string(data)
    if len(word) > CHARP_MAX:
        raise KernelError(errno.ENOSPC, f"{tunable.path}: string parameter too long")
    return kstrtox.strip(word).decode("utf-8", "surrogateescape"), len(data)
