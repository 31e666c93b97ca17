"""How sysfs attributes of the memory manager parse and print (lib/kstrtox.c, ``sysfs_streq``).

Each is a ``Tunable.parse`` that takes the whole write or fails. That sysfs hands over at most a page, and
nothing at all for an empty write, is the business of the view that mounts the row. Some stores of the
kernel turn every error into EINVAL and some pass ERANGE through; each row uses the one that its store uses.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.tunable import Tunable

Parse = Callable[[str, Any, Tunable], tuple[Any, int]]


def show_word(value: bool) -> str:
    """A boolean as a word."""
    return "true\n" if value else "false\n"


def show_choice(*words: str) -> Callable[[str], str]:
    """All choices on a line, the one in force in brackets."""

    def show(value: str) -> str:
        return " ".join(f"[{word}]" if word == value else word for word in words) + "\n"

    return show


def choice(*words: str) -> Parse:
    """One of some words, compared by ``sysfs_streq``. EINVAL."""

    def store(text: str, _current: str, tunable: Tunable) -> tuple[str, int]:
        data = kstrtox.to_bytes(text)
        for word in words:
            if kstrtox.sysfs_streq(data, word):
                return word, len(data)
        raise KernelError(errno.EINVAL, f"{tunable.path} takes {', '.join(words)}")

    return store


def store_ulong(text: str, _current: int, tunable: Tunable) -> tuple[int, int]:
    """``kstrtoul`` in decimal, errors as they are; out of bounds is EINVAL."""
    data = kstrtox.to_bytes(text)
    return tunable.bounded(kstrtox.kstrtoul(data, 10, tunable.long_bits)), len(data)


def store_int(text: str, _current: int, tunable: Tunable) -> tuple[int, int]:
    """``kstrtoint`` in decimal, errors as they are; out of bounds is EINVAL."""
    data = kstrtox.to_bytes(text)
    return tunable.bounded(kstrtox.kstrtoint(data)), len(data)


def store_bool(text: str, _current: bool, _tunable: Tunable) -> tuple[bool, int]:
    """``kstrtobool``."""
    data = kstrtox.to_bytes(text)
    return kstrtox.kstrtobool(data), len(data)


def einval(store: Parse) -> Parse:
    """``store``, with every error turned into EINVAL."""

    def wrapped(text: str, current: Any, tunable: Tunable) -> tuple[Any, int]:
        try:
            return store(text, current, tunable)
        except KernelError as error:
            raise KernelError(errno.EINVAL, error.reason) from error

    return wrapped


def uint_of_base(base: int) -> Parse:
    """``kstrtouint`` in ``base`` (0: by prefix); every error is EINVAL."""

    def store(text: str, _current: int, tunable: Tunable) -> tuple[int, int]:
        data = kstrtox.to_bytes(text)
        return tunable.bounded(kstrtox.kstrtouint(data, base)), len(data)

    return einval(store)


store_uint = uint_of_base(10)
