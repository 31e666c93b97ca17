"""What kmemleak makes of an object's bytes: its checksum and hex dump (lib/crc32.c, lib/hexdump.c)."""

from __future__ import annotations

import errno
from zlib import crc32

from kmemd.errors import KernelError
from kmemd.mm.kstrtox import UINT_MAX, kstrtoul

HEX_BYTES = 32
HEX_ROW = 16


def kstrtoul_or_invalid(data: bytes, bits: int) -> int:
    """``kstrtoul`` of base 0 whose every failure is EINVAL (``dump_str_object_info``)."""
    try:
        return kstrtoul(data, 0, bits)
    except KernelError as error:
        raise KernelError(errno.EINVAL, error.reason) from error


def crc(data: bytes | bytearray) -> int:
    """The kernel's ``crc32(0, data)``: neither the seed nor the result is inverted."""
    return crc32(data, UINT_MAX) ^ UINT_MAX


def hex_dump(data: bytes | bytearray) -> str:
    """The dump of an object's first bytes: 16 to a line, and as text."""
    lines = [f"  hex dump (first {len(data)} bytes):\n"]
    for start in range(0, len(data), HEX_ROW):
        row = data[start : start + HEX_ROW]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"    {row.hex(' '):<{3 * HEX_ROW + 1}}{text}\n")
    return "".join(lines)
