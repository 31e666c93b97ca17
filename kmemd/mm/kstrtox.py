"""Numbers in text, as the kernel reads them (lib/kstrtox.c).

The ``kstrto*`` family reads a whole NUL-terminated string with at most one newline at its end; a number
too big gives ERANGE, anything else wrong EINVAL. Input is bytes; what follows a NUL does not exist for C.
"""

from __future__ import annotations

import errno

from kmemd.errors import KernelError

ULLONG_MAX = (1 << 64) - 1
UINT_MAX = (1 << 32) - 1
INT_MAX = (1 << 31) - 1
_DIGITS = b"0123456789abcdef"
_SPACE = b" \t\n\v\f\r\xa0"
_TRUE = b"yYtT1"
_FALSE = b"nNfF0"


def to_bytes(text: str) -> bytes:
    """The bytes that were written: file layers hand them over as surrogate-escaped UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def c_string(data: bytes) -> bytes:
    """What C sees of a buffer: all before the first NUL."""
    return data.split(b"\0", 1)[0]


def is_space(byte: int) -> bool:
    """The kernel's ``isspace``: ASCII white space and the Latin-1 no-break space."""
    return byte in _SPACE


def strip(data: bytes) -> bytes:
    """``strstrip``: without white space at both ends."""
    return data.strip(_SPACE)


def parse_integer(data: bytes, base: int) -> tuple[int, int, int]:
    """Read digits at the start of ``data``: (value, bytes of prefix and digits, number of digits).

    Base 0 takes 0x for hexadecimal and a leading 0 for octal (``_parse_integer_fixup_radix``).
    ERANGE when the value needs more than 64 bits.
    """
    prefix = 0
    hexadecimal = data[:1] == b"0" and data[1:2].lower() == b"x"
    if base == 0:
        if data[:1] == b"0":
            base = 16 if hexadecimal and len(data) > 2 and data[2:3].lower() in _hex_digits() else 8
        else:
            base = 10
    if base == 16 and hexadecimal:
        prefix = 2
    digits = data[prefix : prefix + _count_digits(data[prefix:], base)]
    value = 0
    for byte in digits:
        value = value * base + _DIGITS.index(bytes([byte]).lower())
        if value > ULLONG_MAX:
            raise KernelError(errno.ERANGE, "the number needs more than 64 bits")
    return value, prefix + len(digits), len(digits)


def _hex_digits() -> tuple[bytes, ...]:
    return tuple(bytes([digit]) for digit in _DIGITS)


def _count_digits(data: bytes, base: int) -> int:
    allowed = _DIGITS[:base]
    return next((i for i, byte in enumerate(data) if bytes([byte]).lower() not in allowed), len(data))


def kstrtoull(data: bytes, base: int = 10) -> int:
    """An unsigned number that is the whole string. EINVAL, ERANGE."""
    data = c_string(data)
    return _kstrtoull(data[1:] if data[:1] == b"+" else data, base)


def _kstrtoull(data: bytes, base: int) -> int:
    value, taken, digits = parse_integer(data, base)
    rest = data[taken:]
    if digits == 0 or rest not in (b"", b"\n"):
        raise KernelError(errno.EINVAL, f"{data.decode('latin-1')!r} is not a number")
    return value


def kstrtoul(data: bytes, base: int = 10, bits: int = 64) -> int:
    """An ``unsigned long`` of ``bits`` bits. EINVAL, ERANGE."""
    value = kstrtoull(data, base)
    if value >> bits:
        raise KernelError(errno.ERANGE, f"{value} needs more than {bits} bits")
    return value


def kstrtouint(data: bytes, base: int = 10) -> int:
    """An ``unsigned int``. EINVAL, ERANGE."""
    return kstrtoul(data, base, 32)


def kstrtoint(data: bytes, base: int = 10) -> int:
    """An ``int``. EINVAL, ERANGE."""
    text = c_string(data)
    negative = text[:1] == b"-"
    value = _kstrtoull(text[1:], base) if negative else kstrtoull(text, base)
    if value > INT_MAX + negative:
        raise KernelError(errno.ERANGE, f"{text.decode('latin-1')} does not fit an int")
    return -value if negative else value


def kstrtobool(data: bytes) -> bool:
    """Yes or no from the first one or two characters: y, t, 1, on; n, f, 0, off. EINVAL."""
    text = c_string(data)
    first, second = text[:1], text[1:2].lower()
    if first and first in _TRUE:
        return True
    if first and first in _FALSE:
        return False
    if first.lower() == b"o" and second in (b"n", b"f"):
        return second == b"n"
    raise KernelError(errno.EINVAL, f"{text.decode('latin-1')!r} is neither yes nor no")


def sysfs_streq(data: bytes, word: str) -> bool:
    """Whether the string is ``word``, with or without a newline at its end."""
    return c_string(data) in (word.encode(), word.encode() + b"\n")
