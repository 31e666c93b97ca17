"""How /proc/sys parses and prints (kernel/sysctl.c ``proc_dointvec_minmax`` and its relatives).

Each ``proc_*`` function is a ``Tunable.parse``: (text, current value, row) to (value, bytes taken). A write of
nothing is taken and changes nothing. Numbers are separated by white space; a number may be octal or
hexadecimal; what follows the last number wanted is left over, so that "10 20" takes three bytes of a
one-number knob. Only the first page of a write is looked at. Left out: ``proc_do_large_bitmap``, microsecond
and USER_HZ conversions, which no modelled knob uses.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.clock import HZ
from kmemd.mm.units import PAGE_SIZE
from kmemd.tunable import PartialWriteError, Tunable

KMALLOC_MAX_SIZE = 1 << 22
TMPBUFLEN = 22
INT_MAX = kstrtox.INT_MAX
UINT_MAX = kstrtox.UINT_MAX
WHITE_SPACE = b" \t\n"

Convert = Callable[[int, bool, Tunable], Any]
Parse = Callable[[str, Any, Tunable], tuple[Any, int]]
Show = Callable[[Any], str]


def show_number(value: Any) -> str:
    """One number and a newline."""
    return f"{int(value)}\n"


def show_vector(values: Any) -> str:
    """Numbers with tabs between them."""
    return "\t".join(str(int(value)) for value in values) + "\n"


def show_string(value: str) -> str:
    """A string and a newline."""
    return value + "\n"


def show_jiffies(value: int) -> str:
    """A time kept in jiffies, in whole seconds."""
    return f"{'-' if value < 0 else ''}{abs(value) // HZ}\n"


def show_nothing(_value: Any) -> str:
    """A file that can be read and is empty."""
    return ""


def refuse(_text: str, _current: Any, tunable: Tunable) -> tuple[Any, int]:
    """The parse of a file that has no write bit."""
    raise KernelError(errno.EACCES, f"{tunable.path} cannot be written")


def take_all(text: str, current: Any, _tunable: Tunable) -> tuple[Any, int]:
    """The parse of a trigger: any text is taken, none of it is looked at."""
    return current, len(kstrtox.to_bytes(text))


def get_long(data: bytes, long_bits: int) -> tuple[int, bool, int]:
    """A number at the start of ``data`` (``proc_get_long``): (magnitude, negative, bytes taken). EINVAL."""
    window = data[: TMPBUFLEN - 1]
    negative = window[:1] == b"-" and len(data) > 1
    digits = window[negative:]
    if not digits[:1].isdigit():
        raise _invalid(window, "a number is needed")
    try:
        value, taken, _ = kstrtox.parse_integer(kstrtox.c_string(digits), 0)
    except KernelError as error:
        raise _invalid(window, error.reason) from error
    taken += negative
    if value >> long_bits or taken == TMPBUFLEN - 1:
        raise _invalid(window, f"the number needs more than {long_bits} bits")
    if taken < len(data) and data[taken] not in WHITE_SPACE:
        raise _invalid(window, "white space must follow a number")
    return value, negative, taken


def _invalid(data: bytes, reason: str) -> KernelError:
    return KernelError(errno.EINVAL, f"{data.decode('latin-1')!r}: {reason}")


def _skip_spaces(data: bytes, position: int) -> int:
    while position < len(data) and kstrtox.is_space(data[position]):
        position += 1
    return position


def _vector(text: str, current: list[Any], tunable: Tunable, convert: Convert) -> tuple[list[Any], int]:
    """Read up to ``len(current)`` numbers (``__do_proc_dointvec``, ``__do_proc_doulongvec_minmax``)."""
    written = kstrtox.to_bytes(text)
    values = list(current)
    data = written[: PAGE_SIZE - 1]
    position = count = 0
    error: KernelError | None = None if written else KernelError(0, "")
    while error is None and position < len(data) and count < len(values):
        position = _skip_spaces(data, position)
        if position == len(data):
            break
        try:
            value, negative, taken = get_long(data[position:], tunable.long_bits)
            position += taken
            values[count] = convert(value, negative, tunable)
            count += 1
        except KernelError as failed:
            error = failed
    if not written:
        return values, 0
    if count == 0:
        raise error or _invalid(data[:TMPBUFLEN], "a number is needed")
    if error is not None:
        raise PartialWriteError(error, values)
    position = _skip_spaces(data, position)
    return values, len(written) - (len(data) - position)


def _one(text: str, current: Any, tunable: Tunable, convert: Convert) -> tuple[Any, int]:
    values, taken = _vector(text, [current], tunable, convert)
    return values[0], taken


def to_int(value: int, negative: bool, tunable: Tunable) -> int:
    """A C int within the row's bounds. EINVAL."""
    if value > INT_MAX + negative:
        raise KernelError(errno.EINVAL, f"{value} does not fit an int")
    return tunable.bounded(-value if negative else value)


def _to_ulong(value: int, negative: bool, tunable: Tunable) -> int:
    if negative:
        raise KernelError(errno.EINVAL, f"{tunable.path} is never negative")
    return tunable.bounded(value)


def _to_jiffies(value: int, negative: bool, _tunable: Tunable) -> int:
    if value > INT_MAX // HZ:
        raise KernelError(errno.EINVAL, f"{value} s are too many jiffies")
    return -value * HZ if negative else value * HZ


def proc_dointvec_minmax(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """One int. Without bounds in the row this is ``proc_dointvec``."""
    return _one(text, current, tunable, to_int)


def proc_dointvec_vector(text: str, current: list[int], tunable: Tunable) -> tuple[list[int], int]:
    """Several ints; a short write leaves the others as they are."""
    return _vector(text, current, tunable, to_int)


def proc_doulongvec_minmax(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """One unsigned long."""
    return _one(text, current, tunable, _to_ulong)


def proc_dointvec_jiffies(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """Seconds, kept as jiffies in an int."""
    return _one(text, current, tunable, _to_jiffies)


def proc_dobool(text: str, current: bool, tunable: Tunable) -> tuple[bool, int]:
    """Any number but 0 is true."""
    return _one(text, current, tunable, lambda value, _negative, _tunable: value != 0)


def proc_douintvec_minmax(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """One unsigned int. It takes the whole write, also what follows the number."""
    data = kstrtox.to_bytes(text)
    if not data:
        return current, 0
    window = data[: PAGE_SIZE - 1]
    start = _skip_spaces(window, 0)
    if start == len(window):
        raise _invalid(window[:TMPBUFLEN], "a number is needed")
    value, negative, _ = get_long(window[start:], tunable.long_bits)
    if negative or value > UINT_MAX:
        raise KernelError(errno.EINVAL, f"{tunable.path} takes 0..{UINT_MAX}")
    return tunable.bounded(value), len(data)


def vm_knob(name: str, parse: Parse = proc_dointvec_minmax, show: Show = show_number, **more: Any) -> Tunable:
    """The row of /proc/sys/vm/``name``, kept in the owner's attribute of that name unless ``attr`` says another."""
    return Tunable(f"proc/sys/vm/{name}", more.pop("attr", name), show, parse, **more)


def string_of(size: int) -> Callable[[str, str, Tunable], tuple[str, int]]:
    """``proc_dostring`` of a buffer of ``size`` bytes: up to a newline or NUL, cut to fit; all is taken."""

    def proc_dostring(text: str, current: str, _tunable: Tunable) -> tuple[str, int]:
        data = kstrtox.to_bytes(text)
        if not data:
            return current, 0
        line = kstrtox.c_string(data).split(b"\n", 1)[0][: size - 1]
        return line.decode("utf-8", "surrogateescape"), len(data)

    return proc_dostring
